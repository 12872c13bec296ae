"""`eyes`: small shapes in six similar colours, under pixel noise. A model's errors here are its eyes' own: none were planted.

Its pictures come from another camera than those of pretraining: every colour has moved towards its neighbour. What is seen is
still clear, but the words for it must be learned again.

The question is the shape world's, the answer counts while it looks:

    <think> red 1 none 1 blue 1 red 2 … ; red : 2 </think> \\boxed{ 2 }

so that counting is easy and 9 of 26 tokens are perception.
"""

from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from cppo_ref.worlds.shapes import EMPTY, Tokenizer, TokenLabel
from study.worlds.common import IMAGE_SIZE, grain, ground, judged, shade

COLORS: dict[str, tuple[float, ...]] = {
    "red": (205, 60, 60),
    "orange": (212, 125, 50),
    "yellow": (200, 180, 60),
    "green": (80, 160, 85),
    "blue": (70, 105, 195),
    "purple": (145, 85, 175),
}
NEXT = dict(zip(COLORS, (*list(COLORS)[1:], *list(COLORS)[:1]), strict=True))  # red's neighbour is orange, purple's is red
MOVE = 0.3  # of the way to the neighbour
MOVED = {c: tuple((1 - MOVE) * a + MOVE * b for a, b in zip(COLORS[c], COLORS[NEXT[c]], strict=True)) for c in COLORS}
CELL_WORDS = (*COLORS, EMPTY)
GRID, MAX_ANSWER = 3, 4
CELL = IMAGE_SIZE / GRID  # pixels
RADIUS = (0.18, 0.34)  # of a cell


class Eyes:
    """The world of small, similar, noisy things."""

    name = "eyes"
    words: tuple[str, ...] = ("orange", "purple", "dots")
    preserving: tuple[str, ...] = ("color_jitter", "perspective", "rotation")
    max_new_tokens = 32  # a right answer has 26 with its end

    def sample_row(self, rng: np.random.Generator, noise: float, new_look: bool) -> dict[str, Any]:
        """A row with its `cells`, row by row; the answer is spread evenly over 0…4."""
        asked, answer = str(rng.choice(list(COLORS))), int(rng.integers(MAX_ANSWER + 1))
        others = [word for word in CELL_WORDS if word != asked]
        words = [asked] * answer + [str(rng.choice(others)) for _ in range(GRID**2 - answer)]
        cells = [words[i] for i in rng.permutation(GRID**2)]
        image = draw(cells, rng, noise, MOVED if new_look else COLORS)
        question = f"How many {asked} dots?"
        return {"image": image, "question": question, "answer": str(answer), "cells": cells, "world": self}

    def completion(self, row: dict[str, Any]) -> str:
        """The completion of a policy that sees every cell."""
        return completion_text(row["cells"], asked_color(row))

    def lesson(self, row: dict[str, Any]) -> tuple[str, str]:
        """(question, completion) that names every cell: here, the answer does."""
        return row["question"], self.completion(row)

    def label_tokens(self, text: str, tokenizer: Tokenizer, row: dict[str, Any]) -> list[TokenLabel]:
        """Cells are judged against the picture, counts against the cells that the completion itself lists."""
        tokens = tokenizer.tokenize(text)
        start = int(tokens[:1] == ["<think>"])
        listed = []
        while tokens[start + 2 * len(listed) : start + 2 * len(listed) + 1] and tokens[start + 2 * len(listed)] in CELL_WORDS:
            listed.append(tokens[start + 2 * len(listed)])
        truth = row["cells"]
        percepts = {start + 2 * i: i < len(truth) and word == truth[i] for i, word in enumerate(listed)}
        expected = tokenizer.tokenize(completion_text(listed, asked_color(row)))[1 - start :]
        return judged(tokens, expected, percepts, set(COLORS))


def asked_color(row: dict[str, Any]) -> str:
    """The colour that a row's question asks for."""
    return row["question"].split()[2]


def completion_text(cells: list[str], asked: str) -> str:
    """The completion of a policy that sees `cells` and counts them without error."""
    counts = np.cumsum([cell == asked for cell in cells]).tolist()
    seen = " ".join(f"{cell} {count}" for cell, count in zip(cells, counts, strict=True))
    total = counts[-1] if counts else 0
    return f"<think> {seen} ; {asked} : {total} </think> \\boxed{{ {total} }}"


def draw(cells: list[str], rng: np.random.Generator, noise: float, colors: dict[str, tuple[float, ...]]) -> Image.Image:
    """Paint the cells; ground, colours, places, sizes and shapes vary."""
    image = Image.new("RGB", (IMAGE_SIZE, IMAGE_SIZE), tuple(ground(rng).astype(int).tolist()))
    canvas = ImageDraw.Draw(image)
    for i, word in enumerate(cells):
        center = (np.array([i % GRID, i // GRID]) + 0.5 + rng.uniform(-0.12, 0.12, 2)) * CELL
        radius, shape = CELL * rng.uniform(*RADIUS), rng.integers(3)
        if word == EMPTY:
            continue
        (left, top), (right, bottom) = (center - radius).tolist(), (center + radius).tolist()
        fill = shade(rng, colors[word])
        if shape == 0:
            canvas.ellipse([left, top, right, bottom], fill=fill)
        elif shape == 1:
            canvas.rectangle([left, top, right, bottom], fill=fill)
        else:
            canvas.polygon([(left, bottom), (right, bottom), (float(center[0]), top)], fill=fill)
    return grain(image, rng, noise)
