"""The study's command: which runs are missing, running them side by side, merging, and checking old rows again."""

import csv
import io
import multiprocessing
import os
import random
import statistics
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cppo_ref.config import InputError, setting
from study import store
from study.acceptance import Acceptance
from study.arms import STEPS, SUITES, arms_of
from study.bases import BASES, base_digest, base_named, make_base
from study.plan import Run, plan, seeds_in

SECONDS_PER_RUN = 120.0  # of a run of 80 steps, until there are measured ones
UNTRAINED = 25  # an evaluation takes about as long as that many steps
ROUNDING = 1e-5  # two processors with one instruction set may differ in the last bits of a mean
# On another machine (other versions, instruction set or arithmetic) other words are sampled: shares of 300 images × 8 samples
# may differ by four standard errors, √(2 · 0.25 / 2400) each; the measures on 100 images by four of theirs.
TOLERANCE = 0.06
SIDE_TOLERANCE = 0.1
SIDE_METRICS = ("consistency", "sensitivity", "detector_auroc")
NOT_REPEATED = {"seconds", "wall_seconds", "seconds_to_80", "commit", "versions"}


@dataclass(frozen=True)
class StudyOptions:
    """Run the study, or the part of it that is missing; what is finished is kept."""

    suite: str = setting("main", f"one of {', '.join(SUITES)}")
    base: str = setting("tiny", f"base models, separated by commas: {', '.join(BASES)}; or all")
    arms: str = setting("", "arms of the suite, separated by commas; empty: all of them")
    seeds: str = setting("0-9", "0-9 or 0,3,5; from 100 on, scored on validation images")
    workers: int = setting(2, "runs side by side, one process and one thread each")
    steps: int = setting(STEPS, "training steps (an arm may take a multiple)")
    images: int = setting(300, "images per split of the final evaluation")
    out: str = setting("data/results", "folder of study.csv, curves.parquet and detector.csv")
    dry_run: bool = setting(False, "list what would run, and how long it would take")
    verify: bool = setting(False, "run two finished rows again and compare")
    draw: int = setting(0, "seed of the choice that --verify makes")
    make_base: str = setting("", "pretrain this base model instead")


def run_study(options: StudyOptions) -> None:
    """Do what the options ask for; InputError for what cannot be done, or if runs failed."""
    if options.make_base:
        print(f"base in {make_base(options.make_base)}")
        return
    for name in ("workers", "steps", "images"):
        if getattr(options, name) < 1:
            raise InputError(f"{name} is {getattr(options, name)}, expected 1 or more")
    out = Path(options.out)
    bases = list(BASES) if options.base == "all" else options.base.split(",")
    for base in bases:
        base_digest(base_named(base).name)
    arms = arms_of(options.suite, options.arms)
    runs = plan(bases, arms, seeds_in(options.seeds), steps=options.steps, images=options.images)
    if options.verify:
        return verify(runs, out, options.draw)
    done = store.finished(runs, out)
    missing = [run for run in runs if run not in done]
    hours = sum(estimate(missing, store.read_csv(out / "study.csv"))) / options.workers / 3600
    print(f"{len(runs)} runs, {len(done)} finished, {len(missing)} to go: about {hours:.1f} h with {options.workers} workers")
    known = acceptance_lines(runs, out)
    print(*known, sep="\n", end="\n" * bool(known))
    if options.dry_run:
        print("\n".join(f"{run.base:<15}{run.arm:<28}seed {run.seed:<5}{run.config_hash}" for run in missing))
        return
    store.refuse_to_replace(out, runs)
    store.merge(out, runs)
    run_all(missing, out, options.workers)
    print("\n".join(line for line in acceptance_lines(runs, out) if line not in known))


def acceptance_lines(runs: Sequence[Run], out: Path) -> list[str]:
    """What each untrained base of another world shows, and whether it is accepted."""
    lines = []
    for folder in store.by_folder(runs, out):
        for row in store.read_csv(folder / "acceptance.csv"):
            found = Acceptance.of(row)
            numbers = ", ".join(f"{name} {value:.2f}" for name, value in asdict(found).items())
            lines.append(f"{row['base']} seed {row['seed']}: {numbers}: {'; '.join(found.failures()) or 'accepted'}")
    return lines


def estimate(runs: Sequence[Run], rows: store.Table) -> list[float]:
    """Seconds of each run: the mean of its arm's measured rows; of all trained rows, per step, for an arm without any."""
    per_arm: dict[str, list[float]] = {}
    for row in rows:
        if int(row["steps"]):
            per_arm.setdefault(row["arm"], []).append(float(row["wall_seconds"]) / int(row["steps"]))
    everything = [seconds for values in per_arm.values() for seconds in values]
    default = statistics.mean(everything) if everything else SECONDS_PER_RUN / STEPS
    return [statistics.mean(per_arm.get(run.arm, [default])) * (run.trained_steps or UNTRAINED) for run in runs]


def run_all(missing: Sequence[Run], out: Path, workers: int) -> None:
    """Execute the missing runs, `workers` at a time and in their order; the tables grow after each one.

    Raises:
        InputError: some runs failed; the others were finished first.
    """
    start, failures = time.perf_counter(), []
    os.environ.update(OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1", TQDM_DISABLE="1")  # the runs' processes inherit it
    with ThreadPoolExecutor(workers) as pool:
        futures = {pool.submit(execute_apart, run): run for run in missing}
        try:
            for number, future in enumerate(as_completed(futures), start=1):
                run, problem = futures[future], future.result()
                if problem:
                    failures.append(f"{' '.join(map(str, run.key))}: {problem}")
                store.merge(out, [run])
                minutes = (time.perf_counter() - start) / 60
                print(
                    f"{number}/{len(missing)}  {problem or 'done'}  {' '.join(map(str, run.key))}  {minutes:.0f} min",
                    flush=True,
                )
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    if failures:
        raise InputError(f"{len(failures)} of {len(missing)} runs failed ({failures[0]}): start again to repeat only those")


def execute_apart(run: Run) -> str:
    """Execute a run in a process of its own, on one thread; "" if it wrote its result, else why not, in one line.

    The processes are forks of one that has imported everything: an import takes eight seconds, a tenth of a run.
    """
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["study.worker"])
    log = store.result_path(run).with_suffix(".log")
    log.parent.mkdir(parents=True, exist_ok=True)
    process = processes.Process(target=execute_logged, args=(run.to_json(), str(log)))
    process.start()
    process.join()
    if process.exitcode == 0 and store.result_path(run).is_file():
        log.unlink()
        return ""
    last = log.read_text().strip().splitlines()[-1:] if log.is_file() else []
    return (last or [f"exit status {process.exitcode}"])[0]


def execute_logged(argument: str, log: str) -> None:
    """In the run's process: execute it; what it prints goes to the file `log`."""
    with open(log, "w") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    from study.worker import main

    main(argument)


def verify(runs: Sequence[Run], out: Path, draw: int, count: int = 2) -> None:
    """Run `count` finished rows again and compare; says whether they are the same or only within a tolerance.

    Raises:
        InputError: no finished rows with the present settings, or a value that differs by more.
    """
    from study.worker import execute

    rows = [row for folder in store.by_folder(runs, out) for row in store.read_csv(folder / "study.csv")]
    table = {(row["base"], row["level"], row["arm"], int(row["seed"])): row for row in rows}
    known = [run for run in runs if run.key in table and table[run.key]["config_hash"] == run.config_hash]
    if not known:
        raise InputError(f"{out / 'study.csv'} has no row of these runs with the present settings: run the study first")
    for run in random.Random(draw).sample(known, min(count, len(known))):
        stored = table[run.key]
        text = store.csv_bytes([execute(run)["row"]], list(stored)).decode()
        (again,) = csv.DictReader(io.StringIO(text))
        name, moved = " ".join(map(str, run.key)), differences(stored, again, exact=True)
        if wrong := moved and differences(stored, again, exact=False):
            raise InputError(f"{name} is not what is stored: {'; '.join(wrong)}")
        why = "changed code, or another processor" if again["versions"] == stored["versions"] else "another machine"
        print(f"{name}: {f'within the tolerance ({why}): {moved[0]}' if moved else 'the same'}")


def differences(stored: dict[str, Any], again: dict[str, Any], exact: bool) -> list[str]:
    """The values that differ by more than rounding, or if not `exact` than a tolerance; text and counts must be equal."""
    found = []
    for name in stored:
        old, new = stored[name], again[name]
        if name in NOT_REPEATED or old == new or (name == "steps_to_80" and not exact):
            continue
        tolerance = ROUNDING if exact else SIDE_TOLERANCE if name in SIDE_METRICS else TOLERANCE
        if name not in (*store.METRICS, *store.UNSEEN_METRICS) or "" in (old, new) or abs(float(old) - float(new)) > tolerance:
            found.append(f"{name} was {old} and is {new}")
    return found
