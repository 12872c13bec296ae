"""Processors: the stock one for LLaVA, for the other families the same processor of PIL parts, without video.

transformers builds a video processor for InternVL, Qwen-VL and SmolVLM2 even if only images are read; it needs torchvision, for
SmolVLM2 num2words as well. The image processors have a PIL version, which gives the same pixels to rounding. It is taken
whether torchvision is installed or not, so that what is tested is what runs; it is named here because transformers 5.15 does
not find those of Idefics3 and SmolVLM2 by itself.
"""

from typing import Any

from transformers import AutoProcessor, AutoTokenizer
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.idefics3.processing_idefics3 import Idefics3Processor
from transformers.models.internvl.processing_internvl import InternVLProcessor
from transformers.models.qwen2_5_vl.processing_qwen2_5_vl import Qwen2_5_VLProcessor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.qwen2_vl.processing_qwen2_vl import Qwen2VLProcessor
from transformers.models.qwen3_vl.processing_qwen3_vl import Qwen3VLProcessor
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil
from transformers.processing_utils import ProcessorMixin

from cppo_ref.vlm.families import image_size


def load_processor(path: str, config: Any) -> Any:
    """The processor of the model at `path`, whose transformers config is `config`; raises what transformers does."""
    if config.model_type not in _IMAGES_ONLY:
        return AutoProcessor.from_pretrained(path, trust_remote_code=False)
    processor, image_processor = _IMAGES_ONLY[config.model_type]
    name = {"Idefics3Processor": "image_seq_len", "InternVLProcessor": "image_seq_length"}.get(processor.__name__)
    options = {name: image_size(config)[1]} if name else {}
    tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    template = processor.get_processor_dict(path)[0].get("chat_template") or tokenizer.chat_template
    return processor(image_processor.from_pretrained(path), tokenizer, chat_template=template, **options)


def _without_video(stock: type[ProcessorMixin]) -> Any:
    """`stock` without its video part, and under its name, which a saved processor tells to those who load it."""
    return type(stock.__name__, (stock,), {"get_attributes": classmethod(lambda cls: ["image_processor", "tokenizer"])})


_IMAGES_ONLY: dict[str, tuple[Any, Any]] = {
    "internvl": (_without_video(InternVLProcessor), GotOcr2ImageProcessorPil),
    "qwen2_vl": (_without_video(Qwen2VLProcessor), Qwen2VLImageProcessorPil),
    "qwen2_5_vl": (_without_video(Qwen2_5_VLProcessor), Qwen2VLImageProcessorPil),
    "qwen3_vl": (_without_video(Qwen3VLProcessor), Qwen2VLImageProcessorPil),
    "qwen3_5": (_without_video(Qwen3VLProcessor), Qwen2VLImageProcessorPil),
    "idefics3": (Idefics3Processor, Idefics3ImageProcessorPil),
    "smolvlm": (Idefics3Processor, SmolVLMImageProcessorPil),
}
