"""Whether the results hold on other pictures and on another machine (the replica)."""

import numpy as np

from study.analysis import (
    PRIMARY_BASES,
    PRIMARY_METRIC,
    PRIMARY_PAIRS,
    SWEEP_SEEDS,
    Rows,
    difference,
    has_seeds,
    late_rows,
    paired,
    seeds_of,
    whole_arms,
)
from study.comparisons import SHOWN, table
from study.dilution import final_points
from study.hypotheses import outcomes
from study.probes import PROBE_IMAGES


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


def pictures_table(rows: Rows, curves: Rows, late: Rows) -> str:
    """The primary comparisons on the test pictures, and on validation pictures: a few, and all.

    Args:
        rows: the arms with the protocol's seeds.
        curves: of these runs; they end with a probe on a few shifted validation pictures.
        late: rows of study.csv; those with validation seeds were scored on all shifted validation pictures.
    """
    probed = "validation_shift_avg_at_8"
    probes, late = final_points(rows, curves, probed), late_rows(late)
    lines = []
    for base in PRIMARY_BASES:
        for pair in PRIMARY_PAIRS:
            found = [difference(rows, base, *pair), difference(probes, base, *pair, probed)]
            others = difference(late, base, *pair).interval if has_seeds(late, base, pair, SWEEP_SEEDS) else "not run"
            lines.append([base, f"{pair[0]} − {pair[1]}", *(one.interval for one in found), others])
    few, many = f"{PROBE_IMAGES} validation pictures, the same runs", "200 validation pictures, seeds 100–104"
    return table(["shifted avg@8", "", "300 test pictures, seeds 0–9", few, many], lines)
