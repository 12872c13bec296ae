"""Prompts: (image, question) pairs as a model's inputs, for every way in which families lay out their pixels."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from cppo_ref.config import InputError
from cppo_ref.families import Family
from cppo_ref.perturbations import to_rgb


@dataclass(frozen=True)
class Prompts:
    """Encoded prompts: the model's inputs.

    Most inputs have one entry per prompt along the first dimension. Some families pack instead: `owned` says, for such an
    input, how many consecutive entries (images, or patches of images) each prompt owns.
    """

    inputs: dict[str, Tensor]  # input_ids and attention_mask (left-padded), pixel_values, …
    owned: dict[str, list[int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Raise InputError unless every prompt ends in the last column, where its completion begins."""
        ends = self.inputs["attention_mask"][:, -1].bool()
        if not ends.all():
            late = int(ends.int().argmin())
            raise InputError(f"prompt {late} is padded on the right, expected padding on the left: set padding_side='left'")

    def __len__(self) -> int:
        return len(self.inputs["input_ids"])

    def take(self, index: Tensor) -> "Prompts":
        """The prompts at `index`, repeated where an index repeats; columns that are padding in all of them are dropped."""
        used = self.inputs["attention_mask"][index].any(dim=0)
        shape, taken = self.inputs["input_ids"].shape, {}
        for name, tensor in self.inputs.items():
            if name in self.owned:
                parts = tensor.split(self.owned[name])
                taken[name] = torch.cat([parts[i] for i in index.tolist()])
            else:
                taken[name] = tensor[index][:, used] if tensor.shape == shape else tensor[index]
        return Prompts(taken, {name: [counts[i] for i in index.tolist()] for name, counts in self.owned.items()})


def encode_prompts(
    processor: Any,
    family: Family,
    images: Sequence[Image.Image | Sequence[Image.Image]],
    questions: Sequence[str],
    max_pixels: int | None = None,
) -> Prompts:
    """Encode one question and one image (or several) per prompt, left-padded, on the CPU.

    Args:
        processor: the model's processor.
        family: how its pixels are laid out.
        images: one PIL image of any mode, or a list of them, per prompt.
        questions: one per prompt.
        max_pixels: larger images are scaled down to this many pixels; None leaves them as they are.
    """
    groups = [[group] if isinstance(group, Image.Image) else list(group) for group in images]
    pixels: list[Any] = [[fit_pixels(to_rgb(image), max_pixels) for image in group] for group in groups]
    if family.pixels_per != "prompt":
        pixels = [image for group in pixels for image in group]
    parts = [
        [*({"type": "image"} for _ in group), {"type": "text", "text": question}]
        for group, question in zip(groups, questions, strict=True)
    ]
    texts = [processor.apply_chat_template([{"role": "user", "content": p}], add_generation_prompt=True) for p in parts]
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
