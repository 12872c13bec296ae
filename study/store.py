"""Where results live: one JSON file per finished run, and the tables that are merged from them.

A file is written aside and renamed, so that a run that was killed leaves nothing and costs only itself. The tables are sorted
and hold one run per (base, level, arm, seed): the newest.
"""

import csv
import dataclasses
import io
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa  # datasets brings it along
import pyarrow.parquet as pq

from cppo_ref.config import InputError
from study.acceptance import Acceptance
from study.plan import Run
from study.worlds import WORLDS

RUNS_FOLDER = Path("build/study/runs")
KEY = ("base", "level", "arm", "seed")
METRICS = (
    *("avg_at_8", "greedy", "perception", "reasoning", "shift_avg_at_8", "shift_greedy", "shift_perception", "shift_reasoning"),
    *("consistency", "sensitivity", "detector_auroc", "steps_to_80", "seconds_to_80"),
)
UNSEEN_METRICS = ("unseen_avg_at_8", "unseen_greedy", "unseen_perception", "unseen_reasoning", "blank_greedy")
ORIGIN = ("seconds", "wall_seconds", "images", "config_hash", "commit", "versions")
COLUMNS = (*KEY, "split", "steps", *METRICS, *ORIGIN)
WORLD_COLUMNS = (*KEY, "split", "steps", *METRICS, *UNSEEN_METRICS, *ORIGIN)  # of data/results/worlds/study.csv
CURVE_COLUMNS = (
    *(*KEY, "step", "train_seconds", "reward", "accuracy", "zero_variance_groups", "kl", "cpl", "grad_norm", "gated_rows"),
    *("perception_tokens", "entropy_shift", "batch_auroc", "gradient_cosine", "gradient_ratio", "validation_avg_at_8"),
    "validation_shift_avg_at_8",
)
DETECTOR_KEY = (*KEY, "view", "strength")
DETECTOR_COLUMNS = (*DETECTOR_KEY, "auroc_absolute", "auroc_normalized", "precision", "recall", "tokens")
DETECTOR_COLUMNS += ("config_hash", "commit", "versions")
ACCEPTANCE_COLUMNS = (*KEY, *(field.name for field in dataclasses.fields(Acceptance)), "config_hash", "commit", "versions")
Table = list[dict[str, Any]]


def write_aside(path: Path, content: bytes) -> None:
    """Write a file so that it is whole or absent, whatever happens."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}.part")
    aside.write_bytes(content)
    aside.rename(path)


def result_path(run: Run) -> Path:
    """The JSON file of a finished run: {"row", "curve", "detector"}."""
    name = "-".join(str(part) for part in (*run.key, run.config_hash))
    return RUNS_FOLDER / f"{name}.json"


def finished(runs: Iterable[Run], out: Path) -> set[Run]:
    """The runs that have a result with the same config hash: in build/study/runs or in the merged table."""
    merged = {(*_key(row), row["config_hash"]) for folder in by_folder(runs, out) for row in read_csv(folder / "study.csv")}
    return {run for run in runs if (*run.key, run.config_hash) in merged or result_path(run).is_file()}


def refuse_to_replace(out: Path, runs: Iterable[Run]) -> None:
    """InputError if one of `runs` would replace a row of `out` that was made with other settings."""
    rows = [row for folder in by_folder(runs, out) for row in read_csv(folder / "study.csv")]
    hashes = {_key(row): row["config_hash"] for row in rows}
    for run in runs:
        if hashes.get(run.key, run.config_hash) != run.config_hash:
            name = " ".join(map(str, run.key))
            raise InputError(
                f"{out / 'study.csv'} has {name} with other settings ({hashes[run.key]} instead of {run.config_hash}): "
                "choose another --out, or delete that row first"
            )


def by_folder(runs: Iterable[Run], out: Path) -> dict[Path, list[Run]]:
    """The runs by the folder of their tables: `out`, and `out`/worlds for the worlds of the second study."""
    folders: dict[Path, list[Run]] = {}
    for run in runs:
        folders.setdefault(out / "worlds" if run.level in WORLDS else out, []).append(run)
    return folders


def merge(out: Path, runs: Iterable[Run]) -> int:
    """Bring the finished ones of `runs` into the tables of `out`; returns the number of rows of its study.csv."""
    return sum(_merge(folder, part) for folder, part in by_folder(runs, out).items())


def _merge(out: Path, runs: Iterable[Run]) -> int:
    columns = WORLD_COLUMNS if out.name == "worlds" else COLUMNS
    results = [json.loads(path.read_text()) for run in runs if (path := result_path(run)).is_file()]
    rows = _merged(read_csv(out / "study.csv"), [[result["row"]] for result in results])
    write_aside(out / "study.csv", csv_bytes(rows, columns))
    curves = _merged(read_parquet(out / "curves.parquet"), [result["curve"] for result in results], ("step",))
    write_aside(out / "curves.parquet", parquet_bytes(curves))
    detector = [result["detector"] for result in results if result["detector"]]
    if detector:
        table = _merged(read_csv(out / "detector.csv"), detector, ("view", "strength"))
        write_aside(out / "detector.csv", csv_bytes(table, DETECTOR_COLUMNS))
    acceptance = [result["acceptance"] for result in results if result.get("acceptance")]
    if acceptance:
        table = _merged(read_csv(out / "acceptance.csv"), acceptance)
        write_aside(out / "acceptance.csv", csv_bytes(table, ACCEPTANCE_COLUMNS))
    return len(rows)


def _merged(old: Table, results: Sequence[Table], order: tuple[str, ...] = ()) -> Table:
    """`old` rows, those of the same runs replaced by `results`, sorted by run and `order`."""
    fresh = {_key(rows[0]): rows for rows in results if rows}
    kept = [row for row in old if _key(row) not in fresh]
    table = [*kept, *(row for rows in fresh.values() for row in rows)]
    return sorted(table, key=lambda row: (*_key(row), *(_sortable(row[name]) for name in order)))


def _key(row: Mapping[str, Any]) -> tuple[str, str, str, int]:
    return row["base"], row["level"], row["arm"], int(row["seed"])


def _sortable(value: Any) -> Any:
    try:
        return float(value)
    except ValueError:
        return value


def read_csv(path: Path) -> Table:
    """The rows of a table, numbers as text; none if there is no such file."""
    return list(csv.DictReader(io.StringIO(path.read_text()))) if path.is_file() else []


def csv_bytes(rows: Table, columns: Sequence[str]) -> bytes:
    """A table as CSV; numbers with six digits after the point, NaN as an empty cell. KeyError if a row lacks a column."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([_cell(row[name]) for name in columns] for row in rows)
    return text.getvalue().encode()


def _cell(value: Any) -> Any:
    if not isinstance(value, float):
        return "" if value is None else value
    return "" if value != value else f"{value:.6f}".rstrip("0").rstrip(".")


def read_parquet(path: Path) -> Table:
    """The rows of the curves; none if there is no such file."""
    return pq.read_table(path).to_pylist() if path.is_file() else []


def parquet_bytes(rows: Table) -> bytes:
    """Curves as Parquet: text and whole numbers as they are, everything else as float64 (null where nothing was measured)."""
    types = {"base": pa.string(), "level": pa.string(), "arm": pa.string(), "seed": pa.int64(), "step": pa.int64()}
    schema = pa.schema([(name, types.get(name, pa.float64())) for name in CURVE_COLUMNS])
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist([{name: row[name] for name in CURVE_COLUMNS} for row in rows], schema), buffer)
    return buffer.getvalue()
