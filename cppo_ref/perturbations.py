"""Views of an image that keep what it shows (preserving) or destroy it (removing).

Paper: one preserving view I⁺ and one removing view I⁻ per image, each drawn from a short list of augmentations.
Here:  after the authors' lists and ranges, on PIL and numpy; `strength` scales the departure from the original (0 = no change,
       1 = their ranges). The pixels are drawn our way: docs/details.md, 24 and 25, has each difference and its size. PAPO's
       patch mask and a full blank are added for comparison.
Why:   the authors draw views from an unseeded global generator, so no run of theirs can be repeated. Here every draw comes from
       the generator that is passed in, and `view_rng` makes it a pure function of (seed, step, row): a resumed run sees the
       same views.
"""

from collections.abc import Callable, Sequence
from functools import wraps

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter

Perturbation = Callable[..., Image.Image]  # (image, rng, strength=1.0) -> image of the same size and mode
MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "I", "I;16", "F")
GREY = (128, 128, 128)  # of every blank image


def view_rng(seed: int, step: int, row: int, kind: str) -> np.random.Generator:
    """The generator of the `kind` ("preserve" | "remove") view of row `row` at step `step`."""
    return np.random.default_rng([seed, step, row, {"preserve": 1, "remove": 2}[kind]])


def keeps_mode(function: Perturbation) -> Perturbation:
    """Let a function on RGB images take those of all `MODES`: convert, apply, convert back; alpha is carried over unchanged."""

    @wraps(function)
    def on_any_mode(image: Image.Image, rng: np.random.Generator, strength: float = 1.0) -> Image.Image:
        """`function` on an RGB copy, in the mode of `image`; strength 0 is the image itself."""
        if strength == 0:  # the way through RGB and back would round the pixels of other modes
            return image
        return _from_rgb(function(to_rgb(image), rng, strength), image)

    return on_any_mode


def to_rgb(image: Image.Image) -> Image.Image:
    """An 8-bit RGB copy of an image; deep greys (I;16; I and F if above 255) are divided by 257, then clipped to 0…255.

    Raises:
        ValueError: a mode that pictures do not come in (premultiplied alpha, LAB, …).
    """
    if image.mode not in MODES:
        raise ValueError(f"image mode is {image.mode}, expected one of {', '.join(MODES)}: image.convert('RGB')")
    if image.mode[0] in "IF":
        values = np.asarray(image, dtype=np.float64)
        return Image.fromarray(np.uint8(np.clip(values / _grey_scale(image), 0, 255).round())).convert("RGB")
    if image.mode == "P":  # Pillow warns of a transparent palette on the direct way
        return image.convert("RGBA").convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _grey_scale(image: Image.Image) -> float:
    """How many of the image's grey units make one 8-bit unit."""
    low_range = float(np.max(np.asarray(image), initial=0)) <= 255
    return 1.0 if low_range and image.mode != "I;16" else 257.0


def _from_rgb(rgb: Image.Image, like: Image.Image) -> Image.Image:
    """Convert back to the mode of `like`; its alpha is carried over."""
    if like.mode[0] in "IF":
        grey = np.asarray(rgb.convert("L"), dtype=np.float64) * _grey_scale(like)
        return Image.fromarray(grey.astype({"I": np.int32, "F": np.float32, "I;16": np.uint16}[like.mode]))
    if like.mode == "P":
        in_rgb = like.palette and like.palette.mode == "RGB" and like.palette.palette  # a picture made by hand may have none
        return rgb.quantize(palette=like) if in_rgb else rgb.convert("P")
    out = rgb.convert(like.mode)
    if like.mode in ("LA", "RGBA"):
        out.putalpha(like.getchannel("A"))
    return out


@keeps_mode
def color_jitter(image: Image.Image, rng: np.random.Generator, strength: float = 1.0) -> Image.Image:
    """Scale brightness (0.2–1.3), contrast (0.2–1.8) and saturation (0.2–1.8) in random order."""
    enhancers = [(ImageEnhance.Brightness, 0.2, 1.3), (ImageEnhance.Contrast, 0.2, 1.8), (ImageEnhance.Color, 0.2, 1.8)]
    for index in rng.permutation(3):
        enhancer, low, high = enhancers[index]
        factor = 1 + strength * (rng.uniform(low, high) - 1)
        image = enhancer(image).enhance(max(factor, 0.05))
    return image


@keeps_mode
def perspective(image: Image.Image, rng: np.random.Generator, strength: float = 1.0) -> Image.Image:
    """Pull each corner inwards by up to 10 % of the side (distortion 0.2), for half of the draws; the rest stays as it is."""
    width, height = image.size
    inwards = rng.uniform(0, 0.1 * strength, (4, 2)) * [width, height]
    if rng.random() >= 0.5:
        return image
    corners = np.array([[0, 0], [width, 0], [width, height], [0, height]], dtype=float)
    moved = corners + inwards * [[1, 1], [-1, 1], [-1, -1], [1, -1]]
    return image.transform(image.size, Image.Transform.PERSPECTIVE, _homography(moved, corners), Image.Resampling.BILINEAR)


def _homography(source: np.ndarray, target: np.ndarray) -> list[float]:
    """The eight PIL coefficients that send each source corner to its target corner."""
    rows, values = [], []
    for (x, y), (u, v) in zip(source, target, strict=True):
        rows += [[x, y, 1, 0, 0, 0, -u * x, -u * y], [0, 0, 0, x, y, 1, -v * x, -v * y]]
        values += [u, v]
    return np.linalg.solve(np.array(rows), np.array(values)).tolist()


@keeps_mode
def rotation(image: Image.Image, rng: np.random.Generator, strength: float = 1.0) -> Image.Image:
    """Turn by up to ±10° about the centre; the corners that open are black. Bilinear; the authors take the nearest pixel."""
    return image.rotate(rng.uniform(-10, 10) * strength, resample=Image.Resampling.BILINEAR)


@keeps_mode
def blur(image: Image.Image, rng: np.random.Generator, strength: float = 1.0) -> Image.Image:
    """Gaussian blur, 3×3 kernel, σ = `strength` pixels; the border is copied (the authors' AReaL code pads with zeros)."""
    line = np.exp(-0.5 * (np.arange(-1, 2) / strength) ** 2)
    return image.filter(ImageFilter.Kernel((3, 3), np.outer(line, line).ravel().tolist()))


@keeps_mode
def noise_patches(image: Image.Image, rng: np.random.Generator, strength: float = 1.0) -> Image.Image:
    """Cover the image with 50 patches of uniform noise, each 5–15 % of its width and height, rounded (the authors: down)."""
    pixels = np.array(image)
    height, width, _ = pixels.shape
    for _ in range(round(50 * strength)):
        h, w = (max(1, round(rng.uniform(0.05, 0.15) * side)) for side in (height, width))
        top, left = rng.integers(height - h + 1), rng.integers(width - w + 1)
        pixels[top : top + h, left : left + w] = rng.integers(0, 256, (h, w, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@keeps_mode
def zoom_crop(image: Image.Image, rng: np.random.Generator, strength: float = 1.0) -> Image.Image:
    """Cut out 60–70 % of each side at a random place and scale it back; one factor per side (the authors: one for both)."""
    width, height = image.size
    kept = np.clip(1 - strength * (1 - rng.uniform(0.6, 0.7, 2)), 0.05, 1)
    w, h = max(1, round(width * kept[0])), max(1, round(height * kept[1]))
    left, top = int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1))
    return image.resize((width, height), Image.Resampling.BILINEAR, box=(left, top, left + w, top + h))


@keeps_mode
def black_squares(image: Image.Image, rng: np.random.Generator, strength: float = 1.0) -> Image.Image:
    """Paint black squares (10 % of the short side) at random places until 80 % of the image is covered."""
    pixels = np.array(image)
    height, width, _ = pixels.shape
    side = max(1, min(height, width) // 10)
    covered = np.zeros((height, width), dtype=bool)
    while covered.mean() < min(0.8 * strength, 1.0):
        rows, cols = np.nonzero(~covered)
        pick = rng.integers(len(rows))  # start at an uncovered pixel: every square makes progress
        top, left = rows[pick], cols[pick]
        covered[top : top + side, left : left + side] = True
    pixels[covered] = 0
    return Image.fromarray(pixels)


@keeps_mode
def patch_mask(image: Image.Image, rng: np.random.Generator, strength: float = 1.0) -> Image.Image:
    """Black out 60 % of the 14-pixel patches (PAPO's masked view)."""
    pixels = np.array(image)
    height, width, _ = pixels.shape
    patch = 14
    hidden = rng.random((-(-height // patch), -(-width // patch))) < 0.6 * strength
    pixels[np.kron(hidden, np.ones((patch, patch), dtype=bool))[:height, :width]] = 0
    return Image.fromarray(pixels)


@keeps_mode
def blank(image: Image.Image, rng: np.random.Generator, strength: float = 1.0) -> Image.Image:
    """Blend towards one grey, the same for all images; at strength 1 nothing else is left, not even the mean colour."""
    return Image.blend(image, Image.new("RGB", image.size, GREY), min(strength, 1.0))


PRESERVING: dict[str, Perturbation] = {view.__name__: view for view in (color_jitter, perspective, rotation, blur)}
REMOVING: dict[str, Perturbation] = {v.__name__: v for v in (noise_patches, zoom_crop, black_squares, patch_mask, blank)}


def preserve(
    image: Image.Image,
    rng: np.random.Generator,
    names: Sequence[str] = ("color_jitter", "perspective", "rotation"),
    strength: float = 1.0,
) -> Image.Image:
    """I⁺: one information-preserving view, its kind drawn uniformly from `names`. After the authors' verl dataset."""
    return _draw(PRESERVING, names)[int(rng.integers(len(names)))](image, rng, strength)


def remove(
    image: Image.Image, rng: np.random.Generator, names: Sequence[str] = ("noise_patches", "zoom_crop"), strength: float = 1.0
) -> Image.Image:
    """I⁻: one information-removing view, its kind drawn uniformly from `names`. After the authors' verl dataset."""
    return _draw(REMOVING, names)[int(rng.integers(len(names)))](image, rng, strength)


def _draw(table: dict[str, Perturbation], names: Sequence[str]) -> list[Perturbation]:
    unknown = [name for name in names if name not in table]
    if unknown or not names:
        raise ValueError(f"views are {list(names)}, expected one or more of {', '.join(table)}")
    return [table[name] for name in names]
