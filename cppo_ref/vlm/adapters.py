"""Adapters on a frozen base; and memory for speed, for small models on a CPU.

A 4-bit layer unpacks its weight in every forward and backward pass, and an adapter costs two more products per layer. For a
model of a few million parameters that is most of the time: `unpack_4bit` holds the weights unpacked (4 bytes each in float32,
in place of half of one; they are those that the kernels multiply by, to the bit), and `merged_adapters` saves the products
in float32. In 16 bits a sum with the weight would round most of what an adapter has learned away.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn.modules import Linear4bit
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict, load_peft_weights, set_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from torch import Tensor

from cppo_ref.config import InputError
from cppo_ref.runs.manifest import check_whole
from cppo_ref.vlm.families import Family, Scope


@dataclass(frozen=True)
class LoraOptions:
    """The adapters: rank, scale (alpha / rank), where they sit, and the seed of their first values."""

    rank: int = 16
    alpha: int = 32
    scope: Scope = "all"
    seed: int = 0


DEFAULT_LORA = LoraOptions()


def with_adapters(model: Any, family: Family, lora: LoraOptions | None, adapter: str | None) -> Any:
    """`model` with the adapters of folder `adapter`, else with fresh ones, else as it is; InputError if they do not fit."""
    if adapter is not None:
        check_whole(Path(adapter))
        if Path(adapter).is_dir() and not (Path(adapter) / "adapter_config.json").is_file():
            raise InputError(
                f"adapter {adapter!r} holds no adapter_config.json: give a folder that does, such as a run's adapter/"
            )
        try:
            adapted = PeftModel.from_pretrained(model, adapter, is_trainable=True)
        except Exception as error:  # peft raises many kinds
            raise InputError(f"adapter {adapter!r} not found or not made for this model: give its folder") from error
        load_adapter(adapted, adapter, "cpu")  # peft itself lets half an adapter pass
        return adapted
    if lora is None:
        return model
    options = LoraConfig(r=lora.rank, lora_alpha=lora.alpha, target_modules=family.adapter_pattern(lora.scope))
    with torch.random.fork_rng():
        torch.manual_seed(lora.seed)
        return get_peft_model(model, options)


def load_adapter(model: Any, folder: str, device: Any) -> None:
    """Load the adapters of `folder` in place; InputError unless they are the model's tensor for tensor, and finite."""
    try:
        weights = load_peft_weights(folder, device=str(device))
    except Exception as error:  # safetensors, torch and the Hub's client raise kinds of their own
        raise InputError(f"adapter {folder!r} could not be read: give a whole one, or train it again") from error
    expected = {name: tuple(tensor.shape) for name, tensor in get_peft_model_state_dict(model).items()}
    held = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    for name in sorted(expected.keys() | held.keys()):
        got, wanted = held.get(name, "absent"), expected.get(name, "absent")
        if got != wanted:
            raise InputError(f"adapter {folder!r} is not made for this model: {name} is {got}, expected {wanted}")
        if not weights[name].isfinite().all():
            raise InputError(f"adapter {folder!r}: {name} is not finite; take an earlier checkpoint")
    set_peft_model_state_dict(model, weights)


def unpack_4bit(model: torch.nn.Module, dtype: torch.dtype) -> None:
    """Replace every 4-bit linear layer of `model`, also below an adapter, by a plain frozen one with the same weights."""
    for name, module in list(model.named_modules()):
        if type(module) is Linear4bit:
            held: Any = module.weight  # a Params4bit
            plain = torch.nn.Linear(module.in_features, module.out_features, bias=False, device="meta")
            plain.weight = torch.nn.Parameter(dequantize_4bit(held.data, held.quant_state).to(dtype), requires_grad=False)
            plain.bias = module.bias
            model.set_submodule(name, plain)


def quicken_adapters(model: torch.nn.Module) -> None:
    """Let every adapted plain layer compute W x + b + s·B A x in three products and nothing else."""
    for layer in _plain_layers(model):
        layer.forward = partial(_adapted, layer)  # type: ignore[method-assign]


def _plain_layers(model: torch.nn.Module) -> list[Any]:
    """The layers with adapters whose own weight is not packed."""
    return [m for m in model.modules() if isinstance(m, LoraLayer) and type(m.get_base_layer()) is torch.nn.Linear]


def _adapted(layer: Any, x: Tensor) -> Tensor:
    base, (name,) = layer.get_base_layer(), layer.active_adapters
    if layer.disable_adapters:
        return F.linear(x, base.weight, base.bias)
    rows, down, up = x.flatten(0, -2), layer.lora_A[name].weight, layer.lora_B[name].weight  # adapters are in float32
    plain, narrow = F.linear(rows, base.weight, base.bias), F.linear(rows.to(down.dtype), down)
    wide = torch.addmm(plain.to(up.dtype), narrow, up.T, alpha=layer.scaling[name]).to(x.dtype)
    return wide.unflatten(0, x.shape[:-1])


@contextmanager
def merged_adapters(model: torch.nn.Module) -> Iterator[None]:
    """Inside, where no graph may be wanted, a quickened layer is one product, (W + s·B A) x + b, unless its adapter is off.

    The sums are made on the way in, beside the weights, and dropped on the way out.
    """
    layers = [layer for layer in _plain_layers(model) if not layer.disable_adapters]
    with torch.no_grad():
        for layer in layers:
            base, (name,) = layer.get_base_layer(), layer.active_adapters
            layer.forward = partial(F.linear, weight=base.weight + layer.get_delta_weight(name), bias=base.bias)
    try:
        yield
    finally:
        quicken_adapters(model)
