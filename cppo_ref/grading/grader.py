"""How a grader works: cases worked out by hand, and known mistakes that explain a wrong answer.

A grader calls the student's function on a few cases whose results were worked out by hand. Where one differs, it looks for a
known mistake: a wrong function that gives the student's results on every case. That names the error ("sign reversed: …").
If none does, the first case that differs is shown beside what was expected. Functions that draw random numbers have no such
table; for them a mistake is a symptom that can be observed.
"""

import copy
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial, wraps
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from cppo_ref.grading.compare import TOLERANCE, difference

Function = Callable[..., Any]


class MistakeError(AssertionError):
    """The student's function is wrong; the message is the diagnosis."""

    def _render_traceback_(self) -> list[str]:
        """What a notebook shows: the diagnosis, without the grader's own lines."""
        return [f"✗ {self}"]


class StubError(MistakeError):
    """Nothing was written yet; `answer` is the grader's own function, if it has one."""

    answer: Function | None = None


@dataclass(frozen=True)
class Case:
    """One call with a result worked out by hand."""

    shows: str  # what is special about it, in words
    inputs: tuple[Any, ...]
    expected: Any
    tolerance: float = TOLERANCE


@dataclass(frozen=True)
class Around:
    """A mistake made with the finished result, such as a reversed sign: it can be added to any other mistake."""

    change: Function

    def __call__(self, function: Function) -> Function:
        """`function` with this mistake."""
        return lambda *inputs: self.change(function(*inputs))


def grade(
    function: Function,
    cases: Sequence[Case],
    mistakes: Mapping[str, Function],
    right: Function,
    *,
    through: Mapping[str, int] | None = None,
    convert: Function = lambda result: result,
) -> None:
    """Compare `function` with every case; print that it is right, or raise the diagnosis.

    Args:
        function: the student's.
        cases: inputs and results.
        mistakes: diagnosis -> a function that makes this mistake.
        right: a right function; it says which gradients are right.
        through: name -> place of each input through which the gradient is compared with that of `right`.
        convert: applied to every result before it is compared.

    Raises:
        MistakeError: a result or gradient differs, the input was changed, or the student's function raised something.
    """

    def watch(watched: Function, case: Case) -> dict[str, Any]:
        """What is seen of a function on one case."""
        return _watch(watched, case, through or {}, convert)

    try:
        seen = [watch(_guarded(function, f", {case.shows}"), case) for case in cases]
    except StubError as stub:
        stub.answer = right
        raise
    wanted = [{**watch(right, case), "result": case.expected} for case in cases]
    found = [difference(s, w, case.tolerance) for s, w, case in zip(seen, wanted, cases, strict=True)]
    if not any(found):
        print(f"{name_of(function)}: right in all {len(cases)} cases")
        return
    values = (difference(s, {"result": w["result"]}, c.tolerance) for s, w, c in zip(seen, wanted, cases, strict=True))
    if through and not any(values) and not any(s[f"gradient through {n}"].any() for s in seen for n in through):
        raise MistakeError(f"{name_of(function)}: {NO_GRADIENT}")
    for diagnosis, mistaken in (*_singles(mistakes, right), *_pairs(mistakes, right)):
        if _explains(mistaken, seen, cases, watch):
            raise MistakeError(f"{name_of(function)}: {diagnosis}")
    case, sentence = next((case, sentence) for case, sentence in zip(cases, found, strict=True) if sentence)
    raise MistakeError(f"{name_of(function)}, {case.shows}: {sentence}")


NO_GRADIENT = (
    "no gradient: the values are right, but `.detach()`, `.item()`, `no_grad` or numpy cut them off from the inputs, "
    "and nothing can be learned; return the tensor computed from them"
)


def _singles(mistakes: Mapping[str, Function], right: Function) -> Iterator[tuple[str, Function]]:
    for diagnosis, mistake in mistakes.items():
        yield diagnosis, mistake(right) if isinstance(mistake, Around) else mistake


def _pairs(mistakes: Mapping[str, Function], right: Function) -> Iterator[tuple[str, Function]]:
    """Two mistakes at once, where they can be made together: two exchanged parts, or one more with the result."""
    for (first, one), (second, other) in combinations(mistakes.items(), 2):
        if isinstance(other, Around):
            both = other(one(right) if isinstance(one, Around) else one)
        elif isinstance(one, Around):
            both = one(other)
        elif isinstance(one, partial) and isinstance(other, partial) and one.func is other.func:
            if one.keywords.keys() & other.keywords.keys():
                continue
            both = partial(one.func, **one.keywords, **other.keywords)
        else:
            continue
        yield f"two mistakes at once: {first}; and {second}", both


def _explains(mistaken: Function, seen: list[dict[str, Any]], cases: Sequence[Case], watch: Function) -> bool:
    """Whether a wrong function gives what the student's gave, in every case."""
    try:
        return not any(difference(got, watch(mistaken, case)) for got, case in zip(seen, cases, strict=True))
    except Exception:
        return False


def grade_by_symptoms(function: Function, symptoms: Mapping[str, Callable[[Function], bool]], right: Function) -> None:
    """Look for each symptom in turn (diagnosis -> whether `function` shows it); raise the first that is there."""
    watched = _guarded(function)
    try:
        found = next((diagnosis for diagnosis, shows in symptoms.items() if shows(watched)), None)
    except StubError as stub:
        stub.answer = right
        raise
    if found:
        raise MistakeError(f"{name_of(function)}: {found}")
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


def _guarded(function: Function, where: str = "") -> Function:
    """The student's function; what it raises becomes one sentence with the line that raised it."""

    @wraps(function)
    def guarded(*inputs: Any) -> Any:
        """The same, and a sentence for what it raises."""
        try:
            return function(*inputs)
        except NotImplementedError:
            raise StubError(_stub(function)) from None
        except Exception as error:
            raise MistakeError(f"{name_of(function)}{where}: {_told(error, function)}") from None

    return guarded


def _told(error: Exception, function: Function) -> str:
    """What was raised, and the last line of the student's file that it passed."""
    file = getattr(getattr(function, "__code__", None), "co_filename", None)
    lines = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
    place = f" in line {lines[-1].lineno} of its cell{f', `{lines[-1].line}`' if lines[-1].line else ''}" if lines else ""
    shapes = "must match the size of tensor" in str(error) or "could not be broadcast" in str(error)
    hint = "; the shapes do not fit: mean, std and sum drop a dimension unless keepdim=True" if shapes else ""
    return f"raises {type(error).__name__}{place}: {(str(error).splitlines() or [''])[0]}{hint}"


def _watch(function: Function, case: Case, through: Mapping[str, int], convert: Function) -> dict[str, Any]:
    """The result on copies of the inputs and its gradients; the inputs must stay as they were."""
    leaves = copy.deepcopy(case.inputs)
    wanted = [leaves[place].requires_grad_() for place in through.values()]
    inputs = [x.clone() if isinstance(x, Tensor) else x for x in leaves]
    result = convert(function(*inputs))
    if difference(dict(enumerate(inputs)), dict(enumerate(case.inputs))):
        raise MistakeError(f"{name_of(function)}: changed in place: it writes into its input, which the caller still needs")
    gradients: Sequence[Tensor | None] = [None] * len(wanted)
    if wanted and isinstance(result, Tensor) and result.requires_grad:
        weights = torch.linspace(1, 2, result.numel()).view(result.shape)  # unequal, so that no two tokens can be exchanged
        gradients = torch.autograd.grad(result, wanted, weights, allow_unused=True)
    pairs = zip(through, wanted, gradients, strict=True)
    named = {f"gradient through {name}": torch.zeros_like(x) if g is None else g for name, x, g in pairs}
    return {"result": result, **named}
