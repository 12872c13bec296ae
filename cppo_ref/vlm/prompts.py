"""Prompts: (image, question) pairs as a model's inputs, for every way in which families lay out their pixels."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Int
from PIL import Image
from torch import Tensor

from cppo_ref.config import InputError
from cppo_ref.perturbations import to_rgb
from cppo_ref.vlm.families import Family

Pictures = Sequence[Image.Image | Sequence[Image.Image]]  # one, or several, per prompt


@dataclass(frozen=True)
class Prompts:
    """Prompts as a model's inputs. `take` repeats and reorders them without a copy: each is encoded, and computed, once.

    Most inputs have one entry per prompt along the first dimension. Some families pack instead: `owned` says, for such an
    input, how many consecutive entries (images, or patches of images) each prompt owns.
    """

    encoded: dict[str, Tensor]  # input_ids and attention_mask (left-padded), pixel_values, …
    owned: dict[str, list[int]] = field(default_factory=dict)
    index: Int[Tensor, " B"] | None = None  # which of the encoded prompts each one is; None: each of them once

    def __post_init__(self) -> None:
        """Raise InputError unless every prompt ends in the last column, where its completion begins."""
        ends = self.encoded["attention_mask"][:, -1].bool()
        if not ends.all():
            late = int(ends.int().argmin())
            raise InputError(f"prompt {late} is padded on the right, expected padding on the left: set padding_side='left'")

    def __len__(self) -> int:
        return len(self._index)

    @property
    def inputs(self) -> dict[str, Tensor]:
        """The model's inputs, repeated where a prompt repeats."""
        return self._entries(self._index)

    def take(self, index: Tensor | slice) -> "Prompts":
        """The prompts at `index`, repeated where an index repeats; nothing is copied."""
        return replace(self, index=self._index[index])

    def distinct(self) -> tuple[dict[str, Tensor], Int[Tensor, " B"]]:
        """The inputs of the different prompts among these, once each, and which of them every prompt is."""
        present, of_prompt = self._index.unique(return_inverse=True)
        return self._entries(present), of_prompt

    @property
    def _index(self) -> Tensor:
        ids = self.encoded["input_ids"]
        return torch.arange(len(ids), device=ids.device) if self.index is None else self.index

    def _entries(self, index: Tensor) -> dict[str, Tensor]:
        """The inputs of the encoded prompts at `index`; columns that are padding in all of them are dropped."""
        used = self.encoded["attention_mask"][index].any(dim=0)
        shape, taken = self.encoded["input_ids"].shape, {}
        for name, tensor in self.encoded.items():
            if name in self.owned:
                parts = tensor.split(self.owned[name])
                taken[name] = torch.cat([parts[i] for i in index.tolist()])
            else:
                taken[name] = tensor[index][:, used] if tensor.shape == shape else tensor[index]
        return taken


def encode_prompts(
    processor: Any, family: Family, images: Pictures, questions: Sequence[str], max_pixels: int | None = None
) -> Prompts:
    """Encode one question and one image (or several) per prompt, left-padded, on the CPU.

    Images are of any mode; those with more than `max_pixels` are scaled down to it (None leaves them as they are).

    Raises:
        InputError: a prompt without an image.
    """
    groups = [[group] if isinstance(group, Image.Image) else list(group or []) for group in images]
    if not all(groups):
        raise InputError(f"row {groups.index([])} has no image, expected one or more: give it one, or leave the row out")
    pixels = [[fit_pixels(to_rgb(image), max_pixels) for image in group] for group in groups]
    texts = []
    for group, question in zip(groups, questions, strict=True):
        content = [*({"type": "image"} for _ in group), {"type": "text", "text": question}]
        texts.append(processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True))
    options = {"padding": True, "padding_side": "left", "return_tensors": "pt", **family.processor_options}
    inputs = dict(processor(images=pixels, text=texts, **options))
    images_of = [len(group) for group in groups]
    if family.pixels_per == "image":
        return Prompts(inputs, {"pixel_values": images_of})
    if family.pixels_per == "patch":
        patches = inputs["image_grid_thw"].prod(dim=-1).split(images_of)
        return Prompts(inputs, {"image_grid_thw": images_of, "pixel_values": [int(p.sum()) for p in patches]})
    return Prompts(inputs)


def fit_pixels(image: Image.Image, max_pixels: int | None) -> Image.Image:
    """The image, scaled down so that width × height ≤ `max_pixels`; its shape is kept, each side at least one pixel."""
    width, height = image.size
    if max_pixels is None or width * height <= max_pixels:
        return image
    scale = (max_pixels / (width * height)) ** 0.5
    return image.resize((max(int(width * scale), 1), max(int(height * scale), 1)), Image.Resampling.BICUBIC)
