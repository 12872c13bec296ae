"""The two views of a row's images that a step contrasts, drawn from streams of their own."""

from typing import Any

import torch
from jaxtyping import Bool
from PIL import Image
from torch import Tensor

from cppo_ref.config import CPPOConfig
from cppo_ref.examples.rows import images_of
from cppo_ref.perturbations import preserve, remove, view_rng
from cppo_ref.rollouts import Rollouts
from cppo_ref.vlm.policy import Policy
from cppo_ref.vlm.prompts import Prompts


def views_of(row: dict[str, Any], place: int, config: CPPOConfig, step: int) -> tuple[list[Image.Image], list[Image.Image]]:
    """I⁺ and I⁻ of each image of `row`, which is the step's row number `place`: a function of (seed, step, place)."""
    plus, minus = view_rng(config.seed, step, place, "preserve"), view_rng(config.seed, step, place, "remove")
    preserved = [preserve(image, plus, config.preserving, config.preserving_strength) for image in images_of(row)]
    removed = [remove(image, minus, config.removing, config.removing_strength) for image in images_of(row)]
    return preserved, removed


def blanked(row: dict[str, Any]) -> dict[str, Any]:
    """The row with every image replaced by one grey."""
    images = [remove(image, view_rng(0, 0, 0, "remove"), ["blank"]) for image in images_of(row)]
    return {**row, "image": images[0], "images": images}


def encode_views(
    policy: Policy, rollouts: Rollouts, gate: Bool[Tensor, " B"], config: CPPOConfig, step: int
) -> tuple[Prompts, Prompts] | None:
    """Each completion's prompt with the preserving view for the image, and with the removing view.

    Only prompts with a row in the `gate` are encoded (None: there are none); a row outside it has another prompt's views,
    which nobody looks at.
    """
    prompt = rollouts.prompt_of_row
    gated = prompt[gate].unique()
    if len(gated) == 0:
        return None
    place = torch.searchsorted(gated, prompt).clamp(max=len(gated) - 1)
    questions = [rollouts.rows[i]["question"] for i in gated.tolist()]
    both = zip(*(views_of(rollouts.rows[i], i, config, step) for i in gated.tolist()), strict=True)
    preserved, removed = (policy.encode(images, questions).take(place) for images in both)
    return preserved, removed
