"""Pictures: one style, one colour scale for the entropy shift, one set of colours for methods, on every page."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

# Okabe–Ito: told apart with any colour vision
BLACK, ORANGE, SKY, GREEN, YELLOW, BLUE, VERMILION, PURPLE = (
    "#000000", "#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7",
)  # fmt: skip
METHOD_COLORS = {"grpo": ORANGE, "cppo": BLUE, "before": "#999999"}
SHIFT_LIMIT = 1.5  # nats; every heatmap uses −limit … +limit
SHIFT_NORM = Normalize(-SHIFT_LIMIT, SHIFT_LIMIT)
SHIFT_MAP = LinearSegmentedColormap.from_list("entropy shift", [SKY, "#ffffff", VERMILION])
STYLE = Path(__file__).with_name("course.mplstyle")


def style() -> Any:
    """The style of every figure, as a context: `with style(): …`."""
    return plt.style.context(STYLE)


def show(alt: str, figure: Figure | None = None) -> None:
    """Show a figure (None: the current one) in a notebook, with the description `alt` for screen readers, and close it."""
    from IPython.display import display  # there wherever a notebook runs

    figure = figure or plt.gcf()
    display(figure, metadata={"image/png": {"alt": alt}})
    plt.close(figure)


def show_image(ax: Axes, image: Image.Image, title: str, *, edge: str = "#999999") -> None:
    """Draw an image with its title and without axes; pixels stay sharp."""
    ax.imshow(image, interpolation="nearest")
    ax.set_title(title, fontsize=10)
    ax.set(xticks=[], yticks=[])
    ax.grid(False)
    ax.spines[:].set(visible=True, color=edge)


def draw_tokens(ax: Axes, tokens: Sequence[str], *, faces: Iterable[Any], outlined: Sequence[bool], columns: int = 44) -> None:
    """Lay tokens out as boxes that wrap after `columns` characters and at "\\n"; `outlined` ones are framed and bold."""
    font: dict[str, Any] = {"ha": "center", "va": "center", "family": "monospace", "fontsize": 9}
    x, line = 0.0, 0
    for token, face, outline in zip(tokens, faces, outlined, strict=True):
        width = len(token) + 1.2
        if x + width > columns or token == "\n":
            x, line = 0.0, line + 1
        if token == "\n":
            continue
        edge = BLACK if outline else "#d0d0d0"
        ax.add_patch(Rectangle((x + 0.1, line + 0.1), width - 0.2, 0.8, facecolor=face, edgecolor=edge, lw=1.6 * outline + 0.4))
        ax.text(x + width / 2, line + 0.53, token.replace("$", r"\$"), weight="bold" if outline else "normal", **font)
        x += width
    ax.set(xlim=(0, columns), ylim=(line + 1.1, 0))
    ax.axis("off")


def plot_heatmap(
    tokens: Sequence[str], shift: Sequence[float], selected: Sequence[bool], views: Mapping[str, Image.Image], title: str = ""
) -> Figure:
    """A completion coloured by entropy shift (nats), perception tokens framed, below the views that it was scored under."""
    with style():
        fig = plt.figure(figsize=(9, 4.4))
        top, bottom = fig.subfigures(2, 1, squeeze=False, height_ratios=[1.25, 1]).flat
        for ax, (name, image) in zip(top.subplots(1, len(views)), views.items(), strict=True):
            show_image(ax, image, name)
        ax = bottom.subplots()
        draw_tokens(ax, tokens, faces=SHIFT_MAP(SHIFT_NORM(np.asarray(shift))), outlined=selected)
        bar = fig.colorbar(plt.cm.ScalarMappable(SHIFT_NORM, SHIFT_MAP), ax=ax, shrink=0.9)
        bar.set_label("entropy shift ΔH (nats)")
        fig.suptitle(title, fontsize=11)
    return fig


def plot_perturbations(image: Image.Image, views: Mapping[str, Image.Image], preserving: Sequence[str]) -> Figure:
    """The original beside its views; the names in `preserving` are framed as preserving, the others as removing."""
    with style():
        lines = -(-(len(views) + 1) // 5)
        fig, grid = plt.subplots(lines, 5, figsize=(9, 2.15 * lines))
        axes = grid.flatten()
        for ax in axes[len(views) + 1 :]:
            ax.axis("off")
        show_image(axes[0], image, "original", edge=BLACK)
        for ax, (name, view) in zip(axes[1:], views.items(), strict=False):
            show_image(ax, view, name.replace("_", " "), edge=BLUE if name in preserving else VERMILION)
            ax.set_xlabel("preserving" if name in preserving else "removing", fontsize=9)
    return fig


def plot_training_curves(histories: Mapping[str, Sequence[Mapping[str, float]]], smooth: int = 5) -> Figure:
    """Accuracy, CPL, KL and dead groups over the steps, a moving mean of `smooth` steps on top of the raw values."""
    panels = {
        "accuracy": "share of right completions",
        "cpl": "CPL (nats)",
        "kl": "KL to reference (nats)",
        "zero_variance_groups": "share of dead groups",
    }
    with style():
        fig, axes = plt.subplots(1, len(panels), figsize=(13, 3))
        for ax, (key, label) in zip(axes, panels.items(), strict=True):
            for number, (name, history) in enumerate(histories.items()):
                values = np.array([step[key] for step in history])
                color = METHOD_COLORS.get(name, (BLUE, ORANGE, GREEN, PURPLE)[number % 4])
                ax.plot(values, color=color, alpha=0.25, lw=1)
                mean = np.convolve(values, np.ones(smooth) / smooth, mode="valid")
                ax.plot(np.arange(len(mean)) + smooth - 1, mean, color=color, lw=2, label=name)
            ax.set(xlabel="step", ylabel=label)
        axes[0].legend()
    return fig


def plot_before_after(
    before: Mapping[str, Any], after: Mapping[str, Any], examples: Sequence[tuple[Image.Image, Mapping[str, Any]]], name: str
) -> Figure:
    """What training changed: accuracy per split with 95 % intervals, and completions of the same images before and after.

    `before` and `after`: split name -> SplitReport; `examples`: (image, {"before": token labels, "after": token labels}).
    """
    with style():
        fig = plt.figure(figsize=(12.5, 2.2 * len(examples)))
        left, right = fig.subfigures(1, 2, squeeze=False, width_ratios=[1, 1.9]).flat
        _bars(left.subplots(), {"before": before, name: after})
        axes = right.subplots(len(examples), 2, width_ratios=[1, 4.4], squeeze=False)
        for (picture, text), (image, completions) in zip(axes, examples, strict=True):
            show_image(picture, image, "")
            _completions(text, completions)
        right.suptitle("one sampled completion each; framed tokens name a cell wrongly", fontsize=10)
    return fig


def _bars(ax: Axes, reports: Mapping[str, Mapping[str, Any]]) -> None:
    for number, (label, splits) in enumerate(reports.items()):
        heights, low, high = np.array([[i.value, i.low, i.high] for i in (r.avg_at_k for r in splits.values())]).T
        x = np.arange(len(splits)) + 0.38 * (number - 0.5)
        color = METHOD_COLORS.get(label.split("-")[0], BLUE)
        ax.bar(x, heights, 0.36, yerr=[heights - low, high - heights], capsize=3, color=color, label=label)
        for place, height in zip(x, heights, strict=True):
            ax.text(place, 0.02, f"{height:.2f}", ha="center", fontsize=9, color="white", weight="bold")
    splits = next(iter(reports.values()))
    ax.set_xticks(range(len(splits)), [split.replace("test_", "").replace(" ", "\n") for split in splits])
    samples = next(iter(splits.values())).samples
    ax.set(ylabel=f"avg@{samples} (share right, 95 % interval)", ylim=(0, 1), xlabel="test images")
    ax.legend(loc="upper right")


def _completions(ax: Axes, completions: Mapping[str, Sequence[Any]]) -> None:
    tokens, faces, outlined = [], [], []
    for label, labels in completions.items():
        wrong = [t.kind == "perception" and t.right is False for t in labels]
        tokens += ["\n"] * bool(tokens) + [f"{label}:", *(t.token for t in labels)]
        faces += ["none"] * bool(faces) + ["#e8e8e8", *("#f7c6a8" if w else "#ffffff" for w in wrong)]
        outlined += [False] * bool(outlined) + [False, *wrong]
    draw_tokens(ax, tokens, faces=faces, outlined=outlined, columns=76)


def save_figure(fig: Figure, path: str | Path) -> Path:
    """Save a figure as PNG and close it."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    fig.savefig(path, dpi=130)
    plt.close(fig)
    return Path(path)
