"""Controls of the study: other tokens than those that ΔH finds, and preserving views as plain image augmentation.

Paper: perception tokens are found by ΔH; images are perturbed for the perception loss only.
Here:  the same by default. `tokens` puts CPL on as many random tokens, on all, or on the true perception tokens of the shape
       world; `augment` lets GRPO itself learn from a share of preserving views.
Why:   an effect of CPL may come from its views alone, or from any tokens at all: each has an arm of its own.
"""

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from cppo_ref.config import CPPOConfig
from cppo_ref.evaluation import completion_labels
from cppo_ref.perception import random_tokens, select_perception_tokens
from cppo_ref.perturbations import preserve, view_rng
from cppo_ref.policy import Policy
from cppo_ref.rollouts import Rollouts
from cppo_ref.updates import stream_seed


def choose_tokens(
    policy: Policy,
    rollouts: Rollouts,
    shift: Float[Tensor, "B T"],
    removed_entropy: Float[Tensor, "B T"],
    gated_tokens: Bool[Tensor, "B T"],
    config: CPPOConfig,
    step: int,
) -> Bool[Tensor, "B T"]:
    """The tokens that CPL is on, among `gated_tokens`, as `config.tokens` says; "shift" is the paper's."""
    if config.tokens == "all":
        return gated_tokens
    if config.tokens == "true":
        return gated_tokens & true_perception_tokens(policy, rollouts)
    selected = select_perception_tokens(
        shift, removed_entropy, gated_tokens, top_fraction=config.top_fraction, ranking=config.ranking
    )
    if config.tokens == "shift":
        return selected
    rng = torch.Generator().manual_seed(stream_seed(config.seed, step, 0, 1))  # rollouts have (…, 0), minibatches (…, 1…)
    return random_tokens(selected, gated_tokens, rng)


def true_perception_tokens(policy: Policy, rollouts: Rollouts) -> Bool[Tensor, "B T"]:
    """The tokens that name what a cell of the picture shows, right or wrong: known in the shape world only."""
    truth = torch.zeros_like(rollouts.completion_mask)
    for row, labels in zip(truth, completion_labels(policy, rollouts), strict=True):
        row[: len(labels)] = torch.tensor([label.kind == "perception" for label in labels], dtype=torch.bool)
    return truth


def augment_rows(rows: list[dict[str, Any]], config: CPPOConfig, step: int) -> list[dict[str, Any]]:
    """Rows of which an evenly spaced share `augment` shows the preserving view that CPPO would contrast with at this step."""
    shown = list(rows)
    for i, row in enumerate(rows):
        if int((i + 1) * config.augment) > int(i * config.augment):
            rng = view_rng(config.seed, step, i, "preserve")
            shown[i] = row | {"image": preserve(row["image"], rng, config.preserving, config.preserving_strength)}
    return shown
