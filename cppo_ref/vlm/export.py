"""Export: merge the adapters into 16-bit weights, and prove that the merged model computes what the policy computed.

Merging into the original weights would give a model that was never trained: the adapter learned on top of the rounded weights.
So each 4-bit layer is unpacked, its adapter is added, and the sum takes its place: no second model is held.
"""

import gc
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from peft.tuners.lora import LoraLayer
from torch import Tensor

from cppo_ref.config import CPPOConfig, InputError
from cppo_ref.examples.loading import split_rows
from cppo_ref.rollouts import Rollouts, generate_rollouts
from cppo_ref.runs.checkpoints import save_atomically
from cppo_ref.vlm.adapters import unpack_4bit
from cppo_ref.vlm.memory import estimate, measure
from cppo_ref.vlm.policy import Policy, load_policy
from cppo_ref.vlm.quantization import read_config, skeleton

MAX_KL = 0.01  # nats per token; rounding the weights to 16 bits may cost this much and no more
ROWS = 8  # of the shape world, two completions of at most 32 tokens each
PROBE: dict[str, Any] = {"group_size": 2, "max_new_tokens": 32}


def export_merged(
    model: str, adapter: str, output: Path, dtype: str = "bfloat16", *, device: str = "cpu", quantize: Any = "nf4"
) -> str:
    """Merge `adapter` into `model`, save the 16-bit model with its processor, reload it and compare; returns a report.

    `quantize` is that of the run: the adapter belongs to weights that were rounded to 4 bits, or to those that were not.

    Raises:
        InputError: unknown dtype, model or adapter.
        ArithmeticError: the merged model's distributions differ by more than MAX_KL; nothing was kept.
    """
    if dtype not in ("bfloat16", "float16"):
        raise InputError(f"dtype is {dtype!r}, expected bfloat16 or float16")
    policy = load_policy(model, adapter=adapter, device=device, dtype=dtype, quantize=quantize)
    rows = split_rows("validation", count=ROWS)
    probe = generate_rollouts(policy, rows, **PROBE, rng=torch.Generator().manual_seed(0))
    expected = _probe_logprobs(policy, probe)
    processor, merged = policy.processor, merged_model(policy)
    del policy  # its layers are the merged model's now
    kl = float("nan")

    def write(folder: Path) -> None:
        """The merged model, loaded again and compared; ArithmeticError if it is another one."""
        nonlocal kl, merged
        merged.save_pretrained(folder)
        processor.save_pretrained(folder)
        del merged  # only one of the two models is held
        gc.collect()
        reloaded = load_policy(str(folder), quantize="none", lora=None, device=device, dtype=dtype)
        kl = F.kl_div(_probe_logprobs(reloaded, probe), expected, reduction="batchmean", log_target=True).item()
        if not kl <= MAX_KL:
            raise ArithmeticError(f"merged model differs by {kl:.3g} nats per token, expected at most {MAX_KL}")

    save_atomically(output, write)
    return f"merged model in {output} ({dtype}); KL to the QLoRA policy over {len(expected)} tokens: {kl:.2e} nats"


def export_peak(model: str) -> float:
    """Bytes that an export holds at its peak: the model in 16 bits while it scores the probe, whose distributions are kept."""
    run = CPPOConfig(model=model, quantize="none", prompts_per_step=ROWS, **PROBE)
    size = measure(skeleton(read_config(model), run), 48 * 48)  # the probe's images
    distributions = 4 * ROWS * run.group_size * run.max_new_tokens * size.vocabulary
    return estimate(size, run, question_tokens=32)["reference"] - 16 * size.adapter_weights + 4 * distributions


@torch.no_grad()
def _probe_logprobs(policy: Policy, probe: Rollouts) -> Float[Tensor, "N V"]:
    """log π at every token of the probe's completions."""
    prompts, mask = probe.prompts.take(probe.prompt_of_row), probe.completion_mask
    return policy.score(prompts, probe.completion_ids, mask)[mask].log_softmax(dim=-1)


@torch.no_grad()
def merged_model(policy: Policy) -> Any:
    """The bare model whose weights are what `policy` computes with, in its dtype; made in place, so `policy` is used up."""
    unpack_4bit(policy.vlm, policy.dtype)
    for layer in policy.vlm.modules():
        if isinstance(layer, LoraLayer):
            (adapter,) = layer.active_adapters
            layer.get_base_layer().weight += layer.get_delta_weight(adapter)  # type: ignore[operator]  # rounded once
    model = policy.model.unload()
    model.hf_quantizer, model._hf_peft_config_loaded = None, False  # else it is saved as a 4-bit model
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    return model
