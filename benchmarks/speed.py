"""What a step costs, and against what: tables speed.csv, phases.csv and growth.csv in data/results, and docs/images/growth.png.

    python benchmarks/speed.py                         # everything, about ten minutes
    python benchmarks/speed.py --only update_vs_plain

All seconds are CPU seconds of one thread. The two arms of a row take their steps in turns, in one process and on the same rows;
a row of speed.csv is the median of the steps' ratios, with its bootstrap 95 % interval over steps. Steps that warm up are left
out. In `memory_vs_trl` the arms are pairs of child processes, and the ratio is that of their peaks.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from benchmarks import growth, phases
from benchmarks.measuring import RESULTS, Arm, CpuClock, PeakMemory, Ratio, cpu_phases, shape_rows, turns, write_table
from benchmarks.plain_update import copy_adapters, gradient, plain_update
from benchmarks.trl_arm import TrlArm
from cppo_ref.config import CPPOConfig
from cppo_ref.runs.commands import quiet

COLUMNS = ("name", "median_ratio", "low", "high", "n", "commit", "versions")
GROWTH_PLOT = RESULTS.parents[1] / "docs" / "images" / "growth.png"
WARM_UP = 3
AGAINST_TRL = CPPOConfig(quantize="none", cpl_weight=0.0, unpack=True)
# freed memory goes back to the system at once, so that a peak is what is in use
MALLOC = {"MALLOC_ARENA_MAX": "1", "MALLOC_TRIM_THRESHOLD_": "65536", "MALLOC_MMAP_THRESHOLD_": "65536"}


def grpo_vs_trl(steps: int = 40) -> dict[str, Ratio]:
    """Our GRPO step over TRL's on the same model, adapters, rows and settings; TRL's loop drives both."""
    ours, rows = Arm(AGAINST_TRL), shape_rows(AGAINST_TRL, WARM_UP + steps)
    trl, clock, seconds, lengths = TrlArm(AGAINST_TRL, rows, ours.policy.forbidden_ids), CpuClock(), [], []

    def take(step: int) -> None:
        clock.start()
        metrics, _ = ours.step(rows[step], step)
        seconds.append(clock.stop())
        lengths.append(metrics.completion_tokens)

    theirs = trl.run(CpuClock(), after=take)
    work, their_work = float(np.mean(lengths)), float(np.mean(trl.lengths))
    print(f"  mean completion: ours {work:.2f} tokens, TRL's {their_work:.2f}")
    assert abs(work / their_work - 1) < 0.05, "the arms do not do the same work"
    print(f"  median step: ours {np.median(seconds[WARM_UP:]):.3f} s, TRL's {np.median(theirs[WARM_UP:]):.3f} s")
    return {"grpo_vs_trl": Ratio(np.array(seconds[WARM_UP:]) / np.array(theirs[WARM_UP:]))}


def cppo_over_grpo(name: str, steps: int, unpack: bool) -> Ratio:
    """A CPPO step over a GRPO step in NF4, each learning along its own run."""
    rows = shape_rows(CPPOConfig(), steps)

    def arms() -> dict[str, Callable]:
        made = {"cppo": Arm(CPPOConfig(unpack=unpack)), "grpo": Arm(CPPOConfig(unpack=unpack, cpl_weight=0.0))}
        return {method: lambda step, arm=arm: arm.step(rows[step], step) for method, arm in made.items()}

    turns(arms(), min(WARM_UP, steps))  # with policies that are dropped: the run that counts begins at its beginning
    seconds = turns(arms(), steps)
    print(f"  {name}, median step: " + ", ".join(f"{arm} {np.median(values):.3f} s" for arm, values in seconds.items()))
    return Ratio(seconds["cppo"] / seconds["grpo"])


def cppo_vs_grpo(steps: int = 80) -> dict[str, Ratio]:
    """Over a whole training, and over its first steps, where more rows are gated."""
    whole = cppo_over_grpo("unpacked", steps, unpack=True)
    return {"cppo_vs_grpo": whole, "cppo_vs_grpo_first": Ratio(whole.values[:10])}


def cppo_vs_grpo_packed(steps: int = 80) -> dict[str, Ratio]:
    """The same with weights in 4 bits, unpacked in every pass."""
    return {"cppo_vs_grpo_packed": cppo_over_grpo("packed", steps, unpack=False)}


def update_vs_plain(steps: int = 16) -> dict[str, Ratio]:
    """Detection and update of our CPPO step over the plain update, on the same rollouts; their gradients are the same."""
    ours, plain = (Arm(CPPOConfig(quantize="none", unpack=unpack)) for unpack in (True, False))
    clock, ratios, differences = CpuClock(), [], []
    for step, rows in enumerate(shape_rows(ours.config, WARM_UP + steps)):
        copy_adapters(ours, plain)
        with cpu_phases():
            metrics, batch = ours.step(rows, step)
        clock.start()
        _, selected = plain_update(plain, batch, step)
        ratios.append((metrics.seconds["detection"] + metrics.seconds["update"]) / clock.stop())
        if not torch.equal(selected, batch.selected):
            print(f"  step {step}: {int((selected != batch.selected).sum())} tokens chosen differently")  # rounding
            continue
        wanted = gradient(plain)
        differences.append(float((gradient(ours) - wanted).norm() / wanted.norm()))
        assert differences[-1] < 1e-4, f"step {step}: the gradients differ by {differences[-1]:.1e}"
    print(f"  largest relative difference of the gradients, {len(differences)} steps: {max(differences):.1e}")
    return {"update_vs_plain": Ratio(np.array(ratios[WARM_UP:]))}


def peak_of_step(arm: str, steps: int = 3) -> float:
    """Bytes at the peak of a step above what is held before it, in this process; the first step is left out."""
    policy = Arm(AGAINST_TRL)
    rows, meter, peaks = shape_rows(AGAINST_TRL, 1 + steps), PeakMemory(), []
    if arm == "trl":
        forbidden = policy.policy.forbidden_ids
        del policy
        peaks = TrlArm(AGAINST_TRL, rows, forbidden).run(meter)
    else:
        for step in range(1 + steps):
            meter.start()
            policy.step(rows[step], step)
            peaks.append(meter.stop())
    return float(np.median(peaks[1:]))


def memory_vs_trl(children: int = 5) -> dict[str, Ratio]:
    """Our peak over TRL's, each in a process of its own; a pair runs side by side, which changes no memory."""
    environment = os.environ | MALLOC | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    pairs = []
    for _ in range(children):
        commands = [[sys.executable, __file__, "--child", arm] for arm in ("ours", "trl")]
        started = [
            subprocess.Popen(c, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment) for c in commands
        ]
        pairs.append([json.loads(process.communicate()[0].splitlines()[-1]) for process in started])
    ours, theirs = np.array(pairs).T
    print(
        f"  peak of a step above the loaded model: ours {np.median(ours) / 1e6:.0f} MB, TRL's {np.median(theirs) / 1e6:.0f} MB"
    )
    return {"memory_vs_trl": Ratio(ours / theirs)}


RATIOS = (grpo_vs_trl, cppo_vs_grpo, cppo_vs_grpo_packed, update_vs_plain, memory_vs_trl)


def write_phases(folder: Path, plot: Path) -> None:
    """phases.csv."""
    write_table(folder / "phases.csv", phases.table(), phases.COLUMNS, key=("step", "phase"))


def write_growth(folder: Path, plot: Path) -> None:
    """growth.csv and its plot."""
    write_table(folder / "growth.csv", growth.table(), growth.COLUMNS, key=("axis", "size", "method"))
    growth.draw(folder / "growth.csv", plot)


def write_ratios(measure: Callable[[], dict[str, Ratio]], folder: Path) -> None:
    """The rows of speed.csv that `measure` gives."""
    rows = [ratio.row(name) for name, ratio in measure().items()]
    write_table(folder / "speed.csv", rows, COLUMNS, key=("name",))
    for row in rows:
        print(f"{row['name']:<22}{row['median_ratio']:.3f} [{row['low']:.3f}, {row['high']:.3f}], n = {row['n']}", flush=True)


def main() -> None:
    """Measure and write."""
    parts: dict[str, Callable[[Path, Path], None]] = {
        measure.__name__: lambda folder, plot, measure=measure: write_ratios(measure, folder) for measure in RATIOS
    }
    parts |= {"phases": write_phases, "growth": write_growth}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=list(parts), help="measure this alone")
    parser.add_argument("--child", choices=("ours", "trl"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    quiet()
    torch.set_num_threads(1)
    if options.child:
        print(json.dumps(peak_of_step(options.child)))
        return
    for name in [options.only] if options.only else list(parts):
        print(name, flush=True)
        parts[name](RESULTS, GROWTH_PLOT)


if __name__ == "__main__":
    main()
