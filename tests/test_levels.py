"""No default may cut a right answer of the shape world: the 4×4 world once was sampled with 32 tokens, where it needs 34."""

import pytest
from transformers import AutoTokenizer

from cppo_ref import evaluation
from cppo_ref.__main__ import main
from cppo_ref.config import CPPOConfig
from cppo_ref.evaluation import sample_answers
from cppo_ref.examples.loading import load_rows, split_rows
from cppo_ref.runs.options import settings
from cppo_ref.vlm.policy import load_policy
from cppo_ref.worlds.shapes import LEVELS, asked_colors, completion_text, world_of
from cppo_ref.worlds.splits import data_folder

# counted by hand: <think>, 9 cells, ";", "red : 2", </think>, "\boxed{ 2 }" and the end; 16 cells, two counts and a total
TOKENS = {"easy": 1 + 9 + 4 + 1 + 3 + 1, "hard": 1 + 16 + 3 * 4 + 1 + 3 + 1}


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(data_folder() / "tiny-vlm")


@pytest.mark.parametrize("level", TOKENS)
def test_every_right_answer_has_as_many_tokens_as_its_level_says(level, tokenizer):
    table = load_rows("shapes", "test", level).table
    right = [
        completion_text([thing["color"] for thing in objects], asked_colors(question))
        for objects, question in zip(table["objects"], table["question"], strict=True)
    ]
    assert {len(tokenizer.tokenize(text)) + 1 for text in right} == {TOKENS[level]}
    assert LEVELS[level].answer_tokens == TOKENS[level]


@pytest.mark.parametrize("level", TOKENS)
def test_defaults_leave_room_for_a_right_answer(level, monkeypatch):
    limits, sample = [], evaluation.generate_rollouts
    record = lambda *rows, **options: limits.append(options["max_new_tokens"]) or sample(*rows, **options)  # noqa: E731
    monkeypatch.setattr(evaluation, "generate_rollouts", record)
    (answers,) = sample_answers(
        load_policy("tiny", quantize="none"), split_rows("validation", level, 1), samples=1, temperature=0
    )
    assert answers.finished.all()
    limits.append(CPPOConfig(level=level).max_new_tokens)
    limits.append(CPPOConfig.preset("grpo", level=level).max_new_tokens)
    limits.append(settings("train", ["--level", level])[0].max_new_tokens)
    limits.append(settings("train", ["--preset", "verl", "--level", level])[0].max_new_tokens)
    assert len(set(limits)) == 1 and limits[0] > TOKENS[level]
    assert limits[0] == {"easy": 32, "hard": 48}[level]


def test_other_data_have_a_default_of_their_own():
    assert CPPOConfig(data="rows.jsonl").max_new_tokens == 128
    said = "the rows are not of the shape world, which knows how long an answer is: give max_new_tokens$"
    with pytest.raises(ValueError, match=said):
        world_of({"question": "How many?", "answer": "2"})


@pytest.mark.parametrize(("level", "given", "needed"), [("hard", 32, 34), ("hard", 33, 34), ("easy", 18, 19)])
def test_a_limit_that_cuts_right_answers_is_refused_before_a_folder_is_made(level, given, needed, tmp_path, capsys):
    words = f"train --level {level} --max_new_tokens {given} --steps 1 --output {tmp_path / 'run'}".split()
    assert main(words) == 2
    said = capsys.readouterr().err
    assert f"max_new_tokens is {given}" in said and f"--max_new_tokens {needed} or more" in said
    assert not (tmp_path / "run").exists()


def test_the_boxed_answer_of_other_data_has_to_fit(tmp_path, capsys):
    data = load_rows("shapes", "test").table.select(range(4)).remove_columns("objects")
    data.to_parquet(tmp_path / "rows.parquet")
    words = f"train --data {tmp_path / 'rows.parquet'} --max_new_tokens 1 --steps 1 --output {tmp_path / 'run'}".split()
    assert main(words) == 2
    said = capsys.readouterr().err
    assert "max_new_tokens is 1, but a right answer takes" in said and "its end included" in said
    assert not (tmp_path / "run").exists()
