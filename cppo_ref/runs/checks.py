"""What settings are checked with, and the words of their errors."""

import dataclasses
import difflib
from typing import Any, Literal

KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "text", list: "a list of names"}


def fits(value: Any, like: Any) -> bool:
    """Is `value` of the type of the default `like`? A JSON file may hold anything."""
    if isinstance(value, bool) or isinstance(like, bool):  # to Python, True is a whole number
        return type(value) is type(like)
    if isinstance(value, list):
        return isinstance(like, list) and all(isinstance(name, str) for name in value)
    return isinstance(value, (int, float) if isinstance(like, float) else type(like))


def choices(cls: type) -> list[dataclasses.Field]:
    """The fields of a dataclass that take one of a few values."""
    return [f for f in dataclasses.fields(cls) if getattr(f.type, "__origin__", None) is Literal]


def options(f: dataclasses.Field) -> tuple[str, ...]:
    """These values."""
    return f.type.__args__  # type: ignore[union-attr]


def nearest(key: str, known: list[str]) -> str:
    """What to do about an unknown setting, in words."""
    close = difflib.get_close_matches(key, known, n=1)
    return f": did you mean {close[0]!r}?" if close else ": see `python -m cppo_ref train --help`"
