"""What the pages of the course use: a cell to write in before the text goes on, and a prediction beside the truth."""

from collections.abc import Callable
from typing import Any

from cppo_ref.grading.compare import shown
from cppo_ref.grading.grader import Function, StubError, name_of


def written(function: Function, check: Callable[[Function], None]) -> Function:
    """The reader's `function` if `check` finds it right, the grader's own while it is still the stub.

    Raises:
        MistakeError: the function was written and is wrong; the message is the diagnosis.
    """
    try:
        check(function)
    except StubError as stub:
        if stub.answer is None:
            raise
        print(f"{name_of(function)}: not written yet, so this page goes on with an answer of its own")
        return stub.answer
    return function


def predicted(what: str, guess: Any, truth: Any) -> None:
    """Print the reader's prediction of `what` beside the truth; None stands for no prediction."""
    said = "you made no prediction" if guess is None else f"you said {_told(guess)}"
    print(f"{what}: {said}; it is {_told(truth)}")


def _told(value: Any) -> str:
    """A prediction as a reader would write it."""
    value = value.item() if hasattr(value, "item") else value
    return value if isinstance(value, str) else shown(float(value) if isinstance(value, float) else value)
