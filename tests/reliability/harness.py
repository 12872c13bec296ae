"""What every test of reliability needs: commands in children, their endings judged, and a record that can be gone on with."""

import contextlib
import dataclasses
import json
import os
import random
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from cppo_ref import rewards
from cppo_ref.__main__ import main
from cppo_ref.runs.verifier import Verifier

# four optimizer steps with a checkpoint after each: everything that a run writes, in a second
SETTINGS = {"prompts_per_step": 2, "group_size": 2, "eval_rows": 0, "save_every": 1, "steps": 4, "unpack": True}
BARS = ("Loading weights", "train:", "prompts:")  # progress
SURVIVED, REFUSED, LOST = "survived", "refused", "lost"


@dataclass(frozen=True)
class Ending:
    """How a command ended: its exit status (negative: the signal that killed it) and what it printed."""

    status: int
    out: str
    err: str

    @property
    def refused(self) -> bool:
        """One sentence on stderr, no traceback, exit status 2."""
        lines = [line for line in self.err.splitlines() if line.strip() and not line.startswith(BARS)]
        return self.status == 2 and len(lines) == 1 and lines[0].startswith("cppo_ref: ")


def in_child(function: Callable[[], int], typed: str = "") -> Ending:
    """Run `function` in a child of this process, with `typed` on its stdin; its result is the exit status."""
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err, tempfile.TemporaryFile("w+") as keys:
        keys.write(typed)
        keys.seek(0)
        sys.stdout.flush()
        child = os.fork()
        if child == 0:
            for number, file in enumerate((keys, out, err)):
                os.dup2(file.fileno(), number)
            sys.stdin, sys.stdout, sys.stderr = os.fdopen(0), os.fdopen(1, "w"), os.fdopen(2, "w")
            rewards.VERIFIER = Verifier()  # the parent's worker answers the parent
            status = 1
            try:
                status = function()
            except BaseException:
                traceback.print_exc()
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        texts = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read())
        return Ending(status, *texts)


def command(words: str | list[str], before: Callable[[], object] = lambda: None, typed: str = "") -> Ending:
    """`python -m cppo_ref` with these words, in a child that first calls `before`."""

    def function() -> int:
        before()
        return main(words.split() if isinstance(words, str) else words)

    return in_child(function, typed)


def train_words(output: Path, *more: str, **changes: object) -> list[str]:
    """The words of the small training run."""
    chosen = {**SETTINGS, "output": output, **changes}
    return ["train", *(f"--{name}={value}" for name, value in chosen.items()), *more]


def result_of(output: Path) -> tuple:
    """What a run must leave, whatever happened to it: the adapter's bytes, and its logs without what a clock wrote."""
    metrics = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    plain = [{k: v for k, v in m.items() if not k.startswith(("seconds", "gigabytes"))} for m in metrics]
    return (output / "adapter/adapter_model.safetensors").read_bytes(), plain, (output / "completions.jsonl").read_text()


@dataclass(frozen=True)
class Case:
    """One attack: what it is, and how it ended."""

    name: str
    verdict: str
    detail: str = ""
    seconds: float = 0.0
    count: int = 1


@dataclass(frozen=True)
class Test:
    """A row of the table: a name, how many cases the short and the full version have, and a case by its number."""

    name: str
    short: int
    full: int
    case: Callable[[int, random.Random], Case]
    unit: str = "s"


def timed(test: Test, number: int) -> Case:
    """Case `number` of `test`, with its seconds if it did not measure something else; whatever escapes is a loss."""
    start = time.monotonic()
    try:
        case = test.case(number, random.Random(f"{test.name} {number}"))
    except Exception:
        case = Case(f"case {number}", LOST, traceback.format_exc()[-600:])
    return case if case.seconds else dataclasses.replace(case, seconds=time.monotonic() - start)


def run_test(test: Test, numbers: Iterable[int], record: Path | None = None) -> list[Case]:
    """The cases of these numbers; with a `record`, those that stand in it are not run again."""
    done: dict[int, Case] = {}
    if record and record.exists():
        for line in record.read_text().splitlines():
            with contextlib.suppress(ValueError, TypeError):
                entry = json.loads(line)
                number = entry.pop("number")
                done[number] = Case(**entry)
    for number in numbers:
        if number not in done:
            done[number] = timed(test, number)
            if record:
                with record.open("a") as file:
                    file.write(json.dumps({"number": number, **vars(done[number])}) + "\n")
    return [done[number] for number in numbers]


def summary(test: Test, cases: list[Case]) -> dict[str, object]:
    """The row of the table."""
    counts = {verdict: sum(c.count for c in cases if c.verdict == verdict) for verdict in (SURVIVED, REFUSED, LOST)}
    worst = max(cases, key=lambda case: case.seconds)
    return {
        "test": test.name,
        "tried": sum(c.count for c in cases),
        **counts,
        "worst": f"{worst.seconds:.2f} {test.unit}: {worst.name}",
    }


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """A folder for one case."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)
