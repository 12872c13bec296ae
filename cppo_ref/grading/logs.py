"""Graders of exercises 05 and 06 that read logs: which of several causes made a run what it is?"""

from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np

from cppo_ref.grading.grader import Case, Function, grade

Log = Mapping[str, Sequence[float]]


def _line(first: float, last: float, spike: tuple[int, float] | None = None) -> list[float]:
    """Nine values from `first` to `last` in a straight line with a little saw tooth, and one that leaps out."""
    values = [round(first + (last - first) * i / 8 + 0.02 * abs(last - first) * (-1) ** i, 4) for i in range(9)]
    if spike:
        values[spike[0]] = spike[1]
    return values


def _log(**ends: tuple) -> Log:
    return {name: _line(*values) for name, values in ends.items()}


def _start(log: Log, name: str, few: int = 3) -> float:
    return float(np.mean(log[name][:few]))


def _end(log: Log, name: str, few: int = 3) -> float:
    return float(np.mean(log[name][-few:]))


CPL_CASES = [
    Case(shows, (_log(kl_preserved=plus, kl_removed=minus, shift=shift, loss=loss),), cause)
    for cause, shows, plus, minus, shift, loss in (
        ("healthy", "KL⁺ falls, KL⁻ rises", (0.14, 0.06), (0.6, 0.9), (0.4, 0.45), (0.5, 0.12)),
        ("healthy", "KL⁻ stays, with one step far below", (0.2, 0.05), (0.5, 0.55, (8, 0.02)), (0.3, 0.3), (0.6, 0.2)),
        ("healthy", "KL⁺ stays, with one step far above", (0.1, 0.09, (8, 0.9)), (0.5, 0.8), (0.3, 0.4), (0.3, 0.1)),
        ("roles swapped", "KL⁺ rises, KL⁻ falls", (0.14, 0.4), (0.6, 0.15), (0.4, 0.15), (6.5, 1.7)),
        ("roles swapped", "the same, from other values", (0.05, 0.3), (0.9, 0.3), (0.6, 0.2), (8.4, 2.0)),
        ("roles swapped", "KL⁻ falls, KL⁺ hardly", (0.111, 0.108), (0.717, 0.209), (0.43, 0.28), (6.5, 1.7)),
        ("nothing hidden", "KL⁻ was never there", (0.14, 0.05), (0.03, 0.02), (0.01, 0.0), (1.6, 0.8)),
        ("nothing hidden", "the same, with a strong preserving view", (0.5, 0.1), (0.04, 0.03), (0.02, 0.01), (4.6, 1.1)),
        ("blind", "both fall to nothing", (0.5, 0.01), (0.6, 0.02), (0.4, 0.02), (0.9, 0.69)),
        ("blind", "the same, from other values", (0.3, 0.02), (0.4, 0.03), (0.3, 0.01), (0.8, 0.69)),
    )
]


def _cpl_trouble(log: Log, *, few: int = 3, hidden: Function = _start, blind: float = 0.5) -> str:
    if hidden(log, "kl_removed", few) < 0.1:
        return "nothing hidden"
    if _end(log, "kl_removed", few) < 0.5 * _start(log, "kl_removed", few):
        return "blind" if _end(log, "kl_preserved", few) < blind * _start(log, "kl_preserved", few) else "roles swapped"
    return "healthy"


CPL_MISTAKES = {
    "single steps jump: compare means of several steps at both ends": partial(_cpl_trouble, few=1),
    "KL⁻ falls for two reasons: look whether KL⁺ collapses with it (blind) or not (swapped)": partial(_cpl_trouble, blind=0),
    "a KL⁺ that falls a little proves nothing: all views share weights": partial(_cpl_trouble, blind=1),
    "a KL⁻ that is small at the end may have been large: nothing is hidden if it was small from the start": partial(
        _cpl_trouble, hidden=_end
    ),
    "the loss that a run reports falls in all of these runs, and tells nothing": lambda log: (
        "healthy" if _end(log, "loss") < _start(log, "loss") else "roles swapped"
    ),
}


def check_cpl_trouble(function: Function) -> None:
    """Grade cpl_trouble(log) -> "healthy", "roles swapped", "nothing hidden" or "blind", from lists of nine values each."""
    grade(function, CPL_CASES, CPL_MISTAKES, _cpl_trouble)


RUN_CASES = [
    Case(shows, (_log(reward=reward, accuracy=accuracy, kl=kl, dead=dead, ratio=ratio),), cause)
    for cause, shows, reward, accuracy, kl, dead, ratio in (
        ("healthy", "all goes up slowly", (0.55, 0.8), (0.5, 0.75), (0.0, 0.06), (0.0, 0.2), (1.0, 1.02)),
        ("healthy", "one step of KL leaps", (0.55, 0.8), (0.5, 0.75), (0.0, 0.06, (6, 5.0)), (0.0, 0.2), (1.01, 0.98)),
        ("healthy", "an easy task, still alive", (0.8, 0.93), (0.8, 0.92), (0.0, 0.05), (0.3, 0.5), (0.99, 1.0)),
        ("mismatch", "surprise is not entropy", (0.3, 0.35), (0.3, 0.3), (0.0, 0.1), (0.1, 0.1), (3.9, 3.0)),
        ("mismatch", "the other way: a sampler that is too cold", (0.6, 0.6), (0.6, 0.6), (0.0, 0.1), (0.4, 0.4), (0.4, 0.5)),
        ("too fast", "KL runs away, accuracy is lost", (0.55, 0.05), (0.5, 0.02), (0.0, 4.0), (0.0, 1.0), (1.0, 1.1)),
        ("too fast", "the same, groups still alive", (0.6, 0.3), (0.55, 0.2), (0.0, 2.0), (0.1, 0.3), (1.0, 1.0)),
        ("hacked", "paid more, right less often", (0.55, 0.95), (0.5, 0.2), (0.0, 0.3), (0.0, 0.9), (1.0, 1.0)),
        ("hacked", "the same, groups still alive", (0.5, 0.8), (0.5, 0.4), (0.0, 0.2), (0.0, 0.3), (1.0, 1.0)),
        ("finished", "right nearly always, nothing to compare", (0.8, 0.99), (0.8, 0.98), (0.0, 0.1), (0.2, 0.95), (1.0, 1.0)),
    )
]


def _run_trouble(log: Log, *, alone: str = "", spread: bool = True, first: bool = True) -> str:
    if first and abs(np.log(_start(log, "ratio", 1))) > np.log(1.25):
        return "mismatch"
    if alone == "dead" and _end(log, "dead") > 0.8:
        return "finished"
    if alone == "kl" and max(log["kl"]) > 1:
        return "too fast"
    if alone == "reward" and _end(log, "reward") > _start(log, "reward"):
        return "finished" if _end(log, "dead") > 0.8 else "healthy"
    if _end(log, "accuracy") < _start(log, "accuracy") - 0.05:
        paid = _end(log, "reward") > _start(log, "reward")
        return "hacked" if paid or not spread else "too fast"
    return "finished" if _end(log, "dead") > 0.8 else "healthy"


RUN_MISTAKES = {
    "dead groups alone do not say whether all are right or all are wrong: look at accuracy": partial(
        _run_trouble, alone="dead"
    ),
    "one leap of KL is no collapse: look at accuracy as well": partial(_run_trouble, alone="kl"),
    "the reward alone: it rises in a hacked run as well; compare it with accuracy": partial(_run_trouble, alone="reward"),
    "accuracy falls for two reasons: look whether the reward falls with it": partial(_run_trouble, spread=False),
    "the ratio of surprise and entropy is a check before everything else: far from 1 at the first step is a mismatch": partial(
        _run_trouble, first=False
    ),
}


def check_run_trouble(function: Function) -> None:
    """Grade run_trouble(log) -> "healthy", "mismatch", "too fast", "hacked" or "finished", from lists of nine values each."""
    grade(function, RUN_CASES, RUN_MISTAKES, _run_trouble)
