"""Processors: the stock one for LLaVA, for the other families the same processor of PIL parts, without video.

transformers builds a video processor for InternVL, Qwen-VL and SmolVLM2 even if only images are read; it needs torchvision, for
SmolVLM2 num2words as well. The image processors have a PIL version, which gives the same pixels to rounding. It is taken
whether torchvision is installed or not, so that what is tested is what runs. Those of Idefics3 and SmolVLM2 are imported from
their modules, because transformers 5.15 does not find them otherwise.
"""

from typing import Any

import transformers
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

from cppo_ref.vlm.families import image_size

_IMAGES_ONLY: dict[str, tuple[Any, Any]] = {
    "internvl": (transformers.InternVLProcessor, transformers.GotOcr2ImageProcessorPil),
    "qwen2_vl": (transformers.Qwen2VLProcessor, transformers.Qwen2VLImageProcessorPil),
    "qwen2_5_vl": (transformers.Qwen2_5_VLProcessor, transformers.Qwen2VLImageProcessorPil),
    "qwen3_vl": (transformers.Qwen3VLProcessor, transformers.Qwen2VLImageProcessorPil),
    "qwen3_5": (transformers.Qwen3VLProcessor, transformers.Qwen2VLImageProcessorPil),
    "idefics3": (transformers.Idefics3Processor, Idefics3ImageProcessorPil),
    "smolvlm": (transformers.Idefics3Processor, SmolVLMImageProcessorPil),
}


def load_processor(path: str, config: Any) -> Any:
    """The processor of the model at `path`, whose transformers config is `config`; raises what transformers does."""
    if config.model_type not in _IMAGES_ONLY:
        return transformers.AutoProcessor.from_pretrained(path, trust_remote_code=False)
    stock, image_processor = _IMAGES_ONLY[config.model_type]
    # no video part; a saved processor tells its class's name to those who load it, so it keeps that of `stock`
    parts = classmethod(lambda cls: ["image_processor", "tokenizer"])
    processor: Any = type(stock.__name__, (stock,), {"get_attributes": parts})
    name = {"Idefics3Processor": "image_seq_len", "InternVLProcessor": "image_seq_length"}.get(stock.__name__)
    options = {name: image_size(config)[1]} if name else {}
    tokenizer = transformers.AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    template = stock.get_processor_dict(path)[0].get("chat_template") or tokenizer.chat_template
    return processor(image_processor.from_pretrained(path), tokenizer, chat_template=template, **options)
