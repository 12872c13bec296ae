"""One run of the study, in a process and on a thread of its own."""

import json
import platform
import subprocess
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import peft
import torch
import transformers
from accelerate import Accelerator

from cppo_ref.config import CPPOConfig
from cppo_ref.examples.loading import load_rows, step_numbers, step_rows
from cppo_ref.rollouts import Batch
from cppo_ref.runs.commands import quiet
from cppo_ref.runs.detector import evaluate_detector
from cppo_ref.runs.metrics import StepMetrics
from cppo_ref.runs.report import DETECTOR_VIEWS
from cppo_ref.step import NonFiniteError, cppo_step
from cppo_ref.vlm.policy import Policy, policy_for
from study.acceptance import accept
from study.hints import LEVEL, hinted_rows
from study.metrics import Examples, evaluation_rows, final_metrics, reach
from study.plan import Run
from study.probes import PROBE_IMAGES, batch_auroc, gradient_alignment, parameters_at, snapshot, validation
from study.store import CURVE_COLUMNS, KEY, result_path, write_aside
from study.worlds import WORLDS
from study.worlds.rows import world_rows

ARITHMETIC = "packed prompts"  # in the rows' `versions`: what rounds alike
TRAIN_ROWS = 1200  # of a world: more than the longest arm sees
TARGET = 0.8  # avg@8 on plain validation images, for speed to a target


def _git(*arguments: str) -> str:
    """What git says of the repository; "" where there is no git."""
    command = ["git", "--no-optional-locks", "-C", str(Path(__file__).parents[1]), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout


# Asked when the code is imported, once for all runs that are forked from it: the files may change while they go on.
COMMIT = _git("describe", "--always").strip() + ("-dirty" if _git("status", "--porcelain", "--", "cppo_ref", "study") else "")


def execute(run: Run) -> dict[str, Any]:
    """Train and evaluate; returns {"row": of study.csv, "curve": …, "detector": …, "acceptance": rows of the other tables}.

    A loss that is not finite ends the training; the last good policy is evaluated, and `steps` says how far it got.
    """
    torch.set_num_threads(1)
    start, config, made_by = time.perf_counter(), run.config, provenance(run)
    policy = policy_for(config)
    curve = train_arm(policy, run, config)
    rows = evaluation_rows(run.level, run.split, run.images)
    measured = final_metrics(policy, rows, run.seed)
    detector = [] if run.trained_steps else detector_rows(policy, rows["plain"], run)
    scored = [(point, point["validation_avg_at_8"]) for point in curve if not _missing(point["validation_avg_at_8"])]
    row = {
        **dict(zip(KEY, run.key, strict=True)),
        "split": run.split,
        "steps": curve[-1]["step"],
        **measured,
        "steps_to_80": reach([(point["step"], score) for point, score in scored], TARGET),
        "seconds_to_80": reach([(point["train_seconds"], score) for point, score in scored], TARGET),
        "seconds": curve[-1]["train_seconds"],
        "wall_seconds": time.perf_counter() - start,
        "images": len(rows["plain"]),  # the validation split has 200
        **made_by,
    }
    return {"row": row, "curve": curve, "detector": detector, "acceptance": acceptance_rows(policy, run)}


def train_arm(policy: Policy, run: Run, config: CPPOConfig) -> list[dict[str, Any]]:
    """Train for the run's steps; one record per step, after a record of the policy before the first one."""
    rows = training_rows(run.level, config)
    probe_rows = evaluation_rows(run.level, "validation", min(PROBE_IMAGES, run.images))
    optimizer = torch.optim.AdamW(policy.trainable, lr=config.learning_rate, weight_decay=config.weight_decay)
    accelerator = Accelerator(cpu=True)
    curve, seconds = [_record(run, 0, train_seconds=0.0, **validation(policy, probe_rows, run.seed))], 0.0
    for step in range(run.trained_steps):
        optimizer.param_groups[0]["lr"] = config.learning_rate_at(step)
        before, batch_rows = snapshot(policy), rows(step)
        parts = run.controls.parts(policy, config, step)
        start = time.process_time()  # of this one thread: other work on the machine does not count
        try:
            metrics, batch = cppo_step(policy, optimizer, batch_rows, config, step, parts=parts, accelerator=accelerator)
        except NonFiniteError:
            break
        seconds += time.process_time() - start
        probed = {}
        if (step + 1) % run.probe_every == 0 or step + 1 == run.trained_steps:
            with parameters_at(policy, before):
                probed = gradient_alignment(policy, batch, config, parts)
            probed |= validation(policy, probe_rows, run.seed)
        curve.append(_record(run, step + 1, train_seconds=seconds, **_scalars(metrics, batch, policy), **probed))
    return curve


def training_rows(level: str, config: CPPOConfig) -> Callable[[int], list[dict[str, Any]]]:
    """What an arm trains on: the rows of each step, in the same order for all arms of a seed."""
    if level in WORLDS:
        drawn = world_rows(WORLDS[level], "train", TRAIN_ROWS)
        return lambda step: [drawn[i] for i in step_numbers(len(drawn), config.prompts_per_step, step, config.seed)]
    rows = hinted_rows("train") if level == LEVEL else load_rows(config.data, "train", config.level)
    return lambda step: step_rows(rows, config.prompts_per_step, step, config.seed)


def _scalars(metrics: StepMetrics, batch: Batch, policy: Policy) -> dict[str, float]:
    known = {name: value for name, value in metrics.scalars().items() if name in CURVE_COLUMNS and name != "step"}
    return known | {"batch_auroc": batch_auroc(policy, batch)}


def _record(run: Run, step: int, **values: float) -> dict[str, Any]:
    empty = dict.fromkeys(CURVE_COLUMNS, float("nan"))
    return empty | dict(zip(KEY, run.key, strict=True)) | {"step": step} | values


def _missing(value: float) -> bool:
    return value != value


def acceptance_rows(policy: Policy, run: Run) -> list[dict[str, Any]]:
    """What a base of another world must show, before any training; none for the others."""
    if run.level not in WORLDS or run.trained_steps:
        return []
    return [dict(zip(KEY, run.key, strict=True)) | asdict(accept(policy, run.level, run.seed)) | provenance(run)]


def detector_rows(policy: Policy, rows: Examples, run: Run) -> list[dict[str, Any]]:
    """How well ΔH finds the perception tokens under each removing view, before any training."""
    return [
        dict(zip(KEY, run.key, strict=True))
        | {"view": view, "strength": strength}
        | asdict(evaluate_detector(policy, rows, removing=[view], strength=strength, seed=run.seed))
        | provenance(run)
        for view, strength in DETECTOR_VIEWS
    ]


def provenance(run: Run) -> dict[str, str]:
    """What made a row: the hash of its settings, the commit of the package, and the versions that decide its bits."""
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}, peft {peft.__version__}"
    machine = f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
    return {"config_hash": run.config_hash, "commit": COMMIT, "versions": f"{versions}, {machine}, {ARITHMETIC}"}


def main(argument: str) -> None:
    """Execute the run that `argument` describes and write its result."""
    quiet()
    run = Run(**json.loads(argument))
    write_aside(result_path(run), (json.dumps(execute(run)) + "\n").encode())
