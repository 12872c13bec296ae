"""Names of other libraries that are not public and that the package leans on: one list, a canary each.

If one of these fails after an update, the place named beside it must change.
"""

import importlib

import pytest

LEANED_ON = {  # module, dotted name: who leans on it
    ("transformers", "PreTrainedModel._hf_peft_config_loaded"): "vlm/export.py: its saved weights",
    ("transformers.integrations.bitsandbytes", "replace_with_bnb_linear"): "vlm/quantization.py: the skeleton's 4-bit layers",
    ("transformers", "DynamicCache.reorder_cache"): "vlm/decoding.py: one prompt's keys and values for all completions",
    ("transformers", "Qwen2VLImageProcessorPil"): "vlm/processors.py",
    ("transformers", "Idefics3ImageProcessorPil"): "vlm/processors.py",
    ("transformers", "SmolVLMImageProcessorPil"): "vlm/processors.py",
    ("transformers", "GotOcr2ImageProcessorPil"): "vlm/processors.py: InternVL",
    ("bitsandbytes.nn.modules", "Linear4bit"): "vlm/adapters.py, quantization.py",
    ("bitsandbytes.functional", "dequantize_4bit"): "vlm/adapters.py",
    ("peft.tuners.lora", "LoraLayer.get_base_layer"): "vlm/adapters.py, export.py",
    ("peft.tuners.lora", "Linear.get_delta_weight"): "vlm/adapters.py, export.py",
    ("accelerate.state", "AcceleratorState._shared_state"): "vlm/devices.py: precision and device of the process",
    ("accelerate.state", "AcceleratorState._reset_state"): "vlm/devices.py: another policy in the same process",
    ("torch.utils._python_dispatch", "TorchDispatchMode"): "vlm/peaks.py: every operation's tensors",
    ("torch.utils._pytree", "tree_leaves"): "vlm/peaks.py",
    ("torch", "UntypedStorage._cdata"): "vlm/peaks.py: which storage a tensor has",
}


@pytest.mark.parametrize(("module", "name"), LEANED_ON, ids=lambda text: text)
def test_it_is_still_there(module, name):
    thing = importlib.import_module(module)
    for part in name.split("."):
        assert hasattr(thing, part) or part in getattr(thing, "__annotations__", {}), LEANED_ON[module, name]
        thing = getattr(thing, part, None)
