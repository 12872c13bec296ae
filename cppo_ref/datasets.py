"""Rows {image, question, answer}: the shape world's committed splits, or any local or Hub dataset with such columns."""

import io
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from PIL import Image, UnidentifiedImageError

from cppo_ref.config import InputError
from cppo_ref.perturbations import blank, preserve
from cppo_ref.shapes import LEVELS, hinted, level_named, sample_row

SPLITS = {"train": 2000, "validation": 200, "test": 300, "test_shift": 300, "test_blank": 300}
COLUMNS = {"image": ("image", "images"), "question": ("question", "problem"), "answer": ("answer",)}
FEATURES = datasets.Features(
    {
        "image": datasets.Image(),
        "question": datasets.Value("string"),
        "answer": datasets.Value("string"),
        "objects": datasets.List({"color": datasets.Value("string"), "kind": datasets.Value("string")}),
    }
)
SHIFT_STRENGTH = 1.2  # of the authors' preserving views: stronger than any that CPPO trains with
WORLD_SEED = 2601_00501
HINT_RIGHT = 0.8  # share of right hints at level "shortcut"; none is right in its test_shift


def data_folder() -> Path:
    """The course's data: beside the package in a checkout, inside it when installed from a wheel."""
    package = Path(__file__).parent
    return next(folder for folder in (package / "data", package.parent / "data") if folder.exists())


def load_rows(source: str = "shapes", split: str = "train", level: str = "easy") -> datasets.Dataset:
    """Load a dataset whose rows `row_at` turns into {image, question, answer, …}.

    Args:
        source: "shapes"; a local .parquet, .json, .jsonl or .csv file; else the name of a Hub dataset.
        split: split of the shape world or of the Hub dataset; a local file has only its own rows.
        level: "easy", "hard" or "shortcut" (the easy pictures, with hints: `with_hints`), for the shape world.

    Raises:
        InputError: no such file, split or level; no image, question or answer column; no rows.
    """
    readers = {".parquet": "parquet", ".json": "json", ".jsonl": "json", ".csv": "csv"}
    suffix = Path(source).suffix
    if source == "shapes":
        rows = _shape_split(split, level)
    elif suffix in readers:
        if not Path(source).is_file():
            raise InputError(f"data is {source!r}, but there is no such file: give a path to a {suffix} file")
        rows = _read(readers[suffix], source)
    else:
        rows = _from_hub(source, split)
    if len(rows) == 0:
        raise InputError(f"data {source!r} has no rows: give a dataset with at least one")
    return _standard_columns(rows, source)


def _shape_split(split: str, level: str) -> datasets.Dataset:
    levels = [*LEVELS, "shortcut"]
    if split not in SPLITS or level not in levels:
        raise InputError(f"shapes split is {level}/{split}, expected {' or '.join(levels)} and one of {', '.join(SPLITS)}")
    if level != "shortcut":
        return _read("parquet", str(data_folder() / "shapes" / level / f"{split}.parquet"))
    if split == "test_shift":  # what shifts is the hint: the pictures are the test split's
        return with_hints(_shape_split("test", "easy"), 0.0)
    return with_hints(_shape_split(split, "easy"), HINT_RIGHT)


def with_hints(rows: datasets.Dataset, right: float) -> datasets.Dataset:
    """Easy rows whose questions hint at the answer; ⌊right · n + ½⌋ of the n hints are true, the same ones each time."""
    rng = np.random.default_rng([WORLD_SEED, len(rows), round(1000 * right)])
    true = rng.permutation(len(rows)) < int(right * len(rows) + 0.5)
    top = LEVELS["easy"].max_answer
    pairs = zip(rows["question"], rows["answer"], true, strict=True)
    questions = [hinted(question, int(answer), bool(told), top, rng) for question, answer, told in pairs]
    return rows.remove_columns("question").add_column("question", questions)  # pyright: ignore[reportCallIssue]


def _read(builder: str, path: str) -> datasets.Dataset:
    try:
        rows = datasets.load_dataset(builder, data_files=path, split="train")
    except Exception as error:  # datasets raises many kinds for an unreadable file
        if isinstance(error, StopIteration) or "no data" in str(error):
            raise InputError(f"data {path!r} has no rows: give a dataset with at least one") from error
        reason = _first_line(error.__cause__ or error)
        raise InputError(f"data file {path!r} could not be read as {builder}: {reason}") from error
    assert isinstance(rows, datasets.Dataset)
    return rows


def _from_hub(source: str, split: str) -> datasets.Dataset:
    try:
        rows = datasets.load_dataset(source, split=split)
    except Exception as error:
        raise InputError(
            f'data is {source!r}: not "shapes", no local file, and the Hub gave no split {split!r} ({_first_line(error)})'
        ) from error
    assert isinstance(rows, datasets.Dataset)
    return rows


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


def _standard_columns(rows: datasets.Dataset, source: str) -> datasets.Dataset:
    """Rename columns to image, question, answer."""
    for name, spellings in COLUMNS.items():
        found = next((spelling for spelling in spellings if spelling in rows.column_names), None)
        if found is None:
            raise InputError(f"data {source!r} has no {name} column: expected one of {', '.join(spellings)}")
        if found != name:
            rows = rows.rename_column(found, name)
    return rows


def row_at(rows: datasets.Dataset, index: int) -> dict[str, Any]:
    """Row `index` with its image opened; InputError names the row and the column if something is missing."""
    stored: Any = rows.with_format("arrow")[index]  # images undecoded, so that a bad one is named by its row
    row = stored.to_pylist()[0]
    for name in COLUMNS:
        if row[name] is None or row[name] == "" or row[name] == []:
            raise InputError(f"row {index} has no {name}: fill it or drop the row")
    try:
        row["image"] = open_image(row["image"])
    except InputError as error:
        raise InputError(f"row {index}, column image: {error}") from error
    row["question"], row["answer"] = str(row["question"]), str(row["answer"])
    return row


def open_image(source: Any) -> Image.Image:
    """Open a PIL image, a path, bytes, {bytes, path}, or a list of one of these.

    Raises:
        InputError: unreadable, or so many pixels that decoding it would be a decompression bomb.
    """
    if isinstance(source, Image.Image):
        return source
    if isinstance(source, Sequence) and not isinstance(source, str | bytes):
        if len(source) != 1:
            raise InputError(f"there are {len(source)} images, expected one per row")
        return open_image(source[0])
    if isinstance(source, dict):
        source = source.get("bytes") or source.get("path")
    if not source or not isinstance(source, str | bytes):
        raise InputError(f"image is {source!r}, expected a picture, its bytes or its path")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)  # Pillow refuses only twice its limit by itself
            image = Image.open(io.BytesIO(source) if isinstance(source, bytes) else source)
            image.load()
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise InputError(f"image refused as a decompression bomb ({error}): scale it down") from error
    except UnidentifiedImageError as error:
        raise InputError(f"image {source!r:.80} is in no format that Pillow knows: give a PNG or JPEG") from error
    except Exception as error:  # Pillow raises many kinds for a broken file
        raise InputError(f"image could not be read ({_first_line(error)}): give a PNG or JPEG") from error
    return image


def step_rows(rows: datasets.Dataset, count: int, step: int, seed: int) -> list[dict[str, Any]]:
    """The `count` rows of step `step`: consecutive rows of one seeded permutation per epoch, a function of its arguments."""
    picked = []
    for position in range(step * count, (step + 1) * count):
        epoch, place = divmod(position, len(rows))
        order = np.random.default_rng([seed, epoch]).permutation(len(rows))
        picked.append(row_at(rows, int(order[place])))
    return picked


def make_split(split: str, level: str) -> datasets.Dataset:
    """Generate a split of the shape world: the same rows, to the byte, in any process.

    test_shift and test_blank hold the test split's questions: under a stronger preserving view (colour jitter, perspective or
    rotation), and with the image replaced by its mean colour.
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
    """The held-out shift: colour jitter, perspective or rotation, stronger than in training."""
    return preserve(image, rng, strength=SHIFT_STRENGTH)


def write_splits(folder: Path) -> None:
    """Write every split of every level as `folder`/LEVEL/SPLIT.parquet."""
    for level in LEVELS:
        (folder / level).mkdir(parents=True, exist_ok=True)
        for split in SPLITS:
            make_split(split, level).to_parquet(folder / level / f"{split}.parquet")
