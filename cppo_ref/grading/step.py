"""Graders of exercises 06: global token means, the whole loss, which rows to perturb, which updates to skip."""

from functools import partial

import torch
from torch import Tensor

from cppo_ref.grading.grader import Case, Function, bools, grade

tensor = torch.tensor


# eight tokens; the micro-batches of two rows hold six and two of them
LOSSES = tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0], [7.0, 99.0, 99.0], [8.0, 99.0, 99.0]])
MASK = bools([[1, 1, 1], [1, 1, 1], [1, 0, 0], [1, 0, 0]])
MICRO_CASES = [
    Case("two rows at a time: 21/8 and 15/8", (LOSSES, MASK, 2), tensor([2.625, 1.875])),
    Case("all rows at once: 36/8", (LOSSES, MASK, 4), tensor([4.5])),
    Case("three rows, then one: 28/8 and 8/8", (LOSSES, MASK, 3), tensor([3.5, 1.0])),
    Case("NaN on padding", (LOSSES.masked_fill(~MASK, torch.nan), MASK, 2), tensor([2.625, 1.875])),
]


def _micro(losses: Tensor, mask: Tensor, size: int, share: Function) -> Tensor:
    """One number per micro-batch: the masked sum of its losses over `share(its mask, its rows)`."""
    pairs = zip(losses.split(size), mask.split(size), strict=True)
    return torch.stack([part[kept].sum() / share(kept) for part, kept in pairs])


def _token_mean(losses: Tensor, mask: Tensor, size: int) -> Tensor:
    return _micro(losses, mask, size, lambda kept: mask.sum())


MICRO_MISTAKES = {
    "mean per micro-batch: divide by the tokens of the whole batch, or the micro-batch size changes the gradient": partial(
        _micro, share=lambda kept: kept.sum()
    ),
    "mean of means: dividing each mean by the number of micro-batches still lets a token of a short one weigh more": (
        lambda losses, mask, size: _micro(losses, mask, size, lambda kept: kept.sum() * len(mask.split(size)))
    ),
    "padding counted: divide by the completion tokens, not by the size of the tensor": lambda losses, mask, size: _micro(
        losses, mask, size, lambda kept: mask.numel()
    ),
    "masked by a product: 0 · NaN is NaN; pick the tokens with losses[mask], or use torch.where": lambda losses, mask, size: (
        torch.stack([(part * kept).sum() / mask.sum() for part, kept in zip(losses.split(size), mask.split(size), strict=True)])
    ),
    "mask forgotten: what stands on padding entered the sum": lambda losses, mask, size: torch.stack(
        [part.sum() / mask.sum() for part in losses.split(size)]
    ),
    "divided by rows: a token mean divides by tokens": lambda losses, mask, size: _micro(
        losses, mask, size, lambda kept: len(mask)
    ),
}


def check_micro_batch_losses(function: Function) -> None:
    """Grade micro_batch_losses(token_losses, mask, size) -> [micro-batches]: their sum is the batch's token mean."""
    grade(function, MICRO_CASES, MICRO_MISTAKES, _token_mean, through={"token_losses": 0})


# GRPO: (1 + 3 + 2 + 2)/4 tokens = 2.  KL: (1 + 1 + 1 + 5)/4 = 2.  CPL: row 0 keeps 4, row 1 is gated away.
SURROGATE = tensor([[1.0, 3.0, 50.0], [2.0, 2.0, 50.0]])
KL = tensor([[1.0, 1.0, 50.0], [1.0, 5.0, 50.0]])
CONTRAST = tensor([[4.0, 9.0, 50.0], [8.0, 9.0, 50.0]])
COMPLETION = bools([[1, 1, 0], [1, 1, 0]])
SELECTED = bools([[1, 0, 0], [1, 0, 0]])
TOTAL_CASES = [
    Case(
        "β = 0.5, λ = 0.25: 2 + 0.5 · 2 + 0.25 · 4",
        (SURROGATE, KL, CONTRAST, COMPLETION, SELECTED, tensor([1.0, -1.0]), 0.5, 0.25),
        4.0,
    ),
    Case("λ = 0 is GRPO: 2 + 0.5 · 2", (SURROGATE, KL, CONTRAST, COMPLETION, SELECTED, tensor([1.0, -1.0]), 0.5, 0.0), 3.0),
    Case(
        "no row with A > 0: 2 + 0.5 · 2 + 0",
        (SURROGATE, KL, CONTRAST, COMPLETION, SELECTED, tensor([0.0, 0.0]), 0.5, 0.25),
        3.0,
    ),
    # GRPO: (6 + 8 + 4)/6 tokens = 3.  KL: (3 + 5 + 4)/6 = 2.  CPL: rows 0 and 1 keep (4 + 8 + 3)/3 tokens = 5.
    Case(
        "completions of 3, 2 and 1 tokens, A = 2, 1 and −1: 3 + 0.5 · 2 + 0.25 · 5",
        (
            tensor([[1.0, 2.0, 3.0], [2.0, 6.0, 50.0], [4.0, 50.0, 50.0]]),
            tensor([[1.0, 1.0, 1.0], [2.0, 3.0, 50.0], [4.0, 50.0, 50.0]]),
            tensor([[4.0, 8.0, 9.0], [3.0, 9.0, 50.0], [7.0, 50.0, 50.0]]),
            bools([[1, 1, 1], [1, 1, 0], [1, 0, 0]]),
            bools([[1, 1, 0], [1, 0, 0], [1, 0, 0]]),
            tensor([2.0, 1.0, -1.0]),
            0.5,
            0.25,
        ),
        5.25,
    ),
]


def _mean(values: Tensor, mask: Tensor) -> Tensor:
    return values[mask].sum() / mask.sum().clamp(min=1)


def _row_means(values: Tensor, mask: Tensor) -> Tensor:
    return (torch.where(mask, values, 0.0).sum(dim=1) / mask.sum(dim=1).clamp(min=1)).mean()


def _total(
    surrogate: Tensor,
    kl: Tensor,
    contrast: Tensor,
    completion: Tensor,
    selected: Tensor,
    advantages: Tensor,
    beta: float,
    lamda: float,
    *,
    signs: tuple[int, int] = (1, 1),
    gate: bool = True,
    mean: Function = _mean,
    swapped: bool = False,
    cpl_over: str = "gated tokens",
    weighted: bool = False,
) -> Tensor:
    """The whole loss, with parts that can be wrong."""
    gated = selected & (advantages > 0)[:, None] if gate else selected
    beta, lamda = (lamda, beta) if swapped else (beta, lamda)
    counted = {"gated tokens": gated, "gated rows": gated.any(dim=1), "completion": completion, "nothing": tensor(0)}[cpl_over]
    contrast = contrast * advantages[:, None] if weighted else contrast
    cpl = contrast[gated].sum() / counted.sum().clamp(min=1)
    return mean(surrogate, completion) + signs[0] * beta * mean(kl, completion) + signs[1] * lamda * cpl


TOTAL_MISTAKES = {
    "sign reversed: CPL is a loss, so λ · CPL is added": partial(_total, signs=(1, -1)),
    "sign reversed: the KL to the reference is a penalty, so β · KL is added": partial(_total, signs=(-1, 1)),
    "β and λ swapped": partial(_total, swapped=True),
    "gate dropped: CPL counts only rows with A > 0": partial(_total, gate=False),
    "CPL is a mean over the gated perception tokens, not over all completion tokens": partial(_total, cpl_over="completion"),
    "sum instead of mean: CPL must not grow with the number of gated tokens": partial(_total, cpl_over="nothing"),
    "divided by gated rows: CPL is a mean over tokens, and a row may hold several": partial(_total, cpl_over="gated rows"),
    "multiplied by A: the gate is open or shut, the size of the advantage is GRPO's business": partial(_total, weighted=True),
    "mean of row means in the GRPO terms: a token of a short completion weighs more; divide by all tokens at once": partial(
        _total, mean=_row_means
    ),
    "mean of row means: a token of a short row weighs more; divide each of the three sums by all its tokens at once": (
        lambda s, k, c, m, p, a, b, w: _row_means(s, m) + b * _row_means(k, m) + w * _row_means(c, p & (a > 0)[:, None])
    ),
    "padding counted: the means run over completion tokens": partial(_total, mean=lambda v, m: (v * m).sum() / m.numel()),
    "mask forgotten: what stands on padding entered the means": partial(_total, mean=lambda v, m: v.mean()),
    "mean of nothing: when the gate leaves no token, CPL is 0, not NaN": lambda s, k, c, m, p, a, b, w: (
        _total(s, k, c, m, p, a, b, 0.0) + w * c[p & (a > 0)[:, None]].mean()
    ),
}


def check_total_loss(function: Function) -> None:
    """Grade total_loss(surrogate, kl, contrast, completion_mask, selected, advantages, kl_weight, cpl_weight) -> scalar."""
    through = {"surrogate": 0, "kl": 1, "contrast": 2}
    grade(function, TOTAL_CASES, TOTAL_MISTAKES, _total, through=through)


PERTURB_CASES = [
    Case("rewards of two groups", (tensor([1.0, 0, 0, 1, 0.9, 0.1]), 3), bools([[1, 0, 0, 1, 1, 0]])[0]),
    Case("an easy prompt beside a hard one", (tensor([1.0, 1, 0.9, 0, 0.1, 0]), 3), bools([[1, 1, 0, 0, 1, 0]])[0]),
    Case("two groups with high rewards", (tensor([1.0, 0.9, 1, 1, 0.9, 0.9]), 3), bools([[1, 0, 1, 1, 0, 0]])[0]),
    Case("all right, all wrong", (tensor([1.0, 1, 0, 0]), 2), bools([[0, 0, 0, 0]])[0]),
    # in float32 the mean of three times 0.9 is a little less than 0.9
    Case("right three times, out of format", (tensor([0.9, 0.9, 0.9]), 3), bools([[0, 0, 0]])[0]),
]


def _above(rewards: Tensor, size: int, *, dim: int = 1) -> Tensor:
    groups = rewards.view(-1, size)
    alive = groups.amax(dim=1, keepdim=True) > groups.amin(dim=1, keepdim=True)
    return ((groups > groups.mean(dim=dim, keepdim=True)) & alive).flatten()


PERTURB_MISTAKES = {
    "rounding opened the gate: the mean of equal rewards may come out a little smaller; test max > min of the group": (
        lambda r, g: (r.view(-1, g) > r.view(-1, g).mean(dim=1, keepdim=True)).flatten()
    ),
    "A ≥ 0 is not A > 0: a dead group needs no perturbed forward": lambda r, g: (
        r.view(-1, g) >= r.view(-1, g).mean(dim=1, keepdim=True)
    ).flatten(),
    **{
        f"a fixed threshold: you ask for a reward above {t}; compare with the mean of the group": lambda r, g, t=t: r > t
        for t in (0, 0.5, 0.9)
    },
    "compare with the mean of the group, not of the batch": lambda r, g: r > r.mean(),
    "wrong axis: you compared completions of different prompts": partial(_above, dim=0),
    "gate reversed: you kept the rows below the mean": lambda r, g: (
        r.view(-1, g) < r.view(-1, g).mean(dim=1, keepdim=True)
    ).flatten(),
    "rows with A < 0 are gated away: ask for A > 0, not for A ≠ 0": lambda r, g: _above(r, g) | _above(-r, g),
}


def check_rows_to_perturb(function: Function) -> None:
    """Grade rows_to_perturb(rewards [B], group_size) -> Bool [B]: the rows with A > 0."""
    grade(function, PERTURB_CASES, PERTURB_MISTAKES, _above)


UPDATE_CASES = [
    Case("one live group, β = 0", (tensor([1.0, 0, 1, 1]), 2, 0.0), True),
    Case("every group dead, each with its own reward, β = 0", (tensor([1.0, 1, 0, 0]), 2, 0.0), False),
    Case("every group dead, β > 0", (tensor([1.0, 1, 0, 0]), 2, 0.01), True),
    Case("every completion wrong, β > 0", (tensor([0.0, 0, 0, 0]), 2, 0.01), True),
    Case("every group alive, β = 0", (tensor([1.0, 0, 0, 1]), 2, 0.0), True),
    Case("only the last group alive, β = 0", (tensor([1.0, 1, 0, 1]), 2, 0.0), True),
    # in float32 the mean of three times 0.9 is a little less than 0.9, so their standard deviation is not 0
    Case("right three times, out of format, β = 0", (tensor([0.9, 0.9, 0.9]), 3, 0.0), False),
]


def _alive(rewards: Tensor, size: int) -> Tensor:
    groups = rewards.view(-1, size)
    return groups.amax(dim=1) > groups.amin(dim=1)


UPDATE_MISTAKES = {
    "one live group is enough: you skip as soon as one group is dead": lambda r, g, b: bool(_alive(r, g).all()) or b > 0,
    "you look at the first group only; any live group will do": lambda r, g, b: bool(_alive(r, g)[0]) or b > 0,
    "rounding: the std of equal rewards may come out a little above 0; test max > min of the group": lambda r, g, b: (
        bool((r.view(-1, g).std(dim=1) > 0).any()) or b > 0
    ),
    "β forgotten: the KL term has a gradient although every group is dead": lambda r, g, b: bool(_alive(r, g).any()),
    "compare within groups: rewards that differ between prompts give no advantage": lambda r, g, b: bool(r.max() > r.min()),
    "wrong axis: rewards that differ between prompts give no advantage": lambda r, g, b: (
        bool(_alive(r.view(-1, g).T.reshape(-1), len(r) // g).any()) or b > 0
    ),
    "reversed: you return whether to skip": lambda r, g, b: not (bool(_alive(r, g).any()) or b > 0),
    "with β > 0 or a live group there is something to learn; you ask for both": lambda r, g, b: (
        bool(_alive(r, g).any()) and b > 0
    ),
}


def check_worth_an_update(function: Function) -> None:
    """Grade worth_an_update(rewards [B], group_size, kl_weight) -> bool: False if the gradient is zero by construction."""
    grade(function, UPDATE_CASES, UPDATE_MISTAKES, lambda r, g, b: bool(_alive(r, g).any()) or b > 0)
