"""Group Relative Policy Optimization: advantages from a group's own rewards, the clipped surrogate, KL to the reference.

Paper: A_i = (r_i − mean)/(std + ε); clipped surrogate with ε = 0.2; KL to the reference policy with weight 0.01.
Here:  Bessel-corrected std and ε = 1e-4 as in TRL; `aggregation` names how token losses become one number: "token" (every token
       counts the same), "sequence" (every completion counts the same), ("constant", L) (Dr. GRPO: divide by B·L).
Why:   aggregation decides whether long answers are favoured; it is an option, not a detail. The weights of an optimizer batch
       are fixed before it is cut into micro-batches, so the micro-batch size changes memory and never the gradient. The
       authors' verl code averages per micro-batch; their AReaL code subtracts the batch's token mean from A before the gate.
"""

from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

Aggregation = Literal["token", "sequence"] | tuple[Literal["constant"], float]


def group_advantages(
    rewards: Float[Tensor, " B"], group_size: int, *, scale: Literal["std", "none"] = "std", eps: float = 1e-4
) -> Float[Tensor, " B"]:
    """A_i = (r_i − mean_group) / (std_group + eps); with scale "none", r_i − mean_group.

    Rows of one group are adjacent. A reward at its group's mean gets exactly 0: rounding must not open the gate A > 0.

    Raises:
        ValueError: group_size < 2, rows that are no multiple of it, or unknown `scale`.
    """
    if group_size < 2:
        raise ValueError(f"group_size is {group_size}, expected 2 or more: an advantage compares completions of one prompt")
    if rewards.numel() % group_size:
        raise ValueError(f"{rewards.numel()} rewards do not make whole groups of group_size {group_size}")
    if scale not in ("std", "none"):
        raise ValueError(f'scale is {scale!r}, expected "std" or "none"')
    groups = rewards.view(-1, group_size)
    centered = groups - groups.mean(dim=1, keepdim=True)
    rounding = 1e-6 * groups.abs().amax(dim=1, keepdim=True)  # of a mean in float32
    spread = groups.std(dim=1, keepdim=True) + eps if scale == "std" else 1.0
    return (centered / spread).masked_fill(centered.abs() <= rounding, 0.0).flatten()


def zero_variance(rewards: Float[Tensor, " B"], group_size: int) -> Bool[Tensor, " P"]:
    """True for each group whose rewards are all the same: it teaches nothing."""
    groups = rewards.view(-1, group_size)
    return groups.amax(dim=1) == groups.amin(dim=1)


def token_logprobs(logits: Float[Tensor, "*shape V"], token_ids: Int[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """log π(o_t) of the sampled tokens, in nats."""
    return logits.log_softmax(dim=-1).gather(-1, token_ids.unsqueeze(-1)).squeeze(-1)


def clipped_surrogate(
    logprobs: Float[Tensor, "B T"],
    old_logprobs: Float[Tensor, "B T"],
    advantages: Float[Tensor, " B"],
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
) -> Float[Tensor, "B T"]:
    """−min(ρ A, clip(ρ, 1−clip_low, 1+clip_high) A) of each token, ρ = exp(log π − log π_old).

    Finite for A ≥ 0, however large ρ; for A < 0 the loss is ρ|A| without a bound, and inf above a log-ratio of 88.
    """
    advantage = advantages.unsqueeze(-1)
    log_ratio = logprobs - old_logprobs
    # for A ≥ 0 nothing depends on a ratio that far outside the clip, but exp would overflow: 0 · inf = NaN
    log_ratio = torch.where(advantage < 0, log_ratio, log_ratio.clamp(max=20))
    ratio = log_ratio.exp()
    clipped = ratio.clamp(1 - clip_low, 1 + clip_high)
    return -torch.minimum(ratio * advantage, clipped * advantage)


def token_weights(completion_mask: Bool[Tensor, "B T"], aggregation: Aggregation = "token") -> Float[Tensor, "B T"]:
    """The weight of each token in the loss; a loss is Σ weight · token loss.

    "token": 1/Σ_i|o_i|.  "sequence": 1/(B·|o_i|).  ("constant", L): 1/(B·L).  Masked tokens weigh 0.

    Raises:
        ValueError: unknown `aggregation`.
    """
    mask = completion_mask.float()
    if aggregation == "token":
        return mask / mask.sum().clamp(min=1)
    if aggregation == "sequence":
        return mask / (mask.sum(dim=1, keepdim=True).clamp(min=1) * len(mask))
    if isinstance(aggregation, tuple) and aggregation[0] == "constant":
        return mask / (aggregation[1] * len(mask))
    raise ValueError(f'aggregation is {aggregation!r}, expected "token", "sequence" or ("constant", length)')


def policy_loss(
    logprobs: Float[Tensor, "B T"],
    old_logprobs: Float[Tensor, "B T"],
    advantages: Float[Tensor, " B"],
    completion_mask: Bool[Tensor, "B T"],
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    aggregation: Aggregation = "token",
) -> Float[Tensor, ""]:
    """The GRPO policy loss: Σ token weight · clipped surrogate. Source: GRPO; DAPO ("token"); Dr. GRPO ("constant").

    Masked tokens count for nothing, whatever stands there, in the loss and in its gradient.
    """
    # masked before the exponential: the backward pass of one that overflowed would be 0 · inf = NaN
    logprobs, old_logprobs = (torch.where(completion_mask, values, 0.0) for values in (logprobs, old_logprobs))
    surrogate = clipped_surrogate(logprobs, old_logprobs, advantages, clip_low=clip_low, clip_high=clip_high)
    return weighted_sum(surrogate, token_weights(completion_mask, aggregation))


def kl_to_reference(logprobs: Float[Tensor, "B T"], ref_logprobs: Float[Tensor, "B T"]) -> Float[Tensor, "B T"]:
    """k3 estimate of KL(π ‖ π_ref) at the sampled tokens: e^d − d − 1 with d = log π_ref − log π; nats, never negative."""
    difference = ref_logprobs - logprobs
    return torch.expm1(difference) - difference


def weighted_sum(values: Float[Tensor, "B T"], weights: Float[Tensor, "B T"]) -> Float[Tensor, ""]:
    """Σ weight · value over the tokens that weigh something; what stands on the others (even inf or NaN) does not matter."""
    counted = weights != 0
    return (values[counted] * weights[counted]).sum()
