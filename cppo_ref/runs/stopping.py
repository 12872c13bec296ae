"""Runs that end before their last step: by Ctrl-C or SIGTERM, or because the policy has collapsed."""

import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import FrameType

ZERO_STEPS = 20  # in a row, after as many that earned something: no luck of sparse rewards
EARNED = 0.1  # mean reward of the best such stretch before


class Stopped(KeyboardInterrupt):
    """A run was asked to stop, and did; the message says how to go on."""

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.number = number  # the signal's


class CollapseError(ArithmeticError):
    """The policy earned rewards and does not any more."""


@dataclass
class Stop:
    """Whether somebody asked to stop."""

    number: int = 0  # the signal; 0: nobody asked
    patient: bool = False  # there is a step to finish

    def ask(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal: the first one lets the step end, the second one, or one before the first step, does not."""
        if self.number or not self.patient:
            raise Stopped("stopped at once: what was saved before is whole", number)
        self.number = number
        with suppress(RuntimeError):  # the signal came while something was printed
            print("\nstopping after this step, with a checkpoint; once more stops at once", flush=True)


@contextmanager
def stop_signals() -> Iterator[Stop]:
    """Inside, Ctrl-C and SIGTERM ask; in a thread, which gets no signals, nobody can."""
    stop, numbers = Stop(), (signal.SIGINT, signal.SIGTERM)
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.signal(number, stop.ask) for number in numbers}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)  # None: not set by Python


def collapsed(history: Sequence[dict[str, float]], steps: int) -> bool:
    """Whether the newest `steps` end with ZERO_STEPS of reward 0, and some ZERO_STEPS in a row before had a mean of EARNED."""
    rewards = [step["reward"] for step in history]
    if steps < ZERO_STEPS or any(rewards[-ZERO_STEPS:]):
        return False
    sums = [sum(rewards[i : i + ZERO_STEPS]) for i in range(len(rewards) - ZERO_STEPS)]
    return max(sums, default=0.0) >= EARNED * ZERO_STEPS
