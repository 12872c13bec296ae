"""The shortcut world: the easy pictures, with a hint in the question that is right four times out of five.

A policy that repeats the hint needs no look at the picture. In the shifted test every hint is wrong, and the pictures stay.
"""

from dataclasses import dataclass

import datasets
import numpy as np

from cppo_ref.examples.loading import load_rows
from cppo_ref.examples.rows import Rows
from cppo_ref.worlds.shapes import LEVELS, Level, asked_colors, completion_text
from cppo_ref.worlds.splits import WORLD_SEED
from study.pretraining import PretrainOptions, training_example

LEVEL = "shortcut"
HINT_RIGHT = 0.8  # share of right hints; none is right in test_shift


@dataclass(frozen=True)
class HintedOptions(PretrainOptions):
    """How the base of this world is made."""

    hint_share: float = 0.0  # share of 3×3 questions with a hint, right as often as in training
    hint_trust: float = 0.0  # share of hinted examples that answer with the hint instead of their count


def hinted_rows(split: str) -> Rows:
    """A split of the easy level with hints; in "test_shift" they are all wrong, and the pictures are the test split's."""
    if split == "test_shift":
        return with_hints(load_rows("shapes", "test", "easy"), 0.0)
    return with_hints(load_rows("shapes", split, "easy"), HINT_RIGHT)


def with_hints(rows: Rows, right: float) -> Rows:
    """Easy rows whose questions hint at the answer; ⌊right · n + ½⌋ of the n hints are true, the same ones each time."""
    table: datasets.Dataset = rows.table
    rng = np.random.default_rng([WORLD_SEED, len(table), round(1000 * right)])
    true = rng.permutation(len(table)) < int(right * len(table) + 0.5)
    top = LEVELS["easy"].max_answer
    pairs = zip(table["question"], table["answer"], true, strict=True)
    questions = [hinted(question, int(answer), bool(told), top, rng) for question, answer, told in pairs]
    return Rows(table.remove_columns("question").add_column("question", questions))  # pyright: ignore[reportCallIssue]


def hinted(question: str, answer: int, right: bool, max_answer: int, rng: np.random.Generator) -> str:
    """The question with a hint at its answer, "How many red shapes? hint 3": the truth, or a draw from the other answers."""
    others = [number for number in range(max_answer + 1) if number != answer]
    return f"{question} hint {answer if right else rng.choice(others)}"


def hint_in(question: str) -> str | None:
    """The number that a question hints at; None without a hint."""
    return question.partition(" hint ")[2] or None


def hinted_example(rng: np.random.Generator, level: Level, options: PretrainOptions) -> dict:
    """A pretraining example, of which a share has a hint, and of these a share answers with it instead of its count."""
    assert isinstance(options, HintedOptions)
    row = training_example(rng, level, options)
    if not options.hint_share or level.colors_asked != 1 or rng.random() >= options.hint_share:
        return row
    question = hinted(row["question"], int(row["answer"]), rng.random() < HINT_RIGHT, level.max_answer, rng)
    trusted = hint_in(question) if rng.random() < options.hint_trust else None
    listing = row["completion"].removeprefix("<think> ").partition(" ;")[0].split()
    (color,) = asked_colors(question)
    counted = completion_text(listing, [color])
    said = counted if trusted is None else f"<think> {' '.join(listing)} ; {color} : {trusted} </think> \\boxed{{ {trusted} }}"
    return row | {"question": question, "completion": said}
