"""The model families that can be trained: where each keeps its vision tower, its projector and its language model."""

import re
from dataclasses import dataclass
from typing import Literal

Scope = Literal["all", "language", "vision"]


@dataclass(frozen=True)
class Family:
    """Where a model family keeps its parts, as module names."""

    vision: str
    projector: str
    language: str
    vision_linears: str  # regular expression over the last part of a module name
    language_linears: str

    def skipped_in_4bit(self) -> list[str]:
        """Modules that stay out of 4-bit; bitsandbytes matches these from the start of a name."""
        return [self.vision, self.projector, "lm_head"]

    def adapter_pattern(self, scope: Scope) -> str:
        """Regular expression (full match) of the linear layers that get adapters."""
        parts = {
            "vision": rf"{re.escape(self.vision)}\..*\.({self.vision_linears})",
            "language": rf"{re.escape(self.language)}\..*\.({self.language_linears})",
        }
        return "|".join(parts.values()) if scope == "all" else parts[scope]


FAMILIES: dict[str, Family] = {
    "llava": Family(
        vision="model.vision_tower",
        projector="model.multi_modal_projector",
        language="model.language_model",
        vision_linears=r"(q|k|v|out)_proj|fc1|fc2",
        language_linears=r"(q|k|v|o|gate|up|down)_proj",
    ),
}
