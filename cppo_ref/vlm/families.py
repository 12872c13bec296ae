"""The model families that can be trained: one row of facts each. A new family is a new row and a tiny model in the tests."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Scope = Literal["all", "language", "vision"]


_LLAMA = r"layers\.\d+\.(self_attn\.(q|k|v|o)_proj|mlp\.(gate|up|down)_proj)"
_DELTA_NET = r"layers\.\d+\.linear_attn\.(in_proj_(qkv|z|b|a)|out_proj)"  # the linear-attention layers of Qwen3.5
_SIGLIP = r".*layers\.\d+\.(self_attn\.(q|k|v|out)_proj|mlp\.fc[12])"


@dataclass(frozen=True)
class Family:
    """What the package must know of a model family; module names as in `model.named_modules()`. The defaults are LLaVA's."""

    vision_linears: str = _SIGLIP  # regular expression, continues `vision`: the linear layers that get adapters
    language_linears: str = _LLAMA  # the same for `language`
    vision: str = "model.vision_tower"
    projector: str = "model.multi_modal_projector"
    language: str = "model.language_model"
    # what one entry of pixel_values along its first dimension is: all images of a prompt, one image, or one patch of an image
    pixels_per: Literal["prompt", "image", "patch"] = "image"
    processor_options: dict[str, Any] = field(default_factory=dict)

    def skipped_in_4bit(self) -> list[str]:
        """Modules that stay out of 4-bit; bitsandbytes matches these from the start of a name."""
        return [self.vision, self.projector, "lm_head"]

    def adapter_pattern(self, scope: Scope) -> str:
        """Regular expression (full match) of the linear layers that get adapters; ValueError for an unknown `scope`."""
        parts = {
            "vision": rf"{re.escape(self.vision)}\.{self.vision_linears}",
            "language": rf"{re.escape(self.language)}\.{self.language_linears}",
        }
        parts["all"] = "|".join(parts.values())
        if scope not in parts:
            raise ValueError(f"scope of the adapters is {scope!r}, expected {', '.join(parts)}")
        return parts[scope]


_SMOL = Family(
    vision="model.vision_model",
    projector="model.connector",
    language="model.text_model",
    pixels_per="prompt",
    processor_options={"do_image_splitting": False},  # 64 image tokens in place of 1088
)


def _qwen(mlp: str) -> Family:
    """Qwen-VL, whose generations name the linear layers of the vision blocks' MLP differently."""
    return Family(
        vision="model.visual",
        projector="model.visual.merger",  # the deepstack mergers of Qwen3-VL lie in model.visual too
        vision_linears=rf"blocks\.\d+\.(attn\.(qkv|proj)|mlp\.{mlp})",
        language_linears=f"({_LLAMA}|{_DELTA_NET})",
        pixels_per="patch",
    )


FAMILIES: dict[str, Family] = {
    "llava": Family(),
    "internvl": Family(  # InternVL3 and 3.5 in transformers' own format
        vision_linears=r"encoder\.layer\.\d+\.(attention\.([qkv]_proj|projection_layer)|mlp\.fc[12])",
        processor_options={"crop_to_patches": False},  # one tile an image, else as many as its shape asks for
    ),
    "qwen2_vl": _qwen("fc[12]"),
    "qwen2_5_vl": _qwen("(gate|up|down)_proj"),
    "qwen3_vl": _qwen("linear_fc[12]"),
    "qwen3_5": _qwen("linear_fc[12]"),
    "idefics3": _SMOL,  # SmolVLM-256M and -500M
    "smolvlm": _SMOL,  # SmolVLM2
}


def shares_prompts(config: Any) -> bool:
    """Whether completions may share a sequence: not if a layer carries a state along it, or sees the last tokens of it only."""
    text = config.get_text_config()
    full = set(getattr(text, "layer_types", None) or ()) <= {"full_attention"}
    return full and not getattr(text, "sliding_window", None)


def image_size(config: Any, pixels: int = 0) -> tuple[int, int]:
    """Patches and tokens of one image, which has `pixels` where the family lets that vary."""
    vision = config.vision_config
    if hasattr(vision, "spatial_merge_size"):  # Qwen: as many patches as the image has
        patches = pixels // vision.patch_size**2
        return patches, patches // vision.spatial_merge_size**2
    side = _first(vision.image_size) // _first(vision.patch_size)
    shrink = getattr(config, "scale_factor", 1) / getattr(config, "downsample_ratio", 1)
    return side**2, int(side / shrink) ** 2


def _first(size: int | Sequence[int]) -> int:
    return size if isinstance(size, int) else size[0]  # InternVL has height and width
