"""Write the tables of README and docs/usage.md from the committed results; with --check, only compare."""

import csv
import sys
from pathlib import Path

from blocks import filled, write_or_check

from cppo_ref.config import CPPOConfig
from cppo_ref.vlm.memory import measure, peak
from cppo_ref.vlm.profiles import CAPACITY, PROFILES
from cppo_ref.vlm.quantization import model_config, skeleton

ROOT = Path(__file__).parent.parent
PAGES, RESULTS = (ROOT / "README.md", ROOT / "docs" / "usage.md"), ROOT / "data" / "results"


def demo_output() -> str:
    """What `make demo` printed."""
    return f"```\n{(RESULTS / 'demo_output.txt').read_text().strip()}\n```"


def times() -> str:
    """The table of measured durations."""
    with (RESULTS / "times.csv").open() as file:
        rows = list(csv.DictReader(file))
    lines = ["| what | minutes | machine |", "|---|---|---|"]
    return "\n".join(lines + [f"| {row['what']} | {float(row['seconds']) / 60:.1f} | {row['machine']} |" for row in rows])


def memory() -> str:
    """The profiles: what the estimate says, and what a GPU said."""
    path = RESULTS / "gpu_memory.csv"
    rows = list(csv.DictReader(path.open())) if path.exists() else []
    measured = {row["case"]: row for row in rows if row["implementation"] == "cppo"}
    lines = ["| profile | model | pixels, completion | estimated | measured |", "|---|---|---|---|---|"]
    for name, settings in PROFILES.items():
        run = CPPOConfig(**settings)
        needed = peak(measure(skeleton(model_config(run.model), run), run.max_pixels), run)
        side = round(run.max_pixels**0.5)
        seen = _measured(measured[name]) if name in measured else "not measured yet"
        task = f"{side}², {run.max_new_tokens} tokens"
        share = f"{needed / 1e9:.1f} GB of {CAPACITY[name] / 1e9:.0f}"
        lines.append(f"| `{name}` | {run.model.split('/')[-1]} | {task} | {share} | {seen} |")
    return "\n".join(lines)


def _measured(row: dict[str, str]) -> str:
    if row["fits"] != "True":
        return f"out of memory under {row['cap_gb']} GB on a {row['gpu']}"
    memory = f"{float(row['peak_gb']):.1f} GB of tensors ({float(row['predicted_gb']):.1f} predicted)"
    return f"{memory}, {float(row['step_s']):.0f} s a step on a {row['gpu']}"


SPEEDS = {
    "grpo_vs_trl": "a GRPO step here / one of TRL's `GRPOTrainer`, same tiny VLM and rows",
    "memory_vs_trl": "the same in peak memory above the loaded model",
    "update_vs_plain": "CPPO's update / three plain passes over every row, gated afterwards",
    "cppo_vs_grpo": "a CPPO step / a GRPO step, over a whole training",
}


def speed() -> str:
    """The ratios of benchmarks/speed.py."""
    with (RESULTS / "speed.csv").open() as file:
        rows = {row["name"]: row for row in csv.DictReader(file)}
    lines = ["| ratio | median [95 % interval] | n |", "|---|---|---|"]
    for name, meaning in SPEEDS.items():
        value, low, high = (float(rows[name][column]) for column in ("median_ratio", "low", "high"))
        lines.append(f"| {meaning} | {value:.2f} [{low:.2f}, {high:.2f}] | {rows[name]['n']} |")
    with (RESULTS / "phases.csv").open() as file:
        grpo, cppo = (float(row["gflop"]) for row in csv.DictReader(file) if row["phase"] == "whole")
    lines.append("")
    lines.append(
        f"A CPPO step costs more because its views need passes of their own, forward and backward: {cppo / grpo:.2f} times the"
    )
    lines.append("arithmetic of a GRPO step in the first ten steps ([phase by phase](../data/results/phases.csv)).")
    return "\n".join(lines)


BLOCKS = {"demo output": demo_output, "memory": memory, "times": times, "speed": speed}

if __name__ == "__main__":
    sys.exit(write_or_check({page: filled(page.read_text(), "scripts/readme_tables.py", BLOCKS) for page in PAGES}, __doc__))
