"""What settings are checked with, and the words of their errors."""

import dataclasses
import difflib
from collections.abc import Iterable
from typing import Any, Literal

_LINES, _ROWS, _TOKENS = "each writes log lines", "all are in memory at once", "no context is longer"
_VANISH, _UNCLIPPED, _BLANK = "nothing else would be learned", "nothing would be clipped", "nothing of the image is left"
RANGES: dict[str, tuple[float, float, str]] = {  # the least, the most, and what more would cost
    "seed": (0, 2**63 - 1, "no generator takes more"),
    "lora_rank": (1, 4096, "a full weight is smaller than such adapters"),
    "lora_alpha": (1, 2**16, "it multiplies the adapters"),
    "max_pixels": (0, 2**25, "no larger image is read"),
    "num_epochs": (1, 1000, "each repeats the update"),
    "probe_rows": (0, 4096, _ROWS),
    "eval_rows": (0, 10**6, "each is answered four times"),
    "save_minutes": (1, 525_600, "that is a year"),
    "keep_checkpoints": (1, 10**6, "each takes disk space"),
    "temperature": (1e-6, 100, "samples would be uniform"),
    "tau": (1e-9, 1e6, "the contrast would vanish"),
    "learning_rate": (1e-12, 1, "every policy is lost above it"),
    "weight_decay": (0, 1, "adapters would be gone at once"),
    "warmup_steps": (0, 10**7, _LINES),
    "num_minibatches": (1, 2**16, _ROWS),
    "max_prompt_tokens": (0, 2**20, _TOKENS),
    "max_new_tokens": (1, 2**20, _TOKENS),
    "max_grad_norm": (1e-9, 1e12, _UNCLIPPED),
    "clip_high": (1e-9, 1e6, _UNCLIPPED),
    "prompts_per_step": (1, 2**15, _ROWS),
    "group_size": (2, 2**15, _ROWS),
    **dict.fromkeys(("steps", "save_every"), (1, 10**7, _LINES)),
    **dict.fromkeys(("rollout_batch_size", "micro_batch_size"), (1, 2**20, _ROWS)),
    **dict.fromkeys(("kl_weight", "cpl_weight"), (0, 1000, _VANISH)),
    **dict.fromkeys(("preserving_strength", "removing_strength"), (1e-6, 10, _BLANK)),
}


def out_of_range(name: str, value: float) -> str:
    """What is expected of setting `name` instead of `value`; empty if it is in its range. NaN is in none."""
    least, most, cost = RANGES[name]
    if least <= value <= most:
        return ""
    low = "0 or more" if least == 0 else "2 or more" if least == 2 else "a number above 0"
    low += f", not below {least:g}" if 0 < least < 1 else ""
    return f"{low} and at most {most:,}: {cost}"


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


def nearest(name: str, known: Iterable[str], otherwise: str = "") -> str:
    """What to do about an unknown name, in words: the nearest known one, else `otherwise`, else all there are."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f": did you mean {close[0]!r}?" if close else f": {otherwise or 'there are ' + ', '.join(known)}"
