"""Credit by looking: GRPO whose advantages go to the tokens, and the completions, that depend most on the image.

After VPPO (arXiv 2510.09285). Its entropy penalty is left out; the removing view is PAPO's patch mask.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from cppo_ref.config import CPPOConfig
from cppo_ref.cpl import view_divergence
from cppo_ref.perception import select_perception_tokens
from cppo_ref.rollouts import Batch
from cppo_ref.vlm.chunks import over_tokens
from cppo_ref.vlm.policy import Policy

TOP_TOKENS = 0.4  # share of each completion's tokens that learn
LEAST = 0.9  # factor of the completion that depends least on its image


class Looking:
    """The credit of one step's tokens, found where CPPO would choose its tokens: there both views are at hand."""

    factors: Float[Tensor, "B T"]

    def choose(
        self, policy: Policy, batch: Batch, removed_entropy: Float[Tensor, "B T"], config: CPPOConfig, step: int
    ) -> Bool[Tensor, "B T"]:
        """No token for CPL; the factors of all tokens are noted."""
        mask = batch.rollouts.completion_mask
        self.factors = credit(visual_dependency(policy, batch, config), mask)
        return torch.zeros_like(mask)

    def credit(self, batch: Batch) -> Float[Tensor, "B T"]:
        """What each token's advantage is multiplied by."""
        return self.factors


def visual_dependency(policy: Policy, batch: Batch, config: CPPOConfig) -> Float[Tensor, "B T"]:
    """KL(π(·|I) ‖ π(·|I⁻)) before each token, in nats; 0 off the mask. Every row must have its views: no advantage gate."""
    assert batch.views is not None and bool(batch.gate.all())
    ids, mask = batch.rollouts.completion_ids, batch.rollouts.completion_mask

    def divergence(plain: Tensor, removed: Tensor, ids: Tensor) -> Tensor:
        """[N, H] under both images to [N]."""
        anchor, view = (policy.logits(states, temperature=config.temperature) for states in (plain, removed))
        return view_divergence(anchor, view, ids, estimator="exact")

    with policy.scoring():
        plain, removed = (policy.hidden_states(prompts, ids, mask) for prompts in (batch.prompts, batch.views[1]))
        return over_tokens(divergence, mask, plain, removed, ids, vocabulary=policy.vocabulary)


def credit(dependency: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"]) -> Float[Tensor, "B T"]:
    """The factor of each token's advantage: 0 outside the most dependent tokens of a completion, else the completion's own.

    That one rises linearly with the completion's mean dependency, from LEAST for the lowest; the mean over completions is 1.
    """
    learning = select_perception_tokens(dependency, dependency, mask, top_fraction=TOP_TOKENS, ranking="absolute")
    means = (dependency * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1)
    above = means - means.min()
    share = above / above.mean() if above.mean() > 0 else torch.ones_like(above)  # mean 1
    return learning * (LEAST + (1 - LEAST) * share)[:, None]
