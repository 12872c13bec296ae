"""The demonstration: a tiny VLM with weak eyes before and after a short training, as a table and a picture.

The base is `eyes`: its errors are its own, and the detector works under the paper's views (data/results/worlds). It trains as
on anybody's data: from a Parquet file, which is written first.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import datasets

from cppo_ref.config import CPPOConfig, setting
from cppo_ref.evaluation import SplitReport, completion_labels, evaluate_split, sample_answers
from cppo_ref.pictures.plots import plot_before_after, plot_training_curves, save_figure
from cppo_ref.runs.checkpoints import free_name
from cppo_ref.runs.options import check_between
from cppo_ref.training import train
from cppo_ref.vlm.policy import Policy, load_policy, policy_for
from study.arms import ARMS, STEPS
from study.bases import base_folder
from study.worlds import WORLDS
from study.worlds.rows import under_blank_views, under_trained_views, under_unseen_views, world_rows

WORLD = WORLDS["eyes"]


@dataclass(frozen=True)
class DemoOptions:
    """Train a tiny VLM for a minute and compare it with what it was."""

    method: Literal["cppo", "grpo"] = setting("cppo", "cppo or grpo, with the settings that tuning chose for each")
    steps: int = setting(STEPS, "training steps")
    seed: int = setting(0, "seed of everything")
    images: int = setting(150, "test images per split, 8 completions each and the likeliest one")
    output: str = setting("runs/demo", "run folder; a number is added if it is taken")


def run_demo(options: DemoOptions) -> Path:
    """Evaluate, train, evaluate, print the table and save the figures; returns the run folder."""
    check_between(options, images=(1, 10**5))
    output = free_name(Path(f"{options.output}-{options.method}"))
    data = free_name(output.with_name(f"{output.name}-data")) / "train.parquet"  # one may stay of a run that was stopped early
    config = CPPOConfig(
        model=str(base_folder(WORLD.name)),
        data=str(data),
        **ARMS[f"{options.method}_tuned"].changes,
        instruction="none",  # the base knows the format
        max_new_tokens=WORLD.max_new_tokens,
        steps=options.steps,
        seed=options.seed,
        unpack=True,
        output=str(output),
    )
    write_training_file(data, config.steps * config.prompts_per_step)
    splits = demo_splits(options.images)
    print(f"1/3  the policy before training: {options.images} images per split, 8 completions each")
    base = policy_for(config)
    before = {name: evaluate_split(base, rows, seed=options.seed) for name, rows in splits.items()}
    held = sum(p.numel() * p.itemsize for p in base.language.parameters() if not p.requires_grad) / 1e6
    batch = f"{config.prompts_per_step}×{config.group_size}"
    print(f"2/3  training with {options.method}: NF4 QLoRA, {config.steps} steps of {batch} completions")
    print(f"     (for speed, the frozen 4-bit weights are unpacked in memory: {held:.0f} MB)")
    result = train(config)
    print("3/3  the policy after training")
    trained = load_policy(config.model, adapter=str(result.adapter), unpack=True)
    after = {name: evaluate_split(trained, rows, seed=options.seed) for name, rows in splits.items()}
    print(before_after_table(before, after))
    shown = [splits["plain"][0], *splits["unseen shifts"][1:3]]
    examples = [_example(row, {"before": base, "after": trained}) for row in shown]
    comparison = plot_before_after(before, after, examples, f"{options.method} after")
    figure = save_figure(comparison, result.output / "before_after.png")
    curves = save_figure(plot_training_curves({options.method: result.history}), result.output / "curves.png")
    print(f"\nfigures: {figure}, {curves}\nadapter: {result.adapter}")
    return result.output


def write_training_file(path: Path, count: int) -> None:
    """Write `count` training rows as a Parquet file in a new folder, as anybody's own data would come."""
    path.parent.mkdir(parents=True)
    rows = [{name: row[name] for name in ("image", "question", "answer")} for row in world_rows(WORLD, "train", count)]
    datasets.Dataset.from_list(rows).to_parquet(path)


def demo_splits(images: int) -> dict[str, list[dict[str, Any]]]:
    """The same questions four times: plain, under shifts that nothing trains with, under CPPO's own views, and one grey."""
    plain = world_rows(WORLD, "test", images)
    return {
        "plain": plain,
        "unseen shifts": under_unseen_views(plain),
        "trained views": under_trained_views(WORLD, plain),
        "blank": under_blank_views(plain),
    }


def before_after_table(before: dict[str, SplitReport], after: dict[str, SplitReport]) -> str:
    """Greedy accuracy, avg@k with its 95 % interval, and words seen rightly, of each split, before and after, as text."""
    samples = next(iter(before.values())).samples
    lines = [f"\n{'pictures':<15}{'greedy':<16}{f'avg@{samples} before':<23}{f'avg@{samples} after':<23}seen rightly"]
    for name, old in before.items():
        new = after[name]
        greedy, seen = (f"{a:.3f} → {b:.3f}" for a, b in ((old.greedy, new.greedy), (old.perception, new.perception)))
        lines.append(f"{name:<15}{greedy:<16}{old.avg_at_k!s:<23}{new.avg_at_k!s:<23}{seen}")
    return "\n".join(lines)


def _example(row: dict[str, Any], policies: dict[str, Policy]) -> tuple[Any, dict[str, Any]]:
    completions = {name: sample_answers(policy, [row], samples=1, seed=3)[0] for name, policy in policies.items()}
    return row["image"], {name: completion_labels(policies[name], rollouts)[0] for name, rollouts in completions.items()}
