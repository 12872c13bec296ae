"""Export: merge the adapters into 16-bit weights, and prove that the merged model computes what the policy computed."""

from pathlib import Path
from typing import Any

import torch
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn.modules import Linear4bit
from peft import PeftModel

from cppo_ref.config import InputError
from cppo_ref.examples.loading import split_rows
from cppo_ref.rollouts import Rollouts, generate_rollouts
from cppo_ref.runs.checkpoints import save_atomically
from cppo_ref.vlm.policy import Policy, load_policy

MAX_KL = 0.01  # nats per token; rounding the weights to 16 bits may cost this much and no more


def export_merged(model: str, adapter: str, output: Path, dtype: str = "bfloat16") -> str:
    """Merge `adapter` into `model`, save the 16-bit model with its processor, reload it and compare; returns a report.

    Raises:
        InputError: unknown dtype, model or adapter.
        ArithmeticError: the merged model's distributions differ by more than MAX_KL; nothing was kept.
    """
    if dtype not in ("bfloat16", "float16"):
        raise InputError(f"dtype is {dtype!r}, expected bfloat16 or float16")
    policy = load_policy(model, adapter=adapter)
    probe = generate_rollouts(
        policy, split_rows("validation", count=8), group_size=2, max_new_tokens=32, rng=torch.Generator().manual_seed(0)
    )
    expected = _probe_logprobs(policy, probe)
    merged = merged_model(model, adapter, policy).to(getattr(torch, dtype))

    kl = float("nan")

    def write(folder: Path) -> None:
        """The merged model, loaded again and compared; ArithmeticError if it is another one."""
        nonlocal kl
        merged.save_pretrained(folder)
        policy.processor.save_pretrained(folder)
        reloaded = load_policy(str(folder), quantize="none", lora=None, device=policy.device.type, dtype="float32")
        kl = _mean_kl(expected, _probe_logprobs(reloaded, probe), probe)
        if not kl <= MAX_KL:
            raise ArithmeticError(f"merged model differs by {kl:.3g} nats per token, expected at most {MAX_KL}")

    save_atomically(output, write)
    tokens = int(probe.completion_mask.sum())
    return f"merged model in {output} ({dtype}); KL to the QLoRA policy over {tokens} tokens: {kl:.2e} nats"


@torch.no_grad()
def _probe_logprobs(policy: Policy, probe: Rollouts) -> torch.Tensor:
    prompts = probe.prompts.take(probe.prompt_of_row)
    return policy.score(prompts, probe.completion_ids, probe.completion_mask).log_softmax(dim=-1)


def _mean_kl(expected: torch.Tensor, got: torch.Tensor, probe: Rollouts) -> float:
    divergence = torch.nn.functional.kl_div(got, expected, reduction="none", log_target=True).sum(dim=-1)
    return divergence[probe.completion_mask].mean().item()


def merged_model(model: str, adapter: str, policy: Policy) -> Any:
    """The bare float32 model whose weights are what `policy` computes with: dequantised NF4 plus the adapter.

    Merging into the original weights instead would give a model that was never trained: the adapter learned on top of the
    rounded weights.
    """
    plain = load_policy(model, quantize="none", lora=None, device=policy.device.type, dtype="float32").model
    for name, layer in policy.model.get_base_model().named_modules():
        if isinstance(layer, Linear4bit):
            packed: Any = layer.weight  # a Params4bit
            target = plain.get_submodule(name.removesuffix(".base_layer"))
            target.weight.data = dequantize_4bit(packed.data, packed.quant_state).float()
    return PeftModel.from_pretrained(plain, adapter).merge_and_unload()
