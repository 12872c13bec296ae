"""Evaluation: intervals, avg@k, the verdict on tokens, the detector, and what the tiny VLM is committed to."""

import json

import numpy as np
import pytest
import torch

from cppo_ref.config import CPPOConfig
from cppo_ref.evaluation import avg_at_k, correctness, evaluate_split
from cppo_ref.examples.loading import split_rows
from cppo_ref.rollouts import Rollouts, generate_rollouts
from cppo_ref.runs import report
from cppo_ref.runs.detector import completion_shift, evaluate_detector
from cppo_ref.runs.intervals import Interval, bootstrap_interval
from cppo_ref.runs.report import best_constant_guess, evaluate_run
from cppo_ref.vlm.policy import load_policy
from cppo_ref.worlds.splits import data_folder


@pytest.fixture(scope="module")
def policy():
    return load_policy("tiny", lora=None)


@pytest.fixture(scope="module")
def committed():
    return json.loads((data_folder() / "tiny-vlm" / "evaluation.json").read_text())


def answered(texts, answers, group_size):
    rows = [{"answer": answer} for answer in answers]
    template = dict.fromkeys(("prompts", "completion_ids", "completion_mask", "finished"))
    rollouts = object.__new__(Rollouts)  # the texts are all that is judged
    vars(rollouts).update(template, rows=rows, group_size=group_size, texts=texts)
    return rollouts


def test_avg_at_k_counts_right_samples_per_image():
    texts = ["\\boxed{2}", "\\boxed{3}", "\\boxed{1}", "\\boxed{1}", "no box", "\\boxed{0}"]
    rollouts = answered(texts, ["2", "1", "5"], 2)
    assert correctness([rollouts]).tolist() == [[1, 0], [1, 1], [0, 0]]
    assert avg_at_k([rollouts]).value == 0.5


def test_the_interval_is_over_images_and_not_over_samples():
    """One image always right, one never: a resample of two images is 0, ½ or 1, with 0 and 1 a quarter each."""
    rollouts = answered(["\\boxed{1}"] * 8 + ["\\boxed{2}"] * 8, ["1", "3"], 8)
    assert avg_at_k([rollouts]) == Interval(0.5, 0.0, 1.0)


def test_shares_count_the_tokens_of_their_own_kind(policy, monkeypatch):
    """9 cells of which 7 are right; "red", "1" (of what was listed) and the boxed "2" to judge: 2 of 3 right."""
    text = "<think> red none none none none none none blue blue ; red : 1 </think> \\boxed{ 2 }"
    row = {"question": "How many red shapes?", "answer": "1", "objects": [{"color": c} for c in ["red"] + ["none"] * 8]}
    rollouts = answered([text], ["1"], 1)
    vars(rollouts).update(rows=[row])
    monkeypatch.setattr("cppo_ref.evaluation.sample_answers", lambda *_, **__: [rollouts])
    report = evaluate_split(policy, [row], samples=1)
    assert report.perception == pytest.approx(7 / 9)
    assert report.reasoning == pytest.approx(2 / 3)
    assert (report.avg_at_k.value, report.greedy) == (0.0, 0.0)


def test_every_picture_of_the_detector_has_its_own_view(policy, monkeypatch):
    row = split_rows("test", count=1)[0]
    rng = torch.Generator().manual_seed(0)
    rollouts = generate_rollouts(policy, [row] * 3, group_size=1, max_new_tokens=2, rng=rng)
    encoded, encode = [], policy.encode
    monkeypatch.setattr(policy, "encode", lambda images, questions: (encoded.extend(images), encode(images, questions))[1])
    completion_shift(policy, rollouts, removing=["noise_patches"])
    assert len({view.tobytes() for (view,) in encoded}) == 3


def test_the_bootstrap_interval_is_near_the_normal_one():
    values = np.random.default_rng(0).normal(3.0, 2.0, 400)
    interval = bootstrap_interval(values)
    half = 1.96 * values.std(ddof=1) / 20
    assert interval.value == pytest.approx(values.mean())
    assert interval.low == pytest.approx(values.mean() - half, abs=0.03)
    assert interval.high == pytest.approx(values.mean() + half, abs=0.03)


def test_an_interval_of_equal_values_has_no_width():
    assert bootstrap_interval(np.ones(5)) == Interval(1.0, 1.0, 1.0)


def test_the_best_constant_guess_is_the_most_frequent_answer():
    assert best_constant_guess([{"answer": a} for a in "0110122110"]) == 0.5


def test_the_detector_report_agrees_with_a_shift_made_by_hand(policy, monkeypatch):
    """With ΔH = 1 exactly on the listing, AUROC, precision and recall at top fraction 1 are 1; reversed, 0."""
    rows = split_rows("test", count=6)
    for sign, expected in ((1.0, 1.0), (-1.0, 0.0)):

        def shift(policy, rollouts, sign=sign, **_):
            on_listing = rollouts.completion_mask.float() * 0 - sign
            on_listing[:, 1:10] = sign
            return on_listing * rollouts.completion_mask, on_listing.abs()

        monkeypatch.setattr("cppo_ref.runs.detector.completion_shift", shift)
        report = evaluate_detector(policy, rows, top_fraction=1.0)
        assert report.auroc_absolute == report.auroc_normalized == expected
        assert report.precision == report.recall == expected


def test_the_tiny_vlm_does_what_its_card_says(policy, committed):
    """The committed evaluation, repeated on fewer images."""
    plain = evaluate_split(policy, split_rows("test", count=60), samples=8)
    stated = committed["splits"]["test"]
    assert plain.avg_at_k.value == pytest.approx(stated["avg_at_k"]["value"], abs=0.1)
    assert plain.greedy == pytest.approx(stated["greedy"], abs=0.1)


def test_the_tiny_vlm_looks_doubts_hallucinates_and_stumbles_on_shifts(committed):
    splits = committed["splits"]
    assert splits["test"]["greedy"] > 0.9  # it looks
    assert splits["test"]["avg_at_k"]["value"] <= 0.6  # it hallucinates: room for reinforcement learning
    assert splits["test_shift"]["avg_at_k"]["value"] <= 0.45  # room for CPPO
    assert abs(splits["test_blank"]["avg_at_k"]["value"] - committed["best_constant_guess"]) <= 0.05
    assert committed["detector"]["noise_patches ×4"]["auroc_absolute"] >= 0.88  # it doubts when information is removed


def test_a_runs_own_instruction_is_in_the_questions_that_judge_it(monkeypatch):
    asked = []

    def look(policy, rows, **options):
        asked.extend(row["question"] for row in rows)
        raise NotImplementedError

    monkeypatch.setattr(report, "evaluate_detector", look)
    with pytest.raises(NotImplementedError):
        evaluate_run(CPPOConfig(instruction="Say it twice."), images=3)
    assert len(asked) == 3
    assert all(question.endswith("?\nSay it twice.") for question in asked)
