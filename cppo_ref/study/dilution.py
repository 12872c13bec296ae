"""An explanation of what CPL costs on plain images, made exact enough to fail: dilution (exploratory, not in the protocol).

Adam keeps the length of a step about the same, whatever the gradient's. If CPL's gradient is added to GRPO's, a smaller share
of the step serves the reward: with cosine c and norm ratio r between the two, s = (1 + r·c) / √(1 + 2·r·c + r²). If that were
all, an arm would be, after its steps, where its baseline is after s times as many.
"""

from collections.abc import Sequence

import numpy as np

from cppo_ref.config import InputError
from cppo_ref.study.analysis import MARGIN, PRIMARY_METRIC, Difference, difference
from cppo_ref.study.arms import MAIN, MECHANISM, Arm
from cppo_ref.study.bases import BASES
from cppo_ref.study.hypotheses import SEEDS, Rows, judged, per_seed, seeds_of
from cppo_ref.study.report import table

METRIC = "validation_avg_at_8"  # on plain images, every ten steps


def share(cosine: float, ratio: float) -> float:
    """How much of a step of fixed length goes along the first of two added gradients; 0 if they cancel."""
    length = 1 + 2 * ratio * cosine + ratio**2
    return (1 + ratio * cosine) / length**0.5 if length > 0 else 0.0


def predicted(curves: Rows, base: str, arm: Arm) -> tuple[float, float]:
    """(share of the step, change of plain avg@8 at the end) that dilution predicts for `arm`, from its baseline's curve.

    Raises:
        InputError: the arm or its baseline was not run on `base`.
    """
    cosine, ratio = (per_seed(curves, base, arm.name, f"gradient_{what}").mean() for what in ("cosine", "ratio"))
    steps, heights = mean_curve(curves, base, arm.baseline)
    kept = share(float(cosine), float(ratio))
    return kept, float(np.interp(kept * steps[-1], steps, heights) - heights[-1])


def mean_curve(curves: Rows, base: str, arm: str) -> tuple[np.ndarray, np.ndarray]:
    """Plain validation avg@8 along training, mean over the protocol's seeds; InputError if it was not run."""
    chosen = [row for row in curves if (row["base"], row["arm"]) == (base, arm)]
    steps = sorted({row["step"] for row in chosen if row[METRIC] is not None and row[METRIC] == row[METRIC]})
    heights = [per_seed([row for row in chosen if row["step"] == step], base, arm, METRIC).mean() for step in steps]
    if not steps:
        raise InputError(f"{arm} was not run on base {base}: run it first")
    return np.array(steps), np.array(heights)


def dilution_table(rows: Rows, curves: Rows, bases: Sequence[str] = tuple(BASES)) -> str:
    """What dilution predicts for each arm that adds CPL to GRPO, beside what was observed on the same images."""
    ends = final_points(rows, curves)
    lines = []
    for base in bases:
        for arm in MAIN:
            if arm.changes.get("cpl_weight") == 0 or arm.changes.get("policy_weight") == 0:
                continue
            try:
                found = difference(ends, base, arm.name, arm.baseline, METRIC)
                kept, change = predicted(curves, base, arm)
            except InputError:
                continue
            lines.append([base, f"`{arm.name}`", f"{kept:.2f}", f"{change:+.3f}", found.interval, _fit(change, found)])
    header = ["base", "arm", "share of the step", "predicted change in plain avg@8", "observed [95 %]", "dilution"]
    return table(header, lines)


def _fit(change: float, observed: Difference) -> str:
    """How a predicted change fits the observed interval, in words."""
    if change > observed.high:
        return "too little"
    if change < observed.low:
        return "too much"
    return "nothing to explain" if observed.low <= 0 <= observed.high else "compatible"


def intervention_table(rows: Rows) -> str:
    """The test by intervention, on `tiny`: GRPO with CPPO's share of the step, and CPPO with that share given back.

    By the protocol's log, dilution is supported if both differences on plain images are equal (the interval inside ±0.02) and
    refuted if one of them is wholly outside.
    """
    if any(seeds_of(rows, "tiny", arm.name) != list(SEEDS) for arm in MECHANISM):
        return "Not run yet."
    pairs = [("grpo_slower", "cppo"), ("cppo_faster", "grpo")]
    plain, shifted = ([difference(rows, "tiny", *pair, metric) for pair in pairs] for metric in ("avg_at_8", PRIMARY_METRIC))
    outside = any(one.low > MARGIN or one.high < -MARGIN for one in plain)
    lines = [[f"`{one.arm}` − `{one.other}`", one.interval, two.interval] for one, two in zip(plain, shifted, strict=True)]
    found = table(["ten seeds, 300 test images", "plain avg@8", "shifted avg@8"], lines)
    return f"{found}\n\nDilution: **{judged(all(one.equal for one in plain), outside)}**."


def final_points(rows: Rows, curves: Rows, metric: str = METRIC) -> Rows:
    """The last probe of each of `rows`' runs, numbers as text like theirs."""
    wanted = {(row["base"], row["arm"], int(row["seed"])): int(row["steps"]) for row in rows}
    return [
        {"base": row["base"], "arm": row["arm"], "seed": str(row["seed"]), metric: str(row[metric])}
        for row in curves
        if wanted.get((row["base"], row["arm"], row["seed"])) == row["step"]
    ]
