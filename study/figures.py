"""The study's pictures: paired differences as forest plots, in code names or in words, and a map of where CPPO helps."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure

from cppo_ref.pictures.plots import BLACK, BLUE, GREEN, ORANGE, PURPLE, VERMILION, style
from study.analysis import MARGIN, Difference, bootstrap_interval

BASE_COLORS = {"tiny": BLUE, "robust": GREEN, "hallucinating": ORANGE, "shortcut": PURPLE}
MARKERS = {"tiny": "o", "robust": "s", "hallucinating": "D", "shortcut": "^"}
SERIES_LOOKS = ((BLUE, "o"), (ORANGE, "D"), (GREEN, "s"))
REGIME_MAP = LinearSegmentedColormap.from_list("regime", [VERMILION, "#ffffff", BLUE])


def forest_plot(
    differences: Sequence[Difference], *, metric: str = "avg@8 on shifted images", margin: float = MARGIN
) -> Figure:
    """Each difference with its 95 % interval: one line per pair of arms, one marker and colour per base model.

    The grey band is ±`margin`, the differences that count as equal.
    """
    pairs = list(dict.fromkeys((one.arm, one.other) for one in differences))
    bases = list(dict.fromkeys(one.base for one in differences))
    with style():
        fig, ax = plt.subplots(figsize=(8.5, 1.2 + 0.42 * len(pairs) * max(len(bases), 1) ** 0.7))
        ax.axvspan(-margin, margin, color="#e4e4e4", zorder=0, label=f"equal (±{margin:g})")
        ax.axvline(0, color=BLACK, lw=1)
        for number, base in enumerate(bases):
            found = [one for one in differences if one.base == base]
            offset = 0.6 * ((number + 0.5) / len(bases) - 0.5)
            y = np.array([pairs.index((one.arm, one.other)) for one in found]) + offset
            x = np.array([one.value for one in found])
            reach = np.abs(np.array([[one.value - one.low for one in found], [one.high - one.value for one in found]]))
            look = {"fmt": MARKERS.get(base, "o"), "color": BASE_COLORS.get(base, BLACK), "capsize": 3, "ms": 6, "lw": 1.8}
            ax.errorbar(x, y, xerr=reach, label=f"base: {base}", **look)
        ax.set_yticks(range(len(pairs)), [f"{arm} − {other}" for arm, other in pairs])
        ax.set(ylim=(len(pairs) - 0.5, -0.5), xlabel=f"difference in {metric}, paired by seed, 95 % interval")
        ax.locator_params(axis="x", nbins=6)  # labels with three digits and a sign
        ax.legend(loc="upper left", bbox_to_anchor=(1.01, 1), fontsize=9)
    return fig


def leads_plot(
    panels: Mapping[str, Mapping[str, Mapping[str, Difference]]],
    *,
    label: str,
    margin: float = MARGIN,
    hollow: Sequence[Difference] = (),
) -> Figure:
    """Leads in points, hundredths of a share, with their 95 % intervals, for readers who know no code names.

    Args:
        panels: title -> line -> series -> difference; all titles and lines in words. All panels have the same lines.
        label: of the x axis.
        margin: half the width of the grey band, the differences that count as equal.
        hollow: drawn with hollow markers, such as those without a verdict.
    """
    lines = list(next(iter(panels.values())))
    series = list(dict.fromkeys(name for panel in panels.values() for found in panel.values() for name in found))
    height = 1.5 + len(lines) * (0.2 + 0.2 * len(series))
    with style():
        fig, axes = plt.subplots(1, len(panels), figsize=(2.6 + 3.4 * len(panels), height), sharex=True, sharey=True)
        for ax, (title, panel) in zip(np.atleast_1d(axes), panels.items(), strict=True):
            assert list(panel) == lines, "panels show different lines"
            ax.axvspan(-100 * margin, 100 * margin, color="#e4e4e4", zorder=0)
            ax.axvline(0, color=BLACK, lw=1)
            for number, name in enumerate(series):
                color, marker = SERIES_LOOKS[number]
                found = [(y, panel[line][name]) for y, line in enumerate(lines) if name in panel[line]]
                y = np.array([place for place, _ in found]) + 0.6 * ((number + 0.5) / len(series) - 0.5)
                value, low, high = (
                    100 * np.array([getattr(one, field) for _, one in found]) for field in ("value", "low", "high")
                )
                reach = np.abs([value - low, high - value])
                look = {"fmt": marker, "color": color, "capsize": 3, "ms": 6, "lw": 1.8}
                ax.errorbar(value, y, xerr=reach, label=name, **look)
                pale = [one in hollow for _, one in found]
                ax.plot(value[pale], y[pale], marker, color=color, mfc="white", ms=6, zorder=4)
            ax.set(title=title, ylim=(len(lines) - 0.5, -0.5), xlabel=label)
        first = np.atleast_1d(axes)[0]
        first.set_yticks(range(len(lines)), lines)
        fig.legend(*first.get_legend_handles_labels(), loc="outside lower center", ncols=len(series))
    return fig


def levels_plot(panels: Mapping[str, Mapping[str, np.ndarray]], *, rows: int, before: Mapping[str, float]) -> Figure:
    """How many answers in 100 are right: a dot per seed, the mean with its 95 % interval, a dotted line before training.

    Args:
        panels: title -> arm, in words -> shares, one per seed; all panels have the same arms. Filled row by row.
        rows: of panels.
        before: title -> share before training.
    """
    arms = list(next(iter(panels.values())))
    looks = ((ORANGE, "o"), (GREEN, "s"), (PURPLE, "^"), (BLUE, "D"))
    with style():
        fig, axes = plt.subplots(rows, len(panels) // rows, figsize=(10, 1.2 + 2 * rows), sharey=True, sharex="row")
        for ax, (title, panel) in zip(axes.flat, panels.items(), strict=True):
            ax.axvline(100 * before[title], color=BLACK, lw=1.2, ls=":")
            for y, (arm, (color, marker)) in enumerate(zip(arms, looks, strict=True)):
                shares = 100 * panel[arm]
                ax.plot(shares, np.full(len(shares), y + 0.28), ".", color=color, alpha=0.5, ms=4)
                mean, (low, high) = shares.mean(), bootstrap_interval(shares)
                ax.errorbar(mean, y, xerr=[[mean - low], [high - mean]], fmt=marker, color=color, capsize=3, ms=7, lw=2)
            ax.set(title=title, ylim=(len(arms) - 0.4, -0.6))
        for ax in axes[-1]:
            ax.set_xlabel("right answers in 100, sampled")
        for ax in axes[:, 0]:
            ax.set_yticks(range(len(arms)), arms)
    return fig


def arms_plot(panels: Mapping[str, Sequence[Difference]], *, margin: float = MARGIN, limit: float = 0.12) -> Figure:
    """Many arms on one base: a panel per metric, a line per arm, its difference with the 95 % interval.

    Args:
        panels: label of the metric -> differences of the same arms in the same order.
        margin: half the width of the grey band, the differences that count as equal.
        limit: an interval that reaches beyond ± this is written at the edge instead.
    """
    pairs = [(one.arm, one.other) for one in next(iter(panels.values()))]
    with style():
        fig, axes = plt.subplots(1, len(panels), figsize=(3 + 3.1 * len(panels), 1.1 + 0.32 * len(pairs)), sharey=True)
        for ax, (label, found) in zip(np.atleast_1d(axes), panels.items(), strict=True):
            assert [(one.arm, one.other) for one in found] == pairs, "panels show different arms"
            ax.axvspan(-margin, margin, color="#e4e4e4", zorder=0)
            ax.axvline(0, color=BLACK, lw=1)
            for y, one in enumerate(found):
                color = BLUE if one.low > 0 else VERMILION if one.high < 0 else "#777777"
                if max(abs(one.low), abs(one.high)) > limit:
                    side, text = np.sign(one.value), f"◄ {one.interval}" if one.value < 0 else f"{one.interval} ►"
                    ax.text(side * limit, y, text, ha="left" if side < 0 else "right", va="center", color=color, fontsize=8)
                    continue
                ax.plot([one.low, one.high], [y, y], color=color, lw=1.8)
                ax.plot(one.value, y, "^" if one.low > 0 else "v" if one.high < 0 else "o", color=color, ms=6)
            ax.set(xlabel=f"difference in {label}", ylim=(len(pairs) - 0.5, -0.5), xlim=(-1.02 * limit, 1.02 * limit))
        np.atleast_1d(axes)[0].set_yticks(range(len(pairs)), [f"{arm} − {other}" for arm, other in pairs], fontsize=9)
    return fig


def regime_map(
    cells: Mapping[tuple[str, str], tuple[Difference, str]], *, metric: str = "avg@8 on shifted images", limit: float = 0.15
) -> Figure:
    """Where it helps: a row per arm, a column per base; the colour is the difference, the word the verdict.

    Args:
        cells: (row name, column name) -> (difference, verdict); a pair that is not there was not measured.
        metric: what the difference is of.
        limit: differences beyond ± this have the strongest colour.
    """
    rows, columns = (list(dict.fromkeys(key[axis] for key in cells)) for axis in (0, 1))
    values = np.full((len(rows), len(columns)), np.nan)
    for (row, column), (found, _) in cells.items():
        values[rows.index(row), columns.index(column)] = found.value
    with style():
        fig, ax = plt.subplots(figsize=(2.6 + 1.3 * len(columns), 1.4 + 0.6 * len(rows)))
        shown = ax.imshow(values, cmap=REGIME_MAP, norm=Normalize(-limit, limit), aspect="auto")
        for (row, column), (found, word) in cells.items():
            dark = abs(found.value) > 0.7 * limit
            place = columns.index(column), rows.index(row)
            ax.text(
                *place, f"{found.value:+.3f}\n{word}", ha="center", va="center", fontsize=9, color="white" if dark else BLACK
            )
        for row, column in np.argwhere(np.isnan(values)):
            ax.text(column, row, "not run", ha="center", va="center", fontsize=9, color="#777777")
        ax.set_xticks(range(len(columns)), columns)
        ax.set_yticks(range(len(rows)), rows)
        ax.grid(False)
        fig.colorbar(shown, ax=ax).set_label(f"difference in\n{metric}", fontsize=9)
    return fig
