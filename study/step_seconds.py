"""CPU seconds of a training step of each of the study's arms, as a ratio to GRPO's: data/results/step_seconds.csv.

    python -m study.step_seconds

All arms take their steps in turns, in one process and on one thread, so that whatever else the machine does falls on all of
them alike. Two implementations: `train` is the package's (NF4, as in `python -m cppo_ref train`), `study` the one that the
study's runs use (weights unpacked, adapters merged). Each arm learns as it goes, on base tiny; the first steps are not counted.
"""

import argparse
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator

from cppo_ref.examples.loading import load_rows, step_rows
from cppo_ref.runs.commands import quiet
from cppo_ref.step import cppo_step
from cppo_ref.vlm.policy import policy_for
from study.analysis import bootstrap_interval
from study.arms import MAIN
from study.plan import Run
from study.store import csv_bytes, write_aside
from study.worker import ARITHMETIC, provenance

TARGET = Path(__file__).parent.parent / "data" / "results" / "step_seconds.csv"
COLUMNS = ("implementation", "arm", "seconds", "ratio", "low", "high", "steps", "commit", "versions")
WARM_UP = 2  # steps that are not counted
IMPLEMENTATIONS = {"train": {"unpack": False}, "study": {"unpack": True}}


def measure(arms: list[str], steps: int, implementation: str) -> dict[str, np.ndarray]:
    """CPU seconds [steps] of each arm's steps."""
    rows, accelerator = load_rows("shapes", "train"), Accelerator(cpu=True)
    configs = {arm: replace(Run("tiny", arm, 0).config, **IMPLEMENTATIONS[implementation]) for arm in arms}
    controls = {arm: Run("tiny", arm, 0).controls for arm in arms}
    policies = {arm: policy_for(config) for arm, config in configs.items()}
    optimizers = {arm: torch.optim.AdamW(p.trainable, lr=configs[arm].learning_rate) for arm, p in policies.items()}
    seconds: dict[str, list[float]] = {arm: [] for arm in arms}
    for step in range(WARM_UP + steps):
        for arm, config in configs.items():
            batch = step_rows(rows, config.prompts_per_step, step, config.seed)
            start, parts = time.process_time(), controls[arm].parts(policies[arm], config, step)
            cppo_step(policies[arm], optimizers[arm], batch, config, step, parts=parts, accelerator=accelerator)
            seconds[arm].append(time.process_time() - start)
    return {arm: np.array(values[WARM_UP:]) for arm, values in seconds.items()}


def table(seconds: dict[str, np.ndarray], implementation: str) -> list[dict]:
    """One row per arm: its seconds, and their ratio to GRPO's in the same step with a 95 % interval over steps."""
    made_by = {name: value for name, value in provenance(Run("tiny", "grpo", 0)).items() if name in COLUMNS}
    made_by["versions"] = made_by["versions"].removesuffix(f", {ARITHMETIC}")  # the implementation says it
    rows = []
    for arm, values in seconds.items():
        ratios = values / seconds["grpo"]
        low, high = bootstrap_interval(ratios)
        numbers = {"seconds": float(values.mean()), "ratio": float(ratios.mean()), "low": low, "high": high}
        rows.append({"implementation": implementation, "arm": arm, **numbers, "steps": len(values), **made_by})
    return rows


def main() -> None:
    """Measure both implementations and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=10)
    options = parser.parse_args()
    quiet()
    torch.set_num_threads(1)
    arms = [arm.name for arm in MAIN if arm.step_ratio == 1]  # an arm with more steps takes the same time for each
    rows = []
    for implementation in IMPLEMENTATIONS:
        rows += table(measure(arms, options.steps, implementation), implementation)
        for row in rows[-len(arms) :]:
            print(f"{row['implementation']:<8}{row['arm']:<16}{row['seconds']:.3f} s, {row['ratio']:.2f} times GRPO's")
    write_aside(TARGET, csv_bytes(rows, COLUMNS))


if __name__ == "__main__":
    main()
