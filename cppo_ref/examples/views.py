"""The two views of a row's images that a step contrasts, drawn from streams of their own."""

from typing import Any

from PIL import Image

from cppo_ref.config import CPPOConfig
from cppo_ref.examples.rows import images_of
from cppo_ref.perturbations import preserve, remove, view_rng


def views_of(row: dict[str, Any], place: int, config: CPPOConfig, step: int) -> tuple[list[Image.Image], list[Image.Image]]:
    """I⁺ and I⁻ of each image of `row`, which is the step's row number `place`: a function of (seed, step, place)."""
    plus, minus = view_rng(config.seed, step, place, "preserve"), view_rng(config.seed, step, place, "remove")
    preserved = [preserve(image, plus, config.preserving, config.preserving_strength) for image in images_of(row)]
    removed = [remove(image, minus, config.removing, config.removing_strength) for image in images_of(row)]
    return preserved, removed
