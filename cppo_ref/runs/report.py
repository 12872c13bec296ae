"""Reports: everything that is measured of a policy on the shape world, as numbers and as text."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from cppo_ref.evaluation import SplitReport, evaluate_detector, evaluate_split
from cppo_ref.examples.loading import split_rows
from cppo_ref.runs.intervals import Interval
from cppo_ref.vlm.policy import Policy

DETECTOR_VIEWS = (
    *(("noise_patches", strength) for strength in (4.0, 2.0, 1.0)),
    *((view, 1.0) for view in ("black_squares", "zoom_crop", "patch_mask", "blank")),
)


def best_constant_guess(rows: Sequence[dict[str, Any]]) -> float:
    """Accuracy of always giving the most frequent answer: what not looking can earn."""
    answers = [row["answer"] for row in rows]
    return max(answers.count(answer) for answer in set(answers)) / len(answers)


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


def before_after_table(before: dict[str, SplitReport], after: dict[str, SplitReport]) -> str:
    """avg@k with its 95 % interval, greedy accuracy and perception of each split, before and after, as text."""
    samples = before["test"].samples
    lines = [f"\n{'images':<12}{f'avg@{samples} before':<23}{f'avg@{samples} after':<23}{'greedy':<15}perception"]
    for split, old in before.items():
        new = after[split]
        greedy, seen = (f"{a:.3f} → {b:.3f}" for a, b in ((old.greedy, new.greedy), (old.perception, new.perception)))
        lines.append(f"{split:<12}{old.avg_at_k!s:<23}{new.avg_at_k!s:<23}{greedy:<15}{seen}")
    lines.append("greedy: the likeliest answer; what sampling gets wrong beside it is mostly noise planted in pretraining")
    return "\n".join(lines)
