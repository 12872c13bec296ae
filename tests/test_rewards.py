"""Boxed answers, their grading, the format, and the worker process that grades what plain text cannot."""

import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from cppo_ref import rewards
from cppo_ref.rewards import accuracy_reward, answers_match, extract_boxed, format_reward, reward, undecided
from cppo_ref.runs.verifier import Verifier, oversized

TOWER = "9^{9^{9^{9}}}"  # asks for more digits than there are atoms


@pytest.fixture(scope="module", autouse=True)
def verifier():
    """A verifier of this module's own, which remembers nothing yet, stopped at the end."""
    rewards._verdict.cache_clear()
    own = Verifier()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rewards, "VERIFIER", own)
        yield own
    if own.worker is not None:
        own.worker.communicate()  # closes its stdin: the worker's loop ends


# --- the box ---


@pytest.mark.parametrize(
    ("text", "boxed"),
    [
        (r"so \boxed{2}.", "2"),
        (r"\boxed{ 2 }", "2"),  # blanks stripped
        (r"\boxed{}", ""),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),  # braces nest
        (r"\boxed{a{b{c}d}e} {f}", "a{b{c}d}e"),
        (r"\boxed{1} or \boxed{2}", "2"),  # the last one counts
        (r"\boxed{1} or \boxed{2", "1"),  # the last complete one
        (r"\boxed{\boxed{3}}", "3"),
        (r"\boxed{{2}", None),  # never closed
        (r"} { \boxed{2}", "2"),  # stray braces outside
        (r"\boxed{2}}", "2"),
        (r"\boxed 2", None),
        (r"\fbox{2}", None),
        ("2", None),
        ("", None),
    ],
)
def test_extract_boxed(text, boxed):
    assert extract_boxed(text) == boxed


@pytest.mark.parametrize("piece", ["\\boxed{", "{", "}", "\\boxed{}", "\\boxed{{}"])
def test_extract_boxed_takes_linear_time(piece):
    started = time.perf_counter()
    extract_boxed(piece * 50_000)
    assert time.perf_counter() - started < 2  # seconds; quadratic would take minutes


# --- accuracy ---


@pytest.mark.parametrize(
    ("boxed", "answer", "right"),
    [
        # as text
        ("2", "2", True),
        ("3", "2", False),
        ("red  circle", "red circle", True),
        ("$2$", " 2 ", True),
        ("", "2", False),
        ("", "", False),
        ("A", "A", True),
        ("B", "A", False),
        ("A or B", "A", False),  # no hedging
        ("A, B", "A", False),
        ("1 or 2", "2", False),
        # as numbers
        ("2.0", "2", True),
        ("+2", "2", True),
        ("02", "2", True),
        ("-2", "2", False),
        ("20", "2", False),
        ("2.0000000000000000000000000001", "2", False),  # more digits than a float has
        # by math-verify
        ("1/2", "0.5", True),
        (r"\frac{1}{2}", "0.5", True),
        (r"\frac{1}{2}", "1/2", True),
        (r"\frac{1}{3}", "0.5", False),
        (r"\sqrt{4}", "2", True),
        ("(1/2)^{100}", r"\frac{1}{2^{100}}", True),
        ("1+x^2", "x^2+1", True),
        ("(1,2)", "1<x<2", True),  # the interval
        ("1<x<2", "(1,2)", False),  # may ask for the point
        # garbage
        ("²", "2", False),  # superscript two
        ("٢", "2", False),  # Arabic-Indic two
        ("\ud800", "2", False),  # half of a surrogate pair
        ("2", "\udfff", False),
        ("\x00\x07\x1b[2K", "2", False),
        (r"\frac{", "2", False),
        ("1" * 501, "1" * 501, False),  # nothing so long is an answer
    ],
)
def test_accuracy(boxed, answer, right):
    assert accuracy_reward(f"<think> hm </think> \\boxed{{{boxed}}}", answer) == float(right)


def test_without_a_box_no_answer_is_right():
    assert accuracy_reward("2", "2") == 0.0


def test_huge_garbage_is_wrong_and_quickly_so():
    rng = random.Random(0)
    started = time.perf_counter()
    for text in ("\\boxed{" + "9^{" * 200_000 + "}" * 200_001, "".join(rng.choices("\\{}$^_ab19", k=1_000_000))):
        assert accuracy_reward(text, "2") == 0.0
    assert time.perf_counter() - started < 10


def test_nothing_that_a_policy_writes_raises():
    rng = random.Random(0)
    pieces = ["\\frac", "\\sqrt", "\\text{", *"{}$^_\\1x=%,\n\x00\ud83d²"]
    for _ in range(60):
        written = "".join(rng.choices(pieces, k=rng.randrange(12))) + rng.randbytes(6).decode("latin-1")
        assert reward(f"<think></think>\\boxed{{{written}}}", "17") in (0.0, 0.1)
        assert reward(written, "17") == 0.0


# --- the format and the whole ---


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (r"<think> two reds </think> \boxed{2}", 1.0),
        ("\n" + r"<think></think>\boxed{2}" + "\n", 1.0),
        (r"<think> two </think> so it is \boxed{2}.", 1.0),
        (r"<think> two </think> \boxed{}", 0.0),  # boxes nothing
        (r"<think> two </think> 2", 0.0),  # no box
        (r"<think> \boxed{2} </think> 2", 0.0),  # boxed too early
        (r"<think> two \boxed{2}", 0.0),  # never stops thinking
        (r"two </think> \boxed{2}", 0.0),
        (r"well <think> two </think> \boxed{2}", 0.0),  # does not open with it
        (r"<think> a <think> b </think> \boxed{2}", 0.0),
        (r"<think> a </think> b </think> \boxed{2}", 0.0),
        (r"</think> two <think> \boxed{2}", 0.0),
        ("", 0.0),
    ],
)
def test_format(text, value):
    assert format_reward(text) == value


def authors_format(text):
    """Their rule: <think> at the very start, then </think>, then an opened box, then a closing brace, with anything between."""
    position = len("<think>") if text.startswith("<think>") else -1
    for piece in ("</think>", "\\boxed{", "}"):
        found = text.find(piece, position) if position >= 0 else -1
        position = found + len(piece) if found >= 0 else -1
    return float(position >= 0)


EDGES = [  # text, ours, theirs
    (r"<think> a </think> \boxed{2}", 1.0, 1.0),
    (r"<think></think>\boxed{2}", 1.0, 1.0),
    ("<think> a </think> \\boxed{2}.\n", 1.0, 1.0),
    ("\n" + r"<think> a </think> \boxed{2}", 1.0, 0.0),  # leading whitespace
    (r"<think> a </think> \boxed{}", 0.0, 1.0),
    (r"<think> a </think> \boxed{ }", 0.0, 1.0),
    (r"<think> a <think> b </think> \boxed{2}", 0.0, 1.0),
    (r"<think> a </think> b </think> \boxed{2}", 0.0, 1.0),
    (r"<think> a </think> <think> b </think> \boxed{2}", 0.0, 1.0),
    (r"<think> a </think> \boxed{{2}", 0.0, 1.0),  # unbalanced
    (r"<think> a </think> \boxed{2", 0.0, 0.0),
    (r"<think> a </think> 2", 0.0, 0.0),
    (r"<think> a \boxed{2} </think> 2", 0.0, 0.0),
    (r"<think> a \boxed{2}", 0.0, 0.0),
    (r"well <think> a </think> \boxed{2}", 0.0, 0.0),
]


@pytest.mark.parametrize(("text", "ours", "theirs"), EDGES)
def test_format_beside_the_authors(text, ours, theirs):
    assert (format_reward(text), authors_format(text)) == (ours, theirs)


def test_details_count_the_edge_strings_that_differ():
    differing = sum(ours != theirs for _, ours, theirs in EDGES)
    details = (Path(__file__).parent.parent / "docs" / "details.md").read_text()
    assert f"{differing} of {len(EDGES)} edge strings" in details


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (r"<think> two </think> \boxed{2}", 1.0),
        (r"\boxed{2}", 0.9),  # right, no format
        (r"<think> two </think> \boxed{3}", 0.1),  # format, wrong
        (r"\boxed{3}", 0.0),
        ("2", 0.0),
    ],
)
def test_reward_is_nine_tenths_correct_and_one_tenth_format(text, value):
    assert reward(text, "2") == pytest.approx(value)


# --- the worker ---


ENDLESS = r"\log 0.5", "10^{10}"  # small, and math-verify does not come back from it


def test_an_endless_computation_is_cut_short_by_its_cpu_time_and_the_worker_lives_on(verifier):
    assert verifier.ask("1/2", "0.5") is True
    first = verifier.worker
    assert verifier.ask(*ENDLESS) is None
    assert verifier.ask("1/3", "0.5") is False
    assert verifier.worker is first and first.poll() is None


@pytest.mark.parametrize(
    ("text", "too_much"),
    [
        (TOWER, True),
        ("2^{123456}", True),
        ("2^{12345}", False),
        ("(x+1)^{100}", True),
        ("(x+1)^{50}", False),
        ("(1/2)^{100}", False),  # no sum to write out
        ("(0.9)^{365}", False),
        ("3*(x-1)^{365}", True),
        ("100!", False),
        ("12345!", True),
        ("3!!", True),
        (r"\binom{12345}{2}", True),
        ("1e400", False),
        ("1e4000", True),
        (r"\sum_{i=1}^{9} i", True),
        ("(" * 10 + "1" + ")" * 10, False),
        ("(" * 11 + "1" + ")" * 11, True),
        (r"e^{-x^2}", False),
        (r"\frac{\sqrt{3}}{2}", False),
    ],
)
def test_what_asks_for_too_much_work_is_not_asked(text, too_much):
    assert oversized(text) == too_much


def test_what_cannot_be_decided_earns_nothing_and_is_known_as_undecided(verifier, monkeypatch):
    asked = []
    monkeypatch.setattr(verifier, "ask", lambda *pair: (asked.append(pair), None)[1])
    text = r"<think></think>\boxed{\cos 7}"
    for _ in range(3):
        assert reward(text, r"\sin 7") == 0.1 and undecided(text, r"\sin 7")
    assert asked == [(r"\cos 7", r"\sin 7")]  # the same pair is asked once
    assert not undecided(r"\boxed{2}", "2") and not undecided(r"\boxed{3}", "2") and not undecided("no box", "2")


def test_a_worker_that_died_between_questions_is_replaced(verifier):
    assert verifier.ask("1/2", "0.5") is True
    verifier.worker.kill()
    verifier.worker.wait()
    assert verifier.ask("1/2", "0.5") is True


def test_a_right_answer_is_right_though_the_worker_is_killed_over_it_or_suspended(verifier, monkeypatch):
    assert verifier.ask("1/2", "0.5") is True
    verifier.worker.kill()
    verifier.worker.wait()
    monkeypatch.setattr(verifier.worker, "poll", lambda: None)  # a death not yet noticed
    assert verifier.ask("1/2", "0.5") is True
    os.kill(verifier.worker.pid, signal.SIGSTOP)
    threading.Timer(1.0, os.kill, (verifier.worker.pid, signal.SIGCONT)).start()
    assert verifier.ask("2/4", "0.5") is True


def test_an_interrupted_question_leaves_no_answer_behind(verifier, monkeypatch):
    assert answers_match("1/2", "0.5")

    def interrupted(worker, candidate, answer):
        worker.stdin.write('["1/2", "0.5", 1.0]\n')
        worker.stdin.flush()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(verifier, "_exchange", interrupted)
        with pytest.raises(KeyboardInterrupt):
            verifier.ask("1/2", "0.5")
    assert not verifier.ask("1/3", "0.5")  # the "true" of the interrupted question must not be read here


def test_threads_share_the_worker():
    questions = [("1/2", "0.5"), ("1/3", "0.5"), (r"\frac{3}{4}", "0.75"), ("x", "y")] * 3
    verdicts = [None] * len(questions)

    def ask(i):
        verdicts[i] = answers_match(*questions[i])

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(len(questions))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert verdicts == [True, False, True, False] * 3


def test_the_worker_starts_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fresh = Verifier()
    assert fresh.ask("1/2", "0.5")
    fresh.worker.communicate()


def test_a_worker_that_cannot_start_is_an_error_not_a_wrong_answer(monkeypatch):
    monkeypatch.setattr(sys, "executable", "true")  # the command: ends at once and says nothing
    with pytest.raises(ChildProcessError, match="math-verify worker did not start: true must be able to import math_verify"):
        Verifier().ask("1/2", "0.5")


def test_a_worker_that_is_killed_while_it_starts_is_started_again(monkeypatch):
    real, started = subprocess.Popen, []

    def killed_at_first(command, **options):
        started.append(real(["true"] if not started else command, **options))
        return started[-1]

    monkeypatch.setattr(subprocess, "Popen", killed_at_first)
    fresh = Verifier()
    assert fresh.ask("1/2", "0.5") is True
    assert started[0].poll() is not None and fresh.worker is started[1]
    fresh.worker.communicate()


def test_a_lower_limit_of_the_system_changes_no_verdict():
    """Clusters set one; the child cannot raise it, and must not take that for "false"."""
    code = (
        "import resource; from cppo_ref.runs import verifier as v; low = v.MEMORY - 2**28; "
        "resource.setrlimit(resource.RLIMIT_AS, (low, low)); "
        r"print(v.Verifier().ask(r'\frac{1}{2}', '0.5'), v.Verifier().ask(r'\frac{1}{3}', '0.5'))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=os.environ)
    assert done.stdout.split() == ["True", "False"], done.stderr
