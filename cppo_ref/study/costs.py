"""What an arm's step costs, from data/results/step_seconds.csv, and what its speed in steps is worth in time."""

import numpy as np

from cppo_ref.study.arms import MAIN
from cppo_ref.study.hypotheses import Rows, seeds_of
from cppo_ref.study.report import table


def step_cost(costs: Rows, arm: str, implementation: str = "train") -> float:
    """CPU time of a step, as a multiple of GRPO's; 1 for an arm that was not measured, since it takes GRPO's steps."""
    return next((float(row["ratio"]) for row in costs if (row["implementation"], row["arm"]) == (implementation, arm)), 1.0)


def price_table(rows: Rows, costs: Rows, base: str = "tiny") -> str:
    """What a step of each arm costs, and how long it takes to avg@8 = 0.8 on plain validation images.

    Args:
        rows: of study.csv.
        costs: of step_seconds.csv; an arm that is not there takes GRPO's steps.
        base: the base model.
    """
    intervals = {(row["implementation"], row["arm"]): f"[{float(row['low']):.2f}, {float(row['high']):.2f}]" for row in costs}
    lines = []
    for arm in [arm.name for arm in MAIN if seeds_of(rows, base, arm.name)]:
        reached = [float(r["steps_to_80"]) for r in rows if (r["base"], r["arm"]) == (base, arm) and r["steps_to_80"]]
        shown = [f"{step_cost(costs, arm, way):.2f} {intervals.get((way, arm), '')}".strip() for way in ("train", "study")]
        steps = np.mean(reached) if reached else float("nan")
        times = [f"{steps:.0f}", f"{steps * step_cost(costs, arm):.0f}"] if reached else ["–", "–"]
        lines.append([f"`{arm}`", *shown, f"{len(reached)} of {len(seeds_of(rows, base, arm))}", *times])
    header = ["arm", "time of a step, GRPO's = 1", "the same in the study's runs", "runs that reach 0.8"]
    return table([*header, "after steps", "in the time of so many GRPO steps"], lines)
