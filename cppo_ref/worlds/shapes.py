"""The shape world: small pictures, counting questions, and the truth about every token of an answer.

A picture is a grid of cells, each empty or holding one coloured shape. A question asks how many shapes have a colour. An
answer first lists what is in each cell (perception tokens), then counts (reasoning tokens), in the paper's format:

    <think> red none blue red none none green none none ; red : 2 </think> \\boxed{ 2 }

The right answer is spread evenly over 0…4 (easy) or 0…6 (hard), so that a policy that does not look is right one time in
five (seven), whatever it guesses.
"""

from dataclasses import dataclass
from itertools import takewhile
from typing import Literal, Protocol, runtime_checkable

import numpy as np
from PIL import Image, ImageDraw

IMAGE_SIZE = 48  # pixels, both sides
BACKGROUND = (236, 236, 236)
COLORS = {"red": (214, 39, 40), "green": (34, 160, 60), "blue": (31, 90, 200), "yellow": (240, 200, 20)}
EMPTY = "none"
CELL_WORDS = (*COLORS, EMPTY)
KINDS = ("circle", "square", "triangle")

Kind = Literal["perception", "reasoning", "format"]


@dataclass(frozen=True)
class TokenLabel:
    """What one token of a completion is for, and whether it is right (None: nothing to judge it by)."""

    token: str
    kind: Kind
    right: bool | None


@runtime_checkable
class Tokenizer(Protocol):
    """The one method of a transformers tokenizer that labelling needs."""

    def tokenize(self, text: str) -> list[str]:
        """Split `text` into tokens."""
        ...


@runtime_checkable
class World(Protocol):
    """What evaluation needs of the world that a row was drawn from."""

    @property
    def max_new_tokens(self) -> int:
        """A limit that leaves a right answer room."""
        ...

    def label_tokens(self, text: str, tokenizer: Tokenizer, row: dict) -> list[TokenLabel]:
        """Label each token of a completion as perception, reasoning or format, and as right or wrong."""
        ...


@dataclass(frozen=True)
class Level:
    """One difficulty of the shape world."""

    name: str
    grid: int  # cells per side
    colors_asked: int  # 1: "red"; 2: "red plus blue"
    max_answer: int  # answers are uniform on 0…max_answer

    @property
    def answer_tokens(self) -> int:
        """Tokens of a right answer in the tiny VLM's words, which are the grammar's, its end included."""
        return len(completion_text([EMPTY] * self.grid**2, list(COLORS)[: self.colors_asked]).split()) + 1

    @property
    def max_new_tokens(self) -> int:
        """The default limit of a completion: a quarter more than a right answer needs, up to the next multiple of 16."""
        return -(-self.answer_tokens * 5 // 64) * 16

    def label_tokens(self, text: str, tokenizer: Tokenizer, row: dict) -> list[TokenLabel]:
        """`label_tokens` of the shape world."""
        return label_tokens(text, tokenizer, row)


LEVELS = {"easy": Level("easy", 3, 1, 4), "hard": Level("hard", 4, 2, 6)}


def world_of(row: dict) -> World:
    """The world that a row names (`world`), or the level of the shape world; ValueError for a row of other data."""
    if "world" in row:
        return row["world"]
    cells = len(row.get("objects") or ())
    found = [level for level in LEVELS.values() if level.grid**2 == cells]
    if not found:
        raise ValueError("the rows are not of the shape world, which knows how long an answer is: give max_new_tokens")
    return found[0]


def sample_row(rng: np.random.Generator, level: Level) -> dict:
    """Draw one row {image, question, answer, objects}; `objects` lists every cell, row by row, as {color, kind}."""
    cells = level.grid**2
    asked = [str(color) for color in rng.permutation(list(COLORS))[: level.colors_asked]]
    others = [word for word in CELL_WORDS if word not in asked]
    answer = int(rng.integers(level.max_answer + 1))
    words = [str(rng.choice(asked)) for _ in range(answer)]
    words += [str(rng.choice(others)) for _ in range(cells - answer)]
    colors = [words[i] for i in rng.permutation(cells)]
    objects = [{"color": c, "kind": EMPTY if c == EMPTY else str(rng.choice(KINDS))} for c in colors]
    return {
        "image": draw(objects, rng),
        "question": f"How many {' plus '.join(asked)} shapes?",
        "answer": str(answer),
        "objects": objects,
    }


def draw(objects: list[dict], rng: np.random.Generator, size: int = IMAGE_SIZE) -> Image.Image:
    """Paint the cells on a square RGB picture; position and size of each shape vary by a pixel or so."""
    grid = round(len(objects) ** 0.5)
    cell = size / grid
    image = Image.new("RGB", (size, size), BACKGROUND)
    canvas = ImageDraw.Draw(image)
    for index, thing in enumerate(objects):
        center = (np.array([index % grid, index // grid]) + 0.5) * cell + rng.uniform(-0.06, 0.06, 2) * cell
        radius = cell * rng.uniform(0.3, 0.42)
        if thing["color"] != EMPTY:
            _draw_shape(canvas, thing["kind"], COLORS[thing["color"]], center, radius)
    return image


def _draw_shape(canvas: ImageDraw.ImageDraw, kind: str, fill: tuple, center: np.ndarray, radius: float) -> None:
    (left, top), (right, bottom) = center - radius, center + radius
    if kind == "circle":
        canvas.ellipse([left, top, right, bottom], fill=fill)
    elif kind == "square":
        canvas.rectangle([left, top, right, bottom], fill=fill)
    else:
        canvas.polygon([(left, bottom), (right, bottom), (center[0], top)], fill=fill)


def asked_colors(question: str) -> list[str]:
    """The colours that a question asks for, in its order."""
    return [word for word in question.replace("?", " ").lower().split() if word in COLORS]


def completion_text(cells: list[str], asked: list[str]) -> str:
    """The completion of a policy that sees `cells` (right or wrong) and counts them without error."""
    counts = [cells.count(color) for color in asked]
    steps = [f"{color} : {count}" for color, count in zip(asked, counts, strict=True)]
    if len(asked) > 1:
        steps.append(f"total : {sum(counts)}")
    return f"<think> {' '.join(cells)} ; {' ; '.join(steps)} </think> \\boxed{{ {sum(counts)} }}"


def label_tokens(text: str, tokenizer: Tokenizer, row: dict | None = None) -> list[TokenLabel]:
    """Label each token of a completion as perception, reasoning or format, and as right or wrong.

    Perception tokens (the listing between <think> and the first ;) are judged against the picture. Reasoning tokens are
    judged against what the completion itself says that it saw, so a right count of a wrong percept is right. Format tokens
    are right where the grammar of the shape world expects them.

    Args:
        text: a completion.
        tokenizer: gives `text` its tokens; one label each.
        row: a row of the shape world; without it, perception and the question's words have no verdict (None).
    """
    tokens = tokenizer.tokenize(text)
    truth = [thing["color"] for thing in row["objects"]] if row else None
    start = int(bool(tokens) and tokens[0] not in CELL_WORDS)  # 0: the opening <think> was left out
    listed = list(takewhile(lambda token: token in CELL_WORDS, tokens[start:]))
    asked = asked_colors(row["question"]) if row else _mentioned(tokens[start + len(listed) :])
    expected = tokenizer.tokenize(completion_text(listed, asked))[1 - start :]
    labels = []
    for position, token in enumerate(tokens):
        cell = position - start
        if 0 <= cell < len(listed):
            seen = None if truth is None else cell < len(truth) and token == truth[cell]
            labels.append(TokenLabel(token, "perception", seen))
            continue
        right = position < len(expected) and token == expected[position]
        is_word = token in COLORS or token.isdigit() or token == "total"
        unknown = row is None and token in COLORS
        labels.append(TokenLabel(token, "reasoning" if is_word else "format", None if unknown else right))
    return labels


def _mentioned(tokens: list[str]) -> list[str]:
    """The colours that a completion counts before it closes its thoughts."""
    return [token for token in takewhile(lambda token: token != "</think>", tokens) if token in COLORS]
