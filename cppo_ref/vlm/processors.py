"""Processors: the stock one for LLaVA, for the other families the same processor of PIL parts, without video.

transformers builds a video processor for InternVL, Qwen-VL and SmolVLM2 even if only images are read; it needs torchvision, for
SmolVLM2 num2words as well. The image processors have a PIL version, which gives the same pixels to rounding. It is taken
whether torchvision is installed or not, so that what is tested is what runs; it is named here because transformers 5.15 does
not find those of Idefics3 and SmolVLM2 by itself.
"""

from typing import Any

import transformers as hf

from cppo_ref.vlm.families import image_size


def load_processor(path: str, config: Any) -> Any:
    """The processor of the model at `path`, whose transformers config is `config`; raises what transformers does."""
    if config.model_type not in _IMAGES_ONLY:
        return hf.AutoProcessor.from_pretrained(path, trust_remote_code=False)
    processor, image_processor = _IMAGES_ONLY[config.model_type]
    name = {"Idefics3Processor": "image_seq_len", "InternVLProcessor": "image_seq_length"}.get(processor.__name__)
    options = {name: image_size(config)[1]} if name else {}
    tokenizer = hf.AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    template = processor.get_processor_dict(path)[0].get("chat_template") or tokenizer.chat_template
    return processor(image_processor.from_pretrained(path), tokenizer, chat_template=template, **options)


def _without_video(stock: type[hf.ProcessorMixin]) -> Any:
    """`stock` without its video part, and under its name, which a saved processor tells to those who load it."""
    return type(stock.__name__, (stock,), {"get_attributes": classmethod(lambda cls: ["image_processor", "tokenizer"])})


_IMAGES_ONLY: dict[str, tuple[Any, Any]] = {
    "internvl": (_without_video(hf.InternVLProcessor), hf.GotOcr2ImageProcessorPil),
    "qwen2_vl": (_without_video(hf.Qwen2VLProcessor), hf.Qwen2VLImageProcessorPil),
    "qwen2_5_vl": (_without_video(hf.Qwen2_5_VLProcessor), hf.Qwen2VLImageProcessorPil),
    "qwen3_vl": (_without_video(hf.Qwen3VLProcessor), hf.Qwen2VLImageProcessorPil),
    "qwen3_5": (_without_video(hf.Qwen3VLProcessor), hf.Qwen2VLImageProcessorPil),
    "idefics3": (hf.Idefics3Processor, hf.Idefics3ImageProcessorPil),
    "smolvlm": (hf.Idefics3Processor, hf.SmolVLMImageProcessorPil),
}
