"""Manifests: a folder that knows whether it is whole, by the size and SHA-256 of each of its files."""

import hashlib
import json
import os
from pathlib import Path

from cppo_ref.config import InputError

NAME = "manifest.json"


def digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def flush(path: Path) -> None:
    """Wait until a file or a folder is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError:
        if not path.is_dir():  # some mounts cannot flush a folder
            raise
    finally:
        os.close(handle)


def files_of(folder: Path) -> dict[str, Path]:
    """The files of a folder by their names inside it, its manifest left out."""
    found = {str(path.relative_to(folder)): path for path in sorted(folder.rglob("*")) if path.is_file()}
    return {name: path for name, path in found.items() if name != NAME}


def seal(folder: Path) -> None:
    """Flush what is in `folder` to the disk, then write its manifest, last."""
    files = {name: [path.stat().st_size, digest(path)] for name, path in files_of(folder).items()}
    for path in folder.rglob("*"):
        flush(path)
    (folder / NAME).write_text(json.dumps(files, indent=1) + "\n")
    flush(folder / NAME)
    flush(folder)


def listed(folder: Path) -> dict[str, list]:
    """What the manifest of `folder` lists: name -> [bytes, SHA-256]; empty if it is absent or damaged."""
    try:
        files = json.loads((folder / NAME).read_text())
    except (OSError, ValueError):
        return {}
    return files if isinstance(files, dict) and all(isinstance(entry, list) for entry in files.values()) else {}


def owned(folder: Path) -> bool:
    """Whether everything in `folder` was written by a run: only that may be deleted."""
    return bool(files := listed(folder)) and files_of(folder).keys() <= files.keys()


def damage(folder: Path, part: str = "") -> str:
    """The first file that is not what the manifest of `folder` says, with what is wrong; empty: the folder is whole.

    With `part`, the start of names, only those files are looked at.
    """
    files, present = listed(folder), files_of(folder)
    if not files:
        return f"{NAME} is absent or damaged"
    for name, expected in files.items():
        if name.endswith(".md") or not name.startswith(part):  # a model card may be edited
            continue
        if name not in present:
            return f"{name} is absent"
        if [present[name].stat().st_size, digest(present[name])] != expected:
            return f"{name} is not what was written"
    return ""


def check_whole(folder: Path) -> None:
    """InputError if `folder` does not fit its manifest, or that of the checkpoint that it lies in."""
    places = (folder, folder.parent) if (folder.parent / "state.json").is_file() else (folder,)  # other things have manifests
    sealed = next((place for place in places if (place / NAME).is_file()), None)
    if sealed and (wrong := damage(sealed, "" if sealed == folder else f"{folder.name}/")):
        raise InputError(f"{str(sealed)!r} is damaged ({wrong}): take another checkpoint; if you edited it, delete its {NAME}")
