"""Whether the results hold elsewhere: with other settings (the sweeps) and on another machine (the replica)."""

import numpy as np

from cppo_ref.study.analysis import PRIMARY_METRIC, difference, paired
from cppo_ref.study.arms import SWEEPS
from cppo_ref.study.hypotheses import SWEEP_SEEDS, Rows, seeds_of
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


def sweeps_table(rows: Rows, base: str = "tiny") -> str:
    """Each swept value minus the default, on validation seeds and images; values whose seeds are all there."""
    late = [row for row in rows if int(row["seed"]) in SWEEP_SEEDS]
    lines = []
    for arm in SWEEPS:
        other = "grpo-level=hard" if "level" in arm.changes else arm.name.partition("-")[0]
        if arm.name == other or any(seeds_of(late, base, name) != list(SWEEP_SEEDS) for name in (arm.name, other)):
            continue
        found = [difference(late, base, arm.name, other, metric).interval for metric in ("avg_at_8", PRIMARY_METRIC)]
        lines.append([f"`{arm.name}`", f"`{other}`", *found])
    if not lines:
        return "Not run yet."
    return table(["arm", "minus", "plain avg@8 [95 %, 5 validation seeds]", "shifted avg@8"], lines)
