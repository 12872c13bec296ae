"""math-verify in a worker process that can be killed.

In-process time-outs cannot stop 9^{9^{9^9}} (one long C call), and signals fail outside the main thread; a killed worker
always returns.
"""

import json
import subprocess
import sys
import threading
from contextlib import suppress

VERIFY_SECONDS = 5.0


class Verifier:
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
        # by path, -P: found from any folder, and no module beside it shadows another
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


VERIFIER = Verifier()


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
