"""What is measured of a policy at the end of a run. Accuracies and shares are in [0, 1], entropies in nats.

Paper: accuracy on seven benchmarks, one run per arm.
Here:  accuracy on plain and shifted images, and beside it what the policy saw, how it counted, whether an answer
       survives a preserving view, and whether doubt grows when information is removed.
Why:   the paper's claim is about perception; accuracy alone cannot tell perception from counting.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from cppo_ref.config import CPPOConfig
from cppo_ref.evaluation import avg_at_k, completion_labels, evaluate_split, sample_answers
from cppo_ref.examples.loading import load_rows, split_rows
from cppo_ref.examples.rows import row_at
from cppo_ref.perturbations import preserve, view_rng
from cppo_ref.rewards import extract_boxed
from cppo_ref.rollouts import Rollouts
from cppo_ref.runs.detector import completion_shift, evaluate_detector
from cppo_ref.vlm.policy import Policy
from cppo_ref.worlds.splits import SHIFT_STRENGTH, WORLD_SEED
from study.hints import LEVEL, hinted_rows, with_hints
from study.store import UNSEEN_METRICS
from study.worlds import WORLDS
from study.worlds.rows import under_blank_views, under_trained_views, under_unseen_views, world_rows

Examples = list[dict[str, Any]]
SIDE_IMAGES = 100  # for consistency, sensitivity and the detector
CONSISTENCY_VIEWS = 3  # preserving views per image
# One removing view for all arms, that does remove: four times the authors' number of noise patches (see the tiny VLM's card).
REFERENCE_VIEW = {"removing": ("noise_patches",), "strength": 4.0}


def reference_view(rows: Examples) -> dict[str, Any]:
    """The removing view of the detector's measures: at the authors' strength in the worlds that were made for it."""
    return REFERENCE_VIEW | ({"strength": 1.0} if "world" in rows[0] else {})


def evaluation_rows(level: str, split: str, images: int) -> dict[str, Examples]:
    """The rows of "plain" and "shift" images of the test split, or the same made from the validation split."""
    if level == LEVEL:
        plain = hinted_rows(split)
        lying = hinted_rows("test_shift") if split == "test" else with_hints(load_rows("shapes", split, "easy"), 0.0)
        chosen = range(min(images, len(plain)))
        return {"plain": [row_at(plain, i) for i in chosen], "shift": [row_at(lying, i) for i in chosen]}
    if level in WORLDS:
        plain = world_rows(WORLDS[level], split, images)
        trained, unseen = under_trained_views(WORLDS[level], plain), under_unseen_views(plain)
        return {"plain": plain, "shift": trained, "unseen": unseen, "blank": under_blank_views(plain)}
    if split == "test":
        names = {"plain": "test", "shift": "test_shift"}
        return {name: split_rows(stored, level, images) for name, stored in names.items()}
    rng = np.random.default_rng([WORLD_SEED, 100])
    plain = split_rows("validation", level, images)
    return {"plain": plain, "shift": [row | {"image": preserve(row["image"], rng, strength=SHIFT_STRENGTH)} for row in plain]}


def final_metrics(policy: Policy, rows: dict[str, Examples], seed: int) -> dict[str, float]:
    """Everything of a row of study.csv that is measured on the trained policy."""
    plain, shift = (evaluate_split(policy, rows[name], seed=seed) for name in ("plain", "shift"))
    side = rows["plain"][:SIDE_IMAGES]
    view = reference_view(side)
    detector = evaluate_detector(policy, side, seed=seed, **view)
    return {
        "avg_at_8": plain.avg_at_k.value,
        "greedy": plain.greedy,
        "perception": plain.perception,
        "reasoning": plain.reasoning,
        "shift_avg_at_8": shift.avg_at_k.value,
        "shift_greedy": shift.greedy,
        "shift_perception": shift.perception,
        "shift_reasoning": shift.reasoning,
        "consistency": consistency(policy, side),
        "sensitivity": sensitivity(policy, side, seed),
        "detector_auroc": detector.auroc_absolute,
        **unseen_metrics(policy, rows, seed),
    }


def unseen_metrics(policy: Policy, rows: dict[str, Examples], seed: int) -> dict[str, float]:
    """The measures on unseen view families and on blank pictures; none where the world has none."""
    if "unseen" not in rows:
        return {}
    unseen, blank = evaluate_split(policy, rows["unseen"], seed=seed), greedy_answers(policy, rows["blank"])
    values = unseen.avg_at_k.value, unseen.greedy, unseen.perception, unseen.reasoning
    right = [answer == row["answer"] for answer, row in zip(blank, rows["blank"], strict=True)]
    return dict(zip(UNSEEN_METRICS, (*values, float(np.mean(right))), strict=True))


def accuracy(policy: Policy, rows: Examples, seed: int) -> float:
    """avg@8 at temperature 1."""
    return avg_at_k(sample_answers(policy, rows, samples=8, seed=seed)).value


def consistency(policy: Policy, rows: Examples, views: int = CONSISTENCY_VIEWS) -> float:
    """Share of (image, preserving view) pairs whose greedy answers are the same; the views are the same for every policy.

    An answer without a box is consistent with nothing. On images where the policy is always right it is accuracy; elsewhere
    it also counts being wrong in the same way.
    """
    defaults = CPPOConfig()
    plain = greedy_answers(policy, rows)
    same = []
    for draw in range(views):
        images = [preserve(row["image"], view_rng(0, draw, i, "preserve"), defaults.preserving) for i, row in enumerate(rows)]
        seen = greedy_answers(policy, [row | {"image": image} for row, image in zip(rows, images, strict=True)])
        same += [a is not None and a == b for a, b in zip(plain, seen, strict=True)]
    return float(np.mean(same))


def greedy_answers(policy: Policy, rows: Examples) -> list[str | None]:
    """The boxed answer of each row's greedy completion; None without a box."""
    return [extract_boxed(text) for r in sample_answers(policy, rows, samples=1, temperature=0) for text in r.texts]


def sensitivity(policy: Policy, rows: Examples, seed: int) -> float:
    """Mean ΔH (nats) on the true perception tokens of sampled completions, under the reference removing view."""
    gained: list[float] = []
    for rollouts in sample_answers(policy, rows, samples=1, seed=seed):
        shift, _ = completion_shift(policy, rollouts, seed=seed, **reference_view(rows))
        gained += on_perception_tokens(policy, rollouts, shift.tolist())
    return float(np.mean(gained)) if gained else float("nan")


def on_perception_tokens(policy: Policy, rollouts: Rollouts, values: Sequence[Sequence[float]]) -> list[float]:
    """The `values` [B, T] that stand on true perception tokens."""
    labels = completion_labels(policy, rollouts)
    pairs = ((v, label) for row, tokens in zip(values, labels, strict=True) for v, label in zip(row, tokens, strict=False))
    return [value for value, label in pairs if label.kind == "perception"]


def reach(points: Sequence[tuple[float, float]], target: float) -> float:
    """Where a curve of (x, height) points first reaches `target`, between points on the straight line; NaN if never."""
    for (x0, y0), (x1, y1) in zip([points[0], *points], points, strict=False):
        if y1 >= target:
            return x1 if y1 == y0 else x0 + (x1 - x0) * (target - y0) / (y1 - y0)
    return float("nan")
