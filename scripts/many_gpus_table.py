"""Write the tables of docs/many-gpus.md: seconds per phase on 1, 2 and 8 GPUs, by arithmetic; both engines on the tiny VLM.

The model of a phase is that of `cppo_ref/vlm/costs.py`; here a GPU has its share of the rows, each completion its own prompt.
"""

import csv
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
from blocks import filled, write_or_check

from cppo_ref.config import CPPOConfig
from cppo_ref.vlm.costs import Work, step_work
from cppo_ref.vlm.memory import measure
from cppo_ref.vlm.profiles import PROFILES
from cppo_ref.vlm.quantization import model_config, skeleton

ROOT = Path(__file__).parent.parent
PAGE, RESULTS = ROOT / "docs" / "many-gpus.md", ROOT / "data" / "results"
STUDY = {"base": "tiny", "arm": "cppo-learning_rate=0.0006", "split": "test"}  # ten runs of `train` with these settings
NAMES = "avg_at_8", "shift_avg_at_8"
CARD, ROWS = "A100", 512
SET_UPS = {  # name: (GPUs, quantize, vLLM samples)
    "1 GPU, NF4": (1, "nf4", False),
    "2 GPUs, NF4, DDP": (2, "nf4", False),
    "8 GPUs, NF4, DDP": (8, "nf4", False),
    "8 GPUs, 16 bits, DDP": (8, "none", False),
    "8 GPUs, 16 bits, DDP, vLLM": (8, "none", True),
}


def seconds(gpus: int, quantize: str, vllm: bool) -> dict[str, float]:
    """Of each phase of a step on `ROWS` completions in all."""
    config = CPPOConfig(**PROFILES["12gb"] | {"quantize": quantize, "micro_batch_size": 8, "rollout_batch_size": ROWS})
    size = measure(skeleton(model_config(config.model), config), config.max_pixels)
    config = replace(config, prompts_per_step=ROWS // gpus, num_minibatches=1, num_epochs=1, kl_weight=CPPOConfig.kl_weight)
    object.__setattr__(config, "group_size", 1)  # TRL computes a prompt once for each of its completions
    work = step_work(size, config)
    if vllm:  # its kernels are launched from recorded graphs
        work["rollouts"] = Work(work["rollouts"].flop, work["rollouts"].moved, 0)
    twice = {"detection": 2}  # H is not noted while sampling
    return {phase: twice.get(phase, 1) * part.seconds(CARD) for phase, part in work.items()}


def phases() -> str:
    """The table of seconds."""
    lines = ["| set-up | rollouts | reference | detection | update | step |", "|---|---|---|---|---|---|"]
    for name, set_up in SET_UPS.items():
        found = seconds(*set_up)
        lines.append(f"| {name} | " + " | ".join(f"{s:.0f}" for s in (*found.values(), sum(found.values()))) + " |")
    return "\n".join(lines)


def engines() -> str:
    """Accuracies of `CPPOTrainer`'s runs, and of `train` with the same seeds; below, the range of the study's ten seeds."""
    with (RESULTS / "study.csv").open() as file:
        study = [row for row in csv.DictReader(file) if STUDY.items() <= row.items()]
    with (RESULTS / "trl_seeds.csv").open() as file:
        rows = list(csv.DictReader(file))
    runs = {("train", row["seed"]): row for row in study} | {(row["engine"], row["seed"]): row for row in rows}
    lines = ["| seed | plain: `train` | `CPPOTrainer` | changed: `train` | `CPPOTrainer` |", "|---|---|---|---|---|"]
    seeds = sorted(seed for engine, seed in runs if engine == "trl")
    values = np.array([[float(runs[engine, s][n]) for n in NAMES for engine in ("train", "trl")] for s in seeds])
    for seed, cells in zip([*seeds, "mean"], [*values, values.mean(axis=0)], strict=True):
        lines.append(f"| {seed} | " + " | ".join(f"{value:.3f}" for value in cells) + " |")
    plain, changed = (sorted(float(row[name]) for row in study) for name in NAMES)
    spans = [f"{of[0]:.3f} to {of[-1]:.3f}" for of in (plain, changed)]
    lines.append(f"| ten seeds of `train` | {spans[0]} | | {spans[1]} | |")
    return "\n".join(lines)


BLOCKS = {"phases": phases, "engines": engines}

if __name__ == "__main__":
    sys.exit(write_or_check({PAGE: filled(PAGE.read_text(), "scripts/many_gpus_table.py", BLOCKS)}, __doc__))
