"""Policies that differ from their reference."""

import torch


def nudge(policy, seed=1):
    """Move the adapters off zero, by a seeded draw; returns the policy."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in policy.trainable:
        parameter.data += 0.02 * torch.randn(parameter.shape, generator=generator)
    return policy
