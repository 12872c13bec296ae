"""NF4: which parts of a model are in 4 bits, the check that no other part is, and a model's skeleton to look at both."""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch
from bitsandbytes.nn.modules import Linear4bit
from transformers import AutoConfig, AutoModelForImageTextToText, BitsAndBytesConfig
from transformers.integrations.bitsandbytes import replace_with_bnb_linear

from cppo_ref.config import CPPOConfig, InputError
from cppo_ref.examples.rows import first_line
from cppo_ref.vlm.families import FAMILIES, Family
from cppo_ref.worlds.splits import data_folder

ARCHITECTURES = Path(__file__).parent / "architectures"  # configs of models that the profiles use, to read without a network


def nf4_config(family: Family, compute: torch.dtype) -> BitsAndBytesConfig:
    """Double-quantised NF4 for the language model; vision tower, projector and head keep their 16 or 32 bits."""
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute,
        llm_int8_skip_modules=family.skipped_in_4bit(),
    )


def check_4bit(model: Any, family: Family) -> None:
    """Assert that no 4-bit layer sits where it costs accuracy, and that none repacks its weights on CPU."""
    for name, module in model.named_modules():
        if isinstance(module, Linear4bit):
            wrong = name.startswith(tuple(family.skipped_in_4bit()))
            assert not wrong, f"{name} was quantised to 4 bits; the family table must keep it out"
            # eval-mode forwards on AVX512-BF16 CPUs would repack the weight into a form without a backward
            module.support_avx512bf16_for_cpu = False


def model_config(name_or_path: str) -> Any:
    """The transformers config of "tiny", a folder, a Hub name, or a known architecture ("Qwen3-VL-2B"), if it is supported.

    Raises:
        InputError: no such model, or its family is not in the table.
    """
    known = ARCHITECTURES / f"{name_or_path.split('/')[-1].removesuffix('-Instruct').removesuffix('-hf')}.json"
    if not known.is_file() or Path(name_or_path).is_dir():
        return read_config(name_or_path)
    fields = json.loads(known.read_text())
    return AutoConfig.for_model(fields.pop("model_type"), **fields)


def read_config(name_or_path: str) -> Any:
    """The transformers config of a model whose weights can be loaded: "tiny", a folder or a Hub name.

    Raises:
        InputError: no such model, its family is not in the table, or its logits are not those of the head.
    """
    with reading(name_or_path):
        config = AutoConfig.from_pretrained(model_path(name_or_path), trust_remote_code=False)
    if config.model_type not in FAMILIES:
        raise InputError(f"model type {config.model_type!r} is not supported, expected one of {', '.join(FAMILIES)}")
    check_head(config)
    return config


def check_head(config: Any) -> None:
    """InputError if a model's logits are not those of its head, but scaled or capped."""
    for part, name in product((config, config.get_text_config()), ("final_logit_softcapping", "logits_scaling", "logit_scale")):
        if (value := getattr(part, name, None)) not in (None, 1):
            model = config.name_or_path or config.model_type
            raise InputError(f"{name} of {model!r} is {value}, expected none: logits are the head's, take another model")


@contextmanager
def reading(name: str) -> Iterator[None]:
    """Whatever fails inside is about the files of model `name`, which are a stranger's: an InputError of one sentence."""
    try:
        yield
    except (InputError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # transformers, tokenizers, safetensors and jinja raise kinds of their own
        if "trust_remote_code" in str(error):
            raise InputError(f"model {name!r} brings code of its own, which is never run: take another model") from error
        if isinstance(error, OSError) and not Path(model_path(name)).is_dir():
            where = "here, and the Hub was not reached" if "couldn't connect" in str(error) else "here or on the Hub"
            raise InputError(f'model {name!r} not found {where}: give "tiny", a model folder or a Hub name') from error
        raise InputError(f"model {name!r} could not be loaded ({first_line(error):.200}): give a whole model") from error


def model_path(name_or_path: str) -> str:
    """Where "tiny" is; other names are paths or Hub names already."""
    return str(data_folder() / "tiny-vlm") if name_or_path == "tiny" else name_or_path


@dataclass(frozen=True)
class Skeleton:
    """A model without weights (on the meta device), quantised by the same library call as a loaded one."""

    config: Any
    family: Family
    modules: dict[str, torch.nn.Module]
    in_4bit: dict[str, Linear4bit]
    adapted: dict[str, torch.nn.Linear]  # linear layers that get adapters
    total_weights: int  # without adapters; tied weights count once
    adapter_weights: int


def skeleton(config: Any, run: CPPOConfig) -> Skeleton:
    """Build the model of `config` as `load_policy` would for `run`, but without weights: seconds and no memory."""
    family = FAMILIES[config.model_type]
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config, dtype=torch.bfloat16, trust_remote_code=False)
    total = sum(parameter.numel() for parameter in model.parameters())
    if run.quantize == "nf4":
        nf4 = nf4_config(family, torch.bfloat16)
        model = replace_with_bnb_linear(model, modules_to_not_convert=family.skipped_in_4bit(), quantization_config=nf4)
    modules = dict(model.named_modules())
    pattern = re.compile(family.adapter_pattern(run.lora_scope))
    in_4bit = {name: module for name, module in modules.items() if isinstance(module, Linear4bit)}
    adapted = {n: m for n, m in modules.items() if isinstance(m, torch.nn.Linear) and pattern.fullmatch(n)}
    adapter_weights = sum(run.lora_rank * (m.in_features + m.out_features) for m in adapted.values())
    return Skeleton(config, family, modules, in_4bit, adapted, total, adapter_weights)
