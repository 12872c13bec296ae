"""Every arm side by side, as Markdown: what was measured, and how far it is from the arm's baseline."""

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np

from cppo_ref.config import InputError
from study.analysis import PRIMARY_METRIC, Difference, Rows, difference, seeds_of
from study.arms import MAIN, UNTRAINED

Value = TypeVar("Value")
SHOWN = {
    "avg_at_8": "plain avg@8",
    "shift_avg_at_8": "shifted avg@8",
    "greedy": "plain greedy",
    "shift_greedy": "shifted greedy",
    "perception": "perception",
    "shift_perception": "shifted perception",
    "reasoning": "reasoning",
    "shift_reasoning": "shifted reasoning",
    "consistency": "consistency",
    "sensitivity": "sensitivity (nats)",
    "detector_auroc": "AUROC",
}
ANSWERS = ("avg_at_8", "shift_avg_at_8", "greedy", "shift_greedy", "consistency")
TOKENS = ("perception", "shift_perception", "reasoning", "shift_reasoning", "sensitivity", "detector_auroc")


def table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [header, ["---"] * len(header), *lines])


def moved_table(rows: Rows, base: str) -> str:
    """What was measured, before training and after: a line per measure, a column per arm of the primary family."""
    arms = [arm for arm in (UNTRAINED.name, "grpo", "grpo_augmented", "cppo") if seeds_of(rows, base, arm)]
    header = [f"`{arm}`, {len(seeds_of(rows, base, arm))}" for arm in arms]
    lines = []
    for metric, shown in SHOWN.items():
        found = attempt(lambda m=metric: difference(rows, base, "cppo", "grpo", m))
        means = (mean_of(rows, base, arm, metric) for arm in arms)
        lines.append([shown, *means, found.interval if found else "–"])
    return table([f"`{base}`, mean over seeds of", *header, "`cppo` − `grpo` [95 %]"], lines)


def levels_table(rows: Rows, base: str) -> str:
    """Means over seeds of what was measured at the end of training: one line per arm that was run on the base."""
    lines = []
    for arm in [UNTRAINED.name, *(arm.name for arm in MAIN)]:
        count = len(seeds_of(rows, base, arm))
        if count:
            lines.append([f"`{arm}`", str(count), *(mean_of(rows, base, arm, metric) for metric in SHOWN)])
    return table(["arm", "seeds", *SHOWN.values()], lines)


def mean_of(rows: Rows, base: str, arm: str, metric: str) -> str:
    """The mean over seeds of an arm on a base, as text; a dash where nothing was measured."""
    values = [float(row[metric]) for row in rows if (row["base"], row["arm"]) == (base, arm) and row[metric] != ""]
    return f"{np.mean(values):.3f}" if values else "–"


def differences_table(rows: Rows, base: str, metrics: Sequence[str]) -> str:
    """Every arm minus its baseline on a base, with unadjusted 95 % intervals; n where fewer seeds have the metric."""
    lines = []
    for arm, other in baseline_pairs(rows, base):
        count = len(set(seeds_of(rows, base, arm)) & set(seeds_of(rows, base, other)))
        cells = (_difference_cell(rows, base, arm, other, metric, count) for metric in metrics)
        lines.append([f"`{arm}` − `{other}`", str(count), *cells])
    return table([f"on `{base}`", "seeds", *(SHOWN[metric] for metric in metrics)], lines)


def _difference_cell(rows: Rows, base: str, arm: str, other: str, metric: str, count: int) -> str:
    found = attempt(lambda: difference(rows, base, arm, other, metric))
    if found is None:
        return "–"
    return found.interval if found.seeds == count else f"{found.interval} (n = {found.seeds})"


def baseline_pairs(rows: Rows, base: str) -> list[tuple[str, str]]:
    """(arm, its baseline: GRPO with adapters on the same part of the model), as far as both were run on `base`."""
    pairs = [(arm.name, arm.baseline) for arm in MAIN if arm.name != arm.baseline]
    return [pair for pair in pairs if set(seeds_of(rows, base, pair[0])) & set(seeds_of(rows, base, pair[1]))]


def against_baselines(rows: Rows, base: str, metric: str = PRIMARY_METRIC) -> list[Difference]:
    """Every arm minus its baseline on one metric."""
    return [difference(rows, base, *pair, metric) for pair in baseline_pairs(rows, base)]


def attempt(make: Callable[[], Value]) -> Value | None:
    """What it makes; None where the runs for it are missing."""
    try:
        return make()
    except InputError:
        return None
