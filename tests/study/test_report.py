"""The hypotheses' rules on made-up rows whose outcome is plain, the results page's tables, and the failure gallery."""

import math
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from policies import nudge

from cppo_ref.config import CPPOConfig, InputError
from cppo_ref.examples.loading import load_rows
from cppo_ref.vlm.policy import load_policy
from study.analysis import Difference, whole_arms
from study.arms import MAIN
from study.comparisons import against_baselines, differences_table, levels_table, moved_table
from study.costs import price_table, step_cost, whole_run_costs
from study.elsewhere import settings_table
from study.figures import arms_plot
from study.gallery import Token, cases, cell_change, look, observe, over_prompts, show_case, summary
from study.hypotheses import outcomes
from study.report import (
    alignment_table,
    complete,
    coverage_table,
    curves_of,
    detector_table,
    final_rows,
    missed_table,
    primary_table,
    questions_table,
    regimes,
)
from study.robustness import one_machine_table, pictures_table, replica_table
from study.store import METRICS
from study.sweeps import RIVAL_SETTINGS, candidates_table, challenges, coverage_beside, hard_table, rivals_table, sweeps_table

NOISE = [0.001 * (-1) ** seed for seed in range(10)]  # paired differences of ±0.002 around what is asked for


def rows_of(base, arm, shift=0.6, seeds=range(10), **metrics):
    """One row per seed, as text, as they are read from study.csv; `shift` is avg@8 on shifted images."""
    swing = 1 if arm == "cppo" else -1
    return [
        {name: "0.5" for name in METRICS}
        | {"base": base, "arm": arm, "seed": str(seed), "seconds": "60", "level": "easy"}
        | {"shift_avg_at_8": str(shift + swing * NOISE[seed % 10])}
        | {name: str(value + swing * NOISE[seed % 10]) for name, value in metrics.items()}
        for seed in seeds
    ]


def curve_of(arm, cosine, ratio, seeds=range(10)):
    empty = {"gradient_cosine": None, "gradient_ratio": None}
    values = {"gradient_cosine": cosine, "gradient_ratio": ratio}
    key = {"base": "tiny", "arm": arm}
    return [key | {"seed": seed} | (values if step else empty) for seed in seeds for step in (0, 10)]


def judged(name, rows, curves=()):
    return next(found for found in outcomes(rows, curves) if found.name == name)


def test_nothing_is_judged_without_rows():
    assert {found.verdict for found in outcomes([], [])} == {"not run"}
    few = [*rows_of("tiny", "cppo", 0.7, range(9)), *rows_of("tiny", "grpo", 0.6, range(9))]
    assert judged("H6", few).verdict == "not run"  # nine seeds are not ten


@pytest.mark.parametrize(
    ("pull", "push", "verdict"),
    [(0.66, 0.60, "supported"), (0.64, 0.60, "refuted"), (0.66, 0.63, "refuted"), (0.66, 0.619, "undecided")],
)
def test_h1(pull, push, verdict):
    gain = [*rows_of("tiny", "grpo", 0.6), *rows_of("tiny", "cppo", 0.7)]
    found = judged("H1", [*gain, *rows_of("tiny", "pull", pull), *rows_of("tiny", "push", push, range(9)), *tail(push)])
    assert found.verdict == verdict
    assert "CPPO − GRPO +0.100" in found.evidence


def test_h1_is_open_without_a_gain():
    values = {"grpo": 0.6, "cppo": 0.55, "pull": 0.58, "push": 0.6}
    assert judged("H1", [row for arm, value in values.items() for row in rows_of("tiny", arm, value)]).verdict == "undecided"


def tail(push):
    """A tenth seed of `push` that stretches its interval across 0.02 when the others are on it."""
    (row,) = rows_of("tiny", "push", push, [9])
    return [row | {"shift_avg_at_8": str(float(row["shift_avg_at_8"]) + (0.02 if push == 0.619 else 0))}]


@pytest.mark.parametrize(
    ("language", "vision", "verdict"), [(0.6, 0.65, "supported"), (0.65, 0.65, "refuted"), (0.6, 0.6, "undecided")]
)
def test_h2(language, vision, verdict):
    rows = [row for scope in ("language", "vision") for row in rows_of("tiny", f"grpo_{scope}", 0.6)]
    values = {"language": language, "vision": vision}
    for scope, value in values.items():
        rows += rows_of("tiny", f"cppo_{scope}", value)
        rows[-1] = rows[-1] | {"shift_avg_at_8": str(value - 0.01)}  # some spread
    assert judged("H2", rows).verdict == verdict


@pytest.mark.parametrize(
    ("gains", "ratios", "verdict"),
    [
        ((0.08, 0.06, 0.03, 0.01), (0.4, 0.3, 0.2, 0.1), "supported"),
        ((0.08, 0.06, 0.09, 0.01), (0.4, 0.3, 0.2, 0.1), "refuted"),
        ((0.08, 0.06, 0.03, 0.01), (0.4, 0.3, 0.5, 0.1), "refuted"),
        ((0.08, 0.09, 0.03, 0.01), (0.4, 0.3, 0.2, 0.1), "undecided"),
    ],
)
def test_h3_uses_validation_seeds_only(gains, ratios, verdict):
    arms = ["cppo", "cppo-removing_strength=2.0", "cppo-removing_strength=4.0", "cppo-removing=blank"]
    late = range(100, 105)
    rows = [*rows_of("tiny", "grpo", 0.6, late), *rows_of("tiny", "cppo", 0.1), *rows_of("tiny", "grpo", 0.9)]
    curves = curve_of("cppo", 0.0, 99.0)
    for arm, gain, ratio in zip(arms, gains, ratios, strict=True):
        rows += rows_of("tiny", arm, 0.6 + gain, late)
        curves += curve_of(arm, 0.0, ratio, late)
    assert judged("H3", rows, curves).verdict == verdict
    assert judged("H3", rows[:-1], curves).verdict == "not run"  # one of five seeds is missing


@pytest.mark.parametrize(
    ("random", "all_tokens", "verdict"), [(0.7, 0.7, "supported"), (0.65, 0.7, "refuted"), (0.7, 0.75, "undecided")]
)
def test_h4(random, all_tokens, verdict):
    values = {"cppo": 0.7, "random_tokens": random, "all_tokens": all_tokens, "true_tokens": 0.7}
    assert judged("H4", [row for arm, value in values.items() for row in rows_of("tiny", arm, value)]).verdict == verdict


def family(robust):
    values = {"tiny": 0.7, "robust": robust, "hallucinating": 0.5}
    rows = [row for base, value in values.items() for row in rows_of(base, "cppo", value)]
    return rows + [row for base in values for arm in ("grpo", "grpo_augmented") for row in rows_of(base, arm, 0.6)]


@pytest.mark.parametrize(("robust", "verdict"), [(0.6, "supported"), (0.65, "refuted"), (0.55, "undecided")])
def test_h5(robust, verdict):
    assert judged("H5", family(robust)).verdict == verdict


@pytest.mark.parametrize(
    ("consistency", "plain", "verdict"), [(0.6, 0.5, "supported"), (0.6, 0.53, "refuted"), (0.5, 0.5, "undecided")]
)
def test_h6(consistency, plain, verdict):
    after = rows_of("tiny", "cppo", consistency=consistency, shift_perception=0.6, perception=plain)
    before = rows_of("tiny", "grpo", consistency=0.5, shift_perception=0.5, perception=0.5)
    assert judged("H6", after + before).verdict == verdict


@pytest.mark.parametrize(("gain", "verdict"), [(0.1, "supported"), (0.0, "refuted")])
def test_h7(gain, verdict):
    rows = [*rows_of("shortcut", "cppo", 0.6 + gain), *rows_of("shortcut", "grpo", 0.6)]
    assert judged("H7", rows).verdict == verdict


@pytest.mark.parametrize(
    ("plain", "cosine", "ratio", "verdict"),
    [
        (0.6, -0.2, 0.1, "supported"),
        (0.6, 0.2, 1.5, "supported"),
        (0.6, 0.2, 0.1, "refuted"),
        (0.6, None, 0.1, "undecided"),  # a cosine that points either way
        (0.8, 0.2, 0.1, "undecided"),
    ],
)
def test_h8(plain, cosine, ratio, verdict):
    arms = [arm for arm in MAIN if arm.changes.get("cpl_weight") != 0 and arm.name != "cpl_only"]
    height = {"verl": plain, "grpo": 0.7, "cppo_language": 0.5, "grpo_language": 0.5}  # below GRPO because of its adapters
    names = {name for arm in arms for name in (arm.name, arm.baseline)}
    rows = [row for name in names for row in rows_of("tiny", name, avg_at_8=height.get(name, 0.75))]
    rows += rows_of("tiny", "cpl_only", avg_at_8=0.1)  # has one gradient only: not part of the question
    curves = curve_of("verl", cosine, ratio)
    if cosine is None:
        curves = [row | {"gradient_cosine": 0.2 * (-1) ** row["seed"]} for row in curves]
    found = judged("H8", rows, curves)
    assert found.verdict == verdict
    assert found.evidence.startswith(f"{int(plain < 0.7)} of 14 arms are below")
    group = {"supported": "against it", "refuted": "not"}.get(verdict, "open")
    assert (f"{group}: verl" in found.evidence) is (plain < 0.7)
    assert judged("H8", [row for row in rows if row["arm"] != "papo"], curves).verdict == "not run"


def test_the_primary_family_is_complete_with_its_last_run_and_not_before():
    rows = family(0.6)
    assert complete(rows)
    assert not complete(rows[1:])
    assert not complete([*rows, *rows_of("tiny", "cppo", 0.7, [10])])  # nor is a seed added after looking
    lines = primary_table(rows).splitlines()
    assert len(lines) == 8
    assert "| tiny | cppo − grpo | +0.100 [" in lines[2] and "| 0.012 | **helps** |" in lines[2]
    assert "**equal**" in lines[4] and "**hurts**" in lines[7]


def test_tables_show_what_was_run_and_nothing_else():
    rows = family(0.6)
    assert "| `cppo` | 10 | 10 | 10 | not run |" in coverage_table(rows)
    assert "| `papo` | not run | not run | not run | not run |" in coverage_table(rows)
    assert [line.split(" | ")[0] for line in levels_table(rows, "tiny").splitlines()[2:]] == [
        "| `grpo`",
        "| `cppo`",
        "| `grpo_augmented`",
    ]
    compared = ("avg_at_8", "shift_avg_at_8", "perception")
    silent = [row | {"perception": "" if row["seed"] == "9" else row["perception"]} for row in rows]
    (line,) = [line for line in differences_table(silent, "tiny", compared).splitlines() if line.startswith("| `cppo` −")]
    assert line.startswith("| `cppo` − `grpo` | 10 | +0.000 [+0.000, +0.000] | +0.100 [")
    assert line.endswith("+0.000 [+0.000, +0.000] (n = 9) |")  # a seed without percepts is not dropped in silence
    assert "`pull`" not in differences_table([*rows, *rows_of("tiny", "pull", seeds=[77])], "tiny", compared)
    assert len(missed_table(rows).splitlines()) == 8
    asked = questions_table(rows).splitlines()
    assert asked[2].startswith("| Is the gain larger than the luck of the seed? | shifted avg@8, CPPO − `grpo` | +0.100 [")
    assert asked[3].startswith("|  | plain avg@8, CPPO − `grpo` | +0.000")
    assert asked[6].startswith("| Is it more than image augmentation? | shifted avg@8, CPPO − `grpo_augmented` | +0.100 [")
    kept = final_rows([*rows, *rows_of("tiny", "untrained"), *rows_of("tiny", "cppo", seeds=[10, 100])])
    assert kept == rows
    assert whole_arms([*rows, *rows_of("tiny", "pull", seeds=range(9))]) == rows


def test_what_moved_is_held_against_the_policy_before_training():
    rows = [
        *rows_of("tiny", "untrained", seeds=range(9), greedy=0.2),
        *rows_of("tiny", "grpo", greedy=0.3),
        *rows_of("tiny", "cppo", greedy=0.4),
    ]
    lines = moved_table(rows, "tiny").splitlines()
    assert lines[0] == "| `tiny`, mean over seeds of | `untrained`, 9 | `grpo`, 10 | `cppo`, 10 | `cppo` − `grpo` [95 %] |"
    (line,) = [line for line in lines if line.startswith("| plain greedy")]
    assert line.startswith("| plain greedy | 0.200 | 0.300 | 0.400 | +0.100 [+0.099")
    assert levels_table(rows, "tiny").splitlines()[2].startswith("| `untrained` | 9 | 0.500 |")


def test_arms_are_compared_with_grpo_on_the_same_part_of_the_model():
    values = {"grpo": 0.6, "cppo": 0.7, "grpo_language": 0.5, "cppo_language": 0.55, "cppo_vision": 0.9}
    rows = [row for arm, value in values.items() for row in rows_of("tiny", arm, value)]
    found = against_baselines(rows, "tiny")  # grpo_vision was not run
    assert [(one.arm, one.other, round(one.value, 6)) for one in found] == [
        ("cppo", "grpo", 0.1),
        ("cppo_language", "grpo_language", 0.05),
    ]
    table = differences_table(rows, "tiny", ["shift_avg_at_8"]).splitlines()
    assert table[3].startswith("| `cppo_language` − `grpo_language` | 10 | +0.050 [") and len(table) == 4
    plain = [replace(one, value=0.0, low=-0.01, high=0.01) for one in found]
    left, right = arms_plot({"shifted": found, "plain": plain}).axes
    assert [label.get_text() for label in left.get_yticklabels()] == ["cppo − grpo", "cppo_language − grpo_language"]
    marks = [[line.get_marker() for line in ax.lines if len(line.get_xdata()) == 1] for ax in (left, right)]
    assert marks == [["^", "^"], ["o", "o"]]
    far = arms_plot({"shifted": [replace(one, low=-0.3, value=-0.2) for one in found]}).axes[0]
    assert [text.get_text() for text in far.texts] == [f"◄ -0.200 [-0.300, {one.high:+.3f}]" for one in found]
    with pytest.raises(AssertionError, match="different arms"):
        arms_plot({"shifted": found, "plain": plain[::-1]})


def test_the_price_by_hand():
    """Steps to the target, times what a step costs."""
    rows = [*rows_of("tiny", "grpo", steps_to_80=60), *rows_of("tiny", "cppo", steps_to_80=50)]
    rows = [row | {"steps_to_80": "" if (row["arm"], row["seed"]) == ("cppo", "3") else row["steps_to_80"]} for row in rows]
    rows += [row | {"steps_to_80": ""} for row in rows_of("tiny", "grpo_equal_time")]
    one, more = {"arm": "grpo", "ratio": "1", "low": "1", "high": "1"}, {"arm": "cppo", "low": "1.4", "high": "1.6"}
    costs = [one | {"implementation": "train"}, more | {"implementation": "train", "ratio": "1.5"}]
    costs += [more | {"implementation": "study", "ratio": "1.7"}]
    with pytest.raises(InputError, match="no cost of a step of verl was measured"):
        step_cost(costs, "verl")
    timed = [*rows_of("tiny", "grpo"), *rows_of("tiny", "cppo")]
    timed = [row | {"versions": "one", "seconds": "90" if row["arm"] == "cppo" else "60"} for row in timed]
    assert whole_run_costs(timed) == "1.50 [1.50, 1.50] on `tiny`"
    assert whole_run_costs([row | {"versions": row["arm"]} for row in timed]) == ""  # two machines
    assert step_cost(costs, "cppo") == 1.5 and step_cost(costs, "cppo", "study") == 1.7
    assert step_cost(costs, "cppo_longer") == 1.5  # it only has more steps
    assert price_table(rows, costs).splitlines()[2:] == [
        "| `grpo` | 1.00 [1.00, 1.00] | 1.00 | 10 of 10 | 60 | 60 |",
        "| `cppo` | 1.50 [1.40, 1.60] | 1.70 [1.40, 1.60] | 9 of 10 | 50 | 75 |",
        "| `grpo_equal_time` | 1.00 | 1.00 | 0 of 10 | – | – |",
    ]


def test_two_machines_by_hand():
    first = [*rows_of("tiny", "grpo", 0.6), *rows_of("tiny", "cppo", 0.7)]
    again = [*rows_of("tiny", "grpo", 0.62, range(3)), *rows_of("tiny", "cppo", 0.69, range(4))]
    (line,) = [line for line in replica_table(first, again).splitlines() if line.startswith("| shifted avg@8")]
    assert line.split(" | ")[1:3] == ["0.010 (-0.010)", "0.020 (+0.020)"]
    assert line.split(" | ")[3].startswith("+0.10") and line.split(" | ")[4].startswith("+0.07")
    assert line.split(" | ")[3].split()[0] == "+0.101"  # of the first three seeds, whose noise does not cancel


def test_hypotheses_within_one_machine():
    values = {"pull": 0.7, "push": 0.6, "random_tokens": 0.7, "all_tokens": 0.7, "true_tokens": 0.7}
    rows = [row for arm, value in values.items() for row in rows_of("tiny", arm, value)]
    rows += [*rows_of("tiny", "grpo", 0.7), *rows_of("tiny", "cppo", 0.6)]  # of the first machine
    again = [*rows_of("tiny", "grpo", 0.6), *rows_of("tiny", "cppo", 0.7)]
    lines = one_machine_table(rows, again).splitlines()[2:]
    assert [line.split(" | ")[:2] for line in lines] == [["| H1", "**supported**"], ["| H4", "**supported**"]]
    assert "CPPO − GRPO +0.100" in lines[0]
    assert one_machine_table(rows, again[1:]) == "Not run yet."


def test_what_a_choice_earns():
    values = {"grpo": 0.6, "cppo": 0.7, "verl": 0.65, "papo": 0.6}
    values |= {"cpl_only": 0.3, "cppo_language": 0.5, "grpo_equal_time": 0.6}  # another question
    lines = settings_table([row for arm, value in values.items() for row in rows_of("tiny", arm, value)]).splitlines()[2:]
    assert [line.split(" | ")[0] for line in lines] == ["| `cppo` − `verl`", "| `cppo` − `papo`"]
    assert " | +0.050 [" in lines[0] and lines[0].endswith(" | +0.000 [+0.000, +0.000] |")


def test_other_pictures_by_hand():
    rows, late = family(0.6), rows_of("robust", "cppo", 0.7, range(100, 105)) + rows_of("robust", "grpo", 0.6, range(100, 105))
    height = {"cppo": 0.5, "grpo": 0.7, "grpo_augmented": 0.4}
    curves = [
        {"base": row["base"], "arm": row["arm"], "seed": int(row["seed"]), "step": step}
        | {"validation_shift_avg_at_8": height[row["arm"]] if step else 0.0}
        for row in rows
        for step in (0, 80)
    ]
    lines = pictures_table([row | {"steps": "80"} for row in rows], curves, [*rows, *late]).splitlines()[2:]
    assert lines[2].startswith("| robust | cppo − grpo | +0.000 [") and "| -0.200 [-0.200, -0.200] | +0.100 [" in lines[2]
    assert lines[3].endswith("| +0.100 [+0.100, +0.100] | not run |")


def test_sweeps_are_compared_with_the_default_on_validation_seeds():
    late = range(100, 105)
    values = {"cppo": 0.7, "grpo": 0.6, "cppo-tau=0.3": 0.75, "grpo-level=hard": 0.3, "cppo-level=hard": 0.35}
    rows = [row for arm, value in values.items() for row in rows_of("tiny", arm, value, late)]
    rows += [*rows_of("tiny", "cppo", 0.1), *rows_of("tiny", "cppo-tau=1.0", 0.8, range(100, 104))]  # test seeds; one missing
    (line,) = sweeps_table(rows).splitlines()[2:]
    assert line.startswith("| `cppo-tau=0.3` − `cppo` | +0.05") and "| **yes** | +0.150 [" in line  # the last: minus `grpo`
    rates = [row for arm in ("cppo", "cppo-learning_rate=0.0006") for row in rows_of("tiny", arm, 0.7, late)]
    assert sweeps_table([*rates, *rows_of("tiny", "grpo", 0.6, late)]).endswith("| no | – |")  # GRPO has a learning rate too
    assert sweeps_table(rows_of("tiny", "cppo")) == rivals_table(rows_of("tiny", "cppo")) == "Not run yet."
    said = coverage_beside(rows)
    assert said.startswith("Sweeps on `tiny` with seeds 100–104: 3 of 36 arms were run; not yet: `cppo-cpl_weight=0.003`, ")
    assert "`cppo-tau=1.0`" in said and "`cppo-tau=0.3`" not in said
    assert said.endswith(". Beside them: `tiny cppo` (seeds 100–104), `tiny grpo` (seeds 100–104).")
    assert coverage_beside(rows_of("tiny", "grpo_slower")).endswith(". Beside them: `tiny grpo_slower` (seeds 0–9).")
    again = rows_of("robust", "cppo-learning_rate=0.0006", seeds=range(10, 20))
    assert coverage_beside(again).endswith(". Beside them: `robust cppo-learning_rate=0.0006` (seeds 10–19).")


def test_a_candidate_may_not_lose_on_the_other_bases():
    late = range(100, 105)
    rows = [
        row
        for base, values in {"tiny": (0.7, 0.75), "robust": (0.7, 0.695), "hallucinating": (0.7, 0.67)}.items()
        for arm, value in zip(("cppo", "cppo-tau=0.3"), values, strict=True)
        for row in rows_of(base, arm, value, late)
    ]
    lines = candidates_table(rows).splitlines()[2:]
    assert [line.split(" | ")[1] for line in lines] == ["robust", "hallucinating"]
    assert lines[0].endswith("| yes |") and lines[1].endswith("| **no** |")
    (line, _) = candidates_table(rows[:-16]).splitlines()[2:]  # a seed is missing
    assert line.split(" | ")[2] == "not run"
    assert candidates_table(rows_of("tiny", "cppo")) == "No value is a candidate."


def test_the_hard_level_stands_beside_the_constant_guess():
    late = range(100, 105)
    rows = [row for arm in ("grpo", "cppo") for row in rows_of("tiny", f"{arm}-level=hard", 0.1, late, greedy=0.2)]
    assert hard_table(rows) == "Not run yet."
    lines = hard_table([*rows, *rows_of("tiny", "grpo_augmented-level=hard", 0.3, late)]).splitlines()
    assert lines[2].startswith("| `grpo-level=hard` | 0.500 | 0.100 | 0.200 |") and lines[4].startswith("| `grpo_augmented-lev")
    answers = load_rows("shapes", "validation", "hard").table["answer"]
    most = max(answers.count(answer) for answer in answers)
    assert lines[-1] == f"The best constant guess earns {most / len(answers):.3f} on these images."


def test_rivals_are_compared_at_the_same_setting_and_each_at_its_best():
    shifted = {
        "cppo": 0.70,
        "cppo-learning_rate=0.0006": 0.74,
        "cppo-group_size=4": 0.80,
        "grpo": 0.60,
        "grpo-group_size=16": 0.66,
    }
    plain = {"cppo-group_size=4": 0.60}  # 0.1 below the default: not a best setting
    arms = [f"{arm}{suffix}" for arm in ("cppo", "grpo") for suffix in RIVAL_SETTINGS]
    arms += [f"{arm}-level=hard" for arm in ("cppo", "grpo", "grpo_augmented")]
    rows = [
        row | {"avg_at_8": str(plain.get(arm, 0.70))}
        for arm in arms
        for row in rows_of("tiny", arm, shifted.get(arm, 0.50), range(100, 105))
    ]
    lines = [line.split(" | ")[1:] for line in rivals_table(rows).splitlines()[2:]]
    assert [line[0] for line in lines] == [
        "`cppo` − `grpo`",
        *(f"`cppo{suffix}` − `grpo{suffix}`" for suffix in RIVAL_SETTINGS[1:]),
        "`cppo-level=hard` − `grpo-level=hard`",
        "`cppo-level=hard` − `grpo_augmented-level=hard`",
        "each at its best: `cppo-learning_rate=0.0006` − `grpo-group_size=16`",
    ]
    assert lines[-1][1].startswith("+0.080 [") and lines[4][2].startswith("-0.100 [")
    without = [row for row in rows if row["arm"] != "grpo-group_size=4"]
    assert "best" not in rivals_table(without) and len(rivals_table(without).splitlines()) == 2 + 7


@pytest.mark.parametrize(
    ("shifted", "low", "plain", "passes"),
    [
        (0.03, 0.01, 0.0, True),
        (0.03, 0.01, -0.02, True),  # "loses at most 0.02"
        (0.03, 0.01, -0.021, False),
        (0.03, -0.001, 0.0, False),
        (0.02, 0.01, 0.0, False),  # "by more than 0.02"
    ],
)
def test_the_rule_for_a_new_default(shifted, low, plain, passes):
    found = [Difference("tiny", "a", "b", "m", value, least, 0.1, 0.0, 5) for value, least in ((shifted, low), (plain, -0.1))]
    assert challenges(*found) is passes


def test_the_regime_map_has_a_cell_for_every_base_that_was_run():
    cells = regimes(family(0.6))
    assert len(cells) == 2 * 3 * 2
    assert cells["cppo − grpo", "tiny\nshifted"][1] == "above"
    assert cells["cppo − grpo", "tiny\nplain"][1] == "equal"


def test_gradients_are_averaged_over_the_run_and_then_over_seeds():
    other = [*curve_of("cppo", 9.0, 9.0, [100]), *curve_of("cpl_only", 9.0, 9.0)]  # a validation seed; no GRPO to compare with
    (line,) = alignment_table([*curve_of("cppo", 0.25, 0.5), *other]).splitlines()[2:]
    assert line == "| tiny | `cppo` | +0.250 [+0.250, +0.250] | 0.500 [0.500, 0.500] |"
    kept = curves_of(rows_of("tiny", "cppo"), [*curve_of("cppo", 0.25, 0.5), *other])
    assert kept == curve_of("cppo", 0.25, 0.5)


def test_the_detector_table_averages_over_seeds():
    row = {"base": "tiny", "view": "blank", "strength": "1"}
    lines = detector_table([row | {"seed": seed, "auroc_absolute": value} for seed, value in (("0", "0.9"), ("1", "0.8"))])
    assert lines.splitlines()[2:] == [
        "| blank ×1 | 0.850 | – | – | – |",
        "| seeds of the samples | 2 | not run | not run | not run |",
    ]


def token(kind="perception", right=True, selected=True, shift=0.5, changed=0.1, likeliest=True, rise=1.0, row=0):
    return Token(row, row, 0, "red", kind, right, selected, shift, changed, likeliest, rise)


def test_failures_by_hand():
    tokens = [
        token(),
        token(selected=False, shift=-0.1, changed=0.02),
        token(right=False, likeliest=False, rise=-1.0, shift=0.005, changed=0.3, row=1),
        token(kind="format", right=None, shift=0.001, changed=float("nan")),
    ]
    assert [[one.fails(kind) for one in tokens] for kind in ("marked", "missed", "wrong")] == [
        [False, False, False, True],
        [False, True, False, False],
        [False, False, True, False],
    ]
    found = summary(tokens)
    assert (found["rows_count"], found["tokens"], found["wrong_count"], found["right_count"]) == (2, 4, 1, 1)
    assert found["marked_share"] == pytest.approx(1 / 3) and found["missed_share"] == pytest.approx(1 / 3)
    assert (found["marked_undecided"], found["hit_undecided"]) == (1.0, 0.5)
    assert (found["missed_change"], found["hit_change"]) == (pytest.approx(0.02), pytest.approx(0.2))
    assert (found["wrong_rows"], found["wrong_likeliest"], found["right_likeliest"]) == (0.5, 0.0, 1.0)
    assert found["missed_not_risen"] == 1.0
    assert (found["wrong_rise"], found["right_rise"]) == ([-1.0, -1.0, -1.0], [1.0, 1.0, 1.0])
    assert summary([token()])["wrong_rise"] is None and summary([token()])["missed_change"] is None


def test_prompts_count_once_however_many_tokens_they_have():
    assert over_prompts([token(rise=1.0), token(rise=3.0), token(rise=8.0, row=1)])[0] == pytest.approx(5.0)


def test_change_is_counted_in_its_own_cell():
    image = Image.new("RGB", (48, 48), "white")
    other = image.copy()
    other.paste((0, 0, 0), (16, 32, 32, 48))  # the middle cell of the last row
    assert np.round(cell_change(image, other, 9), 6).tolist() == [0, 0, 0, 0, 0, 0, 0, 1, 0]


def test_the_gallery_of_a_batch():
    config = CPPOConfig(model="tiny", seed=100, device="cpu", group_size=4, prompts_per_step=2)
    policy = nudge(load_policy("tiny"))
    batch = look(policy, config, train_steps=0, prompts=6)
    tokens = observe(policy, batch, config, 0)
    assert {one.row for one in tokens} == set(batch.gate.nonzero().flatten().tolist())
    percepts = [one for one in tokens if one.kind == "perception"]
    assert len(percepts) == 9 * len({one.row for one in tokens})
    assert all(math.isfinite(one.changed) == (one.kind == "perception") for one in tokens)
    assert sum(one.selected for one in tokens) <= int(batch.selected.sum())  # end-of-sequence tokens are left out
    shown = cases(tokens)
    prompts = [case.prompt for case in shown.values()]
    assert prompts == [int(batch.rollouts.prompt_of_row[case.row]) for case in shown.values()]
    assert shown and len(set(prompts)) == len(prompts)
    assert all(case.fails(kind) for kind, case in shown.items())
    kind, case = next(iter(shown.items()))
    figure = show_case(batch, tokens, case, kind, config, 0)
    assert any("◄" in text.get_text() for ax in figure.findobj() if hasattr(ax, "texts") for text in ax.texts)
