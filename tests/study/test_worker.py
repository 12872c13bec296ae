"""The study's measurements against hand tables, probes that leave no trace, and a miniature study through the command line."""

from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from cppo_ref.config import CPPOConfig
from cppo_ref.examples.loading import load_rows, split_rows, step_rows
from cppo_ref.examples.rows import row_at
from cppo_ref.step import Parts, cppo_step
from cppo_ref.training import train
from cppo_ref.vlm.policy import load_policy, policy_for
from cppo_ref.worlds.shapes import LEVELS, asked_colors
from study import metrics, store
from study.__main__ import main
from study.controls import true_perception_tokens
from study.hints import HintedOptions, hint_in, hinted, hinted_example, hinted_rows
from study.plan import Run
from study.probes import batch_auroc, gradient, gradient_alignment, parameters_at, snapshot
from study.runner import execute_apart
from study.worker import train_arm

SMALL = CPPOConfig(prompts_per_step=2, group_size=4)
NAN = float("nan")


@pytest.fixture(scope="module")
def policy():
    return load_policy("tiny", unpack=True)


@pytest.fixture(scope="module")
def stepped(policy):
    """The batch of a small step that moved the policy, and the parameters before it."""
    before = snapshot(policy)
    rows = step_rows(load_rows("shapes", "train"), 2, 0, 0)
    _, batch = cppo_step(policy, torch.optim.SGD(policy.trainable, lr=0.1), rows, SMALL, 0)
    return batch, before


@pytest.mark.parametrize(
    ("points", "expected"),
    [
        ([(0, 0.5), (10, 0.7), (20, 0.9)], 15.0),
        ([(0, 0.85), (10, 0.9)], 0.0),
        ([(0, 0.5), (10, 0.7)], NAN),
        ([(0, 0.5), (10, 0.8), (20, 0.6)], 10.0),
    ],
)
def test_where_a_curve_reaches_its_target(points, expected):
    assert metrics.reach(points, 0.8) == pytest.approx(expected, nan_ok=True)


def test_consistency_is_the_share_of_pairs_with_the_same_boxed_answer(policy, monkeypatch):
    answers = iter([["1", "2", None], ["1", "3", None], ["1", "2", "0"]])  # plain, first views, second views
    monkeypatch.setattr(metrics, "greedy_answers", lambda policy, rows: next(answers))
    rows = [{"image": Image.new("RGB", (48, 48))}] * 3
    assert metrics.consistency(policy, rows, views=2) == pytest.approx(3 / 6)


def test_the_views_of_consistency_are_the_same_for_every_policy(policy, monkeypatch):
    seen = []
    monkeypatch.setattr(
        metrics, "greedy_answers", lambda policy, rows: (seen.append([np.asarray(r["image"]) for r in rows]), ["1"] * 2)[1]
    )
    rows = split_rows("test", count=2)
    for _ in range(2):
        metrics.consistency(policy, rows)
    assert len(seen) == 8
    assert np.array_equal(seen[:4], seen[4:])
    assert not np.array_equal(seen[1], seen[2])


def test_sensitivity_is_the_mean_on_the_true_perception_tokens(policy, monkeypatch):
    rows = split_rows("test", count=3)

    def shift(policy, rollouts, **_):
        values = torch.full(rollouts.completion_mask.shape, -5.0)
        values[:, 1:10] = torch.tensor([[1.0], [2.0], [6.0]])  # the listing of nine cells
        return values, values

    monkeypatch.setattr(metrics, "completion_shift", shift)
    assert metrics.sensitivity(policy, rows, 0) == pytest.approx(3.0)


@pytest.mark.parametrize(("level", "shown"), [("easy", "shifted"), ("shortcut", "the same")])
def test_validation_rows_are_made_as_the_test_rows_are(level, shown):
    rows = metrics.evaluation_rows(level, "validation", 12)
    plain, shift = (rows[name] for name in ("plain", "shift"))
    assert [row["answer"] for row in plain] == [row["answer"] for row in shift]
    same = [np.array_equal(a["image"], b["image"]) for a, b in zip(plain, shift, strict=True)]
    assert all(same) if shown == "the same" else sum(same) < 6
    if level == "shortcut":
        assert not any(hint_in(row["question"]) == row["answer"] for row in shift)
    again = metrics.evaluation_rows(level, "validation", 12)
    assert all(np.array_equal(a["image"], b["image"]) for a, b in zip(shift, again["shift"], strict=True))


@pytest.mark.parametrize(
    ("split", "right"), [("train", 1600), ("validation", 160), ("test", 240), ("test_blank", 240), ("test_shift", 0)]
)
def test_hints_are_right_in_80_percent_and_never_in_the_shifted_test(split, right):
    rows = hinted_rows(split)
    hints = [hint_in(question) for question in rows.table["question"]]
    assert sum(hint == answer for hint, answer in zip(hints, rows.table["answer"], strict=True)) == right
    assert set(hints) == set("01234")
    assert hinted_rows(split).table["question"] == rows.table["question"]
    easy = load_rows("shapes", "test" if split == "test_shift" else split, "easy")
    assert [question.partition(" hint ")[0] for question in rows.table["question"]] == list(easy.table["question"])
    assert np.array_equal(row_at(rows, 0)["image"], row_at(easy, 0)["image"])


def test_a_hint_by_hand():
    rng = np.random.default_rng(0)
    question = "How many red shapes?"
    assert hinted(question, 3, True, 4, rng) == "How many red shapes? hint 3"
    assert {hint_in(hinted(question, 3, False, 4, rng)) for _ in range(100)} == set("0124")
    assert hint_in(question) is None
    assert asked_colors(hinted(question, 3, True, 4, rng)) == ["red"]


def test_pretraining_shares_by_count():
    options = HintedOptions(hint_share=0.5, hint_trust=0.3, guess_rate=0.0)
    rng = np.random.default_rng(0)
    rows = [hinted_example(rng, LEVELS["easy"], options) for _ in range(2000)]
    examples = [(row["image"], row["question"], row["completion"]) for row in rows]
    hints = [(hint_in(question), text.split("boxed{ ")[1][0], text) for _, question, text in examples if hint_in(question)]
    truth = [str(text.split(";")[0].split().count(q.split()[2])) for _, q, text in examples if hint_in(q)]
    assert len(hints) == pytest.approx(1000, abs=70)
    assert np.mean([hint == right for (hint, _, _), right in zip(hints, truth, strict=True)]) == pytest.approx(0.8, abs=0.04)
    followed = [said == hint for (hint, said, _), right in zip(hints, truth, strict=True) if hint != right]
    assert np.mean(followed) == pytest.approx(0.3, abs=0.1)


def test_the_arm_is_trained_as_train_does_and_the_probes_change_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("study.worker.PROBE_IMAGES", 2)
    config = CPPOConfig(prompts_per_step=2, group_size=4, steps=3, eval_rows=0, output=str(tmp_path / "run"))
    policy = policy_for(config)
    run = Run("tiny", "cppo", 0, steps=3, probe_every=1)
    curve = train_arm(policy, run, config)
    result = train(config, progress=False)
    trained = load_policy("tiny", adapter=str(result.adapter))
    assert all(torch.equal(a, b) for a, b in zip(policy.trainable, trained.trainable, strict=True))
    assert [point["step"] for point in curve] == [0, 1, 2, 3]
    assert [point["reward"] for point in curve[1:]] == [step["reward"] for step in result.history]


def test_probes_leave_no_trace_and_measure_before_the_step(policy, stepped):
    batch, before = stepped
    after = snapshot(policy)
    with parameters_at(policy, before):
        assert all(torch.equal(a, b) for a, b in zip(policy.trainable, before, strict=True))
        alignment = gradient_alignment(policy, batch, SMALL)
    assert all(torch.equal(a, b) for a, b in zip(policy.trainable, after, strict=True))
    assert all(parameter.grad is None for parameter in policy.trainable)
    assert -1 <= alignment["gradient_cosine"] <= 1
    assert alignment["gradient_ratio"] > 0


def test_gradients_add_up(policy, stepped):
    batch, _ = stepped
    cpl = gradient(policy, batch, replace(SMALL, kl_weight=0.0), Parts(policy_weight=0.0))
    grpo = gradient(policy, replace(batch, selected=None), replace(SMALL, cpl_weight=0.0))
    torch.testing.assert_close(cpl + grpo, gradient(policy, batch, SMALL), atol=1e-6, rtol=1e-3)


def test_the_batch_auroc_by_hand(policy, stepped):
    batch, _ = stepped
    truth = true_perception_tokens(policy, batch.rollouts).float()
    assert batch_auroc(policy, replace(batch, shift=truth)) == 1.0
    assert batch_auroc(policy, replace(batch, shift=-truth)) == 0.0
    assert batch_auroc(policy, replace(batch, shift=None)) != batch_auroc(policy, replace(batch, shift=None))


def test_a_miniature_study_through_the_command_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    study = ["--arms", "grpo,cppo", "--seeds", "0", "--steps", "2", "--images", "4", "--out", "out"]
    assert main(study) == 0
    assert "2 runs, 0 finished, 2 to go" in capsys.readouterr().out
    rows = store.read_csv(tmp_path / "out/study.csv")
    assert [(row["arm"], row["steps"], row["split"], row["images"]) for row in rows] == [
        ("cppo", "2", "test", "4"),
        ("grpo", "2", "test", "4"),
    ]
    for name in set(store.METRICS) - {"steps_to_80", "seconds_to_80"}:
        assert all(row[name] for row in rows), name
    curves = pq.read_table(tmp_path / "out/curves.parquet").to_pylist()
    assert [(point["arm"], point["step"]) for point in curves] == [
        (arm, step) for arm in ("cppo", "grpo") for step in (0, 1, 2)
    ]
    last = curves[2]
    assert last["gradient_ratio"] > 0
    assert 0 <= last["validation_avg_at_8"] <= 1
    assert len({row["config_hash"] for row in rows}) == 2
    assert main(study) == 0
    assert "2 finished, 0 to go" in capsys.readouterr().out
    assert main([*study, "--verify", "--arms", "cppo"]) == 0
    assert "tiny easy cppo 0: the same\n" in capsys.readouterr().out


def test_a_run_that_fails_in_its_process_says_why_and_keeps_its_log(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = Run("tiny", "grpo", 0, steps=1, images=2, probe_every=0)
    assert execute_apart(run) == "ZeroDivisionError: integer modulo by zero"
    (log,) = (tmp_path / store.RUNS_FOLDER).iterdir()
    assert log.suffix == ".log" and "probe_every" in log.read_text()
