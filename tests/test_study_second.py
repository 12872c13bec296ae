"""The second run of the primary family: which rows it is, and that its tables are those of the first."""

from cppo_ref.study.analysis import PRIMARY_BASES
from cppo_ref.study.arms import ARMS, LEARNING_RATE, SECOND
from cppo_ref.study.second import (
    RATES,
    SECOND_SEEDS,
    change_table,
    families_table,
    forest_of_both,
    second_complete,
    second_differences,
    second_rows,
)
from cppo_ref.study.store import METRICS

FIRST = {"grpo": 0.60, "grpo_augmented": 0.65, "cppo": 0.70}
AGAIN = {"grpo": 0.80, "grpo_augmented": 0.82, "cppo": 0.75}


def family(values, seeds, suffix=""):
    """Rows of three arms on three bases; `values`: avg@8 on shifted images of each arm, give or take 0.002 for `cppo`."""
    return [
        dict.fromkeys(METRICS, "0.5")
        | {"base": base, "arm": arm + suffix, "seed": str(seed)}
        | {"shift_avg_at_8": str(value + (arm == "cppo") * 0.002 * (-1) ** seed)}
        for base in PRIMARY_BASES
        for arm, value in values.items()
        for seed in seeds
    ]


ROWS = [
    *family(FIRST, range(10)),
    *family(AGAIN, SECOND_SEEDS, "-learning_rate=0.0006"),
    *family(FIRST, range(100, 105), "-learning_rate=0.0006"),  # of the sweeps
]


def test_the_second_family_is_the_three_arms_at_the_chosen_rate_and_differs_in_nothing_else():
    assert {arm.name.partition("-")[0] for arm in SECOND} == FIRST.keys()
    for arm in SECOND:
        assert arm.changes == ARMS[arm.name.partition("-")[0]].changes | {"learning_rate": float(RATES[1])}
    assert float(RATES[0]) == LEARNING_RATE


def test_its_rows_are_those_with_the_fresh_seeds_under_the_plain_names():
    again = second_rows(ROWS)
    assert {(row["arm"], int(row["seed"])) for row in again} == {(arm, seed) for arm in FIRST for seed in range(10, 20)}
    assert len(again) == 90
    assert second_complete(ROWS)
    assert not second_complete([row for row in ROWS if row["seed"] != "17"])
    assert not second_complete(ROWS[:90])


def test_both_families_stand_side_by_side():
    lines = families_table(ROWS[:90], second_rows(ROWS)).splitlines()
    assert len(lines) == 2 + 6
    cells = [cell.strip() for cell in lines[2].strip("|").split("|")]
    assert cells[:2] == ["tiny", "cppo − grpo"]
    assert cells[2].startswith("+0.100 [+0.09")
    assert cells[5].startswith("-0.050 [-0.05")
    assert (cells[4], cells[7]) == ("**helps**", "**hurts**")
    assert cells[3] == cells[6] == "0.012"  # 2/2¹⁰ times six


def test_every_measure_has_a_line_for_each_rival():
    text = second_differences(second_rows(ROWS))
    assert len(text.splitlines()) == 2 * (2 + 12) + 1
    assert text.count("+0.000 [+0.000, +0.000]") == 2 * 11 * 3  # all but the shifted avg@8


def test_the_plot_and_the_means_name_the_rate():
    found = forest_of_both(ROWS[:90], second_rows(ROWS))
    assert [(one.base, one.other) for one in found[:4]] == [
        *((base, "grpo, 3e-4") for base in PRIMARY_BASES),
        ("tiny", "grpo, 6e-4"),
    ]
    assert [round(one.value, 3) for one in found[::3]] == [0.1, -0.05, 0.05, -0.07]
    assert "| tiny | `grpo` | 0.500 | 0.500 | 0.600 | 0.800 |" in change_table(ROWS[:90], second_rows(ROWS))
