"""A second explanation of what CPL costs on plain images, exploratory too: it delays what GRPO learns, and no more.

Then what a stop after 80 steps shows is how steep GRPO's curve is there, and longer training makes the gap smaller, the more
so the flatter the curve is by then.
"""

from collections.abc import Sequence

import numpy as np

from study.analysis import PRIMARY_METRIC, SEEDS, Rows, bootstrap_interval, difference, has_seeds, paired
from study.arms import STEPS, TIME_RATIO
from study.comparisons import SHOWN, table
from study.dilution import METRIC, there
from study.hypotheses import judged
from study.metrics import reach
from study.report import seed_mean

TARGETS = {"tiny": (0.7, 0.8), "hallucinating": (0.5, 0.6)}  # heights that GRPO's curves pass while they are steep
ACCURACIES = ("avg_at_8", PRIMARY_METRIC, "greedy", "shift_greedy")
SHORT, LONG = ("cppo", "grpo"), ("cppo_longer", "grpo_equal_time")


def slowdown_table(curves: Rows, pair: tuple[str, str] = SHORT) -> str:
    """How many steps CPPO takes to a height on plain validation images, as a multiple of GRPO's, paired by seed.

    Args:
        curves: of the runs with the protocol's seeds.
        pair: (arm, the arm that it is compared with).
    """
    lines = []
    for base, targets in TARGETS.items():
        for target in targets:
            steps = np.array([[steps_to(target, curves, base, arm, seed) for arm in pair] for seed in SEEDS])
            both = steps[np.isfinite(steps).all(axis=1)]
            if len(both):
                medians = (f"{np.median(both[:, column]):.0f}" for column in (1, 0))
                lines.append([base, f"{target:g}", f"{len(both)}", *medians, seed_mean(both[:, 0] / both[:, 1], ".2f")])
    header = ["base", "avg@8", "seeds where both reach it", f"`{pair[1]}`, median steps", f"`{pair[0]}`, median steps"]
    return table([*header, "ratio [95 %]"], lines)


def steps_to(target: float, curves: Rows, base: str, arm: str, seed: int) -> float:
    """The step at which a run first reaches `target` on plain validation images; NaN if never."""
    run = [row for row in curves if (row["base"], row["arm"], row["seed"]) == (base, arm, seed) and there(row[METRIC])]
    points = sorted((row["step"], row[METRIC]) for row in run)
    return reach(points, target) if points else float("nan")


def longer_table(rows: Rows) -> str:
    """CPPO minus GRPO after 80 and after 140 steps; by the protocol's log, delay is judged on plain images.

    Supported on a base if the difference after the longer training is equal (the interval inside ±0.02), refuted if it has
    not come nearer to 0 (the interval of its change, paired by seed, is not above 0).
    """
    lines, words = [], []
    for base in TARGETS:
        if not has_seeds(rows, base, (*SHORT, *LONG)):
            continue
        for pair, steps in ((SHORT, STEPS), (LONG, round(STEPS * TIME_RATIO))):
            lines.append([base, f"{steps}", *(difference(rows, base, *pair, metric).interval for metric in ACCURACIES)])
        changes = [paired(rows, base, *LONG, metric) - paired(rows, base, *SHORT, metric) for metric in ACCURACIES]
        lines.append([base, "change", *(seed_mean(change, "+.3f") for change in changes)])
        closer = bootstrap_interval(changes[0])[0] > 0
        words.append(f"on `{base}` **{judged(difference(rows, base, *LONG, ACCURACIES[0]).equal, not closer)}**")
    if not lines:
        return "Not run yet."
    header = ["CPPO − GRPO on", "after steps", *(SHOWN[metric] for metric in ACCURACIES)]
    return f"{table(header, lines)}\n\nDelay: {'; '.join(words)}."


def delayed_table(curves: Rows) -> str:
    """What a delay by a constant factor leaves after the longer training, beside what the same probes show.

    The factor is the mean ratio of steps to the higher target. CPPO would be where GRPO was at 1/factor of its steps.
    """
    lines = []
    for base, (*_, target) in TARGETS.items():
        ends = {arm: mean_curve(curves, base, arm) for arm in LONG}
        ours, theirs = (np.array([steps_to(target, curves, base, arm, seed) for seed in SEEDS]) for arm in SHORT)
        ratios = ours / theirs
        if all(len(steps) for steps, _ in ends.values()) and np.isfinite(ratios).any():
            steps, heights = ends[LONG[1]]
            factor = float(np.nanmean(ratios))
            left = float(np.interp(steps[-1] / factor, steps, heights)) - heights[-1]
            lines.append([base, f"{factor:.2f}", f"{left:+.3f}", f"{ends[LONG[0]][1][-1] - heights[-1]:+.3f}"])
    return table(["base", "factor", "a delay by it leaves", "observed"], lines) if lines else "Not run yet."


def mean_curve(curves: Rows, base: str, arm: str) -> tuple[np.ndarray, np.ndarray]:
    """(steps, mean over seeds of the accuracy on plain validation images) of an arm's probes."""
    steps, heights = probed(curves, base, arm)
    return steps, np.nanmean(heights, axis=0)


def probed(curves: Rows, base: str, arm: str, seeds: Sequence[int] = SEEDS) -> tuple[np.ndarray, np.ndarray]:
    """(steps [S], accuracy on plain validation images [seeds, S]) of an arm's probes; NaN where a seed has none."""
    heights = {
        (row["seed"], row["step"]): row[METRIC]
        for row in curves
        if (row["base"], row["arm"]) == (base, arm) and row["seed"] in seeds and there(row[METRIC])
    }
    steps = sorted({step for _, step in heights})
    return np.array(steps), np.array([[heights.get((seed, step), np.nan) for step in steps] for seed in seeds])
