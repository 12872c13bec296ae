"""Graders of exercises 03 beyond the text: the words of a turned picture, and which views keep what a reader reads."""

from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
from PIL import Image

from cppo_ref.grading.grader import Case, Function, grade

LETTERS = list("abcdefghi")
TURN_CASES = [
    Case("one quarter turn to the left", (LETTERS, 1), list("cfibehadg")),
    Case("no turn", (LETTERS, 0), LETTERS),
    Case("two", (LETTERS, 2), list("ihgfedcba")),
    Case("three, one to the right", (LETTERS, 3), list("gdahebifc")),
    Case("five are one", (LETTERS, 5), list("cfibehadg")),
    Case("four cells", (["red", "none", "blue", "green"], 1), ["none", "green", "red", "blue"]),
]


def _turned(words: Sequence[str], turns: int, *, way: int = 1, once: bool = False, move: Function = np.rot90) -> list[str]:
    side = round(len(words) ** 0.5)
    grid = np.array(words).reshape(side, side)
    return [str(word) for word in move(grid, way * (min(turns, 1) if once else turns)).flatten()]


TURN_MISTAKES = {
    "turned the other way: `rotate(90)` turns to the left, so the right column becomes the top row": partial(_turned, way=-1),
    "turned once at most: three turns are three": partial(_turned, once=True),
    "mirrored at the diagonal: a transpose is no turn": partial(
        _turned, move=lambda grid, turns: grid.T if turns % 2 else np.rot90(grid, turns)
    ),
    "upside down: rows are in reverse order": partial(_turned, move=lambda grid, turns: np.rot90(grid, turns)[::-1]),
    "the words stay where they were: they belong to cells, and the cells move": lambda words, turns: list(words),
}


def check_turned_words(function: Function) -> None:
    """Grade turned_words(words, turns) -> the words of the grid, row by row, after quarter turns to the left."""
    grade(function, TURN_CASES, TURN_MISTAKES, _turned)


def _strip(*colors: tuple[int, int, int]) -> Image.Image:
    """A picture one pixel high."""
    image = Image.new("RGB", (len(colors), 1))
    image.putdata(colors)
    return image


RED, BLUE, DARK, GREY = (200, 0, 0), (0, 0, 200), (100, 0, 0), (90, 90, 90)
PICTURES = [_strip(RED, BLUE, GREY), _strip(BLUE, BLUE, RED), _strip(GREY, RED, RED), _strip(RED, GREY, RED)]


def _half(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    return image.point([value // 2 for value in range(256)] * 3)


def _mirror(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)


def _grey(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    return image.convert("L").convert("RGB")


def _sometimes(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    return _grey(image, rng) if rng.random() < 0.5 else image


def _copy(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    return image.copy()


def _first_red(image: Image.Image) -> int:
    """The place of the first reddish pixel; −1 without one."""
    pixels = np.asarray(image).astype(int)[0]
    red = np.flatnonzero(pixels[:, 0] > pixels[:, 2])
    return int(red[0]) if len(red) else -1


def _reds(image: Image.Image) -> int:
    pixels = np.asarray(image).astype(int)[0]
    return int((pixels[:, 0] > pixels[:, 2]).sum())


VIEWS = {"copy": _copy, "half": _half, "mirror": _mirror, "grey": _grey, "sometimes": _sometimes}
KEEP_CASES = [
    Case("how many reds: a mirror keeps that", (VIEWS, PICTURES, _reds), ["copy", "half", "mirror"]),
    Case("where the first red is: a mirror does not keep that", (VIEWS, PICTURES, _first_red), ["copy", "half"]),
    Case("width: every view keeps it", (VIEWS, PICTURES, lambda image: image.width), list(VIEWS)),
    Case("no view", ({}, PICTURES, _reds), []),
]


def _keeping(
    views: Mapping[str, Function],
    pictures: Sequence[Image.Image],
    read: Function,
    *,
    every: Function = all,
    same: Function = lambda read, a, b: read(a) == read(b),
    seeded: bool = True,
    reverse: bool = False,
) -> list[str]:
    kept = []
    for name, view in views.items():
        answers = [same(read, p, view(p, np.random.default_rng(i if seeded else 0))) for i, p in enumerate(pictures)]
        if every(answers) != reverse:
            kept.append(name)
    return kept


KEEP_MISTAKES = {
    "the pictures need not be equal: what is read from them must be": partial(_keeping, same=lambda read, a, b: a == b),
    "one picture is not enough: the reading must stay on all of them": partial(_keeping, every=any),
    "you look at the first picture only": partial(_keeping, every=lambda answers: answers[0]),
    "reversed: these are the views that change the reading": partial(_keeping, reverse=True),
}


def check_views_that_keep(function: Function) -> None:
    """Grade views_that_keep(views, pictures, read) -> names of the views under which every picture is read as before.

    Picture i is viewed with np.random.default_rng(i).
    """
    grade(function, KEEP_CASES, KEEP_MISTAKES, _keeping)
