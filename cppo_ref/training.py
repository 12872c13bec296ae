"""Training: the loop around `step.cppo_step`, and the run folder that it leaves."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from tqdm import tqdm

from cppo_ref.config import CPPOConfig, InputError
from cppo_ref.evaluation import avg_at_k, sample_answers
from cppo_ref.examples.loading import first_rows, rows_for, step_rows
from cppo_ref.examples.overlong import check_first_rows, drop_overlong
from cppo_ref.examples.rows import Rows
from cppo_ref.runs.checkpoints import drop_later, latest_checkpoint, restore_checkpoint, save_adapter
from cppo_ref.runs.folder import RunFolder
from cppo_ref.runs.probe import probe_text, run_probe
from cppo_ref.runs.stopping import ZERO_STEPS, CollapseError, Stop, Stopped, collapsed, good_state_saved, stop_signals
from cppo_ref.step import cppo_step
from cppo_ref.vlm.devices import accelerator_for, check_one_process
from cppo_ref.vlm.policy import Policy, policy_for


@dataclass(frozen=True)
class TrainResult:
    """What a finished run left: one dict of scalars per step, and where things are."""

    history: list[dict[str, float]]
    output: Path
    adapter: Path


def train(config: CPPOConfig, *, resume: bool = False, checkpoint: str = "", progress: bool = True) -> TrainResult:
    """Train from `config` in `config.output`; with `resume`, go on from its newest whole checkpoint, or the named one.

    Raises:
        InputError: the folder holds a run already (or, resuming, one with other settings), or model or data are not usable,
            or this is one of several processes, or the GPU's memory ran out (what to lower is said, the last good state saved).
        NonFiniteError: a loss or gradient was not finite; the last good state was saved first.
        CollapseError: a run that had earned rewards earns none any more; the best checkpoint was kept.
        Stopped: Ctrl-C or SIGTERM; the step was finished and a checkpoint saved.
    """
    check_one_process()
    if checkpoint and not resume:
        raise InputError(
            f"checkpoint is {checkpoint!r}, which a run goes on from with --resume only: add it, or leave this out"
        )
    run = RunFolder.check(config, resume)
    with stop_signals() as stop, run.claim(resume):
        found = latest_checkpoint(run.path, checkpoint) if resume else None
        rows, policy = rows_for(config), policy_for(config)
        rows = drop_overlong(policy, rows, config, progress=progress)
        accelerator = accelerator_for(policy, log_with=list(config.trackers) or None, project_dir=config.output)
        optimizer = torch.optim.AdamW(policy.trainable, lr=config.learning_rate, weight_decay=config.weight_decay)
        policy.model, optimizer = accelerator.prepare(policy.model, optimizer)
        start = restore_checkpoint(found, policy, optimizer) if found else 0
        if start > config.steps:
            raise InputError(f"run {config.output!r} has done {start} steps, more than {config.steps}: raise --steps")
        check_first_rows(policy, step_rows(rows, config.prompts_per_step, start, config.seed), config)
        if config.probe_rows > 0 and start == 0:
            print(probe_text(run_probe(policy, rows, config, config.probe_rows), config))
        if found and checkpoint:  # before the logs follow: a kill in between must not lead back to the later ones
            drop_later(found)
        run.begin(start, found, policy.computing)
        if config.trackers:
            accelerator.init_trackers("cppo_ref", {k: str(v) for k, v in config.to_dict().items()})
        with tqdm(range(start, config.steps), initial=start, total=config.steps, desc="train", disable=not progress) as bar:
            run_steps(policy, optimizer, rows, run, bar, accelerator, stop)
        accelerator.end_training()
        return TrainResult(run.history, run.path, save_adapter(run.path / "adapter", policy))


def run_steps(
    policy: Policy, optimizer: Any, rows: Rows, run: RunFolder, bar: "tqdm[int]", accelerator: Accelerator, stop: Stop
) -> None:
    """Take the steps of `bar`: one after the other, logged, and saved when a checkpoint is due."""
    config, saved, done = run.config, time.monotonic(), 0
    stop.patient = True
    for done, step in enumerate(bar, start=1):
        optimizer.param_groups[0]["lr"] = config.learning_rate_at(step)
        with good_state_saved(run, step, policy, optimizer):
            prompts = step_rows(rows, config.prompts_per_step, step, config.seed)
            metrics, batch = cppo_step(policy, optimizer, prompts, config, step, accelerator=accelerator)
        run.log(metrics, batch)
        accelerator.log(metrics.scalars(), step=step)
        bar.set_postfix(metrics.summary())
        if collapsed(run.history, done):
            raise CollapseError(f"step {step}: no reward for {ZERO_STEPS} steps, the policy has collapsed; {run.way_back()}")
        due = ((step + 1) % config.save_every == 0 and not stop.number) or step + 1 == config.steps
        if due or stop.number or time.monotonic() - saved > 60 * config.save_minutes:
            score = validate(policy, config) if due else None
            path, saved = run.save(step + 1, policy, optimizer, score), time.monotonic()
            if stop.number and not due:
                raise Stopped(f"stopped after step {step}, all of it in {path}: go on with `{run.command}`", stop.number)
    stop.patient = False


def validate(policy: Policy, config: CPPOConfig) -> float | None:
    """avg@4 on the first `eval_rows` validation images; None on other data than the shape world or with eval_rows 0."""
    if config.eval_rows == 0 or config.data != "shapes":
        return None
    rows = first_rows(rows_for(config, "validation"), config.eval_rows)
    sampling = {"batch_size": config.rollout_batch_size, "temperature": config.temperature, "seed": config.seed}
    answers = sample_answers(policy, rows, samples=4, max_new_tokens=config.max_new_tokens, **sampling)
    return avg_at_k(answers).value
