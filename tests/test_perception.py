"""Entropy, its shift, and the choice of perception tokens, against tables worked out by hand."""

import math
import random
import re
from inspect import unwrap

import pytest
import torch

from cppo_ref.perception import entropy_shift, perception_score, select_perception_tokens, token_entropy

INF, NAN = math.inf, math.nan


def bools(rows):
    return torch.tensor(rows, dtype=torch.bool)


@pytest.mark.parametrize(
    ("probabilities", "nats"),
    [
        ([0.25, 0.25, 0.25, 0.25], 1.3862943611),  # uniform over 4: ln 4
        ([0.5, 0.0, 0.5, 0.0], 0.6931471806),  # ln 2: impossible tokens add nothing
        ([0.0, 1.0, 0.0, 0.0], 0.0),  # certain
        ([0.5, 0.25, 0.125, 0.125], 1.2130075660),  # 1.75 bits
    ],
)
@pytest.mark.parametrize("constant", [0.0, 7.0])  # logits are free up to a constant
def test_entropy_of_known_distributions(probabilities, nats, constant):
    logits = torch.tensor([[probabilities]]).log() + constant  # log 0 = -inf
    torch.testing.assert_close(token_entropy(logits), torch.tensor([[nats]]))


def test_entropy_shift_is_removed_minus_original_and_zero_off_the_mask():
    entropy = torch.tensor([[0.5, 1.0, 2.0, INF, NAN, 3.0]])
    removed = torch.tensor([[1.5, 1.0, 0.5, 1.00, 1.0, NAN]])
    mask = bools([[1, 1, 1, 0, 0, 0]])
    assert entropy_shift(entropy, removed, mask).tolist() == [[1.0, 0.0, -1.5, 0.0, 0.0, 0.0]]


def test_identical_views_shift_nothing_and_select_nothing():
    logits = torch.randn(3, 5, 7, generator=torch.Generator().manual_seed(0))
    mask = torch.ones(3, 5, dtype=torch.bool)
    entropy, removed = token_entropy(logits), token_entropy(logits.clone())
    shift = entropy_shift(entropy, removed, mask)
    assert not shift.any()
    assert not select_perception_tokens(shift, removed, mask).any()


def table(name, fraction, shift, mask, expected):
    return pytest.param(fraction, shift, mask, expected, id=name)


SELECTIONS = [
    table(
        "the top share of the positive shifts, rounded up",
        0.5,
        [[0.9, 0.2, 0.7, -0.5, 0.4, 0.0], [0.1, 0.0, 0.3, 0.2, -9.0, 0.0]],
        [[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]],
        # four candidates, the top 2; three candidates, the top ⌈1.5⌉ = 2
        [[1, 0, 1, 0, 0, 0], [0, 0, 1, 1, 0, 0]],
    ),
    table(
        "ties go to the earlier token",
        0.5,
        [[0.0, 0.5, 0.5, 0.5, 0.5, 0.0], [0.3, 0.3, 0.3, 0.9, 0.0, 0.0]],
        [[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]],
        # 2 of four equals; 0.9 and one of three equals
        [[0, 1, 1, 0, 0, 0], [1, 0, 0, 1, 0, 0]],
    ),
    table(
        "a share below one token keeps one",
        0.1,
        [[0.1, 0.3, 0.2, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0, 0.0, 0.1]],
        [[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]],
        # 0.1 · 3 candidates; 0.1 · 1 candidate
        [[0, 1, 0, 0, 0, 0], [0, 0, 0, 0, 0, 1]],
    ),
    table("a vanishing share keeps one", 1e-12, [[0.1, 0.3, 0.2, 0.0, 0.0, 0.0]], [[1, 1, 1, 1, 1, 1]], [[0, 1, 0, 0, 0, 0]]),
    table(
        "a row without completion tokens has none",
        0.5,
        [[0.9, 0.8, 0.7, 0.6, 0.5, 0.4], [0.9, 0.8, 0.7, 0.6, 0.5, 0.4]],
        [[0, 0, 0, 0, 0, 0], [1, 1, 0, 0, 0, 0]],
        [[0, 0, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0]],
    ),
    table(
        "a row without a positive shift has none",
        1.0,
        [[0.0, -0.1, 0.0, -2.0, -0.3, 0.0], [0.0, -0.1, 0.0, -2.0, -0.3, 0.1]],
        [[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]],
        [[0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 1]],
    ),
    table(
        "padding is neither chosen nor counted, whatever its shift",
        0.5,
        [[99.0, INF, 0.1, 0.2, -0.1, 0.3], [0.2, 0.1, -0.1, NAN, 99.0, INF]],
        [[0, 0, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0]],
        # padding left: three candidates, 2 kept; padding right: two candidates, 1 kept
        [[0, 0, 0, 1, 0, 1], [1, 0, 0, 0, 0, 0]],
    ),
    table(
        "the whole share keeps every positive shift",
        1.0,
        [[0.9, 0.2, 0.7, -0.5, 0.4, 0.0], [0.1, 0.0, 0.3, 0.2, -9.0, 5.0]],
        [[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 0]],
        [[1, 1, 1, 0, 1, 0], [1, 0, 1, 1, 0, 0]],
    ),
]


@pytest.mark.parametrize(("fraction", "shift", "mask", "expected"), SELECTIONS)
@pytest.mark.parametrize("ranking", ["absolute", "normalized"])
def test_selection_tables(fraction, shift, mask, expected, ranking):
    shift = torch.tensor(shift)
    removed = torch.ones_like(shift)  # the same for all, so both rankings agree
    chosen = select_perception_tokens(shift, removed, bools(mask), top_fraction=fraction, ranking=ranking)
    assert torch.equal(chosen, bools(expected))


def test_ties_go_to_the_earlier_token_in_long_rows():  # where an unstable sort shuffles them
    ones = torch.ones(1, 4096)
    chosen = select_perception_tokens(ones, ones, ones.bool())
    assert chosen[:, :2048].all()
    assert not chosen[:, 2048:].any()


@pytest.mark.parametrize(
    ("fraction", "candidates", "kept"),
    [(0.1, 30, 3), (0.1, 31, 4), (0.07, 100, 7), (0.5, 5, 3), (1 / 3, 9, 3)],  # 0.07 * 100 = 7.000000000000001
)
def test_rounding_up_is_exact(fraction, candidates, kept):
    shift = torch.linspace(1, 2, candidates)[None]
    chosen = select_perception_tokens(shift, shift, shift.bool(), top_fraction=fraction)
    assert chosen.sum() == kept


def test_rankings_choose_differently():
    shift = torch.tensor([[0.9, 0.3, 0.0, -0.2, 0.0, 0.0]])
    removed = torch.tensor([[3.0, 0.3, 0.5, 0.50, 0.0, 0.0]])
    mask = torch.ones(1, 6, dtype=torch.bool)
    # absolute: 0.9 > 0.3; normalized: 0.9/3 = 0.3 < 0.3/0.3 = 1
    absolute = select_perception_tokens(shift, removed, mask, ranking="absolute")
    normalized = select_perception_tokens(shift, removed, mask, ranking="normalized")
    assert torch.equal(absolute, bools([[1, 0, 0, 0, 0, 0]]))
    assert torch.equal(normalized, bools([[0, 1, 0, 0, 0, 0]]))


def test_authors_score_and_selection_by_hand():
    entropy = torch.tensor([[1.0, 0.2, 0.1, 2.0, 0.5, 0.3]])
    removed = torch.tensor([[1.5, 0.8, 0.2, 2.2, 0.4, 0.3]])
    mask = torch.ones(1, 6, dtype=torch.bool)
    shift = entropy_shift(entropy, removed, mask)
    # 0.5/1.5, 0.6/0.8, 0.1/0.2, 0.2/2.2: four candidates, the top 2 are 0.75 and 0.5
    score = perception_score(shift, removed)[:, :4]
    torch.testing.assert_close(score, torch.tensor([[0.33333, 0.75, 0.5, 0.09091]]), atol=1e-5, rtol=0)
    assert torch.equal(select_perception_tokens(shift, removed, mask), bools([[0, 1, 1, 0, 0, 0]]))


def authors_selection(entropy, removed, mask):
    """One row in plain Python: normalise the rises, sort, keep half of them rounded up."""
    rows = zip(entropy, removed, mask, strict=True)
    score = {t: max(after - before, 0) / (after + 1e-6) for t, (before, after, real) in enumerate(rows) if real}
    rising = [t for t in score if score[t] > 0]
    kept = sorted(rising, key=lambda t: (-score[t], t))[: (len(rising) + 1) // 2]
    return [t in kept for t in range(len(mask))]


def test_selection_equals_the_authors_in_plain_python():
    rng = random.Random(0)
    # entropies in quarters, so that ties are common
    entropy, removed = ([[rng.randrange(9) / 4 for _ in range(12)] for _ in range(200)] for _ in "ab")
    mask = [[rng.random() < 0.8 for _ in range(12)] for _ in range(200)]
    before, after, real = torch.tensor(entropy).double(), torch.tensor(removed).double(), bools(mask)
    chosen = select_perception_tokens(entropy_shift(before, after, real), after, real)
    assert chosen.tolist() == [authors_selection(*row) for row in zip(entropy, removed, mask, strict=True)]


@pytest.mark.parametrize("fraction", [0.0, -0.5, 1.5, NAN])
def test_a_bad_top_fraction_is_named(fraction):
    ones = torch.ones(1, 2)
    with pytest.raises(ValueError, match=re.escape(f"top_fraction is {fraction}, expected a number in (0, 1]")):
        select_perception_tokens(ones, ones, ones.bool(), top_fraction=fraction)


def test_an_unknown_ranking_is_named():
    with pytest.raises(ValueError, match='ranking is \'relative\', expected "absolute" or "normalized"'):
        unwrap(perception_score)(torch.ones(1, 2), torch.ones(1, 2), ranking="relative")  # unwrap: past the type checks
