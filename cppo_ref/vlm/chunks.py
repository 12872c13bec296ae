"""Logits a few tokens at a time: [B, T, V] is never held, in the forward pass or in the backward pass.

A vocabulary of 152 000 makes 0.6 MB of float32 logits per token: 8 completions of 512 tokens are 2.3 GiB, and a naive loss
holds several such blocks for its backward pass. What a loss needs of each token is one number, so the logits of a chunk are
made, used and dropped, and made again in the backward pass.
"""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.utils.checkpoint import checkpoint

BLOCK = 2**24  # logits in a chunk: 64 MiB in float32


def over_tokens(
    statistic: Callable[..., Tensor], mask: Bool[Tensor, "B T"], *inputs: Tensor, vocabulary: int
) -> Float[Tensor, "B T *k"]:
    """`statistic(*inputs)` of the tokens where `mask` is True, at most BLOCK logits at a time; 0 on the others.

    `inputs` are hidden states, token ids, … of all tokens, [B, T, …]. `statistic` takes those of N tokens, [N, …] each, and
    returns [N] or [N, k]; it may make logits, [N, vocabulary].
    """
    size = max(BLOCK // vocabulary, 1)
    chunks = list(zip(*(tensor[mask].split(size) for tensor in inputs), strict=True))
    if len(chunks) > 1 and torch.is_grad_enabled():
        values = torch.cat([checkpoint(statistic, *chunk, use_reentrant=False) for chunk in chunks])  # type: ignore[misc]
    else:
        values = torch.cat([statistic(*chunk) for chunk in chunks])
    everywhere = values.new_zeros(*mask.shape, *values.shape[1:])
    everywhere[mask] = values
    return everywhere
