"""One optimizer update: the loss of a batch, cut into micro-batches without changing its gradient.

L = GRPO's clipped surrogate + β · KL to the reference + λ · CPL, each a sum of token values times token weights that are fixed
for the whole optimizer batch. A micro-batch adds its share of the sum, so its size changes memory and nothing else.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from accelerate import Accelerator
from jaxtyping import Bool, Float
from torch import Tensor

from cppo_ref.chunks import over_tokens
from cppo_ref.config import CPPOConfig
from cppo_ref.cpl import perception_loss, view_divergence
from cppo_ref.grpo import clipped_surrogate, kl_to_reference, token_logprobs, token_weights, weighted_sum
from cppo_ref.perception import token_entropy
from cppo_ref.policy import Policy
from cppo_ref.prompts import Prompts
from cppo_ref.rollouts import Rollouts


class NonFiniteError(ArithmeticError):
    """A loss or gradient was NaN or infinite; the parameters are still those of the last good update."""


@dataclass(frozen=True)
class Batch:
    """What is known of a step's B completions before the update."""

    rollouts: Rollouts
    rewards: Float[Tensor, " B"]
    advantages: Float[Tensor, " B"]
    gate: Bool[Tensor, " B"]  # rows that CPL applies to
    ref_logprobs: Float[Tensor, "B T"] | None = None  # None: β = 0
    old_logprobs: Float[Tensor, "B T"] | None = None  # None: on-policy, every ratio is 1
    shift: Float[Tensor, "B T"] | None = None  # None: λ = 0, as for the next three
    selected: Bool[Tensor, "B T"] | None = None  # perception tokens
    preserved: Prompts | None = None  # the P prompts with I⁺ for I
    removed: Prompts | None = None  # the P prompts with I⁻ for I


def hidden_states(policy: Policy, rollouts: Rollouts, prompts: Prompts, rows: Tensor) -> Float[Tensor, "R T H"]:
    """Hidden states of the completions `rows` under `prompts` (the original's or a view's)."""
    return policy.hidden_states(
        prompts.take(rollouts.prompt_of_row[rows]), rollouts.completion_ids[rows], rollouts.completion_mask[rows]
    )


@torch.no_grad()
def score_without_graph(
    policy: Policy, rollouts: Rollouts, prompts: Prompts, wanted: Bool[Tensor, " B"], config: CPPOConfig
) -> tuple[Float[Tensor, "B T"], Float[Tensor, "B T"]]:
    """Log-probabilities and entropies (nats) of the sampled tokens for the `wanted` rows; 0 on the others."""

    def logprob_and_entropy(hidden: Tensor, ids: Tensor) -> Tensor:
        """[N, H] and [N] to [N, 2]: log-probability of each token, and entropy before it."""
        logits = policy.logits(hidden, temperature=config.temperature)
        return torch.stack([token_logprobs(logits, ids), token_entropy(logits)], dim=-1)

    scores = torch.zeros(*rollouts.completion_ids.shape, 2, device=policy.device)
    indices = wanted.nonzero().flatten()
    for rows in indices.split(config.micro_batch_size) if len(indices) else ():
        hidden, ids = hidden_states(policy, rollouts, prompts, rows), rollouts.completion_ids[rows]
        mask = rollouts.completion_mask[rows]
        scores[rows] = over_tokens(logprob_and_entropy, mask, hidden, ids, vocabulary=policy.vocabulary)
    logprobs, entropy = scores.unbind(dim=-1)
    return logprobs, entropy


def minibatches(count: int, config: CPPOConfig, step: int) -> Iterator[Tensor]:
    """Row indices of each optimizer update: all rows at once on-policy, else seeded shuffles of them."""
    for epoch in range(config.num_epochs):
        order = torch.arange(count)
        if config.num_minibatches > 1:
            order = torch.randperm(count, generator=torch.Generator().manual_seed(stream_seed(config.seed, step, 1 + epoch)))
        yield from order.chunk(config.num_minibatches)


def learnable(batch: Batch, minibatch: Tensor, config: CPPOConfig) -> bool:
    """False if the update's gradient is zero by construction: no advantage, no KL term, no perception tokens."""
    chosen = batch.selected is not None and bool(batch.selected[minibatch].any())
    rewarded = config.policy_weight > 0 and bool((batch.advantages[minibatch] != 0).any())
    return config.kl_weight > 0 or chosen or rewarded


def update(
    policy: Policy,
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    minibatch: Tensor,
    config: CPPOConfig,
    accelerator: Accelerator,
) -> dict[str, float]:
    """One optimizer update on the rows `minibatch`, accumulated over micro-batches of fixed token weights."""
    weights = torch.zeros_like(batch.rollouts.completion_mask, dtype=torch.float32)
    weights[minibatch] = token_weights(batch.rollouts.completion_mask[minibatch], config.token_aggregation)
    cpl_weights = torch.zeros_like(weights)
    if batch.selected is not None:
        cpl_weights[minibatch] = token_weights(batch.selected[minibatch], "token")
    optimizer.zero_grad(set_to_none=True)
    totals = {"policy_loss": 0.0, "kl": 0.0, "cpl": 0.0, "clip_fraction": 0.0}
    for rows in minibatch.to(policy.device).split(config.micro_batch_size):
        with policy.learning():
            terms = loss_terms(policy, batch, rows, weights[rows], cpl_weights[rows], config)
        loss = config.policy_weight * terms["policy_loss"] + config.kl_weight * terms["kl"] + config.cpl_weight * terms["cpl"]
        if not torch.isfinite(loss):
            raise NonFiniteError(f"loss is {loss.item()}: " + ", ".join(f"{k} {v.item():.3g}" for k, v in terms.items()))
        accelerator.backward(loss)
        totals = {name: total + terms[name].item() for name, total in totals.items()}
    grad_norm = accelerator.clip_grad_norm_(policy.trainable, config.max_grad_norm)
    assert grad_norm is not None  # None is DeepSpeed's
    if not torch.isfinite(grad_norm) and accelerator.scaler is None:  # a loss scaler skips such steps by itself
        raise NonFiniteError(f"gradient norm is {grad_norm.item()}")
    optimizer.step()
    return totals | {"grad_norm": grad_norm.item()}


def loss_terms(
    policy: Policy, batch: Batch, rows: Tensor, weights: Tensor, cpl_weights: Tensor, config: CPPOConfig
) -> dict[str, Float[Tensor, ""]]:
    """The weighted sums of the surrogate, the KL to the reference and CPL over the micro-batch `rows`, with graph."""
    hidden = hidden_states(policy, batch.rollouts, batch.rollouts.prompts, rows)
    ids, mask = batch.rollouts.completion_ids[rows], batch.rollouts.completion_mask[rows]

    def logprob(hidden: Tensor, ids: Tensor) -> Tensor:
        """[N, H] and [N] to [N]: log-probability of each token, with graph."""
        return token_logprobs(policy.logits(hidden, temperature=config.temperature), ids)

    logprobs = over_tokens(logprob, mask, hidden, ids, vocabulary=policy.vocabulary)
    old = logprobs.detach() if batch.old_logprobs is None else batch.old_logprobs[rows]
    clip = {"clip_low": config.clip_low, "clip_high": config.clip_high}
    zero = logprobs.new_zeros(())
    terms = {"policy_loss": weighted_sum(clipped_surrogate(logprobs, old, batch.advantages[rows], **clip), weights)}
    terms["kl"] = (
        zero if batch.ref_logprobs is None else weighted_sum(kl_to_reference(logprobs, batch.ref_logprobs[rows]), weights)
    )
    looked = cpl_weights.any(dim=1)
    if looked.any():
        terms["cpl"] = perception_term(policy, batch, rows[looked], hidden[looked], cpl_weights[looked], config)
    ratio = (logprobs.detach() - old).exp()
    outside = (ratio < 1 - config.clip_low) | (ratio > 1 + config.clip_high)
    return {"cpl": zero, **terms, "clip_fraction": weighted_sum(outside.float(), weights)}


def perception_term(
    policy: Policy, batch: Batch, rows: Tensor, hidden: Tensor, weights: Tensor, config: CPPOConfig
) -> Float[Tensor, ""]:
    """Σ weight · softplus((KL⁺ − KL⁻)/τ) over the perception tokens of `rows`: the two perturbed forwards with graph."""
    assert batch.preserved is not None and batch.removed is not None
    ids = batch.rollouts.completion_ids[rows]
    with torch.set_grad_enabled(config.perception_loss != "papo"):  # PAPO's code scores its masked view before the update
        views = [hidden_states(policy, batch.rollouts, view, rows) for view in (batch.preserved, batch.removed)]
    kl_options = {"estimator": config.kl_estimator, "detach_anchor": config.detach_anchor}

    def token_loss(hidden: Tensor, preserved: Tensor, removed: Tensor, ids: Tensor) -> Tensor:
        """[N, H] of the three views and [N] to [N]: the perception loss of each token."""
        anchor, plus, minus = (policy.logits(h, temperature=config.temperature) for h in (hidden, preserved, removed))
        kl_preserved, kl_removed = (view_divergence(anchor, view, ids, **kl_options) for view in (plus, minus))
        return perception_loss(kl_preserved, kl_removed, kind=config.perception_loss, tau=config.tau)

    values = over_tokens(token_loss, weights != 0, hidden, *views, ids, vocabulary=policy.vocabulary)
    return weighted_sum(values, weights)


def stream_seed(*keys: int) -> int:
    """A 63-bit seed that depends on all `keys`."""
    return int(np.random.SeedSequence(keys).generate_state(1, np.uint64)[0] >> 1)
