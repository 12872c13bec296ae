"""The run folder: config.json, metrics.jsonl, completions.jsonl, changes.jsonl, checkpoints/, adapter/; and who owns it."""

import json
import os
import shlex
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from cppo_ref.config import CPPOConfig, InputError
from cppo_ref.rollouts import Batch
from cppo_ref.runs.checkpoints import best_checkpoint, read_state, save_checkpoint
from cppo_ref.runs.manifest import damage, digest, flush
from cppo_ref.runs.metrics import StepMetrics
from cppo_ref.vlm.policy import Policy

# a resumed run may change these and stay the same run; the next two trade memory for time and no more
MAY_DIFFER = {"steps", "output", "keep_checkpoints", "save_minutes", "probe_rows", "trackers"}
MAY_DIFFER |= {"micro_batch_size", "activation_checkpointing"}
LOGGED = {"learning_rate", "device", "dtype"}  # may change as well; it is another run from there, as changes.jsonl says
LOGS = ("metrics.jsonl", "completions.jsonl")
LOCK = ".owner"


@dataclass
class RunFolder:
    """The folder of one run and what was logged in it so far."""

    path: Path
    config: CPPOConfig
    history: list[dict[str, float]] = field(default_factory=list)
    changes: dict[str, Any] = field(default_factory=dict)  # setting -> [before, now]

    @classmethod
    def check(cls, config: CPPOConfig, resume: bool) -> "RunFolder":
        """Look, without writing, whether a run can begin (or go on) in `config.output`.

        Raises:
            InputError: it holds a run and `resume` is off; or `resume` is on and there is none, or its settings differ; or it
                holds anything else.
        """
        path = Path(config.output)
        for tracker in config.trackers:
            if find_spec(tracker) is None:
                raise InputError(f"tracker {tracker!r} is not installed: pip install {tracker}, or take it from --trackers")
        if path.exists() and not path.is_dir():
            raise InputError(f"output {config.output!r} is a file, expected a folder or a new name: choose another --output")
        there = (path / "config.json").is_file()
        if there and not resume:
            raise InputError(f"output {config.output!r} holds a run already: add --resume to go on, or choose another --output")
        if (path / "checkpoints").exists() and not there:
            raise InputError(f"output {config.output!r} holds checkpoints and no config.json: copy it back from one of them")
        if resume and not there:
            raise InputError(f"output {config.output!r} holds no run to resume: give the run's folder, or leave out --resume")
        others = sorted(p.name for p in path.glob("[!.]*"))  # a desktop's or a notebook's hidden files are nobody's run
        if others and not there:
            raise InputError(f"output {config.output!r} is no run and holds {others[0]!r}: choose a new or an empty folder")
        return cls(path, config, changes=_changes(config, path / "config.json") if there else {})

    @contextmanager
    def claim(self, resume: bool) -> Iterator[None]:
        """Inside, no other run may use the folder; one that was killed lets go of it. An empty folder does not stay.

        Raises:
            InputError: another run, alive, is in it; or what `check` says, as one may have come and gone since then.
        """
        made = [place for place in (self.path, *self.path.parents) if not place.exists()]
        self.path.mkdir(parents=True, exist_ok=True)
        handle = _lock(self.path / LOCK)
        try:
            self.check(self.config, resume)
            yield
        finally:
            (self.path / LOCK).unlink(missing_ok=True)
            os.close(handle)
            with suppress(OSError):  # it is not empty, as a run's folder
                for place in made:
                    place.rmdir()

    def begin(self, start: int, checkpoint: Path | None = None, computing: str = "") -> None:
        """Write the config; keep the logs of the first `start` steps and drop what came after the `checkpoint`.

        Prints how many lines were damaged, which log is not the one that the checkpoint knew, and what has changed, which may
        be what the policy is `computing` in.
        """
        state = read_state(checkpoint) if checkpoint else {"logs": {}}
        if (before := state.get("computing", computing)) != computing:
            self.changes["computing"] = [before, computing]
        if self.changes:  # before the config, which would hide them from the next start
            print(f"from step {start} on with other settings: {_in_words(self.changes)}")
            _append(self.path / "changes.jsonl", [{"step": start, **self.changes}])
        _write_aside(self.path / "config.json", json.dumps(self.config.to_dict(), indent=2) + "\n")
        for name in LOGS:
            lines, damaged = _read_lines(self.path / name)
            _write_aside(self.path / name, "".join(json.dumps(line) + "\n" for line in lines if line["step"] < start))
            if damaged:
                print(f"{self.path / name}: {damaged} damaged line(s) dropped")
            elif state["logs"].get(name) not in (None, digest(self.path / name)):
                print(f"{self.path / name} is not as the run wrote it: lines or numbers in it were changed")
        self.history = _read_lines(self.path / LOGS[0])[0]  # type: ignore[assignment]

    def log(self, metrics: StepMetrics, batch: Batch) -> None:
        """Append the step's scalars to metrics.jsonl and its completions to completions.jsonl."""
        self.history.append(metrics.scalars())
        _append(self.path / LOGS[0], [metrics.scalars()])
        _append(self.path / LOGS[1], completion_records(metrics.step, batch))

    @property
    def command(self) -> str:
        """What to type to go on."""
        return f"python -m cppo_ref train --config {shlex.quote(str(self.path / 'config.json'))} --resume"

    def way_back(self) -> str:
        """How to go on from the checkpoint with the best rewards, more slowly."""
        if not (best := best_checkpoint(self.path, "reward")) or damage(best):
            return "start again with a lower learning rate"
        rate, reward = self.config.learning_rate / 2, read_state(best)["reward"]
        way = f"{self.command} --checkpoint {best.name} --learning_rate {rate:g}"
        return f"rewards were best ({reward:.2f}) before {best}: go on from there with `{way}`"

    def save(self, step: int, policy: Policy, optimizer: Any, score: float | None = None) -> Path:
        """A checkpoint after `step` steps, with the mean reward of the last `save_every` steps and the logs' SHA-256."""
        earned = [done["reward"] for done in self.history[-self.config.save_every :]]
        for name in LOGS:
            flush(self.path / name)
        notes: dict[str, Any] = {"reward": sum(earned) / len(earned) if earned else None}
        notes["logs"] = {name: digest(self.path / name) for name in LOGS}
        return save_checkpoint(self.path, step, policy, optimizer, score, self.config.keep_checkpoints, **notes)


def _lock(path: Path) -> int:
    """An open file that nobody else holds locked; the system frees it when its process ends, however it ends."""
    try:
        import fcntl
    except ImportError:
        raise InputError("training locks its run folder, for which Windows has no fcntl: train in WSL") from None
    for _ in range(10):
        handle = os.open(path, os.O_RDWR | os.O_CREAT)
        owner, host = os.read(handle, 999).decode(errors="replace"), f" on {socket.gethostname()}"
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):  # NFS may say either
            os.close(handle)
            text = f"{str(path.parent)!r} is in use ({owner or 'another process'}): wait for it or choose another --output"
            raise InputError(text) from None
        except OSError as error:  # some network drives have no locks
            print(f"{path.parent} cannot be locked ({error}): start no second run in it")
        with suppress(FileNotFoundError):  # the owner before us took it away
            if os.path.samestat(os.fstat(handle), path.stat()):
                if owner and not owner.endswith(host):  # many network drives lock for one machine alone
                    print(f"{path.parent} was in use ({owner}): if that still runs, stop it or this run")
                os.truncate(handle, 0)
                os.pwrite(handle, f"process {os.getpid()}{host}".encode(), 0)
                return handle
        os.close(handle)
    raise InputError(f"{str(path)!r} is another file each time: choose an --output on another drive")


def completion_records(step: int, batch: Batch) -> list[dict[str, Any]]:
    """One dict per completion: question, answer, text, reward, advantage and the positions of its perception tokens."""
    questions = [row["question"] for row in batch.rollouts.rows for _ in range(batch.rollouts.group_size)]
    chosen = [[]] * len(questions) if batch.selected is None else [r.nonzero().flatten().tolist() for r in batch.selected]
    return [
        {
            "step": step,
            "question": questions[i],
            "answer": batch.rollouts.answers[i],
            "completion": batch.rollouts.texts[i],
            "reward": round(batch.rewards[i].item(), 6),
            "advantage": round(batch.advantages[i].item(), 6),
            "perception_tokens": chosen[i],
        }
        for i in range(len(questions))
    ]


def _changes(config: CPPOConfig, path: Path) -> dict[str, Any]:
    """What differs from the settings in `path` and is logged; InputError for what may not differ, or a damaged file."""
    try:
        saved = CPPOConfig().to_dict() | json.loads(path.read_text())  # a setting that is younger than the run had its default
    except (ValueError, TypeError) as error:
        raise InputError(f"{str(path)!r} is damaged ({error}): copy it back from one of the run's checkpoints") from error
    now = json.loads(json.dumps(config.to_dict()))
    different = {key: [saved.get(key), now.get(key)] for key in sorted(now | saved) if saved.get(key) != now.get(key)}
    refused = {key: both for key, both in different.items() if key not in MAY_DIFFER | LOGGED}
    if refused:
        changes = _in_words(refused)
        raise InputError(
            f"run {config.output!r} was started with other settings ({changes}): use those, or another --output; "
            f"if its model or data have only moved, write their new place into {str(path)!r}"
        )
    return {key: both for key, both in different.items() if key in LOGGED}


def _in_words(changes: dict[str, Any]) -> str:
    return ", ".join(f"{key} was {before!r} and is {now!r}" for key, (before, now) in changes.items())


def _read_lines(path: Path) -> tuple[list[dict[str, Any]], int]:
    """The records of a log, and how many lines are none; a last line that was cut by a kill is dropped and not counted."""
    lines = path.read_bytes().splitlines(keepends=True) if path.is_file() else []
    records, damaged = [], 0
    for line in lines:
        try:
            record = json.loads(line)
            assert isinstance(record["step"], int) and isinstance(record["reward"], int | float)
            records.append(record)
        except (ValueError, TypeError, KeyError, AssertionError):
            damaged += line.endswith(b"\n")
    return records, damaged


def _append(path: Path, records: list[dict[str, Any]]) -> None:
    with path.open("a") as file:
        file.write("".join(json.dumps(record) + "\n" for record in records))


def _write_aside(path: Path, text: str) -> None:
    aside = path.with_name(f".{path.name}.part")
    aside.write_text(text)
    aside.rename(path)
