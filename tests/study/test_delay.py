"""The explanation by delay: what is counted, and the words of the protocol's log."""

import pytest

from study.delay import LONG, SHORT, delayed_table, longer_table, slowdown_table, steps_to
from study.dilution import METRIC
from study.store import METRICS


def curve_of(arm, seed, rise, base="tiny"):
    """0.6 until a step, and from it on one point of accuracy a step, probed every ten steps up to 80; no probe in between."""
    heights = {step: 0.6 + 0.01 * max(step - rise, 0) for step in range(0, 81, 10)} | {45: None, 55: float("nan")}
    return [{"base": base, "arm": arm, "seed": seed, "step": step, METRIC: height} for step, height in heights.items()]


def test_the_slowdown_is_a_ratio_of_steps_of_the_seeds_that_reach_the_height():
    curves = [point for seed in range(9) for point in curve_of("grpo", seed, 30) + curve_of("cppo", seed, 40)]
    curves += curve_of("grpo", 9, 30) + curve_of("cppo", 9, 75)  # never at 0.7
    assert steps_to(0.7, curves, "tiny", "grpo", 0) == pytest.approx(40)
    assert steps_to(0.65, curves, "tiny", "grpo", 0) == pytest.approx(35)  # between two probes
    lines = slowdown_table(curves).splitlines()[2:]
    assert lines == ["| tiny | 0.7 | 9 | 40 | 50 | 1.25 [1.25, 1.25] |", "| tiny | 0.8 | 9 | 50 | 60 | 1.20 [1.20, 1.20] |"]


def test_what_a_delay_leaves_is_read_from_the_curve_of_the_longer_baseline():
    curves = [point for seed in range(10) for point in curve_of("grpo", seed, 30) + curve_of("cppo", seed, 40)]
    assert delayed_table(curves) == "Not run yet."
    curves += [point for seed in range(10) for point in curve_of(LONG[1], seed, 40) + curve_of(LONG[0], seed, 50)]
    # 0.8 at steps 50 and 60: factor 1.2; the longer baseline is at 1.0 at its end, step 80, and at 0.867 at step 80/1.2
    assert delayed_table(curves).splitlines()[2:] == ["| tiny | 1.20 | -0.133 | -0.100 |"]


def rows_of(arm, plain, base="tiny"):
    noise = [0.001 * (-1) ** seed for seed in range(10)]  # of CPPO only: a spread of the paired differences
    swing = arm.startswith("cppo")
    return [
        dict.fromkeys(METRICS, "0.5")
        | {"base": base, "arm": arm, "seed": str(seed), "avg_at_8": str(plain + swing * noise[seed])}
        for seed in range(10)
    ]


@pytest.mark.parametrize(
    ("short", "long", "word"),
    [
        (-0.06, -0.01, "supported"),  # the gap closes
        (-0.06, -0.04, "undecided"),  # it shrinks
        (-0.04, -0.06, "refuted"),  # it grows
        (-0.01, -0.01, "refuted"),  # equal, but it was before: nothing came nearer to 0
    ],
)
def test_delay_is_judged_by_the_log_of_the_protocol(short, long, word):
    plain = {SHORT[0]: 0.8 + short, SHORT[1]: 0.8, LONG[0]: 0.9 + long, LONG[1]: 0.9}
    rows = [row for arm, value in plain.items() for row in rows_of(arm, value)]
    found = longer_table(rows)
    assert found.splitlines()[-1] == f"Delay: on `tiny` **{word}**."
    assert f"| tiny | change | {long - short:+.3f} [" in found
    assert f"| tiny | 140 | {long:+.3f} [" in found and f"| tiny | 80 | {short:+.3f} [" in found
    assert longer_table(rows[:-1]) == "Not run yet."
