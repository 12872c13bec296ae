"""Graders of notebook 08: bytes of a weight in NF4, bytes of the rollouts' cache."""

from functools import partial

from cppo_ref.grading.grader import Case, Function, grade

WEIGHT_CASES = [
    Case("blocks of 64, groups of 256: ½ + 1/64 + 4/16384", (64, 256), 0.5159),
    Case("blocks of 8, groups of 4: ½ + 1/8 + 4/32", (8, 4), 0.75),
    Case("blocks of 128, groups of 2", (128, 2), 0.5234),
]


def _weight(block: int, group: int, *, bits: float = 4, scale: float = 1, second: float = 4, apart: bool = False) -> float:
    return bits / 8 + scale / block + second / (group if apart else block * group)


WEIGHT_MISTAKES = {
    "4 bits are half a byte": partial(_weight, bits=32),
    "bits and bytes are mixed: an 8-bit scale is one byte": partial(_weight, scale=8, second=32),
    "the scales of the scales are missing: 4 bytes for each `group` of blocks": partial(_weight, second=0),
    "the scales are missing: one byte for each block": partial(_weight, scale=0),
    "a second scale serves block · group weights, not group": partial(_weight, apart=True),
}


def check_bytes_per_weight(function: Function) -> None:
    """Grade bytes_per_weight(block, group) -> bytes of one weight in NF4 with double quantisation."""
    grade(function, WEIGHT_CASES, WEIGHT_MISTAKES, _weight)


CACHE_CASES = [
    Case("Qwen3-VL-2B, one token: 112 KiB", (28, 8, 128, 1, 1), 114688),
    Case("two layers of two heads, 3 tokens, 5 rows", (2, 2, 4, 3, 5), 960),
    Case("no token yet", (28, 8, 128, 0, 8), 0),
]


def _cache(layers: int, heads: int, width: int, tokens: int, rows: int, *, factor: int = 4, per: str = "row") -> int:
    return factor * layers * heads * width * tokens * (rows if per == "row" else 1)


CACHE_MISTAKES = {
    "keys *and* values are kept: twice as much": partial(_cache, factor=2),
    "16 bits are 2 bytes, not 4": partial(_cache, factor=8),
    "16 bits are 2 bytes: these are numbers of bits": partial(_cache, factor=32),
    "every row has a cache of its own": partial(_cache, per="batch"),
}


def check_cache_bytes(function: Function) -> None:
    """Grade cache_bytes(layers, heads, width, tokens, rows) -> bytes of keys and values in 16 bits."""
    grade(function, CACHE_CASES, CACHE_MISTAKES, _cache)
