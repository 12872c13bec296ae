"""Which tokens of a completion depend on the image: the entropy shift, and the choice of perception tokens.

Paper: perception tokens are those whose entropy rises most when information is removed from the image.
Here:  `ranking` is "absolute" (the paper's words) or "normalized" (the authors' code divides the rise by the removed view's
       entropy); k is rounded up; ties go to the earlier token; only completion tokens count.
Why:   with every token labelled (the shape world), the absolute ranking finds perception tokens better. The verl code rounds
       k down, keeps all ties and does not intersect with the response mask; a padding slot could take a place there, but would
       not be trained on, because their advantages are masked.
"""

from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

Ranking = Literal["absolute", "normalized"]
EPSILON = 1e-6  # nats; the authors' guard against a removed view without entropy


def token_entropy(logits: Float[Tensor, "*shape V"]) -> Float[Tensor, "*shape"]:
    """H(π) = −Σ_v π_v log π_v of each token's distribution, in nats."""
    return torch.special.entr(logits.softmax(dim=-1)).sum(dim=-1)


def entropy_shift(
    entropy: Float[Tensor, "B T"], removed_entropy: Float[Tensor, "B T"], completion_mask: Bool[Tensor, "B T"]
) -> Float[Tensor, "B T"]:
    """ΔH_t = H(π(·|I⁻,q,o_<t)) − H(π(·|I,q,o_<t)), in nats; 0 where the mask is False.

    Source: paper, entropy-based detection of perception tokens.
    """
    return torch.where(completion_mask, removed_entropy - entropy, 0.0)


def perception_score(
    shift: Float[Tensor, "B T"], removed_entropy: Float[Tensor, "B T"], *, ranking: Ranking = "normalized"
) -> Float[Tensor, "B T"]:
    """What tokens are ranked by: ΔH ("absolute", nats) or ΔH / (H⁻ + 1e-6) ("normalized", no unit)."""
    if ranking not in ("absolute", "normalized"):
        raise ValueError(f'ranking is {ranking!r}, expected "absolute" or "normalized"')
    return shift if ranking == "absolute" else shift / (removed_entropy + EPSILON)


def select_perception_tokens(
    shift: Float[Tensor, "B T"],
    removed_entropy: Float[Tensor, "B T"],
    completion_mask: Bool[Tensor, "B T"],
    *,
    top_fraction: float = 0.5,
    ranking: Ranking = "normalized",
) -> Bool[Tensor, "B T"]:
    """Per row, the top ⌈top_fraction · n⌉ of the n completion tokens with ΔH > 0; a row without any has none.

    Args:
        shift: ΔH, nats (`entropy_shift`).
        removed_entropy: H⁻, the entropy under the removing view, nats; used by the normalised ranking only.
        completion_mask: True on completion tokens.
        top_fraction: share of the candidates to keep, in (0, 1].
        ranking: see `perception_score`.

    Raises:
        ValueError: `top_fraction` outside (0, 1] or unknown `ranking`.
    """
    if not 0 < top_fraction <= 1:
        raise ValueError(f"top_fraction is {top_fraction}, expected a number in (0, 1]")
    candidates = completion_mask & (shift > 0)
    score = perception_score(shift, removed_entropy, ranking=ranking).masked_fill(~candidates, -torch.inf)
    order = score.argsort(dim=-1, descending=True, stable=True)  # stable: ties go to the earlier token
    rank = order.argsort(dim=-1)
    share = top_fraction * candidates.sum(dim=-1, keepdim=True, dtype=torch.float64)
    k = torch.ceil(share - 1e-9).clamp(min=1)  # 0.07 · 100 is 7.000000000000001 in floating point, and must stay 7
    return candidates & (rank < k)
