"""Rewards: is the boxed answer right, and does the completion keep the format?

Paper: reward = 0.9 · correct + 0.1 · format.
Here:  the last \\boxed{} decides; strings and plain numbers are compared directly, everything else by math-verify in a worker
       process that is killed after a few seconds. The format is not quite the authors': docs/details.md, 6.
Why:   a policy writes whatever it likes. In-process time-outs cannot stop 9^{9^{9^9}} (one long C call), and signals fail
       outside the main thread; a killed worker always returns.
"""

import json
import re
import subprocess
import sys
import threading
from contextlib import suppress
from decimal import Decimal, InvalidOperation

ACCURACY_WEIGHT, FORMAT_WEIGHT = 0.9, 0.1
MAX_ANSWER_LENGTH = 500  # characters; nothing longer is an answer
VERIFY_SECONDS = 5.0


def extract_boxed(text: str) -> str | None:
    """The content of the last complete \\boxed{…} of `text`, braces balanced and blanks stripped; None if there is none."""
    opened: list[int] = []
    boxes: list[tuple[int, int]] = []
    for brace in re.finditer("[{}]", text):  # one pass: a policy may open thousands of boxes and close none
        if brace[0] == "{":
            opened.append(brace.end())
        elif opened and text.endswith("\\boxed{", 0, begin := opened.pop()):
            boxes.append((begin, brace.start()))
    if not boxes:
        return None
    begin, end = max(boxes)
    return text[begin:end].strip()


def accuracy_reward(text: str, answer: str) -> float:
    """1.0 if the last boxed answer of `text` equals `answer` (mathematically), else 0.0; never raises, never hangs."""
    boxed = extract_boxed(text)
    return float(boxed is not None and answers_match(boxed, answer))


def answers_match(candidate: str, answer: str) -> bool:
    """Whether two answers are the same: as text, as plain numbers, or to math-verify."""
    candidate, answer = _tidy(candidate), _tidy(answer)
    if not candidate or max(len(candidate), len(answer)) > MAX_ANSWER_LENGTH:
        return False
    if candidate == answer:
        return True
    numbers = _number(candidate), _number(answer)
    if None not in numbers:
        return numbers[0] == numbers[1]
    return _VERIFIER.ask(candidate, answer)


def format_reward(text: str) -> float:
    """1.0 if the completion opens with <think>, closes it once, and boxes an answer after it, else 0.0."""
    body = text.strip()
    if not body.startswith("<think>") or body.count("<think>") != 1 or body.count("</think>") != 1:
        return 0.0
    return float(extract_boxed(body.split("</think>")[1]) not in (None, ""))


def reward(text: str, answer: str) -> float:
    """0.9 · correct + 0.1 · format, in [0, 1]. Weights: authors' reward.py."""
    return ACCURACY_WEIGHT * accuracy_reward(text, answer) + FORMAT_WEIGHT * format_reward(text)


def _tidy(text: str) -> str:
    return " ".join(text.strip().strip("$").split())


def _number(text: str) -> Decimal | None:
    if not text.isascii() or not set(text) <= set("+-.0123456789"):
        return None
    try:
        return Decimal(text)
    except InvalidOperation:
        return None


class _Verifier:
    """math-verify behind a pipe: one question a line, one answer a line; a worker that is late is killed and replaced."""

    def __init__(self, seconds: float = VERIFY_SECONDS) -> None:
        self.seconds = seconds  # a question may take this long
        self.lock = threading.Lock()
        self.worker: subprocess.Popen[str] | None = None

    def ask(self, candidate: str, answer: str) -> bool:
        """Whether the worker finds the two equal; False if it does not answer in time or dies."""
        with self.lock:
            if self.worker is None or self.worker.poll() is not None:
                self.worker = self._start()
            watchdog = threading.Timer(self.seconds, self.worker.kill)
            watchdog.start()
            verdict = ""  # stays empty if the worker dies: the answer could not be verified
            try:
                with suppress(OSError):
                    verdict = self._exchange(self.worker, candidate, answer)
            finally:
                watchdog.cancel()
                if not verdict:  # poll() may not see its death yet, and after an interrupt it still owes an answer
                    self._drop(self.worker)
            return verdict == "true"

    def _drop(self, worker: "subprocess.Popen[str]") -> None:
        worker.kill()
        worker.communicate()  # waits for its end and closes its pipes
        self.worker = None

    def _start(self) -> "subprocess.Popen[str]":
        # by path, -P: found from any folder, and cppo_ref/examples/loading.py shadows nothing
        program = [sys.executable, "-P", __file__]
        pipe = subprocess.PIPE
        worker = subprocess.Popen(program, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True)
        assert worker.stdout is not None
        if worker.stdout.readline() != "ready\n":  # imports done: its clock starts with the question
            raise RuntimeError(f"the math-verify worker did not start; {sys.executable} must be able to import math_verify")
        return worker

    def _exchange(self, worker: "subprocess.Popen[str]", candidate: str, answer: str) -> str:
        assert worker.stdin is not None and worker.stdout is not None
        worker.stdin.write(json.dumps([candidate, answer]) + "\n")
        worker.stdin.flush()
        return worker.stdout.readline().strip()


_VERIFIER = _Verifier()


def serve() -> None:
    """The worker's loop: read [candidate, answer] as JSON lines, write "true" or "false"."""
    from math_verify import parse, verify  # slow to import (sympy): only the worker pays

    print("ready", flush=True)
    for line in sys.stdin:
        candidate, answer = (f"${text}$" for text in json.loads(line))
        try:
            # 0 turns the library's own time-outs off: ours is the kill
            gold, guess = parse(answer, parsing_timeout=0), parse(candidate, parsing_timeout=0)
            same = bool(gold and guess and verify(gold, guess, timeout_seconds=0))
        except Exception:  # whatever the policy wrote, the verdict is "not verified"
            same = False
        print(str(same).lower(), flush=True)


if __name__ == "__main__":
    serve()
