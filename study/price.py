"""Why CPPO costs accuracy on `robust` at the chosen learning rate: three explanations, each with the rule of the log.

Beside them, what it earns elsewhere to leave CPL's push out. All of it is exploratory.
"""

import numpy as np

from study.analysis import (
    MARGIN,
    PRIMARY_BASES,
    PRIMARY_METRIC,
    SECOND_SEEDS,
    Rows,
    bootstrap_interval,
    difference,
    has_seeds,
    per_seed,
    resampled,
)
from study.arms import CHOSEN
from study.comparisons import SHOWN, table
from study.delay import ACCURACIES, LONG, SHORT, probed, steps_to
from study.hypotheses import judged

BASE, TARGET = "robust", 0.65  # where the price is, and a height on plain images that most short runs reach


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
    return f"{found}\n\nThat the push costs, and more than the pull: **{word}**."


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
    if not lines:
        return "Not run yet."
    return table(["`pull` − `cppo` at 3e-4, ten seeds", "plain avg@8 [95 %]", "shifted avg@8"], lines) + word


def fight(curves: Rows) -> str:
    """Whether the gradients of CPL and GRPO point against each other: the mean cosine over a run, then over seeds."""
    cosines = per_seed(curves, BASE, f"cppo{CHOSEN}", "gradient_cosine", SECOND_SEEDS)
    low, high = bootstrap_interval(cosines)
    return f"cosine {cosines.mean():+.3f} [{low:+.3f}, {high:+.3f}]: **{judged(high < 0, low > 0)}**"


def delay_left(curves: Rows) -> str:
    """What a delay by the factor of the short runs leaves after the long ones, beside what is seen on the same pictures.

    A seed in which one of the two does not reach TARGET within the short runs is left out of the factor, which makes it too
    small rather than too large.
    """
    short, (ours_long, theirs_long) = ([f"{arm}{CHOSEN}" for arm in pair] for pair in (SHORT, LONG))
    (steps, ours), (_, theirs) = (probed(curves, BASE, arm, SECOND_SEEDS) for arm in (ours_long, theirs_long))
    if ours.shape != theirs.shape or not ours.size or np.isnan([ours, theirs]).any():
        return "Not run yet."
    reached = [np.array([steps_to(TARGET, curves, BASE, arm, seed) for seed in SECOND_SEEDS]) for arm in short]
    ratios = reached[0] / reached[1]

    def predicted(draw: np.ndarray) -> float:
        """The gap of the drawn seeds at the end if CPPO were where GRPO was at 1/factor of its steps."""
        curve = theirs[draw].mean(axis=0)
        return float(np.interp(steps[-1] / np.nanmean(ratios[draw]), steps, curve)) - curve[-1]

    gaps, everyone = ours[:, -1] - theirs[:, -1], np.arange(len(ours))
    low, high = resampled(lambda draw: gaps[draw].mean() - predicted(draw), len(gaps))
    word = "too little" if high < 0 else "too much" if low > 0 else "compatible"
    header = ["seeds that reach it", f"CPPO's steps to {TARGET}, GRPO's = 1", f"a delay by it leaves after {steps[-1]} steps"]
    cells = [f"{np.isfinite(ratios).sum()}", f"{np.nanmean(ratios):.2f}", f"{predicted(everyone):+.3f}", f"{gaps.mean():+.3f}"]
    cells += [f"[{low:+.3f}, {high:+.3f}]", f"**{word}**"]
    return table([*header, "observed", "observed − predicted [95 %]", "a delay explains"], [cells])


def long_table(second: Rows) -> str:
    """CPPO after 80 and after 140 steps minus GRPO after 140, on test images."""
    if not has_seeds(second, BASE, LONG, SECOND_SEEDS):
        return "Not run yet."
    lines = [
        [f"`{arm}` − `{LONG[1]}`", *(difference(second, BASE, arm, LONG[1], metric).interval for metric in ACCURACIES)]
        for arm in (LONG[0], SHORT[0])
    ]
    return table([f"on `{BASE}` at 6e-4, ten seeds", *(SHOWN[metric] for metric in ACCURACIES)], lines)
