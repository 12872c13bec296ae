"""Memory and time of a step on one GPU, phase by phase, under a hard limit: data/results/gpu_memory.csv.

    make gpu                                        # every profile, as CPPO, as GRPO, and as a plain implementation does it
    python benchmarks/gpu_memory.py --only 12gb     # one profile, CPPO
    python benchmarks/gpu_memory.py --dry           # tiny models on a CPU, no limit: does it run? Nothing of it is kept

Real architectures with random weights (no download), real QLoRA, rewards of 1 and 0 in turn so that half of the rows are looked
at. Each case is a process of its own: one that runs out of memory is a row that says so. Three steps; the last one counts.
A row is written as soon as it is measured, and one that this commit has measured on this GPU is not measured again.
"""

import argparse
import csv
import itertools
import json
import math
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import bitsandbytes
import torch
import transformers

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))
from tiny_families import make_family, random_model  # noqa: E402

from cppo_ref import step as algorithm  # noqa: E402
from cppo_ref.config import CPPOConfig  # noqa: E402
from cppo_ref.examples.loading import split_rows  # noqa: E402
from cppo_ref.runs.commands import quiet  # noqa: E402
from cppo_ref.vlm import chunks  # noqa: E402
from cppo_ref.vlm.costs import CARDS, step_seconds  # noqa: E402
from cppo_ref.vlm.devices import accelerator_for  # noqa: E402
from cppo_ref.vlm.memory import CONTEXT, estimate, measure  # noqa: E402
from cppo_ref.vlm.peaks import LiveTensors, read_peak, reset_peak  # noqa: E402
from cppo_ref.vlm.policy import policy_for  # noqa: E402
from cppo_ref.vlm.profiles import CAPACITY, PROFILES  # noqa: E402
from cppo_ref.vlm.quantization import ARCHITECTURES, model_config, skeleton  # noqa: E402

TARGET = ROOT / "data" / "results" / "gpu_memory.csv"
IMPLEMENTATIONS = ["cppo", "grpo", "plain"]
PHASES = ["load", "rollouts", "reference", "detection", "score", "cpl", "backward", "optimizer"]
COLUMNS = [
    "case",
    "implementation",
    "model",
    "cap_gb",
    "fits",
    "tokens_per_s",
    "step_s",
    "predicted_s",
    "peak_gb",
    "predicted_gb",
]
COLUMNS += [f"{phase}_{unit}" for phase in PHASES for unit in ("gb", "s")]
COLUMNS += [
    "dtype",
    "finite",
    "loss_scale",
    "prompts",
    "group_size",
    "new_tokens",
    "max_pixels",
    "gpu",
    "torch",
    "transformers",
    "bitsandbytes",
    "commit",
]


def settings(case: str, implementation: str, dry: bool = False) -> CPPOConfig:
    """The run of a case; plain: no recomputing, a whole group at a time, every row looked at."""
    run = replace(CPPOConfig(**PROFILES[case]), eval_rows=0, probe_rows=0)
    if implementation == "plain":
        run = replace(run, activation_checkpointing=False, micro_batch_size=8, advantage_gate=False)
    if implementation == "grpo":
        run = replace(run, cpl_weight=0.0)
    return replace(run, max_new_tokens=8, max_pixels=64 * 64, prompts_per_step=2, dtype="float32") if dry else run


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
    device = torch.device("cuda" if torch.cuda.is_available() and run.device != "cpu" else "cpu")
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
        start = phases.now()
        metrics, batch = algorithm.cppo_step(policy, optimizer, rows, run, step, accelerator=accelerator)
        whole = phases.now() - start
    sampled = int(batch.rollouts.completion_mask.sum())
    measured = {f"{phase}_gb": phases.peak[phase] / 1e9 for phase in PHASES if phase in phases.peak}
    phases.seconds["score"] -= phases.seconds.get("cpl", 0.0)  # it lies inside
    measured |= {f"{phase}_s": phases.seconds[phase] for phase in PHASES if phase in phases.seconds}
    size = measure(skeleton(model_config(run.model), run), run.max_pixels)
    text = batch.rollouts.prompts.inputs["input_ids"].shape[1] - size.image_tokens
    width = 4 if policy.dtype == torch.float32 else 2
    measured["predicted_gb"] = max(estimate(size, run, width=width, question_tokens=text).values()) / 1e9
    card = next((card for card in CARDS if device.type == "cuda" and card.split()[-1] in torch.cuda.get_device_name()), None)
    measured |= {"step_s": whole, "predicted_s": step_seconds(size, run, card) if card else None}
    scaler, values = accelerator.scaler, [value for p in policy.trainable for value in (p, p.grad) if value is not None]
    measured |= {"dtype": str(policy.dtype).removeprefix("torch."), "loss_scale": scaler.get_scale() if scaler else None}
    measured["finite"] = math.isfinite(metrics.grad_norm) and all(bool(value.isfinite().all()) for value in values)
    return measured | {"peak_gb": max(phases.peak.values()) / 1e9, "tokens_per_s": sampled / phases.seconds["rollouts"]}


def provenance() -> dict[str, Any]:
    """What made a row."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine()
    versions = {"torch": torch.__version__, "transformers": transformers.__version__, "bitsandbytes": bitsandbytes.__version__}
    return {"gpu": gpu, **versions, "commit": commit}


def child(case: str, implementation: str, folder: str, dry: bool) -> None:
    """Measure one case under its cap; print a row as JSON."""
    cap, run = CAPACITY[case], settings(case, implementation, dry)
    row = {"case": case, "implementation": implementation, "model": run.model, "cap_gb": cap / 1e9}
    row |= {"prompts": run.prompts_per_step, "group_size": run.group_size}
    row |= {"new_tokens": run.max_new_tokens, "max_pixels": run.max_pixels}
    run = replace(run, model=folder, device="cpu" if dry else "cuda")
    with LiveTensors() if dry else nullcontext():
        if not dry:
            torch.cuda.set_per_process_memory_fraction((cap - CONTEXT) / torch.cuda.get_device_properties(0).total_memory)
        row |= attempt(run, implementation == "plain")
    print(json.dumps(row | provenance()))


def attempt(run: CPPOConfig, plain: bool) -> dict[str, Any]:
    """What was measured, or that it did not fit."""
    try:
        return {"fits": True, **run_case(run, plain)}
    except torch.OutOfMemoryError:
        return {"fits": False}


def main() -> int:
    """Measure every case in a process of its own and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=list(PROFILES), choices=list(PROFILES), help="profiles to measure")
    parser.add_argument("--as", nargs="*", dest="implementations", default=["cppo"], choices=IMPLEMENTATIONS)
    parser.add_argument("--dry", action="store_true", help="tiny models on a CPU, no limit, no table kept")
    parser.add_argument("--output", default=str(TARGET), help="CSV to write")
    parser.add_argument("--child", metavar="FOLDER", help=argparse.SUPPRESS)
    options = parser.parse_args()
    quiet()
    if options.child:
        child(options.only[0], options.implementations[0], options.child, options.dry)
        return 0
    if not torch.cuda.is_available() and not options.dry:
        print(
            "gpu_memory: no GPU here, and nothing else can measure this: run it where torch sees one, or try --dry",
            file=sys.stderr,
        )
        return 2
    with tempfile.TemporaryDirectory() as place:
        target = Path(place) / "dry.csv" if options.dry else Path(options.output)
        return measure_all(options.only, options.implementations, options.dry, target, Path(place))


def measure_all(cases: list[str], implementations: list[str], dry: bool, target: Path, place: Path) -> int:
    """Add what is missing to the table `target`; 1 if a case failed otherwise than for want of memory."""
    rows, failed = list(csv.DictReader(target.open())) if target.exists() else [], 0
    here, identity = provenance(), ("case", "implementation", "gpu", "commit")
    total = float("inf") if dry else torch.cuda.get_device_properties(0).total_memory
    for case, implementation in itertools.product(cases, implementations):
        wanted = {"case": case, "implementation": implementation, "gpu": here["gpu"], "commit": here["commit"]}
        if any(all(row[key] == wanted[key] for key in identity) for row in rows):
            print(f"{case} ({implementation}): measured already")
            continue
        if CAPACITY[case] > total:
            print(f"{case}: left out, this GPU has {total / 1e9:.0f} GB", file=sys.stderr)
            continue
        command = [sys.executable, __file__, "--only", case, "--as", implementation, *(["--dry"] if dry else [])]
        result = subprocess.run([*command, "--child", str(model_folder(case, dry, place))], capture_output=True, text=True)
        if result.returncode:
            failed = 1
            print(f"{case} ({implementation}) failed:\n{result.stderr[-2000:]}", file=sys.stderr)
            continue
        rows = [row for row in rows if any(row[key] != wanted[key] for key in ("case", "implementation"))]
        rows.append(json.loads(result.stdout.splitlines()[-1]))
        print(json.dumps(rows[-1]), flush=True)
        write(rows, target)
    return failed


def model_folder(case: str, dry: bool, place: Path) -> Path:
    """The case's model with random weights, made once: its real architecture, or a tiny one of its family."""
    name = PROFILES[case]["model"].split("/")[-1].removesuffix("-Instruct")
    folder = place / name
    if not folder.exists():
        fields = json.loads((ARCHITECTURES / f"{name}.json").read_text())
        if dry:
            make_family(fields["model_type"], folder)
        else:
            with torch.device("cuda"):
                random_model(fields, folder, dtype=torch.bfloat16)
            torch.cuda.empty_cache()  # the measured process must have the GPU to itself
    return folder


def write(rows: list[dict[str, Any]], path: Path) -> None:
    """The table so far."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, restval="")
        writer.writeheader()
        writer.writerows({k: round(v, 3) if isinstance(v, float) else v for k, v in row.items()} for row in rows)


if __name__ == "__main__":
    sys.exit(main())
