"""Write docs/images/training.gif: one picture's answer, step by step, while CPPO trains the tiny VLM. Seeded; minutes on a CPU.

Paper: shows curves.
Here:  a real run of the package's defaults; every fourth step the same picture is answered with the same draws.
Why:   a reader sees what a curve hides: which words were wrong, when they came right, and which depend on the picture.
"""

import io
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import torch
from PIL import Image

from cppo_ref.config import CPPOConfig
from cppo_ref.examples.loading import rows_for, split_rows, step_rows
from cppo_ref.pictures.explorers import Explorer
from cppo_ref.pictures.plots import BLUE, GREEN, SHIFT_MAP, SHIFT_NORM, VERMILION, draw_tokens, show_image, style
from cppo_ref.rewards import extract_boxed
from cppo_ref.runs.commands import quiet
from cppo_ref.step import cppo_step
from cppo_ref.vlm.policy import Policy, policy_for
from cppo_ref.worlds.shapes import label_tokens

ROOT = Path(__file__).parents[1]
CONFIG = CPPOConfig(steps=80, unpack=True)
PICTURE = 6  # of the shifted test pictures; of the first 14 the one that changes most
EVERY = 4  # steps between frames
STRENGTH = 3.0  # of the view that hides the picture, so that most cells are hidden


def frame(policy: Policy, row: dict[str, Any], accuracy: list[float]) -> Image.Image:
    """The picture, the accuracy of the steps so far, and the answer: coloured by ΔH, wrong cells framed."""
    explorer = Explorer(policy, row["image"], row["question"], seed=1)
    _, _, shift, _ = explorer.read(strength=STRENGTH)
    labels = label_tokens(explorer.rollouts.texts[0], policy.tokenizer, row)
    wrong = [label.kind == "perception" and label.right is False for label in labels]
    said = extract_boxed(explorer.rollouts.texts[0])
    with style(), plt.rc_context({"figure.constrained_layout.use": False}):
        fig = plt.figure(figsize=(6.4, 4.2), dpi=100)
        show_image(fig.add_axes((0.02, 0.47, 0.3, 0.44)), row["image"], row["question"])
        curve = fig.add_axes((0.45, 0.54, 0.52, 0.36))
        curve.plot(range(1, len(accuracy) + 1), accuracy, color=BLUE)
        curve.set(xlim=(0, CONFIG.steps), ylim=(0, 1), xlabel="training step", ylabel="share of right answers")
        colors = SHIFT_MAP(SHIFT_NORM(shift[: len(labels)].numpy()))
        draw_tokens(fig.add_axes((0.02, 0.1, 0.96, 0.28)), [label.token for label in labels], faces=colors, outlined=wrong)
        right = said == row["answer"]
        verdict = f"answer {said}: " + ("right" if right else f"wrong, it is {row['answer']}")
        fig.text(0.02, 0.03, verdict, color=GREEN if right else VERMILION, weight="bold", size=13)
        fig.text(0.02, 0.4, "framed: wrong about its cell; orange: depends on the picture", size=8)
        file = io.BytesIO()
        fig.savefig(file)
        plt.close(fig)
    return Image.open(file).convert("RGB")


def film(number: int = PICTURE) -> list[Image.Image]:
    """Train with `CONFIG`, and take a frame before the first step and after every fourth."""
    policy, rows, row = policy_for(CONFIG), rows_for(CONFIG), split_rows("test_shift", count=number + 1)[number]
    optimizer = torch.optim.AdamW(policy.trainable, lr=CONFIG.learning_rate, weight_decay=CONFIG.weight_decay)
    accuracy: list[float] = []
    frames = [frame(policy, row, accuracy)]
    for step in range(CONFIG.steps):
        optimizer.param_groups[0]["lr"] = CONFIG.learning_rate_at(step)
        metrics, _ = cppo_step(policy, optimizer, step_rows(rows, CONFIG.prompts_per_step, step, CONFIG.seed), CONFIG, step)
        accuracy.append(metrics.accuracy)
        if (step + 1) % EVERY == 0:
            frames.append(frame(policy, row, accuracy))
    return frames


def write(frames: list[Image.Image], path: Path) -> Path:
    """One palette for all frames; the first and the last stay longer."""
    both = Image.new("RGB", (frames[0].width, 2 * frames[0].height))
    both.paste(frames[0])
    both.paste(frames[-1], (0, frames[0].height))
    palette = both.quantize(128)
    pictures = [picture.quantize(palette=palette, dither=Image.Dither.NONE) for picture in frames]
    seconds = [2500, *[450] * (len(frames) - 2), 4000]
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=seconds, loop=0, optimize=True)
    return path


if __name__ == "__main__":
    mpl.use("Agg")
    quiet()
    print(write(film(), ROOT / "docs" / "images" / "training.gif"))
