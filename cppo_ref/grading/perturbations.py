"""Graders of exercises 03: a removing view and a preserving view."""

import random
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image

from cppo_ref.grading.grader import Function, grade_by_symptoms


def _plain(color: int | tuple[int, int, int], width: int = 40, height: int = 20) -> Image.Image:
    color = (color, color, color) if isinstance(color, int) else color
    return Image.new("RGB", (width, height), color)


def _pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image).astype(int)


def _returns_no_image(function: Function, options: tuple) -> bool:
    result = function(_plain(200), np.random.default_rng(0), *options)
    return not isinstance(result, Image.Image) or (result.size, result.mode) != ((40, 20), "RGB")


def _paints_on_its_input(function: Function, options: tuple) -> bool:
    image = _plain(200)
    for seed in range(3):
        function(image, np.random.default_rng(seed), *options)
    return image.tobytes() != _plain(200).tobytes()


def _same_seed_differs(function: Function, options: tuple) -> bool:
    first, second = ([function(_plain(200), np.random.default_rng(s), *options).tobytes() for s in range(8)] for _ in range(2))
    return first != second


def _touches_a_global_generator(function: Function, options: tuple, state: Function) -> bool:
    states = {repr(state())}
    for seed in range(3):  # each, for the last may leave what was there before
        function(_plain(200), np.random.default_rng(seed), *options)
        states.add(repr(state()))
    return len(states) > 1


def _all_seeds_alike(function: Function, options: tuple) -> bool:
    views = {function(_plain(200), np.random.default_rng(seed), *options).tobytes() for seed in range(20)}
    return len(views) == 1


def _hidden(function: Function, seed: int, width: int, height: int) -> np.ndarray:
    """Where the view of a white picture is not white."""
    return (_pixels(function(_plain(255, width, height), np.random.default_rng(seed))) != 255).any(axis=-1)


def _covers_other_than_a_quarter(function: Function) -> bool:
    return any(_hidden(function, seed, 40, 20).sum() != 200 for seed in range(50))


def _turned(function: Function) -> bool:
    """The covered box is as wide as it should be high, in a picture twice as wide as high, or pushed out of it."""
    boxes = [_hidden(function, seed, 40, 20) for seed in range(50)]
    return any((box.any(axis=0).sum(), box.any(axis=1).sum()) == (10, 20) for box in boxes)


def _other_color(function: Function) -> bool:
    views = [_pixels(function(_plain(255), np.random.default_rng(seed))) for seed in range(20)]
    return any(set(view.flatten().tolist()) != {128, 255} for view in views)


def _box(hidden: np.ndarray) -> tuple[int, int, int, int]:
    """The smallest box (top, left, height, width) that holds all hidden pixels."""
    if not hidden.any():
        return 0, 0, 0, 0
    rows, columns = (np.flatnonzero(hidden.any(axis=axis)) for axis in (1, 0))
    return int(rows[0]), int(columns[0]), int(np.ptp(rows)) + 1, int(np.ptp(columns)) + 1


def _scattered(function: Function) -> bool:
    hidden = [_hidden(function, seed, 40, 20) for seed in range(20)]
    return any(h.sum() != _box(h)[2] * _box(h)[3] for h in hidden)


def _other_shape(function: Function) -> bool:
    return any(_box(_hidden(function, seed, 40, 20))[2:] != (10, 20) for seed in range(20))


def _places(function: Function, seeds: int) -> list[tuple[int, int]]:
    """Where a 2×2 box lands on 4×4 pixels: (top, left) for each seed; nine places are possible."""
    return [_box(_hidden(function, seed, 4, 4))[:2] for seed in range(seeds)]


def _one_draw(function: Function) -> bool:
    return all(top == left for top, left in _places(function, 50))


def _unequal_places(function: Function) -> bool:
    """In 900 draws each of the nine places is due 100 times; 60 and 150 are more than four standard deviations away."""
    places = _places(function, 900)
    counts = [places.count((top, left)) for top in range(3) for left in range(3)]
    return min(counts) < 60 or max(counts) > 150


def _misses_an_edge(function: Function) -> bool:
    """On 4×4 pixels a 2×2 box has nine places; two hundred seeds must hit the last row and column."""
    seen = np.any([_hidden(function, seed, 4, 4) for seed in range(200)], axis=0)
    return not (seen[-1].any() and seen[:, -1].any())


def _random_symptoms(*options: Any) -> dict[str, Function]:
    """What can be wrong with any view; `options` follow (image, rng)."""
    symptoms = {
        "it must return a PIL image of the same size and mode": _returns_no_image,
        "changed in place: it paints on the image that it was given; work on a copy": _paints_on_its_input,
        **{
            f"it draws from {owner} global generator or seeds it; draw from `rng` and nothing else": partial(
                _touches_a_global_generator, state=state
            )
            for owner, state in (
                ("numpy's", np.random.get_state),
                ("Python's", random.getstate),
                ("torch's", lambda: torch.get_rng_state().tolist()),
            )
        },
        "unseeded: two generators with the same seed give two views; draw from `rng` and nothing else": _same_seed_differs,
        "rng ignored: twenty seeds give one view": _all_seeds_alike,
    }
    return {diagnosis: partial(shows, options=options) for diagnosis, shows in symptoms.items()}


HIDE_SYMPTOMS = {
    **_random_symptoms(),
    "wrong axis: the rectangle's width and height are swapped; numpy's first axis is the height": _turned,
    "it must cover a quarter of the pixels for every seed: half the width times half the height": _covers_other_than_a_quarter,
    "scattered: the hidden pixels must form one rectangle": _scattered,
    "the rectangle has another shape: it must be half as wide and half as high as the image": _other_shape,
    "the rectangle must be grey: (128, 128, 128)": _other_color,
    "off by one: the rectangle never reaches the far edge; rng.integers(n) stops at n − 1": _misses_an_edge,
    "one draw for both axes: draw the row and the column apart, or the box stays on the diagonal": _one_draw,
    "every place must be equally likely: on 4×4 pixels there are nine, and 900 seeds do not hit them alike": _unequal_places,
}


def _hide(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    width, height = image.size
    left, top = (int(rng.integers(side - side // 2 + 1)) for side in (width, height))
    view = image.copy()
    view.paste((128, 128, 128), (left, top, left + width // 2, top + height // 2))
    return view


def check_hide_quarter(function: Function) -> None:
    """Grade hide_quarter(image, rng) -> image with a rectangle of half the width and height hidden at a random place."""
    grade_by_symptoms(function, HIDE_SYMPTOMS, _hide)


def _levels(function: Function, value: int, strength: float, seeds: int = 200) -> np.ndarray:
    """The values [seeds, H, W, 3] of the views of a plain picture."""
    return np.stack([_pixels(function(_plain(value), np.random.default_rng(seed), strength)) for seed in range(seeds)])


def _strength_ignored(function: Function) -> bool:
    gentle, strong = (float(_levels(function, 100, strength)[:, 0, 0, 0].std()) for strength in (0.2, 1.0))
    return gentle > 0.5 * strong


def _outside(function: Function) -> bool:
    levels = _levels(function, 100, 1.0)
    return bool(levels.min() < 49 or levels.max() > 151 or levels.min() > 60 or levels.max() < 140)


def _added(function: Function) -> bool:
    """A factor keeps the ratio of two pictures: what was twice as bright stays so."""
    bright, dark = _levels(function, 100, 1.0), _levels(function, 50, 1.0)
    return bool(np.abs(bright - 2 * dark).max() > 2)


def _not_between(function: Function) -> bool:
    """Half of all uniform draws fall into the middle half of their range."""
    levels = _levels(function, 100, 1.0)[:, 0, 0, 0]
    return not 0.35 <= np.mean((levels >= 75) & (levels <= 125)) <= 0.65


def _other_spread_between(function: Function) -> bool:
    levels = _levels(function, 100, 0.5)
    return bool(levels.min() < 74 or levels.max() > 126 or levels.min() > 80 or levels.max() < 120)


DIM_SYMPTOMS = {
    **_random_symptoms(1.0),
    "noise: every pixel got a factor of its own, which removes information; draw one factor per image": lambda f: bool(
        _levels(f, 100, 1.0).std(axis=(1, 2)).max() > 1
    ),
    "one factor per channel changes the colours that the question asks for; draw one factor per image": lambda f: bool(
        np.ptp(_levels(f, 100, 1.0), axis=-1).max() > 1
    ),
    "wrapped round: a bright pixel came out dark; clip to 0…255 before you go back to uint8": lambda f: bool(
        (_levels(f, 250, 1.0) < _levels(f, 100, 1.0)).any()
    ),
    "strength ignored: at 0.2 the views must vary less than at 1": _strength_ignored,
    "at strength 0 the view must be the image": lambda f: bool((_levels(f, 100, 0.0) != 100).any()),
    "at strength 1 the factor must spread over 0.5…1.5": _outside,
    "at strength 0.5 the factor must spread over 0.75…1.25: it is 1 ± 0.5 · strength": _other_spread_between,
    "added, not multiplied: a pixel twice as bright as another must stay twice as bright": _added,
    "the factor is not uniform: half of the draws must fall into the middle half of its range": _not_between,
}


def _dim(image: Image.Image, rng: np.random.Generator, strength: float) -> Image.Image:
    factor = 1 + 0.5 * strength * rng.uniform(-1, 1)
    return Image.fromarray((_pixels(image) * factor).round().clip(0, 255).astype(np.uint8))


def check_dim(function: Function) -> None:
    """Grade dim(image, rng, strength) -> image, brightness times one factor from 1 ± 0.5 · strength."""
    grade_by_symptoms(function, DIM_SYMPTOMS, _dim)
