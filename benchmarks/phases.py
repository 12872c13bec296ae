"""Where the time of a step goes: CPU seconds and counted FLOP of each phase, and the share of the matmul rate it reaches."""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from benchmarks.measuring import Arm, provenance, shape_rows
from cppo_ref import step as algorithm
from cppo_ref.config import CPPOConfig

COLUMNS = ("step", "phase", "seconds", "gflop", "gflop_per_second", "matmul_share", "n", "commit", "versions")
# a function that is called inside another's counts for its own phase only
FUNCTIONS = {
    "generate_rollouts": "rollouts",
    "reward": "rewards",
    "find_logprobs": "reference",
    "encode_views": "views",
    "score_removed": "I- forward",
    "loss_terms": "I forward",
    "perception_term": "I+ forward and contrast",
}
PHASES = (*FUNCTIONS.values(), "backward", "optimizer", "rest")


def _attention(query: Any, key: Any, value: Any, *unused: Any, **also: Any) -> int:
    return sdpa_flop_count(query, key, value)


def _attention_backward(grad: Any, query: Any, key: Any, value: Any, *unused: Any, **also: Any) -> int:
    return sdpa_backward_flop_count(grad, query, key, value)


# torch's counter does not know attention on a CPU
ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}


class Stretches:
    """Adds up what `read` says over named stretches of a step; an inner stretch is not part of the outer one."""

    def __init__(self, read: Callable[[], float]) -> None:
        self.read = read
        self.totals: dict[str, float] = defaultdict(float)
        self.inside, self.last = ["rest"], read()

    def note(self) -> None:
        """Credit what was added since the last note to the innermost stretch."""
        now = self.read()
        self.totals[self.inside[-1]] += now - self.last
        self.last = now

    def wrap(self, name: str, function: Callable) -> Callable:
        """`function`, counted as `name`."""

        def counted(*args: Any, **kwargs: Any) -> Any:
            self.note()
            self.inside.append(name)
            try:
                return function(*args, **kwargs)
            finally:
                self.note()
                self.inside.pop()

        return counted

    @contextmanager
    def counting(self, arm: Arm) -> Iterator[None]:
        """Inside, the phases of `arm`'s steps are counted."""
        wrapped = {name: self.wrap(phase, getattr(algorithm, name)) for name, phase in FUNCTIONS.items()}
        backward, optimize = arm.accelerator.backward, arm.optimizer.step
        with (
            patch.multiple(algorithm, **wrapped),
            patch.object(arm.accelerator, "backward", self.wrap("backward", backward)),
            patch.object(arm.optimizer, "step", self.wrap("optimizer", optimize)),
        ):
            self.last = self.read()
            yield
            self.note()


def measure(config: CPPOConfig, steps: int, warm_up: int) -> tuple[dict[str, float], dict[str, float]]:
    """CPU seconds and FLOP of each phase of a step, means over `steps` steps; counting FLOP is slow, so the steps run twice."""
    found = []
    for counter in (None, FlopCounterMode(display=False, custom_mapping=ATTENTION)):
        arm = Arm(config)
        stretches = Stretches(time.process_time if counter is None else counter.get_total_flops)
        for step, rows in enumerate(shape_rows(config, warm_up + steps)):
            with counter or nullcontext(), stretches.counting(arm) if step >= warm_up else nullcontext():
                arm.step(rows, step)
        found.append({phase: stretches.totals[phase] / steps for phase in PHASES})
    return found[0], found[1]


def matmul_rate(rows: int, inner: int, columns: int, repeats: int = 30) -> float:
    """FLOP a CPU second of [rows, inner] @ [inner, columns] in float32, the median."""
    left, right, rates = torch.randn(rows, inner), torch.randn(inner, columns), []
    times = max(1, 10**9 // (2 * rows * inner * columns))
    for _ in range(repeats):
        start = time.process_time()
        for _ in range(times):
            left @ right
        rates.append(times * 2 * rows * inner * columns / (time.process_time() - start))
    return float(np.median(rates))


def table(steps: int = 10, warm_up: int = 3) -> list[dict[str, Any]]:
    """The rows of data/results/phases.csv: a GRPO and a CPPO step on the tiny VLM, and what the machine can do."""
    made_by = {"n": steps} | provenance()
    best = matmul_rate(1024, 1024, 1024)
    # the MLP of the tiny VLM: all tokens of a forward pass, some 1 400; and one token of each of 64 completions
    shapes = {"1024x1024x1024": best, "1536x128x384": matmul_rate(1536, 128, 384), "64x128x384": matmul_rate(64, 128, 384)}
    rows = [
        {"step": "matmul", "phase": shape, "gflop_per_second": rate / 1e9, "matmul_share": rate / best} | made_by
        for shape, rate in shapes.items()
    ]
    for name, weight in (("grpo", 0.0), ("cppo", CPPOConfig().cpl_weight)):
        seconds, flop = measure(CPPOConfig(cpl_weight=weight, unpack=True), steps, warm_up)
        seconds, flop = seconds | {"whole": sum(seconds.values())}, flop | {"whole": sum(flop.values())}
        for phase in seconds:
            rate = flop[phase] / seconds[phase] if seconds[phase] else 0.0
            numbers = {"seconds": seconds[phase], "gflop": flop[phase] / 1e9}
            numbers |= {"gflop_per_second": rate / 1e9, "matmul_share": rate / best}
            rows.append({"step": name, "phase": phase} | numbers | made_by)
    return rows
