"""The sweeps: one setting at a time, on validation seeds and images; what the protocol's rule says about defaults."""

from cppo_ref.examples.loading import split_rows
from cppo_ref.runs.report import best_constant_guess
from study.analysis import (
    MARGIN,
    PRIMARY_BASES,
    PRIMARY_METRIC,
    SECOND_SEEDS,
    SEEDS,
    SWEEP_SEEDS,
    Difference,
    Rows,
    difference,
    has_seeds,
    late_rows,
)
from study.arms import MAIN, SWEEPS, UNTRAINED
from study.comparisons import SHOWN, attempt, mean_of, table

RIVAL_SETTINGS = ("", *(f"-learning_rate={rate}" for rate in (1e-4, 6e-4, 1.2e-3)), "-group_size=4", "-group_size=16")


def swept(rows: Rows, metric: str, base: str = "tiny") -> list[Difference]:
    """Each swept value minus the default, on validation seeds and images; values whose seeds are all there."""
    late = late_rows(rows)
    pairs = [(arm.name, arm.name.partition("-")[0]) for arm in SWEEPS if "level" not in arm.changes]
    return [difference(late, base, *pair, metric) for pair in pairs if has_seeds(late, base, pair, SWEEP_SEEDS)]


def challenges(shifted: Difference, plain: Difference) -> bool:
    """Whether a value passes the first half of the protocol's rule for a new default, the one about `tiny`.

    More than 0.02 above the default on shifted images, the whole interval above 0, and at most 0.02 below it on plain ones.
    """
    return shifted.value > MARGIN and shifted.low > 0 and plain.value >= -MARGIN


def sweeps_table(rows: Rows, base: str = "tiny") -> str:
    """What was `swept`, whether the protocol's rule makes a value a candidate for the default, and CPPO with it minus GRPO.

    The last only for settings that GRPO does not have; the others are in `rivals_table`.
    """
    late, lines = late_rows(rows), []
    for plain, shifted in zip(*(swept(rows, metric, base) for metric in ("avg_at_8", PRIMARY_METRIC)), strict=True):
        word = "**yes**" if challenges(shifted, plain) else "no"
        shared = any(shifted.arm.endswith(setting) for setting in RIVAL_SETTINGS if setting)
        lead = None if shared else attempt(lambda arm=shifted.arm: difference(late, base, arm, "grpo"))
        cells = [shifted.interval, plain.interval, word, lead.interval if lead else "–"]
        lines.append([f"`{shifted.arm}` − `{shifted.other}`", *cells])
    if not lines:
        return "Not run yet."
    header = ["on validation seeds", "shifted avg@8 [95 %, 5 seeds]", "plain avg@8", "candidate for the default"]
    return table([*header, "CPPO with it − `grpo`, shifted"], lines)


def rivals_table(rows: Rows) -> str:
    """CPPO minus its rivals where both have another learning rate, group size or task; and each with its best setting.

    The best setting has the highest mean on shifted images among those that lose at most MARGIN on plain ones to the default.
    """
    late, lines = late_rows(rows), []
    pairs = [(f"cppo{suffix}", f"grpo{suffix}") for suffix in RIVAL_SETTINGS]
    pairs += [("cppo-level=hard", other) for other in ("grpo-level=hard", "grpo_augmented-level=hard")]
    for base in PRIMARY_BASES:
        found = [("", pair) for pair in pairs if has_seeds(late, base, pair, SWEEP_SEEDS)]
        if {("", pair) for pair in pairs[: len(RIVAL_SETTINGS)]} <= set(found):
            found.append(("each at its best: ", (_best(late, base, "cppo"), _best(late, base, "grpo"))))
        for label, pair in found:
            cells = (difference(late, base, *pair, metric).interval for metric in (PRIMARY_METRIC, "avg_at_8"))
            lines.append([base, f"{label}`{pair[0]}` − `{pair[1]}`", *cells])
    return (
        table(["base", "on validation seeds", "shifted avg@8 [95 %, 5 seeds]", "plain avg@8"], lines)
        if lines
        else "Not run yet."
    )


def hard_table(rows: Rows) -> str:
    """Means of the arms on the hard level, beside what the best constant guess earns."""
    arms = [arm.name for arm in SWEEPS if "level" in arm.changes]
    late, metrics = late_rows(rows), ("avg_at_8", PRIMARY_METRIC, "greedy", "perception", "reasoning")
    if not has_seeds(late, "tiny", arms, SWEEP_SEEDS):
        return "Not run yet."
    lines = [[f"`{arm}`", *(mean_of(late, "tiny", arm, metric) for metric in metrics)] for arm in arms]
    found = table(["mean of 5 seeds", *(SHOWN[metric] for metric in metrics)], lines)
    guess = best_constant_guess(split_rows("validation", "hard"))
    return f"{found}\n\nThe best constant guess earns {guess:.3f} on these images."


def _best(late: Rows, base: str, arm: str) -> str:
    """The arm's variant of RIVAL_SETTINGS with the highest mean on shifted images, and hardly less on plain ones."""
    against = {
        f"{arm}{suffix}": [
            difference(late, base, f"{arm}{suffix}", arm, metric).value for metric in (PRIMARY_METRIC, "avg_at_8")
        ]
        for suffix in RIVAL_SETTINGS
    }
    return max((name for name, (_, plain) in against.items() if plain >= -MARGIN), key=lambda name: against[name][0])


def candidates_table(rows: Rows, bases: tuple[str, ...] = ("robust", "hallucinating")) -> str:
    """The second half of the protocol's rule: a candidate may lose at most MARGIN on the other bases, shifted and plain."""
    late, lines = late_rows(rows), []
    for plain, shifted in zip(*(swept(rows, metric) for metric in ("avg_at_8", PRIMARY_METRIC)), strict=True):
        if not challenges(shifted, plain):
            continue
        for base in bases:
            pair, cells = (shifted.arm, shifted.other), ["not run", "", ""]
            if has_seeds(late, base, pair, SWEEP_SEEDS):
                found = [difference(late, base, *pair, metric) for metric in (PRIMARY_METRIC, "avg_at_8")]
                cells = [*(one.interval for one in found), "yes" if min(one.value for one in found) >= -MARGIN else "**no**"]
            lines.append([f"`{pair[0]}` − `{pair[1]}`", base, *cells])
    if not lines:
        return "No value is a candidate."
    return table(["candidate − default, validation seeds", "base", "shifted avg@8", "plain avg@8", "loses at most 0.02"], lines)


def coverage_beside(rows: Rows, base: str = "tiny") -> str:
    """Which of the planned sweeps were run, and what else beside the main arms with the protocol's seeds, in two sentences."""
    missing = [arm.name for arm in SWEEPS if not has_seeds(late_rows(rows), base, [arm.name], SWEEP_SEEDS)]
    there = f"Sweeps on `{base}` with seeds 100–104: {len(SWEEPS) - len(missing)} of {len(SWEEPS)} arms were run"
    sweeps = f"{there}; not yet: {', '.join(f'`{name}`' for name in missing)}." if missing else f"{there}."
    named, main = ({arm.name for arm in arms} for arms in ((*SWEEPS, UNTRAINED), MAIN))
    final = {(row["base"], row["arm"]) for row in rows if int(row["seed"]) in SEEDS and row["arm"] not in main}
    late = {(row["base"], row["arm"]) for row in late_rows(rows)}
    beside = [f"`{b} {arm}` (seeds 0–9)" for b, arm in sorted(final) if arm not in named]
    beside += [f"`{b} {arm}` (seeds 100–104)" for b, arm in sorted(late) if arm not in named]
    again = {(row["base"], row["arm"]) for row in rows if int(row["seed"]) in SECOND_SEEDS}
    beside += [f"`{b} {arm}` (seeds 10–19)" for b, arm in sorted(again)]
    return f"{sweeps} Beside them: {', '.join(beside)}." if beside else sweeps
