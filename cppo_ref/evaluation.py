"""Evaluation: accuracy over several samples, what the policy saw and how it counted, and the detector against the truth."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from sklearn.metrics import precision_score, recall_score, roc_auc_score

from cppo_ref.examples.rows import images_of
from cppo_ref.perception import Ranking, entropy_shift, perception_score, select_perception_tokens
from cppo_ref.perturbations import remove, view_rng
from cppo_ref.rewards import accuracy_reward
from cppo_ref.rollouts import Rollouts, generate_rollouts
from cppo_ref.runs.intervals import Interval, bootstrap_interval
from cppo_ref.vlm.policy import Policy
from cppo_ref.vlm.scoring import completion_entropy
from cppo_ref.worlds.shapes import TokenLabel, label_tokens, level_of

IMAGES_PER_BATCH = 64


@dataclass(frozen=True)
class SplitReport:
    """How a policy does on one split."""

    avg_at_k: Interval  # share of right samples, over images
    greedy: float  # share of right greedy answers
    perception: float  # share of perception tokens that are right, sampled completions
    reasoning: float  # share of reasoning tokens that follow from what the completion says it saw
    images: int
    samples: int


@dataclass(frozen=True)
class DetectorReport:
    """How well the entropy shift finds the perception tokens of sampled completions."""

    auroc_absolute: float  # of ΔH
    auroc_normalized: float  # of ΔH / H⁻
    precision: float  # share of selected tokens that are perception tokens
    recall: float  # share of perception tokens that are selected
    tokens: int


def sample_answers(
    policy: Policy,
    rows: Sequence[dict[str, Any]],
    *,
    samples: int,
    max_new_tokens: int | None = None,
    temperature: float = 1.0,
    batch_size: int | None = None,
    seed: int = 0,
) -> list[Rollouts]:
    """Completions for `rows`, `samples` each; `batch_size` completions at a time (None: 64 images' worth).

    `max_new_tokens` None: what the rows' level of the shape world leaves room for; ValueError for other rows.
    """
    limit = max_new_tokens or level_of(rows[0]).max_new_tokens
    rng = torch.Generator().manual_seed(seed)
    return [
        generate_rollouts(
            policy,
            rows[i : i + IMAGES_PER_BATCH],
            group_size=samples,
            max_new_tokens=limit,
            temperature=temperature,
            batch_size=batch_size,
            rng=rng,
        )
        for i in range(0, len(rows), IMAGES_PER_BATCH)
    ]


def correctness(answers: Sequence[Rollouts]) -> np.ndarray:
    """[images, samples] of 0 and 1: is the boxed answer right?"""
    flat = [accuracy_reward(text, answer) for r in answers for text, answer in zip(r.texts, r.answers, strict=True)]
    return np.array(flat).reshape(-1, answers[0].group_size)


def avg_at_k(answers: Sequence[Rollouts]) -> Interval:
    """Mean accuracy over k samples per image; the interval resamples images."""
    return bootstrap_interval(correctness(answers).mean(axis=1))


def completion_labels(policy: Policy, rollouts: Rollouts) -> list[list[TokenLabel]]:
    """The labels of every completion's tokens (end-of-sequence left out)."""
    rows = [row for row in rollouts.rows for _ in range(rollouts.group_size)]
    return [label_tokens(text, policy.tokenizer, row) for text, row in zip(rollouts.texts, rows, strict=True)]


def evaluate_split(
    policy: Policy, rows: Sequence[dict[str, Any]], *, samples: int = 8, max_new_tokens: int | None = None, seed: int = 0
) -> SplitReport:
    """Sample and decode greedily on shape-world rows, and judge answers and tokens."""
    sampled = sample_answers(policy, rows, samples=samples, max_new_tokens=max_new_tokens, seed=seed)
    greedy = sample_answers(policy, rows, samples=1, max_new_tokens=max_new_tokens, temperature=0)
    labels = [label for r in sampled for row in completion_labels(policy, r) for label in row]
    return SplitReport(
        avg_at_k=avg_at_k(sampled),
        greedy=float(correctness(greedy).mean()),
        perception=_share_right(labels, "perception"),
        reasoning=_share_right(labels, "reasoning"),
        images=len(rows),
        samples=samples,
    )


def _share_right(labels: Sequence[TokenLabel], kind: str) -> float:
    verdicts = [label.right for label in labels if label.kind == kind and label.right is not None]
    return float(np.mean(verdicts)) if verdicts else float("nan")


@torch.no_grad()
def evaluate_detector(
    policy: Policy,
    rows: Sequence[dict[str, Any]],
    *,
    removing: Sequence[str] = ("noise_patches",),
    strength: float = 1.0,
    ranking: Ranking = "absolute",
    top_fraction: float = 0.5,
    max_new_tokens: int | None = None,
    seed: int = 0,
) -> DetectorReport:
    """Sample one completion per row and compare its entropy shift with the true perception tokens.

    AUROC is over all completion tokens (end-of-sequence left out); precision and recall are of `select_perception_tokens`.
    """
    truth, shifts, normalized, chosen = [], [], [], []
    for rollouts in sample_answers(policy, rows, samples=1, max_new_tokens=max_new_tokens, seed=seed):
        shift, removed_entropy = completion_shift(policy, rollouts, removing=removing, strength=strength, seed=seed)
        selected = select_perception_tokens(
            shift, removed_entropy, rollouts.completion_mask, top_fraction=top_fraction, ranking=ranking
        )
        ratio = perception_score(shift, removed_entropy, ranking="normalized")
        for i, labels in enumerate(completion_labels(policy, rollouts)):
            n = len(labels)
            truth += [label.kind == "perception" for label in labels]
            for values, source in ((shifts, shift), (normalized, ratio), (chosen, selected)):
                values += source[i, :n].tolist()
    return DetectorReport(
        auroc_absolute=float(roc_auc_score(truth, shifts)),
        auroc_normalized=float(roc_auc_score(truth, normalized)),
        precision=float(precision_score(truth, chosen, zero_division=0)),  # pyright: ignore[reportArgumentType]
        recall=float(recall_score(truth, chosen, zero_division=0)),  # pyright: ignore[reportArgumentType]
        tokens=len(truth),
    )


@torch.no_grad()
def completion_shift(
    policy: Policy, rollouts: Rollouts, *, removing: Sequence[str] = ("noise_patches",), strength: float = 1.0, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """(ΔH, H⁻), both [B, T] in nats, of completions under one removing view per image."""
    views = []
    for i, row in enumerate(rollouts.rows):
        rng = view_rng(seed, 0, i, "remove")
        views.append([remove(image, rng, removing, strength) for image in images_of(row)])
    removed = policy.encode(views, [row["question"] for row in rollouts.rows]).take(rollouts.prompt_of_row)
    removed_entropy = completion_entropy(policy, removed, rollouts.completion_ids, rollouts.completion_mask)
    return entropy_shift(rollouts.entropy, removed_entropy, rollouts.completion_mask), removed_entropy
