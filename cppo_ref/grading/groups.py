"""Graders of exercises 02: another baseline, the share of clipped tokens, and how many prompts to sample."""

import math
from functools import partial

import torch
from torch import Tensor, tensor

from cppo_ref.grading.grader import Around, Case, Function, bools, grade

LEAVE_CASES = [
    Case("1, 0, 0, 0: the others' mean is 0, or a third", (tensor([1.0, 0, 0, 0]), 4), tensor([1.0, -1 / 3, -1 / 3, -1 / 3])),
    Case("two groups of two", (tensor([1.0, 0, 0.9, 0.1]), 2), tensor([1.0, -1.0, 0.8, -0.8])),
    Case("an easy and a hard prompt", (tensor([1.0, 1, 1, 0, 0, 1]), 3), tensor([0.0, 0, 0, -0.5, -0.5, 1.0])),
]


def _leave_one_out(
    rewards: Tensor, group_size: int, *, others: int = 1, scaled: bool = False, dim: int = 1, whole: bool = False
) -> Tensor:
    groups = rewards.view(1, -1) if whole else rewards.view(-1, group_size)
    rest = (groups.sum(dim=dim, keepdim=True) - groups * others) / max(groups.shape[dim] - others, 1)
    result = groups - rest
    return (result / (groups.std(dim=dim, keepdim=True) + 1e-4) if scaled else result).flatten()


LEAVE_MISTAKES = {
    "the mean holds the completion itself: leave it out of its own baseline": partial(_leave_one_out, others=0),
    "not divided by the std: leave-one-out uses rewards as they are": partial(_leave_one_out, scaled=True),
    "wrong axis: you compared completions of different prompts": partial(_leave_one_out, dim=0),
    "the whole batch: the others are those of the same prompt": partial(_leave_one_out, whole=True),
    "the sum of the others is divided by G; there are G − 1 of them": lambda r, g: r - (r - _leave_one_out(r, g)) * (g - 1) / g,
    "sign reversed: what is better than the others must be positive": Around(torch.neg),
}


def check_leave_one_out(function: Function) -> None:
    """Grade leave_one_out(rewards [B], group_size) -> [B]: each reward minus the mean of its group's others."""
    grade(function, LEAVE_CASES, LEAVE_MISTAKES, _leave_one_out)


OLD = math.log(0.1)
LOGRATIO = tensor([[0.5, 0.9, 1.25, 1.5], [0.5, 0.75, 1.25, 1.5], [0.5, 0.9, 1.25, 1.5]]).log()
UP, DOWN, STILL = tensor([2.0, 2.0, 0.0]), tensor([-1.0, -1.0, 0.0]), tensor([0.0, 0.0, 0.0])
CLIPPED_CASES = [
    # bounds 0.8 and 1.3: with A > 0 only 1.5 is clipped, in two rows of four
    Case("good completions", (LOGRATIO + OLD, torch.full((3, 4), OLD), UP, bools([[1] * 4] * 3), 0.2, 0.3), 2 / 12),
    # with A < 0: 0.5 in row 0; 0.5 and 0.75 in row 1
    Case("bad completions", (LOGRATIO + OLD, torch.full((3, 4), OLD), DOWN, bools([[1] * 4] * 3), 0.2, 0.3), 3 / 12),
    Case("padding", (LOGRATIO + OLD, torch.full((3, 4), OLD), DOWN, bools([[1, 1, 0, 0]] * 3), 0.2, 0.3), 3 / 6),
    Case("no advantage, no gradient to clip", (LOGRATIO, torch.zeros(3, 4), STILL, bools([[1] * 4] * 3), 0.2, 0.3), 0.0),
    Case(
        "bounds the other way round",
        (LOGRATIO, torch.zeros(3, 4), tensor([1.0, 1.0, -1.0]), bools([[1] * 4] * 3), 0.3, 0.2),
        5 / 12,
    ),
]


def _clipped_share(
    new: Tensor,
    old: Tensor,
    advantages: Tensor,
    mask: Tensor,
    low: float,
    high: float,
    *,
    signed: bool = True,
    upside: bool = False,
    padded: bool = False,
    swapped: bool = False,
    reverse: bool = False,
) -> float:
    low, high = (high, low) if swapped else (low, high)
    ratio = ((old - new) if upside else (new - old)).exp()
    good, bad = advantages[:, None] > 0, advantages[:, None] < 0
    good, bad = (bad, good) if reverse else (good, bad)
    above, below = ratio > 1 + high, ratio < 1 - low
    clipped = (above & good) | (below & bad) if signed else above | below
    return float((clipped.sum() / mask.numel()) if padded else (clipped & mask).sum() / mask.sum())


CLIPPED_MISTAKES = {
    "both sides counted: the clip acts above for A > 0 and below for A < 0": partial(_clipped_share, signed=False),
    "the sides are exchanged: a good token is clipped above, a bad one below": partial(_clipped_share, reverse=True),
    "ratio upside down: ρ is exp(log π − log π_old)": partial(_clipped_share, upside=True),
    "padding counted: it is a share of the completion tokens": partial(_clipped_share, padded=True),
    "clip_low and clip_high are swapped": partial(_clipped_share, swapped=True),
}


def check_clipped_share(function: Function) -> None:
    """Grade clipped_share(logprobs, old_logprobs, advantages, mask, clip_low, clip_high) -> share without a gradient."""
    grade(function, CLIPPED_CASES, CLIPPED_MISTAKES, _clipped_share)


PROMPT_CASES = [
    Case("p = ½, G = 2: half of the groups are dead", (0.5, 2, 8), 16),
    Case("p = 0.8, G = 8: 8/0.832 = 9.6", (0.8, 8, 8), 10),
    Case("p = 0.95, G = 8: 8/0.337 = 23.8", (0.95, 8, 8), 24),
    Case("p = 0.1, G = 4: 8/0.344 = 23.3", (0.1, 4, 8), 24),
    Case("p = ½, G = 4: 7/0.875 = 8", (0.5, 4, 7), 8),
]


def _prompts(
    p: float, size: int, live: int, *, right: int = 1, wrong: int = 1, rounding: Function = math.ceil, divide: bool = True
) -> int:
    dead = right * p**size + wrong * (1 - p) ** size
    return rounding(live / (1 - dead) if divide else live * (1 + dead))


PROMPT_MISTAKES = {
    "groups in which all are wrong are dead as well": partial(_prompts, wrong=0),
    "groups in which all are right are dead as well": partial(_prompts, right=0),
    "rounded down: then fewer than `live` groups survive on average": partial(_prompts, rounding=int),
    "rounded to the nearest: round up": partial(_prompts, rounding=round),
    "of the groups that you add, some are dead, too: divide by the share that lives": partial(_prompts, divide=False),
}


def check_prompts_to_sample(function: Function) -> None:
    """Grade prompts_to_sample(p, group_size, live) -> prompts needed for `live` live groups on average, rounded up."""
    grade(function, PROMPT_CASES, PROMPT_MISTAKES, _prompts)
