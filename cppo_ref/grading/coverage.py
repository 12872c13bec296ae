"""Grader of exercise 03.3: what a view covers."""

from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from cppo_ref.grading.grader import Case, Function, grade


def _painted(boxes: dict[tuple[int, int, int, int], tuple[int, int, int]]) -> Image.Image:
    """A grey picture of 12 × 12 pixels with boxes (left, top, right, bottom) of other colours."""
    image = Image.new("RGB", (12, 12), (128, 128, 128))
    for box, color in boxes.items():
        image.paste(color, box)
    return image


COVERED_CASES = [
    Case("the same picture", (_painted({}), _painted({}), 3), torch.zeros(3, 3)),
    # cells of 4 × 4 pixels: the whole top right one, and half of the bottom left one, black
    Case(
        "a cell and a half",
        (_painted({}), _painted({(8, 0, 12, 4): (0, 0, 0), (0, 8, 2, 12): (0, 0, 0)}), 3),
        torch.tensor([[0, 0, 1], [0, 0, 0], [0.5, 0, 0]]),
    ),
    # cells of 6 × 6 pixels: a quarter (3 × 3) brighter in all channels; another quarter in red only
    Case(
        "two quarters",
        (_painted({}), _painted({(0, 0, 3, 3): (255, 255, 255), (9, 0, 12, 3): (255, 128, 128)}), 2),
        torch.tensor([[0.25, 0.25], [0, 0]]),
    ),
    # (128, 76, 180) has the sum of (128, 128, 128), (255, 76, 61) its grey value
    Case(
        "another colour of the same sum, another of the same grey, and one step of one channel",
        (
            _painted({}),
            _painted({(0, 0, 3, 6): (128, 76, 180), (6, 0, 9, 6): (255, 76, 61), (0, 6, 6, 12): (129, 128, 128)}),
            2,
        ),
        torch.tensor([[0.5, 0.5], [1, 0]]),
    ),
]


def _covered(original: Image.Image, view: Image.Image, grid: int, changed: Function | None = None) -> Tensor:
    a, b = np.asarray(original).astype(int), np.asarray(view).astype(int)
    share = (a != b).any(axis=-1) if changed is None else changed(a, b)
    cells = np.asarray(share, dtype=float).reshape(grid, a.shape[0] // grid, grid, a.shape[1] // grid)
    return torch.tensor(cells.mean(axis=(1, 3)), dtype=torch.float32)


def _greys_differ(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    first, second = (np.asarray(Image.fromarray(p.astype(np.uint8)).convert("L")) for p in (a, b))
    return first != second


COVERED_MISTAKES = {
    "grey values compared: two colours can be equally bright; compare the channels": partial(_covered, changed=_greys_differ),
    "sums of the channels compared: two colours can have one sum; compare the channels": partial(
        _covered, changed=lambda a, b: a.sum(axis=-1) != b.sum(axis=-1)
    ),
    "wrong axis: rows and columns of the grid are swapped": lambda a, b, n: _covered(a, b, n).T,
    "channels counted one by one: a pixel that changed in red only is a changed pixel; use .any over the channels": partial(
        _covered, changed=lambda a, b: (a != b).mean(axis=-1)
    ),
    "a pixel counts if any channel changed, not only if all did": partial(_covered, changed=lambda a, b: (a != b).all(axis=-1)),
    "only brighter pixels count for you: compare with !=": partial(_covered, changed=lambda a, b: (b > a).any(axis=-1)),
    "only darker pixels count for you: compare with !=": partial(_covered, changed=lambda a, b: (b < a).any(axis=-1)),
    "reversed: this is the share of pixels that stayed": lambda a, b, n: 1 - _covered(a, b, n),
    "percent: shares go from 0 to 1": lambda a, b, n: 100 * _covered(a, b, n),
    "divide by the pixels of the cell, not of the picture": lambda a, b, n: _covered(a, b, n) / n**2,
}


def as_tensor(result: Any) -> Any:
    """An array, or a list of numbers or arrays, as a tensor; anything else as it is."""
    try:
        return torch.tensor(np.asarray(result, dtype=float), dtype=torch.float32)
    except (TypeError, ValueError):
        return result


def check_covered_share(function: Function) -> None:
    """Grade covered_share(original, view, grid) -> [grid, grid] array: the share of changed pixels of every cell."""
    grade(function, COVERED_CASES, COVERED_MISTAKES, _covered, convert=as_tensor)
