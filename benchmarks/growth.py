"""How the time of a step grows with the group, the completions, the prompt and the vocabulary, on the course's tiny VLM."""

import csv
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any
from unittest.mock import patch

import matplotlib.pyplot as plt
import numpy as np
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from benchmarks.measuring import Arm, provenance, turns
from cppo_ref import step as algorithm
from cppo_ref.config import CPPOConfig
from cppo_ref.examples.loading import split_rows
from cppo_ref.pictures.plots import METHOD_COLORS, style
from cppo_ref.vlm.quantization import model_path

COLUMNS = ("axis", "size", "method", "seconds", "n", "commit", "versions")
METHODS = {"grpo": 0.0, "cppo": CPPOConfig().cpl_weight}
LABELS = {
    "group": "completions per prompt, G",
    "completion": "completion tokens, T",
    "prompt": "prompt tokens, image included, W",
    "vocabulary": "vocabulary, V",
}
SIZES = {
    "group": (4, 8, 16, 32, 64, 128),
    "completion": (8, 16, 32, 64, 128, 256),
    "prompt": (48, 96, 192, 384, 768, 1536),
    "vocabulary": (40, 1_000, 4_000, 16_000, 64_000, 152_000),
}
FITTED = 3  # of the sizes, the largest: below them, costs that do not grow hide the slope


@dataclass(frozen=True)
class Sizes:
    """The sizes of a step of two prompts; all but one stay at these."""

    group: int = 8
    completion: int = 16
    prompt: int = 48
    vocabulary: int = 40


def enlarged_model(folder: Path, vocabulary: int) -> str:
    """The tiny VLM with room for long prompts and with `vocabulary` tokens, the new ones random; written to `folder`."""
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_pretrained(model_path("tiny"))
    model.config.text_config.max_position_embeddings = 4096
    if vocabulary > model.config.text_config.vocab_size:
        model.resize_token_embeddings(vocabulary)
    model.save_pretrained(folder)
    AutoProcessor.from_pretrained(model_path("tiny")).save_pretrained(folder)
    return str(folder)


def sized_arm(model: str, sizes: Sizes, method: str) -> Arm:
    """A policy whose completions never end before they have `sizes.completion` tokens."""
    run = CPPOConfig(model=model, quantize="none", unpack=True, cpl_weight=METHODS[method], prompts_per_step=2)
    run = replace(run, group_size=sizes.group, max_new_tokens=sizes.completion, micro_batch_size=2 * sizes.group)
    arm = Arm(replace(run, rollout_batch_size=2 * sizes.group))
    arm.policy.vlm.generation_config.eos_token_id = -1  # no token
    return arm


def sized_rows(arm: Arm, tokens: int) -> list[dict[str, Any]]:
    """Two rows whose questions are drawn out until the prompt has `tokens` tokens."""
    rows = split_rows("train", count=2)

    def length(row: dict[str, Any]) -> int:
        return arm.policy.encode([row["image"]], [row["question"]]).encoded["input_ids"].shape[1]

    missing = [tokens - length(row) for row in rows]
    assert min(missing) >= 0, f"the shortest prompts have {tokens - min(missing)} tokens"
    longer = [row | {"question": row["question"] + " red" * more} for row, more in zip(rows, missing, strict=True)]
    assert all(length(row) == tokens for row in longer)
    return longer


@contextmanager
def half_are_paid() -> Iterator[None]:
    """Inside, every other completion is worth 1, so that half of the rows are looked at, whatever the model writes."""
    paid = count()
    with patch.object(algorithm, "reward", lambda text, answer: float(next(paid) % 2)):
        yield


def seconds_of(sizes: Sizes, steps: int) -> dict[str, np.ndarray]:
    """CPU seconds [steps] of a step of each method at `sizes`, after one that is not counted."""
    with tempfile.TemporaryDirectory() as folder, half_are_paid():
        model = enlarged_model(Path(folder), sizes.vocabulary)
        arms = {method: sized_arm(model, sizes, method) for method in METHODS}
        rows = sized_rows(arms["grpo"], sizes.prompt)

        def take(method: str, step: int) -> None:
            metrics, batch = arms[method].step(rows, step)
            assert metrics.completion_tokens == sizes.completion
            assert batch.selected is None or batch.selected.any()

        return turns({method: lambda step, method=method: take(method, step) for method in METHODS}, steps, warm_up=1)


def table(rounds: int = 2, steps: int = 2) -> list[dict[str, Any]]:
    """The rows of data/results/growth.csv: medians over `rounds` sweeps, minutes apart, of `steps` steps with new policies."""
    points = [(axis, size) for axis, sizes in SIZES.items() for size in sizes]
    measured: dict[tuple[str, int, str], list[float]] = defaultdict(list)
    for _ in range(rounds):
        for axis, size in points:
            for method, seconds in seconds_of(replace(Sizes(), **{axis: size}), steps).items():
                measured[axis, size, method] += seconds.tolist()
    made_by, rows = {"n": rounds * steps} | provenance(), []
    for (axis, size, method), seconds in measured.items():
        rows.append({"axis": axis, "size": size, "method": method, "seconds": float(np.median(seconds))} | made_by)
    return rows


def exponent(sizes: np.ndarray, seconds: np.ndarray) -> tuple[float, float]:
    """(a, log c) of the least-squares fit seconds = c · size^a."""
    slope, intercept = np.polyfit(np.log(sizes), np.log(seconds), 1)
    return float(slope), float(intercept)


def draw(path: Path, target: Path) -> None:
    """Draw the table `path`: log-log, one panel per axis, exponents fitted to the largest sizes."""
    rows = list(csv.DictReader(path.open()))
    with style(), plt.rc_context({"font.size": 18}):
        figure, axes = plt.subplots(2, 2, figsize=(13, 10), sharey=True)
        for ax, axis in zip(axes.flat, SIZES, strict=True):
            for method, marker in (("cppo", "o"), ("grpo", "s")):
                chosen = [row for row in rows if (row["axis"], row["method"]) == (axis, method)]
                sizes, seconds = (np.array([float(row[name]) for row in chosen]) for name in ("size", "seconds"))
                slope, intercept = exponent(sizes[-FITTED:], seconds[-FITTED:])
                color = METHOD_COLORS[method]
                label = rf"{method.upper()}: {LABELS[axis][-1]}$^{{\mathregular{{{slope:.2f}}}}}$"
                ax.plot(sizes, seconds, marker, markersize=10, color=color, label=label)
                ax.plot(sizes[-FITTED:], np.exp(intercept) * sizes[-FITTED:] ** slope, color=color, linewidth=3)
            ax.set(xscale="log", yscale="log", xlabel=LABELS[axis])
            ax.set_xticks(sizes, [f"{int(size):,}" for size in sizes], rotation=30 if axis == "vocabulary" else 0)
            ax.set_yticks([0.1, 0.3, 1, 3], ["0.1", "0.3", "1", "3"])
            ax.minorticks_off()
            ax.legend(loc="upper left", title="line: growth of the three largest", title_fontsize=15)
        for ax in axes[:, 0]:
            ax.set_ylabel("CPU seconds of a step")
        figure.savefig(target)
        plt.close(figure)
