"""Whether the results hold elsewhere: on other pictures, with other settings (the sweeps), on another machine (the replica)."""

import numpy as np

from cppo_ref.study.analysis import (
    MARGIN,
    PRIMARY_BASES,
    PRIMARY_METRIC,
    PRIMARY_PAIRS,
    SEEDS,
    SWEEP_SEEDS,
    Difference,
    Rows,
    difference,
    has_seeds,
    paired,
    seeds_of,
    whole_arms,
)
from cppo_ref.study.arms import MAIN, SWEEPS, UNTRAINED
from cppo_ref.study.comparisons import SHOWN, table
from cppo_ref.study.dilution import final_points
from cppo_ref.study.hypotheses import outcomes
from cppo_ref.study.probes import PROBE_IMAGES

RIVAL_SETTINGS = ("", *(f"-learning_rate={rate}" for rate in (1e-4, 6e-4, 1.2e-3)), "-group_size=4", "-group_size=16")


def replica_table(rows: Rows, again: Rows, base: str = "tiny", pair: tuple[str, str] = ("cppo", "grpo")) -> str:
    """The same runs on two machines: how far two runs of a seed are apart, and what becomes of the effect.

    Args:
        rows: of study.csv.
        again: of the second machine, of some seeds.
        base: the base model.
        pair: (arm, the arm it is compared with).
    """
    seeds = [seed for seed in seeds_of(again, base, pair[0]) if seed in seeds_of(again, base, pair[1])]
    first = [row for row in rows if int(row["seed"]) in seeds]
    pooled = [row | {"arm": f"{row['arm']} 1"} for row in first] + [row | {"arm": f"{row['arm']} 2"} for row in again]
    lines = []
    for metric in ("avg_at_8", PRIMARY_METRIC, "greedy", "shift_greedy", "consistency"):
        gaps = [paired(pooled, base, f"{arm} 2", f"{arm} 1", metric) for arm in pair]
        drifts = [f"{np.abs(gap).mean():.3f} ({gap.mean():+.3f})" for gap in gaps]
        effects = [difference(table_rows, base, *pair, metric).interval for table_rows in (first, again)]
        lines.append([SHOWN[metric], *drifts, *effects])
    arms = [f"`{arm}`: distance of two runs of a seed (2 − 1)" for arm in pair]
    return table([f"means of {len(seeds)} seeds", *arms, *(f"{pair[0]} − {pair[1]}, machine {n}" for n in (1, 2))], lines)


def one_machine_table(rows: Rows, again: Rows, base: str = "tiny") -> str:
    """The hypotheses that compare arms of the second machine with CPPO and GRPO of the first, within the second."""
    if not has_seeds(again, base, ("cppo", "grpo")):
        return "Not run yet."
    moved = [*again, *(row for row in rows if (row["base"], row["arm"]) not in {(base, "cppo"), (base, "grpo")})]
    chosen = [one for one in outcomes(whole_arms(moved), []) if one.name in ("H1", "H4")]
    return table(["", "outcome", "evidence"], [[one.name, f"**{one.verdict}**", one.evidence] for one in chosen])


def settings_table(rows: Rows, base: str = "tiny") -> str:
    """CPPO minus every other arm that trains all layers on reward and a perception loss: what a choice earns."""
    others = [
        arm.name
        for arm in MAIN
        if arm.changes and arm.baseline == "grpo" and not {"cpl_weight", "policy_weight"} & arm.changes.keys()
    ]
    lines = []
    for other in [*others, "papo"]:
        if has_seeds(rows, base, ["cppo", other]):
            cells = (difference(rows, base, "cppo", other, metric).interval for metric in (PRIMARY_METRIC, "avg_at_8"))
            lines.append([f"`cppo` − `{other}`", *cells])
    return table([f"on `{base}`, ten seeds", "shifted avg@8 [95 %]", "plain avg@8"], lines)


def pictures_table(rows: Rows, curves: Rows, late: Rows) -> str:
    """The primary comparisons on the test pictures, and on validation pictures: a few, and all.

    Args:
        rows: the arms with the protocol's seeds.
        curves: of these runs; they end with a probe on a few shifted validation pictures.
        late: rows of study.csv; those with validation seeds were scored on all shifted validation pictures.
    """
    probed = "validation_shift_avg_at_8"
    probes, late = final_points(rows, curves, probed), _late(late)
    lines = []
    for base in PRIMARY_BASES:
        for pair in PRIMARY_PAIRS:
            found = [difference(rows, base, *pair), difference(probes, base, *pair, probed)]
            others = difference(late, base, *pair).interval if has_seeds(late, base, pair, SWEEP_SEEDS) else "not run"
            lines.append([base, f"{pair[0]} − {pair[1]}", *(one.interval for one in found), others])
    few, many = f"{PROBE_IMAGES} validation pictures, the same runs", "200 validation pictures, seeds 100–104"
    return table(["shifted avg@8", "", "300 test pictures, seeds 0–9", few, many], lines)


def swept(rows: Rows, metric: str, base: str = "tiny") -> list[Difference]:
    """Each swept value minus the default, on validation seeds and images; values whose seeds are all there."""
    late = _late(rows)
    pairs = [(arm.name, arm.name.partition("-")[0]) for arm in SWEEPS if "level" not in arm.changes]
    return [difference(late, base, *pair, metric) for pair in pairs if has_seeds(late, base, pair, SWEEP_SEEDS)]


def challenges(shifted: Difference, plain: Difference) -> bool:
    """Whether a value passes the first half of the protocol's rule for a new default, the one about `tiny`.

    More than 0.02 above the default on shifted images, the whole interval above 0, and at most 0.02 below it on plain ones.
    """
    return shifted.value > MARGIN and shifted.low > 0 and plain.value >= -MARGIN


def sweeps_table(rows: Rows, base: str = "tiny") -> str:
    """What was `swept`, and whether the protocol's rule makes a value a candidate for the default."""
    lines = []
    for plain, shifted in zip(*(swept(rows, metric, base) for metric in ("avg_at_8", PRIMARY_METRIC)), strict=True):
        word = "**yes**" if challenges(shifted, plain) else "no"
        lines.append([f"`{shifted.arm}` − `{shifted.other}`", shifted.interval, plain.interval, word])
    if not lines:
        return "Not run yet."
    return table(["on validation seeds", "shifted avg@8 [95 %, 5 seeds]", "plain avg@8", "candidate for the default"], lines)


def rivals_table(rows: Rows, base: str = "tiny") -> str:
    """CPPO minus its rivals where both have another learning rate, group size or task; and each with its best setting.

    The best setting has the highest mean on shifted images among those that lose at most MARGIN on plain ones to the default.
    """
    late = _late(rows)
    pairs = [(f"cppo{suffix}", f"grpo{suffix}") for suffix in RIVAL_SETTINGS]
    pairs += [("cppo-level=hard", other) for other in ("grpo-level=hard", "grpo_augmented-level=hard")]
    found = [pair for pair in pairs if has_seeds(late, base, pair, SWEEP_SEEDS)]
    names = [f"`{arm}` − `{other}`" for arm, other in found]
    if set(pairs) == set(found):
        found.append((_best(late, base, "cppo"), _best(late, base, "grpo")))
        names.append(f"each at its best: `{found[-1][0]}` − `{found[-1][1]}`")
    lines = [
        [name, *(difference(late, base, *pair, metric).interval for metric in (PRIMARY_METRIC, "avg_at_8"))]
        for name, pair in zip(names, found, strict=True)
    ]
    return table(["on validation seeds", "shifted avg@8 [95 %, 5 seeds]", "plain avg@8"], lines) if lines else "Not run yet."


def _best(late: Rows, base: str, arm: str) -> str:
    """The arm's variant of RIVAL_SETTINGS with the highest mean on shifted images, and hardly less on plain ones."""
    against = {
        f"{arm}{suffix}": [
            difference(late, base, f"{arm}{suffix}", arm, metric).value for metric in (PRIMARY_METRIC, "avg_at_8")
        ]
        for suffix in RIVAL_SETTINGS
    }
    return max((name for name, (_, plain) in against.items() if plain >= -MARGIN), key=lambda name: against[name][0])


def coverage_beside(rows: Rows, base: str = "tiny") -> str:
    """Which of the planned sweeps were run, and what else beside the main arms with the protocol's seeds, in two sentences."""
    missing = [arm.name for arm in SWEEPS if not has_seeds(_late(rows), base, [arm.name], SWEEP_SEEDS)]
    there = f"Sweeps on `{base}` with seeds 100–104: {len(SWEEPS) - len(missing)} of {len(SWEEPS)} arms were run"
    sweeps = f"{there}; not yet: {', '.join(f'`{name}`' for name in missing)}." if missing else f"{there}."
    named, main = ({arm.name for arm in arms} for arms in ((*SWEEPS, UNTRAINED), MAIN))
    final = {(row["base"], row["arm"]) for row in rows if int(row["seed"]) in SEEDS and row["arm"] not in main}
    late = {(row["base"], row["arm"]) for row in _late(rows)}
    beside = [f"`{b} {arm}` (seeds 0–9)" for b, arm in sorted(final) if arm not in named]
    beside += [f"`{b} {arm}` (seeds 100–104)" for b, arm in sorted(late) if arm not in named]
    return f"{sweeps} Beside them: {', '.join(beside)}." if beside else sweeps


def _late(rows: Rows) -> Rows:
    """The rows with validation seeds."""
    return [row for row in rows if int(row["seed"]) in SWEEP_SEEDS]
