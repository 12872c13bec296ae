"""Which device and which number format a policy computes in, and the accelerator that scales and clips for it."""

import os
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from cppo_ref.config import InputError


def choose_device(device: str) -> torch.device:
    """ "auto" is the GPU if there is one; InputError for another name, or if "cuda" is asked for and there is none."""
    if device not in ("auto", "cpu", "cuda"):
        raise InputError(f"device is {device!r}, expected auto, cpu, cuda: CUDA_VISIBLE_DEVICES chooses among several GPUs")
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("device is 'cuda', but torch sees no GPU: use --device cpu or install a CUDA build of torch")
    if device == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", torch.cuda.current_device())  # accelerate asks 4-bit models for the number


def choose_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """ "auto": float32 on a CPU, bfloat16 on GPUs that compute in it (capability ≥ 8), else float16; InputError: no such."""
    if dtype not in ("auto", "float32", "bfloat16", "float16"):
        raise InputError(f"dtype is {dtype!r}, expected auto, float32, bfloat16, float16")
    if dtype != "auto":
        return getattr(torch, dtype)
    if device.type == "cpu":
        return torch.float32
    # torch.cuda.is_bf16_supported() says yes on a T4, which only emulates it
    return torch.bfloat16 if torch.cuda.get_device_capability(device)[0] >= 8 else torch.float16


def check_one_process() -> None:
    """InputError under torchrun or accelerate with several processes: each would train alone, on all rows."""
    if (processes := int(os.environ.get("WORLD_SIZE", 1))) > 1:
        raise InputError(
            f"there are {processes} processes, and this trainer is for one: several train with CPPOTrainer, "
            f"as in `torchrun --nproc_per_node {processes} scripts/train_many.py` (docs/many-gpus.md)"
        )


def accelerator_for(policy: Any, *, scale: bool = True, **options: Any) -> Accelerator:
    """The accelerator of `policy`'s device; unless `scale` is off, it scales the loss of a float16 policy on a GPU.

    Prepare the optimizer with it, or gradients stay scaled.
    """
    check_one_process()
    precision = "fp16" if scale and policy.dtype == torch.float16 and policy.device.type == "cuda" else "no"
    state = AcceleratorState._shared_state  # one per process, and it keeps the precision and device first asked for
    if state and (state["_mixed_precision"], state["device"].type) != (precision, policy.device.type):
        AcceleratorState._reset_state(reset_partial_state=True)
    return Accelerator(cpu=policy.device.type == "cpu", mixed_precision=precision, **options)
