"""The accelerator that moves, scales and clips for a policy."""

from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from cppo_ref.vlm.policy import Policy


def accelerator_for(policy: Policy, **options: Any) -> Accelerator:
    """The accelerator of `policy`'s device; it scales the loss if the policy computes in float16 on a GPU.

    Prepare the optimizer with it, or gradients stay scaled.
    """
    precision = "fp16" if policy.dtype == torch.float16 and policy.device.type == "cuda" else "no"
    if AcceleratorState._shared_state.get("_mixed_precision", precision) != precision:
        AcceleratorState._reset_state()  # one per process, and it keeps the first precision that was asked for
    return Accelerator(cpu=policy.device.type == "cpu", mixed_precision=precision, **options)
