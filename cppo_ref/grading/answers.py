"""Graders of notebook 00 and of exercises 01 beyond the text: lucky answers, answers of charts, pass@k."""

import math
from collections.abc import Sequence
from functools import partial

from cppo_ref.grading.grader import Case, Function, grade

T, F = True, False
LUCKY_CASES = [
    Case("two right answers, one of them with a wrong word", ([T, T, F], [[T, T], [T, F], [F, F]]), 0.5),
    Case("no right answer", ([F, F], [[T], [F]]), 0.0),
    Case("one right answer, every word wrong", ([T], [[F, F, F]]), 1.0),
    Case("one of three", ([T, T, T, F], [[T, T], [T, F], [T, T], [T, F]]), 1 / 3),
]


def _lucky(
    right: Sequence[bool], words: Sequence[Sequence[bool]], *, bad: Function = lambda w: not all(w), over: str = "right"
) -> float:
    kept = [w for r, w in zip(right, words, strict=True) if r or over == "everybody"]
    wrong = sum(bad(w) for w in kept)
    return float(wrong / max(len(words) if over == "all" else len(kept), 1))


LUCKY_MISTAKES = {
    "divided by all completions: it is a share of the right answers": partial(_lucky, over="all"),
    "wrong answers counted as well: look at the right ones only": partial(_lucky, over="everybody"),
    "one wrong word is enough: you ask for lists that are wholly wrong": partial(_lucky, bad=lambda w: not any(w)),
    "a share of words: count lists with at least one wrong word": partial(_lucky, bad=lambda w: 1 - sum(w) / len(w)),
    "reversed: this is the share of lists without an error": partial(_lucky, bad=all),
}


def check_lucky_share(function: Function) -> None:
    """Grade lucky_share(right, words) -> the share of right answers whose list holds a wrong word; 0 without right answers."""
    grade(function, LUCKY_CASES, LUCKY_MISTAKES, _lucky)


CHART_CASES = [
    Case("2 % too high", ("100", "98"), 1.0),
    Case("6 % too high", ("104", "98"), 0.0),
    Case("4 % too low", ("48", "50"), 1.0),
    Case("5.2 % of the answer, 4.9 % of the box", ("105.2", "100"), 0.0),
    Case("the wrong sign", ("-10", "10"), 0.0),
    Case("zero", ("0", "0.0"), 1.0),
    Case("nearly zero", ("0.01", "0"), 0.0),
    Case("a percent sign", ("12%", "12"), 1.0),
    Case("a word in capitals", ("Blue", "blue"), 1.0),
    Case("the same word", ("red", "red"), 1.0),
    Case("another word", ("red", "blue"), 0.0),
    Case("a word for a number", ("many", "12"), 0.0),
    Case("no box", (None, "3"), 0.0),
    Case("not a number", ("nan", "5"), 0.0),
    Case("infinite", ("inf", "5"), 0.0),
]


def _number(text: str, percent: bool = True) -> float | None:
    try:
        return float(text.strip().removesuffix("%") if percent else text)
    except ValueError:
        return None


def _relaxed(box: float, answer: float) -> bool:
    return abs(box - answer) <= 0.05 * abs(answer)


def _chart(
    box: str | None,
    answer: str,
    *,
    near: Function = _relaxed,
    percent: bool = True,
    folded: Function = str.lower,
    words: bool = True,
) -> float:
    if box is None:
        return 0.0
    said, truth = _number(box, percent), _number(answer, percent)
    if said is None or truth is None:
        return float(words and folded(box) == folded(answer))
    return float(near(said, truth))


CHART_MISTAKES = {
    "5 % of the answer, not of the box: a policy would choose a large box": partial(
        _chart, near=lambda b, a: abs(b - a) <= 0.05 * abs(b)
    ),
    "0.05 is no tolerance for a bar of 98: 5 % of the answer is": partial(_chart, near=lambda b, a: abs(b - a) <= 0.05),
    "the sign is lost: −10 is not near 10": partial(_chart, near=lambda b, a: _relaxed(abs(b), abs(a))),
    "hackable: nan passes `not … > …`; ask for ≤": partial(_chart, near=lambda b, a: not abs(b - a) > 0.05 * abs(a)),
    "numbers must be compared with a tolerance": partial(_chart, near=lambda b, a: b == a),
    "a percent sign may follow the number": partial(_chart, percent=False),
    "words are compared without regard to capitals": partial(_chart, folded=str),
    "an answer may be a word, too": partial(_chart, words=False),
}


def check_chart_reward(function: Function) -> None:
    """Grade chart_reward(box, answer) -> 1.0 within 5 % of the answer, or for the same word; else 0.0."""
    grade(function, CHART_CASES, CHART_MISTAKES, _chart)


PASS_CASES = [
    Case("2 of 8 right, one try", (8, 2, 1), 0.25),
    Case("2 of 4 right, two tries: 1 − 1/6", (4, 2, 2), 5 / 6),
    Case("1 of 5 right, five tries", (5, 1, 5), 1.0),
    Case("none right", (8, 0, 4), 0.0),
    Case("only two are wrong, four tries", (8, 6, 4), 1.0),
    Case("3 of 6 right, three tries: 1 − 1/20", (6, 3, 3), 0.95),
]


def _pass(n: int, c: int, k: int) -> float:
    return 1 - math.comb(n - c, k) / math.comb(n, k)


PASS_MISTAKES = {
    "drawn with replacement: the k answers are k different ones of the n": lambda n, c, k: 1 - (1 - c / n) ** k,
    "this is avg@k, the share of right answers": lambda n, c, k: c / n,
    "this is the chance that all k are wrong: take it from 1": lambda n, c, k: 1 - _pass(n, c, k),
    "this is the chance that all k are right; one right answer is enough": lambda n, c, k: math.comb(c, k) / math.comb(n, k),
    "a sum of chances: k · c/n counts draws with two right answers twice": lambda n, c, k: min(1.0, k * c / n),
}


def check_pass_at_k(function: Function) -> None:
    """Grade pass_at_k(n, c, k) -> the chance that k of n answers, c of them right, hold a right one: 1 − C(n−c, k)/C(n, k)."""
    grade(function, PASS_CASES, PASS_MISTAKES, _pass)
