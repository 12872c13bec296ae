"""The base models of the study: the committed tiny VLM, three that differ from it by one habit each, and two of other worlds.

`python -m study --make-base robust` pretrains one, on one thread in a quarter of an hour, into data/study-bases; a
command that was stopped starts over. A base's digest is part of every row's config hash, so rows of two bases never mix.
"""

import hashlib
import shutil
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch

from cppo_ref.config import InputError
from cppo_ref.worlds.splits import data_folder
from study.hints import LEVEL, HintedOptions, hinted_example
from study.pretraining import PretrainOptions, pretrain
from study.worlds import WORLDS
from study.worlds.rows import pretraining_example

BASES_FOLDER = Path("data/study-bases")  # committed: a run is repeated from the same weights


@dataclass(frozen=True)
class Base:
    """A base model: how its pretraining differs from the tiny VLM's, and the level that it is studied on."""

    name: str
    recipe: dict[str, Any] = field(hash=False)
    regime: str
    level: str = "easy"


BASES = {
    base.name: base
    for base in (
        Base("tiny", {}, "never shown preserving shifts"),
        Base("robust", {"preserving_share": 0.5}, "half of its pretraining pictures are under preserving views"),
        Base("hallucinating", {"guess_rate": 0.45}, "45 % instead of 25 % of the listed cells are guesses"),
        Base("eyes", {"steps": 2500}, "small, similar, noisy shapes; its errors are its own", "eyes"),
        Base("rooms", {"steps": 2500}, "a grid seen from above, observation and reasoning interleaved", "rooms"),
        Base("shortcut", {"hint_share": 0.5, "hint_trust": 0.3}, "a hint in the question, often repeated as answer", LEVEL),
    )
}

FIRST_BASES = tuple(name for name, base in BASES.items() if base.level not in WORLDS)  # of the first study


def base_named(name: str) -> Base:
    """The base called `name`; InputError if there is none."""
    if name not in BASES:
        raise InputError(f"base is {name!r}, expected one of {', '.join(BASES)}")
    return BASES[name]


def base_folder(name: str) -> Path:
    """Where the base's model is, or will be."""
    return data_folder() / "tiny-vlm" if base_named(name).name == "tiny" else BASES_FOLDER / name


def base_digest(name: str) -> str:
    """The first 12 hexadecimal digits of the SHA-256 of the base's weights.

    Raises:
        InputError: the base was not made yet.
    """
    weights = base_folder(name) / "model.safetensors"
    if not weights.is_file():
        raise InputError(f"base {name!r} was not made yet: run python -m study --make-base {name}")
    return _digest(weights, weights.stat().st_mtime_ns)


@lru_cache
def _digest(path: Path, _: int) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:12]


def make_base(name: str, **options: Any) -> Path:
    """Pretrain a base on one thread; written aside and renamed, so that it is whole or absent.

    Raises:
        InputError: no such base, or it is there already.
    """
    folder = base_folder(name)
    if folder.exists():
        raise InputError(f"base {name!r} is in {folder} already: remove that folder to make it again")
    aside = folder.with_name(f".{name}.part")
    shutil.rmtree(aside, ignore_errors=True)
    torch.set_num_threads(1)
    chosen = {"output": str(aside), **base_named(name).recipe, **options}
    level = base_named(name).level
    if level == LEVEL:
        pretrain(HintedOptions(**chosen), example=hinted_example, words=["hint"])
    elif level in WORLDS:
        pretrain(PretrainOptions(**chosen), example=partial(pretraining_example, WORLDS[level]), words=WORLDS[level].words)
    else:
        pretrain(PretrainOptions(**chosen))
    aside.rename(folder)
    return folder
