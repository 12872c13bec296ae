"""The short version of `make reliability`, and its page."""

import csv
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT / "tests" / "reliability"), str(ROOT / "scripts")]

import faults  # noqa: E402
import inputs  # noqa: E402
import reliability_page  # noqa: E402
from harness import LOST, SURVIVED, Case, Test, run_test, summary  # noqa: E402

SHORT = [test for test in [*faults.TESTS, *inputs.TESTS] if test.short]


@pytest.mark.parametrize("test", SHORT, ids=lambda test: test.name)
def test_nothing_is_lost(test):
    spread = range(0, test.full, -(-test.full // test.short))  # over the cases of the full version
    cases = run_test(test, spread)
    assert [case for case in cases if case.verdict == LOST] == []
    assert summary(test, cases)["tried"] >= len(spread) >= 1


def test_cases_that_stand_in_the_record_are_not_run_again(tmp_path):
    asked = []
    test = Test("nothing", 1, 3, lambda number, rng: asked.append(number) or Case(f"case {number}", SURVIVED, count=2))
    first = run_test(test, [0, 1], tmp_path / "nothing.jsonl")
    assert run_test(test, range(3), tmp_path / "nothing.jsonl")[:2] == first
    assert asked == [0, 1, 2]


def test_the_page_holds_the_table_that_was_measured():
    assert reliability_page.page() == reliability_page.PAGE.read_text()


def test_nothing_was_lost_in_the_committed_run():
    with (ROOT / "data" / "results" / "reliability.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) >= 8
    for row in rows:
        assert int(row["lost"]) == 0, row
        assert int(row["survived"]) + int(row["refused"]) == int(row["tried"]), row
