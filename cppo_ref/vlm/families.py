"""The model families that can be trained: one row of facts each. A new family is a new row and a tiny model in the tests."""

import re
from dataclasses import dataclass, field
from typing import Any, Literal

Scope = Literal["all", "language", "vision"]


@dataclass(frozen=True)
class Family:
    """What the package must know of a model family; module names as in `model.named_modules()`."""

    vision: str
    projector: str
    language: str
    vision_linears: str  # regular expression, continues `vision`: the linear layers that get adapters
    language_linears: str  # the same for `language`
    # what one entry of pixel_values along its first dimension is: all images of a prompt, one image, or one patch of an image
    pixels_per: Literal["prompt", "image", "patch"]
    # who numbers the positions: we, from the attention mask, or the model, from the image grids (Qwen's M-RoPE)
    positions_from: Literal["mask", "grid"] = "mask"
    processor_options: dict[str, Any] = field(default_factory=dict)

    def skipped_in_4bit(self) -> list[str]:
        """Modules that stay out of 4-bit; bitsandbytes matches these from the start of a name."""
        return [self.vision, self.projector, "lm_head"]

    def adapter_pattern(self, scope: Scope) -> str:
        """Regular expression (full match) of the linear layers that get adapters."""
        parts = {
            "vision": rf"{re.escape(self.vision)}\.{self.vision_linears}",
            "language": rf"{re.escape(self.language)}\.{self.language_linears}",
        }
        return "|".join(parts.values()) if scope == "all" else parts[scope]


_LLAMA = r"layers\.\d+\.(self_attn\.(q|k|v|o)_proj|mlp\.(gate|up|down)_proj)"
_SIGLIP = r".*layers\.\d+\.(self_attn\.(q|k|v|out)_proj|mlp\.fc[12])"
_SMOL = Family(
    vision="model.vision_model",
    projector="model.connector",
    language="model.text_model",
    vision_linears=_SIGLIP,
    language_linears=_LLAMA,
    pixels_per="prompt",
    processor_options={"do_image_splitting": False},  # 64 image tokens in place of 1088
)

FAMILIES: dict[str, Family] = {
    "llava": Family(
        vision="model.vision_tower",
        projector="model.multi_modal_projector",
        language="model.language_model",
        vision_linears=_SIGLIP,
        language_linears=_LLAMA,
        pixels_per="image",
    ),
    "qwen2_5_vl": Family(
        vision="model.visual",
        projector="model.visual.merger",
        language="model.language_model",
        vision_linears=r"blocks\.\d+\.(attn\.(qkv|proj)|mlp\.(gate|up|down)_proj)",
        language_linears=_LLAMA,
        pixels_per="patch",
        positions_from="grid",
    ),
    "qwen3_vl": Family(
        vision="model.visual",
        projector="model.visual.merger",  # its deepstack mergers lie in model.visual too
        language="model.language_model",
        vision_linears=r"blocks\.\d+\.(attn\.(qkv|proj)|mlp\.linear_fc[12])",
        language_linears=_LLAMA,
        pixels_per="patch",
        positions_from="grid",
    ),
    "idefics3": _SMOL,  # SmolVLM-256M and -500M
    "smolvlm": _SMOL,  # SmolVLM2
}
