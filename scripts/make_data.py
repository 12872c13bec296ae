"""Write the shape world's splits again; the committed ones are these, to the byte.

python scripts/make_data.py FOLDER
"""

import sys
from pathlib import Path

import datasets
import numpy as np

from cppo_ref.perturbations import blank, preserve
from cppo_ref.worlds.shapes import LEVELS, sample_row
from cppo_ref.worlds.splits import SHIFT_STRENGTH, SPLITS, WORLD_SEED

FEATURES = datasets.Features(
    {
        "image": datasets.Image(),
        "question": datasets.Value("string"),
        "answer": datasets.Value("string"),
        "objects": datasets.List({"color": datasets.Value("string"), "kind": datasets.Value("string")}),
    }
)


def make_split(split: str, level: str) -> datasets.Dataset:
    """Generate a split of the shape world: the same rows, to the byte, in any process.

    test_shift and test_blank hold the test split's questions: under one of the view families that CPPO trains with (colour
    jitter, perspective, rotation; a perspective leaves every other picture as it is), and with one grey for every image.
    """
    base = "test" if split.startswith("test") else split
    rng = np.random.default_rng([WORLD_SEED, list(LEVELS).index(level), list(SPLITS).index(base)])
    rows = [sample_row(rng, LEVELS[level]) for _ in range(SPLITS[base])]
    for row in rows:
        if split == "test_shift":
            row["image"] = preserve(row["image"], rng, strength=SHIFT_STRENGTH)
        if split == "test_blank":
            row["image"] = blank(row["image"], rng)
    return datasets.Dataset.from_list(rows, features=FEATURES)


def write_splits(folder: Path) -> None:
    """Write every split of every level as `folder`/LEVEL/SPLIT.parquet."""
    for level in LEVELS:
        (folder / level).mkdir(parents=True, exist_ok=True)
        for split in SPLITS:
            make_split(split, level).to_parquet(folder / level / f"{split}.parquet")


if __name__ == "__main__":
    if len(sys.argv) != 2 or Path(sys.argv[1]).exists():
        sys.exit("give the name of a new folder: python scripts/make_data.py FOLDER")
    write_splits(Path(sys.argv[1]))
