"""Rewards: is the boxed answer right, and does the completion keep the format?

Paper: reward = 0.9 · correct + 0.1 · format.
Here:  the last \\boxed{} decides; strings and plain numbers are compared directly, everything else by math-verify in a process
       whose work is bounded. What it cannot decide counts as wrong and is counted. The format: docs/details.md, 6.
Why:   a policy writes whatever it likes, and a comparison may hang. No wall clock decides: a busy machine pays the same.
"""

import re
from decimal import Decimal
from functools import lru_cache

from cppo_ref.runs.verifier import VERIFIER

ACCURACY_WEIGHT, FORMAT_WEIGHT = 0.9, 0.1
MAX_ANSWER_LENGTH = 500  # characters; nothing longer is an answer
PLAIN_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)", re.ASCII)


def extract_boxed(text: str) -> str | None:
    """The content of the last complete \\boxed{…} of `text`, braces balanced and blanks stripped; None if there is none."""
    opened: list[int] = []
    boxes: list[tuple[int, int]] = []
    for brace in re.finditer("[{}]", text):  # one pass: a policy may open thousands of boxes and close none
        if brace[0] == "{":
            opened.append(brace.end())
        elif opened and text.endswith("\\boxed{", 0, begin := opened.pop()):
            boxes.append((begin, brace.start()))
    if not boxes:
        return None
    begin, end = max(boxes)
    return text[begin:end].strip()


def accuracy_reward(text: str, answer: str) -> float:
    """1.0 if the last boxed answer of `text` equals `answer` (mathematically), else 0.0; never raises, never hangs."""
    boxed = extract_boxed(text)
    return float(boxed is not None and answers_match(boxed, answer))


def answers_match(candidate: str, answer: str) -> bool:
    """Whether two answers are the same: as text, as plain numbers, or to math-verify."""
    return _verdict(_tidy(candidate), _tidy(answer)) is True


def undecided(text: str, answer: str) -> bool:
    """Whether math-verify could not judge the boxed answer of `text` within its bounds; it then earns nothing."""
    boxed = extract_boxed(text)
    return boxed is not None and _verdict(_tidy(boxed), _tidy(answer)) is None


@lru_cache(maxsize=20_000)  # a policy repeats itself, bombs included
def _verdict(candidate: str, answer: str) -> bool | None:
    if not candidate or max(len(candidate), len(answer)) > MAX_ANSWER_LENGTH:
        return False
    if candidate == answer:
        return True
    numbers = _number(candidate), _number(answer)
    if None not in numbers:
        return numbers[0] == numbers[1]
    return VERIFIER.ask(candidate, answer)


def format_reward(text: str) -> float:
    """1.0 if the completion opens with <think>, closes it once, and boxes an answer after it, else 0.0."""
    body = text.strip()
    if not body.startswith("<think>") or body.count("<think>") != 1 or body.count("</think>") != 1:
        return 0.0
    return float(extract_boxed(body.split("</think>")[1]) not in (None, ""))


def reward(text: str, answer: str) -> float:
    """0.9 · correct + 0.1 · format, in [0, 1]. Weights: authors' reward.py."""
    return ACCURACY_WEIGHT * accuracy_reward(text, answer) + FORMAT_WEIGHT * format_reward(text)


def _tidy(text: str) -> str:
    return " ".join(text.strip().strip("$").split())


def _number(text: str) -> Decimal | None:
    return Decimal(text) if PLAIN_NUMBER.fullmatch(text) else None
