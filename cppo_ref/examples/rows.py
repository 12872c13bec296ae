"""Rows: whatever a dataset calls its columns and however it wraps them, a row is {image, images, question, answer, …}.

Geometry3K holds pictures, ViRL39K paths to them; both mark in the question where a picture goes; ViRL39K boxes its answers and
CLEVR-count puts them in <answer> tags. Here that becomes a PIL image, a plain question and a plain answer, and a row that is
malformed is named by its index and its column.
"""

import io
import json
import math
import os
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import datasets
from datasets.config import HF_CACHE_HOME
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from cppo_ref.config import InputError
from cppo_ref.perturbations import MODES
from cppo_ref.rewards import extract_boxed
from cppo_ref.runs.checks import nearest

COLUMNS = {  # usual names, the first one found wins
    "image": ("image", "images", "file_name", "file_names"),
    "question": ("question", "problem"),
    "answer": ("answer", "solution"),
}
# The authors end every question with such a request (AReaL/cppo/dataset.py). The words are ours; what they ask for is what
# `rewards.format_reward` pays for.
INSTRUCTION = "Work it out between <think> and </think>, then give the final answer, and nothing else, in \\boxed{}."
MOST_PIXELS = 1 << 25  # decoded in about a second and 134 MB
MARKER = re.compile(r"\s*<image>\s*")
TAGGED = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)


@dataclass(frozen=True)
class Rows:
    """A dataset and how to read it; `row_at` opens one of its rows."""

    table: datasets.Dataset
    columns: dict[str, str] = field(default_factory=lambda: {name: name for name in COLUMNS})  # our name -> the table's
    folder: Path = Path()  # relative image paths start here
    instruction: str = ""  # appended to every question
    kept: Sequence[int] | None = None  # the table's rows that are in use; None: all of them

    def __len__(self) -> int:
        return len(self.table if self.kept is None else self.kept)

    def number(self, index: int) -> int:
        """Where row `index` is in the table, counted from 0: what an error names."""
        return index if self.kept is None else self.kept[index]

    def keep(self, indices: Sequence[int]) -> "Rows":
        """The rows at `indices` alone."""
        return replace(self, kept=[self.number(index) for index in indices])


def find_columns(present: Sequence[str], chosen: Sequence[str], source: str) -> dict[str, str]:
    """Which column holds the image, the question and the answer: as `chosen` ("question=prompt"), else by its usual name.

    Raises:
        InputError: a choice that is not NAME=COLUMN, a column that is not there, or none with a usual name.
    """
    columns = {}
    for choice in chosen:
        name, _, column = choice.partition("=")
        if name not in COLUMNS or not column:
            raise InputError(f"columns holds {choice!r}, expected NAME=COLUMN{nearest(name, COLUMNS)}")
        if column not in present:
            raise InputError(f"columns holds {choice!r}, but data {source!r} has no such column{nearest(column, present)}")
        columns[name] = column
    for name, usual in COLUMNS.items():
        found = columns.get(name) or next((column for column in usual if column in present), None)
        if found is None:
            expected = f"expected one of {', '.join(usual)}, or --columns {name}=COLUMN"
            raise InputError(f"data {source!r} has no {name} column: {expected} with one of {', '.join(present)}")
        columns[name] = found
    return columns


def instruction_text(setting: str, source: str) -> str:
    """What `CPPOConfig.instruction` appends to a question: "auto" nothing in the shape world, else INSTRUCTION."""
    if setting == "auto":
        return "" if source == "shapes" else INSTRUCTION
    return "" if setting == "none" else setting


def row_at(rows: Rows, index: int) -> dict[str, Any]:
    """Row `index`: {image, images, question, answer} and its other columns as they are; `image` is the first of `images`.

    Raises:
        InputError: something is missing or wrong; names the row of the file (from 0), the file's column and what to do.
    """
    number, columns = rows.number(index), rows.columns
    arrow: Any = rows.table.with_format("arrow")[number]  # images undecoded, so that a bad one is named by its row
    stored = arrow.to_pylist()[0]
    for name, kind in rows.table.features.items():  # a column of several types in a JSON file comes as it was written
        if type(kind).__name__ == "Json" and stored[name] is not None:
            stored[name] = json.loads(stored[name])
    with _named(number, columns["image"]):
        images = [open_image(_placed(source, rows.folder)) for source in image_sources(stored[columns["image"]])]
    with _named(number, columns["question"]):
        question = plain_question(stored[columns["question"]], len(images))
    with _named(number, columns["answer"]):
        answer = plain_answer(stored[columns["answer"]])
    question = f"{question}\n{rows.instruction}" if rows.instruction else question
    others = {name: value for name, value in stored.items() if name not in columns.values()}
    return {**others, "image": images[0], "images": images, "question": question, "answer": answer}


def images_of(row: dict[str, Any]) -> list[Image.Image]:
    """The images of a row: `image`, also where a view was put into its place, and what follows it in `images`."""
    first, images = row.get("image"), row.get("images") or []
    if first is None and not images:
        raise InputError("a row has no image, expected one or more: give it one, or leave the row out")
    return list(images) if first is None else [first, *images[1:]]


@contextmanager
def _named(number: int, column: str) -> Iterator[None]:
    """Errors inside are about this row and column."""
    try:
        yield
    except InputError as error:
        raise InputError(f"row {number}, column {column}: {error}") from error


def image_sources(value: Any) -> list[Any]:
    """A row's pictures, undecoded: those of a list, or the one there is."""
    if value is None or value == "" or value == []:
        raise InputError("no image: fill it or drop the row")
    return value if isinstance(value, list) else [value]


def plain_question(value: Any, images: int) -> str:
    """The question without its `<image>` markers: the chat template puts the images in front of it.

    Raises:
        InputError: no text, or markers for another number of images.
    """
    if value is not None and not isinstance(value, str):
        raise InputError(f"question is {value!r:.80}, expected text")
    markers = len(MARKER.findall(value or ""))
    question = MARKER.sub(" ", value or "").strip()
    if not question:
        raise InputError("no question: fill it or drop the row")
    if markers not in (0, images):
        raise InputError(f"<image> markers in the question: {markers}, images in the row: {images}; make them agree")
    return question


def plain_answer(value: Any) -> str:
    """The answer itself: of `<answer> 3 </answer>` and of a lone `\\boxed{3}` it is "3", so that the reward compares that.

    Raises:
        InputError: empty, or neither text nor a number.
    """
    if isinstance(value, bool) or not (value is None or isinstance(value, str) or _finite(value)):
        raise InputError(f"answer is {value!r:.80}, expected text or a finite number")
    answer = "" if value is None else str(value)
    tagged = TAGGED.findall(answer)
    answer = (tagged[-1] if tagged else answer).strip()
    boxed = extract_boxed(answer)
    if boxed is not None and _without_blanks(answer) == _without_blanks(f"\\boxed{{{boxed}}}"):
        answer = boxed
    if not answer:
        raise InputError("no answer: fill it or drop the row")
    return answer


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _without_blanks(text: str) -> str:
    return "".join(text.split())


def _placed(source: Any, folder: Path) -> Any:
    """`source`, begun at `folder` if relative; InputError if it leads out (the Hub's cache may be named) or is no file."""
    path = source.get("path") if isinstance(source, dict) and not source.get("bytes") else source
    if not path or not isinstance(path, str):
        return source
    place = os.path.abspath(folder / path)
    if not any(Path(place).is_relative_to(os.path.abspath(root)) for root in (folder, HF_CACHE_HOME)):
        raise InputError(f"image path {path!r} leads out of {str(folder)!r}: set --image_folder to one that holds all images")
    if Path(place).exists() and not Path(place).is_file():
        raise InputError(f"image path {path!r} is no regular file: give a PNG or JPEG")
    return place


def open_image(source: Any) -> Image.Image:
    """Open a PIL image, a path, bytes or {bytes, path}.

    Raises:
        InputError: unreadable, or so many pixels that decoding it would be a decompression bomb.
    """
    if isinstance(source, Image.Image):
        return source
    if isinstance(source, dict):
        source = source.get("bytes") or source.get("path")
    if not source or not isinstance(source, str | bytes):
        raise InputError(f"image is {source!r:.80}, expected a picture, its bytes or its path")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)  # Pillow refuses only twice its limit by itself
            image = Image.open(io.BytesIO(source) if isinstance(source, bytes) else source)
            _check_kind(image)
            image.load()
            turned = image.getexif().get(ExifTags.Base.Orientation, 1) != 1  # as phones store what they hold sideways
            return ImageOps.exif_transpose(image) if turned else image
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise InputError(f"image refused as a decompression bomb ({error}): scale it down") from error
    except FileNotFoundError as error:
        raise InputError(f"image file {source!r} does not exist: correct the path, or set --image_folder") from error
    except UnidentifiedImageError as error:
        raise InputError(f"image {source!r:.80} is in no format that Pillow knows: give a PNG or JPEG") from error
    except InputError:
        raise
    except Exception as error:  # Pillow raises many kinds for a broken file
        raise InputError(f"image could not be read ({first_line(error)}): give a PNG or JPEG") from error


def _check_kind(image: Image.Image) -> None:
    """Before decoding: InputError for more than MOST_PIXELS, several frames, or a mode that is no picture's."""
    if image.width * image.height > MOST_PIXELS:
        raise InputError(f"image has {image.width}×{image.height} pixels, at most {MOST_PIXELS:,} are read: scale it down")
    if getattr(image, "is_animated", False) and image.format != "MPO":  # a phone's photo, which holds its preview as well
        raise InputError("image has several frames, expected one: save the one that is meant")
    if image.mode not in MODES or image.mode == "F":  # nobody knows the range of floats
        raise InputError(f"image mode is {image.mode}, expected grey or colours in whole numbers: save it as RGB")


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its kind if it has none."""
    return (str(error) or type(error).__name__).splitlines()[0]
