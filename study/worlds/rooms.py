"""`rooms`: a grid seen from above, with a player, walls, holes and coins, and questions whose answers are simulated.

A wall or the edge stops a move, a hole brings the player back to the start, a coin is counted each time it is stepped on:

    Moves right up up left : where?
    <think> player b2 ; right c2 floor ; up c1 wall ; up c1 wall ; left b2 floor ; at b2 </think> \\boxed{ b2 }

In pretraining coins are golden discs; here they are dull rings, which a model that never saw them takes for holes.
Observation and reasoning alternate, and coordinates repeat: a later `b2` is a copy of an earlier one, not a look.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from cppo_ref.worlds.shapes import Tokenizer, TokenLabel
from study.worlds.common import IMAGE_SIZE, grain, ground, judged, shade

GRID = 4
CELL = IMAGE_SIZE / GRID  # pixels
PLACES = [f"{column}{row}" for row in range(1, GRID + 1) for column in "abcd"]  # a1 is the upper left
MOVES = {"up": (0, -1), "down": (0, 1), "left": (-1, 0), "right": (1, 0)}
CONTENT = {"floor": 0.34, "wall": 0.24, "hole": 0.18, "coin": 0.24}  # shares of the cells
EDGE = "edge"
QUESTIONS = ("where", "coins", "safe")
MOVES_ASKED = 4
DARKER = 70  # grey levels that walls and holes are darker than the ground
GOLD, DULL, BLUE = (215, 175, 60), (150, 135, 90), (70, 105, 195)

Look = Callable[[int, str], str]  # (number of the move, place) -> what is there


class Rooms:
    """The world seen from above."""

    name = "rooms"
    words: tuple[str, ...] = (
        *PLACES,
        *MOVES,
        *CONTENT,
        "player",
        EDGE,
        "moves",
        "where",
        "coins",
        "which",
        "move",
        "is",
        "safe",
        "at",
        "what",
    )
    preserving: tuple[str, ...] = ("color_jitter", "perspective", "rotation")  # by 10° at most: right stays right
    max_new_tokens = 32  # a right answer has 27 with its end

    def sample_row(self, rng: np.random.Generator, noise: float, new_look: bool) -> dict[str, Any]:
        """A row with its `cells`, row by row, and the player's `start`."""
        cells = [str(word) for word in rng.choice(list(CONTENT), GRID**2, p=list(CONTENT.values()))]
        start, kind = str(rng.choice(PLACES)), QUESTIONS[int(rng.integers(len(QUESTIONS)))]
        cells[PLACES.index(start)] = "floor"
        if kind == "safe":
            question = "Which move is safe?"
            leave_one_way(cells, start, rng)
        else:
            question = f"Moves {' '.join(rng.choice(list(MOVES), MOVES_ASKED))} : {kind}?"
        image = draw(cells, start, rng, noise, new_look)
        row = {"image": image, "question": question, "cells": cells, "start": start, "world": self}
        return row | {"answer": answer_of(question, start, looking_at(cells))}

    def completion(self, row: dict[str, Any]) -> str:
        """The completion of a policy that sees every cell."""
        return completion_text(row["question"], row["start"], looking_at(row["cells"]))

    def lesson(self, row: dict[str, Any]) -> tuple[str, str]:
        """(question, completion) that names every cell: what teaches a model which place is where in a picture."""
        cells = " ".join(f"{place} {word}" for place, word in zip(PLACES, row["cells"], strict=True))
        return "What is where?", f"<think> {cells} ; player {row['start']} </think> \\boxed{{ {row['start']} }}"

    def label_tokens(self, text: str, tokenizer: Tokenizer, row: dict[str, Any]) -> list[TokenLabel]:
        """The player's place and what lies at each target are judged against the picture, the rest by what was seen."""
        tokens = tokenizer.tokenize(text)
        first = int(tokens[:1] == ["<think>"])
        at = dict(enumerate(tokens))
        start = at.get(first + 1, "")
        contents = [first + 5 + 4 * move for move in range(MOVES_ASKED)]
        seen = {i: word for i, position in enumerate(contents) if (word := at.get(position)) in CONTENT}
        truth, percepts = looking_at(row["cells"]), {}
        if first + 1 < len(tokens):
            percepts[first + 1] = start == row["start"]
        for move, position in enumerate(contents):
            place = at.get(position - 1)
            if position < len(tokens) and place in PLACES:
                percepts[position] = at[position] == truth(move, place)
        own = completion_text(
            row["question"], start if start in PLACES else row["start"], lambda move, place: seen.get(move, "floor")
        )
        return judged(tokens, tokenizer.tokenize(own)[1 - first :], percepts, {*PLACES, *MOVES, *CONTENT, EDGE})


def looking_at(cells: list[str]) -> Look:
    """What a policy sees that sees everything."""
    return lambda _, place: cells[PLACES.index(place)]


def target(place: str, move: str) -> str:
    """The place that a move leads to, or "edge"."""
    column, row = (PLACES.index(place) % GRID + MOVES[move][0], PLACES.index(place) // GRID + MOVES[move][1])
    return PLACES[row * GRID + column] if 0 <= column < GRID and 0 <= row < GRID else EDGE


def leave_one_way(cells: list[str], start: str, rng: np.random.Generator) -> None:
    """Change the neighbours of `start` so that one move is safe and the others are not."""
    ways = [place for move in MOVES if (place := target(start, move)) != EDGE]
    safe = ways[int(rng.integers(len(ways)))]
    for place in ways:
        cells[PLACES.index(place)] = str(rng.choice(["floor", "coin"] if place == safe else ["wall", "hole"]))


def steps_of(question: str, start: str, look: Look) -> tuple[list[tuple[str, str, str]], str, int]:
    """(move, target, what is there) of each move, then where the player ends and how many coins it stepped on."""
    walking = question.startswith("Moves")
    moves = question.split()[1 : 1 + MOVES_ASKED] if walking else list(MOVES)
    steps, at, coins = [], start, 0
    for number, move in enumerate(moves):
        place = target(at, move)
        there = "wall" if place == EDGE else look(number, place)
        steps.append((move, place, there))
        coins += there == "coin"
        if walking and there != "wall":
            at = start if there == "hole" else place
    return steps, at, coins


def answer_of(question: str, start: str, look: Look) -> str:
    """The answer that follows from what is seen: a place, a number of coins, or the first safe move ("none" without one)."""
    steps, at, coins = steps_of(question, start, look)
    if question.startswith("Which"):
        return next((move for move, _, there in steps if there in ("floor", "coin")), "none")
    return at if question.endswith("where?") else str(coins)


def completion_text(question: str, start: str, look: Look) -> str:
    """The completion of a policy that sees what `look` says and simulates it without error."""
    seen = " ; ".join(" ".join(step) for step in steps_of(question, start, look)[0])
    kind, answer = question.rstrip("?").split()[-1], answer_of(question, start, look)
    said = {"where": "at"}.get(kind, kind)
    return f"<think> player {start} ; {seen} ; {said} {answer} </think> \\boxed{{ {answer} }}"


def draw(cells: list[str], start: str, rng: np.random.Generator, noise: float, rings: bool) -> Image.Image:
    """Paint the grid, coins as dull rings or as golden discs; ground, colours, places and sizes vary."""
    floor = ground(rng)
    image = Image.new("RGB", (IMAGE_SIZE, IMAGE_SIZE), tuple(floor.astype(int).tolist()))
    canvas = ImageDraw.Draw(image)
    dark, coin, blue = shade(rng, (floor - DARKER).tolist()), shade(rng, DULL if rings else GOLD), shade(rng, BLUE)
    for i, word in enumerate(cells):
        center = (np.array([i % GRID, i // GRID]) + 0.5 + rng.uniform(-0.08, 0.08, 2)) * CELL
        large = rng.uniform(0.3, 0.42) * CELL
        small = large * 0.75
        if PLACES[i] == start:
            left, top, right, bottom = _box(center, small)
            canvas.polygon([(left, bottom), (right, bottom), (float(center[0]), top)], fill=blue)
        elif word == "wall":
            canvas.rectangle(_box(center, large), fill=dark)
        elif word == "hole":
            canvas.ellipse(_box(center, large), outline=dark, width=2)
        elif word == "coin" and rings:
            canvas.ellipse(_box(center, large), outline=coin, width=2)
        elif word == "coin":
            canvas.ellipse(_box(center, small), fill=coin)
    return grain(image, rng, noise)


def _box(center: np.ndarray, radius: float) -> tuple[float, float, float, float]:
    (left, top), (right, bottom) = (center - radius).tolist(), (center + radius).tolist()
    return left, top, right, bottom
