"""Graders of exercises 05: KL between views, the contrastive loss, the gate and the anchor."""

import math
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from cppo_ref.grading.grader import Around, Case, Function, bools, grade, logits_of

INF = math.inf


HALVES, QUARTERS = [0.5, 0.5], [0.25, 0.75]
# KL(halves ‖ quarters) = ½ ln 2 + ½ ln ⅔ = 0.1438;  KL(quarters ‖ halves) = ¼ ln ½ + ¾ ln 3/2 = 0.1308
KL_CASES = [
    Case(
        "(½, ½) and (¼, ¾), both ways, and the same twice",
        (logits_of([[HALVES, QUARTERS, HALVES]]), logits_of([[QUARTERS, HALVES, HALVES]])),
        torch.tensor([[0.1438, 0.1308, 0.0]]),
    ),
    Case(
        "logits moved by constants",
        (logits_of([[HALVES], [QUARTERS]]) + 5, logits_of([[QUARTERS], [QUARTERS]]) - 2),
        torch.tensor([[0.1438], [0.0]]),
    ),
]


def _kl(logits: Tensor, view: Tensor, *, dim: int = -1) -> Tensor:
    p, q = logits.log_softmax(dim=dim), view.log_softmax(dim=dim)
    return (p.exp() * (p - q)).sum(dim=-1)


KL_MISTAKES = {
    "direction reversed: this is KL(view ‖ original); the original view weighs the sum": lambda a, b: _kl(b, a),
    "bits for nats: use the natural logarithm": Around(lambda kl: kl / math.log(2)),
    "sign reversed: a KL divergence is never negative": Around(torch.neg),
    "wrong axis: log_softmax runs over the vocabulary, the last dimension": partial(_kl, dim=1),
    "mean over the vocabulary instead of the sum": lambda a, b: _kl(a, b) / a.shape[-1],
    "the difference of logits is no log-ratio: take log_softmax of both first": lambda a, b: (a.softmax(dim=-1) * (a - b)).sum(
        dim=-1
    ),
}


def check_view_kl(function: Function) -> None:
    """Grade view_kl(logits [B, T, V], logits_view [B, T, V]) -> [B, T]: KL(π(·|I) ‖ π(·|view)) in nats."""
    grade(function, KL_CASES, KL_MISTAKES, _kl, through={"the original view": 0, "the other view": 1})


# softplus(−1) = ln(1 + 1/e) = 0.3133;  softplus(1) = 1 + softplus(−1) = 1.3133;  softplus(0) = ln 2 = 0.6931
CONTRAST_CASES = [
    Case(
        "one good token, one neutral, one that does not count",
        (torch.tensor([[0.0, 0.2, 9.0]]), torch.tensor([[0.1, 0.2, 0.0]]), bools([[1, 1, 0]]), 0.1),
        0.5032,  # (0.3133 + 0.6931)/2
    ),
    Case("τ = 1", (torch.tensor([[2.0]]), torch.tensor([[1.0]]), bools([[1]]), 1.0), 1.3133),
    Case("a large difference", (torch.tensor([[20.0]]), torch.tensor([[0.0]]), bools([[1]]), 0.1), 200.0),
    Case("∞ where nothing is selected", (torch.tensor([[0.1, INF]]), torch.tensor([[0.0, 0.0]]), bools([[1, 0]]), 0.1), 1.3133),
    Case(
        "two tokens in one row, one in the other",
        (torch.tensor([[0.0, 0.2], [0.1, 5.0]]), torch.tensor([[0.1, 0.2], [0.0, 0.0]]), bools([[1, 1], [1, 0]]), 0.1),
        0.7732,  # (0.3133 + 0.6931 + 1.3133)/3
    ),
    Case("nothing selected", (torch.tensor([[0.1]]), torch.tensor([[0.0]]), bools([[0]]), 0.1), 0.0),
]


def _contrast(good: Tensor, bad: Tensor, selected: Tensor, tau: float, token: Function = F.softplus) -> Tensor:
    values = token((good[selected] - bad[selected]) / tau)
    return values.sum() / max(int(selected.sum()), 1)


def _row_means(good: Tensor, bad: Tensor, selected: Tensor, tau: float) -> Tensor | float:
    rows = [_contrast(g, b, s, tau) for g, b, s in zip(good, bad, selected, strict=True) if s.any()]
    return torch.stack(rows).mean() if rows else 0.0


def _overflowing(x: Tensor) -> Tensor:
    return (1 + x.exp()).log()


CONTRAST_MISTAKES = {
    "positive and negative swapped: the loss must fall as KL⁻ grows": lambda g, b, s, t: _contrast(b, g, s, t),
    "mask forgotten: only selected tokens count": lambda g, b, s, t: F.softplus((g - b) / t).mean(),
    "averaged over all tokens: divide by the number of selected ones": lambda g, b, s, t: (
        _contrast(g, b, s, t) * s.sum() / s.numel()
    ),
    "masked by a product: 0 · ∞ is NaN; index with the mask instead": lambda g, b, s, t: (
        (F.softplus((g - b) / t) * s).sum() / s.sum().clamp(min=1)
    ),
    "mean of nothing: without selected tokens the loss is 0, not NaN": lambda g, b, s, t: F.softplus((g - b)[s] / t).mean(),
    "mean of row means: the mean runs over all selected tokens at once": _row_means,
    "sum instead of mean: the loss must not grow with the number of tokens": lambda g, b, s, t: (
        _contrast(g, b, s, t) * max(int(s.sum()), 1)
    ),
    "multiplied by τ: divide by it": lambda g, b, s, t: _contrast(g, b, s, 1 / t),
    "overflow: exp(200) is infinite in float32; F.softplus is not": partial(_contrast, token=_overflowing),
}


def check_contrastive_loss(function: Function) -> None:
    """Grade contrastive_loss(kl_preserved, kl_removed, selected, tau) -> scalar: mean softplus((KL⁺ − KL⁻)/τ)."""
    grade(function, CONTRAST_CASES, CONTRAST_MISTAKES, _contrast, through={"KL⁺": 0, "KL⁻": 1})


EIGHTHS = [0.125, 0.875]  # KL(halves ‖ eighths) = ½ ln 4 + ½ ln 4/7 = 0.4133
# One token a row. Row 0: softplus((0.1438 − 0.4133)/0.1) = softplus(−2.695) = 0.0654. In the other rows the views are swapped.
ORIGINAL = logits_of([[HALVES]] * 4)
PRESERVED = logits_of([[QUARTERS], [EIGHTHS], [EIGHTHS], [EIGHTHS]])
REMOVED = logits_of([[EIGHTHS], [QUARTERS], [QUARTERS], [QUARTERS]])
FIRST_THREE = bools([[1], [1], [1], [0]])
GATED_CASES = [
    Case(
        "advantages 2, 0, −1, 3, the last row without perception tokens",
        (ORIGINAL, PRESERVED, REMOVED, FIRST_THREE, torch.tensor([2.0, 0.0, -1.0, 3.0])),
        0.0654,
    ),
    # softplus(−2.695) = 0.0654, softplus(2.695) = 2.7604: (0.0654 + 2.7604 + 0.0654)/3
    Case(
        "two tokens in one row, one in the other",
        (
            logits_of([[HALVES] * 2] * 2),
            logits_of([[QUARTERS, EIGHTHS], [QUARTERS, HALVES]]),
            logits_of([[EIGHTHS, QUARTERS], [EIGHTHS, HALVES]]),
            bools([[1, 1], [1, 0]]),
            torch.tensor([2.0, 2.0]),
        ),
        0.9637,
    ),
    Case("no row with A > 0", (ORIGINAL, PRESERVED, REMOVED, FIRST_THREE, torch.tensor([0.0, 0.0, -1.0, 0.0])), 0.0),
]


def _gated(
    logits: Tensor,
    preserved: Tensor,
    removed: Tensor,
    selected: Tensor,
    advantages: Tensor,
    *,
    gate: Function = lambda a: a > 0,
    detach: str = "anchor",
    contrast: Function = _contrast,
    swapped: bool = False,
) -> Tensor | float:
    """The gated loss with its parts exchangeable."""
    preserved, removed = (removed, preserved) if swapped else (preserved, removed)
    anchor = logits.detach() if detach == "anchor" else logits
    if detach == "views":
        preserved, removed = preserved.detach(), removed.detach()
    return contrast(_kl(anchor, preserved), _kl(anchor, removed), selected & gate(advantages)[:, None], 0.1)


def _all_counted(logits: Tensor, preserved: Tensor, removed: Tensor, selected: Tensor, advantages: Tensor) -> Tensor | float:
    gated = int((selected & (advantages > 0)[:, None]).sum())
    return _gated(logits, preserved, removed, selected, advantages) * gated / max(int(selected.sum()), 1)


def _weighted(logits: Tensor, preserved: Tensor, removed: Tensor, selected: Tensor, advantages: Tensor) -> Tensor:
    anchor, gated = logits.detach(), selected & (advantages > 0)[:, None]
    values = F.softplus((_kl(anchor, preserved) - _kl(anchor, removed)) / 0.1) * advantages[:, None]
    return values[gated].sum() / max(int(gated.sum()), 1)


GATED_MISTAKES = {
    "the views are swapped: KL⁺ belongs to the preserving view, KL⁻ to the removing one": partial(_gated, swapped=True),
    "gate dropped: rows with A ≤ 0 must not count": partial(_gated, gate=lambda a: a.isfinite()),
    "the gate opens at A = 0: a dead group teaches nothing, ask for A > 0": partial(_gated, gate=lambda a: a >= 0),
    "gate reversed: it opens for A > 0": partial(_gated, gate=lambda a: a < 0),
    "detach missing: a gradient flows through the original view": partial(_gated, detach="nothing"),
    "wrong side detached: the views must keep their gradient, the original view loses it": partial(_gated, detach="views"),
    "divided by all selected tokens: the mean runs over those that pass the gate": _all_counted,
    "mean of row means: the mean runs over all gated tokens at once": partial(_gated, contrast=_row_means),
    "the gate is open or shut: do not multiply by the advantage": _weighted,
}


def check_gated_loss(function: Function) -> None:
    """Grade gated_loss(logits, logits_preserved, logits_removed, selected, advantages) -> scalar with τ = 0.1.

    The gate is A > 0; no gradient flows through the original view.
    """
    through = {"the original view": 0, "the preserving view": 1, "the removing view": 2}
    grade(function, GATED_CASES, GATED_MISTAKES, _gated, through=through)


NEGATIVE_CASES = [
    Case("one negative: softplus(−1)", (torch.tensor([0.0]), torch.tensor([[0.1]]), 0.1), 0.3133),
    Case("three views that are all alike: ln 4", (torch.tensor([0.2]), torch.tensor([[0.2, 0.2, 0.2]]), 0.1), 1.3863),
    # ln(1 + 1/e + 1) = 0.8620, and ln 3 = 1.0986
    Case("two tokens of two", (torch.tensor([0.0, 0.3]), torch.tensor([[0.1, 0.0], [0.3, 0.3]]), 0.1), 0.9803),
    Case("τ = 1: ln(1 + e + e²)", (torch.tensor([2.0]), torch.tensor([[1.0, 0.0]]), 1.0), 2.4076),
    Case("a large difference", (torch.tensor([20.0]), torch.tensor([[0.0, 0.0]]), 0.1), 200.6931),
]


def _many(good: Tensor, bad: Tensor, tau: float, *, sign: int = 1, anchor: bool = True, invert: bool = False) -> Tensor:
    margins = sign * (good[:, None] - bad) * (tau if invert else 1 / tau)
    own = torch.zeros_like(margins[:, :1])
    return torch.cat([own, margins] if anchor else [margins], dim=1).logsumexp(dim=1).mean()


NEGATIVE_MISTAKES = {
    "a mean of pairs: all negatives share one denominator with the positive": lambda g, b, t: F.softplus(
        (g[:, None] - b) / t
    ).mean(),
    "a sum of pairs: all negatives share one denominator with the positive": lambda g, b, t: (
        F.softplus((g[:, None] - b) / t).sum(dim=1).mean()
    ),
    "the positive is missing from the denominator": partial(_many, anchor=False),
    "positive and negatives swapped": partial(_many, sign=-1),
    "multiplied by τ: divide by it": partial(_many, invert=True),
    "overflow: exp(200) is infinite in float32; use logsumexp": lambda g, b, t: (
        (1 + ((g[:, None] - b) / t).exp().sum(dim=1)).log().mean()
    ),
}


def check_info_nce(function: Function) -> None:
    """Grade info_nce(kl_positive [N], kl_negatives [N, K], tau) -> mean of ln(1 + Σ_k exp((KL⁺ − KL⁻_k)/τ))."""
    grade(function, NEGATIVE_CASES, NEGATIVE_MISTAKES, _many, through={"KL⁺": 0, "KL⁻": 1})
