"""The same bits in two thirds of the time: unpack frozen 4-bit weights once instead of in every forward and backward."""

import torch
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn.modules import Linear4bit

from cppo_ref.policy import Policy


def dequantize_once(policy: Policy) -> int:
    """Replace every NF4 linear layer by a plain one that holds the same, unpacked weights; returns how many there were.

    The weights are frozen and the kernels multiply by the unpacked matrix, so that losses, gradients and samples stay the same
    to the bit (a test compares). It costs the memory that NF4 saves: for small models on a CPU only.
    """
    packed = [(name, module) for name, module in policy.model.named_modules() if type(module) is Linear4bit]
    for name, module in packed:
        assert module.bias is None, f"{name} has a bias"
        weight = dequantize_4bit(module.weight.data, module.weight.quant_state).to(policy.dtype)  # pyright: ignore
        plain = torch.nn.Linear(module.in_features, module.out_features, bias=False, device="meta")
        plain.weight = torch.nn.Parameter(weight.reshape(module.out_features, module.in_features), requires_grad=False)
        parent, _, last = name.rpartition(".")
        setattr(policy.model.get_submodule(parent), last, plain)
    return len(packed)
