"""The detector against the truth: does the entropy shift rise at the tokens that say what the policy saw?"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from sklearn.metrics import precision_score, recall_score, roc_auc_score

from cppo_ref.evaluation import completion_labels, sample_answers
from cppo_ref.examples.rows import images_of
from cppo_ref.perception import entropy_shift, perception_score, select_perception_tokens
from cppo_ref.perturbations import remove, view_rng
from cppo_ref.rollouts import Rollouts
from cppo_ref.vlm.policy import Policy
from cppo_ref.vlm.scoring import completion_entropy


@dataclass(frozen=True)
class DetectorReport:
    """How well the entropy shift finds the perception tokens of sampled completions."""

    auroc_absolute: float  # of ΔH
    auroc_normalized: float  # of ΔH / H⁻
    precision: float  # share of selected tokens that are perception tokens
    recall: float  # share of perception tokens that are selected
    tokens: int


@torch.no_grad()
def evaluate_detector(
    policy: Policy,
    rows: Sequence[dict[str, Any]],
    *,
    removing: Sequence[str] = ("noise_patches",),
    strength: float = 1.0,
    top_fraction: float = 0.5,
    batch_size: int | None = None,
    seed: int = 0,
) -> DetectorReport:
    """Sample one completion per row and compare its entropy shift with the true perception tokens.

    AUROC is over all completion tokens (end-of-sequence left out); precision and recall are of `select_perception_tokens`.
    """
    truth, shifts, normalized, chosen = [], [], [], []
    shared: dict[str, Any] = {"batch_size": batch_size, "seed": seed}
    for rollouts in sample_answers(policy, rows, samples=1, **shared):
        shift, removed = completion_shift(policy, rollouts, removing=removing, strength=strength, **shared)
        ratio = perception_score(shift, removed, ranking="normalized")
        mask = rollouts.completion_mask
        selected = select_perception_tokens(shift, removed, mask, top_fraction=top_fraction, ranking="absolute")
        for i, labels in enumerate(completion_labels(policy, rollouts)):
            truth += [label.kind == "perception" for label in labels]
            for values, source in ((shifts, shift), (normalized, ratio), (chosen, selected)):
                values += source[i, : len(labels)].tolist()
    return DetectorReport(
        auroc_absolute=float(roc_auc_score(truth, shifts)),
        auroc_normalized=float(roc_auc_score(truth, normalized)),
        precision=float(precision_score(truth, chosen, zero_division=0)),  # pyright: ignore[reportArgumentType]
        recall=float(recall_score(truth, chosen, zero_division=0)),  # pyright: ignore[reportArgumentType]
        tokens=len(truth),
    )


@torch.no_grad()
def completion_shift(
    policy: Policy,
    rollouts: Rollouts,
    *,
    removing: Sequence[str] = ("noise_patches",),
    strength: float = 1.0,
    batch_size: int | None = None,
    seed: int = 0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(ΔH, H⁻), both [B, T] in nats, of completions under one removing view per image; scored `batch_size` at a time."""
    drawn = [(view_rng(seed, 0, i, "remove"), row) for i, row in enumerate(rollouts.rows)]
    views = [[remove(image, rng, removing, strength) for image in images_of(row)] for rng, row in drawn]
    removed = policy.encode(views, [row["question"] for row in rollouts.rows]).take(rollouts.prompt_of_row)
    ids, mask = rollouts.completion_ids, rollouts.completion_mask
    removed_entropy = completion_entropy(policy, removed, ids, mask, batch_size=batch_size)
    return entropy_shift(rollouts.entropy, removed_entropy, mask), removed_entropy
