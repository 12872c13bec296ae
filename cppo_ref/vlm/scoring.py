"""What a policy says of given completions, without a graph: a number per token, a few rows and a few logits at a time."""

from collections.abc import Callable
from functools import partial

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from cppo_ref.grpo import token_logprobs
from cppo_ref.perception import token_entropy
from cppo_ref.vlm.chunks import over_tokens
from cppo_ref.vlm.packing import Ids, Mask
from cppo_ref.vlm.policy import Policy
from cppo_ref.vlm.prompts import Prompts

# relative and absolute (nats) difference of one entropy computed in two ways: the most seen on the tiny VLM, rounded up
ROUNDING = {torch.float32: (3e-5, 1e-7), torch.float16: (0.0, 5e-3), torch.bfloat16: (0.0, 3e-2)}


def beyond_rounding(entropy: Float[Tensor, "B T"], removed: Float[Tensor, "B T"], dtype: torch.dtype) -> Bool[Tensor, "B T"]:
    """Where H⁻, from a forward pass, differs from H, noted while sampling, by more than computing it in another way does."""
    relative, absolute = ROUNDING[dtype]
    return ~torch.isclose(removed, entropy, rtol=relative, atol=absolute)


def completion_logprobs(
    policy: Policy, prompts: Prompts, ids: Ids, mask: Mask, *, temperature: float = 1.0, batch_size: int | None = None
) -> Float[Tensor, "B T"]:
    """log π of the completions' tokens behind their prompts; 0 off the mask. `batch_size` rows at a time (None: all)."""
    return _by_rows(
        policy, prompts, ids, mask, batch_size, lambda h, r: hidden_logprobs(policy, h, ids[r], mask[r], temperature)
    )


def completion_entropy(
    policy: Policy, prompts: Prompts, ids: Ids, mask: Mask, *, temperature: float = 1.0, batch_size: int | None = None
) -> Float[Tensor, "B T"]:
    """The entropy of π before each token of the completions, in nats; 0 off the mask."""
    return _by_rows(policy, prompts, ids, mask, batch_size, lambda h, r: hidden_entropy(policy, h, mask[r], temperature))


def hidden_logprobs(
    policy: Policy, hidden: Float[Tensor, "B T H"], ids: Ids, mask: Mask, temperature: float = 1.0
) -> Float[Tensor, "B T"]:
    """log π of tokens under the hidden states that predict them, with their graph; 0 off the mask."""
    logits = partial(policy.logits, temperature=temperature)
    return over_tokens(lambda h, i: token_logprobs(logits(h), i), mask, hidden, ids, vocabulary=policy.vocabulary)


@torch.no_grad()
def hidden_entropy(
    policy: Policy, hidden: Float[Tensor, "B T H"], mask: Mask, temperature: float = 1.0
) -> Float[Tensor, "B T"]:
    """The entropy of the distributions that hidden states stand for, in nats; 0 off the mask."""
    logits = partial(policy.logits, temperature=temperature)
    return over_tokens(lambda h: token_entropy(logits(h)), mask, hidden, vocabulary=policy.vocabulary)


def _by_rows(
    policy: Policy, prompts: Prompts, ids: Tensor, mask: Tensor, batch_size: int | None, statistic: Callable[..., Tensor]
) -> Tensor:
    """`statistic(hidden states, rows)` of all completions, `batch_size` of them at a time."""
    parts = torch.arange(len(ids), device=ids.device).split(batch_size or max(len(ids), 1))
    with policy.scoring():
        return torch.cat([statistic(policy.hidden_states(prompts.take(r), ids[r], mask[r]), r) for r in parts])
