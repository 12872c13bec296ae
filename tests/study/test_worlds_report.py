"""The second study's answers follow from its rows: the settings that tuning chose, the families and their words."""

from pathlib import Path

import numpy as np
import pytest

from study.acceptance import Acceptance
from study.arms import CHOSEN_SETTINGS, EQUAL_TIME, RIVALS, STEPS, WORLD_MAIN
from study.plan import Run
from study.store import read_csv
from study.worlds import WORLDS
from study.worlds.report import (
    ARM,
    FOLLOW_UP_SEEDS,
    OTHERS,
    SEEDS,
    SHOWN,
    answer,
    chosen_settings,
    complete,
    explored_table,
    family,
    means_table,
    tuned_scores,
)
from study.worlds.rows import world_rows

ROWS = read_csv(Path("data/results/worlds/study.csv"))


def invented(gaps, seeds=range(10, 20)):
    """Rows where CPPO is `gaps[rival]` above each rival, give or take a little, on every world and measure."""
    rng, rows = np.random.default_rng(0), []
    for world in WORLDS:
        for seed in seeds:
            for arm in (ARM, *OTHERS):
                value = 0.5 - gaps.get(arm, 0.0) + rng.normal(0, 0.004)
                rows.append({"base": world, "arm": arm, "seed": str(seed)} | dict.fromkeys(SHOWN, f"{value:.6f}"))
    return rows


def test_the_committed_tuning_rows_choose_the_settings_that_the_arms_have():
    assert chosen_settings(ROWS) == CHOSEN_SETTINGS
    assert {len(settings) for settings in RIVALS.values()} == {4}  # the same budget for each
    arms = {arm.name: arm for arm in WORLD_MAIN}
    for rival, number in CHOSEN_SETTINGS.items():
        assert arms[f"{rival}_tuned"].changes == RIVALS[rival][number]


def test_equal_time_is_the_measured_ratio_rounded_up_in_the_rivals_favour():
    seconds = {
        rival: np.mean([float(row["seconds"]) for row in ROWS if row["arm"].startswith(f"{rival}#")]) for rival in RIVALS
    }
    for rival, ratio in EQUAL_TIME.items():
        assert ratio - 0.1 < seconds["cppo"] / seconds[rival] <= ratio
        assert {arm.name: arm.step_ratio for arm in WORLD_MAIN}[f"{rival}_tuned"] == ratio


def test_tuning_is_not_decided_while_runs_are_missing():
    fewer = [row for row in ROWS if (row["arm"], row["seed"]) != ("cppo#2", "100")]
    assert np.isnan(tuned_scores(fewer)["cppo"][2])
    with pytest.raises(ValueError, match="settings of cppo were not run"):
        chosen_settings(fewer)


def test_verdicts_and_the_sentence_follow_from_the_rows():
    rows = invented(dict.fromkeys(OTHERS, 0.1))
    found = family(rows)
    assert len(found) == len(WORLDS) * len(OTHERS) * 2
    assert {word for _, _, word in found} == {"helps"}
    assert answer(found) == "CPPO beats all three rivals on unseen shifts, on both worlds."
    nothing = answer(family(invented({OTHERS[2]: -0.1})))
    assert nothing.startswith(
        "CPPO is not shown to beat any of the three rivals on unseen shifts. Of 4 comparisons with each, "
    )
    mixed = answer(family(invented({OTHERS[0]: 0.1, OTHERS[2]: -0.1})))
    assert "does not beat" in mixed
    assert "against GRPO: 4 helps" in mixed and "against GRPO with consistency: 4 hurts" in mixed
    assert "against GRPO with augmentation, equal time: 4 equal" in mixed


def test_complete_asks_for_every_seed_of_every_arm():
    assert all(complete(invented({}), world) for world in WORLDS)
    assert not complete(invented({}, range(10, 19)), "eyes")


def test_means_are_over_the_final_seeds():
    rows = invented({OTHERS[0]: 0.1})
    rows.append({"base": "eyes", "arm": ARM, "seed": "100"} | dict.fromkeys(SHOWN, "9.0"))
    cells = {
        line.split(" | ")[0].strip("| "): line.strip("| ").split(" | ")[1:] for line in means_table(rows, "eyes").splitlines()
    }
    assert [float(value) for value in cells["GRPO"]] == pytest.approx([10, *[0.4] * len(SHOWN)], abs=0.01)
    assert [float(value) for value in cells["CPPO"]] == pytest.approx([10, *[0.5] * len(SHOWN)], abs=0.01)


def test_both_bases_are_accepted():
    rows = read_csv(Path("data/results/worlds/acceptance.csv"))
    assert {row["base"] for row in rows} == set(WORLDS)
    assert {row["base"]: Acceptance.of(row).failures() for row in rows} == {"eyes": [], "rooms": []}


def test_what_was_explored_stands_beside_its_baselines_on_the_same_seeds():
    rows = [row for row in invented({"grpo_tuned": 0.1}, range(10, 13)) if row["base"] == "eyes"]
    rows += [row | {"arm": "cppo_random"} for row in rows if row["arm"] == ARM]
    lines = explored_table(rows).splitlines()[2:]
    assert [line.split("`")[1] for line in lines] == ["grpo_tuned", ARM, "cppo_random"]  # arms without runs are left out
    assert [float(line.split(" | ")[2].split()[0]) for line in lines] == pytest.approx([40, 50, 50], abs=1)


@pytest.mark.parametrize(
    ("folder", "arms", "seeds", "split"),
    [
        ("follow-up", {arm.name for arm in WORLD_MAIN}, FOLLOW_UP_SEEDS, "test"),
        ("other-pictures", {arm.name for arm in WORLD_MAIN}, range(101, 109), "validation"),
    ],
)
def test_asked_again_means_fresh_seeds_and_the_same_settings(folder, arms, seeds, split):
    rows = read_csv(Path(f"data/results/{folder}/worlds/study.csv"))
    known = {int(row["seed"]) for row in ROWS}
    assert not known & set(seeds)
    assert sorted((row["arm"], int(row["seed"])) for row in rows) == sorted((arm, seed) for arm in arms for seed in seeds)
    before = {(row["arm"], row["steps"], row["images"]) for row in ROWS if row["base"] == "eyes" and int(row["seed"]) in SEEDS}
    assert {(row["arm"], row["steps"], row["images"]) for row in rows} <= before
    assert {row["split"] for row in rows} == {split}
    hashes = [Run("eyes", row["arm"], int(row["seed"]), images=200, probe_every=STEPS).config_hash for row in rows]
    assert [row["config_hash"] for row in rows] == hashes


def test_validation_pictures_are_other_pictures_than_those_of_the_test():
    shown = [{row["image"].tobytes() for row in world_rows(WORLDS["eyes"], split, 200)} for split in ("validation", "test")]
    assert [len(pictures) for pictures in shown] == [200, 200] and not shown[0] & shown[1]
