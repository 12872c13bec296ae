"""Whether the other bases agree with `tiny`, and the test of why random tokens are better: on made-up rows of plain outcome."""

import pytest

from study.analysis import PRIMARY_BASES
from study.arms import ARMS
from study.elsewhere import anchor_outcome, carry_table, choice_table, predictions_table, settings_table
from study.store import METRICS

WAYS = ["paper", "verl", "k1", "anchor_flows", "no_gate", "all_tokens", "random_tokens", "true_tokens", "pull", "push", "papo"]


def rows_of(base, arm, shifted=0.6, plain=0.5):
    """Ten seeds on both kinds of image, `cppo` give or take 0.002."""
    swings = [(arm == "cppo") * 0.002 * (-1) ** seed for seed in range(10)]
    return [
        dict.fromkeys(METRICS, "0.5")
        | {"base": base, "arm": arm, "seed": str(seed), "shift_avg_at_8": str(shifted + swing), "avg_at_8": str(plain + swing)}
        for seed, swing in enumerate(swings)
    ]


def study(changed):
    """Every way at 0.6 and 0.5; `changed`: (base, arm) -> (shifted, plain)."""
    values = {(base, arm): (0.6, 0.5) for base in PRIMARY_BASES for arm in ("cppo", "grpo", "cpl_only", *WAYS)} | changed
    return [row for (base, arm), value in values.items() for row in rows_of(base, arm, *value)]


def test_a_way_that_is_missing_on_a_base_has_no_line():
    rows = [row for row in study({}) if (row["base"], row["arm"]) != ("robust", "verl")]
    assert "`verl`" not in carry_table(rows) and "`paper`" in carry_table(rows)
    assert "`verl`" in settings_table(rows) and "`verl`" not in settings_table(rows, "robust")
    assert predictions_table(rows) == "Not run yet."


def test_tiny_is_held_against_the_other_bases_word_by_word():
    rows = study(
        {
            ("tiny", "verl"): (0.5, 0.5),  # cppo above on shifted images ...
            ("hallucinating", "verl"): (0.5, 0.5),  # ... here too
            ("robust", "verl"): (0.7, 0.5),  # ... and the other way round
            ("tiny", "papo"): (0.6, 0.7),  # cppo below on plain images; equal elsewhere
            ("hallucinating", "k1"): (0.5, 0.5),  # tiny says equal: nothing to hold
        }
    )
    text = carry_table(rows)
    (line,) = [line for line in text.splitlines() if "`verl`" in line]
    assert line == "| `cppo` − `verl` | above | below | above | equal | equal | equal |"
    assert "Of `tiny`'s 2 differences, `robust` agrees with 0, is *equal* in 1, *open* in 0 and reverses 1." in text
    assert "Of `tiny`'s 2 differences, `hallucinating` agrees with 1, is *equal* in 1, *open* in 0 and reverses 0." in text


ALL_BETTER = {("hallucinating", "all_tokens"): (0.7, 0.6)}


# paper loses 0.2 on both kinds of image, and the gradient through the anchor alone 0.15
ANCHOR = {("hallucinating", "paper"): (0.4, 0.3), ("hallucinating", "anchor_flows"): (0.45, 0.35)}


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({}, "yes yes no no"),  # what paper does not lose, the anchor does not cost
        (ALL_BETTER | ANCHOR, "yes yes yes yes"),
        ({("hallucinating", "all_tokens"): (0.7, 0.5)}, "yes yes no no"),  # on shifted images only
        (ALL_BETTER | {("robust", "verl"): (0.7, 0.5)}, "yes no yes no"),
        (ALL_BETTER | {("tiny", "k1"): (0.5, 0.5), ("hallucinating", "k1"): (0.7, 0.5)}, "no yes yes no"),
        (ANCHOR | {("hallucinating", "anchor_flows"): (0.45, 0.45)}, "yes yes no no"),  # a quarter of it on plain images
    ],
)
def test_the_predictions(changed, words):
    text = predictions_table(study(changed))
    assert [line.split(" | ")[1] for line in text.splitlines()[2:]] == [f"**{word}**" for word in words.split()]
    assert ("`k1` (shifted)" in text) == words.startswith("no")
    assert ("`verl` +0.100 [" in text) == words.startswith("yes no")


@pytest.mark.parametrize(
    ("shifted", "plain", "word"),
    [
        (0.45, 0.35, "supported"),  # 0.15 of the 0.2 on both
        (0.45, 0.45, "undecided"),  # more than half on shifted images, a quarter on plain ones
        (0.55, 0.45, "refuted"),  # a quarter on both
    ],
)
def test_how_much_of_the_papers_loss_the_anchor_must_cost(shifted, plain, word):
    assert anchor_outcome(study(ANCHOR | {("hallucinating", "anchor_flows"): (shifted, plain)})) == word


@pytest.mark.parametrize(
    ("random", "pull_random", "word"),
    [
        (0.6, 0.5, "supported"),  # random tokens are better with the push alone
        (0.6, 0.55, "supported"),  # better without it as well, but less
        (0.6, 0.6, "refuted"),  # and here as much
        (0.5, 0.5, "undecided"),  # they are not better at all
    ],
)
def test_whether_the_push_does_its_harm_on_the_detected_tokens(random, pull_random, word):
    values = {"random_tokens": random, "pull_random": pull_random, "cppo": 0.5, "pull": 0.5}
    rows = [
        row for base in ("tiny", "hallucinating") for arm, value in values.items() for row in rows_of(base, arm, 0.6, value)
    ]
    text = choice_table(rows)
    assert text.endswith(f"on `tiny` **{word}**, on `hallucinating` **{word}**.")
    assert f"| tiny | plain avg@8 | {random - 0.5:+.3f} [" in text
    assert choice_table(rows[1:]) == "Not run yet."


def test_pull_on_random_tokens_differs_from_pull_in_the_tokens_only():
    assert ARMS["pull_random"].changes == ARMS["pull"].changes | ARMS["random_tokens"].changes
