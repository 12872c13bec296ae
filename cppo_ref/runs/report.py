"""Reports: everything that is measured of a policy, as numbers and as text."""

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cppo_ref.config import CPPOConfig, InputError
from cppo_ref.evaluation import evaluate_split
from cppo_ref.examples.loading import first_rows, rows_for
from cppo_ref.examples.views import blanked
from cppo_ref.runs.detector import evaluate_detector
from cppo_ref.runs.intervals import Interval
from cppo_ref.vlm.policy import policy_for

DETECTOR_VIEWS = (
    *(("noise_patches", strength) for strength in (4.0, 2.0, 1.0)),
    *((view, 1.0) for view in ("black_squares", "zoom_crop", "patch_mask", "blank")),
)


def best_constant_guess(rows: Sequence[dict[str, Any]]) -> float:
    """Accuracy of always giving the most frequent answer: what not looking can earn."""
    return Counter(row["answer"] for row in rows).most_common(1)[0][1] / len(rows)


def evaluate_run(config: CPPOConfig, adapter: str = "", split: str = "test", images: int = 300) -> dict[str, Any]:
    """Everything that is measured of a run's policy, as plain numbers; the detector and the tokens on the shape world only.

    `images` rows, or all there are, of the shape world's three test splits (InputError for another `split`); of a user's own
    data those of `split` as they are and with blank images.
    """
    if config.data == "shapes":
        if split != "test":
            raise InputError(f"split is {split!r}, but the shape world is judged on its three test splits: leave out --split")
        splits = {name: first_rows(rows_for(config, name), images) for name in ("test", "test_shift", "test_blank")}
        about, views, limit = {"level": config.level, "images": images}, DETECTOR_VIEWS, None
    else:  # a wrong name is found before the model is loaded
        rows = first_rows(rows_for(config, split), images)
        rows = [{name: row[name] for name in row if name != "objects"} for row in rows]  # a name of the shape world
        splits = {"given": rows, "blank": [blanked(row) for row in rows]}
        about, views, limit = {"data": config.data, "images": len(rows)}, (), config.max_new_tokens
    policy, plain = policy_for(config, adapter), next(iter(splits.values()))
    options: dict[str, Any] = {"seed": config.seed, "batch_size": config.rollout_batch_size}
    detectors = {
        f"{view} ×{strength:g}": evaluate_detector(policy, plain, removing=[view], strength=strength, **options)
        for view, strength in views
    }
    judged = {name: evaluate_split(policy, rows, max_new_tokens=limit, **options) for name, rows in splits.items()}
    return about | {
        "seed": config.seed,
        "best_constant_guess": best_constant_guess(plain),
        "splits": {name: asdict(report) for name, report in judged.items()},
        "detector": {name: asdict(report) for name, report in detectors.items()},
    }


def report_text(report: dict[str, Any]) -> str:
    """What `evaluate_run` measured as two small tables; a dash for what is not known."""
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


def write_report(report: dict[str, Any], path: Path) -> None:
    """What `evaluate_run` measured as JSON, which has no NaN: null for what is not known."""
    known = json.loads(json.dumps(report), parse_constant=lambda _: None)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(known, indent=2) + "\n")
