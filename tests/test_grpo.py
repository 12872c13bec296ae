"""Advantages, the clipped surrogate, aggregation and the reference KL, against hand tables, enumeration and TRL."""

import math
import re
from inspect import unwrap

import pytest
import torch

from cppo_ref.grpo import (
    clipped_surrogate,
    group_advantages,
    kl_to_reference,
    policy_loss,
    token_logprobs,
    token_weights,
    weighted_sum,
    zero_variance,
)

INF, NAN = math.inf, math.nan
AGGREGATIONS = ["token", "sequence", ("constant", 8.0)]


def bools(rows):
    return torch.tensor(rows, dtype=torch.bool)


def random_logprobs(*shape, seed=0):
    return -2 * torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def assert_close(actual, expected):
    torch.testing.assert_close(actual, torch.tensor(expected), atol=1e-6, rtol=1e-6)


# --- advantages ---


@pytest.mark.parametrize(
    ("rewards", "expected"),
    [
        ([1.0, 0.0, 0.0, 1.0], [0.8658754, -0.8658754, -0.8658754, 0.8658754]),  # ±0.5 / (0.5773503 + 1e-4)
        ([0.9, 0.9, 0.9, 0.0], [0.4998889, 0.4998889, 0.4998889, -1.4996667]),  # 0.225, -0.675 / (0.45 + 1e-4)
        ([1.0, 0.9, 0.1, 0.0], [0.9561822, 0.7649457, -0.7649457, -0.9561822]),  # ±0.5, ±0.4 / (0.5228129 + 1e-4)
        ([0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]),  # all wrong
        ([1.0, 1.0, 1.0, 1.0], [0.0, 0.0, 0.0, 0.0]),  # all right
    ],
)
def test_advantages_by_hand(rewards, expected):
    assert_close(group_advantages(torch.tensor(rewards), 4), expected)


def test_each_group_is_judged_by_itself():
    rewards = torch.tensor([2.0, 0.0, 0.9, 0.9, 0.0, 0.1])
    # deviations ±1, 0, ∓0.05; Bessel std √2, 0, 0.0707107
    assert_close(group_advantages(rewards, 2), [0.7070568, -0.7070568, 0.0, 0.0, -0.7061082, 0.7061082])


def test_scale_none_only_centres():
    rewards = torch.tensor([1.0, 0.9, 0.1, 0.0, 0.9, 0.9, 0.9, 0.0])
    assert_close(group_advantages(rewards, 4, scale="none"), [0.5, 0.4, -0.4, -0.5, 0.225, 0.225, 0.225, -0.675])


@pytest.mark.parametrize("group_size", range(2, 17))
@pytest.mark.parametrize("scale", ["std", "none"])
def test_equal_rewards_give_exactly_zero(group_size, scale):
    # in float32 the mean of 7 or 8 times 0.1 is not 0.1: a positive rest would open the gate A > 0
    rewards = torch.tensor([0.1, 0.9, 1 / 3]).repeat_interleave(group_size)
    assert not group_advantages(rewards, group_size, scale=scale).any()
    assert zero_variance(rewards, group_size).all()


@pytest.mark.parametrize(
    ("rewards", "signs"),
    [
        ([0.1] + [0.9] * 7 + [1.0] * 8, [-1] + [0] * 7 + [1] * 8),  # mean (0.1 + 6.3 + 8) / 16 = 0.9
        ([0.5, 0.6, 0.7], [-1, 0, 1]),  # 1.8 / 3 = 0.6
        ([0.3, 0.4, 0.6] + [0.7] * 5, [-1, -1, 0] + [1] * 5),  # 4.8 / 8 = 0.6
        ([100.1, 100.2, 100.3], [-1, 0, 1]),
        ([-0.7, -0.6, -0.5], [-1, 0, 1]),
        ([0.0, 0.0001, 0.0003, 0.0], [-1, 0, 1, -1]),  # mean 0.0001, and small is not equal
    ],
)
@pytest.mark.parametrize("scale", ["std", "none"])
def test_a_reward_at_the_mean_of_its_group_gets_exactly_zero(rewards, signs, scale):
    # 0.6 is no float32, nor is the mean: a positive rest would open the gate A > 0
    advantages = group_advantages(torch.tensor(rewards * 2), len(rewards), scale=scale)
    assert advantages.sign().tolist() == signs * 2


def test_an_equal_group_gets_zero_without_a_guard_in_the_divisor_too():
    assert group_advantages(torch.tensor([1.0, 1.0, 0.0, 1.0]), 2, eps=0.0).tolist() == pytest.approx(
        [0, 0, -(0.5**0.5), 0.5**0.5]
    )


def test_zero_variance_marks_the_groups_that_teach_nothing():
    rewards = torch.tensor([0.1, 0.1, 0.1, 0.9, 0.9, 0.9])
    assert zero_variance(rewards, 2).tolist() == [True, False, True]


@pytest.mark.parametrize(
    ("count", "group_size", "message"),
    [
        (4, 1, "group_size is 1, expected 2 or more: an advantage compares completions of one prompt"),
        (4, 0, "group_size is 0, expected 2 or more: an advantage compares completions of one prompt"),
        (4, 3, "4 rewards do not make whole groups of group_size 3"),
    ],
)
def test_rewards_that_make_no_groups_are_refused(count, group_size, message):
    with pytest.raises(ValueError, match=message):
        group_advantages(torch.zeros(count), group_size)


def test_an_unknown_scale_is_named():
    with pytest.raises(ValueError, match='scale is \'batch\', expected "std" or "none"'):
        unwrap(group_advantages)(torch.zeros(4), 2, scale="batch")  # unwrap: past the type checks


# --- the surrogate ---


@pytest.mark.parametrize(
    ("advantage", "ratio", "loss", "slope"),  # slope: by log π, that is -A·ρ, or 0 where clipped
    [
        (1.0, 1.5, -1.2, 0.0),  # good and already likelier: enough
        (1.0, 1.1, -1.1, -1.1),  # good, inside
        (1.0, 0.5, -0.5, -0.5),  # good but less likely: never clipped
        (-1.0, 0.5, 0.8, 0.0),  # bad and already less likely: enough
        (-1.0, 0.9, 0.9, 0.9),  # bad, inside
        (-1.0, 1.5, 1.5, 1.5),  # bad but likelier: never clipped
        (2.0, 1.5, -2.4, 0.0),
        (0.0, 1.5, 0.0, 0.0),
    ],
)
def test_clipping_by_hand(advantage, ratio, loss, slope):
    logprobs = torch.tensor([[ratio]]).log().requires_grad_()
    value = clipped_surrogate(logprobs, torch.zeros(1, 1), torch.tensor([advantage])).sum()
    value.backward()
    assert value.item() == pytest.approx(loss, abs=1e-6)
    assert logprobs.grad.item() == pytest.approx(slope, abs=1e-6)


@pytest.mark.parametrize("log_ratio", [89.0, 1000.0, INF])  # e^89 is above the largest float32
@pytest.mark.parametrize(("advantage", "loss"), [(0.0, 0.0), (1.0, -1.2), (8.0, -9.6)])
def test_a_ratio_that_overflows_is_clipped_like_any_other(log_ratio, advantage, loss):
    logprobs = torch.tensor([[0.0, 0.0]], requires_grad=True)
    old = torch.tensor([[-log_ratio, 0.0]])
    advantages, mask = torch.tensor([advantage]), bools([[1, 1]])
    surrogate = clipped_surrogate(logprobs, old, advantages)
    assert_close(surrogate, [[loss, -advantage]])
    assert torch.equal(*torch.autograd.grad(surrogate.sum(), logprobs), torch.tensor([[0.0, -advantage]]))
    total = policy_loss(logprobs, old, advantages, mask)
    assert total.item() == pytest.approx((loss - advantage) / 2)
    assert torch.equal(*torch.autograd.grad(total, logprobs), torch.tensor([[0.0, -advantage / 2]]))


def test_a_bad_token_that_became_likelier_has_no_bound():
    logprobs = torch.tensor([[30.0, 89.0]])
    loss = clipped_surrogate(logprobs, torch.zeros(1, 2), torch.tensor([-1.0]))
    assert loss[0, 0].item() == pytest.approx(1.0686474e13)  # e^30, not clamped
    assert loss[0, 1].item() == INF


def test_each_side_has_its_own_clip():
    ratios = torch.tensor([[0.75, 0.65, 1.25, 1.35]])
    losses = [
        clipped_surrogate(ratios.log(), torch.zeros(1, 4), torch.tensor([advantage]), clip_low=0.3, clip_high=0.28)
        for advantage in (1.0, -1.0)
    ]
    assert_close(losses[0], [[-0.75, -0.65, -1.25, -1.28]])
    assert_close(losses[1], [[0.75, 0.70, 1.25, 1.35]])


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_on_policy_gradient_is_that_of_reinforce(aggregation):
    logits = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(0)).requires_grad_()
    ids = torch.tensor([[0, 1, 2, 3], [4, 0, 1, 2], [3, 3, 0, 0]])
    mask = bools([[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0]])
    advantages = torch.tensor([1.2, -0.7, 0.4])
    logprobs = token_logprobs(logits, ids)
    loss = policy_loss(logprobs, logprobs.detach(), advantages, mask, aggregation=aggregation)
    reinforce = -(token_weights(mask, aggregation) * advantages[:, None] * logprobs).sum()
    torch.testing.assert_close(*(torch.autograd.grad(value, logits, retain_graph=True) for value in (loss, reinforce)))


def test_token_logprobs_are_those_of_a_categorical():
    logits = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0))
    ids = torch.tensor([[0, 4, 2], [3, 3, 1]])
    torch.testing.assert_close(token_logprobs(logits, ids), torch.distributions.Categorical(logits=logits).log_prob(ids))


# --- aggregation ---

RAGGED = [[1, 1, 1, 0], [0, 1, 0, 0], [0, 0, 0, 0]]  # 3 tokens, 1 token, none


@pytest.mark.parametrize(
    ("aggregation", "expected", "total"),
    [
        ("token", [[1 / 4, 1 / 4, 1 / 4, 0], [0, 1 / 4, 0, 0], [0, 0, 0, 0]], 1.0),
        ("sequence", [[1 / 9, 1 / 9, 1 / 9, 0], [0, 1 / 3, 0, 0], [0, 0, 0, 0]], 2 / 3),  # the empty row counts as a row
        (("constant", 8.0), [[1 / 24, 1 / 24, 1 / 24, 0], [0, 1 / 24, 0, 0], [0, 0, 0, 0]], 1 / 6),
    ],
)
def test_token_weights_by_hand(aggregation, expected, total):
    weights = token_weights(bools(RAGGED), aggregation)
    assert_close(weights, expected)
    assert weights.sum().item() == pytest.approx(total)


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_an_empty_mask_weighs_nothing(aggregation):
    assert not token_weights(torch.zeros(2, 3, dtype=torch.bool), aggregation).any()


def test_a_weight_of_zero_hides_any_value():
    values = torch.tensor([[2.0, NAN, INF], [-INF, 4.0, NAN]], requires_grad=True)
    weights = torch.tensor([[0.5, 0.0, 0.0], [0.0, 0.25, 0.0]])
    total = weighted_sum(values, weights)
    assert total.item() == 2.0
    assert torch.equal(*torch.autograd.grad(total, values), weights)


@pytest.mark.parametrize("aggregation", ["mean", ("tokens", 8.0)])
def test_an_unknown_aggregation_is_named(aggregation):
    said = f'aggregation is {aggregation!r}, expected "token", "sequence" or ("constant", length)'
    with pytest.raises(ValueError, match=re.escape(said)):
        unwrap(token_weights)(bools(RAGGED), aggregation)  # unwrap: past the type checks


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_micro_batches_add_up_to_the_batch(aggregation, size):
    logprobs, old = random_logprobs(5, 6), random_logprobs(5, 6, seed=1)
    advantages = torch.tensor([1.2, -0.7, 0.4, -1.5, 0.6])
    mask = torch.arange(6) < torch.tensor([[6], [1], [3], [0], [4]])
    weights = token_weights(mask, aggregation)
    parts = [
        weighted_sum(clipped_surrogate(logprobs[rows], old[rows], advantages[rows]), weights[rows])
        for rows in torch.arange(5).split(size)
    ]
    torch.testing.assert_close(sum(parts), policy_loss(logprobs, old, advantages, mask, aggregation=aggregation))


@pytest.mark.parametrize("junk", [NAN, INF, -INF, 1e4])
@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_what_stands_on_masked_tokens_does_not_matter(aggregation, junk):
    mask = bools([[1, 1, 0], [1, 0, 0]])
    clean, old = random_logprobs(2, 3), random_logprobs(2, 3, seed=1)
    losses, slopes = [], []
    for filling in (0.0, junk):
        logprobs = clean.masked_fill(~mask, filling).requires_grad_()
        for padded_old in (old, old.masked_fill(~mask, -filling)):
            loss = policy_loss(logprobs, padded_old, torch.tensor([1.0, -1.0]), mask, aggregation=aggregation)
            losses.append(loss)
            slopes += torch.autograd.grad(loss, logprobs)
    assert len({loss.item() for loss in losses}) == 1
    assert all(torch.equal(slope, slopes[0]) for slope in slopes)
    assert not slopes[0][~mask].any()


# --- KL to the reference ---


def test_reference_kl_is_unbiased_and_points_from_policy_to_reference():
    policy, reference = torch.tensor([1 / 2, 1 / 4, 1 / 4]), torch.tensor([1 / 8, 1 / 8, 3 / 4])
    estimates = kl_to_reference(policy.log()[None], reference.log()[None])[0]  # one token per outcome
    # KL(π‖ref) = ½ ln 4 + ¼ ln 2 + ¼ ln ⅓; the other direction is 0.5640290
    assert (policy * estimates).sum().item() == pytest.approx(0.5917809, abs=1e-6)


@pytest.mark.parametrize(
    ("policy", "reference", "kl", "slope"),
    [
        (1 / 2, 1 / 4, 0.1931472, 0.5),  # likelier than in the reference: descent lowers it
        (1 / 4, 1 / 2, 0.3068528, -1.0),  # less likely: descent raises it
        (1 / 4, 1 / 4, 0.0, 0.0),
    ],
)
def test_reference_kl_and_its_gradient_by_hand(policy, reference, kl, slope):
    logprobs = torch.tensor([[policy]]).log().requires_grad_()
    value = kl_to_reference(logprobs, torch.tensor([[reference]]).log()).sum()
    value.backward()
    assert value.item() == pytest.approx(kl, abs=1e-6)
    assert logprobs.grad.item() == pytest.approx(slope, abs=1e-6)


def test_reference_kl_is_never_negative():
    gap = torch.logspace(-12, 1, 2000)  # nats; near 0 a naive e^d - d - 1 rounds below 0
    gaps = torch.cat([gap, -gap])[None]
    assert (kl_to_reference(torch.zeros_like(gaps), gaps) >= 0).all()


# --- TRL ---


@pytest.fixture(scope="module")
def trl_loss():
    from trl_oracle import grpo_loss  # here, because TRL takes seconds to import

    return grpo_loss


def loss_and_gradient(loss, logprobs):
    return loss, *torch.autograd.grad(loss, logprobs)


@pytest.mark.parametrize(
    ("aggregation", "loss_type"), [("token", "dapo"), ("token", "bnpo"), ("sequence", "grpo"), (("constant", 9.0), "dr_grpo")]
)
@pytest.mark.parametrize("beta", [0.0, 0.04])
@pytest.mark.parametrize("clip", [(0.2, 0.2), (0.1, 0.28)])
@pytest.mark.parametrize("on_policy", [True, False])
def test_loss_and_gradient_are_those_of_trl(trl_loss, aggregation, loss_type, beta, clip, on_policy):
    logprobs, old, ref = (random_logprobs(5, 6, seed=seed) for seed in range(3))  # ratios from e^-2 to e^2: many clipped
    logprobs.requires_grad_()
    advantages = torch.tensor([1.2, -0.7, 0.4, -1.5, 0.6])
    mask = torch.arange(6) < torch.tensor([[6], [1], [3], [0], [4]])

    theirs = trl_loss(
        logprobs, None if on_policy else old, ref, advantages, mask, loss_type=loss_type, beta=beta, clip=clip, max_length=9
    )
    ours = policy_loss(
        logprobs,
        logprobs.detach() if on_policy else old,
        advantages,
        mask,
        clip_low=clip[0],
        clip_high=clip[1],
        aggregation=aggregation,
    ) + beta * weighted_sum(kl_to_reference(logprobs, ref), token_weights(mask, aggregation))
    torch.testing.assert_close(loss_and_gradient(ours, logprobs), loss_and_gradient(theirs, logprobs))
