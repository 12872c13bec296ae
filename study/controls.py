"""Controls: other tokens than those that ΔH finds, other perception losses, and views as plain image augmentation.

An effect of CPL may come from its views alone, or from any tokens at all, or from one half of the loss: each has an arm of its
own. `parts` puts a control into the seam of the package's step; the package itself holds CPPO and GRPO.
"""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from cppo_ref.config import CPPOConfig, InputError
from cppo_ref.cpl import contrast, view_divergence
from cppo_ref.evaluation import completion_labels
from cppo_ref.perturbations import preserve, view_rng
from cppo_ref.rewards import format_reward
from cppo_ref.rollouts import Batch, Rollouts, generate_rollouts
from cppo_ref.runs.seeds import stream_seed
from cppo_ref.step import CPPO, Parts, perception_tokens
from cppo_ref.vlm.policy import Policy
from study.credit import Looking

TOKENS = ("shift", "random", "all", "true")
LOSSES = ("cpl", "pull", "push", "papo", "consistency")
REWARDS = ("answer", "format", "random", "percepts")
CREDITS = ("all", "looking")


@dataclass(frozen=True)
class Controls:
    """What an arm puts in the place of CPPO's own parts; the defaults are CPPO."""

    tokens: Literal["shift", "random", "all", "true"] = "shift"  # CPL on those of ΔH, as many at random, all, the true percepts
    perception_loss: Literal["cpl", "pull", "push", "papo", "consistency"] = "cpl"  # or a half of it, PAPO's −KL⁻, KL⁺ alone
    policy_weight: float = 1.0  # of GRPO's surrogate; 0 leaves CPL alone
    augment: float = 0.0  # share of a step's images that are replaced by their I⁺ before sampling
    noisy: float = 0.0  # share of each group that is sampled under the prompt's I⁺ and learned from under I (NoisyRollout)
    # the paper's, its format alone, a coin, right percepts
    reward: Literal["answer", "format", "random", "percepts"] = "answer"
    credit: Literal["all", "looking"] = "all"  # tokens that learn from the reward: all, or those that depend on the image

    def __post_init__(self) -> None:
        checks = [
            ("tokens", self.tokens in TOKENS, f"one of {', '.join(TOKENS)}"),
            ("perception_loss", self.perception_loss in LOSSES, f"one of {', '.join(LOSSES)}"),
            ("policy_weight", self.policy_weight >= 0, "0 or more"),
            ("augment", 0 <= self.augment <= 1, "a share between 0 and 1"),
            ("noisy", 0 <= self.noisy < 1, "a share from 0 to below 1"),
            ("reward", self.reward in REWARDS, f"one of {', '.join(REWARDS)}"),
            ("credit", self.credit in CREDITS, f"one of {', '.join(CREDITS)}"),
        ]
        for name, ok, expected in checks:
            if not ok:
                raise InputError(f"{name} is {getattr(self, name)!r}, expected {expected}")

    def parts(self, policy: Policy, config: CPPOConfig, step: int) -> Parts:
        """These controls as step number `step` takes them."""
        parts = Parts(
            sample=partial(sample_rollouts, config=config, step=step, augment=self.augment, noisy=self.noisy),
            reward=CPPO.reward if self.reward == "answer" else partial(REWARDED[self.reward], policy, config, step),
            choose=perception_tokens if self.tokens == "shift" else partial(choose_tokens, tokens=self.tokens),
            token_loss=partial(perception_loss, kind=self.perception_loss),
            policy_weight=self.policy_weight,
        )
        looking = Looking()
        return parts if self.credit == "all" else replace(parts, choose=looking.choose, credit=looking.credit)


def choose_tokens(
    policy: Policy, batch: Batch, removed_entropy: Float[Tensor, "B T"], config: CPPOConfig, step: int, *, tokens: str
) -> Bool[Tensor, "B T"]:
    """The tokens that CPL is on, among those of the gated rows: "all", "true", or "random", as many as ΔH finds."""
    gated_tokens = batch.rollouts.completion_mask & batch.gate[:, None]
    if tokens == "all":
        return gated_tokens
    if tokens == "true":
        return gated_tokens & true_perception_tokens(policy, batch.rollouts)
    selected = perception_tokens(policy, batch, removed_entropy, config, step)
    rng = torch.Generator().manual_seed(stream_seed(config.seed, step, 0, 1))  # rollouts have (…, 0), minibatches (…, 1…)
    return random_tokens(selected, gated_tokens, rng)


def random_tokens(
    selected: Bool[Tensor, "B T"], completion_mask: Bool[Tensor, "B T"], rng: torch.Generator
) -> Bool[Tensor, "B T"]:
    """As many tokens per row as `selected` has, drawn without replacement from the completion tokens."""
    draws = torch.rand(selected.shape, generator=rng).to(selected.device).masked_fill(~completion_mask, 2.0)
    rank = draws.argsort(dim=-1).argsort(dim=-1)
    return completion_mask & (rank < selected.sum(dim=-1, keepdim=True))


def true_perception_tokens(policy: Policy, rollouts: Rollouts) -> Bool[Tensor, "B T"]:
    """The tokens that name what a cell of the picture shows, right or wrong: known in the shape world only."""
    truth = torch.zeros_like(rollouts.completion_mask)
    for row, labels in zip(truth, completion_labels(policy, rollouts), strict=True):
        row[: len(labels)] = torch.tensor([label.kind == "perception" for label in labels], dtype=torch.bool)
    return truth


def perception_loss(
    anchor: Float[Tensor, "N V"],
    preserved: Float[Tensor, "N V"],
    removed: Float[Tensor, "N V"],
    ids: Int[Tensor, " N"],
    config: CPPOConfig,
    *,
    kind: str,
) -> Float[Tensor, " N"]:
    """What each perception token costs, in nats: CPL, or what the study compares it with.

    cpl: softplus((KL⁺ − KL⁻)/τ).  pull, push: the same value, with gradient through KL⁺ alone or KL⁻ alone.  papo: −KL⁻ to a
    view without gradient, as its code scores the masked view before the update (arXiv 2507.06448).  consistency: KL⁺.
    """
    options = {"estimator": config.kl_estimator, "detach_anchor": config.detach_anchor}
    if kind == "papo":
        return -view_divergence(anchor, removed.detach(), ids, **options)
    if kind == "consistency":
        return view_divergence(anchor, preserved, ids, **options)
    kl_preserved, kl_removed = (view_divergence(anchor, view, ids, **options) for view in (preserved, removed))
    if kind == "pull":
        kl_removed = kl_removed.detach()
    if kind == "push":
        kl_preserved = kl_preserved.detach()
    return contrast(kl_preserved, kl_removed, tau=config.tau)


def augment_rows(rows: list[dict[str, Any]], config: CPPOConfig, step: int, *, share: float) -> list[dict[str, Any]]:
    """Rows of which an evenly spaced `share` shows the preserving view that CPPO would contrast with at this step."""
    shown = list(rows)
    for i, row in enumerate(rows):
        if int((i + 1) * share) > int(i * share):
            rng = view_rng(config.seed, step, i, "preserve")
            shown[i] = row | {"image": preserve(row["image"], rng, config.preserving, config.preserving_strength)}
    return shown


def sample_rollouts(
    policy: Policy, rows: list[dict[str, Any]], *, config: CPPOConfig, step: int, augment: float, noisy: float, **sampling: Any
) -> Rollouts:
    """The step's rollouts, some images or a share `noisy` of each group sampled under the preserving view.

    Completions that were sampled under the view are scored, and learned from, under the image itself (after NoisyRollout,
    arXiv 2504.13055; its decay of the distortion is left out).
    """
    if not noisy:
        return generate_rollouts(policy, augment_rows(rows, config, step, share=augment), **sampling)
    group_size, rng = sampling.pop("group_size"), sampling.pop("rng")
    distorted = round(group_size * noisy)
    shown = augment_rows(rows, config, step, share=1.0)
    seen = [(rows, group_size - distorted), (shown, distorted)]
    clean, other = (generate_rollouts(policy, part, group_size=size, rng=rng, **sampling) for part, size in seen)
    return merged(clean, other, policy.tokenizer.pad_token_id)


def merged(clean: Rollouts, other: Rollouts, pad: int) -> Rollouts:
    """Each prompt's completions of both, side by side in one group; rows and prompts are those of `clean`."""
    sizes, prompts = (clean.group_size, other.group_size), len(clean.rows)
    length = max(clean.completion_ids.shape[1], other.completion_ids.shape[1])

    def grouped(name: str, value: float) -> Tensor:
        """Both tensors [P·G, …] with the same length, as [P·(G + G'), …]."""
        both = [getattr(rollouts, name) for rollouts in (clean, other)]
        both = [t if t.ndim == 1 else torch.nn.functional.pad(t, (0, length - t.shape[1]), value=value) for t in both]
        return torch.cat([t.unflatten(0, (prompts, size)) for t, size in zip(both, sizes, strict=True)], dim=1).flatten(0, 1)

    texts = []
    for i in range(prompts):
        texts += [*clean.texts[i * sizes[0] : (i + 1) * sizes[0]], *other.texts[i * sizes[1] : (i + 1) * sizes[1]]]
    return replace(
        clean,
        group_size=sum(sizes),
        completion_ids=grouped("completion_ids", pad),
        completion_mask=grouped("completion_mask", False),
        entropy=grouped("entropy", 0.0),
        finished=grouped("finished", False),
        texts=texts,
    )


def format_rewards(policy: Policy, config: CPPOConfig, step: int, rollouts: Rollouts) -> list[float]:
    """1 for the right format, whatever the answer: what of an arm's gain needs no right answer?"""
    return [format_reward(text) for text in rollouts.texts]


def random_rewards(policy: Policy, config: CPPOConfig, step: int, rollouts: Rollouts) -> list[float]:
    """A fair coin for each completion: what of an arm's gain needs no reward at all?"""
    return np.random.default_rng([config.seed, step, 3]).integers(2, size=len(rollouts.texts)).astype(float).tolist()


def percept_rewards(policy: Policy, config: CPPOConfig, step: int, rollouts: Rollouts) -> list[float]:
    """The share of a completion's perception tokens that are right: what would a reward for seeing earn?"""
    labels = completion_labels(policy, rollouts)
    verdicts = [[bool(label.right) for label in row if label.kind == "perception"] for row in labels]
    return [float(np.mean(row)) if row else 0.0 for row in verdicts]


REWARDED = {"format": format_rewards, "random": random_rewards, "percepts": percept_rewards}


def without_grpo(config: CPPOConfig, parts: Parts) -> tuple[CPPOConfig, Parts]:
    """The same settings with the perception loss alone: no surrogate, no KL to the reference."""
    return replace(config, kl_weight=0.0), replace(parts, policy_weight=0.0)
