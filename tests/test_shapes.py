"""The shape world: pictures show what the rows say, answers are right and even, and token labels follow hand-written tables."""

import os
import re
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest

from cppo_ref.worlds.shapes import BACKGROUND, COLORS, LEVELS, completion_text, label_tokens, sample_row
from study.pretraining import build_processor

SEEN = "red none blue red none none green none none"
GOOD = rf"<think> {SEEN} ; red : 2 </think> \boxed{{ 2 }}"
KINDS = {"p": "perception", "r": "reasoning", "f": "format"}
VERDICTS = {"+": True, "-": False, "?": None}


def rows_of(level, count, seed=0):
    rng = np.random.default_rng(seed)
    return [sample_row(rng, LEVELS[level]) for _ in range(count)]


def row_showing(cells, question="How many red shapes?"):
    return {"question": question, "objects": [{"color": color, "kind": "circle"} for color in cells.split()]}


@pytest.mark.parametrize(("level", "cells"), [("easy", 9), ("hard", 16)])
def test_the_answer_counts_the_asked_colours_among_the_objects(level, cells):
    for row in rows_of(level, 200):
        asked = re.findall("red|green|blue|yellow", row["question"])
        counts = Counter(thing["color"] for thing in row["objects"])
        assert row["answer"] == str(sum(counts[color] for color in asked))
        assert len(row["objects"]) == cells
        assert len(set(asked)) == len(asked) == {"easy": 1, "hard": 2}[level]


@pytest.mark.parametrize(("level", "values"), [("easy", 5), ("hard", 7)])
def test_answers_are_uniform(level, values):
    counts = Counter(int(row["answer"]) for row in rows_of(level, 2000))
    assert sorted(counts) == list(range(values))
    spread = (2000 * (1 / values) * (1 - 1 / values)) ** 0.5
    assert all(abs(count - 2000 / values) < 4 * spread for count in counts.values())


@pytest.mark.parametrize(("level", "grid"), [("easy", 3), ("hard", 4)])
def test_each_cell_of_the_picture_shows_its_object_and_nothing_else(level, grid):
    for row in rows_of(level, 40):
        pixels = np.asarray(row["image"])
        assert pixels.shape == (48, 48, 3)
        side = 48 // grid
        for index, thing in enumerate(row["objects"]):
            top, left = index // grid * side, index % grid * side
            cell = pixels[top : top + side, left : left + side].reshape(-1, 3)
            shown = {tuple(int(v) for v in pixel) for pixel in cell}
            expected = {BACKGROUND} if thing["color"] == "none" else {BACKGROUND, COLORS[thing["color"]]}
            assert shown == expected
            middle = pixels[top + side // 4 : top + side - side // 4, left + side // 4 : left + side - side // 4]
            covered = (middle.reshape(-1, 3) != BACKGROUND).any(axis=1).mean()
            assert covered > 0.1 or thing["color"] == "none"


def test_cells_without_a_shape_have_no_kind():
    for row in rows_of("easy", 50):
        assert all((thing["color"] == "none") == (thing["kind"] == "none") for thing in row["objects"])


def test_rows_are_the_same_in_processes_with_different_hash_seeds():
    code = (
        "import hashlib, numpy as np; from cppo_ref.worlds.shapes import LEVELS, sample_row\n"
        "rng, sha = np.random.default_rng(7), hashlib.sha256()\n"
        "for level in LEVELS.values():\n"
        "    for row in (sample_row(rng, level) for _ in range(50)):\n"
        "        sha.update(row.pop('image').tobytes() + repr(row).encode())\n"
        "print(sha.hexdigest())"
    )
    digests = {
        subprocess.run(
            [sys.executable, "-c", code], env=os.environ | {"PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True
        ).stdout.strip()
        for seed in ("1", "2")
    }
    assert len(digests) == 1
    assert len(digests.pop()) == 64


def test_rows_depend_on_the_seed():
    assert rows_of("easy", 5, seed=0) == rows_of("easy", 5, seed=0)
    assert rows_of("easy", 5, seed=0) != rows_of("easy", 5, seed=1)


def test_completion_text_counts_what_was_listed():
    assert completion_text(SEEN.split(), ["red"]) == GOOD
    assert completion_text(["red", "blue", "red"], ["blue", "red"]) == (
        r"<think> red blue red ; blue : 1 ; red : 2 ; total : 3 </think> \boxed{ 3 }"
    )


FOUR_BY_FOUR = "red blue none none red none none none none none blue none none none none yellow"

# one code per token: p(erception) r(easoning) f(ormat), and + right, - wrong, ? no verdict
LABELS = {
    "right": (GOOD, "f+ p+p+p+p+p+p+p+p+p+ f+ r+f+r+ f+ f+r+f+"),
    "wrong cell, counted as listed": (
        r"<think> red none red red none none green none none ; red : 3 </think> \boxed{ 3 }",
        "f+ p+p+p-p+p+p+p+p+p+ f+ r+f+r+ f+ f+r+f+",
    ),
    "right cells, wrong count": (
        rf"<think> {SEEN} ; red : 4 </think> \boxed{{ 4 }}",
        "f+ p+p+p+p+p+p+p+p+p+ f+ r+f+r- f+ f+r-f+",
    ),
    "right count, another answer": (
        rf"<think> {SEEN} ; red : 2 </think> \boxed{{ 3 }}",
        "f+ p+p+p+p+p+p+p+p+p+ f+ r+f+r+ f+ f+r-f+",
    ),
    "another colour counted": (
        rf"<think> {SEEN} ; blue : 1 </think> \boxed{{ 1 }}",
        "f+ p+p+p+p+p+p+p+p+p+ f+ r-f+r- f+ f+r-f+",
    ),
    "too few cells": (r"<think> red none blue ; red : 1 </think> \boxed{ 1 }", "f+ p+p+p+ f+ r+f+r+ f+ f+r+f+"),
    "too many cells": (rf"<think> {SEEN} red ; red : 3 </think> \boxed{{ 3 }}", "f+ p+p+p+p+p+p+p+p+p+p- f+ r+f+r+ f+ f+r+f+"),
    "no cells": (r"<think> ; red : 0 </think> \boxed{ 0 }", "f+ f+ r+f+r+ f+ f+r+f+"),
    "no <think>": (GOOD.removeprefix("<think> "), "p+p+p+p+p+p+p+p+p+ f+ r+f+r+ f+ f+r+f+"),
    "no box": (rf"<think> {SEEN} ; red : 2 </think> 2", "f+ p+p+p+p+p+p+p+p+p+ f+ r+f+r+ f+ r-"),
    "cut short": (rf"<think> {SEEN} ; red :", "f+ p+p+p+p+p+p+p+p+p+ f+ r+f+"),
    "words after the end": (GOOD + " 3 red }", "f+ p+p+p+p+p+p+p+p+p+ f+ r+f+r+ f+ f+r+f+ r-r-f-"),
    "garbage": ("? 7 ; } how red", "f-r-f-f-f-r-"),
    "words outside the vocabulary": ("lorem ipsum", "f-f-"),
    "only <think>": ("<think>", "f+"),
    "empty": ("", ""),
}


@pytest.fixture(scope="module")
def tokenizer():
    return build_processor().tokenizer


def codes(text, tokenizer, row):
    labels = label_tokens(text, tokenizer, row)
    assert [label.token for label in labels] == tokenizer.tokenize(text)
    return [(label.kind, label.right) for label in labels]


def table(written):
    packed = written.replace(" ", "")
    return [(KINDS[kind], VERDICTS[right]) for kind, right in zip(packed[::2], packed[1::2], strict=True)]


@pytest.mark.parametrize(("text", "expected"), LABELS.values(), ids=LABELS.keys())
def test_labels_are_those_of_the_hand_written_table(text, expected, tokenizer):
    assert codes(text, tokenizer, row_showing(SEEN)) == table(expected)


def test_labels_of_the_hard_level_judge_the_total_as_reasoning(tokenizer):
    row = row_showing(FOUR_BY_FOUR, "How many red plus blue shapes?")
    right = rf"<think> {FOUR_BY_FOUR} ; red : 2 ; blue : 2 ; total : 4 </think> \boxed{{ 4 }}"
    assert codes(right, tokenizer, row) == table("f+" + "p+" * 16 + "f+ r+f+r+ f+ r+f+r+ f+ r+f+r+ f+ f+r+f+")
    wrong_total = right.replace("total : 4", "total : 5")
    assert codes(wrong_total, tokenizer, row) == table("f+" + "p+" * 16 + "f+ r+f+r+ f+ r+f+r+ f+ r+f+r- f+ f+r+f+")


def test_without_a_row_cells_and_asked_colours_have_no_verdict(tokenizer):
    text = r"<think> red none blue red ; red : 2 </think> \boxed{ 3 }"
    assert codes(text, tokenizer, None) == table("f+ p?p?p?p? f+ r?f+r+ f+ f+r-f+")
    assert codes("", tokenizer, None) == []


def test_no_text_makes_labelling_fail(tokenizer):
    words = [*tokenizer.get_vocab(), "\n", "\\boxed", "lorem", "²", "🟥", "-1"]
    rng = np.random.default_rng(0)
    for _ in range(300):
        text = " ".join(rng.choice(words, rng.integers(0, 30)))
        row = [row_showing(SEEN), row_showing("red", "What?"), None][rng.integers(3)]
        assert len(codes(text, tokenizer, row)) == len(tokenizer.tokenize(text))
