"""What the worlds of the second study share: their interface, and how their pictures vary."""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from PIL import Image

from cppo_ref.worlds.shapes import Tokenizer, TokenLabel

IMAGE_SIZE = 48  # pixels, both sides
BACKGROUND = (185.0, 14.0)  # mean and standard deviation of each channel of a picture's ground
TINT = 8.0  # standard deviation of each channel of a thing's colour, from picture to picture


class World(Protocol):
    """What the study needs of a world."""

    name: str
    words: tuple[str, ...]  # that the tiny VLM's vocabulary lacks
    preserving: tuple[str, ...]  # view families that leave its answers as they are
    max_new_tokens: int

    def sample_row(self, rng: np.random.Generator, noise: float, new_look: bool) -> dict[str, Any]:
        """Draw one row {image, question, answer, world, …}; `noise` is the pixels' standard deviation.

        With `new_look` things look otherwise than in pretraining: a model misreads them until it learns better.
        """
        ...

    def completion(self, row: dict[str, Any]) -> str:
        """The completion of a policy that sees everything and reasons without error."""
        ...

    def lesson(self, row: dict[str, Any]) -> tuple[str, str]:
        """(question, completion) that names every cell, for pretraining: without it, rare looks are not learned."""
        ...

    def label_tokens(self, text: str, tokenizer: Tokenizer, row: dict[str, Any]) -> list[TokenLabel]:
        """Label each token of a completion as perception, reasoning or format, and as right or wrong."""
        ...


def ground(rng: np.random.Generator) -> np.ndarray:
    """The colour of a picture's ground: it varies so much that the mean colour of a picture says nothing of its things."""
    return np.clip(rng.normal(*BACKGROUND, 3), 120, 250)


def shade(rng: np.random.Generator, color: Sequence[float]) -> tuple[int, int, int]:
    """`color`, a little off."""
    red, green, blue = np.clip(rng.normal(color, TINT), 0, 255).astype(int).tolist()
    return red, green, blue


def grain(image: Image.Image, rng: np.random.Generator, noise: float) -> Image.Image:
    """`image` with Gaussian noise of standard deviation `noise` (grey levels) on every pixel and channel."""
    pixels = np.asarray(image, dtype=float)
    return Image.fromarray(np.uint8(np.clip(pixels + rng.normal(0, noise, pixels.shape), 0, 255)))


def judged(tokens: Sequence[str], expected: Sequence[str], percepts: dict[int, bool], thoughts: set[str]) -> list[TokenLabel]:
    """Labels by position: `percepts` says which positions are perception and right; others are right if as `expected`.

    A token that is no percept is reasoning if it is a number or one of `thoughts`, else format.
    """
    labels = []
    for i, token in enumerate(tokens):
        if i in percepts:
            labels.append(TokenLabel(token, "perception", percepts[i]))
            continue
        kind = "reasoning" if token.isdigit() or token in thoughts else "format"
        labels.append(TokenLabel(token, kind, i < len(expected) and token == expected[i]))
    return labels
