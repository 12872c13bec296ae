"""The shape world's splits: committed files, the same to the byte as `scripts/make_data.py` makes them."""

from pathlib import Path

import datasets

from cppo_ref.config import InputError
from cppo_ref.worlds.shapes import LEVELS

SPLITS = {"train": 2000, "validation": 200, "test": 300, "test_shift": 300, "test_blank": 300}
SHIFT_STRENGTH = 1.2  # test_shift widens the range that CPPO's own preserving views are drawn from: most draws lie inside both
WORLD_SEED = 2601_00501


def data_folder() -> Path:
    """The course's data: beside the package in a checkout, inside it when installed from a wheel."""
    package = Path(__file__).parents[1]
    return next(folder for folder in (package / "data", package.parent / "data") if folder.exists())


def shape_split(split: str, level: str) -> datasets.Dataset:
    """The rows of a split; InputError if there is no such split or level."""
    if split not in SPLITS or level not in LEVELS:
        raise InputError(f"shapes split is {level}/{split}, expected {' or '.join(LEVELS)} and one of {', '.join(SPLITS)}")
    return datasets.Dataset.from_parquet(str(data_folder() / "shapes" / level / f"{split}.parquet"))  # pyright: ignore
