"""The run folder: config.json, metrics.jsonl, completions.jsonl, checkpoints/, adapter/."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cppo_ref.config import CPPOConfig, InputError
from cppo_ref.rollouts import Batch
from cppo_ref.runs.metrics import StepMetrics

# a resumed run may change these and stay the same run; the last two trade memory for time and no more
MAY_DIFFER = {"steps", "output", "keep_checkpoints", "save_minutes", "probe_rows", "trackers"}
MAY_DIFFER |= {"micro_batch_size", "activation_checkpointing"}


@dataclass
class RunFolder:
    """The folder of one run and what was logged in it so far."""

    path: Path
    config: CPPOConfig
    history: list[dict[str, float]] = field(default_factory=list)

    @classmethod
    def check(cls, config: CPPOConfig, resume: bool) -> "RunFolder":
        """Look, without writing, whether a run can begin (or go on) in `config.output`.

        Raises:
            InputError: it holds a run and `resume` is off; or `resume` is on and there is none, or its settings differ.
        """
        path = Path(config.output)
        if path.exists() and not path.is_dir():
            raise InputError(f"output {config.output!r} is a file, expected a folder or a new name: choose another --output")
        there = (path / "config.json").is_file()
        if (there or (path / "checkpoints").exists()) and not resume:
            raise InputError(f"output {config.output!r} holds a run already: add --resume to go on, or choose another --output")
        if resume and not there:
            raise InputError(f"output {config.output!r} holds no run to resume: leave out --resume")
        if there:
            _check_same(config, json.loads((path / "config.json").read_text()))
        return cls(path, config)

    def begin(self, start: int) -> None:
        """Write the config; keep the logs of the first `start` steps and drop what came after the checkpoint."""
        self.path.mkdir(parents=True, exist_ok=True)
        for name in ("metrics.jsonl", "completions.jsonl"):
            kept = [line for line in _read_lines(self.path / name) if line["step"] < start]
            _write_aside(self.path / name, "".join(json.dumps(line) + "\n" for line in kept))
        self.history = _read_lines(self.path / "metrics.jsonl")
        _write_aside(self.path / "config.json", json.dumps(self.config.to_dict(), indent=2) + "\n")

    def log(self, metrics: StepMetrics, batch: Batch) -> None:
        """Append the step's scalars to metrics.jsonl and its completions to completions.jsonl."""
        self.history.append(metrics.scalars())
        _append(self.path / "metrics.jsonl", [metrics.scalars()])
        _append(self.path / "completions.jsonl", completion_records(metrics.step, batch))


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


def _check_same(config: CPPOConfig, saved: dict[str, Any]) -> None:
    now = json.loads(json.dumps(config.to_dict()))
    saved = CPPOConfig().to_dict() | saved  # a setting that is younger than the run had its default
    keys = sorted(k for k in now.keys() | saved.keys() if k not in MAY_DIFFER and now.get(k) != saved.get(k))
    if keys:
        changes = ", ".join(f"{key} was {saved.get(key)!r} and is {now.get(key)!r}" for key in keys)
        raise InputError(f"run {config.output!r} was started with other settings ({changes}): use those, or another --output")


def _read_lines(path: Path) -> list[dict[str, Any]]:
    """The whole JSON lines of a file; a last line that was cut by a kill is dropped."""
    lines = path.read_text().splitlines(keepends=True) if path.is_file() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def _append(path: Path, records: list[dict[str, Any]]) -> None:
    with path.open("a") as file:
        file.write("".join(json.dumps(record) + "\n" for record in records))


def _write_aside(path: Path, text: str) -> None:
    aside = path.with_name(f".{path.name}.part")
    aside.write_text(text)
    aside.rename(path)
