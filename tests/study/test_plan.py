"""The study's arms, bases, order, storage and resumption, without training anything; and the protocol that states them."""

import csv
import dataclasses
import json
import re
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from cppo_ref.config import CPPOConfig, InputError
from study import bases, runner, store
from study.analysis import power_table
from study.arms import ARMS, MAIN, SUITES, SWEEPS, arms_of, arms_table
from study.controls import Controls
from study.hints import HintedOptions
from study.plan import HASHED, LATER, Run, plan, seeds_in
from study.runner import StudyOptions, run_study

ROOT = Path(__file__).parents[2]


@pytest.fixture
def place(tmp_path, monkeypatch):
    """An empty working folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def fake_result(run, **changes):
    """A result as the worker writes it, without the work."""
    key = dict(zip(store.KEY, run.key, strict=True))
    row = dict.fromkeys(store.COLUMNS, "x") | key | dict.fromkeys(store.METRICS, 0.5) | {"split": run.split}
    row |= {
        "steps": run.trained_steps,
        "seconds": 1.0,
        "wall_seconds": 8.0,
        "images": run.images,
        "config_hash": run.config_hash,
    }
    curve = [dict.fromkeys(store.CURVE_COLUMNS, 0.25) | key | {"step": step} for step in range(3)]
    return {"row": row | {"steps_to_80": float("nan")} | changes, "curve": curve, "detector": []}


def fake_execution(log, fail=()):
    def execute(run):
        log.append(run)
        if run.arm in fail:
            return "OutOfMemoryError"
        store.write_aside(store.result_path(run), json.dumps(fake_result(run)).encode())
        return ""

    return execute


@pytest.mark.parametrize("arm", ARMS.values(), ids=ARMS.keys())
def test_every_arm_is_a_valid_config_that_differs_from_the_defaults_as_the_table_says(arm):
    run = Run("tiny", arm.name, 3)
    config, plain = run.config.to_dict(), CPPOConfig().to_dict()
    housekeeping = {"model", "seed", "steps", "eval_rows", "device", "unpack"}
    changed = {name for name in config if config[name] != plain[name]} - housekeeping
    follows = (
        {"learning_rate", "max_new_tokens"} if "level" in arm.changes else {"learning_rate"}
    )  # the limit follows the level
    assert changed - follows <= arm.changes.keys() <= {*HASHED, *LATER}
    assert config["learning_rate"] == arm.changes.get("learning_rate", 3e-4)  # the default when the study began
    assert all((config | dataclasses.asdict(run.controls))[name] == value for name, value in arm.changes.items())
    assert config["steps"] == {
        "grpo_equal_time": 140,
        "cppo_longer": 140,
        "augmented_tuned": 104,
        "grpo_longer": 104,
        "consistency_tuned": 64,
        "untrained": 1,
    }.get(arm.name.partition("-")[0], 80)


def test_the_main_arms_are_those_of_the_issue():
    names = "grpo cppo verl paper k1 papo no_gate all_tokens random_tokens true_tokens anchor_flows cpl_only grpo_augmented"
    assert set(names.split()) < {arm.name for arm in MAIN}
    assert all(ARMS[arm.name] is arm for suite in SUITES.values() for arm in suite)  # a name means one thing in all suites
    assert arms_of("main", "cppo,grpo") == [ARMS["cppo"], ARMS["grpo"]]
    assert {arm.name for arm in SWEEPS} >= {
        "cppo-cpl_weight=0.1",
        "grpo-group_size=4",
        "cppo-removing=blank",
        "cppo-level=hard",
    }


def test_every_swept_group_size_has_as_many_completions_per_step():
    for arm in SWEEPS:
        config = Run("tiny", arm.name, 0).config
        assert config.prompts_per_step * config.group_size == 64


def test_the_hashed_settings_exist_and_every_one_of_them_counts():
    assert set(HASHED) <= {field.name for kind in (CPPOConfig, Controls) for field in dataclasses.fields(kind)}
    run = Run("tiny", "cppo", 0)
    others = [Run("tiny", "cppo", 1), Run("tiny", "grpo", 0), dataclasses.replace(run, steps=2)]
    others += [dataclasses.replace(run, images=10), dataclasses.replace(run, probe_every=5)]
    assert len({one.config_hash for one in [run, *others]}) == 6
    assert Run("tiny", "cppo", 0).config_hash == run.config_hash


def test_runs_come_seed_by_seed():
    runs = plan(["tiny", "shortcut"], arms_of("main", "grpo,cppo"), [4, 0])
    assert [(run.seed, run.base, run.arm) for run in runs] == [
        *[(4, "tiny", "grpo"), (4, "tiny", "cppo"), (4, "shortcut", "grpo"), (4, "shortcut", "cppo")],
        *[(0, "tiny", "grpo"), (0, "tiny", "cppo"), (0, "shortcut", "grpo"), (0, "shortcut", "cppo")],
    ]
    assert {run.level for run in runs} == {"easy", "shortcut"}
    hard = plan(["tiny", "shortcut"], [ARMS["cppo-level=hard"]], [0])
    assert [(run.base, run.config.level) for run in hard] == [("tiny", "hard")]


def test_validation_seeds_are_scored_on_validation_images():
    assert [Run("tiny", "cppo", seed).split for seed in (0, 99, 100, 104)] == ["test", "test", "validation", "validation"]


@pytest.mark.parametrize(("text", "seeds"), [("0-3", [0, 1, 2, 3]), ("7", [7]), ("0,5-6", [0, 5, 6])])
def test_seeds_are_read(text, seeds):
    assert seeds_in(text) == seeds


@pytest.mark.parametrize("text", ["", "a", "1-", "-1", "0,0", "3-1"])
def test_bad_seeds_are_named(text):
    with pytest.raises(InputError, match="seeds are"):
        seeds_in(text)


def test_a_stopped_study_goes_on_where_it_was_without_duplicates(place, monkeypatch):
    log = []
    execute = fake_execution(log)

    def interrupted(run):
        if len(log) == 3:
            raise KeyboardInterrupt
        return execute(run)

    options = StudyOptions(arms="grpo,cppo", seeds="0-2", workers=1)
    monkeypatch.setattr(runner, "execute_apart", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_study(options)
    (place / "build/study/runs/.tiny-easy-cppo-1.json.77.part").write_text("{")  # what a kill may leave
    monkeypatch.setattr(runner, "execute_apart", execute)
    run_study(options)
    run_study(options)
    assert [(run.seed, run.arm) for run in log] == [
        (0, "grpo"),
        (0, "cppo"),
        (1, "grpo"),
        (1, "cppo"),
        (2, "grpo"),
        (2, "cppo"),
    ]
    rows = store.read_csv(place / "data/results/study.csv")
    assert [(row["arm"], row["seed"]) for row in rows] == [(arm, str(seed)) for arm in ("cppo", "grpo") for seed in range(3)]


def test_the_table_alone_is_enough_to_go_on(place, monkeypatch):
    log = []
    monkeypatch.setattr(runner, "execute_apart", fake_execution(log))
    run_study(StudyOptions(arms="grpo", seeds="0-1"))
    for path in store.RUNS_FOLDER.iterdir():
        path.unlink()
    run_study(StudyOptions(arms="grpo", seeds="0-2"))
    assert [run.seed for run in sorted(log, key=lambda run: run.seed)] == [0, 1, 2]
    assert len(store.read_csv(place / "data/results/study.csv")) == 3


def test_a_run_that_fails_costs_only_itself(place, monkeypatch, capsys):
    monkeypatch.setattr(runner, "execute_apart", fake_execution([], fail=["cppo"]))
    with pytest.raises(InputError, match=r"1 of 3 runs failed \(tiny easy cppo 0: OutOfMemoryError\): start again"):
        run_study(StudyOptions(arms="grpo,cppo,pull", seeds="0", workers=1))
    assert [row["arm"] for row in store.read_csv(place / "data/results/study.csv")] == ["grpo", "pull"]


def test_the_tables_have_the_stated_columns_and_empty_cells_for_nan(place):
    runs = plan(["tiny"], arms_of("main", "grpo,cppo"), [10, 2])
    for run in runs:
        store.write_aside(store.result_path(run), json.dumps(fake_result(run)).encode())
    assert store.merge(place / "out", runs) == 4
    with (place / "out/study.csv").open() as file:
        header, *rows = csv.reader(file)
    assert header == list(store.COLUMNS)
    assert [(row[2], int(row[3])) for row in rows] == [("cppo", 2), ("cppo", 10), ("grpo", 2), ("grpo", 10)]
    assert {row[header.index("steps_to_80")] for row in rows} == {""}
    curves = pq.read_table(place / "out/curves.parquet")
    assert curves.column_names == list(store.CURVE_COLUMNS)
    assert curves["step"].to_pylist() == [0, 1, 2] * 4
    before = (place / "out/study.csv").read_bytes(), (place / "out/curves.parquet").read_bytes()
    store.merge(place / "out", runs)
    assert before == ((place / "out/study.csv").read_bytes(), (place / "out/curves.parquet").read_bytes())


def test_a_dry_run_lists_what_is_missing_and_estimates_from_measured_rows(place, monkeypatch, capsys):
    monkeypatch.setattr(runner, "execute_apart", fake_execution([]))
    run_study(StudyOptions(arms="grpo", seeds="0"))
    capsys.readouterr()
    run_study(StudyOptions(arms="grpo,cppo", seeds="0-1", dry_run=True, workers=1))
    out = capsys.readouterr().out
    assert out.startswith("4 runs, 1 finished, 3 to go")
    assert re.findall(r"tiny +(\w+) +seed (\d)", out) == [("cppo", "0"), ("grpo", "1"), ("cppo", "1")]
    rows = store.read_csv(place / "data/results/study.csv")  # 8 seconds for 80 steps
    assert runner.estimate([Run("tiny", "grpo", 1), Run("tiny", "grpo_equal_time", 1)], rows) == pytest.approx([8.0, 14.0])
    assert runner.estimate([Run("tiny", "cppo", 1)], []) == pytest.approx([runner.SECONDS_PER_RUN])


def test_rows_of_other_settings_are_not_replaced(place, monkeypatch):
    monkeypatch.setattr(runner, "execute_apart", fake_execution([]))
    run_study(StudyOptions(arms="grpo", seeds="0"))
    before = (place / "data/results/study.csv").read_bytes()
    with pytest.raises(InputError, match=r"study.csv has tiny easy grpo 0 with other settings \(\w+ instead of \w+\): choose"):
        run_study(StudyOptions(arms="grpo", seeds="0-1", steps=2))
    assert (place / "data/results/study.csv").read_bytes() == before
    trial = {"arms": "grpo", "seeds": "0", "steps": 2}
    run_study(StudyOptions(**trial, out="trial"))
    with pytest.raises(InputError, match="with other settings"):
        run_study(StudyOptions(**trial))  # finished now, and still not the row's settings
    assert (place / "data/results/study.csv").read_bytes() == before


def test_verification_compares_up_to_rounding_or_within_the_tolerance(place, monkeypatch, capsys):
    runs = plan(["tiny"], arms_of("main", "grpo"), [0, 1])
    for run in runs:
        store.write_aside(store.result_path(run), json.dumps(fake_result(run)).encode())
    out = place / "out"
    store.merge(out, runs)
    monkeypatch.setattr("study.worker.execute", lambda run: fake_result(run, seconds=9.0, commit="other"))
    runner.verify(runs, out, 0)
    monkeypatch.setattr("study.worker.execute", lambda run: fake_result(run, greedy=0.500001))
    runner.verify(runs, out, 0)
    assert re.findall(": (.*)", capsys.readouterr().out) == ["the same"] * 4
    monkeypatch.setattr("study.worker.execute", lambda run: fake_result(run, greedy=0.51))
    runner.verify(runs, out, 0)
    assert "within the tolerance (changed code, or another processor): greedy was 0.5 and is 0.51" in capsys.readouterr().out
    monkeypatch.setattr("study.worker.execute", lambda run: fake_result(run, greedy=0.51, versions="torch 9"))
    runner.verify(runs, out, 0)
    assert "within the tolerance (another machine): greedy" in capsys.readouterr().out
    monkeypatch.setattr("study.worker.execute", lambda run: fake_result(run, greedy=0.61, versions="torch 9"))
    with pytest.raises(InputError, match="greedy"):
        runner.verify(runs, out, 0)
    monkeypatch.setattr("study.worker.execute", lambda run: fake_result(run, consistency=0.58, versions="torch 9"))
    runner.verify(runs, out, 0)  # on fewer images
    with pytest.raises(InputError, match="no row of these runs"):
        runner.verify(plan(["tiny"], arms_of("main", "cppo"), [0]), out, 0)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        (
            {"suite": "all"},
            "suite is 'all', expected one of main, sweeps, mechanism, second, price, tuning, worlds, explored, detector",
        ),
        ({"arms": "gpro"}, "arm 'gpro' is not in suite main"),
        ({"base": "huge"}, "base is 'huge', expected one of tiny"),
        ({"base": "robust"}, "base 'robust' was not made yet: run python -m study --make-base robust"),
        ({"workers": 0}, "workers is 0"),
        ({"make_base": "tiny"}, "base 'tiny' is in .* already"),
    ],
)
def test_what_cannot_be_run_is_named(place, changes, named):
    with pytest.raises(InputError, match=named):
        run_study(StudyOptions(**changes))


def test_a_base_is_a_recipe_and_is_whole_or_absent(place, monkeypatch):
    for base in bases.BASES.values():
        assert base.recipe.keys() <= {field.name for field in dataclasses.fields(HintedOptions)}
    monkeypatch.setattr(bases, "pretrain", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        bases.make_base("robust")
    assert not bases.base_folder("robust").exists()
    monkeypatch.undo()
    monkeypatch.chdir(place)
    folder = bases.make_base("shortcut", steps=1, batch_size=2)
    assert folder == bases.base_folder("shortcut")
    assert json.loads((folder / "pretraining.json").read_text())["hint_trust"] == 0.3
    assert "hint" in json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    assert sum(path.stat().st_size for path in folder.iterdir()) < 12 * 2**20
    assert re.fullmatch("[0-9a-f]{12}", bases.base_digest("shortcut"))


@pytest.mark.parametrize("name", ["arms table", "power table"])
def test_the_protocol_holds_the_tables_of_the_code(name):
    text = (ROOT / "study/protocol.md").read_text()
    block = re.search(rf"<!-- {name}: [\w.]+ -->\n(.*?)\n<!-- end -->", text, re.DOTALL)
    assert block
    power = power_table(ROOT / "data/results/demo_seeds.csv")
    assert block[1] == (arms_table() if name == "arms table" else power)
