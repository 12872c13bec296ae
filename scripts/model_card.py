"""Write the tiny VLM's card from its committed record and evaluation; with --check, exit with status 1 if it is not up to date.

The evaluation is made by: python -m cppo_ref evaluate --model data/tiny-vlm --report data/tiny-vlm/evaluation.json
"""

import json
import sys
from pathlib import Path

from blocks import write_or_check

FOLDER = Path(__file__).parent.parent / "data" / "tiny-vlm"
# ruff: noqa: E501 (the card is prose)
CARD = """---
license: apache-2.0
library_name: transformers
pipeline_tag: image-text-to-text
---

# The tiny VLM of cppo_ref

A `LlavaForConditionalGeneration` (CLIP vision tower, projector, Llama decoder) of {millions:.2f} million parameters that lists what it sees in
a small picture and counts it. It exists to study CPPO on a CPU: it has no other use.

## What it does

Measured by `python -m cppo_ref evaluate --model data/tiny-vlm` on {images} images per split, level {level}, seed {seed} (`evaluation.json`):

| images | avg@8 at temperature 1 [95 % interval] | greedy | perception tokens right | reasoning tokens right |
|---|---|---|---|---|
{splits}

The best constant guess earns {best_constant_guess:.3f}: on blank images the model does no better, so elsewhere it looks.
Blank images are one grey for all, so nothing of the picture is left to read.
Sampled at temperature 1 it names about a fifth of the cells wrongly although its likeliest answer is right. That was planted: {guess_percent:.0f} % of
the cells in its pretraining text are uniform guesses. It is no error of the eye, as a large VLM's may be.
It was never shown jitter, perspective or rotation, and is weak on shifted images.

The entropy shift as a detector of the true perception tokens (sampled completions, plain test images):

| removing view × strength | AUROC of ΔH | AUROC of ΔH/H⁻ | precision | recall |
|---|---|---|---|---|
{detector}

Strength 1: the authors' ranges, drawn our way; precision and recall are of the top half by ΔH.

## How it was made

`python -m study.pretraining --output data/tiny-vlm`: {steps} steps of {batch_size} fresh examples, AdamW, one-cycle to {learning_rate}, seed {seed_pretrain},
{minutes:.0f} minutes on {threads} CPU threads (torch {torch}; `pretraining.json`).

- Pictures: {hard_percent:.0f} % of the steps at the hard level (4×4), the others easy (3×3); half clean, 30 % occluded by 10–120 noise patches,
  20 % zoom-cropped, all with the labels of the clean picture.
- Text: the cells, row by row, then the count in the paper's format; {guess_percent:.0f} % of the listed cells are uniform guesses, counted without error.

Colours are words of a vocabulary of 40; shape kinds vary and are never asked.
"""


def card() -> str:
    """The card's text."""
    record = json.loads((FOLDER / "pretraining.json").read_text())
    report = json.loads((FOLDER / "evaluation.json").read_text())
    splits = [
        f"| {name} | {s['avg_at_k']['value']:.3f} [{s['avg_at_k']['low']:.3f}, {s['avg_at_k']['high']:.3f}] "
        f"| {s['greedy']:.3f} | {s['perception']:.3f} | {s['reasoning']:.3f} |"
        for name, s in report["splits"].items()
    ]
    detector = [
        f"| {name} | {d['auroc_absolute']:.3f} | {d['auroc_normalized']:.3f} | {d['precision']:.3f} | {d['recall']:.3f} |"
        for name, d in report["detector"].items()
    ]
    values = {**report, **record, "seed": report["seed"], "seed_pretrain": record["seed"]}
    values |= {"splits": "\n".join(splits), "detector": "\n".join(detector), "millions": record["parameters"] / 1e6}
    values |= {f"{name}_percent": 100 * record[key] for name, key in SHARES.items()}
    return CARD.format(**values, minutes=record["seconds"] / 60)


SHARES = {"hard": "hard_share", "guess": "guess_rate"}


if __name__ == "__main__":
    sys.exit(write_or_check({FOLDER / "README.md": card()}, __doc__))
