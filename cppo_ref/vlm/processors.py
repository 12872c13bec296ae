"""Processors: the stock one where all that it needs is installed, else the same processor without its video part.

transformers builds a video processor for Qwen-VL and SmolVLM2 even if only images are read, and that needs torchvision, for
SmolVLM2 num2words as well. The image processors have a PIL version, which gives the same pixels to rounding.
"""

from importlib.util import find_spec
from typing import Any

from transformers import AutoImageProcessor, AutoProcessor, AutoTokenizer
from transformers.models.idefics3.processing_idefics3 import Idefics3Processor
from transformers.models.qwen2_5_vl.processing_qwen2_5_vl import Qwen2_5_VLProcessor
from transformers.models.qwen3_vl.processing_qwen3_vl import Qwen3VLProcessor
from transformers.processing_utils import ProcessorMixin


def load_processor(path: str, config: Any) -> Any:
    """The processor of the model at `path`, whose transformers config is `config`; OSError or ValueError if there is none."""
    images_only = _IMAGES_ONLY.get(config.model_type)
    video_needs = ["torchvision", "num2words"] if config.model_type == "smolvlm" else ["torchvision"]
    if images_only is None or all(find_spec(name) for name in video_needs):
        return AutoProcessor.from_pretrained(path)
    tokenizer = AutoTokenizer.from_pretrained(path)
    return images_only(AutoImageProcessor.from_pretrained(path, backend="pil"), tokenizer, config)


class _WithoutVideo(ProcessorMixin):
    """What the two Qwen processors share once their video part is left out."""

    def __init__(self, image_processor: Any = None, tokenizer: Any = None, *_: Any, **__: Any) -> None:
        for name in ("image", "video", "vision_start", "vision_end"):
            token = f"<|{name}_pad|>" if name in ("image", "video") else f"<|{name}|>"
            setattr(self, f"{name}_token", token)
            setattr(self, f"{name}_token_id", tokenizer.convert_tokens_to_ids(token))
        ProcessorMixin.__init__(self, image_processor, tokenizer, chat_template=tokenizer.chat_template)


class _Qwen25(_WithoutVideo, Qwen2_5_VLProcessor):
    pass


class _Qwen3(_WithoutVideo, Qwen3VLProcessor):
    pass


# what a saved processor says it is: the stock class, which a reader of the merged model has
_Qwen25.__name__, _Qwen3.__name__ = Qwen2_5_VLProcessor.__name__, Qwen3VLProcessor.__name__


def _smolvlm2(image_processor: Any, tokenizer: Any, config: Any) -> Idefics3Processor:
    vision = config.vision_config
    tokens = (vision.image_size // vision.patch_size // config.scale_factor) ** 2
    return Idefics3Processor(image_processor, tokenizer, image_seq_len=tokens, chat_template=tokenizer.chat_template)


_IMAGES_ONLY: dict[str, Any] = {"qwen2_5_vl": _Qwen25, "qwen3_vl": _Qwen3, "smolvlm": _smolvlm2}
