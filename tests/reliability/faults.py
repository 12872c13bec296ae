"""Faults around a run: kills, full disks, damaged files, a second run in its folder, requests to stop."""

import contextlib
import errno
import functools
import io
import os
import random
import shutil
import signal
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from harness import LOST, REFUSED, SURVIVED, Case, Ending, Test, command, result_of, scratch, train_words

from cppo_ref import training
from cppo_ref.__main__ import main

EVENTS = 240  # writes, flushes and renames of a whole run, beside its four steps


@functools.cache
def finished() -> Path:
    """A run that nothing happened to, and the folder of one whose last step is still to be done."""
    folder = Path(tempfile.mkdtemp())
    for name, steps in (("whole", 4), ("partial", 3)):  # in this process: its children need not load the libraries again
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            assert main(train_words(folder / name, steps=steps)) == 0
    return folder


def at_event(number: int, happen: Callable[[], object], in_step: bool = False) -> Callable[[], None]:
    """Before the write, flush or rename (or the step) of this number, let something happen."""
    seen = 0

    def counted(real: Callable) -> Callable:
        def wrapped(*args: object, **options: object) -> object:
            nonlocal seen
            seen += 1
            if seen == number:
                happen()
            return real(*args, **options)

        return wrapped

    def prepare() -> None:
        if in_step:
            training.cppo_step = counted(training.cppo_step)
            return
        os.fsync, os.rename, os.unlink = counted(os.fsync), counted(os.rename), counted(os.unlink)
        for name in ("write_text", "write_bytes", "rename", "mkdir", "open"):
            setattr(Path, name, counted(getattr(Path, name)))

    return prepare


def go_on(output: Path) -> Ending:
    """`--resume`, or from the start where the run had not begun."""
    if not (output / "config.json").exists():
        return command(train_words(output))
    return command(train_words(output, "--resume"))


def judged(ending: Ending, output: Path) -> tuple[str, str]:
    """Survived if the result is that of the run that nothing happened to; refused if one sentence says so; else lost."""
    if ending.refused:
        return REFUSED, ending.err.strip()
    if ending.status == 0 and result_of(output) == result_of(finished() / "whole"):
        return SURVIVED, ""
    return LOST, f"status {ending.status}: {ending.out[-200:]} {ending.err[-400:]}"


def killed(number: int, rng: random.Random) -> Case:
    """A run that is killed, mostly inside a write, up to three times in a row, and resumed."""
    with scratch() as folder:
        output, places = folder / "run", []
        finished()
        for _ in range(rng.choice((1, 1, 1, 2, 3))):
            in_step = rng.random() < 0.2
            place = rng.randint(1, 4) if in_step else rng.randint(1, EVENTS)
            dying = at_event(place, lambda: os.kill(os.getpid(), signal.SIGKILL), in_step)
            resume = ["--resume"] if (output / "config.json").exists() else []
            ending = command(train_words(output, *resume), dying)
            if ending.status == -signal.SIGKILL:  # else it had fewer writes left
                places.append(f"{'step' if in_step else 'write'} {place}")
            if ending.status not in (-signal.SIGKILL, 0):
                return Case(f"at {place}", LOST, str(ending))
        return Case("killed at " + ", ".join(places), *judged(go_on(output), output), count=max(len(places), 1))


def full_disk(number: int, rng: random.Random) -> Case:
    """No space left at some write; then there is, and the run is resumed."""

    def fail() -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with scratch() as folder:
        output, place = folder / "run", rng.randint(2, EVENTS)
        first = command(train_words(output), at_event(place, fail))
        if first.status != 0 and not first.refused:
            return Case(f"full at write {place}", LOST, first.err[-600:])
        return Case(f"full at write {place}", *judged(go_on(output), output))


def run_files() -> list[str]:
    """Every file of the run."""
    run = finished() / "partial"
    return sorted(str(path.relative_to(run)) for path in run.rglob("*") if path.is_file())


def damage(path: Path, rng: random.Random) -> str:
    """Damage a file in one of eight ways."""
    data = bytearray(path.read_bytes())
    kind = rng.choice(("bit", "bit", "cut", "empty", "zeros", "absent", "longer", "byte"))
    at = rng.randrange(max(len(data), 1))
    if kind == "absent":
        path.unlink()
        return kind
    if kind in ("bit", "byte") and data:
        data[at] = data[at] ^ (1 << rng.randrange(8)) if kind == "bit" else rng.randrange(256)
    elif kind == "cut":
        del data[at:]
    elif kind == "empty":
        data.clear()
    elif kind == "zeros":
        data[at : at + 64] = bytes(len(data[at : at + 64]))
    else:
        data[at:at] = rng.randbytes(16)
    path.write_bytes(data)
    return f"{kind} at {at}"


def damaged(number: int, rng: random.Random) -> Case:
    """One file of a run is damaged before it goes on. Not lost if the result is the same, or if what differs was named."""
    files = run_files()
    name = files[number % len(files)]
    with scratch() as folder:
        output = Path(shutil.copytree(finished() / "partial", folder / "run"))
        what = damage(output / name, rng)
        ending = command(train_words(output, "--resume"))
        verdict, detail = judged(ending, output)
        if verdict == LOST and ending.status == 0 and Path(name).name in ending.out:
            same = result_of(output)[0] == result_of(finished() / "whole")[0]
            verdict = SURVIVED if same else LOST
        return Case(f"{name}, {what}", verdict, detail)


def shared_folder(number: int, rng: random.Random) -> Case:
    """A second run, in the folder of one that is alive: it is refused, and the first one ends as if alone."""
    with scratch() as folder:
        output, seconds = folder / "run", []

        def second() -> None:
            more = ("--resume",) if (output / "config.json").exists() and number % 2 else ()
            seconds.append(command(train_words(output, *more, seed=number)))
            (folder / "refused").write_text(str(seconds[0].refused))

        ending = command(train_words(output), at_event(rng.randint(1, 4), second, in_step=True))
        verdict, detail = judged(ending, output)
        if verdict != SURVIVED or (folder / "refused").read_text() != "True":
            return Case("two runs", LOST, detail)
        return Case("two runs", REFUSED)


def asked_to_stop(number: int, rng: random.Random) -> Case:
    """Ctrl-C or SIGTERM in a step or a write: the step is finished, saved, and the printed command goes on."""
    signum, in_step = (signal.SIGINT, signal.SIGTERM)[number % 2], rng.random() < 0.5
    place = rng.randint(1, 3) if in_step else rng.randint(8, 60)
    with scratch() as folder:
        output, name = folder / "run", f"{signum.name} at {'step' if in_step else 'write'} {place}"
        ending = command(train_words(output), at_event(place, lambda: os.kill(os.getpid(), signum), in_step))
        early = "stopped at once" in ending.err  # before the first step there is nothing to save
        if ending.status != 128 + signum or "Traceback" in ending.err or not (early or "--resume" in ending.err):
            return Case(name, LOST, str(ending))
        if early:
            return Case(name, *judged(go_on(output), output))
        words = ending.err.split("`")[1].removeprefix("python -m cppo_ref ").split()
        return Case(name, *judged(command(words), output))


def soak(minutes: float) -> Case:
    """A long run in this process: finite throughout, and memory that does not grow once it is warm."""
    from cppo_ref.config import CPPOConfig
    from cppo_ref.training import train

    sizes, start = [], time.monotonic()

    class EnoughError(Exception):
        """The time is up."""

    real = training.cppo_step

    def watched(*args: object, **options: object) -> object:
        sizes.append(int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6)
        if time.monotonic() - start > 60 * minutes:
            raise EnoughError
        return real(*args, **options)

    with scratch() as folder:
        training.cppo_step = watched  # type: ignore[assignment]
        try:
            settings = {"prompts_per_step": 2, "group_size": 4, "save_every": 50, "eval_rows": 4, "unpack": True}
            train(CPPOConfig(output=str(folder / "run"), steps=10**6, learning_rate=1e-5, **settings), progress=False)
        except EnoughError:
            pass
        finally:
            training.cppo_step = real
    warm = sizes[len(sizes) // 2 :]  # the second half
    growth = (max(warm[-20:]) - max(warm[:20])) / max(len(warm), 1) * 100
    verdict = SURVIVED if growth < 1 else LOST
    return Case(
        f"{minutes:g} minutes, growth in the second half", verdict, f"{len(sizes)} steps", max(growth, 1e-9), len(sizes)
    )


TESTS = [
    Test("SIGKILL, most inside a write, then --resume", 2, 82, killed),
    Test("disk full, then --resume", 1, 25, full_disk),
    Test("one file of a run damaged, then --resume", 6, 420, damaged),
    Test("second run into the folder of a live one", 1, 12, shared_folder),
    Test("Ctrl-C and SIGTERM, then the printed command", 2, 12, asked_to_stop),
]
