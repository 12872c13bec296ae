"""Memory and time of a CPPO step on one GPU, phase by phase, under a hard limit: data/results/gpu_memory.csv.

    python benchmarks/gpu_memory.py                       # every profile, and the paper's model on 12 GB
    python benchmarks/gpu_memory.py --only 12gb --plain   # also as a plain implementation would do it

Real architectures with random weights (no download), real QLoRA, rewards of 1 and 0 in turn so that half of the rows are looked
at. Each case is a process of its own: one that runs out of memory is a row that says so. Three steps; the last one counts.
"""

import argparse
import csv
import json
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import bitsandbytes
import torch
import transformers

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))
from tiny_families import random_model  # noqa: E402

from cppo_ref import step as algorithm  # noqa: E402
from cppo_ref.__main__ import quiet  # noqa: E402
from cppo_ref.config import CPPOConfig  # noqa: E402
from cppo_ref.examples.loading import split_rows  # noqa: E402
from cppo_ref.vlm import chunks  # noqa: E402
from cppo_ref.vlm.devices import accelerator_for  # noqa: E402
from cppo_ref.vlm.memory import CONTEXT, estimate, measure  # noqa: E402
from cppo_ref.vlm.peaks import read_peak, reset_peak  # noqa: E402
from cppo_ref.vlm.policy import policy_for  # noqa: E402
from cppo_ref.vlm.profiles import CAPACITY, PROFILES  # noqa: E402
from cppo_ref.vlm.quantization import ARCHITECTURES, model_config, skeleton  # noqa: E402

TARGET = ROOT / "data" / "results" / "gpu_memory.csv"
PAPER = "Qwen/Qwen2.5-VL-3B-Instruct"
CASES = {**{name: (name, None) for name in PROFILES}, "12gb-paper": ("12gb", PAPER)}
PHASES = ["load", "rollouts", "reference", "detection", "score", "cpl", "backward", "optimizer"]
COLUMNS = ["case", "implementation", "model", "cap_gb", "fits", "tokens_per_s", "peak_gb", "predicted_gb"]
COLUMNS += [f"{phase}_{unit}" for phase in PHASES for unit in ("gb", "s")]
COLUMNS += ["group_size", "new_tokens", "max_pixels", "gpu", "torch", "transformers", "bitsandbytes", "commit"]


def settings(case: str, plain: bool) -> CPPOConfig:
    """The run of a case; plain: no recomputing, a whole group at a time, every row looked at."""
    profile, model = CASES[case]
    run = replace(CPPOConfig(**PROFILES[profile]), eval_rows=0)
    run = replace(run, prompts_per_step=max(1, run.rollout_batch_size // run.group_size))  # the rollouts at their fullest
    run = replace(run, model=model) if model else run
    return replace(run, activation_checkpointing=False, micro_batch_size=8, advantage_gate=False) if plain else run


class Phases:
    """Peak bytes and seconds of named stretches of a step; an inner stretch ends the outer one's peak and goes on with it."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.peak: dict[str, int] = {}
        self.seconds: dict[str, float] = {}
        self.inside: list[str] = []

    def wrap(self, name: str, function: Callable) -> Callable:
        """`function`, counted as `name`."""

        def counted(*args: Any, **kwargs: Any) -> Any:
            self.note()
            self.inside.append(name)
            start = self.now()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds[name] = self.seconds.get(name, 0.0) + self.now() - start
                self.note()
                self.inside.pop()

        return counted

    def note(self) -> None:
        """Credit the peak so far to the innermost stretch, and begin a new one."""
        if self.inside:
            self.peak[self.inside[-1]] = max(self.peak.get(self.inside[-1], 0), read_peak(self.device) or 0)
        reset_peak(self.device)

    def forget(self) -> None:
        """Drop what was counted since the model was loaded."""
        self.peak = {name: value for name, value in self.peak.items() if name == "load"}
        self.seconds = {name: value for name, value in self.seconds.items() if name == "load"}

    def now(self) -> float:
        """Seconds, once the GPU has done what it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


def run_case(run: CPPOConfig, plain: bool, steps: int = 3) -> dict[str, Any]:
    """Measure `steps` steps of `run` in this process, the last one by phase."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    phases = Phases(device)
    paid = iter(range(10**9))
    algorithm.reward = lambda text, answer: float(next(paid) % 2)
    if plain:
        chunks.BLOCK = 10**12
    policy = phases.wrap("load", policy_for)(run)
    optimizer = torch.optim.AdamW(policy.trainable, lr=run.learning_rate, weight_decay=0.0)
    optimizer.step = phases.wrap("optimizer", optimizer.step)  # type: ignore[method-assign]
    accelerator = accelerator_for(policy)
    policy.model, optimizer = accelerator.prepare(policy.model, optimizer)
    accelerator.backward = phases.wrap("backward", accelerator.backward)  # type: ignore[method-assign]
    wrapped = {"rollouts": "generate_rollouts", "reference": "find_logprobs", "detection": "find_perception_tokens"}
    for phase, name in (wrapped | {"score": "loss_terms", "cpl": "perception_term"}).items():
        setattr(algorithm, name, phases.wrap(phase, getattr(algorithm, name)))
    side = int((run.max_pixels or 48 * 48) ** 0.5)
    rows = [{**row, "image": row["image"].resize((side, side))} for row in split_rows("train", count=run.prompts_per_step)]
    for step in range(steps):
        phases.forget()
        _, batch = algorithm.cppo_step(policy, optimizer, rows, run, step, accelerator=accelerator)
    sampled = int(batch.rollouts.completion_mask.sum())
    measured = {f"{phase}_gb": phases.peak[phase] / 1e9 for phase in PHASES if phase in phases.peak}
    phases.seconds["score"] -= phases.seconds.get("cpl", 0.0)  # it lies inside
    measured |= {f"{phase}_s": phases.seconds[phase] for phase in PHASES if phase in phases.seconds}
    size = measure(skeleton(model_config(run.model), run), run.max_pixels)
    text = batch.rollouts.prompts.inputs["input_ids"].shape[1] - size.image_tokens
    width = 4 if policy.dtype == torch.float32 else 2
    measured["predicted_gb"] = max(estimate(size, run, width=width, question_tokens=text).values()) / 1e9
    return measured | {"peak_gb": max(phases.peak.values()) / 1e9, "tokens_per_s": sampled / phases.seconds["rollouts"]}


def provenance() -> dict[str, Any]:
    """What made a row."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine()
    versions = {"torch": torch.__version__, "transformers": transformers.__version__, "bitsandbytes": bitsandbytes.__version__}
    return {"gpu": gpu, **versions, "commit": commit}


def child(case: str, plain: bool, folder: str) -> None:
    """Measure one case under its cap; print a row as JSON."""
    cap = CAPACITY[CASES[case][0]]
    torch.cuda.set_per_process_memory_fraction((cap - CONTEXT) / torch.cuda.get_device_properties(0).total_memory)
    run = replace(settings(case, plain), model=folder)
    row = {"case": case, "implementation": "plain" if plain else "cppo_ref", "model": settings(case, plain).model}
    row |= {"cap_gb": cap / 1e9, "group_size": run.group_size, "new_tokens": run.max_new_tokens, "max_pixels": run.max_pixels}
    try:
        row |= {"fits": True, **run_case(run, plain)}
    except torch.OutOfMemoryError:
        row |= {"fits": False}
    print(json.dumps(row | provenance()))


def main() -> int:
    """Measure every case in a process of its own and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=list(CASES), choices=list(CASES), help="cases to measure")
    parser.add_argument("--plain", action="store_true", help="also a plain one: unchunked, ungated, nothing recomputed")
    parser.add_argument("--output", default=str(TARGET), help="CSV to write")
    parser.add_argument("--child", nargs=2, metavar=("MODE", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    quiet()
    if not torch.cuda.is_available():
        print("gpu_memory: no GPU here, and nothing else can measure this: run it where torch sees one", file=sys.stderr)
        return 2
    if options.child:
        child(options.only[0], options.child[0] == "plain", options.child[1])
        return 0
    rows: list[dict[str, Any]] = []
    total = torch.cuda.get_device_properties(0).total_memory
    with tempfile.TemporaryDirectory() as place:
        for case in options.only:
            if CAPACITY[CASES[case][0]] > total:
                print(f"{case}: left out, this GPU has {total / 1e9:.0f} GB", file=sys.stderr)
                continue
            name = settings(case, plain=False).model.split("/")[-1].removesuffix("-Instruct")
            folder = Path(place) / name
            if not folder.exists():
                fields = json.loads((ARCHITECTURES / f"{name}.json").read_text())
                with torch.device("cuda"):
                    random_model(fields, folder, dtype=torch.bfloat16)
                torch.cuda.empty_cache()  # the measured process must have the GPU to itself
            for mode in ("cppo_ref", "plain") if options.plain else ("cppo_ref",):
                command = [sys.executable, __file__, "--only", case, "--child", mode, str(folder)]
                result = subprocess.run(command, capture_output=True, text=True)
                if result.returncode:
                    print(f"{case} ({mode}) failed:\n{result.stderr[-2000:]}", file=sys.stderr)
                    continue
                rows.append(json.loads(result.stdout.splitlines()[-1]))
                print(json.dumps(rows[-1]), flush=True)
                write(rows, Path(options.output))
    return int(len(rows) == 0)


def write(rows: list[dict[str, Any]], path: Path) -> None:
    """The table so far."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, restval="")
        writer.writeheader()
        writer.writerows({k: round(v, 3) if isinstance(v, float) else v for k, v in row.items()} for row in rows)


if __name__ == "__main__":
    sys.exit(main())
