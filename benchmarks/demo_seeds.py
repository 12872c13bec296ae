"""The first study's pilot, both methods with some seeds at its learning rate, as a table: data/results/demo_seeds.csv.

    python benchmarks/demo_seeds.py --methods cppo grpo --seeds 0 1 2

One row per (method, seed, split), before and after training; a row that is already there is not run again, so a stopped
benchmark goes on where it was. Before training, both methods are the same policy.
"""

import argparse
import csv
import platform
import subprocess
import tempfile
import time
from pathlib import Path

import torch
import transformers

from cppo_ref.config import CPPOConfig
from cppo_ref.evaluation import evaluate_split
from cppo_ref.examples.loading import split_rows
from cppo_ref.runs.commands import quiet
from cppo_ref.training import train
from cppo_ref.vlm.policy import load_policy, policy_for
from study.arms import LEARNING_RATE

SPLITS = ("test", "test_shift", "test_blank")
TARGET = Path(__file__).parent.parent / "data" / "results" / "demo_seeds.csv"
COLUMNS = ["method", "seed", "split", "avg_at_8", "low", "high", "greedy", "perception", "reasoning", "images", "train_seconds"]
COLUMNS += ["steps", "torch", "transformers", "threads", "processor", "commit"]


def measure(method: str, seed: int, images: int) -> list[dict]:
    """Train `method` with `seed` ("base": not at all) and evaluate it on every split."""
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        preset = {"cppo": "cppo-ref", "base": "grpo"}.get(method, method)
        config = CPPOConfig.preset(preset, seed=seed, learning_rate=LEARNING_RATE, output=f"{folder}/run")
        policy = policy_for(config)
        if method != "base":
            policy = load_policy("tiny", adapter=str(train(config, progress=False).adapter))
        seconds = time.perf_counter() - start if method != "base" else 0.0
    rows = []
    for split in SPLITS:
        report = evaluate_split(policy, split_rows(split, count=images), seed=seed)
        numbers = {"avg_at_8": report.avg_at_k.value, "low": report.avg_at_k.low, "high": report.avg_at_k.high}
        numbers |= {"greedy": report.greedy, "perception": report.perception, "reasoning": report.reasoning}
        row = {"method": method, "seed": seed, "split": split, "images": images, "train_seconds": round(seconds, 1)}
        rows.append(row | {name: round(value, 4) for name, value in numbers.items()} | provenance(config))
    return rows


def provenance(config: CPPOConfig) -> dict:
    """What made a row."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    versions = {"torch": torch.__version__, "transformers": transformers.__version__, "threads": torch.get_num_threads()}
    return {"steps": config.steps, **versions, "processor": platform.machine(), "commit": commit}


def main() -> None:
    """Run what is missing and append it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", default=["base", "cppo", "grpo"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--images", type=int, default=300)
    options = parser.parse_args()
    quiet()
    done = set()
    if TARGET.exists():
        done = {(row["method"], int(row["seed"])) for row in csv.DictReader(TARGET.open())}
    for seed in options.seeds:
        for method in options.methods:
            if (method, seed) not in done:
                append(measure(method, seed, options.images))


def append(rows: list[dict]) -> None:
    """Add rows to the table, with its header if it is new."""
    TARGET.parent.mkdir(parents=True, exist_ok=True)
    new = not TARGET.exists()
    with TARGET.open("a", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        if new:
            writer.writeheader()
        writer.writerows(rows)
    for row in rows:
        print({name: row[name] for name in ("method", "seed", "split", "avg_at_8", "perception", "train_seconds")}, flush=True)


if __name__ == "__main__":
    main()
