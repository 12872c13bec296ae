"""Policies that differ from their reference."""

import torch

from cppo_ref.step import find_logprobs, find_perception_tokens


def nudge(policy, seed=1):
    """Move the adapters off zero, by a seeded draw; returns the policy."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in policy.trainable:
        parameter.data += 0.02 * torch.randn(parameter.shape, generator=generator)
    return policy


def score_batch(policy, batch, config, step=0):
    """Fill in what `cppo_step` finds out about a batch before its update; the pass under I⁻ is left to the update."""
    find_logprobs(policy, batch, config)
    if config.cpl_weight > 0:
        find_perception_tokens(policy, batch, config, step)
    batch.removed_hidden = None
    return batch
