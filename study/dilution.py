"""An explanation of what CPL costs on plain images, made exact enough to fail: dilution (exploratory).

Adam keeps the length of a step about the same, whatever the gradient's. If CPL's gradient is added to GRPO's, a smaller share
of the step serves the reward: with cosine c and norm ratio r between the two, s = (1 + r·c) / √(1 + 2·r·c + r²). If that were
all, an arm would be, after its steps, where its baseline is after s times as many.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cppo_ref.config import InputError
from study.analysis import (
    MARGIN,
    PRIMARY_METRIC,
    SEEDS,
    Rows,
    bootstrap_interval,
    difference,
    has_seeds,
    paired,
    per_seed,
    resampled,
)
from study.arms import MAIN, Arm
from study.bases import FIRST_BASES
from study.comparisons import table
from study.hypotheses import judged
from study.report import seed_mean

METRIC = "validation_avg_at_8"  # on plain images, every ten steps


def share(cosine: float, ratio: float) -> float:
    """How much of a step of fixed length goes along the first of two added gradients; 0 if they cancel."""
    length = 1 + 2 * ratio * cosine + ratio**2
    return (1 + ratio * cosine) / length**0.5 if length > 0 else 0.0


def predicted(cosine: float, ratio: float, steps: np.ndarray, heights: np.ndarray) -> float:
    """The change of accuracy at the end that dilution predicts, from the baseline's curve (`heights` at `steps`)."""
    return float(np.interp(share(cosine, ratio) * steps[-1], steps, heights) - heights[-1])


@dataclass(frozen=True)
class Evidence:
    """What dilution is held against: a value per seed, in the same order."""

    cosines: np.ndarray  # of ∇(λ·CPL) and ∇GRPO, mean over the arm's run
    ratios: np.ndarray  # of their norms
    steps: np.ndarray  # of the probes
    heights: np.ndarray  # [seeds, probes]: the baseline's plain avg@8
    gaps: np.ndarray  # arm minus baseline at the end

    def prediction(self, chosen: np.ndarray | slice = slice(None)) -> float:
        """The predicted change, from the means over the chosen seeds."""
        cosine, ratio = float(self.cosines[chosen].mean()), float(self.ratios[chosen].mean())
        return predicted(cosine, ratio, self.steps, self.heights[chosen].mean(axis=0))

    def remainder(self) -> tuple[float, float]:
        """95 % bootstrap interval over seeds of what was observed minus what is predicted, both from the same seeds."""
        return resampled(lambda draw: self.gaps[draw].mean() - self.prediction(draw), len(self.gaps))


def evidence(rows: Rows, curves: Rows, base: str, arm: Arm) -> Evidence:
    """What the runs of `rows` say; InputError if the arm or its baseline was not run on `base`."""
    if not has_seeds(rows, base, [arm.name, arm.baseline]):
        raise InputError(f"{arm.name} and {arm.baseline} need the seeds {SEEDS} on base {base}: run them first")
    probed = [row for row in curves if row["base"] == base and row["seed"] in SEEDS]
    ends = final_points(rows, probed)
    curve = {(row["seed"], row["step"]): row[METRIC] for row in probed if row["arm"] == arm.baseline and there(row[METRIC])}
    steps = sorted({step for _, step in curve})
    return Evidence(
        cosines=per_seed(probed, base, arm.name, "gradient_cosine"),
        ratios=per_seed(probed, base, arm.name, "gradient_ratio"),
        steps=np.array(steps),
        heights=np.array([[curve[seed, step] for step in steps] for seed in SEEDS]),
        gaps=paired(ends, base, arm.name, arm.baseline, METRIC),
    )


def dilution_table(rows: Rows, curves: Rows, bases: Sequence[str] = FIRST_BASES) -> str:
    """What dilution predicts for each arm that adds CPL to GRPO, beside what was observed on the same images."""
    lines = []
    for base in bases:
        for arm in MAIN:
            if arm.changes.get("cpl_weight") == 0 or arm.changes.get("policy_weight") == 0:
                continue
            try:
                seen = evidence(rows, curves, base, arm)
            except InputError:
                continue
            kept = share(float(seen.cosines.mean()), float(seen.ratios.mean()))
            observed, (low, high) = seed_mean(seen.gaps, "+.3f"), seen.remainder()
            still = np.prod(np.sign(bootstrap_interval(seen.gaps))) <= 0  # the interval contains 0
            word = "too little" if high < 0 else "too much" if low > 0 else "nothing to explain" if still else "compatible"
            left = f"[{low:+.3f}, {high:+.3f}]"
            lines.append([base, f"`{arm.name}`", f"{kept:.2f}", f"{seen.prediction():+.3f}", observed, left, word])
    header = ["base", "arm", "share of the step", "predicted change", "observed [95 %]", "observed − predicted", "dilution"]
    return table(header, lines)


def there(value: float | None) -> bool:
    """Whether a probe was made at this step: not None, not NaN."""
    return value is not None and value == value


def intervention_table(rows: Rows) -> str:
    """The test by intervention, on `tiny`: GRPO with CPPO's share of the step, and CPPO with that share given back.

    By the protocol's log, dilution is supported if both differences on plain images are equal (the interval inside ±0.02) and
    refuted if one of them is wholly outside.
    """
    if not has_seeds(rows, "tiny", ("grpo_slower", "cppo_faster")):
        return "Not run yet."
    pairs = [("grpo_slower", "cppo"), ("cppo_faster", "grpo"), ("grpo_slower", "grpo"), ("cppo", "grpo")]
    plain, shifted = ([difference(rows, "tiny", *pair, metric) for pair in pairs] for metric in ("avg_at_8", PRIMARY_METRIC))
    tested, (slowed, price) = plain[:2], plain[2:]
    outside = any(one.low > MARGIN or one.high < -MARGIN for one in tested)
    lines = [[f"`{one.arm}` − `{one.other}`", one.interval, two.interval] for one, two in zip(plain, shifted, strict=True)]
    found = table(["ten seeds, 300 test images", "plain avg@8", "shifted avg@8"], lines)
    word = judged(all(one.equal for one in tested), outside)
    return f"{found}\n\nDilution: **{word}**; slowing GRPO down costs {100 * slowed.value / price.value:.0f} % of CPPO's price."


def final_points(rows: Rows, curves: Rows, metric: str = METRIC) -> Rows:
    """The last probe of each of `rows`' runs, numbers as text like theirs; none of a run that ended without one."""
    wanted = {(row["base"], row["arm"], int(row["seed"])): int(row["steps"]) for row in rows}
    return [
        {"base": row["base"], "arm": row["arm"], "seed": str(row["seed"]), metric: str(row[metric])}
        for row in curves
        if wanted.get((row["base"], row["arm"], row["seed"])) == row["step"] and there(row[metric])
    ]
