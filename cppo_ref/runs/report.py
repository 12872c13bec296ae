"""Reports: everything that is measured of a policy on the shape world, as numbers and as text."""

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from cppo_ref.config import CPPOConfig
from cppo_ref.evaluation import SplitReport, evaluate_split
from cppo_ref.examples.loading import rows_for, split_rows
from cppo_ref.examples.rows import row_at
from cppo_ref.examples.views import blanked
from cppo_ref.runs.detector import evaluate_detector
from cppo_ref.runs.intervals import Interval
from cppo_ref.vlm.policy import Policy, policy_for

DETECTOR_VIEWS = (
    *(("noise_patches", strength) for strength in (4.0, 2.0, 1.0)),
    *((view, 1.0) for view in ("black_squares", "zoom_crop", "patch_mask", "blank")),
)


def best_constant_guess(rows: Sequence[dict[str, Any]]) -> float:
    """Accuracy of always giving the most frequent answer: what not looking can earn."""
    answers = [row["answer"] for row in rows]
    return max(answers.count(answer) for answer in set(answers)) / len(answers)


def evaluation_report(
    policy: Policy, level: str = "easy", images: int = 300, seed: int = 0, *, batch_size: int | None = None
) -> dict[str, Any]:
    """Everything that is measured of a policy on the shape world, as plain numbers; `batch_size` completions at a time."""
    splits = {split: split_rows(split, level, images) for split in ("test", "test_shift", "test_blank")}
    options = {"seed": seed, "batch_size": batch_size}
    detectors = {
        f"{view} ×{strength:g}": evaluate_detector(policy, splits["test"], removing=[view], strength=strength, **options)
        for view, strength in DETECTOR_VIEWS
    }
    return {
        "level": level,
        "images": images,
        "seed": seed,
        "best_constant_guess": best_constant_guess(splits["test"]),
        "splits": {name: asdict(evaluate_split(policy, rows, **options)) for name, rows in splits.items()},
        "detector": {name: asdict(report) for name, report in detectors.items()},
    }


def evaluate_run(config: CPPOConfig, adapter: str = "", split: str = "test", images: int = 300) -> dict[str, Any]:
    """The `evaluation_report` of a run's policy; on a user's own data the same, without what only the shape world knows."""
    options = {"seed": config.seed, "batch_size": config.rollout_batch_size}
    own = [] if config.data == "shapes" else own_rows(config, split, images)  # a wrong name is found before the model is loaded
    policy = policy_for(config, adapter)
    if config.data == "shapes":
        return evaluation_report(policy, config.level, images, **options)
    blanks = [blanked(row) for row in own]
    splits = {
        name: evaluate_split(policy, rows, max_new_tokens=config.max_new_tokens, **options)
        for name, rows in (("given", own), ("blank", blanks))
    }
    return {
        "data": config.data,
        "images": len(own),
        "seed": config.seed,
        "best_constant_guess": best_constant_guess(own),
        "splits": {name: asdict(report) for name, report in splits.items()},
        "detector": {},
    }


def own_rows(config: CPPOConfig, split: str, count: int) -> list[dict[str, Any]]:
    """The first `count` rows (or all there are) of a split of the run's data."""
    rows = rows_for(config, split)
    found = [row_at(rows, i) for i in range(min(count, len(rows)))]
    return [{name: value for name, value in row.items() if name != "objects"} for row in found]  # a name of the shape world


def report_text(report: dict[str, Any]) -> str:
    """An `evaluation_report` as two small tables; a dash for what is not known."""
    lines = [f"{'images':<14}{'avg@8 [95 % interval]':<26}{'greedy':<10}{'perception':<12}reasoning"]
    for name, split in report["splits"].items():
        interval = Interval(**split["avg_at_k"])
        seen, counted = ("–" if math.isnan(split[kind]) else f"{split[kind]:.3f}" for kind in ("perception", "reasoning"))
        lines.append(f"{name:<14}{interval!s:<26}{split['greedy']:<10.3f}{seen:<12}{counted}")
    lines.append(f"best constant guess: {report['best_constant_guess']:.3f}")
    if report["detector"]:
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
    lines.append("greedy: the likeliest answer; sampled ones are worse because wrong guesses were planted in pretraining")
    return "\n".join(lines)
