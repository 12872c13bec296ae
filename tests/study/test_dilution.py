"""Dilution against plane geometry and made-up curves whose reading is plain."""

import math

import numpy as np
import pytest

from cppo_ref.config import InputError
from study.arms import ARMS
from study.dilution import Evidence, dilution_table, evidence, final_points, intervention_table, predicted, share


@pytest.mark.parametrize(
    ("cosine", "ratio", "expected"),
    [
        (0.0, 0.0, 1.0),
        (0.0, 1.0, math.sqrt(0.5)),  # a right angle, equal lengths: 45 degrees
        (0.5, 1.0, math.cos(math.radians(30))),  # 60 degrees, equal lengths: the sum halves the angle
        (1.0, 3.0, 1.0),
        (-1.0, 2.0, -1.0),  # the longer one wins
        (-1.0, 1.0, 0.0),
    ],
)
def test_the_share_is_the_cosine_of_the_sum_with_the_first(cosine, ratio, expected):
    assert share(cosine, ratio) == pytest.approx(expected)


NAN = float("nan")


def curves_of(arm, end, seeds=range(10), ratio=0.75):
    """Plain accuracy rises on a straight line from 0 to `end` in 80 steps; gradients at a right angle, 3 to 4."""
    rows = []
    for seed in seeds:
        for step in range(0, 81, 10):
            probes = {"gradient_cosine": 0.0, "gradient_ratio": ratio} if arm != "grpo" and step else {}
            swing = 0.002 * (seed % 3 - 1) * (arm != "grpo")  # so that paired differences have some spread
            heights = {"validation_avg_at_8": end * step / 80 + swing}
            rows.append(
                {"base": "tiny", "arm": arm, "seed": seed, "step": step + 5} | _no_probes() | {"validation_avg_at_8": NAN}
            )
            rows.append({"base": "tiny", "arm": arm, "seed": seed, "step": step, **heights} | _no_probes() | probes)
    return rows


def _no_probes():
    return {"gradient_cosine": None, "gradient_ratio": None}


def runs_of(*arms):
    return [{"base": "tiny", "arm": arm, "seed": str(seed), "steps": "80"} for arm in arms for seed in range(10)]


def test_an_arm_is_predicted_to_be_where_its_baseline_is_after_a_share_of_the_steps():
    curves, rows = [*curves_of("grpo", 0.8), *curves_of("cppo", 0.64)], runs_of("grpo", "cppo")
    assert predicted(0.0, 0.75, np.array([0, 40, 80]), np.array([0.0, 0.4, 0.8])) == pytest.approx(-0.16)  # 3, 4, 5
    seen = evidence(rows, curves, "tiny", ARMS["cppo"])
    assert seen.prediction() == pytest.approx(-0.16)
    assert seen.heights.shape == (10, 9) and seen.gaps.mean() == pytest.approx(-0.16, abs=0.001)
    with pytest.raises(InputError, match="cppo and grpo need the seeds"):
        evidence(rows[:-1], curves, "tiny", ARMS["cppo"])


@pytest.mark.parametrize(("end", "word"), [(0.64, "compatible"), (0.5, "too little"), (0.75, "too much")])
def test_the_prediction_is_held_against_what_was_observed(end, word):
    curves = [*curves_of("grpo", 0.8), *curves_of("cppo", end), *curves_of("pull", 0.64)]
    lines = dilution_table(runs_of("grpo", "cppo"), curves).splitlines()[2:]
    assert len(lines) == 1  # pull has curves but no rows
    assert lines[0].startswith("| tiny | `cppo` | 0.80 | -0.160 | ")
    assert lines[0].endswith(f"| {word} |")


def test_the_luck_of_the_baseline_counts_in_the_remainder():
    """Baselines that end anywhere between 0.7 and 0.9, arms at 0.8 of each: the gaps differ, nothing remains."""
    ends = np.linspace(0.7, 0.9, 10)
    steps = np.arange(0, 81, 10)
    seen = Evidence(np.zeros(10), np.full(10, 0.75), steps, np.outer(ends, steps / 80), -0.2 * ends)
    assert np.allclose(seen.remainder(), 0.0)


def test_nothing_is_explained_where_nothing_moved():
    curves = [*curves_of("grpo", 0.8), *curves_of("cppo", 0.8, ratio=0.0)]
    (line,) = dilution_table(runs_of("grpo", "cppo"), curves).splitlines()[2:]
    assert line.endswith("| nothing to explain |")


@pytest.mark.parametrize(
    ("slower", "faster", "word"),
    [(0.70, 0.80, "supported"), (0.75, 0.80, "refuted"), (0.70, 0.70, "refuted"), (0.715, 0.80, "undecided")],
)
def test_the_intervention_is_judged_by_the_log_of_the_protocol(slower, faster, word):
    """GRPO 0.8 and CPPO 0.7 on plain images; spread over seeds ±0.01."""
    plain = {"grpo": 0.8, "cppo": 0.7, "grpo_slower": slower, "cppo_faster": faster}
    swing = {"grpo_slower": 0.01, "cppo_faster": 0.01}
    rows = [
        {"base": "tiny", "arm": arm, "seed": str(seed), "shift_avg_at_8": "0.5"}
        | {"avg_at_8": str(value + swing.get(arm, 0.0) * (-1) ** seed)}
        for arm, value in plain.items()
        for seed in range(10)
    ]
    found = intervention_table(rows)
    assert found.splitlines()[2].startswith("| `grpo_slower` − `cppo` |")
    cost = {0.70: 100, 0.75: 50, 0.715: 85}[slower]
    assert found.endswith(f"Dilution: **{word}**; slowing GRPO down costs {cost} % of CPPO's price.")
    assert intervention_table(rows[:-1]) == "Not run yet."


def test_the_last_probe_is_that_of_the_last_step():
    curves = curves_of("grpo", 0.8, [0])
    assert final_points([{"base": "tiny", "arm": "grpo", "seed": "0", "steps": "40"}], curves) == [
        {"base": "tiny", "arm": "grpo", "seed": "0", "validation_avg_at_8": "0.4"}
    ]
    assert final_points([{"base": "tiny", "arm": "grpo", "seed": "0", "steps": "45"}], curves) == []  # a run that diverged
