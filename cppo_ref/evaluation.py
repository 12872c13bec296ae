"""Evaluation: accuracy over several samples, what the policy saw and how it counted."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from cppo_ref.rewards import accuracy_reward
from cppo_ref.rollouts import Rollouts, generate_rollouts
from cppo_ref.runs.intervals import Interval, bootstrap_interval
from cppo_ref.vlm.policy import Policy
from cppo_ref.worlds.shapes import TokenLabel, world_of

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

    `max_new_tokens` None: what the rows' world leaves room for; ValueError for other rows.
    """
    limit = max_new_tokens or world_of(rows[0]).max_new_tokens
    parts = [rows[i : i + IMAGES_PER_BATCH] for i in range(0, len(rows), IMAGES_PER_BATCH)]
    sampling = {"max_new_tokens": limit, "temperature": temperature, "batch_size": batch_size}
    rng = torch.Generator().manual_seed(seed)
    return [generate_rollouts(policy, part, group_size=samples, rng=rng, **sampling) for part in parts]


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
    return [world_of(row).label_tokens(text, policy.tokenizer, row) for text, row in zip(rollouts.texts, rows, strict=True)]


def evaluate_split(
    policy: Policy,
    rows: Sequence[dict[str, Any]],
    *,
    samples: int = 8,
    max_new_tokens: int | None = None,
    batch_size: int | None = None,
    seed: int = 0,
) -> SplitReport:
    """Sample and decode greedily, and judge answers; on rows of a world the tokens, too (NaN on others)."""
    options: dict[str, Any] = {"max_new_tokens": max_new_tokens, "batch_size": batch_size}
    sampled = sample_answers(policy, rows, samples=samples, seed=seed, **options)
    greedy = sample_answers(policy, rows, samples=1, temperature=0, **options)
    known = bool({"objects", "world"} & set(rows[0]))
    labels = [label for r in sampled for row in completion_labels(policy, r) for label in row] if known else []
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
