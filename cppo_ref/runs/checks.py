"""What settings are checked with, and the words of their errors."""

import dataclasses
import difflib
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any, Literal, get_args, get_origin

from cppo_ref.perturbations import PRESERVING, REMOVING

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
    "max_new_tokens": (0, 2**20, _TOKENS),
    "max_grad_norm": (1e-9, 1e12, _UNCLIPPED),
    "clip_high": (1e-9, 1e6, _UNCLIPPED),
    "prompts_per_step": (1, 2**15, _ROWS),
    "group_size": (2, 2**15, _ROWS),
    **dict.fromkeys(("steps", "save_every"), (1, 10**7, _LINES)),
    **dict.fromkeys(("rollout_batch_size", "micro_batch_size"), (1, 2**20, _ROWS)),
    **dict.fromkeys(("kl_weight", "cpl_weight"), (0, 1000, _VANISH)),
    **dict.fromkeys(("preserving_strength", "removing_strength"), (1e-6, 10, _BLANK)),
}


TRACKERS = ("tensorboard", "trackio", "wandb")
KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "text", list: "a list of names"}
Checks = Iterator[tuple[str, bool, str]]  # a setting, whether it is right, and what is expected


def problem(config: Any) -> str:
    """The first setting of a CPPOConfig that is not right, with what is expected; empty if all are."""
    for name, right, expected in chain(_types(config), _values(config)):  # one by one: values compare once their types fit
        if not right:
            return f"{name} is {getattr(config, name)!r}, expected {expected}"
    return ""


def _types(config: Any) -> Checks:
    for f in dataclasses.fields(config):
        like = f.default_factory() if callable(f.default_factory) else f.default
        yield f.name, _fits(getattr(config, f.name), like), KINDS[type(like)]


def _fits(value: Any, like: Any) -> bool:
    """Is `value` of the type of the default `like`? A JSON file may hold anything."""
    if isinstance(value, bool) or isinstance(like, bool):  # to Python, True is a whole number
        return type(value) is type(like)
    if isinstance(value, list):
        return isinstance(like, list) and all(isinstance(name, str) for name in value)
    return isinstance(value, (int, float) if isinstance(like, float) else type(like))


def _values(config: Any) -> Checks:
    for name, (least, most, cost) in RANGES.items():  # NaN is in none of them
        yield name, least <= getattr(config, name) <= most, _range_text(least, most, cost)
    for f in dataclasses.fields(config):
        if get_origin(f.type) is Literal:
            yield f.name, getattr(config, f.name) in get_args(f.type), ", ".join(get_args(f.type))
    rows = config.prompts_per_step * config.group_size
    yield "group_size", rows <= 2**16, f"at most 65,536 rows a step with {config.prompts_per_step} prompts"
    yield "output", bool(config.output.strip()), "the name of a folder"
    yield "top_fraction", 0 < config.top_fraction <= 1, "a share above 0 and at most 1"
    yield "clip_low", 0 < config.clip_low < 1, "a number between 0 and 1"
    yield "num_minibatches", rows % config.num_minibatches == 0, f"a divisor of the {rows} rows of a step"
    for name, views in (("preserving", PRESERVING), ("removing", REMOVING)):
        yield name, set() < set(getattr(config, name)) <= set(views), f"one or more of {', '.join(views)}"
    yield "trackers", set(config.trackers) <= set(TRACKERS), f"any of {', '.join(TRACKERS)}"


def _range_text(least: float, most: float, cost: str) -> str:
    low = "0 or more" if least == 0 else "2 or more" if least == 2 else "a number above 0"
    low += f", not below {least:g}" if 0 < least < 1 else ""
    return f"{low} and at most {most:,}: {cost}"


def nearest(name: str, known: Iterable[str], otherwise: str = "") -> str:
    """What to do about an unknown name, in words: the nearest known one, else `otherwise`, else all there are."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f": did you mean {close[0]!r}?" if close else f": {otherwise or 'there are ' + ', '.join(known)}"
