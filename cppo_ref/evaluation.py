"""Evaluation: accuracy over several samples, what the policy saw and how it counted, and the detector against the truth."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from scipy.stats import bootstrap
from sklearn.metrics import precision_score, recall_score, roc_auc_score

from cppo_ref.config import InputError
from cppo_ref.examples.loading import load_rows, row_at
from cppo_ref.examples.rows import images_of
from cppo_ref.perception import Ranking, entropy_shift, perception_score, select_perception_tokens
from cppo_ref.perturbations import remove, view_rng
from cppo_ref.rewards import accuracy_reward
from cppo_ref.rollouts import Rollouts, generate_rollouts
from cppo_ref.vlm.policy import Policy
from cppo_ref.vlm.scoring import completion_entropy
from cppo_ref.worlds.shapes import TokenLabel, label_tokens, level_of

IMAGES_PER_BATCH = 64
DETECTOR_VIEWS = (
    *(("noise_patches", strength) for strength in (4.0, 2.0, 1.0)),
    *((view, 1.0) for view in ("black_squares", "zoom_crop", "patch_mask", "blank")),
)


@dataclass(frozen=True)
class Interval:
    """A mean with its bootstrap 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


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


def bootstrap_interval(values: np.ndarray, seed: int = 0) -> Interval:
    """Mean of `values` with the percentile bootstrap 95 % interval over them (2000 resamples)."""
    mean = float(values.mean())
    if len(values) < 2 or np.ptp(values) == 0:
        return Interval(mean, mean, mean)
    result = bootstrap((values,), np.mean, n_resamples=2000, method="percentile", rng=np.random.default_rng(seed))
    return Interval(mean, float(result.confidence_interval.low), float(result.confidence_interval.high))


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


def best_constant_guess(rows: Sequence[dict[str, Any]]) -> float:
    """Accuracy of always giving the most frequent answer: what not looking can earn."""
    answers = [row["answer"] for row in rows]
    return max(answers.count(answer) for answer in set(answers)) / len(answers)


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
    policy: Policy,
    rollouts: Rollouts,
    *,
    removing: Sequence[str] = ("noise_patches",),
    strength: float = 1.0,
    seed: int = 0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(ΔH, H⁻), both [B, T] in nats, of completions under one removing view per image."""
    views = []
    for i, row in enumerate(rollouts.rows):
        rng = view_rng(seed, 0, i, "remove")
        views.append([remove(image, rng, removing, strength) for image in images_of(row)])
    removed = policy.encode(views, [row["question"] for row in rollouts.rows]).take(rollouts.prompt_of_row)
    removed_entropy = completion_entropy(policy, removed, rollouts.completion_ids, rollouts.completion_mask)
    return entropy_shift(rollouts.entropy, removed_entropy, rollouts.completion_mask), removed_entropy


def split_rows(split: str, level: str = "easy", count: int | None = None) -> list[dict[str, Any]]:
    """The first `count` rows (all by default) of a split of the shape world."""
    if count is not None and count < 1:
        raise InputError(f"images is {count}, expected 1 or more")
    rows = load_rows("shapes", split, level)
    return [row_at(rows, i) for i in range(min(count or len(rows), len(rows)))]


def evaluation_report(policy: Policy, level: str = "easy", images: int = 300, seed: int = 0) -> dict[str, Any]:
    """Everything that is measured of a policy on the shape world, as plain numbers."""
    splits = {split: split_rows(split, level, images) for split in ("test", "test_shift", "test_blank")}
    return {
        "level": level,
        "images": images,
        "seed": seed,
        "best_constant_guess": best_constant_guess(splits["test"]),
        "splits": {name: asdict(evaluate_split(policy, rows, seed=seed)) for name, rows in splits.items()},
        "detector": {
            f"{view} ×{strength:g}": asdict(
                evaluate_detector(policy, splits["test"], removing=[view], strength=strength, seed=seed)
            )
            for view, strength in DETECTOR_VIEWS
        },
    }


def report_text(report: dict[str, Any]) -> str:
    """An `evaluation_report` as two small tables."""
    lines = [f"{'images':<14}{'avg@8 [95 % interval]':<26}{'greedy':<10}{'perception':<12}reasoning"]
    for name, split in report["splits"].items():
        interval = Interval(**split["avg_at_k"])
        lines.append(f"{name:<14}{interval!s:<26}{split['greedy']:<10.3f}{split['perception']:<12.3f}{split['reasoning']:.3f}")
    lines.append(f"best constant guess: {report['best_constant_guess']:.3f}")
    lines.append(f"\n{'removing view':<19}{'AUROC of ΔH':<14}{'AUROC of ΔH/H⁻':<17}{'precision':<12}recall")
    for name, d in report["detector"].items():
        numbers = f"{d['auroc_absolute']:<14.3f}{d['auroc_normalized']:<17.3f}{d['precision']:<12.3f}{d['recall']:.3f}"
        lines.append(f"{name:<19}{numbers}")
    return "\n".join(lines)
