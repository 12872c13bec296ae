"""Checkpoints: written aside and renamed, so that one is whole or absent; adapters in peft's format."""

import errno
import io
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from cppo_ref.config import InputError
from cppo_ref.vlm.policy import Policy


def save_atomically(target: Path, write: Callable[[Path], None]) -> Path:
    """Let `write` fill a folder beside `target`, flush it to the disk, and rename it to `target` in one step.

    Raises:
        InputError: no space left on the device; nothing half-written stays.
    """
    aside = target.with_name(f".{target.name}.part")
    shutil.rmtree(aside, ignore_errors=True)
    try:
        aside.mkdir(parents=True)
        write(aside)
        for path in [*aside.rglob("*"), aside]:
            _flush(path)
        _replace(aside, target)
    except Exception as error:
        shutil.rmtree(aside, ignore_errors=True)
        if getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error):
            raise InputError(f"no space left on the device for {target}: free some; nothing half-written was kept") from error
        raise
    return target


def _replace(aside: Path, target: Path) -> None:
    old = target.with_name(f".{target.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    aside.rename(target)
    _flush(target.parent)
    shutil.rmtree(old, ignore_errors=True)


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def save_adapter(folder: Path, policy: Policy) -> Path:
    """Save the adapters in peft's format: adapter_config.json and adapter_model.safetensors."""
    return save_atomically(folder, policy.model.save_pretrained)


def save_checkpoint(
    run: Path, step: int, policy: Policy, optimizer: torch.optim.Optimizer, score: float | None, keep: int
) -> Path:
    """Save the state after `step` steps in `run`/checkpoints, then keep the newest `keep` and the best by `score`.

    A whole checkpoint of the same step stays as it is if there is no `score`: it may have one.
    """
    target = run / "checkpoints" / f"step-{step:06d}"
    if score is None and (target / "state.json").is_file():
        return target

    def write(folder: Path) -> None:
        """All of the state, into a folder that gets its name when it is complete."""
        policy.model.save_pretrained(folder / "adapter")
        buffer = io.BytesIO()  # writing by itself, torch turns a full disk into a RuntimeError about positions
        torch.save(optimizer.state_dict(), buffer)
        (folder / "optimizer.pt").write_bytes(buffer.getbuffer())
        (folder / "state.json").write_text(json.dumps({"step": step, "score": score}) + "\n")

    saved = save_atomically(target, write)
    _prune(run, keep)
    return saved


def checkpoints(run: Path) -> list[Path]:
    """The whole checkpoints of a run, oldest first."""
    return sorted(path for path in (run / "checkpoints").glob("step-*") if (path / "state.json").is_file())


def latest_checkpoint(run: Path) -> Path | None:
    """The newest checkpoint; None if there is none."""
    return next(reversed(checkpoints(run)), None)


def best_checkpoint(run: Path) -> Path | None:
    """The checkpoint with the highest validation score (the newest of equals); None if none was scored."""
    scored = [(state["score"], path) for path in checkpoints(run) if (state := read_state(path))["score"] is not None]
    return max(scored)[1] if scored else None


def read_state(checkpoint: Path) -> dict[str, Any]:
    """{step, score} of a checkpoint."""
    return json.loads((checkpoint / "state.json").read_text())


def _prune(run: Path, keep: int) -> None:
    kept = {*checkpoints(run)[-keep:], best_checkpoint(run)}
    for path in checkpoints(run):
        if path not in kept:
            shutil.rmtree(path)


def restore_checkpoint(checkpoint: Path, policy: Policy, optimizer: torch.optim.Optimizer) -> int:
    """Load adapters and optimizer in place; returns the number of steps done."""
    from peft import load_peft_weights, set_peft_model_state_dict

    weights = load_peft_weights(str(checkpoint / "adapter"), device=str(policy.device))
    outcome = set_peft_model_state_dict(policy.model, weights)
    if outcome.unexpected_keys:
        raise InputError(f"checkpoint {checkpoint} does not fit this model: it has {outcome.unexpected_keys[0]!r}")
    optimizer.load_state_dict(torch.load(checkpoint / "optimizer.pt", map_location=policy.device, weights_only=True))
    return read_state(checkpoint)["step"]
