"""The demonstration: the tiny VLM before and after a short training, as a table and a picture."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cppo_ref.config import CPPOConfig, setting
from cppo_ref.evaluation import completion_labels, evaluate_split, sample_answers
from cppo_ref.examples.loading import split_rows
from cppo_ref.pictures.plots import plot_before_after, plot_training_curves, save_figure
from cppo_ref.runs.checkpoints import free_name
from cppo_ref.runs.report import before_after_table
from cppo_ref.training import train
from cppo_ref.vlm.policy import Policy, load_policy, policy_for

SPLITS = ("test", "test_shift", "test_blank")


@dataclass(frozen=True)
class DemoOptions:
    """Train the tiny VLM for a few minutes and compare it with what it was."""

    method: str = setting("cppo", "cppo, grpo, or the name of a preset")
    steps: int = setting(0, "training steps; 0: 80, hard 200")
    seed: int = setting(0, "seed of everything")
    images: int = setting(150, "test images per split, 8 completions each")
    level: str = setting("easy", "easy or hard")
    output: str = setting("runs/demo", "run folder; a number is added if it is taken")


def run_demo(options: DemoOptions) -> Path:
    """Evaluate, train, evaluate, print the table and save the figures; returns the run folder."""
    preset = "cppo-ref" if options.method == "cppo" else options.method
    pace = {"steps": 200, "learning_rate": 3e-4} if options.level == "hard" else {"steps": 80}  # at 6e-4 it collapses
    config = CPPOConfig.preset(
        preset,
        **pace | ({"steps": options.steps} if options.steps else {}),
        seed=options.seed,
        level=options.level,
        unpack=True,
        output=str(free_name(Path(f"{options.output}-{options.method}"))),
    )
    rows = {split: split_rows(split, options.level, options.images) for split in SPLITS}
    print(f"1/3  the policy before training: {len(rows['test'])} images per split, 8 completions each")
    base = policy_for(config)
    before = {split: evaluate_split(base, rows[split], seed=options.seed) for split in SPLITS}
    held = sum(p.numel() * p.itemsize for p in base.language.parameters() if not p.requires_grad) / 1e6
    print(f"2/3  training with {preset}: NF4 QLoRA, {config.steps} steps of {config.prompts_per_step}×{config.group_size}")
    print(f"     (for speed, the frozen 4-bit weights are unpacked in memory: {held:.0f} MB)")
    result = train(config)
    print("3/3  the policy after training")
    trained = load_policy(config.model, adapter=str(result.adapter), unpack=True)
    after = {split: evaluate_split(trained, rows[split], seed=options.seed) for split in SPLITS}
    print(before_after_table(before, after))
    examples = [_example(row, {"before": base, "after": trained}) for row in (rows["test"][:1] + rows["test_shift"][1:3])]
    comparison = plot_before_after(before, after, examples, f"{options.method} after")
    figure = save_figure(comparison, result.output / "before_after.png")
    curves = save_figure(plot_training_curves({options.method: result.history}), result.output / "curves.png")
    print(f"\nfigures: {figure}, {curves}\nadapter: {result.adapter}")
    return result.output


def _example(row: dict[str, Any], policies: dict[str, Policy]) -> tuple[Any, dict[str, Any]]:
    completions = {name: sample_answers(policy, [row], samples=1, seed=3)[0] for name, policy in policies.items()}
    return row["image"], {name: completion_labels(policies[name], rollouts)[0] for name, rollouts in completions.items()}
