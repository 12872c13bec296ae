"""TRL's GRPO loss, called on plain tensors: its `_compute_loss` run unbound, on a stand-in for the trainer."""

from collections import defaultdict
from types import SimpleNamespace

import torch
from trl.trainer.grpo_trainer import GRPOTrainer


class OneProcess:
    """The part of an accelerator that the loss's metrics ask for."""

    num_processes = 1
    sync_gradients = True

    def gather(self, tensor):
        return tensor

    def reduce(self, tensor, reduction="sum"):
        return tensor


def grpo_loss(logprobs, old_logprobs, ref_logprobs, advantages, completion_mask, *, loss_type, beta, clip, max_length):
    """TRL's loss with graph; `old_logprobs` None is TRL's on-policy case.

    loss_type: "dapo", "bnpo" (token mean), "grpo" (mean of sequence means) or "dr_grpo" (divided by B · max_length).
    """
    rows, tokens = completion_mask.shape
    trainer = SimpleNamespace(
        loss_type=loss_type,
        beta=beta,
        epsilon_low=clip[0],
        epsilon_high=clip[1],
        max_completion_length=max_length,
        importance_sampling_level="token",
        current_gradient_accumulation_steps=1,
        accelerator=OneProcess(),
        model=SimpleNamespace(training=True),
        # use_bias_correction_kl: TRL's default multiplies the KL by the ratio; the GRPO paper does not
        args=SimpleNamespace(use_bias_correction_kl=False, delta=None, steps_per_generation=1),
        # what the trainer can do besides, switched off
        aux_loss_enabled=False,
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        use_vllm=False,
        _entropy_bonus_enabled=False,
        _metrics={"train": defaultdict(list)},
        _get_per_token_logps_and_entropies=lambda *_, **__: (logprobs, torch.zeros_like(logprobs), None),
    )
    inputs = {
        "prompt_ids": torch.zeros(rows, 1, dtype=torch.long),
        "prompt_mask": torch.ones(rows, 1, dtype=torch.long),
        "completion_ids": torch.zeros(rows, tokens, dtype=torch.long),
        "completion_mask": completion_mask.long(),
        "advantages": advantages,
        "num_items_in_batch": completion_mask.sum(),
        "ref_per_token_logps": ref_logprobs,
        "old_per_token_logps": old_logprobs,
    }
    return GRPOTrainer._compute_loss(trainer, None, inputs)
