"""Write the table of docs/reliability.md from data/results/reliability.csv; with --check, only compare."""

import csv
import sys
from pathlib import Path

from blocks import filled, write_or_check

ROOT = Path(__file__).parent.parent
PAGE, RESULTS = ROOT / "docs" / "reliability.md", ROOT / "data" / "results" / "reliability.csv"


def table() -> str:
    """One line for each test."""
    with RESULTS.open() as file:
        rows = list(csv.DictReader(file))
    lines = ["| test | tried | survived | refused | lost | worst | commit |", "|---|---|---|---|---|---|---|"]
    return "\n".join([*lines, *("| " + " | ".join(row.values()).replace("`", "") + " |" for row in rows)])


def page() -> str:
    """The page as it should be."""
    return filled(PAGE.read_text(), "scripts/reliability_page.py", {"reliability": table})


if __name__ == "__main__":
    sys.exit(write_or_check({PAGE: page()}, __doc__))
