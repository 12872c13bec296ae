"""Training: `cppo_step` is the paper's algorithm, read top to bottom; `train` is the loop around it.

Paper: rollouts, rewards, advantages, views, entropy shift, perception tokens, CPL gated by A > 0, added to GRPO's loss.
Here:  the same, with the perturbed forwards run only for rows with A > 0.
Why:   the gate multiplies all other rows by zero, so loss and gradient are unchanged. Every random draw is a function of
       (seed, step): a resumed run is the run that was never stopped, bit for bit (in float16 but for the loss scale).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from tqdm import tqdm

from cppo_ref.checkpoints import latest_checkpoint, restore_checkpoint, save_adapter, save_checkpoint
from cppo_ref.config import CPPOConfig, InputError
from cppo_ref.controls import augment_rows, choose_tokens
from cppo_ref.datasets import load_rows, row_at, rows_for, step_rows
from cppo_ref.evaluation import avg_at_k, sample_answers
from cppo_ref.grpo import group_advantages, zero_variance
from cppo_ref.memory import advice
from cppo_ref.metrics import PhaseClock, StepMetrics
from cppo_ref.overlong import check_answers_fit, drop_overlong
from cppo_ref.perception import entropy_shift
from cppo_ref.perturbations import preserve, remove, view_rng
from cppo_ref.policy import Policy, policy_for
from cppo_ref.prompts import Prompts
from cppo_ref.rewards import reward
from cppo_ref.rollouts import Rollouts, generate_rollouts
from cppo_ref.rows import Rows, images_of
from cppo_ref.runs import RunFolder
from cppo_ref.updates import Batch, NonFiniteError, learnable, minibatches, score_without_graph, stream_seed, update


def cppo_step(
    policy: Policy,
    optimizer: torch.optim.Optimizer,
    rows: list[dict[str, Any]],
    config: CPPOConfig,
    step: int,
    *,
    accelerator: Accelerator | None = None,
) -> tuple[StepMetrics, Batch]:
    """One step of CPPO on `rows`; returns its metrics and the batch it learned from.

    Raises:
        NonFiniteError: a loss or gradient is not finite; the optimizer was not stepped on it.
    """
    accelerator = accelerator or accelerator_for(policy)
    clock = PhaseClock(policy.device)
    with clock("rollouts"):
        rng = torch.Generator().manual_seed(stream_seed(config.seed, step, 0))
        rollouts = generate_rollouts(
            policy,
            augment_rows(rows, config, step),
            group_size=config.group_size,
            max_new_tokens=config.max_new_tokens,
            temperature=config.temperature,
            batch_size=config.rollout_batch_size,
            rng=rng,
        )
    with clock("rewards"):
        rewards = torch.tensor([reward(t, a) for t, a in zip(rollouts.texts, rollouts.answers, strict=True)])
        advantages = group_advantages(rewards, config.group_size, scale=config.advantage_scale).to(policy.device)
        gate = advantages > 0 if config.advantage_gate else torch.ones_like(advantages, dtype=torch.bool)
        batch = Batch(rollouts, rewards, advantages, gate)
    with clock("reference"):
        batch = with_reference(policy, batch, config)
    with clock("detection"):
        batch = with_perception_tokens(policy, batch, config, step)
    with clock("update"):
        updates = [
            update(policy, optimizer, batch, minibatch, config, accelerator)
            for minibatch in minibatches(len(rewards), config, step)
            if learnable(batch, minibatch, config)
        ]
    return step_metrics(batch, updates, config, step, optimizer, clock), batch


def with_reference(policy: Policy, batch: Batch, config: CPPOConfig) -> Batch:
    """Add log π_ref of the sampled tokens: the same model, adapters off. Nothing to do when β = 0."""
    if config.kl_weight == 0:
        return batch
    everyone = torch.ones_like(batch.gate)
    with policy.reference():
        ref_logprobs, _ = score_without_graph(policy, batch.rollouts, batch.rollouts.prompts, everyone, config)
    return replace(batch, ref_logprobs=ref_logprobs)


def with_perception_tokens(policy: Policy, batch: Batch, config: CPPOConfig, step: int) -> Batch:
    """Add old log-probabilities (off-policy), views, entropy shift and perception tokens (λ > 0) of the gated rows."""
    rollouts, gate = batch.rollouts, batch.gate
    detect = config.cpl_weight > 0
    scored = torch.ones_like(gate) if not config.on_policy else gate & detect
    logprobs, entropy = score_without_graph(policy, rollouts, rollouts.prompts, scored, config)
    if not config.on_policy:
        batch = replace(batch, old_logprobs=logprobs)
    if not detect:
        return batch
    preserved, removed = encode_views(policy, rollouts, config, step)
    _, removed_entropy = score_without_graph(policy, rollouts, removed, gate, config)
    gated_tokens = rollouts.completion_mask & gate[:, None]
    shift = entropy_shift(entropy, removed_entropy, gated_tokens)
    selected = choose_tokens(policy, rollouts, shift, removed_entropy, gated_tokens, config, step)
    return replace(batch, shift=shift, selected=selected, preserved=preserved, removed=removed)


def encode_views(policy: Policy, rollouts: Rollouts, config: CPPOConfig, step: int) -> tuple[Prompts, Prompts]:
    """The P prompts with the preserving view for the image, and with the removing view."""
    questions = [row["question"] for row in rollouts.rows]
    preserved, removed = [], []
    for i, row in enumerate(rollouts.rows):
        plus, minus = view_rng(config.seed, step, i, "preserve"), view_rng(config.seed, step, i, "remove")
        preserved.append([preserve(image, plus, config.preserving, config.preserving_strength) for image in images_of(row)])
        removed.append([remove(image, minus, config.removing, config.removing_strength) for image in images_of(row)])
    return policy.encode(preserved, questions), policy.encode(removed, questions)


def step_metrics(
    batch: Batch, updates: list[dict[str, float]], config: CPPOConfig, step: int, optimizer: Any, clock: PhaseClock
) -> StepMetrics:
    """Boil a batch and its updates down to the scalars of `StepMetrics`."""
    mask = batch.rollouts.completion_mask
    lengths = mask.sum(dim=1).float()
    correct = batch.rewards > 0.5  # a right answer alone earns 0.9, the format alone 0.1
    gated_tokens = mask & batch.gate[:, None]
    tokens = max(int(gated_tokens.sum()), 1)
    names = ("policy_loss", "kl", "cpl", "grad_norm", "clip_fraction")
    means = {name: sum(u[name] for u in updates) / max(len(updates), 1) for name in names}
    return StepMetrics(
        step=step,
        reward=batch.rewards.mean().item(),
        accuracy=correct.float().mean().item(),
        format=((batch.rewards - 0.9 * correct) / 0.1).mean().item(),
        updates=len(updates),
        zero_variance_groups=zero_variance(batch.rewards, config.group_size).float().mean().item(),
        gated_rows=int((batch.advantages > 0).sum()),
        perturbed_rows=0 if batch.selected is None else int(batch.gate.sum()),
        perception_tokens=0.0 if batch.selected is None else int(batch.selected.sum()) / tokens,
        entropy_shift=0.0 if batch.shift is None else batch.shift.sum().item() / tokens,
        completion_tokens=lengths.mean().item(),
        truncated=(~batch.rollouts.finished).float().mean().item(),
        learning_rate=optimizer.param_groups[0]["lr"],
        seconds=dict(clock.seconds),
        peak_bytes=clock.peak_bytes,
        **means,
    )


@dataclass(frozen=True)
class TrainResult:
    """What a finished run left: one dict of scalars per step, and where things are."""

    history: list[dict[str, float]]
    output: Path
    adapter: Path


def train(config: CPPOConfig, *, resume: bool = False, progress: bool = True) -> TrainResult:
    """Train from `config` in the folder `config.output`; with `resume`, go on from its newest checkpoint.

    Raises:
        InputError: the folder holds a run already (or, resuming, one with other settings), or model or data are not usable.
            Also if the GPU's memory ran out; the message says what to lower, and the last good state was saved first.
        NonFiniteError: a loss or gradient was not finite; the last good state was saved first.
    """
    run = RunFolder.check(config, resume)
    rows, policy = rows_for(config), policy_for(config)
    rows = drop_overlong(policy, rows, config, progress=progress)
    accelerator = accelerator_for(policy, log_with=list(config.trackers) or None, project_dir=config.output)
    optimizer = torch.optim.AdamW(policy.trainable, lr=config.learning_rate, weight_decay=config.weight_decay)
    policy.model, optimizer = accelerator.prepare(policy.model, optimizer)
    checkpoint = latest_checkpoint(run.path)
    start = restore_checkpoint(checkpoint, policy, optimizer) if checkpoint else 0
    check_first_step(policy, rows, config, start)
    run.begin(start)
    if config.trackers:
        accelerator.init_trackers("cppo_ref", {k: str(v) for k, v in config.to_dict().items()})
    with tqdm(range(start, config.steps), initial=start, total=config.steps, desc="train", disable=not progress) as bar:
        for step in bar:
            optimizer.param_groups[0]["lr"] = config.learning_rate_at(step)
            prompts = step_rows(rows, config.prompts_per_step, step, config.seed)
            with good_state_saved(run, step, policy, optimizer):
                metrics, batch = cppo_step(policy, optimizer, prompts, config, step, accelerator=accelerator)
            run.log(metrics, batch)
            accelerator.log(metrics.scalars(), step=step)
            bar.set_postfix(metrics.summary())
            if (step + 1) % config.save_every == 0 or step + 1 == config.steps:
                score = validate(policy, config)
                save_checkpoint(run.path, step + 1, policy, optimizer, score, config.keep_checkpoints)
    accelerator.end_training()
    return TrainResult(run.history, run.path, save_adapter(run.path / "adapter", policy))


def accelerator_for(policy: Policy, **options: Any) -> Accelerator:
    """The accelerator of `policy`'s device; it scales the loss if the policy computes in float16 on a GPU.

    Prepare the optimizer with it, or gradients stay scaled.
    """
    precision = "fp16" if policy.dtype == torch.float16 and policy.device.type == "cuda" else "no"
    if AcceleratorState._shared_state.get("_mixed_precision", precision) != precision:
        AcceleratorState._reset_state()  # one per process, and it keeps the first precision that was asked for
    return Accelerator(cpu=policy.device.type == "cpu", mixed_precision=precision, **options)


@contextmanager
def good_state_saved(run: RunFolder, step: int, policy: Policy, optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """If the step inside fails in one of the two ways that end a run, save the state after the last good update, and say so.

    With several updates a step, those before the failure are in that state, and a resumed run repeats the whole step.
    """
    try:
        yield
    except (NonFiniteError, torch.OutOfMemoryError) as error:
        saved = save_checkpoint(run.path, step, policy, optimizer, None, run.config.keep_checkpoints)
        if isinstance(error, NonFiniteError):
            raise NonFiniteError(
                f"step {step}: {error}; the last good state is in {saved}: start again with a lower learning rate"
            ) from error
        raise InputError(
            f"the GPU's memory ran out in step {step}: {advice(policy.vlm.config, run.config)}; "
            f"--resume goes on from {saved} if only --micro_batch_size or --activation_checkpointing changes"
        ) from error


def check_first_step(policy: Policy, rows: Rows, config: CPPOConfig, step: int) -> None:
    """Raise InputError for unreadable rows, prompts that do not fit or answers that would be cut, before writing."""
    first = step_rows(rows, config.prompts_per_step, step, config.seed)
    prompts = policy.encode([images_of(row) for row in first], [row["question"] for row in first])
    policy.check_length(prompts, config.max_new_tokens)
    check_answers_fit(policy, first, config)


def validate(policy: Policy, config: CPPOConfig) -> float | None:
    """avg@4 on the first `eval_rows` validation images; None without a validation split or with eval_rows 0."""
    if config.eval_rows == 0 or config.data != "shapes":
        return None
    rows = load_rows("shapes", "validation", config.level, instruction=config.instruction)
    first = [row_at(rows, i) for i in range(min(config.eval_rows, len(rows)))]
    sampling = {"batch_size": config.rollout_batch_size, "seed": config.seed}
    answers = sample_answers(policy, first, samples=4, max_new_tokens=config.max_new_tokens, **sampling)
    return avg_at_k(answers).value
