"""The second run of the primary family: which rows it is, its tables beside the first's, and the explanations of its price."""

import pytest

from study.analysis import PRIMARY_BASES, SECOND_SEEDS
from study.arms import ARMS, CHOSEN, CHOSEN_RATE, LEARNING_RATE, PRICE, SECOND
from study.dilution import METRIC
from study.price import delay_left, fight, halves_table, long_table, without_push
from study.second import RATES, change_table, families_table, forest_of_both, second_complete, second_differences, second_rows
from study.store import METRICS

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
    assert [arm.name.partition("-")[0] for arm in PRICE] == ["pull", "push", "cppo_longer", "grpo_equal_time"]
    for arm in (*SECOND, *PRICE):
        assert arm.changes == ARMS[arm.name.partition("-")[0]].changes | {"learning_rate": float(RATES[1])}
    assert [float(rate) for rate in RATES] == [LEARNING_RATE, CHOSEN_RATE]


def test_its_rows_are_those_with_the_fresh_seeds_under_the_plain_names():
    again = second_rows(ROWS)
    assert {(row["arm"], int(row["seed"])) for row in again} == {(arm, seed) for arm in FIRST for seed in range(10, 20)}
    assert len(again) == 90
    assert second_complete(ROWS)
    cut = [row for row in ROWS if (row["base"], row["seed"]) != ("robust", "17")]
    assert {row["base"] for row in second_rows(cut)} == {"tiny", "hallucinating"} and not second_complete(cut)
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
    assert len(text.splitlines()) == 2 * (2 + 11) + 1
    assert text.count("+0.000 [+0.000, +0.000]") == 2 * 10 * 3  # all but the shifted avg@8


def test_the_plot_and_the_means_name_the_rate():
    found = forest_of_both(ROWS[:90], second_rows(ROWS))
    assert [(one.base, one.other) for one in found[:4]] == [
        *((base, "grpo, 3e-4") for base in PRIMARY_BASES),
        ("tiny", "grpo, 6e-4"),
    ]
    assert [round(one.value, 3) for one in found[::3]] == [0.1, -0.05, 0.05, -0.07]
    assert "| tiny | `grpo` | 0.500 | 0.500 | 0.600 | 0.800 |" in change_table(ROWS[:90], second_rows(ROWS))


def plain_rows(values):
    """Ten rows on `robust` of each arm, with this avg@8 on plain images; `push` swings by 0.004."""
    return [
        dict.fromkeys(METRICS, "0.5")
        | {"base": "robust", "arm": arm, "seed": str(seed), "avg_at_8": str(value + (arm == "push") * 0.002 * (-1) ** seed)}
        for arm, value in {"grpo": 0.70, "cppo": 0.67, **values}.items()
        for seed in SECOND_SEEDS
    ]


@pytest.mark.parametrize(
    ("pull", "push", "word"),
    [
        (0.70, 0.67, "supported"),
        (0.69, 0.67, "supported"),  # both cost, push more
        (0.67, 0.67, "refuted"),
        (0.67, 0.70, "refuted"),
        (0.70, 0.70, "undecided"),  # neither costs
    ],
)
def test_which_half_costs_is_judged_by_the_log_of_the_protocol(pull, push, word):
    assert halves_table(plain_rows({})) == "Not run yet."
    assert halves_table(plain_rows({"pull": pull, "push": push})).endswith(f"and more than the pull: **{word}**.")


@pytest.mark.parametrize(
    ("plain", "shifted", "word"),
    [
        (0.02, 0.00, "supported"),
        (0.02, -0.01, "supported"),
        (-0.02, 0.02, "refuted"),
        (0.02, -0.03, "refuted"),
        (0.00, 0.02, "undecided"),
    ],
)
def test_what_is_without_the_push_is_judged_on_one_base(plain, shifted, word):
    rows = [
        dict.fromkeys(METRICS, "0.5")
        | {"base": base, "arm": arm, "seed": str(seed)}
        | {"avg_at_8": str(0.7 + first * plain + swing), "shift_avg_at_8": str(0.6 + first * shifted + swing)}
        for base in ("tiny", "hallucinating")
        for arm, first in (("pull", 1), ("cppo", 0))
        for seed in range(10)
        for swing in [first * 0.001 * (-1) ** seed]
    ]
    found = without_push(rows)
    assert found.splitlines()[2].startswith(f"| tiny | {plain:+.3f} [") and found.endswith(f"On `hallucinating`: **{word}**.")
    assert not without_push(rows[:20]).endswith("**.")  # `tiny` alone: a table and no word


def line(arm, slope, seeds=SECOND_SEEDS, last=80, **probed):
    """Probes every ten steps of a run whose accuracy rises from 0.45 on a straight line."""
    key = {"base": "robust", "arm": f"{arm}{CHOSEN}", **probed}
    return [
        key | {"seed": seed, "step": step, METRIC: 0.45 + slope * step} for seed in seeds for step in range(0, last + 1, 10)
    ]


@pytest.mark.parametrize(("end", "word"), [(0.0025, "too much"), (0.0024, "compatible"), (0.0023, "too little")])
def test_a_delay_leaves_what_the_baselines_curve_says(end, word):
    short = [*line("grpo", 0.005), *line("cppo", 0.004)]  # 0.65 after 40 and 50 steps
    assert delay_left(short) == "Not run yet."
    swing = [(seed, end + 0.00002 * (-1) ** seed) for seed in SECOND_SEEDS]
    ours = [point for seed, slope in swing for point in line("cppo_longer", slope, [seed], last=140)]
    long = [*line("grpo_equal_time", 0.003, last=140), *ours]
    cells = [cell.strip() for cell in delay_left(short + long).splitlines()[2].strip("|").split("|")]
    # GRPO is at 0.87 after 140 steps and at 0.786 after 140 / 1.25
    assert cells[:4] == ["10", "1.25", "-0.084", f"{(end - 0.003) * 140:+.3f}"]
    assert cells[5] == f"**{word}**"


def test_longer_training_is_compared_with_the_longer_baseline():
    assert long_table(plain_rows({})) == "Not run yet."
    lines = long_table(plain_rows({"cppo_longer": 0.78, "grpo_equal_time": 0.80})).splitlines()[2:]
    assert [line.split(" | ")[:2] for line in lines] == [
        ["| `cppo_longer` − `grpo_equal_time`", "-0.020 [-0.020, -0.020]"],
        ["| `cppo` − `grpo_equal_time`", "-0.130 [-0.130, -0.130]"],
    ]


@pytest.mark.parametrize(("cosine", "word"), [(-0.1, "supported"), (0.1, "refuted"), (0.0, "undecided")])
def test_gradients_fight_if_they_point_against_each_other(cosine, word):
    curves = [point for seed in SECOND_SEEDS for point in line("cppo", 0, [seed], gradient_cosine=cosine + 0.01 * (-1) ** seed)]
    assert fight(curves).startswith(f"cosine {cosine:+.3f} [")
    assert fight(curves).endswith(f"**{word}**")
