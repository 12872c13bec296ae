"""The second study's answers: the chosen settings, the primary family, its verdicts in words."""

from collections.abc import Sequence

import numpy as np

from study.analysis import Difference, Rows, difference, has_seeds, holm, verdict
from study.arms import CHOSEN_SETTINGS, EXPLORED, RIVALS, WORLD_MAIN
from study.comparisons import table
from study.worlds import WORLDS

SEEDS, FOLLOW_UP_SEEDS = range(10, 20), range(20, 40)  # of the primary family, and of study/protocol-3.md
TUNING_SEED = 100
ARM, OTHERS = "cppo_tuned", ("grpo_tuned", "augmented_tuned", "consistency_tuned")
PRIMARY, PLAIN = ("unseen_avg_at_8", "unseen_greedy"), ("avg_at_8", "greedy")
EXPLORED_SHOWN = ("unseen_avg_at_8", "unseen_greedy", "avg_at_8", "unseen_perception")
SHOWN = {
    "unseen_avg_at_8": "unseen, avg@8",
    "unseen_greedy": "unseen, greedy",
    "avg_at_8": "plain, avg@8",
    "greedy": "plain, greedy",
    "shift_avg_at_8": "trained views, avg@8",
    "shift_greedy": "trained views, greedy",
    "perception": "plain, words seen rightly",
    "unseen_perception": "unseen, words seen rightly",
    "detector_auroc": "detector's AUROC",
    "blank_greedy": "blank, greedy",
}
NAMES = {
    "untrained": "before training",
    "grpo_tuned": "GRPO",
    "augmented_tuned": "GRPO with augmentation, equal time",
    "consistency_tuned": "GRPO with consistency",
    "cppo_tuned": "CPPO",
}

Family = list[tuple[Difference, float, str]]


def tuned_scores(rows: Rows) -> dict[str, list[float]]:
    """For each rival the score of each of its settings: mean of plain and trained-shift avg@8 and of the worlds."""
    scores: dict[str, list[float]] = {}
    for rival, settings in RIVALS.items():
        for number in range(len(settings)):
            found = [row for row in rows if (row["arm"], int(row["seed"])) == (f"{rival}#{number}", TUNING_SEED)]
            values = [(float(row["avg_at_8"]) + float(row["shift_avg_at_8"])) / 2 for row in found]
            scores.setdefault(rival, []).append(float(np.mean(values)) if len(values) == len(WORLDS) else float("nan"))
    return scores


def chosen_settings(rows: Rows) -> dict[str, int]:
    """The number of the best setting of each rival; ValueError while runs are missing."""
    scores = tuned_scores(rows)
    missing = [rival for rival, values in scores.items() if np.isnan(values).any()]
    if missing:
        raise ValueError(f"settings of {', '.join(missing)} were not run on both worlds, seed {TUNING_SEED}: --suite tuning")
    return {rival: int(np.argmax(values)) for rival, values in scores.items()}


def complete(rows: Rows, world: str, seeds: Sequence[int] = SEEDS) -> bool:
    """Whether a world's primary arms have all seeds."""
    return has_seeds(rows, world, [arm.name for arm in WORLD_MAIN], seeds)


def family(rows: Rows, metrics: Sequence[str] = PRIMARY, worlds: Sequence[str] = tuple(WORLDS)) -> Family:
    """CPPO minus each rival on each world and measure: (difference, p adjusted by Holm over all of them, verdict)."""
    found = [difference(rows, world, ARM, other, metric) for world in worlds for other in OTHERS for metric in metrics]
    adjusted = holm([one.p for one in found])
    return [(one, p, verdict(one, p)) for one, p in zip(found, adjusted, strict=True)]


def family_table(found: Family) -> str:
    """A family as a table: one line per comparison."""
    lines = [
        [f"`{one.base}`", f"CPPO − {NAMES[one.other]}", SHOWN[one.metric], one.interval, f"{p:.3f}", f"**{word}**"]
        for one, p, word in found
    ]
    return table(["world", "comparison", "measure", "difference [95 %]", "p (Holm)", "verdict"], lines)


def of_arm(rows: Rows, world: str, arm: str, metric: str, seeds: Sequence[int] = SEEDS) -> list[float]:
    """An arm's values of a measure, one per seed of `seeds` that has one."""
    mine = [row for row in rows if (row["base"], row["arm"]) == (world, arm) and int(row["seed"]) in seeds]
    return [float(row[metric]) for row in mine if row[metric]]


def explored_table(rows: Rows, world: str = "eyes", seeds: Sequence[int] = range(10, 13)) -> str:
    """The exploratory arms beside CPPO and GRPO on the same seeds: right answers in 100, mean [lowest, highest seed]."""
    lines = []
    for arm in (*(arm for arm in WORLD_MAIN if arm.name in ("grpo_tuned", ARM)), *EXPLORED):
        found = [of_arm(rows, world, arm.name, metric, seeds) for metric in EXPLORED_SHOWN]
        if all(len(values) == len(seeds) for values in found):
            cells = (f"{100 * np.mean(v):.1f} [{100 * min(v):.1f}, {100 * max(v):.1f}]" for v in found)
            lines.append([f"`{arm.name}`", arm.question, *cells])
    return table(["arm", f"n = {len(seeds)} seeds", *(SHOWN[metric] for metric in EXPLORED_SHOWN)], lines)


def means_table(rows: Rows, world: str) -> str:
    """Means over seeds, a line per arm, a column per measure."""
    lines = []
    for arm, name in NAMES.items():
        mine = [row for row in rows if (row["base"], row["arm"]) == (world, arm) and int(row["seed"]) in SEEDS]
        if mine:
            cells = (f"{np.mean([float(row[metric]) for row in mine if row[metric]]):.3f}" for metric in SHOWN)
            lines.append([name, str(len(mine)), *cells])
    return table([f"`{world}`", "seeds", *SHOWN.values()], lines)


def answer(found: Family) -> str:
    """The primary question's answer in one sentence, from the verdicts alone."""
    words = {other: [word for one, _, word in found if one.other == other] for other in OTHERS}
    if all(word == "helps" for verdicts in words.values() for word in verdicts):
        return "CPPO beats all three rivals on unseen shifts, on both worlds."
    parts = []
    for other, verdicts in words.items():
        kinds = [f"{verdicts.count(kind)} {kind}" for kind in ("helps", "equal", "undecided", "hurts") if kind in verdicts]
        parts.append(f"against {NAMES[other]}: {', '.join(kinds)}")
    count = len(words[OTHERS[0]])
    some = any("helps" in verdicts for verdicts in words.values())
    verb = "does not beat all three rivals" if some else "is not shown to beat any of the three rivals"
    return f"CPPO {verb} on unseen shifts. Of {count} comparisons with each, {'; '.join(parts)}."


def settings_table(rows: Rows) -> str:
    """What was tuned: each rival's settings with their scores, the chosen one in bold."""
    lines = []
    for rival, scores in tuned_scores(rows).items():
        for number, score in enumerate(scores):
            changes = ", ".join(f"{key}={value}" for key, value in RIVALS[rival][number].items())
            bold = "**" if CHOSEN_SETTINGS.get(rival) == number else ""
            lines.append([rival, changes, f"{bold}{score:.3f}{bold}"])
    return table(["rival", "setting", "score"], lines)
