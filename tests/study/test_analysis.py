"""The study's statistics against values worked by hand or known from textbooks, and its figures."""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest

from cppo_ref.config import InputError
from study.analysis import (
    Difference,
    bootstrap_interval,
    difference,
    holm,
    minimal_effect,
    paired,
    pilot_spread,
    power_of,
    primary_family,
    sign_flip_p,
    verdict,
)
from study.figures import forest_plot, regime_map

ROOT = Path(__file__).parents[2]


def row(base, arm, seed, value):
    return {"base": base, "arm": arm, "seed": str(seed), "shift_avg_at_8": str(value)}


ROWS = [
    *(row("tiny", "grpo", seed, value) for seed, value in [(2, 0.6), (0, 0.5), (10, 0.7), (3, 0.1)]),
    *(row("tiny", "cppo", seed, value) for seed, value in [(10, 0.8), (0, 0.65), (2, 0.6), (4, 0.9)]),
    row("robust", "cppo", 3, 0.0),
]


def test_differences_are_paired_by_seed():
    assert paired(ROWS, "tiny", "cppo", "grpo", "shift_avg_at_8") == pytest.approx([0.15, 0.0, 0.1])
    found = difference(ROWS, "tiny", "cppo", "grpo")
    assert (found.value, found.seeds) == (pytest.approx(0.25 / 3), 3)
    with pytest.raises(InputError, match="no seed has shift_avg_at_8 of both papo and grpo on base tiny"):
        paired(ROWS, "tiny", "papo", "grpo", "shift_avg_at_8")


def test_the_sign_flip_test_by_hand():
    # of the 8 sign patterns of (1, 2, 3), only +++ and −−− reach |sum| = 6
    assert sign_flip_p(np.array([1.0, 2.0, 3.0])) == 2 / 8
    # of (1, 1, −1): |sum| = 1 is reached by all 8
    assert sign_flip_p(np.array([1.0, 1.0, -1.0])) == 1.0
    assert sign_flip_p(np.full(10, 0.1)) == 2 / 1024
    assert sign_flip_p(np.arange(1.0, 21.0)) == 2 / 2**20
    assert sign_flip_p(np.zeros(4)) == 1.0


def test_the_drawn_sign_flip_test_agrees_with_the_exact_one():
    gaps = np.random.default_rng(3).normal(0.3, 1.0, 16)
    signs = np.random.default_rng(0).choice((1, -1), size=(200_000, 16))
    assert sign_flip_p(gaps) == pytest.approx(np.mean(np.abs(signs @ gaps) >= abs(gaps.sum())), abs=0.005)
    assert 0.9 < sign_flip_p(np.tile([1.0, -1.0], 20)) <= 1.0
    assert sign_flip_p(np.ones(40)) == pytest.approx(1 / 10_001)


def test_the_bootstrap_interval_of_many_values_is_the_normal_one():
    gaps = np.random.default_rng(0).normal(0.1, 0.05, 400)
    low, high = bootstrap_interval(gaps)
    half = 1.96 * gaps.std(ddof=1) / 20
    assert (low, high) == (pytest.approx(gaps.mean() - half, abs=6e-4), pytest.approx(gaps.mean() + half, abs=6e-4))
    assert bootstrap_interval(gaps[:10]) == bootstrap_interval(gaps[:10])
    assert bootstrap_interval(np.full(5, 0.2)) == (0.2, 0.2)


def test_holm_by_hand():
    # Holm (1979): sorted 0.005·4, 0.01·3, 0.03·2, 0.04·1, each at least the one before
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.9]) == [1.0, 1.0]
    assert holm([0.02]) == [0.02]


def test_power_is_that_of_the_textbook():
    assert power_of(0.5, 1.0, 34) == pytest.approx(0.8077775, abs=1e-6)  # G*Power's example for paired means, dz = 0.5
    assert power_of(0.0, 1.0, 10) == pytest.approx(0.05)
    effect = minimal_effect(0.02, 10)
    assert power_of(effect, 0.02, 10) == pytest.approx(0.8)
    assert effect == pytest.approx(0.9960 * 0.02, abs=1e-5)


def test_the_pilot_is_read_as_the_protocol_states_it():
    gaps, spread, bound = pilot_spread(ROOT / "data/results/demo_seeds.csv")
    assert gaps == pytest.approx([0.0925, 0.0875, 0.0796])
    assert (spread, bound) == (pytest.approx(0.0065, abs=5e-5), pytest.approx(0.0287, abs=5e-5))


@pytest.mark.parametrize(
    ("low", "high", "p", "word"),
    [
        (0.03, 0.09, 0.01, "helps"),
        (0.03, 0.09, 0.06, "undecided"),
        (-0.09, -0.01, 0.01, "hurts"),
        (-0.01, 0.019, 0.5, "equal"),
        (0.005, 0.019, 0.01, "equal"),
        (-0.01, 0.03, 0.2, "undecided"),
        (-0.05, 0.05, 0.9, "undecided"),
    ],
)
def test_verdicts(low, high, p, word):
    assert verdict(Difference("tiny", "cppo", "grpo", "m", (low + high) / 2, low, high, p, 10), p) == word


def test_the_primary_family_has_six_comparisons_and_is_adjusted_together():
    effects = {"tiny": 0.09, "robust": 0.0, "hallucinating": -0.06}
    rng, rows = np.random.default_rng(0), []
    for base, effect in effects.items():
        for seed in range(10):
            for arm in ("grpo", "cppo", "grpo_augmented"):
                rows.append(row(base, arm, seed, 0.6 + effect * (arm == "cppo") + rng.normal(0, 0.005)))
    family = primary_family(rows)
    assert [(one.base, one.other, word) for one, _, word in family] == [
        *[("tiny", "grpo", "helps"), ("tiny", "grpo_augmented", "helps")],
        *[("robust", "grpo", "equal"), ("robust", "grpo_augmented", "equal")],
        *[("hallucinating", "grpo", "hurts"), ("hallucinating", "grpo_augmented", "hurts")],
    ]
    assert family[0][1] == pytest.approx(6 * 2 / 1024)


def test_the_figures_show_every_comparison():
    found = [Difference(base, "cppo", "grpo", "m", 0.05, 0.02, 0.08, 0.01, 10) for base in ("tiny", "robust")]
    forest = forest_plot(found)
    assert [label.get_text() for label in forest.axes[0].get_yticklabels()] == ["cppo − grpo"]
    assert {"base: tiny", "base: robust"} <= {text.get_text() for text in forest.axes[0].get_legend().get_texts()}
    cells = {("cppo − grpo", one.base): (one, "helps") for one in found}
    regime = regime_map(cells)
    assert [text.get_text() for text in regime.axes[0].texts] == ["+0.050\nhelps"] * 2
    plt.close("all")
