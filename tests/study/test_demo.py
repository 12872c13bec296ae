"""The demonstration: its table, its training file, and a run of one step from the command line."""

import pytest

from cppo_ref.evaluation import SplitReport
from cppo_ref.examples.loading import load_rows
from cppo_ref.examples.rows import images_of, row_at
from cppo_ref.runs.intervals import Interval
from study.__main__ import main
from study.demo import WORLD, before_after_table, demo_splits, write_training_file
from study.worlds.rows import world_rows


def report(greedy, average, seen):
    return SplitReport(Interval(average, average - 0.1, average + 0.1), greedy, seen, 1.0, images=4, samples=8)


def test_the_table_shows_greedy_beside_avg_at_8_before_and_after():
    table = before_after_table({"plain": report(0.5, 0.4, 0.6)}, {"plain": report(0.75, 0.7, 0.9)})
    assert table.split("\n")[1:] == [
        "pictures       greedy          avg@8 before           avg@8 after            seen rightly",
        "plain          0.500 → 0.750   0.400 [0.300, 0.500]   0.700 [0.600, 0.800]   0.600 → 0.900",
    ]


def test_it_trains_on_the_worlds_own_rows_pixel_for_pixel(tmp_path):
    write_training_file(tmp_path / "data" / "train.parquet", 3)
    rows = load_rows(str(tmp_path / "data" / "train.parquet"), "train", instruction="none")
    assert len(rows) == 3
    for row, drawn in zip((row_at(rows, i) for i in range(3)), world_rows(WORLD, "train", 3), strict=True):
        assert images_of(row)[0].tobytes() == drawn["image"].tobytes()
        assert (row["question"], row["answer"]) == (drawn["question"], drawn["answer"])


def test_the_splits_ask_the_same_and_no_picture_stays_as_it_was():
    splits = demo_splits(8)
    plain = splits.pop("plain")
    assert list(splits) == ["unseen shifts", "trained views", "blank"]
    for rows in splits.values():
        assert [(row["question"], row["answer"]) for row in rows] == [(row["question"], row["answer"]) for row in plain]
        assert all(new["image"].tobytes() != old["image"].tobytes() for new, old in zip(rows, plain, strict=True))
    assert len({row["image"].tobytes() for row in splits["blank"]}) == 1


def test_one_step_from_the_command_line(tmp_path, capsys):
    (tmp_path / "demo-grpo-data").mkdir()  # of one that was stopped before it trained
    arguments = ["demo", "--method", "grpo", "--steps", "1", "--images", "2", "--output", str(tmp_path / "demo")]
    assert main(arguments) == 0
    assert "unseen shifts" in capsys.readouterr().out
    assert (tmp_path / "demo-grpo-data-2" / "train.parquet").is_file()
    assert (tmp_path / "demo-grpo" / "before_after.png").is_file() and (tmp_path / "demo-grpo" / "adapter").is_dir()


@pytest.mark.parametrize("method", ["dapo", "consistency"])
def test_an_unknown_method_is_one_sentence(method, capsys):
    assert main(["demo", "--method", method]) == 2
    assert f"'{method}'" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--steps", "--images"])
def test_none_of_something_is_one_sentence_and_nothing_is_written(option, tmp_path, capsys):
    assert main(["demo", option, "0", "--output", str(tmp_path / "demo")]) == 2
    assert f"study: {option[2:]} is 0, expected " in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_stop_before_training_is_one_word(tmp_path, capsys, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("study.demo.evaluate_split", interrupted)
    assert main(["demo", "--images", "2", "--output", str(tmp_path / "demo")]) == 130
    assert capsys.readouterr().err.endswith("\nstudy: stopped\n")
