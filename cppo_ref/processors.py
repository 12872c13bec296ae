"""Processors: the stock one where torchvision is installed, else the same processor without its video part.

transformers builds a video processor for Qwen-VL and SmolVLM2 even if only images are read, and that needs torchvision. The
image processors have a PIL version, which gives the same pixels to rounding.
"""

from importlib.util import find_spec
from typing import Any

from transformers import AutoImageProcessor, AutoProcessor, AutoTokenizer
from transformers.models.idefics3.processing_idefics3 import Idefics3Processor
from transformers.models.qwen2_5_vl.processing_qwen2_5_vl import Qwen2_5_VLProcessor
from transformers.models.qwen3_vl.processing_qwen3_vl import Qwen3VLProcessor
from transformers.processing_utils import ProcessorMixin


def load_processor(path: str, model_type: str) -> Any:
    """The processor of the model at `path`; OSError or ValueError if there is none."""
    images_only = _IMAGES_ONLY.get(model_type)
    if images_only is None or find_spec("torchvision") is not None:
        return AutoProcessor.from_pretrained(path)
    return images_only(AutoImageProcessor.from_pretrained(path, backend="pil"), AutoTokenizer.from_pretrained(path))


class _WithoutVideo(ProcessorMixin):
    """What the two Qwen processors share once their video part is left out."""

    def __init__(self, image_processor: Any = None, tokenizer: Any = None, chat_template: str | None = None, **_: Any) -> None:
        for name in ("image", "video", "vision_start", "vision_end"):
            token = f"<|{name}_pad|>" if name in ("image", "video") else f"<|{name}|>"
            setattr(self, f"{name}_token", token)
            setattr(self, f"{name}_token_id", tokenizer.convert_tokens_to_ids(token))
        ProcessorMixin.__init__(self, image_processor, tokenizer, chat_template=chat_template or tokenizer.chat_template)


class _Qwen25(_WithoutVideo, Qwen2_5_VLProcessor):
    pass


class _Qwen3(_WithoutVideo, Qwen3VLProcessor):
    pass


def _smolvlm2(image_processor: Any, tokenizer: Any) -> Idefics3Processor:
    return Idefics3Processor(image_processor, tokenizer, image_seq_len=64, chat_template=tokenizer.chat_template)


_IMAGES_ONLY: dict[str, Any] = {"qwen2_5_vl": _Qwen25, "qwen3_vl": _Qwen3, "smolvlm": _smolvlm2}
