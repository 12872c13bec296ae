"""One step of CPPO: `cppo_step` is the paper's algorithm box, read top to bottom, and `update` its one optimizer update.

Paper: rollouts, rewards, advantages, views, entropy shift, perception tokens, CPL gated by A > 0, added to GRPO's loss.
Here:  the same, with the perturbed forwards run only for rows with A > 0. H is noted while sampling, H⁻ takes one forward.
       L = GRPO's clipped surrogate + β · KL to the reference + λ · CPL: sums of token values times token weights that are
       fixed for the whole optimizer batch. A micro-batch adds its share, so its size changes memory and nothing else.
Why:   the gate multiplies all other rows by zero, so loss and gradient are unchanged. Every random draw is a function of
       (seed, step): a resumed run is the run that was never stopped, bit for bit (in float16 but for the loss scale).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from jaxtyping import Bool, Float, Int
from torch import Tensor

from cppo_ref.config import CPPOConfig
from cppo_ref.cpl import contrast, view_divergence
from cppo_ref.examples.views import encode_views
from cppo_ref.grpo import clipped_surrogate, group_advantages, kl_to_reference, token_weights, weighted_sum
from cppo_ref.perception import entropy_shift, select_perception_tokens
from cppo_ref.rewards import reward
from cppo_ref.rollouts import Batch, NonFiniteError, Rollouts, generate_rollouts
from cppo_ref.runs.metrics import PhaseClock, StepMetrics, step_metrics
from cppo_ref.runs.seeds import minibatches, stream_seed
from cppo_ref.vlm.chunks import over_tokens
from cppo_ref.vlm.devices import accelerator_for
from cppo_ref.vlm.policy import Policy
from cppo_ref.vlm.scoring import beyond_rounding, completion_entropy, completion_logprobs, hidden_entropy, hidden_logprobs

Logits = Float[Tensor, "N V"]


def perception_tokens(
    policy: Policy, batch: Batch, removed_entropy: Float[Tensor, "B T"], config: CPPOConfig, step: int
) -> Bool[Tensor, "B T"]:
    """The perception tokens of the gated rows: those whose entropy rises most when the image is destroyed."""
    assert batch.shift is not None  # 0 on all other rows: none of their tokens is chosen
    options = {"top_fraction": config.top_fraction, "ranking": config.ranking}
    return select_perception_tokens(batch.shift, removed_entropy, batch.rollouts.completion_mask, **options)


def contrastive_tokens(
    anchor: Logits, preserved: Logits, removed: Logits, ids: Int[Tensor, " N"], config: CPPOConfig
) -> Float[Tensor, " N"]:
    """softplus((KL⁺ − KL⁻)/τ) of each token, from its logits under the three images."""
    options = {"estimator": config.kl_estimator, "detach_anchor": config.detach_anchor}
    kl_preserved, kl_removed = (view_divergence(anchor, view, ids, **options) for view in (preserved, removed))
    return contrast(kl_preserved, kl_removed, tau=config.tau)


@dataclass(frozen=True)
class Parts:
    """The seam of the step: what an experiment may put in the place of CPPO's own parts. The defaults are CPPO."""

    sample: Callable[..., Rollouts] | None = None  # None: generate_rollouts
    reward: Callable[[Rollouts], list[float]] = lambda r: [reward(t, a) for t, a in zip(r.texts, r.answers, strict=True)]
    choose: Callable[..., Bool[Tensor, "B T"]] = perception_tokens
    token_loss: Callable[..., Float[Tensor, " N"]] = contrastive_tokens
    policy_weight: float = 1.0  # of GRPO's surrogate
    credit: Callable[[Batch], Float[Tensor, "B T"]] | None = None  # a factor of each token's advantage, 0 or more; None: 1


CPPO = Parts()


def cppo_step(
    policy: Policy,
    optimizer: torch.optim.Optimizer,
    rows: list[dict[str, Any]],
    config: CPPOConfig,
    step: int,
    *,
    parts: Parts = CPPO,
    accelerator: Accelerator | None = None,
) -> tuple[StepMetrics, Batch]:
    """One step of CPPO on `rows`; returns its metrics and the batch it learned from.

    In float16 pass an `accelerator` that has prepared the optimizer: without one, nothing scales the loss.

    Raises:
        NonFiniteError: a loss or gradient is not finite; the optimizer was not stepped on it.
    """
    accelerator, clock = accelerator or accelerator_for(policy, scale=False), PhaseClock(policy.device)
    with clock("rollouts"):
        rollouts = (parts.sample or generate_rollouts)(
            policy,
            rows,
            group_size=config.group_size,
            max_new_tokens=config.max_new_tokens,
            temperature=config.temperature,
            batch_size=config.rollout_batch_size,
            rng=torch.Generator().manual_seed(stream_seed(config.seed, step, 0)),
        )
    with clock("rewards"):
        rewards = torch.tensor(parts.reward(rollouts), dtype=torch.float32)
        advantages = group_advantages(rewards, config.group_size, scale=config.advantage_scale).to(policy.device)
        gate = advantages > 0 if config.advantage_gate else torch.ones_like(advantages, dtype=torch.bool)
        batch = Batch(rollouts, rewards, advantages, gate)
    with clock("reference"):
        find_logprobs(policy, batch, config)
    if config.cpl_weight > 0:
        with clock("detection"):
            find_perception_tokens(policy, batch, config, step, parts)
    with clock("update"):
        updates = [
            update(policy, optimizer, batch, minibatch, config, accelerator, parts)
            for minibatch in minibatches(len(rewards), config, step)
            if learnable(batch, minibatch, config, parts)
        ]
    batch.removed_hidden = None  # its graph is used up
    return step_metrics(batch, updates, config, step, optimizer, clock), batch


def find_logprobs(policy: Policy, batch: Batch, config: CPPOConfig) -> None:
    """log π_ref of the sampled tokens where β > 0, and off-policy log π before the update: `ref_logprobs`, `old_logprobs`."""
    completions = batch.prompts, batch.rollouts.completion_ids, batch.rollouts.completion_mask
    options = {"temperature": config.temperature, "batch_size": config.micro_batch_size}
    if config.kl_weight > 0:
        with policy.reference():
            batch.ref_logprobs = completion_logprobs(policy, *completions, **options)
    if not config.on_policy:
        batch.old_logprobs = completion_logprobs(policy, *completions, **options)


def find_perception_tokens(policy: Policy, batch: Batch, config: CPPOConfig, step: int, parts: Parts = CPPO) -> None:
    """Views, entropy shift, perception tokens of the gated rows: fills in `views`, `shift` and `selected`."""
    batch.views = encode_views(policy, batch.rollouts, batch.gate, config, step)
    removed_entropy = score_removed(policy, batch, config)
    entropy, gated = batch.rollouts.entropy, batch.rollouts.completion_mask & batch.gate[:, None]
    moved = gated & beyond_rounding(entropy, removed_entropy, policy.dtype)
    batch.shift = entropy_shift(entropy, removed_entropy, moved)
    batch.selected = parts.choose(policy, batch, removed_entropy, config, step) & gated


def score_removed(policy: Policy, batch: Batch, config: CPPOConfig) -> Float[Tensor, "B T"]:
    """H⁻: the entropy before each token of the gated rows under I⁻, in nats; 0 on the others.

    If the update is one micro-batch, this pass is made with its graph, and the update does not repeat it.
    """
    rows, mask = batch.gate.nonzero().flatten(), batch.rollouts.completion_mask
    entropy = torch.zeros(mask.shape, device=policy.device)
    if batch.views is None:
        return entropy
    completions = batch.views[1].take(rows), batch.rollouts.completion_ids[rows], mask[rows]
    if config.on_policy and len(mask) <= config.micro_batch_size:
        with policy.learning():
            hidden = policy.hidden_states(*completions)
        batch.removed_hidden = hidden.new_zeros(*mask.shape, hidden.shape[-1]).index_copy(0, rows, hidden)
        entropy[rows] = hidden_entropy(policy, hidden.detach(), mask[rows], config.temperature)
    else:
        options = {"temperature": config.temperature, "batch_size": config.micro_batch_size}
        entropy[rows] = completion_entropy(policy, *completions, **options)
    return entropy


def learnable(batch: Batch, minibatch: Tensor, config: CPPOConfig, parts: Parts = CPPO) -> bool:
    """False if the update's gradient is zero by construction: no advantage, no KL term, no perception tokens."""
    chosen = batch.selected is not None and bool(batch.selected[minibatch].any())
    rewarded = parts.policy_weight > 0 and bool((batch.advantages[minibatch] != 0).any())
    return config.kl_weight > 0 or chosen or rewarded


def update(
    policy: Policy,
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    minibatch: Tensor,
    config: CPPOConfig,
    accelerator: Accelerator,
    parts: Parts = CPPO,
) -> dict[str, float]:
    """One optimizer update on the rows `minibatch`, accumulated over micro-batches of fixed token weights."""
    weights = torch.zeros_like(batch.rollouts.completion_mask, dtype=torch.float32)
    weights[minibatch] = token_weights(batch.rollouts.completion_mask[minibatch], config.token_aggregation)
    cpl_weights = torch.zeros_like(weights)
    if batch.selected is not None:
        cpl_weights[minibatch] = token_weights(batch.selected[minibatch], "token")
    optimizer.zero_grad(set_to_none=True)
    totals = {"policy_loss": 0.0, "kl": 0.0, "cpl": 0.0, "clip_fraction": 0.0}
    in_order = minibatch.sort().values.to(policy.device)  # completions of one prompt side by side: they share its computation
    for rows in in_order.split(config.micro_batch_size):
        with policy.learning():
            terms = loss_terms(policy, batch, rows, weights[rows], cpl_weights[rows], config, parts)
            loss = parts.policy_weight * terms["policy_loss"]
            loss = loss + config.kl_weight * terms["kl"] + config.cpl_weight * terms["cpl"]
            if not torch.isfinite(loss):
                raise NonFiniteError(f"loss is {loss.item()}: " + ", ".join(f"{k} {v.item():.3g}" for k, v in terms.items()))
            accelerator.backward(loss)
        totals = {name: total + terms[name].item() for name, total in totals.items()}
    grad_norm = accelerator.clip_grad_norm_(policy.trainable, config.max_grad_norm)
    assert grad_norm is not None  # None is DeepSpeed's
    scaler = accelerator.scaler  # it skips such a step and halves its scale; below 1 nothing is left to halve
    if not torch.isfinite(grad_norm) and (scaler is None or scaler.get_scale() < 1):
        raise NonFiniteError(f"gradient norm is {grad_norm.item()}")
    optimizer.step()
    return totals | {"grad_norm": grad_norm.item(), "selected": int(torch.count_nonzero(cpl_weights))}


def loss_terms(
    policy: Policy, batch: Batch, rows: Tensor, weights: Tensor, cpl_weights: Tensor, config: CPPOConfig, parts: Parts = CPPO
) -> dict[str, Float[Tensor, ""]]:
    """The weighted sums of the surrogate, the KL to the reference and CPL over the micro-batch `rows`, with graph."""
    ids, mask = batch.rollouts.completion_ids[rows], batch.rollouts.completion_mask[rows]
    hidden = policy.hidden_states(batch.prompts.take(rows), ids, mask)
    logprobs = hidden_logprobs(policy, hidden, ids, mask, config.temperature)
    old = logprobs.detach() if batch.old_logprobs is None else batch.old_logprobs[rows]
    surrogate = clipped_surrogate(logprobs, old, batch.advantages[rows], clip_low=config.clip_low, clip_high=config.clip_high)
    if parts.credit is not None:
        surrogate = surrogate * parts.credit(batch)[rows]
    ratio = (logprobs.detach() - old).exp()
    outside = (ratio < 1 - config.clip_low) | (ratio > 1 + config.clip_high)
    terms = {"policy_loss": weighted_sum(surrogate, weights), "clip_fraction": weighted_sum(outside.float(), weights)}
    terms["kl"] = terms["cpl"] = logprobs.new_zeros(())
    if batch.ref_logprobs is not None:
        terms["kl"] = weighted_sum(kl_to_reference(logprobs, batch.ref_logprobs[rows]), weights)
    looked = cpl_weights.any(dim=1)
    if looked.any():
        terms["cpl"] = perception_term(policy, batch, rows[looked], hidden[looked], cpl_weights[looked], config, parts)
    return terms


def perception_term(
    policy: Policy, batch: Batch, rows: Tensor, hidden: Tensor, weights: Tensor, config: CPPOConfig, parts: Parts = CPPO
) -> Float[Tensor, ""]:
    """Σ weight · softplus((KL⁺ − KL⁻)/τ) over the perception tokens of `rows`: the two perturbed forwards with graph."""
    assert batch.views is not None
    ids, chosen = batch.rollouts.completion_ids[rows], weights != 0
    needed = chosen.flip(1).cumsum(dim=1).flip(1) > 0  # up to the last perception token; nothing behind it is looked at
    preserved, removed = (view.take(rows) for view in batch.views)
    plus = policy.hidden_states(preserved, ids, needed)
    minus = policy.hidden_states(removed, ids, needed) if batch.removed_hidden is None else batch.removed_hidden[rows]

    def token_loss(anchor: Tensor, plus: Tensor, minus: Tensor, ids: Tensor) -> Tensor:
        """[N, H] of the three views and [N] to [N]: the perception loss of each token."""
        logits = (policy.logits(states, temperature=config.temperature) for states in (anchor, plus, minus))
        return parts.token_loss(*logits, ids, config)

    return weighted_sum(over_tokens(token_loss, chosen, hidden, plus, minus, ids, vocabulary=policy.vocabulary), weights)
