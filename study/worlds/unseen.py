"""View families that no arm trains with and no base was pretrained with: the shift that counts.

Fixed before any run of the second study. Each keeps what a picture shows, and changes every picture (a test holds both).
"""

import io
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageFilter

Family = Callable[[Image.Image, np.random.Generator], Image.Image]


def translation(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Move by 2–3 pixels in each direction; the border is repeated."""
    across, down = rng.integers(2, 4, 2) * rng.choice([-1, 1], 2)
    return _moved(image, (1, 0, float(across), 0, 1, float(down)))


def shear(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Slant by 0.10–0.18 to either side about the middle row."""
    slant = float(rng.uniform(0.10, 0.18) * rng.choice([-1, 1]))
    return _moved(image, (1, slant, -slant * image.height / 2, 0, 1, 0))


def shrink(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Shrink to 75–88 % about the centre; the border is repeated."""
    factor = 1 / float(rng.uniform(0.75, 0.88))
    middle = (1 - factor) / 2
    return _moved(image, (factor, 0, middle * image.width, 0, factor, middle * image.height))


def soft_focus(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Gaussian blur with a radius of 1.0–1.6 pixels."""
    return image.filter(ImageFilter.GaussianBlur(float(rng.uniform(1.0, 1.6))))


def jpeg(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Compress as JPEG with quality 8–20."""
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=int(rng.integers(8, 21)))
    return Image.open(buffer).convert("RGB")


def side_light(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Light from one side: brightness falls linearly from 1.25 to 0.35 in a direction drawn at random."""
    angle = rng.uniform(0, 2 * np.pi)
    y, x = np.mgrid[-1 : 1 : image.height * 1j, -1 : 1 : image.width * 1j]
    position = (x * np.cos(angle) + y * np.sin(angle)) / (abs(np.cos(angle)) + abs(np.sin(angle)))
    return _scaled(image, 0.8 + 0.45 * position[..., None])


def pixelate(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Halve the resolution and double it again, without smoothing."""
    width, height = image.size
    small = image.resize((width // 2, height // 2), Image.Resampling.BOX)
    return small.resize((width, height), Image.Resampling.NEAREST)


def scan_lines(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Darken every third row to 0.3, from a first row drawn at random."""
    gain = np.ones((image.height, 1, 1))
    gain[int(rng.integers(3)) :: 3] = 0.3
    return _scaled(image, gain)


def _moved(image: Image.Image, inverse: tuple[float, ...]) -> Image.Image:
    """An affine map given by its inverse (output to input), bilinear; outside, the nearest border pixel."""
    a, b, c, d, e, f = inverse
    pixels = np.asarray(image, dtype=float)
    height, width, _ = pixels.shape
    y, x = np.mgrid[0.5:height, 0.5:width]
    u, v = (np.clip(w - 0.5, 0, top - 1) for w, top in ((a * x + b * y + c, width), (d * x + e * y + f, height)))
    left, upper = np.minimum(u.astype(int), width - 2), np.minimum(v.astype(int), height - 2)
    p, q = (u - left)[..., None], (v - upper)[..., None]
    above = pixels[upper, left] * (1 - p) + pixels[upper, left + 1] * p
    below = pixels[upper + 1, left] * (1 - p) + pixels[upper + 1, left + 1] * p
    return Image.fromarray(np.uint8((above * (1 - q) + below * q).round()))


def _scaled(image: Image.Image, gain: np.ndarray) -> Image.Image:
    return Image.fromarray(np.uint8(np.clip(np.asarray(image, dtype=float) * gain, 0, 255).round()))


UNSEEN: dict[str, Family] = {
    family.__name__: family for family in (translation, shear, shrink, soft_focus, jpeg, side_light, pixelate, scan_lines)
}
