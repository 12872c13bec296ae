"""Graders of exercises 04: entropy, entropy shift, the choice of perception tokens."""

import math
from functools import partial

import torch
from torch import Tensor

from cppo_ref.grading.grader import Around, Case, Function, bools, grade, logits_of

NAN, INF = math.nan, math.inf


ENTROPY_CASES = [
    # ln 4, ln 2 and 0: uniform over four words, over two, certain
    Case(
        "uniform over 4, over 2, certain",
        (logits_of([[[0.25, 0.25, 0.25, 0.25], [0.5, 0.5, 1e-30, 1e-30], [1.0, 1e-30, 1e-30, 1e-30]]]),),
        torch.tensor([[1.3863, 0.6931, 0.0]]),
    ),
    # ½ ln 2 + ¼ ln 4 + 2 · ⅛ ln 8 = 1.75 bits = 1.2130 nats; logits are free up to a constant
    Case("logits moved by 3", (logits_of([[[0.5, 0.25, 0.125, 0.125]]]) + 3,), torch.tensor([[1.2130]])),
    Case("impossible words (logit −∞)", (logits_of([[[0.5, 0.5, 0.0, 0.0]]]),), torch.tensor([[0.6931]])),
]


def _entropy(logits: Tensor, *, dim: int = -1) -> Tensor:
    return torch.special.entr(logits.softmax(dim=dim)).sum(dim=-1)


def _without_logsumexp(logits: Tensor) -> Tensor:
    p = logits.softmax(dim=-1)
    return -torch.where(p > 0, p * logits, 0.0).sum(dim=-1)


def _naive(logits: Tensor) -> Tensor:
    p = logits.softmax(dim=-1)
    return -(p * p.log()).sum(dim=-1)


ENTROPY_MISTAKES = {
    "bits for nats: use the natural logarithm": Around(lambda entropy: entropy / math.log(2)),
    "sign reversed: an entropy is never negative; the formula begins with a minus": Around(torch.neg),
    "wrong axis: softmax and sum run over the vocabulary, the last dimension": partial(_entropy, dim=1),
    "NaN: 0 · log 0 counts as 0; torch.special.entr knows that": _naive,
    "you multiplied by the logits; log π needs log_softmax": _without_logsumexp,
    "mean over the vocabulary instead of the sum": lambda logits: _entropy(logits) / logits.shape[-1],
}


def check_token_entropy(function: Function) -> None:
    """Grade token_entropy(logits [B, T, V]) -> [B, T] in nats."""
    grade(function, ENTROPY_CASES, ENTROPY_MISTAKES, _entropy)


SHIFT_CASES = [
    Case(
        "rises by 1, stays, falls by 1.5",
        (torch.tensor([[0.5, 1.0, 2.0]]), torch.tensor([[1.5, 1.0, 0.5]]), bools([[1, 1, 1]])),
        torch.tensor([[1.0, 0.0, -1.5]]),
    ),
    Case(
        "padding with numbers on it",
        (torch.tensor([[0.2, 0.3], [0.1, 0.7]]), torch.tensor([[0.9, 1.3], [0.1, 0.2]]), bools([[1, 0], [1, 1]])),
        torch.tensor([[0.7, 0.0], [0.0, -0.5]]),
    ),
    Case(
        "padding with NaN and ∞ on it",
        (torch.tensor([[0.5, NAN, INF]]), torch.tensor([[0.75, 1.0, 1.0]]), bools([[1, 0, 0]])),
        torch.tensor([[0.25, 0.0, 0.0]]),
    ),
]


def _shift(entropy: Tensor, removed: Tensor, mask: Tensor) -> Tensor:
    return torch.where(mask, removed - entropy, 0.0)


SHIFT_MISTAKES = {
    "sign reversed: you computed H(I) − H(I⁻)": Around(torch.neg),
    "mask forgotten: the shift must be 0 off the mask": lambda h, removed, mask: removed - h,
    "masked by a product: 0 · NaN is NaN; use torch.where": lambda h, removed, mask: (removed - h) * mask,
    "negative shifts must stay: they say that the token is more certain without the image": lambda h, removed, mask: _shift(
        h, removed, mask
    ).clamp(min=0),
    "absolute value: a fall of the entropy is no rise": lambda h, removed, mask: _shift(h, removed, mask).abs(),
}


def check_entropy_shift(function: Function) -> None:
    """Grade entropy_shift(entropy, removed_entropy, completion_mask) -> [B, T]: H(I⁻) − H(I) on the mask, else 0."""
    grade(function, SHIFT_CASES, SHIFT_MISTAKES, _shift)


SELECT_CASES = [
    # rows of four, three and no candidates: ⌈2⌉, ⌈1.5⌉ and no token
    Case(
        "the top half, rounded up",
        (
            torch.tensor([[0.9, 0.2, 0.7, -0.5, 0.4], [0.1, 0.0, 0.3, 0.2, -9.0], [0.0, -1.0, 0.0, -2.0, -3.0]]),
            bools([[1, 1, 1, 1, 1]] * 3),
            0.5,
        ),
        bools([[1, 0, 1, 0, 0], [0, 0, 1, 1, 0], [0, 0, 0, 0, 0]]),
    ),
    Case(
        "the largest shifts stand on padding",
        (torch.tensor([[0.1, 0.4, 0.2, 5.0, 6.0, 7.0]]), bools([[1, 1, 1, 0, 0, 0]]), 0.5),
        bools([[0, 1, 1, 0, 0, 0]]),
    ),
    Case("ties", (torch.tensor([[0.5, 0.5, 0.5, 0.5]]), bools([[1, 1, 1, 1]]), 0.5), bools([[1, 1, 0, 0]])),
    Case("half of five: ⌈2.5⌉", (torch.tensor([[0.1, 0.5, 0.2, 0.4, 0.3]]), bools([[1] * 5]), 0.5), bools([[0, 1, 0, 1, 1]])),
    Case("0.3 of four: ⌈1.2⌉", (torch.tensor([[0.1, 0.4, 0.2, 0.3]]), bools([[1] * 4]), 0.3), bools([[0, 1, 0, 1]])),
    Case("a tenth of three", (torch.tensor([[0.1, 0.3, 0.2]]), bools([[1, 1, 1]]), 0.1), bools([[0, 1, 0]])),
]


def _select(
    shift: Tensor,
    mask: Tensor,
    fraction: float,
    *,
    masked: bool = True,
    positive: bool = True,
    base: str = "candidates",
    rounding: Function = torch.ceil,
    least: int = 1,
    descending: bool = True,
    reverse_ties: bool = False,
    beats: Function = torch.lt,
    sorts: int = 2,
    bound: Function = torch.gt,
) -> Tensor:
    """The selection, with parts that can be wrong."""
    above = bound(shift, torch.tensor(0.0))
    candidates = (mask if masked else torch.ones_like(mask)) & (above if positive else torch.ones_like(mask))
    score = shift.masked_fill(~candidates, -INF if descending else INF)
    if reverse_ties:
        score = score.flip(-1)
    rank = score.argsort(dim=-1, descending=descending, stable=True)
    rank = rank.argsort(dim=-1) if sorts == 2 else rank
    if reverse_ties:
        rank = rank.flip(-1)
    counted = {"candidates": candidates, "completion": mask}[base]
    k = rounding(fraction * counted.sum(dim=-1, keepdim=True).double()).clamp(min=least)
    return candidates & beats(rank, k)


def _threshold(shift: Tensor, mask: Tensor, fraction: float) -> Tensor:
    chosen = _select(shift, mask, fraction)
    lowest = shift.masked_fill(~chosen, INF).amin(dim=-1, keepdim=True)
    return mask & (shift > 0) & (shift >= lowest)


def _whole_batch(shift: Tensor, mask: Tensor, fraction: float) -> Tensor:
    return _select(shift.view(1, -1), mask.view(1, -1), fraction).view(shift.shape)


SELECT_MISTAKES = {
    "ΔH = 0 counts for you: candidates have ΔH > 0, not ≥ 0": partial(_select, bound=torch.ge),
    "one token too many: ranks begin at 0, so a token is kept if rank < k, not if rank ≤ k": partial(_select, beats=torch.le),
    "one argsort lists positions, it gives no ranks: argsort that list again": partial(_select, sorts=1),
    "mask forgotten: padding was selected": partial(_select, masked=False),
    "k counts a share of the tokens with ΔH > 0, not of all completion tokens": partial(_select, base="completion"),
    "rounded down: k is ⌈fraction · n⌉": partial(_select, rounding=torch.floor),
    "rounded to the nearest: k is ⌈fraction · n⌉, the next whole number above": partial(_select, rounding=torch.round),
    "rounded down to nothing: a row with candidates keeps at least one": partial(_select, rounding=torch.floor, least=0),
    "tokens without a positive shift were selected: they do not depend on the image": partial(_select, positive=False),
    "you kept the smallest shifts": partial(_select, descending=False),
    "ties go to the earlier token; sort with stable=True": partial(_select, reverse_ties=True),
    "all ties at the threshold were kept: k tokens are selected, no more": _threshold,
    "wrong axis: every row gets its own top share; you ranked the whole batch": _whole_batch,
}


def check_select_perception_tokens(function: Function) -> None:
    """Grade select_perception_tokens(shift, completion_mask, top_fraction) -> Bool [B, T], ranked by ΔH."""
    grade(function, SELECT_CASES, SELECT_MISTAKES, _select)
