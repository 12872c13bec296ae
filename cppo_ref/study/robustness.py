"""Whether the results hold elsewhere: on other pictures, with other settings (the sweeps), on another machine (the replica)."""

import numpy as np

from cppo_ref.study.analysis import (
    MARGIN,
    PRIMARY_BASES,
    PRIMARY_METRIC,
    PRIMARY_PAIRS,
    Difference,
    difference,
    paired,
)
from cppo_ref.study.arms import SWEEPS
from cppo_ref.study.dilution import final_points
from cppo_ref.study.hypotheses import SWEEP_SEEDS, Rows, seeds_of
from cppo_ref.study.probes import PROBE_IMAGES
from cppo_ref.study.report import SHOWN, table


def replica_table(rows: Rows, again: Rows, base: str = "tiny", pair: tuple[str, str] = ("cppo", "grpo")) -> str:
    """The same runs on two machines: how far two trainings of a seed drift apart by rounding, and what becomes of the effect.

    Args:
        rows: of study.csv.
        again: of the second machine, of some seeds.
        base: the base model.
        pair: (arm, the arm it is compared with).
    """
    seeds = [seed for seed in seeds_of(again, base, pair[0]) if seed in seeds_of(again, base, pair[1])]
    first = [row for row in rows if int(row["seed"]) in seeds]
    lines = []
    for metric in ("avg_at_8", PRIMARY_METRIC):
        pooled = [row | {"arm": f"{row['arm']} 1"} for row in first] + [row | {"arm": f"{row['arm']} 2"} for row in again]
        drifts = [f"{np.abs(paired(pooled, base, f'{arm} 2', f'{arm} 1', metric)).mean():.3f}" for arm in pair]
        effects = [difference(table_rows, base, *pair, metric).interval for table_rows in (first, again)]
        lines.append([SHOWN[metric], *drifts, *effects])
    arms = [f"`{arm}`: mean distance of two runs of a seed" for arm in pair]
    return table(["", *arms, *(f"{pair[0]} − {pair[1]}, machine {number}" for number in (1, 2))], lines)


def pictures_table(rows: Rows, curves: Rows, late: Rows) -> str:
    """The primary comparisons on the test pictures, and on two sets of validation pictures.

    Args:
        rows: the arms with the protocol's seeds.
        curves: of these runs; they end with a probe on a few shifted validation pictures.
        late: rows of study.csv; those with validation seeds were scored on all shifted validation pictures.
    """
    probed = "validation_shift_avg_at_8"
    probes, late = final_points(rows, curves, probed), [row for row in late if int(row["seed"]) in SWEEP_SEEDS]
    lines = []
    for base in PRIMARY_BASES:
        for pair in PRIMARY_PAIRS:
            found = [difference(rows, base, *pair), difference(probes, base, *pair, probed)]
            whole = all(seeds_of(late, base, arm) == list(SWEEP_SEEDS) for arm in pair)
            others = difference(late, base, *pair).interval if whole else "not run"
            lines.append([base, f"{pair[0]} − {pair[1]}", *(one.interval for one in found), others])
    few, many = f"{PROBE_IMAGES} validation pictures, the same runs", "200 validation pictures, seeds 100–104"
    return table(["shifted avg@8", "", "300 test pictures, seeds 0–9", few, many], lines)


def swept(rows: Rows, metric: str, base: str = "tiny") -> list[Difference]:
    """Each swept value minus the default, on validation seeds and images; values whose seeds are all there.

    On the hard level, which is another task and not another value of a setting, the arms are compared with GRPO.
    """
    late = [row for row in rows if int(row["seed"]) in SWEEP_SEEDS]
    found = []
    for arm in SWEEPS:
        other = "grpo-level=hard" if "level" in arm.changes else arm.name.partition("-")[0]
        whole = all(seeds_of(late, base, name) == list(SWEEP_SEEDS) for name in (arm.name, other))
        if whole and arm.name != other:
            found.append(difference(late, base, arm.name, other, metric))
    return found


def challenges(shifted: Difference, plain: Difference) -> bool:
    """Whether a value passes the first half of the protocol's rule for a new default, the one about `tiny`.

    More than 0.02 above the default on shifted images, the whole interval above 0, and at most 0.02 below it on plain ones.
    """
    return shifted.value > MARGIN and shifted.low > 0 and plain.value >= -MARGIN


def sweeps_table(rows: Rows, base: str = "tiny") -> str:
    """What was `swept`, and whether the protocol's rule makes a value a candidate for the default."""
    lines = []
    for plain, shifted in zip(*(swept(rows, metric, base) for metric in ("avg_at_8", PRIMARY_METRIC)), strict=True):
        word = "–" if "level" in shifted.arm else "**yes**" if challenges(shifted, plain) else "no"
        lines.append([f"`{shifted.arm}`", f"`{shifted.other}`", shifted.interval, plain.interval, word])
    if not lines:
        return "Not run yet."
    header = ["arm", "minus", "shifted avg@8 [95 %, 5 validation seeds]", "plain avg@8", "candidate for the default"]
    return table(header, lines)
