"""The Contrastive Perception Loss: where the policy looks, it should change with the evidence and only with the evidence.

Paper: InfoNCE with one positive (the preserving view) and one negative (the removing view), similarity −KL/τ.
Here:  the KL is exact over the vocabulary by default; "k3" (as the authors' verl code) and "k1" (as their AReaL code)
       estimate it from the one sampled token. `detach_anchor` stops the gradient through the original view; the authors let it
       flow. The mean is over all selected tokens of an update; both of their codes average micro-batches.
Why:   we hold the logits anyway, so the exact KL costs nothing and has no sampling noise. In k1 the anchor cancels:
       (log π − log π⁺) − (log π − log π⁻) no longer contains π at all.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

Estimator = Literal["exact", "k3", "k1"]


def view_divergence(
    logits: Float[Tensor, "*shape V"],
    logits_view: Float[Tensor, "*shape V"],
    token_ids: Int[Tensor, "*shape"],
    *,
    estimator: Estimator = "exact",
    detach_anchor: bool = False,
) -> Float[Tensor, "*shape"]:
    """KL(π(·|I) ‖ π(·|view)) of each token, in nats.

    exact: Σ_v π_v (log π_v − log π′_v).  With r = log π′_o − log π_o at the sampled token o:  k3: e^r − r − 1, r clamped
    to ±20 and the result to ±10 (authors' verl code);  k1: −r clamped to ±10 (authors' AReaL code).

    Args:
        logits: of the original view, the anchor π.
        logits_view: of the perturbed view, π′.
        token_ids: the sampled tokens o (used by k3 and k1).
        estimator: "exact", "k3" or "k1".
        detach_anchor: no gradient through `logits`.

    Raises:
        ValueError: unknown `estimator`.
    """
    anchor = (logits.detach() if detach_anchor else logits).log_softmax(dim=-1)
    view = logits_view.log_softmax(dim=-1)
    if estimator == "exact":
        return F.kl_div(view, anchor, reduction="none", log_target=True).sum(dim=-1)
    at_anchor, at_view = (logprobs.gather(-1, token_ids.unsqueeze(-1)).squeeze(-1) for logprobs in (anchor, view))
    return sampled_divergence(at_anchor, at_view, estimator)


def sampled_divergence(
    logprobs: Float[Tensor, "*shape"], logprobs_view: Float[Tensor, "*shape"], estimator: Estimator
) -> Float[Tensor, "*shape"]:
    """k3 or k1 of each token (see `view_divergence`) from its log-probabilities alone; ValueError for another estimator."""
    log_ratio = logprobs_view - logprobs
    if estimator == "k3":
        log_ratio = log_ratio.clamp(-20, 20)
        return (log_ratio.exp() - log_ratio - 1).clamp(-10, 10)
    if estimator == "k1":
        return -log_ratio.clamp(-10, 10)
    raise ValueError(f'estimator is {estimator!r}, expected "exact", "k3" or "k1"')


def contrast(
    kl_preserved: Float[Tensor, "*shape"], kl_removed: Float[Tensor, "*shape"], *, tau: float = 0.1
) -> Float[Tensor, "*shape"]:
    """−log[ e^(−KL⁺/τ) / (e^(−KL⁺/τ) + e^(−KL⁻/τ)) ] = softplus((KL⁺ − KL⁻)/τ) of each token, in nats."""
    if tau <= 0:
        raise ValueError(f"tau is {tau}, expected a positive temperature in nats")
    return F.softplus((kl_preserved - kl_removed) / tau)


def contrastive_perception_loss(
    kl_preserved: Float[Tensor, "B T"], kl_removed: Float[Tensor, "B T"], selected: Bool[Tensor, "B T"], *, tau: float = 0.1
) -> Float[Tensor, ""]:
    """Mean over the selected tokens of softplus((KL⁺ − KL⁻)/τ); exactly 0, with a graph, if nothing is selected.

    Args:
        kl_preserved: KL⁺ = KL(π(·|I) ‖ π(·|I⁺)), nats.
        kl_removed: KL⁻ = KL(π(·|I) ‖ π(·|I⁻)), nats.
        selected: perception tokens of rows with a positive advantage.
        tau: temperature in nats (paper: 0.1).
    """
    loss = contrast(kl_preserved[selected], kl_removed[selected], tau=tau)
    return loss.sum() / max(int(torch.count_nonzero(selected)), 1)
