"""Graders of exercises 01: boxed answers, the format, a reward that cannot be hacked."""

import re
from functools import partial

from cppo_ref.grading.grader import Around, Case, Function, grade

BOXED_CASES = [
    Case("one box", (r"so \boxed{3}",), "3"),
    Case("no box", ("the answer is 3",), None),
    Case("two boxes", (r"\boxed{2}, no: \boxed{3}",), "3"),
    Case("braces inside the box", (r"\boxed{\frac{1}{2}}",), r"\frac{1}{2}"),
    Case("braces two levels deep", (r"\boxed{\frac{1}{\sqrt{2}}}",), r"\frac{1}{\sqrt{2}}"),
    Case("braces three levels deep", (r"\boxed{\frac{1}{\sqrt{\frac{1}{2}}}}",), r"\frac{1}{\sqrt{\frac{1}{2}}}"),
    Case("a blank inside the answer", (r"\boxed{ 1 000 }",), "1 000"),
    Case("blanks inside the box", (r"\boxed{ 4 }",), "4"),
    Case("braces behind the box", (r"\boxed{7} of {a set}",), "7"),
    Case("a complete box, then one that never closes", (r"\boxed{5} or \boxed{6",), "5"),
    Case("an empty box at the end", (r"\boxed{3}, or \boxed{}",), ""),
    Case("a box inside a box", (r"\boxed{\boxed{2}3}",), "2"),
]


def _boxes(text: str) -> list[str]:
    """Every complete box of `text`, braces balanced."""
    boxes = []
    for begin in (match.end() for match in re.finditer(r"\\boxed\{", text)):
        depth = 1
        for end in range(begin, len(text)):
            depth += {"{": 1, "}": -1}.get(text[end], 0)
            if depth == 0:
                boxes.append(text[begin:end])
                break
    return boxes


def _last(boxes: list[str]) -> str | None:
    return boxes[-1].strip() if boxes else None


def _newest_opening(text: str) -> str | None:
    return _last(_boxes(text[max(text.rfind("\\boxed{"), 0) :]))


def _last_to_close(text: str) -> str | None:
    opened: list[int] = []
    answer = None
    for brace in re.finditer("[{}]", text):
        if brace[0] == "{":
            opened.append(brace.end())
        elif opened and text[: (begin := opened.pop())].endswith("\\boxed{"):
            answer = text[begin : brace.start()].strip()
    return answer


BOXED_MISTAKES = {
    "you return the first box; the last one counts, for a policy may correct itself": lambda t: _last(_boxes(t)[:1]),
    "you stop at the first closing brace; the box may hold braces of its own, as in \\boxed{\\frac{1}{2}}": lambda t: _last(
        re.findall(r"\\boxed\{([^}]*)\}", t)
    ),
    "you stop at the first closing brace behind each \\boxed{; count the braces that the box itself holds": lambda t: _last(
        re.findall(r"(?=\\boxed\{([^}]*)\})", t)
    ),
    "you allow braces one level deep; count them, as \\boxed{\\frac{1}{\\sqrt{2}}} needs two": lambda t: _last(
        re.findall(r"\\boxed\{((?:[^{}]|\{[^{}]*\})*)\}", t)
    ),
    "you allow braces two levels deep; count them: no fixed depth is enough": lambda t: _last(
        re.findall(r"\\boxed\{((?:[^{}]|\{(?:[^{}]|\{[^{}]*\})*\})*)\}", t)
    ),
    "you delete blanks inside the answer; strip only its ends": lambda t: _last([box.replace(" ", "") for box in _boxes(t)]),
    "you run to the last brace of the whole text; stop at the one that closes the box": lambda t: _last(
        re.findall(r"\\boxed\{(.*)\}", t)
    ),
    "an empty box is the last box, and its content is an empty string, not None": lambda t: _last(_boxes(t)) or None,
    "without a box the result must be None, not an empty string": lambda t: _last(_boxes(t)) or "",
    "blanks around the answer must go: \\boxed{ 4 } is 4": lambda t: (_boxes(t) or [None])[-1],
    "of nested boxes you take the outer one, which closes last; the one that opens last counts": _last_to_close,
    "the last \\boxed{ never closes, so it is no box: fall back on the last complete one": _newest_opening,
}


def check_extract_boxed(function: Function) -> None:
    """Grade extract_boxed(text) -> str | None: the content of the last complete box."""
    grade(function, BOXED_CASES, BOXED_MISTAKES, lambda text: _last(_boxes(text)))


FORMAT_CASES = [
    Case("thoughts, then a box", (r"<think> red : 1 </think> \boxed{1}",), 1.0),
    Case("no thoughts", (r"\boxed{1}",), 0.0),
    Case("no box", ("<think> red : 1 </think> 1",), 0.0),
    Case("the box inside the thoughts", (r"<think> \boxed{1} </think> done",), 0.0),
    Case("words before the thoughts", (r"Sure! <think> red : 1 </think> \boxed{1}",), 0.0),
    Case("thoughts that never close", (r"<think> red : 1 \boxed{1}",), 0.0),
    Case("two sets of thoughts", (r"<think> a </think> <think> b </think> \boxed{1}",), 0.0),
    Case("thoughts closed twice", (r"<think> a </think> b </think> \boxed{1}",), 0.0),
    Case("thoughts opened twice", (r"<think> a <think> b </think> \boxed{1}",), 0.0),
    Case("an empty box", (r"<think> red : 1 </think> \boxed{}",), 0.0),
    Case("blanks around it all", ("  <think> red : 1 </think> \\boxed{1}\n",), 1.0),
    Case("a box that never closes", (r"<think> red : 1 </think> \boxed{1",), 0.0),
    Case("several lines", ("<think>\nred : 1\n</think>\n\\boxed{1}",), 1.0),
    Case("a box of blanks", (r"<think> red : 1 </think> \boxed{ }",), 0.0),
    Case("an empty box behind a filled one", (r"<think> red : 1 </think> \boxed{1} \boxed{}",), 0.0),
]


TAGS = ("<think>", "</think>")


def _format(
    text: str,
    *,
    opens: bool = True,
    once: tuple[str, ...] = TAGS,
    box: bool = True,
    behind: bool = True,
    filled: bool = True,
    last: bool = True,
    closed_box: bool = True,
    lines: bool = True,
) -> float:
    """The format reward, with requirements that can be forgotten."""
    body = text.strip()
    before, closed, after = body.partition("</think>")
    begins = body.startswith("<think>") if opens else "<think>" in before
    single = all(body.count(tag) == 1 for tag in once)
    boxes = _boxes(after if behind else body)
    answer = _last(boxes if last else [box for box in boxes if box.strip()] or boxes)
    boxed = answer is not None and (answer != "" or not filled)
    boxed |= not closed_box and "\\boxed{" in (after if behind else body) and answer is None
    boxed &= lines or "\n" not in body
    return float(begins and bool(closed) and single and (boxed or not box))


FORMAT_MISTAKES = {
    "a box inside the thoughts counts for you; it must come after </think>": partial(_format, behind=False),
    "words before <think> pass; the completion must open with it": partial(_format, opens=False),
    "<think> and </think> may occur once each; yours lets a policy think twice": partial(_format, once=()),
    "</think> may occur once, too; you count only <think>": partial(_format, once=TAGS[:1]),
    "<think> may occur once, too; you count only </think>": partial(_format, once=TAGS[1:]),
    "an empty \\boxed{} passes; then a policy earns the format reward without an answer": partial(_format, filled=False),
    "any filled box passes; the last one must be filled": partial(_format, last=False),
    "an unclosed \\boxed{1 passes: the box must be complete": partial(_format, closed_box=False),
    "several lines fail: in a pattern `.` matches no newline; pass re.DOTALL": partial(_format, lines=False),
    "you never ask for a box": partial(_format, box=False),
    "reversed: you pay what breaks the format": Around(lambda paid: 1.0 - paid),
}


def check_format_reward(function: Function) -> None:
    """Grade format_reward(text) -> 1.0 or 0.0: <think>…</think> once, then a filled box."""
    grade(function, FORMAT_CASES, FORMAT_MISTAKES, _format)


REWARD_CASES = [
    Case("right and in format", (r"<think> red : 3 </think> \boxed{3}", "3"), 1.0),
    Case("right, out of format", (r"\boxed{3}", "3"), 0.9),
    Case("wrong, in format", (r"<think> red : 2 </think> \boxed{2}", "3"), 0.1),
    Case("nothing", ("", "3"), 0.0),
    Case("all numbers in the thoughts", (r"<think> 0 1 2 3 4 </think> \boxed{0}", "3"), 0.1),
    Case("a box for every number", (r"\boxed{0} \boxed{1} \boxed{3} \boxed{4}", "3"), 0.0),
    Case("13 contains 3", (r"\boxed{13}", "3"), 0.0),
    Case("30 begins with 3", (r"\boxed{30}", "3"), 0.0),
    Case("the bare answer, without a box", ("3", "3"), 0.0),
    Case("an empty box", (r"<think> red </think> \boxed{}", "3"), 0.0),
    Case("3 is part of 13", (r"\boxed{3}", "13"), 0.0),
    Case("an equal number in other words", (r"\boxed{3.0}", "3"), 0.0),
    Case("an answer that is no number", (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"), 0.9),
]


def _pay(correct: bool, text: str, accuracy: float = 0.9, formatting: float = 0.1) -> float:
    return accuracy * correct + formatting * _format(text)


REWARD_MISTAKES = {
    "hackable: you look for the answer anywhere in the text, so listing all numbers always wins": lambda text, answer: _pay(
        answer in text, text
    ),
    "hackable: any box may be right, so boxing every number wins; only the last box counts": lambda text, answer: _pay(
        answer in [box.strip() for box in _boxes(text)], text
    ),
    "hackable: without a box you compare the whole text; no box is no answer": lambda text, answer: _pay(
        (_last(_boxes(text)) or text.strip()) == answer, text
    ),
    "hackable: you ask whether the box begins with the answer, so 30 wins for 3; compare for equality": lambda text, answer: (
        _pay((_last(_boxes(text)) or "").startswith(answer), text)
    ),
    "hackable: you ask whether the box contains the answer, so 13 wins for 3; compare for equality": lambda text, answer: _pay(
        answer in (_last(_boxes(text)) or ""), text
    ),
    "hackable: you ask whether the answer contains the box, so an empty box always wins": lambda text, answer: _pay(
        _last(_boxes(text)) is not None and (_last(_boxes(text)) or "") in answer, text
    ),
    "you compare numbers, but an answer may be any text; compare the texts": lambda text, answer: _pay(
        answer.isdigit() and _last(_boxes(text)) == answer, text
    ),
    "you accept 3.0 for 3; here only equal text counts": lambda text, answer: _pay(
        (_last(_boxes(text)) or "").removesuffix(".0") == answer, text
    ),
    "weights swapped: a right answer is worth 0.9, the format 0.1": lambda text, answer: _pay(
        _last(_boxes(text)) == answer, text, 0.1, 0.9
    ),
    "the format earns nothing: add 0.1 · format_reward": lambda text, answer: 0.9 * (_last(_boxes(text)) == answer),
}


def check_reward(function: Function) -> None:
    """Grade reward(text, answer) -> 0.9 · correct + 0.1 · format, which no text without the right last box can win."""
    grade(function, REWARD_CASES, REWARD_MISTAKES, lambda text, answer: _pay(_last(_boxes(text)) == answer, text))
