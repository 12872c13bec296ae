"""math-verify in a process of its own, a child of it for each question, bounded by size and by CPU time.

Linux and macOS. Nothing inside a process stops 9^{9^{9^9}} (one long C call); the system stops a child whose CPU time is used
up. No clock on the wall decides: a machine that is busy, asleep or suspended gives the same verdicts.
"""

import json
import os
import re
import signal
import subprocess
import sys
import threading
from contextlib import suppress

CPU_SECONDS = 1.0  # of the child; usual questions take a hundredth
MEMORY = 4 << 30  # bytes that a child may address
DEPTH = 10  # of brackets
ATTEMPTS = 3  # a killed worker is not the answer's fault
BOMBS = re.compile(
    r"\^\s*\{?\s*[-+]?[\d.]+\s*\^"  # towers of numbers
    r"|\^\s*\{?\s*[-+]?\d{6}"  # exponents of six digits
    r"|[-+].*[)}\]]\s*\^\s*\{?\s*[-+]?\d{3}"  # powers of sums that would be written out
    r"|\d{5}\s*!|!\s*!|\\d?binom\s*\{\s*\d{5}|\d[eE][-+]?\d{4}"  # factorials and the like
    r"|\\(int|sum|prod)"  # worked out term by term
)


def oversized(text: str) -> bool:
    """Whether `text` asks for more work than an answer may: towers of powers, huge factorials, sums, deep nesting."""
    depth = deepest = 0
    for character in text:
        depth += (character in "({[") - (character in ")}]")
        deepest = max(deepest, depth)
    return deepest > DEPTH or bool(BOMBS.search(text))


class Verifier:
    """math-verify behind a pipe: one question a line, one verdict a line."""

    def __init__(self, seconds: float = CPU_SECONDS) -> None:
        self.seconds = seconds  # of CPU time, for one question
        self.lock = threading.Lock()
        self.worker: subprocess.Popen[str] | None = None

    def ask(self, candidate: str, answer: str) -> bool | None:
        """Whether the two are equal; None if their size or the CPU time forbids an answer. Who dies over it is asked again."""
        if oversized(candidate) or oversized(answer):
            return None
        with self.lock:
            for _ in range(ATTEMPTS):
                verdict = ""  # stays empty if the worker dies
                if self.worker is None or self.worker.poll() is not None:
                    self.worker = self._start()
                try:
                    with suppress(OSError):
                        verdict = self._exchange(self.worker, candidate, answer)
                finally:
                    if not verdict:  # poll() may not see its death yet, and after an interrupt it still owes an answer
                        self._drop(self.worker)
                if verdict in ("true", "false"):
                    return verdict == "true"
                if verdict == "undecided":
                    break
            return None

    def _drop(self, worker: "subprocess.Popen[str]") -> None:
        worker.kill()
        worker.communicate()  # waits for its end and closes its pipes
        self.worker = None

    def _start(self) -> "subprocess.Popen[str]":
        # by path, -P: found from any folder, and no module beside it shadows another; a session of its own: spared by Ctrl-C
        program, pipe = [sys.executable, "-P", __file__], subprocess.PIPE
        options = {"env": os.environ | {"PYTHONHASHSEED": "0"}, "start_new_session": True}
        for _ in range(ATTEMPTS):
            worker = subprocess.Popen(program, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True, **options)
            assert worker.stdout is not None
            if worker.stdout.readline() == "ready\n":  # imports done
                return worker
            self._drop(worker)
        raise ChildProcessError(f"the math-verify worker did not start: {sys.executable} must be able to import math_verify")

    def _exchange(self, worker: "subprocess.Popen[str]", candidate: str, answer: str) -> str:
        assert worker.stdin is not None and worker.stdout is not None
        worker.stdin.write(json.dumps([candidate, answer, self.seconds]) + "\n")
        worker.stdin.flush()
        return worker.stdout.readline().strip()


VERIFIER = Verifier()


def serve() -> None:
    """The worker's loop: read [candidate, answer, seconds] as JSON lines; write "true", "false", "undecided" or "again"."""
    for candidate, answer in (("1/2", "0.5"), ("\\sqrt{2}+\\cos(1)", "x^2=1"), ("1+x^2", "x^2+1")):
        judge(candidate, answer)  # what every child would load first
    # by a child's end; any other, Python's own 1 included: it was killed or broke down
    verdicts = {10: "true", 11: "false", 12: "undecided", -signal.SIGPROF: "undecided"}
    print("ready", flush=True)
    for line in sys.stdin:
        candidate, answer, seconds = json.loads(line)
        child = os.fork()
        if child == 0:
            os._exit(_bounded(candidate, answer, seconds))
        print(verdicts.get(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), "again"), flush=True)


def _bounded(candidate: str, answer: str, seconds: float) -> int:
    import resource

    signal.setitimer(signal.ITIMER_PROF, seconds)  # then the system ends the process, whatever it is at
    with suppress(ValueError, OSError):  # a lower limit is set already, or the system knows none
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    try:
        return 10 if judge(candidate, answer) else 11
    except MemoryError:
        return 12
    except Exception:  # whatever the policy wrote, the verdict is "not verified"
        return 11


def judge(candidate: str, answer: str) -> bool:
    """Whether math-verify finds the two equal; may take forever and raise anything."""
    from math_verify import parse, verify  # slow to import (sympy): only the worker pays

    # 0 turns the library's own time-outs off
    gold, guess = parse(f"${answer}$", parsing_timeout=0), parse(f"${candidate}$", parsing_timeout=0)
    return bool(gold and guess and verify(gold, guess, timeout_seconds=0))


if __name__ == "__main__":
    serve()
