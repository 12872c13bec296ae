"""Write data/method.png: the method in one picture, which notebook 00 shows.

Paper: describes the step in words and equations.
Here:  one figure: one image becomes three views, one policy reads all three, two losses learn from what it says.
Why:   a drawing made by code changes with the code; its pictures, advantages and KL values are computed, not typed.
"""

from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyBboxPatch, Rectangle
from PIL import Image

from cppo_ref.grpo import group_advantages
from cppo_ref.perturbations import noise_patches, rotation
from cppo_ref.pictures.plots import BLACK, BLUE, GREEN, ORANGE, SHIFT_MAP, SHIFT_NORM, VERMILION, save_figure, style
from cppo_ref.worlds.shapes import COLORS, draw

WIDTH, HEIGHT = 132, 64  # drawing units; ten are an inch
CELLS = ["red", "none", "blue", "none", "red", "none", "green", "none", "yellow"]
COMPLETIONS = ("red none blue … red:2", "red red blue … red:3", "red none red … red:3")
REWARDS = (1.0, 0.1, 0.1)  # 0.9 · correct + 0.1 · format
SHIFTS = (1.3, 0.5, 1.1, 0.4, 0.05)  # nats; an example, as are the beliefs below
SELECTED = (True, False, True, False, False)
# what the policy says of the first cell (red, green, blue, yellow, none) under each view
BELIEFS = {"I⁺": (0.76, 0.06, 0.06, 0.06, 0.06), "I": (0.92, 0.02, 0.02, 0.02, 0.02), "I⁻": (0.30, 0.15, 0.16, 0.15, 0.24)}
Point = tuple[float, float]
FRAMES = {"I": BLACK, "I⁺": BLUE, "I⁻": VERMILION}
BARS = [*(tuple(channel / 255 for channel in color) for color in COLORS.values()), (0.6, 0.6, 0.6)]


def method_diagram() -> Figure:
    """CPPO in one figure, 13 by 6.4 inches, made to be read at half that size.

    Image → three views → one policy → completions, rewards and advantages; entropy shift → perception tokens; contrast →
    GRPO + λ · CPL → update.
    """
    with style(), plt.rc_context({"figure.constrained_layout.use": False, "font.size": 13}):
        fig = plt.figure(figsize=(WIDTH / 10, HEIGHT / 10))
        ax = fig.add_axes((0, 0, 1, 1))
        _draw_views(ax)
        ax.set(xlim=(0, WIDTH), ylim=(0, HEIGHT), aspect="equal")
        ax.axis("off")
        _draw_policy(ax)
        _draw_rollouts(ax)
        _draw_detection(ax)
        _draw_contrast(ax)
        _draw_losses(ax)
    return fig


def _draw_views(ax: Axes) -> None:
    objects = [{"color": color, "kind": "square" if color == "blue" else "circle"} for color in CELLS]
    image = draw(objects, np.random.default_rng(1), size=156)
    lanes: list[tuple[str, Image.Image, float, str]] = [
        ("I", image, 44, "image  I"),
        ("I⁻", noise_patches(image, np.random.default_rng(3), 2.0), 23, "I⁻  hides evidence"),
        ("I⁺", rotation(image, np.random.default_rng(5), 1.5), 4, "I⁺  keeps evidence"),
    ]
    for name, picture, bottom, title in lanes:
        ax.imshow(picture, extent=(6, 19, bottom, bottom + 13), interpolation="nearest")
        ax.add_patch(Rectangle((6, bottom), 13, 13, fill=False, edgecolor=FRAMES[name], lw=3))
        ax.text(12.5, bottom + 14.6, title, ha="center", va="center", weight="bold", color=FRAMES[name])
        arrow(ax, (19.6, bottom + 6.5), (25, bottom + 6.5))
        if name != "I":
            arrow(ax, (5.6, 50.5), (2, 50.5), (2, bottom + 6.5), (5.4, bottom + 6.5), color=FRAMES[name])
    ax.text(12.5, 41.9, "q: how many red?", ha="center", va="center", style="italic")


def _draw_policy(ax: Axes) -> None:
    box(ax, (25.4, 4), (11, 53), "#f2f2f2", "#666666")
    ax.text(30.9, 36, "one\npolicy\nπ", ha="center", va="center", weight="bold", fontsize=17)
    ax.text(30.9, 22, "a VLM in\n4 bits with\nLoRA\nadapters", ha="center", va="center")
    for height in (50.5, 29.5, 10.5):
        arrow(ax, (36.8, height), (41, height))


def _draw_rollouts(ax: Axes) -> None:
    _title(ax, 42, 61, 1, "G completions")
    _title(ax, 74.5, 61, 2, "reward r")
    _title(ax, 90, 61, 3, "advantage A")
    advantages = group_advantages(torch.tensor(REWARDS), len(REWARDS)).tolist()
    for number, (text, reward, advantage) in enumerate(zip(COMPLETIONS, REWARDS, advantages, strict=True)):
        bottom = 53.6 - 4.9 * number
        _strip(ax, 42, bottom, text.split())
        color = GREEN if advantage > 0 else VERMILION
        ax.text(79, bottom + 1.9, f"{reward:.1f}", ha="center", va="center", color=color, weight="bold")
        ax.text(95, bottom + 1.9, f"{advantage:+.2f}".replace("-", "−"), ha="center", va="center", color=color, weight="bold")
        arrow(ax, (82.5, bottom + 1.9), (90, bottom + 1.9))
    arrow(ax, (100, 50.5), (107, 50.5))


def _draw_detection(ax: Axes) -> None:
    _title(ax, 42, 38.5, 4, "entropy shift  ΔH = H⁻ − H")
    _strip(ax, 42, 30.5, COMPLETIONS[0].split(), SHIFTS, SELECTED)
    ax.text(42, 27.6, "the same tokens, scored again under I⁻", va="center", style="italic")
    arrow(ax, (74, 32.4), (79, 32.4))
    ax.text(80, 32.4, "perception tokens:\nlargest ΔH (framed)", va="center", weight="bold")
    arrow(ax, (95, 42.5), (95, 36))
    ax.text(96.2, 40, "A > 0", va="center")
    arrow(ax, (90, 28.8), (90, 23.5))


def _draw_contrast(ax: Axes) -> None:
    _title(ax, 42, 21, 5, "contrast at every perception token")
    for number, (name, belief) in enumerate(BELIEFS.items()):
        left = 43.5 + 22 * number
        ax.bar(left + 2.3 * np.arange(5) + 1, 10 * np.array(belief), 2, bottom=6, color=BARS)
        ax.plot([left - 0.5, left + 11.7], [6, 6], color=FRAMES[name], lw=2.5)
        ax.text(left + 5.6, 3.9, f"π(·|{name})", ha="center", va="center", weight="bold", color=FRAMES[name])
    for center, name, other, wish in ((59.6, "KL⁺", "I⁺", "pull closer"), (82, "KL⁻", "I⁻", "push apart")):
        color = FRAMES[other]
        ax.text(center, 14.8, f"{name} = {_divergence(other):.2f}", ha="center", va="center", color=color, weight="bold")
        ax.text(center, 11.6, wish, ha="center", va="center", color=color)
        head(ax, (center - 4, 8.8), (center + 4, 8.8), "<->", color)
    arrow(ax, (101, 10.5), (107, 10.5))


def _divergence(name: str) -> float:
    anchor, view = np.array(BELIEFS["I"]), np.array(BELIEFS[name])
    return float((anchor * np.log(anchor / view)).sum())


def _draw_losses(ax: Axes) -> None:
    losses = [
        (44, ORANGE, "GRPO", "raise what has A > 0,\nlower what has A < 0"),
        (4, BLUE, "CPL", "softplus\n((KL⁺ − KL⁻) / τ)"),
    ]
    for bottom, color, name, note in losses:
        box(ax, (107.4, bottom), (21, 13), "#ffffff", color)
        ax.text(117.9, bottom + 10, name, ha="center", va="center", weight="bold", fontsize=16, color=color)
        ax.text(117.9, bottom + 4.6, note, ha="center", va="center")
    box(ax, (107.4, 24), (21, 13), "#f2f2f2", "#666666")
    _title(ax, 111.5, 34, 6, "update")
    ax.text(117.9, 28.4, "GRPO + λ · CPL\ninto the adapters", ha="center", va="center")
    arrow(ax, (117.9, 43.4), (117.9, 37.8), color=ORANGE)
    arrow(ax, (117.9, 17.6), (117.9, 23.2), color=BLUE)
    arrow(ax, (129, 30.5), (130.8, 30.5), (130.8, 1.2), (30.9, 1.2), (30.9, 3.4))
    ax.text(118, 2.4, "next step", ha="center", va="center", style="italic")


def _strip(
    ax: Axes, left: float, bottom: float, tokens: Sequence[str], shifts: Sequence[float] = (), framed: Sequence[bool] = ()
) -> None:
    for number, token in enumerate(tokens):
        width = 1.05 * len(token) + 1.6
        face = SHIFT_MAP(SHIFT_NORM(shifts[number])) if shifts else "#ffffff"
        bold = bool(framed) and framed[number]
        edge, line = (BLACK, 2.5) if bold else ("#bbbbbb", 0.8)
        ax.add_patch(Rectangle((left, bottom), width, 3.8, facecolor=face, edgecolor=edge, lw=line, zorder=3 if bold else 2))
        weight = "bold" if bold else "normal"
        ax.text(left + width / 2, bottom + 1.8, token, ha="center", va="center", family="monospace", weight=weight, zorder=4)
        left += width + 0.3


def _title(ax: Axes, left: float, height: float, number: int, text: str) -> None:
    ax.add_patch(Circle((left + 1.4, height), 1.5, color="#444444"))
    ax.text(left + 1.4, height - 0.1, str(number), ha="center", va="center", color="white", weight="bold", fontsize=12)
    ax.text(left + 4, height, text, va="center", weight="bold", fontsize=14)


def box(ax: Axes, corner: Point, size: Point, face: str, edge: str) -> None:
    shape = "round,pad=0,rounding_size=1.2"
    ax.add_patch(FancyBboxPatch(corner, *size, boxstyle=shape, facecolor=face, edgecolor=edge, lw=2.2))


def arrow(ax: Axes, start: Point, *stops: Point, color: str = "#444444") -> None:
    """Straight pieces from `start` through `stops`, the last with a head."""
    path = [start, *stops]
    ax.plot([x for x, _ in path[:-1]], [y for _, y in path[:-1]], color=color, lw=1.8, solid_joinstyle="miter")
    head(ax, path[-2], path[-1], "-|>,head_width=0.35,head_length=0.6", color)


def head(ax: Axes, start: Point, end: Point, shape: str, color: str) -> None:
    look = {"arrowstyle": shape, "color": color, "lw": 1.8, "shrinkA": 0, "shrinkB": 0}
    ax.annotate("", xy=end, xytext=start, arrowprops=look)


if __name__ == "__main__":
    print(save_figure(method_diagram(), Path(__file__).parents[1] / "data" / "method.png"))
