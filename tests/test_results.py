"""Every number in README, in the tiny VLM's card and in the results comes from a committed file."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("script", ["readme_tables.py", "model_card.py", "study_report.py"])
def test_tables_are_what_the_committed_results_give(script):
    check = subprocess.run([sys.executable, ROOT / "scripts" / script, "--check"], capture_output=True, text=True)
    assert check.returncode == 0, f"run python scripts/{script}\n{check.stderr}"
