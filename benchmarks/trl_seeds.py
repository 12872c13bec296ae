"""The same training by `train` and by `CPPOTrainer`, seed by seed: data/results/trl_seeds.csv.

    python benchmarks/trl_seeds.py                                    # both engines, three seeds
    python benchmarks/trl_seeds.py --engines trl --seeds 10 --images 50

80 steps of the tiny VLM on the same rows in the same order, then avg@8 on the test pictures, plain and changed. Sampling
differs, so the runs of a pair are two draws of one training. What is in the table already is not run again. Seconds are those
of the CPU.
"""

import argparse
import csv
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import PrinterCallback

from benchmarks.measuring import RESULTS, provenance, shape_rows, write_table
from benchmarks.trl_arm import conversation, settings
from cppo_ref.config import CPPOConfig
from cppo_ref.evaluation import correctness, sample_answers
from cppo_ref.examples.loading import split_rows
from cppo_ref.rewards import reward
from cppo_ref.runs.commands import quiet
from cppo_ref.training import train
from cppo_ref.trl import OURS, CPPOTrainer, CPPOTrainerConfig
from cppo_ref.vlm.adapters import quicken_adapters
from cppo_ref.vlm.policy import load_policy

TARGET = RESULTS / "trl_seeds.csv"
COLUMNS = ("engine", "seed", "avg_at_8", "shift_avg_at_8", "images", "steps", "cpu_seconds", "commit", "versions")


def rewards(completions: list, answer: list[str], **others: Any) -> list[float]:
    """The paper's reward of each completion."""
    return [reward(said[0]["content"], right) for said, right in zip(completions, answer, strict=True)]


def train_with_trl(config: CPPOConfig) -> str:
    """The adapter of a run of `CPPOTrainer` that learns as `config` says, from the rows of `train` in their order."""
    policy = load_policy(config.model, quantize=config.quantize, lora=None, unpack=config.unpack)
    names = {name: getattr(config, name) for name in (*OURS, "seed")}
    others = names | {"use_bias_correction_kl": False}
    rows = [conversation(row) for step in shape_rows(config, config.steps) for row in step]
    trainer = CPPOTrainer(
        policy.model,
        rewards,
        settings(config, config.steps, policy.forbidden_ids, CPPOTrainerConfig, **others),
        Dataset.from_list(rows),
        processing_class=policy.processor,
        peft_config=LoraConfig(
            r=config.lora_rank, lora_alpha=config.lora_alpha, target_modules=policy.family.adapter_pattern("all")
        ),
    )
    quicken_adapters(trainer.model)  # as `train` does with weights that are held unpacked
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    trainer.save_model(config.output)
    return config.output


def measure(engine: str, seed: int, images: int, steps: int = 80) -> dict[str, Any]:
    """Train with one engine and evaluate."""
    start = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        config = CPPOConfig(seed=seed, steps=steps, unpack=True, eval_rows=0, output=f"{folder}/run")
        adapter = train_with_trl(config) if engine == "trl" else str(train(config, progress=False).adapter)
        policy = load_policy(config.model, adapter=adapter, unpack=True)
    row = {"engine": engine, "seed": seed, "images": images, "steps": steps, "cpu_seconds": round(time.process_time() - start)}
    for name, split in (("avg_at_8", "test"), ("shift_avg_at_8", "test_shift")):
        answers = sample_answers(policy, split_rows(split, count=images), samples=8, seed=seed)
        row[name] = round(float(correctness(answers).mean()), 4)
    return row | provenance()


def main() -> None:
    """Run what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engines", nargs="+", default=["trl", "train"], choices=["trl", "train"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[10, 11, 12])
    parser.add_argument("--images", type=int, default=300)
    parser.add_argument("--steps", type=int, default=80)
    parser.add_argument("--output", type=Path, default=TARGET)
    options = parser.parse_args()
    quiet()
    torch.set_num_threads(1)
    for seed in options.seeds:
        for engine in options.engines:
            done = list(csv.DictReader(options.output.open())) if options.output.exists() else []
            if (engine, str(seed)) not in {(row["engine"], row["seed"]) for row in done}:
                row = measure(engine, seed, options.images, options.steps)
                write_table(options.output, [row], COLUMNS, key=("engine", "seed"))
                print(row, flush=True)


if __name__ == "__main__":
    main()
