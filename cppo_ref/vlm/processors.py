"""Processors: the stock one for LLaVA, for the other families the same processor of PIL parts, without video.

transformers builds a video processor for Qwen-VL and SmolVLM2 even if only images are read, and that needs torchvision, for
SmolVLM2 num2words as well. The image processors have a PIL version, which gives the same pixels to rounding. It is taken
whether torchvision is installed or not, so that what is tested is what runs; it is named here because transformers 5.15 does
not find those of Idefics3 and SmolVLM2 by itself.
"""

from typing import Any

from transformers import AutoProcessor, AutoTokenizer
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.idefics3.processing_idefics3 import Idefics3Processor
from transformers.models.qwen2_5_vl.processing_qwen2_5_vl import Qwen2_5_VLProcessor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.qwen3_vl.processing_qwen3_vl import Qwen3VLProcessor
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil
from transformers.processing_utils import ProcessorMixin


def load_processor(path: str, config: Any) -> Any:
    """The processor of the model at `path`, whose transformers config is `config`; OSError or ValueError if there is none."""
    if config.model_type not in _IMAGES_ONLY:
        return AutoProcessor.from_pretrained(path)
    processor, image_processor = _IMAGES_ONLY[config.model_type]
    options: dict[str, Any] = {}
    if processor is Idefics3Processor:
        vision = config.vision_config
        options["image_seq_len"] = (vision.image_size // vision.patch_size // config.scale_factor) ** 2
    tokenizer = AutoTokenizer.from_pretrained(path)
    template = processor.get_processor_dict(path)[0].get("chat_template") or tokenizer.chat_template
    return processor(image_processor.from_pretrained(path), tokenizer, chat_template=template, **options)


class _WithoutVideo(ProcessorMixin):
    """What the two Qwen processors share once their video part is left out."""

    def __init__(self, image_processor: Any, tokenizer: Any, chat_template: str) -> None:
        for name in ("image", "video", "vision_start", "vision_end"):
            token = f"<|{name}_pad|>" if name in ("image", "video") else f"<|{name}|>"
            setattr(self, f"{name}_token", token)
            setattr(self, f"{name}_token_id", tokenizer.convert_tokens_to_ids(token))
        ProcessorMixin.__init__(self, image_processor, tokenizer, chat_template=chat_template)


class _Qwen25(_WithoutVideo, Qwen2_5_VLProcessor):
    pass


class _Qwen3(_WithoutVideo, Qwen3VLProcessor):
    pass


# what a saved processor says it is: the stock class, which a reader of the merged model has
_Qwen25.__name__, _Qwen3.__name__ = Qwen2_5_VLProcessor.__name__, Qwen3VLProcessor.__name__


_IMAGES_ONLY: dict[str, tuple[Any, Any]] = {
    "qwen2_5_vl": (_Qwen25, Qwen2VLImageProcessorPil),
    "qwen3_vl": (_Qwen3, Qwen2VLImageProcessorPil),
    "idefics3": (Idefics3Processor, Idefics3ImageProcessorPil),
    "smolvlm": (Idefics3Processor, SmolVLMImageProcessorPil),
}
