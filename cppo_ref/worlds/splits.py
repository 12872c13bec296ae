"""The shape world's splits: committed files, the same to the byte as `scripts/make_data.py` makes them."""

from pathlib import Path

import datasets
import numpy as np
from PIL import Image

from cppo_ref.config import InputError
from cppo_ref.perturbations import blank, preserve
from cppo_ref.worlds.shapes import LEVELS, level_named, sample_row

SPLITS = {"train": 2000, "validation": 200, "test": 300, "test_shift": 300, "test_blank": 300}
FEATURES = datasets.Features(
    {
        "image": datasets.Image(),
        "question": datasets.Value("string"),
        "answer": datasets.Value("string"),
        "objects": datasets.List({"color": datasets.Value("string"), "kind": datasets.Value("string")}),
    }
)
SHIFT_STRENGTH = 1.2  # widens the range that CPPO's own preserving views are drawn from: most draws lie inside both
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


def make_split(split: str, level: str) -> datasets.Dataset:
    """Generate a split of the shape world: the same rows, to the byte, in any process.

    test_shift and test_blank hold the test split's questions: under one of the view families that CPPO trains with (colour
    jitter, perspective, rotation; a perspective leaves every other picture as it is), and with one grey for every image.
    """
    base = "test" if split.startswith("test") else split
    rng = np.random.default_rng([WORLD_SEED, list(LEVELS).index(level), list(SPLITS).index(base)])
    rows = [sample_row(rng, level_named(level)) for _ in range(SPLITS[base])]
    for row in rows:
        if split == "test_shift":
            row["image"] = shifted(row["image"], rng)
        if split == "test_blank":
            row["image"] = blank(row["image"], rng)
    return datasets.Dataset.from_list(rows, features=FEATURES)


def shifted(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """The shift of test_shift: colour jitter, perspective or rotation, drawn from a range 1.2 times as wide as CPPO's."""
    return preserve(image, rng, strength=SHIFT_STRENGTH)


def write_splits(folder: Path) -> None:
    """Write every split of every level as `folder`/LEVEL/SPLIT.parquet."""
    for level in LEVELS:
        (folder / level).mkdir(parents=True, exist_ok=True)
        for split in SPLITS:
            make_split(split, level).to_parquet(folder / level / f"{split}.parquet")
