"""Runs that end before their last step: by Ctrl-C or SIGTERM, because a step failed, or because the policy has collapsed."""

import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import FrameType
from typing import Any

import torch

from cppo_ref.config import InputError
from cppo_ref.rollouts import NonFiniteError
from cppo_ref.runs.folder import RunFolder
from cppo_ref.vlm.memory import advice
from cppo_ref.vlm.policy import Policy

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


@contextmanager
def good_state_saved(run: RunFolder, step: int, policy: Policy, optimizer: Any) -> Iterator[None]:
    """If the step inside fails, save the state after the last good update, and say so where the way on is known.

    With several updates a step, those before the failure are in that state, and a resumed run repeats the whole step.
    """
    try:
        yield
    except Exception as error:
        saved = run.save(step, policy, optimizer)
        if isinstance(error, NonFiniteError):
            raise NonFiniteError(f"step {step}: {error}; the last good state is in {saved}; {run.way_back()}") from error
        if not isinstance(error, torch.OutOfMemoryError):
            print(f"step {step} failed; the last good state is in {saved}")
            raise
        raise InputError(
            f"the GPU's memory ran out in step {step}: {advice(policy.vlm.config, run.config, width=policy.dtype.itemsize)}; "
            f"--resume goes on from {saved} if only --micro_batch_size or --activation_checkpointing changes"
        ) from error


def collapsed(history: Sequence[dict[str, float]], steps: int) -> bool:
    """Whether the newest `steps` end with ZERO_STEPS of reward 0, and some ZERO_STEPS in a row before had a mean of EARNED."""
    rewards = [step["reward"] for step in history]
    if steps < ZERO_STEPS or any(rewards[-ZERO_STEPS:]):
        return False
    sums = [sum(rewards[i : i + ZERO_STEPS]) for i in range(len(rewards) - ZERO_STEPS)]
    return max(sums, default=0.0) >= EARNED * ZERO_STEPS
