"""Why CPPO costs accuracy on `robust` at the chosen learning rate: three explanations, each with the rule of the log.

All of it is exploratory, on the runs of `second_rows`.
"""

import numpy as np

from cppo_ref.study.analysis import (
    MARGIN,
    PRIMARY_BASES,
    PRIMARY_METRIC,
    Rows,
    bootstrap_interval,
    difference,
    has_seeds,
    per_seed,
)
from cppo_ref.study.arms import CHOSEN
from cppo_ref.study.comparisons import table
from cppo_ref.study.delay import LONG, SHORT, steps_to
from cppo_ref.study.dilution import METRIC, there
from cppo_ref.study.hypotheses import judged
from cppo_ref.study.second import SECOND_SEEDS

BASE, TARGET = "robust", 0.65  # where the price is, and a height on plain images that both reach within 80 steps
RESAMPLES = 2000


def halves_table(second: Rows) -> str:
    """Which half of CPL costs: pull and push alone against GRPO and against each other; the word is about plain images.

    The last line was added after the runs, and no rule asks for it: what it earns to leave the push out.
    """
    pairs = [("cppo", "grpo"), ("pull", "grpo"), ("push", "grpo"), ("pull", "push"), ("pull", "cppo")]
    if not has_seeds(second, BASE, ("pull", "push"), SECOND_SEEDS):
        return "Not run yet."
    plain, shifted = ([difference(second, BASE, *pair, metric) for pair in pairs] for metric in ("avg_at_8", PRIMARY_METRIC))
    lines = [[f"`{one.arm}` − `{one.other}`", one.interval, two.interval] for one, two in zip(plain, shifted, strict=True)]
    pull, push, between = plain[1:4]
    word = judged(push.high < 0 < between.low, pull.high < 0 and between.low <= 0)
    found = table([f"on `{BASE}`, ten seeds", "plain avg@8 [95 %]", "shifted avg@8"], lines)
    return f"{found}\n\nThat the push costs, and not the pull: **{word}**."


def without_push(rows: Rows) -> str:
    """What it earns to leave the push out at the first learning rate, on the bases where that was run; judged on one of them.

    Args:
        rows: the arms with the protocol's seeds.
    """
    lines, word = [], ""
    for base in PRIMARY_BASES:
        if has_seeds(rows, base, ("pull", "cppo")):
            plain, shifted = (difference(rows, base, "pull", "cppo", metric) for metric in ("avg_at_8", PRIMARY_METRIC))
            lines.append([base, plain.interval, shifted.interval])
            if base == "hallucinating":
                wrong = plain.high < 0 or shifted.high < -MARGIN
                word = f"\n\nOn `{base}`: **{judged(plain.low > 0 and shifted.low > -MARGIN, wrong)}**."
    return table(["`pull` − `cppo` at 3e-4, ten seeds", "plain avg@8 [95 %]", "shifted avg@8"], lines) + word


def fight(curves: Rows) -> str:
    """Whether the gradients of CPL and GRPO point against each other: the mean cosine over a run, then over seeds."""
    cosines = per_seed(curves, BASE, f"cppo{CHOSEN}", "gradient_cosine", SECOND_SEEDS)
    low, high = bootstrap_interval(cosines)
    return f"cosine {cosines.mean():+.3f} [{low:+.3f}, {high:+.3f}]: **{judged(high < 0, low > 0)}**"


def delay_left(curves: Rows) -> str:
    """What a delay by the factor of the short runs leaves after the long ones, beside what is seen on the same pictures."""
    short, long = ({arm: f"{arm}{CHOSEN}" for arm in pair} for pair in (SHORT, LONG))
    heights = {arm: _probes(curves, name) for arm, name in long.items()}
    if any(len(values) < len(SECOND_SEEDS) for values in heights.values()):
        return "Not run yet."
    steps = sorted(next(iter(heights[LONG[1]].values())))
    ours, theirs = (np.array([[heights[arm][seed][step] for step in steps] for seed in SECOND_SEEDS]) for arm in LONG)
    reached = {arm: np.array([steps_to(TARGET, curves, BASE, short[arm], seed) for seed in SECOND_SEEDS]) for arm in SHORT}
    ratios = reached[SHORT[0]] / reached[SHORT[1]]

    def left(draw: np.ndarray) -> tuple[float, float]:
        """(observed, predicted) gap of the drawn seeds at the end."""
        curve = theirs[draw].mean(axis=0)
        predicted = float(np.interp(steps[-1] / np.nanmean(ratios[draw]), steps, curve)) - curve[-1]
        return float((ours[draw, -1] - theirs[draw, -1]).mean()), predicted

    draws = np.random.default_rng(0).integers(len(ratios), size=(RESAMPLES, len(ratios)))
    low, high = np.percentile([np.subtract(*left(draw)) for draw in draws], [2.5, 97.5])
    observed, predicted = left(np.arange(len(ratios)))
    word = "too little" if high < 0 else "too much" if low > 0 else "compatible"
    header = ["seeds that reach it", "CPPO's steps to 0.65, GRPO's = 1", f"a delay by it leaves after {steps[-1]} steps"]
    cells = [f"{np.isfinite(ratios).sum()}", f"{np.nanmean(ratios):.2f}", f"{predicted:+.3f}", f"{observed:+.3f}"]
    cells += [f"[{low:+.3f}, {high:+.3f}]", f"**{word}**"]
    return table([*header, "observed", "observed − predicted [95 %]", "a delay explains"], [cells])


def _probes(curves: Rows, arm: str) -> dict[int, dict[int, float]]:
    """The accuracy on plain validation images: seed -> step -> height."""
    found: dict[int, dict[int, float]] = {}
    for row in curves:
        if (row["base"], row["arm"]) == (BASE, arm) and row["seed"] in SECOND_SEEDS and there(row[METRIC]):
            found.setdefault(row["seed"], {})[row["step"]] = row[METRIC]
    return found
