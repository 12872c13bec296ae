"""The second study's answers follow from its rows: the settings that tuning chose, the families and their words."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from study.acceptance import Acceptance
from study.arms import CHOSEN_SETTINGS, EQUAL_TIME, RIVALS, WORLD_MAIN
from study.store import read_csv
from study.worlds import WORLDS
from study.worlds.report import ARM, OTHERS, SHOWN, answer, chosen_settings, complete, family, means_table, tuned_scores

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


def test_the_committed_acceptance_is_as_the_protocols_log_says():
    rows = read_csv(Path("data/results/worlds/acceptance.csv"))
    names = [field.name for field in dataclasses.fields(Acceptance)]
    failures = {row["base"]: Acceptance(*(float(row[name]) for name in names)).failures() for row in rows}
    assert failures == {"eyes": ["greedy accuracy is 0.71, 0.4 to 0.7 is asked"], "rooms": []}
