"""Seeds: every random draw of a run is a function of its seed and of where in the run it is made."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from cppo_ref.config import CPPOConfig


def stream_seed(*keys: int) -> int:
    """A 63-bit seed that depends on all `keys`."""
    return int(np.random.SeedSequence(keys).generate_state(1, np.uint64)[0] >> 1)


def minibatches(count: int, config: CPPOConfig, step: int) -> Iterator[Tensor]:
    """Row indices of each optimizer update: all rows in order for one minibatch, else seeded shuffles of them."""
    for epoch in range(config.num_epochs):
        order = torch.arange(count)
        if config.num_minibatches > 1:
            order = torch.randperm(count, generator=torch.Generator().manual_seed(stream_seed(config.seed, step, 1 + epoch)))
        yield from order.chunk(config.num_minibatches)
