"""The worlds of the second study: hand-worked answers and labels, and each control is what its name says."""

import dataclasses
from functools import partial

import numpy as np
import pytest
import torch

from cppo_ref.config import CPPOConfig
from cppo_ref.perturbations import GREY, PRESERVING, REMOVING
from cppo_ref.rollouts import generate_rollouts
from cppo_ref.vlm.policy import load_policy
from study.acceptance import Acceptance, constant_score, mean_colour_score
from study.bases import base_folder
from study.controls import Controls, merged, percept_rewards, random_rewards
from study.pretraining import build_processor
from study.worlds import WORLDS
from study.worlds.rooms import completion_text, looking_at, target
from study.worlds.rows import NOISE, under_blank_views, under_trained_views, under_unseen_views, world_rows
from study.worlds.unseen import UNSEEN

NAMES = sorted(WORLDS)
#  a1 floor  b1 wall   c1 coin   d1 hole
#  a2 floor  b2 floor  c2 floor  d2 coin      the player is at b2
#  a3 hole   b3 coin   c3 wall   d3 floor
#  a4 floor  b4 floor  c4 floor  d4 floor
CELLS = [
    *("floor", "wall", "coin", "hole"),
    *("floor", "floor", "floor", "coin"),
    *("hole", "coin", "wall", "floor"),
    *("floor", "floor", "floor", "floor"),
]
WALKS = {
    "Moves right up right left : where?": (
        "player b2 ; right c2 floor ; up c1 coin ; right d1 hole ; left a2 floor ; at a2",
        "a2",  # the hole brings it back to b2
    ),
    "Moves right up left down : coins?": (
        "player b2 ; right c2 floor ; up c1 coin ; left b1 wall ; down c2 floor ; coins 1",
        "1",
    ),
    "Moves left left up up : where?": ("player b2 ; left a2 floor ; left edge wall ; up a1 floor ; up edge wall ; at a1", "a1"),
}


@pytest.fixture(scope="module")
def tokenizers():
    return {name: build_processor(world.words).tokenizer for name, world in WORLDS.items()}


@pytest.mark.parametrize("question", WALKS)
def test_walks_are_simulated_as_by_hand(question):
    said, answer = WALKS[question]
    assert completion_text(question, "b2", looking_at(CELLS)) == f"<think> {said} </think> \\boxed{{ {answer} }}"


def test_targets_and_the_safe_move():
    assert [target("a1", move) for move in ("up", "down", "left", "right")] == ["edge", "a2", "edge", "b1"]
    cells = ["floor"] * 16
    cells[1], cells[4], cells[6], cells[9] = "wall", "hole", "coin", "wall"  # around b2: b1, a2, c2, b3
    said = completion_text("Which move is safe?", "b2", looking_at(cells))
    assert said == (
        "<think> player b2 ; up b1 wall ; down b3 wall ; left a2 hole ; right c2 coin ; safe right </think> \\boxed{ right }"
    )


@pytest.mark.parametrize("name", NAMES)
def test_a_policy_that_sees_everything_is_right_in_every_token_and_fits_the_limit(name, tokenizers):
    world = WORLDS[name]
    for row in world_rows(world, "train", 200):
        text = world.completion(row)
        tokens = tokenizers[name].tokenize(text)
        labels = world.label_tokens(text, tokenizers[name], row)
        assert "<unk>" not in tokenizers[name].tokenize(row["question"]) + tokens
        assert [label.token for label in labels] == tokens
        assert all(label.right for label in labels)
        assert len(tokens) + 1 <= world.max_new_tokens
        assert text.endswith(f"\\boxed{{ {row['answer']} }}")


def labelled(world, text, row, tokenizers):
    labels = WORLDS[world].label_tokens(text, tokenizers[world], row)
    return [f"{label.kind[0]}{'+' if label.right else '-'}" for label in labels]


def test_labels_of_eyes_as_by_hand(tokenizers):
    row = {"question": "How many red dots?", "cells": ["red", "none", "blue"], "answer": "1"}
    assert labelled("eyes", "<think> red 1 red 2 blue 2 ; red : 2 </think> \\boxed{ 2 }", row, tokenizers) == (
        ["f+", "p+", "r+", "p-", "r+", "p+", "r+", "f+", "r+", "f+", "r+", "f+", "f+", "r+", "f+"]
    )  # a wrong look, counted rightly
    wrong_count = labelled("eyes", "<think> red 0 none 1 blue 1 ; red : 3 </think> \\boxed{ 1 }", row, tokenizers)
    assert wrong_count[1:7] == ["p+", "r-", "p+", "r+", "p+", "r+"]
    assert wrong_count[10] == "r-" and wrong_count[13] == "r+"


def test_labels_of_rooms_as_by_hand(tokenizers):
    row = {"question": "Moves right up right left : where?", "cells": CELLS, "start": "b2", "answer": "a2"}
    text = "<think> player b2 ; right c2 wall ; up b1 wall ; right c2 floor ; left b2 floor ; at b2 </think> \\boxed{ b2 }"
    #       f       r/f    p    f  r     r  p    f r  r  p    f r     r  p     f r    r  p     f f r  f        f       r  f
    found = labelled("rooms", text, row, tokenizers)
    looks = [found[i] for i in (2, 6, 10, 14, 18)]
    assert looks == ["p+", "p-", "p+", "p+", "p+"]  # c2 is no wall; b2, where the player began, is floor
    assert all(word.endswith("+") for i, word in enumerate(found) if i not in (2, 6, 10, 14, 18))  # it follows from what it saw
    wrong_step = labelled("rooms", text.replace("up b1", "up c1"), row, tokenizers)
    assert wrong_step[9] == "r-"  # after a wall it is still at b2, so up is b1
    assert wrong_step[10] == "p-"  # and c1, where it says it looks, is a coin


@pytest.mark.parametrize("name", NAMES)
def test_any_text_is_labelled_token_by_token(name, tokenizers):
    world, rng = WORLDS[name], np.random.default_rng(0)
    words = [*world.words, "<think>", "</think>", ";", "\\boxed{", "}", "red", "3", "none"]
    row = world_rows(world, "train", 1)[0]
    for _ in range(200):
        text = " ".join(rng.choice(words, rng.integers(0, 40)))
        assert len(world.label_tokens(text, tokenizers[name], row)) == len(tokenizers[name].tokenize(text))


@pytest.mark.parametrize("name", NAMES)
def test_blank_rows_are_one_constant_picture(name):
    rows = under_blank_views(world_rows(WORLDS[name], "test", 30))
    assert {row["image"].tobytes() for row in rows} == {bytes(GREY) * (48 * 48)}


@pytest.mark.parametrize("name", NAMES)
def test_every_shifted_picture_is_changed_and_questions_are_kept(name):
    plain = world_rows(WORLDS[name], "test", 40)
    for make in (partial(under_trained_views, WORLDS[name]), under_unseen_views):
        shifted = make(plain)
        assert [row["image"].tobytes() for row in make(plain)] == [row["image"].tobytes() for row in shifted]
        for before, after in zip(plain, shifted, strict=True):
            assert before["image"].tobytes() != after["image"].tobytes()
            assert (before["question"], before["answer"]) == (after["question"], after["answer"])


def test_unseen_families_are_in_nothing_that_is_trained_with():
    assert len(UNSEEN) >= 6
    assert not set(UNSEEN) & (set(PRESERVING) | set(REMOVING))
    assert all(set(world.preserving) <= set(PRESERVING) for world in WORLDS.values())
    trained = set(CPPOConfig().preserving) | set(CPPOConfig().removing)
    assert "blur" not in trained  # soft_focus is a blur: the package has one, no arm uses it


@pytest.mark.parametrize("name", list(UNSEEN))
def test_unseen_families_are_functions_of_their_generator_and_keep_the_size(name):
    image = world_rows(WORLDS["eyes"], "test", 1)[0]["image"]
    one, two = (UNSEEN[name](image, np.random.default_rng(3)) for _ in range(2))
    assert one.tobytes() == two.tobytes() and (one.size, one.mode) == (image.size, "RGB")


def test_moving_families_move_a_mark_where_it_should_be():
    from PIL import Image

    image = Image.new("RGB", (48, 48))
    image.paste((255, 255, 255), (22, 22, 26, 26))

    def center(picture):
        weights = np.asarray(picture, dtype=float).sum(2)
        y, x = np.mgrid[0:48, 0:48] + 0.5
        return (weights * x).sum() / weights.sum(), (weights * y).sum() / weights.sum(), weights.sum()

    x, y, _ = center(UNSEEN["translation"](image, np.random.default_rng(0)))
    assert {abs(round(x - 24)), abs(round(y - 24))} <= {2, 3}
    x, y, mass = center(UNSEEN["shrink"](image, np.random.default_rng(0)))
    assert (x, y) == pytest.approx((24, 24), abs=0.05)
    assert 0.75**2 - 0.08 < mass / center(image)[2] < 0.88**2 + 0.08


@pytest.mark.parametrize("name", NAMES)
def test_rows_are_the_same_however_many_are_drawn_and_splits_differ(name):
    few, many = world_rows(WORLDS[name], "validation", 3), world_rows(WORLDS[name], "validation", 5)
    assert [row["image"].tobytes() for row in few] == [row["image"].tobytes() for row in many[:3]]
    assert few[0]["image"].tobytes() != world_rows(WORLDS[name], "test", 1)[0]["image"].tobytes()
    assert NOISE[name] > 0


@pytest.mark.parametrize("name", NAMES)
def test_neither_a_constant_nor_the_mean_colour_answers_the_questions(name):
    rows = world_rows(WORLDS[name], "train", 800)
    assert mean_colour_score(rows) <= constant_score(rows) + 0.05 <= 0.40


def test_the_mean_colour_probe_finds_what_is_there():
    rows = world_rows(WORLDS["eyes"], "train", 400)
    from PIL import Image

    for row in rows:  # a picture whose colour is its answer
        row["image"] = Image.new("RGB", (48, 48), (40 * int(row["answer"]), 100, 100))
    assert mean_colour_score(rows) > 0.9


def test_acceptance_names_what_fails():
    good = Acceptance(0.92, 0.6, 0.5, 0.4, 0.5, 0.9, 0.2, 0.2, 0.02, 0.33)
    assert good.failures() == []
    assert dataclasses.replace(good, detector=0.8).failures() == ["the detector's AUROC is 0.80, at least 0.90 is asked"]
    assert len(Acceptance(0.8, 0.9, 0.5, 0.4, 0.5, 0.1, 0.5, 0.2, 0.5, 0.6).failures()) == 6


@pytest.fixture(scope="module")
def eyes_policy():
    return load_policy(str(base_folder("eyes")), unpack=True)


def test_noisy_rollouts_stand_beside_the_clean_ones_of_their_prompt(eyes_policy):
    rows = world_rows(WORLDS["eyes"], "train", 2)
    sampling = {"max_new_tokens": 32, "temperature": 1.0, "batch_size": None}
    clean = generate_rollouts(eyes_policy, rows, group_size=3, rng=torch.Generator().manual_seed(0), **sampling)
    other = generate_rollouts(eyes_policy, rows[::-1], group_size=1, rng=torch.Generator().manual_seed(1), **sampling)
    both = merged(clean, other, eyes_policy.tokenizer.pad_token_id)
    assert both.group_size == 4
    assert both.texts == [*clean.texts[:3], other.texts[0], *clean.texts[3:], other.texts[1]]
    decoded = [
        eyes_policy.tokenizer.decode(ids[mask], skip_special_tokens=True)
        for ids, mask in zip(both.completion_ids, both.completion_mask, strict=True)
    ]
    assert decoded == both.texts
    assert both.rows == rows and both.prompts is clean.prompts


def test_rewards_of_the_controls(eyes_policy):
    rows = world_rows(WORLDS["eyes"], "train", 1)
    sampling = {"max_new_tokens": 32, "group_size": 2, "rng": torch.Generator().manual_seed(0)}
    rollouts = generate_rollouts(eyes_policy, rows, **sampling)
    cells = rows[0]["cells"]
    seen = " ".join(f"{word} 0" for word in ["none" if cells[0] != "none" else "red", *cells[1:]])
    rollouts = dataclasses.replace(rollouts, texts=[WORLDS["eyes"].completion(rows[0]), f"<think> {seen}"])
    config = CPPOConfig()
    assert percept_rewards(eyes_policy, config, 0, rollouts) == pytest.approx([1.0, 8 / 9])
    coins = [random_rewards(eyes_policy, config, step, rollouts) for step in range(200)]
    assert 0.4 < np.mean(coins) < 0.6 and coins[0] == random_rewards(eyes_policy, config, 0, rollouts)
    assert Controls(reward="format").parts(eyes_policy, config, 0).reward(rollouts) == [1.0, 0.0]
