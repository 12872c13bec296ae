"""Write data/llava.png and data/nf4_lora.png: what the tiny VLM is made of, and what 4 bits and LoRA do to one of its layers.

Paper: names its models.
Here:  two figures drawn from the committed model: its config gives the sizes, its weights are the ones that are rounded.
Why:   "patches", "projector", "NF4" and "adapter" are words until one has seen them.
"""

import json
from pathlib import Path

import bitsandbytes.functional as bnb
import matplotlib as mpl
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from method_diagram import arrow, box
from safetensors.torch import load_file

from cppo_ref.config import CPPOConfig
from cppo_ref.examples.loading import split_rows
from cppo_ref.pictures.plots import BLUE, GREEN, ORANGE, SHIFT_MAP, save_figure, style

DATA = Path(__file__).parents[1] / "data"
MODEL = DATA / "tiny-vlm"
CONFIG = json.loads((MODEL / "config.json").read_text())
LAYER = "language_model.model.layers.0.self_attn.q_proj.weight"
BLOCK = 64  # weights that share one scale
GREY = "#f2f2f2"


def llava() -> Figure:
    """From picture and question to the next word: patches, vision tower, projector, language model; 13 by 4.6 inches."""
    row = split_rows("test", count=13)[12]
    vision, text = CONFIG["vision_config"], CONFIG["text_config"]
    side = vision["image_size"] // vision["patch_size"]
    with style(), plt.rc_context({"figure.constrained_layout.use": False, "font.size": 12}):
        fig = plt.figure(figsize=(13, 4.6))
        ax = fig.add_axes((0, 0, 1, 1))
        ax.imshow(row["image"], extent=(2, 24, 21, 43), interpolation="nearest")
        for line in range(side + 1):
            ax.plot([2, 24], [21 + 22 * line / side] * 2, [2 + 22 * line / side] * 2, [21, 43], color="white", lw=2.5)
            ax.plot([2, 24], [21 + 22 * line / side] * 2, [2 + 22 * line / side] * 2, [21, 43], color="black", lw=0.8)
        patch, count = vision["patch_size"], side**2
        ax.text(13, 18.6, f"{side}×{side} patches of {patch}×{patch} pixels", ha="center", va="center")
        ax.set(xlim=(0, 130), ylim=(0, 46), aspect="equal")
        ax.axis("off")
        stages = [
            (
                29,
                "vision tower",
                f"CLIP, {vision['num_hidden_layers']} layers,\n{vision['hidden_size']} numbers a patch,\nLoRA adapters",
                GREEN,
            ),
            (54, "projector", "two linear layers:\nfrom what is seen\nto word vectors", ORANGE),
        ]
        for left, name, note, color in stages:
            stage(ax, (left, 24), (20, 16), name, note, color)
        for start in (24.6, 49.4):
            arrow(ax, (start, 32), (start + 4, 32))
        arrow(ax, (64, 23.6), (64, 16))
        words = ["<user>", *["▦"] * count, *row["question"].replace("?", " ?").split(), "<assistant>"]
        tokens(ax, words)
        note = f"Llama, {text['num_hidden_layers']} layers,\nweights in 4 bits (NF4),\nLoRA adapters"
        stage(ax, (79, 24), (47, 16), "language model", note, BLUE)
        arrow(ax, (104, 16), (104, 23.6))
        arrow(ax, (121, 40.4), (121, 43.2))
        ax.text(119.5, 42.6, "next word: none, green, red, …", ha="right", va="center", weight="bold")
    return fig


def stage(ax: Axes, corner: tuple[float, float], size: tuple[float, float], name: str, note: str, color: str) -> None:
    """A named box with a note."""
    box(ax, corner, size, "#ffffff", color)
    middle = corner[0] + size[0] / 2
    ax.text(middle, corner[1] + size[1] - 3, name, ha="center", va="center", weight="bold", color=color, fontsize=14)
    ax.text(middle, corner[1] + size[1] / 2 - 2, note, ha="center", va="center")


def tokens(ax: Axes, words: list[str]) -> None:
    """The prompt as the language model gets it: words, and one vector for each patch."""
    left = 3.0
    for word in words:
        width = 3.2 if word == "▦" else 1.35 * len(word) + 2.2
        face = ORANGE if word == "▦" else GREY
        ax.add_patch(Rectangle((left, 9.5), width, 5.4, facecolor=face, edgecolor="#666666", lw=0.8))
        if word != "▦":
            ax.text(left + width / 2, 12.1, word, ha="center", va="center", family="monospace", fontsize=11)
        left += width + 0.25
    pictured = words.count("▦")
    ax.text(
        3, 5.6, f"the prompt: {pictured} vectors that stand for the picture (orange), and the words around them", va="center"
    )


def nf4_lora() -> Figure:
    """One linear layer: its weights between the 16 values of NF4, before and after rounding, and the adapter beside them."""
    weight = load_file(MODEL / "model.safetensors")[LAYER].float()
    packed, state = bnb.quantize_4bit(weight, blocksize=BLOCK, quant_type="nf4")
    rounded = bnb.dequantize_4bit(packed, state)
    levels = state.code
    scaled = weight.reshape(-1, BLOCK) / weight.reshape(-1, BLOCK).abs().amax(dim=1, keepdim=True)
    with style():
        fig, axes = plt.subplots(1, 5, figsize=(13, 3.3), width_ratios=[1.9, 1, 1, 1, 1.5])
        axes[0].hist(scaled.flatten().numpy(), bins=80, color="#bbbbbb")
        for level in levels.tolist():
            axes[0].axvline(level, color=BLUE, lw=1)
        axes[0].set(xlabel=f"weight / largest of its {BLOCK}", ylabel="weights", title="NF4 has 16 values (blue)")
        limit = weight[:16, :16].abs().max()
        for ax, values, title in zip(
            axes[1:4], (weight, rounded, weight - rounded), ("W, 32 bits", "NF4(W), 4 bits", "W − NF4(W)"), strict=True
        ):
            ax.imshow(values[:16, :16], cmap=SHIFT_MAP, vmin=-limit, vmax=limit)
            ax.set(title=title, xticks=[], yticks=[])
            ax.grid(False)
        adapter(axes[4], *weight.shape)
    return fig


def adapter(ax: Axes, outputs: int, inputs: int) -> None:
    """W, B and A to scale, and what is kept of each."""
    rank, alpha = CPPOConfig().lora_rank, CPPOConfig().lora_alpha
    for corner, size, face, name in [
        ((0, 0), (inputs, outputs), "#dddddd", f"NF4(W)\n{outputs}×{inputs}\nfrozen"),
        ((inputs + 56, 0), (rank, outputs), BLUE, "B"),
        ((inputs + 86, outputs - rank), (inputs, rank), BLUE, "A"),
    ]:
        ax.add_patch(Rectangle(corner, *size, facecolor=face))
        color = "white" if face == BLUE else "black"
        ax.text(corner[0] + size[0] / 2, corner[1] + size[1] / 2, name, ha="center", va="center", color=color)
    ax.text(inputs + 28, outputs / 2, f"+ {alpha // rank} ·", ha="center", va="center", fontsize=13)
    ax.text(
        inputs + 86,
        outputs / 2,
        f"trained: rank {rank},\n{rank * (outputs + inputs):,} numbers\nbeside {outputs * inputs:,}",
        va="center",
    )
    ax.set(xlim=(-4, 2 * inputs + 90), ylim=(-4, outputs + 4), aspect="equal", title="y = NF4(W) x + (α/r) · B A x")
    ax.axis("off")


if __name__ == "__main__":
    mpl.use("Agg")
    for name, figure in (("llava", llava()), ("nf4_lora", nf4_lora())):
        print(save_figure(figure, DATA / f"{name}.png"))
