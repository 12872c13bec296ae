"""make reliability: all attacks, seeded, side by side, resumable; the table goes to data/results/reliability.csv.

What was tried stands in build/reliability/COMMIT, so that it is not tried again. --minutes: how long the soak takes.
"""

import argparse
import csv
import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(Path(__file__).parent)]
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ["OMP_NUM_THREADS"] = "1"  # a forked child would wait forever for its parent's other threads

import faults  # noqa: E402
import inputs  # noqa: E402
from harness import Test, run_test, summary  # noqa: E402

TABLE = ROOT / "data" / "results" / "reliability.csv"


def commit() -> str:
    """The commit that is tested."""
    return subprocess.check_output(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, text=True).strip()


def tests(minutes: float) -> list[Test]:
    """All rows of the table."""
    soak = Test("soak: a run in one process, MB per 100 steps", 0, 1, lambda number, rng: faults.soak(minutes), "MB")
    return [*faults.TESTS, *inputs.TESTS, soak]


def main() -> int:
    """Run shard by shard, or this shard; the exit status is 1 if anything was lost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--only", default="", help="tests whose name matches this")
    parser.add_argument("--shard", type=int)
    options = parser.parse_args()
    folder = ROOT / "build" / "reliability" / commit()
    folder.mkdir(parents=True, exist_ok=True)
    chosen = [test for test in tests(options.minutes) if re.search(options.only, test.name)]
    records = {test.name: folder / f"{re.sub('[^a-z]+', '-', test.name.lower())}.jsonl" for test in chosen}
    if options.shard is not None:
        for test in chosen:
            run_test(test, range(options.shard, test.full, options.jobs), records[test.name])
        return 0
    words = [sys.executable, __file__, *sys.argv[1:], f"--jobs={options.jobs}"]
    shards = [subprocess.Popen([*words, f"--shard={shard}"]) for shard in range(options.jobs)]
    if any([shard.wait() for shard in shards]):
        return 2
    rows = [summary(test, run_test(test, range(test.full), records[test.name])) | {"commit": commit()} for test in chosen]
    if not options.only:
        with TABLE.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0], lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
    print(*(" ".join(map(str, row.values())) for row in rows), sep="\n")
    return int(any(row["lost"] for row in rows))


if __name__ == "__main__":
    sys.exit(main())
