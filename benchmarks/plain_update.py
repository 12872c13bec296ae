"""CPPO's update as its loss is written: three forward passes of all rows, each behind its own copy of the prompt and image.

The gate multiplies at the end, all logits are held at once, the adapters are peft's. Loss and gradient are the same.
"""

from dataclasses import replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from benchmarks.measuring import Arm
from cppo_ref.cpl import contrastive_perception_loss, view_divergence
from cppo_ref.examples.views import encode_views
from cppo_ref.grpo import kl_to_reference, policy_loss, token_logprobs, token_weights, weighted_sum
from cppo_ref.perception import entropy_shift, select_perception_tokens, token_entropy
from cppo_ref.rollouts import Batch
from cppo_ref.vlm.policy import Policy
from cppo_ref.vlm.prompts import Prompts


def plain_logits(policy: Policy, prompts: Prompts, batch: Batch) -> Float[Tensor, "B T V"]:
    """The logits that the completions' tokens were drawn from: whole sequences through the whole model."""
    ids, mask, inputs = batch.rollouts.completion_ids, batch.rollouts.completion_mask, prompts.inputs
    width = inputs["input_ids"].shape[1]
    inputs["input_ids"] = torch.cat([inputs["input_ids"], ids], dim=1)
    inputs["attention_mask"] = torch.cat([inputs["attention_mask"], mask], dim=1)
    return policy.vlm(**inputs).logits[:, width - 1 : -1]


def plain_tokens(anchor: Tensor, removed: Tensor, mask: Bool[Tensor, "B T"], arm: Arm) -> Bool[Tensor, "B T"]:
    """The perception tokens of all rows, from two logits [B, T, V]."""
    entropy, removed_entropy = token_entropy(anchor.detach()), token_entropy(removed.detach())
    moved = mask & ~torch.isclose(removed_entropy, entropy, rtol=3e-5, atol=1e-7)
    shift = entropy_shift(entropy, removed_entropy, moved)
    options = {"top_fraction": arm.config.top_fraction, "ranking": arm.config.ranking}
    return select_perception_tokens(shift, removed_entropy, mask, **options)


def plain_update(arm: Arm, batch: Batch, step: int) -> tuple[float, Bool[Tensor, "B T"]]:
    """One update of `arm` on `batch`, of which rollouts, advantages, gate and reference are taken; loss and tokens chosen."""
    config, rollouts = arm.config, batch.rollouts
    everyone = replace(batch, gate=torch.ones_like(batch.gate))
    views = encode_views(arm.policy, everyone.rollouts, everyone.gate, config, step)
    assert views is not None and batch.ref_logprobs is not None and config.temperature == 1
    arm.optimizer.zero_grad(set_to_none=True)
    anchor, preserved, removed = (plain_logits(arm.policy, prompts, batch) for prompts in (batch.prompts, *views))
    ids, mask = rollouts.completion_ids, rollouts.completion_mask
    selected = plain_tokens(anchor, removed, mask, arm) & batch.gate[:, None]
    options = {"estimator": config.kl_estimator, "detach_anchor": config.detach_anchor}
    kl_preserved, kl_removed = (view_divergence(anchor, view, ids, **options) for view in (preserved, removed))
    logprobs = token_logprobs(anchor, ids)
    loss = policy_loss(logprobs, logprobs.detach(), batch.advantages, mask, aggregation=config.token_aggregation)
    kl = kl_to_reference(logprobs, batch.ref_logprobs)
    loss = loss + config.kl_weight * weighted_sum(kl, token_weights(mask, config.token_aggregation))
    loss = loss + config.cpl_weight * contrastive_perception_loss(kl_preserved, kl_removed, selected, tau=config.tau)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(arm.policy.trainable, config.max_grad_norm)
    arm.optimizer.step()
    return loss.item(), selected


def gradient(arm: Arm) -> Float[Tensor, " N"]:
    """The gradient of the last update, clipped, as one vector."""
    return torch.cat([p.grad.flatten() for p in arm.policy.trainable if p.grad is not None])


@torch.no_grad()
def copy_adapters(source: Arm, target: Arm) -> None:
    """Give `target` the adapters of `source`."""
    for theirs, ours in zip(target.policy.trainable, source.policy.trainable, strict=True):
        theirs.copy_(ours)
