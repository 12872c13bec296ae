"""Graders of exercises 02: group advantages, the clipped surrogate, KL to the reference, token weights."""

import math
from functools import partial

import torch
from torch import Tensor

from cppo_ref.grading.grader import Around, Case, Function, grade

tensor = torch.tensor

ADVANTAGE_CASES = [
    # [1, 1, 0, 0]: mean 1/2, deviations ±1/2, Bessel variance (4 · 1/4)/3, std 0.5774; [0, 0, 0, 1]: mean 1/4, std 1/2
    Case(
        "two groups of four",
        (tensor([1.0, 1, 0, 0, 0, 0, 0, 1]), 4),
        tensor([0.8659, 0.8659, -0.8659, -0.8659, -0.4999, -0.4999, -0.4999, 1.4997]),
    ),
    # [0, 1]: mean 1/2, Bessel variance (2 · 1/4)/1, std 0.7071
    Case("three groups of two", (tensor([0.0, 1, 1, 0, 0, 1]), 2), tensor([-0.707, 0.707, 0.707, -0.707, -0.707, 0.707])),
    Case("a group in which all are right", (tensor([1.0, 1, 0, 1]), 2), tensor([0.0, 0.0, -0.707, 0.707])),
    # in float32 the mean of three times 0.9 is a little less than 0.9
    Case("three equal rewards of 0.9 get exactly 0", (tensor([0.9, 0.9, 0.9]), 3), torch.zeros(3), 1e-9),
    # deviations ±d with d = 1e-4 = ε, std √2 d: 1/(√2 + 1) = 0.4142
    Case("rewards as close as ε", (tensor([0.0, 0.0002]), 2), tensor([-0.4142, 0.4142])),
]


def _advantages(
    rewards: Tensor,
    group_size: int,
    *,
    correction: int = 1,
    eps: float = 1e-4,
    scaled: bool = True,
    dim: int = 1,
    guarded: bool = True,
) -> Tensor:
    groups = rewards.view(-1, group_size)
    centered = groups - groups.mean(dim=dim, keepdim=True)
    std = groups.std(dim=dim, keepdim=True, correction=correction)
    alive = groups.amax(dim=dim, keepdim=True) > groups.amin(dim=dim, keepdim=True)
    result = centered / (std + eps) if scaled else centered
    return (torch.where(alive, result, 0.0) if guarded else result).flatten()


def _interleaved(rewards: Tensor, group_size: int) -> Tensor:
    count = len(rewards) // group_size
    shuffled = rewards.view(group_size, count).T.flatten()
    return _advantages(shuffled, group_size).view(count, group_size).T.flatten()


ADVANTAGE_MISTAKES = {
    "wrong axis: you compared completions of different prompts; take mean and std along dim 1 of [prompts, group]": partial(
        _advantages, dim=0
    ),
    "wrong axis: the rows of one group are adjacent, so the view is [-1, group_size]": _interleaved,
    "mean and std of the whole batch: compare each completion with its own group": lambda r, g: _advantages(r, len(r)),
    "std without eps: an all-right group gives 0/0 = NaN, and one NaN spoils every parameter": partial(
        _advantages, eps=0.0, guarded=False
    ),
    "rounding: equal rewards must get exactly 0, but their mean may come out a little smaller, and divided by ε that is 6e-4, "
    "enough to open the gate A > 0; test max > min of the group": partial(_advantages, guarded=False),
    "ε is missing: add 1e-4 to the std": partial(_advantages, eps=0.0),
    "population std: divide by n − 1 (Bessel), torch's default, for a group is a sample": partial(_advantages, correction=0),
    "not divided by the group's std": partial(_advantages, scaled=False),
    "sign reversed: you computed mean − reward, so training would make wrong answers likelier": Around(torch.neg),
}


def check_group_advantages(function: Function) -> None:
    """Grade group_advantages(rewards [B], group_size) -> [B]: (r − mean)/(std + eps) within each group."""
    grade(function, ADVANTAGE_CASES, ADVANTAGE_MISTAKES, _advantages)


OLD = math.log(0.1)
RATIOS = tensor([[1.5, 1.0, 0.5]] * 3)  # ρ of three tokens, for each of three completions
SURROGATE_CASES = [
    Case(
        "three tokens with ρ = 1.5, 1, 0.5 and advantages 1, −1, 2",
        (RATIOS.log() + OLD, torch.full((3, 3), OLD), tensor([1.0, -1.0, 2.0])),
        # A = 1: the gain stops at 1.2.  A = −1: 1.5 is not clipped, 0.5 counts as 0.8.  A = 2: twice the first row.
        tensor([[-1.2, -1.0, -0.5], [1.5, 1.0, 0.8], [-2.4, -2.0, -1.0]]),
    ),
    Case("advantage 0", (RATIOS.log() + OLD, torch.full((3, 3), OLD), torch.zeros(3)), torch.zeros(3, 3)),
]


def _surrogate(new: Tensor, old: Tensor, advantages: Tensor, smaller: Function = torch.minimum) -> Tensor:
    ratio, a = (new - old).exp(), advantages[:, None]
    return -smaller(ratio * a, ratio.clamp(0.8, 1.2) * a)


SURROGATE_MISTAKES = {
    "sign reversed: this is the objective, which grows; the loss is its negative": Around(torch.neg),
    "ratio upside down: ρ is exp(log π − log π_old)": lambda n, o, a: _surrogate(o, n, a),
    "max instead of min: the clipped surrogate is the pessimistic one of the two": partial(_surrogate, smaller=torch.maximum),
    "only clipped: without the min, a bad token whose ρ has grown to 1.5 is not pushed back": partial(
        _surrogate, smaller=lambda plain, clipped: clipped
    ),
    "never clipped": partial(_surrogate, smaller=lambda plain, clipped: plain),
    "wrong axis: each completion has one advantage, for all of its tokens; use advantages[:, None]": lambda n, o, a: (
        -torch.minimum((n - o).exp() * a, (n - o).exp().clamp(0.8, 1.2) * a)
    ),
}


def check_clipped_surrogate(function: Function) -> None:
    """Grade clipped_surrogate(logprobs [B, T], old_logprobs [B, T], advantages [B]) -> [B, T] with ε = 0.2."""
    grade(function, SURROGATE_CASES, SURROGATE_MISTAKES, _surrogate, through={"logprobs": 0})


LN2 = math.log(2)
K3_CASES = [
    # d = log π_ref − log π: 0, −ln 2 (1/2 + ln 2 − 1 = 0.1931), ln 2 (2 − ln 2 − 1 = 0.3069)
    Case(
        "d = 0, −ln 2, ln 2",
        (tensor([[-1.0, -1.0, -1.0]]), tensor([[-1.0, -1 - LN2, -1 + LN2]])),
        tensor([[0, 0.1931, 0.3069]]),
    ),
    Case("the same policy", (tensor([[-0.3], [-2.0]]), tensor([[-0.3], [-2.0]])), torch.zeros(2, 1)),
]


def _k3(logprobs: Tensor, ref: Tensor) -> Tensor:
    return (ref - logprobs).exp() - (ref - logprobs) - 1


K3_MISTAKES = {
    "direction reversed: d is log π_ref − log π, because the samples come from π": lambda p, r: _k3(r, p),
    "this is k1, log π − log π_ref: unbiased as well, but single tokens come out negative": lambda p, r: p - r,
    "this is k2, ½ d²: never negative, but biased": lambda p, r: (p - r) ** 2 / 2,
    "the −1 is missing: the same policy must have no divergence": lambda p, r: _k3(p, r) + 1,
    "sign reversed: a divergence is never negative": Around(torch.neg),
}


def check_kl_to_reference(function: Function) -> None:
    """Grade kl_to_reference(logprobs [B, T], ref_logprobs [B, T]) -> [B, T]: the k3 estimate."""
    grade(function, K3_CASES, K3_MISTAKES, _k3, through={"logprobs": 0})


MASK = tensor([[1, 1, 1, 1], [1, 0, 0, 0]], dtype=torch.bool)  # four tokens and one
EMPTY = tensor([[1, 1, 0], [0, 0, 0]], dtype=torch.bool)  # a completion without tokens
WEIGHT_CASES = [
    Case("tokens: 4 + 1", (MASK, "token"), tensor([[0.2, 0.2, 0.2, 0.2], [0.2, 0, 0, 0]])),
    Case("sequences: 4 + 1", (MASK, "sequence"), tensor([[0.125, 0.125, 0.125, 0.125], [0.5, 0, 0, 0]])),
    Case("tokens: 2 + 0", (EMPTY, "token"), tensor([[0.5, 0.5, 0], [0, 0, 0]])),
    Case("sequences: 2 + 0", (EMPTY, "sequence"), tensor([[0.25, 0.25, 0], [0, 0, 0]])),
]


def _weights(mask: Tensor, aggregation: str, *, least: float = 1.0) -> Tensor:
    if aggregation == "token":
        return mask.float() / mask.sum()
    return mask.float() / (mask.sum(dim=1, keepdim=True).clamp(min=least) * len(mask))


WEIGHT_MISTAKES = {
    "padding counted: divide by the number of completion tokens, not by the size of the tensor": lambda m, a: (
        m.float() / m.numel()
    ),
    "mask forgotten: padding must weigh 0": lambda m, a: torch.full(m.shape, 1 / m.numel()),
    '"token" and "sequence" swapped': lambda m, a: _weights(m, "sequence" if a == "token" else "token"),
    'both modes are the same for you: in "sequence" every completion weighs 1/B, however long': lambda m, a: _weights(
        m, "token"
    ),
    "a completion without tokens divides by 0: clamp its length to at least 1": partial(_weights, least=0.0),
    'in "sequence" each row sums to 1 for you; divide by the number of completions as well': lambda m, a: (
        _weights(m, a) * (1 if a == "token" else len(m))
    ),
}


def check_token_weights(function: Function) -> None:
    """Grade token_weights(mask [B, T], aggregation) -> [B, T]: "token" 1/Σ|o_i|, "sequence" 1/(B·|o_i|)."""
    grade(function, WEIGHT_CASES, WEIGHT_MISTAKES, _weights)
