"""Every number in README, in the tiny VLM's card and in the results comes from a committed file."""

import subprocess
import sys
from pathlib import Path

import pytest

from study.plan import Run
from study.store import read_csv

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("script", ["scripts/readme_tables.py", "scripts/model_card.py", "-m study.write_pages"])
def test_tables_are_what_the_committed_results_give(script):
    command = [sys.executable, *script.split(), "--check"]
    check = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert check.returncode == 0, f"run python {script}\n{check.stderr}"


@pytest.mark.parametrize("table", ["study.csv", "replica/study.csv"])
def test_every_row_of_the_study_is_of_the_settings_that_its_arm_has_today(table):
    rows = read_csv(ROOT / "data" / "results" / table)
    stale = [row for row in rows if row["config_hash"] != Run(row["base"], row["arm"], int(row["seed"])).config_hash]
    assert rows and not stale
