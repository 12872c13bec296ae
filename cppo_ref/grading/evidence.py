"""Graders of notebook 07: the interval of a mean difference, the sign-flip test, and the verdict from both."""

import math
from collections.abc import Sequence
from functools import partial
from itertools import product

import numpy as np
from torch import tensor

from cppo_ref.grading.coverage import as_tensor
from cppo_ref.grading.grader import Case, Function, grade

INTERVAL_CASES = [
    # mean 5, deviations −3, 0, 3, variance 18/2, std 3: 4.303 · 3/√3 = 7.453
    Case("2, 5 and 8 points", ([2.0, 5.0, 8.0], 4.303), tensor([5.0, -2.453, 12.453])),
    # mean 1, deviations −1, −1, −1, 3, variance 12/3, std 2: 3.182 · 2/√4 = 3.182
    Case("0, 0, 0 and 4 points", ([0.0, 0.0, 0.0, 4.0], 3.182), tensor([1.0, -2.182, 4.182])),
    Case("no spread at all", ([-1.0, -1.0], 12.706), tensor([-1.0, -1.0, -1.0])),
]


def _interval(
    differences: Sequence[float],
    quantile: float,
    *,
    correction: int = 1,
    root: Function = math.sqrt,
    spread: Function = math.sqrt,
    flipped: bool = False,
) -> tuple[float, float, float]:
    n, mean = len(differences), sum(differences) / len(differences)
    deviation = spread(sum((d - mean) ** 2 for d in differences) / (n - correction))
    half = quantile * deviation / root(n)
    return (mean, mean + half, mean - half) if flipped else (mean, mean - half, mean + half)


INTERVAL_MISTAKES = {
    "population std: divide the squares by n − 1, for the seeds are a sample": partial(_interval, correction=0),
    "the spread of single differences: the mean of n of them varies less, divide by √n": partial(_interval, root=lambda n: 1),
    "divided by n: a mean of n values varies less by √n": partial(_interval, root=lambda n: n),
    "variance for standard deviation: take the root": partial(_interval, spread=lambda variance: variance),
    "the order is (mean, low, high)": partial(_interval, flipped=True),
}


def check_t_interval(function: Function) -> None:
    """Grade t_interval(differences, quantile) -> (mean, low, high): mean ± quantile · std/√n."""
    grade(function, INTERVAL_CASES, INTERVAL_MISTAKES, _interval, convert=as_tensor)


FLIP_CASES = [
    Case("2, 5, 8: all plus and all minus, 2 of 8", ([2.0, 5.0, 8.0],), 0.25),
    Case("−2, −5, −8: the same, the other way", ([-2.0, -5.0, -8.0],), 0.25),
    # flips of 1, 2, 3, −1 with a sum of 7, 5, 5 and −7, −5, −5; observed: 5
    Case("one seed against three: 6 of 16", ([1.0, 2.0, 3.0, -1.0],), 0.375),
    Case("a sum of 0 is reached by every pattern", ([1.0, -1.0],), 1.0),
]


def _flip_p(
    differences: Sequence[float], *, size: Function = abs, observed: Function = abs, beyond: float = -1e-9, share: bool = True
) -> float:
    sums = [
        sum(sign * d for sign, d in zip(signs, differences, strict=True)) for signs in product((1, -1), repeat=len(differences))
    ]
    count = sum(size(total) >= observed(sum(differences)) + beyond for total in sums)
    return float(count / len(sums) if share else count)


FLIP_MISTAKES = {
    "one-sided: a difference as large the other way counts as well; compare sizes": partial(
        _flip_p, size=float, observed=float
    ),
    "the size of the observed sum: it may be negative": partial(_flip_p, observed=float),
    "at least as far: the observed pattern itself counts, so ask for ≥": partial(_flip_p, beyond=1e-9),
    "a share of the patterns, not their number: divide by 2ⁿ": partial(_flip_p, share=False),
}


def check_sign_flip_p(function: Function) -> None:
    """Grade sign_flip_p(differences) -> the share of sign patterns whose sum is at least as far from 0."""
    grade(function, FLIP_CASES, FLIP_MISTAKES, _flip_p, convert=lambda p: p.item() if isinstance(p, np.generic) else p)


VERDICT_CASES = [
    Case("well above 0, p = 0.01", (0.03, 0.09, 0.01), "helps"),
    Case("well below 0, p = 0.01", (-0.09, -0.03, 0.01), "hurts"),
    Case("sure, and too small to matter", (0.001, 0.015, 0.001), "equal"),
    Case("sure, below 0, and too small to matter", (-0.015, -0.001, 0.001), "equal"),
    Case("around 0 and inside the margin", (-0.015, 0.010, 0.6), "equal"),
    Case("around 0 and wide", (-0.01, 0.03, 0.3), "undecided"),
    Case("around 0 and wider still", (-0.03, 0.01, 0.3), "undecided"),
    Case("above 0, and the test does not pass", (0.01, 0.06, 0.2), "undecided"),
    Case("the test passes, and the interval holds 0", (-0.01, 0.04, 0.04), "undecided"),
]


def _verdict(
    low: float,
    high: float,
    p: float,
    *,
    margin: float = 0.02,
    alpha: float = 0.05,
    excludes: bool = True,
    null: str = "undecided",
) -> str:
    if -margin < low and high < margin:
        return "equal"
    if p < alpha and (low if excludes else low + high) > 0:
        return "helps"
    return "hurts" if p < alpha and (high if excludes else low + high) < 0 else null


VERDICT_MISTAKES = {
    "a large p is no proof of equality: without a narrow interval it is undecided": partial(_verdict, null="equal"),
    "the margin comes first: a sure difference inside ±0.02 is equal for our purpose": partial(_verdict, margin=0.0),
    "the interval alone is not enough: p < 0.05 is asked for as well": partial(_verdict, alpha=1.1),
    "the test alone is not enough: the interval must exclude 0 as well": partial(_verdict, excludes=False),
    "helps and hurts are swapped": lambda low, high, p: {"helps": "hurts", "hurts": "helps"}.get(
        _verdict(low, high, p), _verdict(low, high, p)
    ),
}


def check_verdict(function: Function) -> None:
    """Grade verdict(low, high, p) -> "equal" (inside ±0.02), "helps", "hurts" (p < 0.05 and 0 excluded) or "undecided"."""
    grade(function, VERDICT_CASES, VERDICT_MISTAKES, _verdict)
