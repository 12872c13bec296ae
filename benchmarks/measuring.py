"""What the benchmarks of speed share: an arm that learns, a clock and a memory meter, turns, medians with intervals, tables."""

import csv
import ctypes
import gc
import platform
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from accelerate import Accelerator
from scipy.stats import bootstrap

from cppo_ref import step as algorithm
from cppo_ref.config import CPPOConfig
from cppo_ref.examples.loading import load_rows, step_rows
from cppo_ref.rollouts import Batch
from cppo_ref.runs.metrics import PhaseClock, StepMetrics
from cppo_ref.vlm.devices import accelerator_for
from cppo_ref.vlm.policy import Policy, policy_for

RESULTS = Path(__file__).parents[1] / "data" / "results"
PACKAGES = ("torch", "transformers", "peft", "trl", "bitsandbytes")


class Arm:
    """A policy that learns as `config` says, one step at a time."""

    def __init__(self, config: CPPOConfig) -> None:
        self.config = config
        self.policy: Policy = policy_for(config)
        self.optimizer = torch.optim.AdamW(self.policy.trainable, lr=config.learning_rate, weight_decay=config.weight_decay)
        self.accelerator: Accelerator = accelerator_for(self.policy)

    def step(self, rows: list[dict[str, Any]], step: int) -> tuple[StepMetrics, Batch]:
        """Take step number `step` on `rows`."""
        return algorithm.cppo_step(self.policy, self.optimizer, rows, self.config, step, accelerator=self.accelerator)


def shape_rows(config: CPPOConfig, steps: int) -> list[list[dict[str, Any]]]:
    """The rows of each of a run's first steps."""
    rows = load_rows("shapes", "train")
    return [step_rows(rows, config.prompts_per_step, step, config.seed) for step in range(steps)]


class CpuClock:
    """Measures CPU seconds of this process: what another process does on the same core is not in them."""

    def start(self) -> None:
        """Begin."""
        self.began = time.process_time()

    def stop(self) -> float:
        """CPU seconds since `start`."""
        return time.process_time() - self.began


class PeakMemory:
    """Measures the most memory that this process holds above what it held at `start`, in bytes. Linux only.

    Not ru_maxrss: that cannot be reset, and a child process inherits its parent's.
    """

    def start(self) -> None:
        """Give back what is free, and begin a new peak."""
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
        self.held = self._status("VmRSS")

    def stop(self) -> float:
        """Bytes at the peak, above those at `start`."""
        return self._status("VmHWM") - self.held

    def _status(self, name: str) -> int:
        line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
        return 1024 * int(line.split()[1])


Meter = CpuClock | PeakMemory


def turns(arms: dict[str, Callable[[int], Any]], steps: int, warm_up: int = 0) -> dict[str, np.ndarray]:
    """CPU seconds [steps] of each arm, which takes the number of its step; one after the other, so that all meet the same load.

    The first `warm_up` steps are taken and not counted.
    """
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    clock = CpuClock()
    for step in range(warm_up + steps):
        for name, take in arms.items():
            clock.start()
            take(step)
            seconds[name].append(clock.stop())
    return {name: np.array(values[warm_up:]) for name, values in seconds.items()}


@contextmanager
def cpu_phases() -> Iterator[None]:
    """Inside, the phases of a step are measured in CPU seconds."""

    class CpuPhases(PhaseClock):
        def _now(self) -> float:
            return time.process_time()

    with patch.object(algorithm, "PhaseClock", CpuPhases):
        yield


@dataclass(frozen=True)
class Ratio:
    """A measure of one arm over that of another, step by step."""

    values: np.ndarray

    @property
    def median(self) -> float:
        """The median over the steps."""
        return float(np.median(self.values))

    @cached_property
    def interval(self) -> tuple[float, float]:
        """The bootstrap 95 % interval of the median over the steps."""
        if len(self.values) < 2 or np.ptp(self.values) == 0:
            return self.median, self.median
        options = {"n_resamples": 2000, "method": "percentile", "rng": np.random.default_rng(0)}
        found = bootstrap((self.values,), np.median, **options).confidence_interval
        return float(found.low), float(found.high)

    def row(self, name: str) -> dict[str, Any]:
        """The row of data/results/speed.csv."""
        low, high = self.interval
        return {"name": name, "median_ratio": self.median, "low": low, "high": high, "n": len(self.values)} | provenance()


def provenance() -> dict[str, str]:
    """What made a row."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    versions = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    return {"commit": commit, "versions": f"{versions}, {torch.get_num_threads()} thread, {platform.machine()}"}


def write_table(path: Path, rows: Sequence[dict[str, Any]], columns: Sequence[str], key: Sequence[str]) -> None:
    """Write `rows` into the CSV `path`, in the place of those with the same `key`; numbers keep four digits."""
    old = list(csv.DictReader(path.open())) if path.exists() else []
    new = [{name: f"{v:.4g}" if isinstance(v, float) else str(v) for name, v in row.items()} for row in rows]
    table = {tuple(row[name] for name in key): row for row in old + new}
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(table.values())
