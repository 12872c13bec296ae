"""Checkpoints: written aside, sealed by a manifest and renamed; adapters in peft's format."""

import errno
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from cppo_ref.config import InputError
from cppo_ref.runs.manifest import damage, flush, owned, seal
from cppo_ref.vlm.adapters import load_adapter
from cppo_ref.vlm.policy import Policy


def save_atomically(target: Path, write: Callable[[Path], None]) -> Path:
    """Let `write` fill a folder beside `target`, seal it, and rename it to `target` in one step.

    What lay there and was not written by a run is not deleted: it gets another name.

    Raises:
        InputError: no space left on the device; nothing half-written stays.
    """
    aside = target.with_name(f".{target.name}.part")
    shutil.rmtree(aside, ignore_errors=True)
    try:
        aside.mkdir(parents=True)
        write(aside)
        seal(aside)
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
        target.rename(old if owned(target) else free_name(target.with_name(f"before-{target.name}")))
    aside.rename(target)
    flush(target.parent)
    shutil.rmtree(old, ignore_errors=True)


def free_name(path: Path) -> Path:
    """`path`, or the first of path-2, path-3, … that does not exist."""
    candidate, number = path, 1
    while candidate.exists():
        number += 1
        candidate = path.with_name(f"{path.name}-{number}")
    return candidate


def save_adapter(folder: Path, policy: Policy) -> Path:
    """Save the adapters in peft's format: adapter_config.json and adapter_model.safetensors."""
    return save_atomically(folder, policy.model.save_pretrained)


def save_checkpoint(
    run: Path,
    step: int,
    policy: Policy,
    optimizer: torch.optim.Optimizer,
    score: float | None,
    keep: int,
    *,
    reward: float | None = None,
    logs: dict[str, str] | None = None,
) -> Path:
    """Save the state after `step` steps in `run`/checkpoints, then keep the newest `keep`, the best by `score` and by `reward`.

    `logs` holds the SHA-256 of each log so far. A whole checkpoint of the same step stays as it is if there is no `score`: it
    may have one.
    """
    target = run / "checkpoints" / f"step-{step:06d}"
    if score is None and not damage(target):
        return target

    def write(folder: Path) -> None:
        """All of the state, into a folder that gets its name when it is complete."""
        policy.model.save_pretrained(folder / "adapter")
        buffer = io.BytesIO()  # writing by itself, torch turns a full disk into a RuntimeError about positions
        torch.save(optimizer.state_dict(), buffer)
        (folder / "optimizer.pt").write_bytes(buffer.getbuffer())
        state = {"step": step, "score": score, "reward": reward, "logs": logs or {}, "computing": policy.computing}
        (folder / "state.json").write_text(json.dumps(state) + "\n")
        if (config := run / "config.json").is_file():
            shutil.copyfile(config, folder / "config.json")  # a copy, should that of the run be damaged

    saved = save_atomically(target, write)
    _prune(run, keep, saved)
    return saved


def checkpoints(run: Path) -> list[Path]:
    """The checkpoints of a run whose state can be read, oldest first."""
    return [path for path in _folders(run) if not _state_problem(path)]


def _folders(run: Path) -> list[Path]:
    return sorted(path for path in (run / "checkpoints").glob("step-*") if path.is_dir())


def latest_checkpoint(run: Path, name: str = "") -> Path | None:
    """The newest whole checkpoint, or the one called `name`; None if there is none. Prints which newer ones are damaged.

    Raises:
        InputError: there are checkpoints and all are damaged, or `name` is absent or damaged.
    """
    if name != Path(name).name:
        raise InputError(f"checkpoint is {name!r}, expected a name in {str(run / 'checkpoints')!r}, such as step-000040")
    if name and not (run / "checkpoints" / name).is_dir():
        there = ", ".join(path.name for path in _folders(run)) or "none"
        raise InputError(f"checkpoint {name!r} is not in {str(run / 'checkpoints')!r}: there are {there}")
    damaged = []
    for path in [run / "checkpoints" / name] if name else reversed(_folders(run)):
        wrong = damage(path) or _state_problem(path)
        if not wrong:
            for text in damaged:
                print(f"checkpoint {text}: going on from {path.name}")
            return path
        damaged.append(f"{str(path)!r} is damaged ({wrong})")
    if damaged:
        raise InputError(f"no whole checkpoint to go on from: {'; '.join(damaged)}; put back a copy or choose another --output")
    return None


def best_checkpoint(run: Path, by: str = "score") -> Path | None:
    """The checkpoint with the highest validation score, or mean reward before it (the newest of equals); None without one."""
    scored = [(state[by], path) for path in checkpoints(run) if (state := read_state(path))[by] is not None]
    return max(scored)[1] if scored else None


def read_state(checkpoint: Path) -> dict[str, Any]:
    """{step, score, reward, logs, computing} of a checkpoint."""
    return json.loads((checkpoint / "state.json").read_text())


def _state_problem(checkpoint: Path) -> str:
    try:
        state = read_state(checkpoint)
        shares = [state["score"], state["reward"]]
        fits = checkpoint.name == f"step-{state['step']:06d}" and isinstance(state["logs"], dict)
        fits = fits and all(share is None or 0 <= share <= 1 for share in shares)
    except (OSError, ValueError, TypeError, KeyError):
        fits = False
    return "" if fits else "state.json does not hold the state of its step"


def drop_later(checkpoint: Path) -> None:
    """Take away the checkpoints that were saved after `checkpoint`, the newest first: a run goes on from that one.

    One that holds files which the run did not write is renamed.
    """
    for path in sorted(checkpoint.parent.glob("step-*"), reverse=True):
        if path.name > checkpoint.name and owned(path):
            shutil.rmtree(path)
        elif path.name > checkpoint.name:
            path.rename(free_name(path.with_name(f"dropped-{path.name}")))


def _prune(run: Path, keep: int, saved: Path) -> None:
    kept = {saved, *checkpoints(run)[-keep:], best_checkpoint(run), best_checkpoint(run, "reward")}
    for path in checkpoints(run):
        if path not in kept and owned(path):
            shutil.rmtree(path, ignore_errors=True)  # a network drive may hold a file for a while


def restore_checkpoint(checkpoint: Path, policy: Policy, optimizer: torch.optim.Optimizer) -> int:
    """Load adapters and optimizer in place; returns the number of steps done.

    Raises:
        InputError: they are those of another model.
    """
    load_adapter(policy.model, str(checkpoint / "adapter"), policy.device)
    try:
        saved = torch.load(checkpoint / "optimizer.pt", map_location=policy.device, weights_only=True)
        for index, moments in saved["state"].items():  # of the parameters that had a gradient
            for moment in (moments["exp_avg"], moments["exp_avg_sq"]):
                assert moment.shape == policy.trainable[index].shape and moment.isfinite().all(), f"parameter {index}"
        optimizer.load_state_dict(saved)
    except Exception as error:  # unpickling fails in many ways
        raise InputError(f"{checkpoint}/optimizer.pt is no optimizer state of this model: take another checkpoint") from error
    return read_state(checkpoint)["step"]
