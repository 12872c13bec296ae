"""Graders of exercises 04 beyond the text: AUROC by pairs, precision and recall, the shift of whole words."""

from functools import partial
from itertools import pairwise

import torch
from torch import Tensor, tensor

from cppo_ref.grading.coverage import as_tensor
from cppo_ref.grading.grader import Case, Function, bools, grade

ROC_CASES = [
    Case("every perception token above every other", (tensor([0.9, 0.1, 0.8]), bools([[1, 0, 1]])[0]), 1.0),
    Case("3 of 4 pairs", (tensor([0.9, 0.5, 0.3, 0.1]), bools([[1, 0, 1, 0]])[0]), 0.75),
    Case("all equal: every pair is a tie", (tensor([0.2, 0.2, 0.2, 0.2]), bools([[1, 1, 0, 0]])[0]), 0.5),
    Case("one tie in two pairs", (tensor([0.4, 0.4, 0.1]), bools([[1, 0, 0]])[0]), 0.75),
    Case("all the wrong way", (tensor([-0.1, 0.3]), bools([[1, 0]])[0]), 0.0),
    Case("negative scores", (tensor([-0.1, -0.3, -0.2]), bools([[1, 0, 1]])[0]), 1.0),
    Case("no other token, so no pair", (tensor([0.3, 0.7]), bools([[1, 1]])[0]), 0.5),
]


def _auroc(scores: Tensor, truth: Tensor, *, tie: float = 0.5, sign: int = 1, none: float = 0.5) -> float:
    gaps = sign * (scores[truth][:, None] - scores[~truth][None])
    return float(((gaps > 0).double() + tie * (gaps == 0).double()).mean()) if gaps.numel() else none


ROC_MISTAKES = {
    "a tie is half a success: you count it as a failure": partial(_auroc, tie=0.0),
    "a tie is half a success: you count it as a success": partial(_auroc, tie=1.0),
    "without a pair it is 0.5, not 0": partial(_auroc, none=0.0),
    "reversed: count the pairs in which the perception token is higher": partial(_auroc, sign=-1),
    "a threshold at 0 is one point of the curve: compare all pairs": lambda s, t: (
        0.5 if t.all() else float(((s > 0) == t).double().mean())
    ),
}


def check_auroc(function: Function) -> None:
    """Grade auroc(scores [N], truth [N]) -> the share of (true, other) pairs that are in the right order; a tie is half."""
    grade(function, ROC_CASES, ROC_MISTAKES, _auroc)


COUNT_CASES = [
    Case(
        "two selected, one true; three true",
        (bools([[1, 1, 0, 0]]), bools([[1, 0, 1, 1]]), bools([[1] * 4])),
        tensor([0.5, 1 / 3]),
    ),
    Case("padding", (bools([[1, 0, 1]]), bools([[1, 1, 1]]), bools([[1, 1, 0]])), tensor([1.0, 0.5])),
    Case("nothing selected", (bools([[0, 0]]), bools([[1, 0]]), bools([[1, 1]])), tensor([0.0, 0.0])),
    Case(
        "two rows of unequal length",
        (bools([[1, 1, 1], [1, 0, 0]]), bools([[1, 0, 0], [1, 1, 0]]), bools([[1, 1, 1], [1, 1, 0]])),
        tensor([0.5, 2 / 3]),
    ),
]


def _counts(
    selected: Tensor, truth: Tensor, mask: Tensor, *, masked: bool = True, swapped: bool = False
) -> tuple[float, float]:
    if masked:
        selected, truth = selected & mask, truth & mask
    hits = (selected & truth).sum()
    precision, recall = (float(hits / part.sum().clamp(min=1)) for part in (selected, truth))
    return (recall, precision) if swapped else (precision, recall)


def _row_counts(selected: Tensor, truth: Tensor, mask: Tensor) -> tuple[float, float]:
    rows = [_counts(*(part[None] for part in row)) for row in zip(selected, truth, mask, strict=True)]
    return sum(p for p, _ in rows) / len(rows), sum(r for _, r in rows) / len(rows)


COUNT_MISTAKES = {
    "precision and recall are swapped: precision is a share of the selected": partial(_counts, swapped=True),
    "padding counted: look at completion tokens only": partial(_counts, masked=False),
    "mean over rows: count over all tokens at once": _row_counts,
    "accuracy is neither: tokens that are rightly left out do not count": lambda s, t, m: (
        (float((s == t)[m].double().mean()),) * 2
    ),
}


def check_precision_recall(function: Function) -> None:
    """Grade precision_recall(selected, truth, mask) -> (precision, recall) over all completion tokens; 0 for an empty share."""
    grade(function, COUNT_CASES, COUNT_MISTAKES, _counts, convert=as_tensor)


WORD_CASES = [
    Case("three pieces, then two", (tensor([0.1, 0.2, -0.1, 0.5, 0.0]), bools([[1, 0, 0, 1, 0]])[0]), tensor([0.2, 0.5])),
    Case("every piece is a word", (tensor([0.3, -0.2]), bools([[1, 1]])[0]), tensor([0.3, -0.2])),
    Case("the first piece is no start", (tensor([0.3, 0.4, 0.1]), bools([[0, 1, 0]])[0]), tensor([0.3, 0.5])),
    Case("one word", (tensor([0.1, -0.4, 0.1]), bools([[1, 0, 0]])[0]), tensor([-0.2])),
]


def _words(shift: Tensor, starts: Tensor, *, join: Function = torch.sum, forgets: str = "") -> Tensor:
    starts = starts.clone()
    starts[0] = True
    bounds = [*starts.nonzero().flatten().tolist(), len(shift)]
    parts = [shift[a:b] for a, b in pairwise(bounds)]
    parts = parts[:-1] if forgets == "the last" else parts
    return torch.stack([join(part) for part in parts]) if parts else torch.zeros(0)


WORD_MISTAKES = {
    "sum, not mean: the uncertainty of a word is that of all of its pieces": partial(_words, join=torch.mean),
    "sum, not maximum: pieces that lose uncertainty count as well": partial(_words, join=torch.max),
    "only the first piece of each word was counted": partial(_words, join=lambda part: part[0]),
    "the last word is missing: nothing starts behind it": partial(_words, forgets="the last"),
    "a fall is a fall: add the shifts with their signs": partial(_words, join=lambda part: part.abs().sum()),
}


def check_word_shifts(function: Function) -> None:
    """Grade word_shifts(shift [T], starts [T]) -> [words]: the sum of the shifts of each word's pieces."""
    grade(function, WORD_CASES, WORD_MISTAKES, _words)
