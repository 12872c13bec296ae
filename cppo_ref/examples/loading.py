"""Where rows come from: the shape world's committed splits, a local file, an image folder, or the Hub; and in which order."""

import csv
import glob
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np

from cppo_ref.config import CPPOConfig, InputError
from cppo_ref.examples.rows import Rows, find_columns, first_line, instruction_text, row_at
from cppo_ref.worlds.splits import shape_split

READERS = {".parquet": "parquet", ".json": "json", ".jsonl": "json", ".csv": "csv"}


def load_rows(
    source: str = "shapes",
    split: str = "train",
    level: str = "easy",
    *,
    columns: Sequence[str] = (),
    image_folder: str = "",
    instruction: str = "auto",
) -> Rows:
    """Load a dataset whose rows `row_at` turns into {image, images, question, answer, …}.

    Args:
        source: "shapes"; a local .parquet, .json, .jsonl or .csv file; a folder of images with a metadata file; else the name
            of a Hub dataset.
        split: split of the shape world, of a folder or of the Hub dataset; a local file has only its own rows.
        level: "easy" or "hard", for the shape world.
        columns: which column holds what, such as "question=prompt", where its name is not a usual one.
        image_folder: where relative image paths start; empty: beside the data file.
        instruction: "auto", "none" or a text, as in CPPOConfig.

    Raises:
        InputError: no such file, split, level or folder; no image, question or answer column; no rows.
    """
    if image_folder and not Path(image_folder).is_dir():
        raise InputError(f"image_folder is {image_folder!r}, but there is no such folder: give one that image paths start in")
    file = _metadata_file(Path(source), split) or Path(source)
    if source == "shapes":
        table = shape_split(split, level)
    elif file.suffix in READERS:
        if not file.is_file() or "::" in str(file):  # to fsspec a chain of file systems
            raise InputError(f"data is {source!r}, but there is no such file: give a path to a {file.suffix} file")
        if split not in ("train", file.parent.name):
            print(f"{str(file)!r} has no splits: its {split!r} split is all of its rows")
        table = _read(READERS[file.suffix], str(file))
    elif file.is_file():
        raise InputError(f"data file {source!r} is not read: give a {', '.join(READERS)} file")
    else:
        table = _from_hub(source, split)
    if len(table) == 0:
        raise InputError(f"data {source!r} has no rows: give a dataset with at least one")
    found = find_columns(table.column_names, columns, source)
    beside = file.parent if file.is_file() else file if file.is_dir() else Path()  # the Hub: the working folder
    return Rows(table, found, Path(image_folder or beside), instruction_text(instruction, source))


def rows_for(config: CPPOConfig, split: str = "train") -> Rows:
    """The rows that a run with `config` trains on, before those with too long a prompt are dropped; or another split's."""
    if config.model == "tiny" and config.data != "shapes":
        print("model 'tiny' reads words outside the shape world as <unk>: for a real model take --profile")
    options = {name: getattr(config, name) for name in ("columns", "image_folder", "instruction")}
    return load_rows(config.data, split, config.level, **options)


def _metadata_file(folder: Path, split: str) -> Path | None:
    """The file that an image folder keeps its questions in, by the `datasets` convention: per split, or one for all."""
    places = [place / f"metadata{suffix}" for place in (folder / split, folder) for suffix in (".jsonl", ".csv", ".parquet")]
    return next((place for place in places if place.is_file()), None)


def _read(builder: str, path: str) -> datasets.Dataset:
    if builder == "csv":  # pandas would rename the second
        with open(path, newline="", encoding="utf-8", errors="replace") as file:
            header = next(csv.reader(file), [])
        if twice := [name for name in header if header.count(name) > 1]:
            raise InputError(f"data {path!r} has two columns {twice[0]!r}: rename one")
    try:
        return datasets.load_dataset(builder, data_files=glob.escape(path), split="train")  # a name, not a pattern
    except Exception as error:  # datasets raises many kinds for an unreadable file
        if isinstance(error, StopIteration) or "no data" in str(error):
            raise InputError(f"data {path!r} has no rows: give a dataset with at least one") from error
        reason = first_line(error.__cause__ or error)
        raise InputError(f"data file {path!r} could not be read as {builder}: {reason}") from error


def _from_hub(source: str, split: str) -> datasets.Dataset:
    try:
        return datasets.load_dataset(source, split=split)
    except Exception as error:
        if Path(source).is_dir():
            found = f"no split {split!r} was found in it ({first_line(error)})"
            raise InputError(f"data {source!r} is a folder without metadata.jsonl, .csv or .parquet, and {found}") from error
        raise InputError(
            f'data is {source!r}: not "shapes", no local file, and the Hub gave no split {split!r} ({first_line(error)})'
        ) from error


def step_rows(rows: Rows, count: int, step: int, seed: int) -> list[dict[str, Any]]:
    """The `count` rows of step `step`: see `step_numbers`."""
    return [row_at(rows, number) for number in step_numbers(len(rows), count, step, seed)]


def step_numbers(rows: int, count: int, step: int, seed: int) -> list[int]:
    """Which of `rows` rows step `step` takes: `count` of one seeded permutation per epoch, a function of the arguments."""
    places = (divmod(position, rows) for position in range(step * count, (step + 1) * count))
    return [int(np.random.default_rng([seed, epoch]).permutation(rows)[place]) for epoch, place in places]


def first_rows(rows: Rows, count: int | None = None) -> list[dict[str, Any]]:
    """The first `count` rows, or all there are."""
    return [row_at(rows, number) for number in range(len(rows))[:count]]


def split_rows(split: str, level: str = "easy", count: int | None = None) -> list[dict[str, Any]]:
    """The first `count` rows (all by default) of a split of the shape world."""
    if count is not None and count < 1:
        raise InputError(f"images is {count}, expected 1 or more")
    return first_rows(load_rows("shapes", split, level), count)
