"""The rows of the second study's worlds: drawn when they are needed, each a pure function of (world, split, number)."""

from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

from cppo_ref.perturbations import blank, preserve
from cppo_ref.worlds.shapes import Level
from study.pretraining import PretrainOptions, corrupt
from study.worlds.common import World
from study.worlds.unseen import UNSEEN

SEED = 2601_00502
SPLITS = ("train", "validation", "test")
PRETRAINING_NOISE = (8.0, 48.0)  # grey levels, from picture to picture
LESSONS = 0.5  # share of the pretraining rows that are lessons, where they differ from answers
NOISE = {"eyes": 75.0, "rooms": 40.0}  # grey levels, of every row below: chosen by the bases' acceptance

Rows = list[dict[str, Any]]


def world_rows(world: World, split: str, count: int) -> Rows:
    """The first `count` rows of a split."""
    number = SPLITS.index(split)
    return [world.sample_row(np.random.default_rng([SEED, number, i]), NOISE[world.name], True) for i in range(count)]


def under_trained_views(world: World, rows: Rows) -> Rows:
    """The same questions under a view family that CPPO trains with, drawn again until the picture changes."""
    return _changed(rows, 1, lambda image, rng: preserve(image, rng, world.preserving))


def under_unseen_views(rows: Rows) -> Rows:
    """The same questions, each under one of the families of `UNSEEN`, in turn."""
    families = list(UNSEEN.values())
    return [_changed([row], 2 + i, families[i % len(families)])[0] for i, row in enumerate(rows)]


def under_blank_views(rows: Rows) -> Rows:
    """The same questions with one grey picture for all."""
    return _changed(rows, 0, blank)


def _changed(rows: Rows, stream: int, view: Callable[[Image.Image, np.random.Generator], Image.Image]) -> Rows:
    changed = []
    for i, row in enumerate(rows):
        rng, image = np.random.default_rng([SEED, len(SPLITS), stream, i]), row["image"]
        while image.tobytes() == row["image"].tobytes():
            image = view(row["image"], rng)
        changed.append(row | {"image": image})
    return changed


def pretraining_example(world: World, rng: np.random.Generator, level: Level, options: PretrainOptions) -> dict[str, Any]:
    """A row of `world` as pretraining takes it: some noise, half of the pictures occluded or cropped, the truth as text."""
    row = world.sample_row(rng, rng.uniform(*PRETRAINING_NOISE), False)
    row |= {"image": corrupt(row["image"], rng), "completion": world.completion(row)}
    if world.lesson(row) != (row["question"], row["completion"]) and rng.random() < LESSONS:
        row["question"], row["completion"] = world.lesson(row)
    return row
