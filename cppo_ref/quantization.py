"""NF4: which parts of a model are in 4 bits, and the check that no other part is."""

from typing import Any

import torch
from bitsandbytes.nn.modules import Linear4bit
from transformers import BitsAndBytesConfig

from cppo_ref.families import Family


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
