"""What an arm's step costs, from data/results/step_seconds.csv, and what its speed in steps is worth in time."""

import numpy as np

from cppo_ref.config import InputError
from study.analysis import PRIMARY_BASES, Rows, has_seeds, seeds_of
from study.arms import ARMS, GRPO, MAIN
from study.comparisons import table
from study.report import seed_mean


def step_cost(costs: Rows, arm: str, implementation: str = "train") -> float:
    """CPU time of a step, as a multiple of GRPO's; arms that differ in the number of steps only share it.

    Raises:
        InputError: it was not measured, and the arm's steps are not GRPO's.
    """
    if ARMS[arm].changes == GRPO:
        return 1.0
    alike = {other.name for other in ARMS.values() if other.changes == ARMS[arm].changes}
    measured = [float(row["ratio"]) for row in costs if row["implementation"] == implementation and row["arm"] in alike]
    if not measured:
        raise InputError(f"no cost of a step of {arm} was measured: run benchmarks/step_seconds.py")
    return measured[0]


def price_table(rows: Rows, costs: Rows, base: str = "tiny") -> str:
    """What a step of each arm costs, and how long it takes to avg@8 = 0.8 on plain validation images.

    Args:
        rows: of study.csv.
        costs: of step_seconds.csv.
        base: the base model.
    """
    intervals = {(row["implementation"], row["arm"]): f"[{float(row['low']):.2f}, {float(row['high']):.2f}]" for row in costs}
    lines = []
    for arm in [arm.name for arm in MAIN if seeds_of(rows, base, arm.name)]:
        steps = [float(r["steps_to_80"] or "inf") for r in rows if (r["base"], r["arm"]) == (base, arm)]
        shown = [f"{step_cost(costs, arm, way):.2f} {intervals.get((way, arm), '')}".strip() for way in ("train", "study")]
        median = float(np.median(steps))
        times = [f"{median:.0f}", f"{median * step_cost(costs, arm):.0f}"] if median < np.inf else ["–", "–"]
        lines.append([f"`{arm}`", *shown, f"{np.isfinite(steps).sum()} of {len(steps)}", *times])
    header = ["arm", "time of a step, GRPO's = 1", "the same in the study's runs", "runs that reach 0.8"]
    return table([*header, "median steps", "in the time of so many GRPO steps"], lines)


def whole_run_costs(rows: Rows) -> str:
    """Training time of CPPO over GRPO's, of whole runs paired by seed, on each base whose runs are of one machine."""
    found = []
    for base in PRIMARY_BASES:
        chosen = [row for row in rows if row["base"] == base and row["arm"] in ("cppo", "grpo")]
        if has_seeds(chosen, base, ["cppo", "grpo"]) and len({row["versions"] for row in chosen}) == 1:
            seconds = {(row["arm"], int(row["seed"])): float(row["seconds"]) for row in chosen}
            ratios = np.array([seconds["cppo", seed] / seconds["grpo", seed] for seed in seeds_of(chosen, base, "cppo")])
            found.append(f"{seed_mean(ratios, '.2f')} on `{base}`")
    return ", ".join(found)
