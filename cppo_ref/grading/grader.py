"""How a grader works: cases worked out by hand, and known mistakes that explain a wrong answer.

A grader calls the student's function on a few cases whose results were worked out by hand. Where one differs, it looks for a
known mistake: a wrong function that gives the student's results on every case. That names the error ("sign reversed: …").
If none does, the first case that differs is shown beside what was expected. Functions that draw random numbers have no such
table; for them a mistake is a symptom that can be observed.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Function = Callable[..., Any]
TOLERANCE = 5e-4  # results are written with four digits, so that a reader can redo them


class MistakeError(AssertionError):
    """The student's function is wrong; the message is the diagnosis."""

    def _render_traceback_(self) -> list[str]:
        """What a notebook shows: the diagnosis, without the grader's own lines."""
        return [f"✗ {self}"]


@dataclass(frozen=True)
class Case:
    """One call with a result worked out by hand."""

    shows: str  # what is special about it, in words
    inputs: tuple[Any, ...]
    expected: Any  # a value, or what `observe` sees: a dict of them


def call(function: Function, *inputs: Any) -> dict[str, Any]:
    """What most graders observe: the result alone."""
    return {"result": function(*inputs)}


def grade(
    function: Function,
    cases: Sequence[Case],
    mistakes: Mapping[str, Function],
    observe: Callable[..., dict[str, Any]] = call,
) -> None:
    """Compare `function` with every case; print that it is right, or raise the diagnosis.

    Args:
        function: the student's.
        cases: inputs and results.
        mistakes: diagnosis -> a function that makes this mistake.
        observe: what is compared: (function, *inputs) -> {name: value}.

    Raises:
        MistakeError: a case differs; whatever the student's function raises itself gets a note that names the case.
    """
    seen = [_watch(function, case, observe) for case in cases]
    wanted = [case.expected if isinstance(case.expected, dict) else {"result": case.expected} for case in cases]
    found = [difference(*pair) for pair in zip(seen, wanted, strict=True)]
    if not any(found):
        print(f"{name_of(function)}: right in all {len(cases)} cases")
        return
    for diagnosis, mistaken in mistakes.items():
        explained = (observe(mistaken, *copy.deepcopy(case.inputs)) for case in cases)
        if not any(difference(*pair) for pair in zip(seen, explained, strict=True)):
            raise MistakeError(f"{name_of(function)}: {diagnosis}")
    case, sentence = next((case, sentence) for case, sentence in zip(cases, found, strict=True) if sentence)
    raise MistakeError(f"{name_of(function)}, {case.shows}: {sentence}")


def grade_by_symptoms(function: Function, symptoms: Mapping[str, Callable[[Function], bool]]) -> None:
    """Look for each symptom in turn (diagnosis -> whether `function` shows it); raise the first that is there."""
    for diagnosis, shows in symptoms.items():
        try:
            ill = shows(function)
        except NotImplementedError:
            raise MistakeError(_stub(function)) from None
        if ill:
            raise MistakeError(f"{name_of(function)}: {diagnosis}")
    print(f"{name_of(function)}: right in all {len(symptoms)} checks")


def bools(rows: list[list[int]]) -> Tensor:
    """A boolean tensor from rows of 0 and 1."""
    return torch.tensor(rows, dtype=torch.bool)


def logits_of(probabilities: list[list[list[float]]]) -> Tensor:
    """Logits [B, T, V] of given probabilities."""
    return torch.tensor(probabilities).log()


def name_of(function: Function) -> str:
    """The function's name, as the student wrote it."""
    return getattr(function, "__name__", "your function")


def _stub(function: Function) -> str:
    return (
        f"{name_of(function)} is still the stub: replace `raise NotImplementedError` by your code, run its cell, then this one"
    )


def _watch(function: Function, case: Case, observe: Callable[..., dict[str, Any]]) -> dict[str, Any]:
    """Observe the function on copies of the inputs, and that it leaves them as they were."""
    inputs = copy.deepcopy(case.inputs)
    try:
        seen = observe(function, *inputs)
    except NotImplementedError:
        raise MistakeError(_stub(function)) from None
    except Exception as error:
        error.add_note(f"raised by {name_of(function)} in the grader's case: {case.shows}")
        raise
    if difference(dict(enumerate(inputs)), dict(enumerate(case.inputs))):
        raise MistakeError(f"{name_of(function)}: changed in place: it writes into its input, which the caller still needs")
    return seen


def difference(seen: Mapping[Any, Any], wanted: Mapping[Any, Any]) -> str:
    """The first thing in which two observations differ, as a sentence; empty if there is none."""
    for name, want in wanted.items():
        got = seen[name]
        if isinstance(want, Tensor):
            sentence = _tensor_difference(got, want)
        elif isinstance(want, float):
            got = got.detach() if isinstance(got, Tensor) else got
            same = isinstance(got, int | float) or (isinstance(got, Tensor) and got.numel() == 1)
            sentence = "" if same and abs(float(got) - want) <= TOLERANCE else f"is {shown(got)}, expected {want}"
        else:
            same = bool(got == want)
            sentence = "" if same else f"is {shown(got)}, expected {shown(want)}"
        if sentence:
            return f"the {name} {sentence}"
    return ""


def _tensor_difference(got: Any, want: Tensor) -> str:
    if not isinstance(got, Tensor):
        return f"is a {type(got).__name__}, expected a tensor of shape {list(want.shape)}"
    if got.shape != want.shape:
        return f"has shape {list(got.shape)}, expected {list(want.shape)}"
    if (got.dtype == torch.bool) != (want.dtype == torch.bool):
        return f"has dtype {got.dtype}, expected {want.dtype}"
    got = got.detach()
    if torch.allclose(got.double(), want.double(), rtol=TOLERANCE, atol=TOLERANCE, equal_nan=True):
        return ""
    return f"is {shown(got)}, expected {shown(want)}"


def shown(value: Any) -> str:
    """A value as a reader would write it: tensors as nested lists of four digits."""
    if isinstance(value, Tensor):
        return shown(value.detach().tolist())
    if isinstance(value, list):
        return f"[{', '.join(shown(v) for v in value)}]"
    return f"{value:.4g}" if isinstance(value, float) else repr(value)
