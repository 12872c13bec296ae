"""Views: every PIL mode and size, determinism, and what each one does to pictures whose outcome is known by hand."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import convolve, gaussian_filter

from cppo_ref import perturbations
from cppo_ref.examples.loading import load_rows
from cppo_ref.examples.rows import row_at
from cppo_ref.perturbations import PRESERVING, REMOVING, preserve, remove, to_rgb, view_rng

VIEWS = {**PRESERVING, **REMOVING}
MODES = ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "I", "I;16", "F"]
SIZES = [(1, 1), (1, 7), (9, 1), (31, 20)]


def noise_picture(size, seed=0):
    width, height = size
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def picture(mode, size):
    """A noise picture in any mode, with alpha 0…255 where the mode has one."""
    rgb = noise_picture(size)
    if mode in ("LA", "RGBA"):
        plain = rgb.convert(mode)
        plain.putalpha(noise_picture(size, seed=1).convert("L"))
        return plain
    if mode == "I;16":
        return Image.fromarray(np.asarray(rgb.convert("L")).astype("uint16") * 257)
    if mode in ("I", "F"):
        return Image.fromarray(np.asarray(rgb.convert("L")).astype({"I": "int32", "F": "float32"}[mode]) * 257)
    return rgb.convert(mode)


def quarters(size=100):
    """Red | green above blue | yellow."""
    pixels = np.zeros((size, size, 3), dtype=np.uint8)
    half = size // 2
    pixels[:half, :half], pixels[:half, half:] = RED, GREEN
    pixels[half:, :half], pixels[half:, half:] = BLUE, YELLOW
    return Image.fromarray(pixels)


RED, GREEN, BLUE, YELLOW, BLACK = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (0, 0, 0)


class Scripted(np.random.Generator):
    """A generator whose uniform draws lie at given fractions of their range, one after the other; the last one stays."""

    def __init__(self, *fractions, coin=0.0):
        super().__init__(np.random.PCG64(0))
        self.fractions, self.coin, self.ranges = list(fractions), coin, []

    def uniform(self, low, high, size=None):
        self.ranges.append((low, high))
        fraction = self.fractions.pop(0) if len(self.fractions) > 1 else self.fractions[0]
        value = low + fraction * (high - low)
        return value if size is None else np.full(size, value)

    def random(self):
        return self.coin

    def permutation(self, count):
        return np.arange(count)


UNUSED = np.random.default_rng(0)


@pytest.mark.parametrize("mode", MODES)
def test_views_keep_size_and_mode_and_leave_the_input_alone(mode):
    for size in SIZES:
        image = picture(mode, size)
        assert image.mode == mode
        before = image.tobytes()
        for name, view in VIEWS.items():
            for seed in range(2):
                out = view(image, np.random.default_rng(seed))
                assert (out.mode, out.size) == (mode, size), name
            assert image.tobytes() == before, name


@pytest.mark.parametrize("mode", MODES)
def test_strength_zero_changes_no_pixel(mode):
    image = picture(mode, (31, 20))
    for name, view in VIEWS.items():
        for seed in range(3):
            assert view(image, np.random.default_rng(seed), 0.0).tobytes() == image.tobytes(), name


@pytest.mark.parametrize("name", VIEWS)
def test_strength_next_to_zero_changes_next_to_nothing(name):
    image = quarters(100)
    out = VIEWS[name](image, np.random.default_rng(0), 1e-4)
    assert np.abs(np.asarray(out, dtype=int) - np.asarray(image, dtype=int)).mean() < 1


@pytest.mark.parametrize("mode", ["LAB", "RGBa", "I;16B"])
def test_a_mode_that_pictures_do_not_come_in_is_refused_with_the_way_out(mode):
    with pytest.raises(ValueError, match=rf"image mode is {mode}.*convert\('RGB'\)"):
        PRESERVING["rotation"](Image.new(mode, (8, 8)), np.random.default_rng(0))


@pytest.mark.parametrize("name", VIEWS)
def test_a_palette_without_colours_is_a_picture_too(name):
    out = VIEWS[name](Image.new("P", (9, 7)), np.random.default_rng(0))
    assert (out.mode, out.size) == ("P", (9, 7))


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_alpha_survives(mode):
    image = picture(mode, (31, 20))
    for name, view in VIEWS.items():
        out = view(image, np.random.default_rng(0))
        assert out.getchannel(len(mode) - 1).tobytes() == image.getchannel(len(mode) - 1).tobytes(), name
        assert out.getchannel(0).tobytes() != image.getchannel(0).tobytes() or name == "perspective", name


@pytest.mark.parametrize("name", VIEWS)
def test_a_view_is_a_function_of_its_generator(name):
    image = noise_picture((40, 30))
    views = [VIEWS[name](image, np.random.default_rng(seed)).tobytes() for seed in range(8)]
    assert views == [VIEWS[name](image, np.random.default_rng(seed)).tobytes() for seed in range(8)]
    nothing_to_draw = name in ("blur", "blank")
    assert len(set(views)) == 1 if nothing_to_draw else len(set(views)) >= 3


def test_view_rng_depends_on_each_argument():
    def draw(*key):
        return view_rng(*key).random()

    base = (1, 2, 3, "preserve")
    assert draw(*base) == draw(*base)
    others = [(9, 2, 3, "preserve"), (1, 9, 3, "preserve"), (1, 2, 9, "preserve"), (1, 2, 3, "remove"), (2, 1, 3, "preserve")]
    assert len({draw(*key) for key in [base, *others]}) == 6


def test_deep_greys_are_divided_by_257_and_clipped_above_65535():
    ramp = np.array([[0, 257, 32896, 65535]])
    for mode, dtype in (("I;16", "uint16"), ("I", "int32"), ("F", "float32")):
        image = Image.fromarray(ramp.astype(dtype))
        assert image.mode == mode
        assert np.asarray(to_rgb(image))[0, :, 0].tolist() == [0, 1, 128, 255]
    shallow = Image.fromarray(np.array([[0, 7, 255]], dtype=np.int32))
    assert np.asarray(to_rgb(shallow))[0, :, 0].tolist() == [0, 7, 255]
    others = {"int32": ([0, 4_100_000], [0, 255]), "uint16": ([0, 4095], [0, 16]), "float32": ([0.0, 1.0], [0, 1])}
    for dtype, (values, expected) in others.items():
        assert np.asarray(to_rgb(Image.fromarray(np.array([values], dtype=dtype))))[0, :, 0].tolist() == expected


@pytest.mark.parametrize(
    ("fractions", "pixel", "expected"),
    [
        ((0.3 / 1.1, 0.5, 0.5), (100, 150, 200), (50, 75, 100)),  # brightness 0.2 + 0.3
        ((0.8 / 1.1, 0.5, 0.0), (200, 0, 0), (88, 48, 48)),  # saturation 0.2: grey 60, a fifth of the way to the colour
        ((1.0, 0.5, 0.5), (100, 150, 200), (130, 195, 255)),  # brightness 1.3, clipped
    ],
    ids=["brightness 0.5", "saturation 0.2", "brightness 1.3"],
)
def test_color_jitter_of_one_colour(fractions, pixel, expected):
    out = perturbations.color_jitter(Image.new("RGB", (5, 4), pixel), Scripted(*fractions))
    assert np.abs(np.array(out.getpixel((2, 2))) - expected).max() <= 1


def test_color_jitter_moves_contrast_about_the_mean_grey():
    image = Image.new("RGB", (10, 10), (50, 50, 50))
    image.paste((150, 150, 150), (0, 0, 5, 10))  # mean 100
    out = perturbations.color_jitter(image, Scripted(0.8 / 1.1, 1.0, 0.5))  # contrast 1.8
    assert [out.getpixel((x, 0))[0] for x in (0, 9)] == [190, 10]


def test_color_jitter_draws_in_the_authors_ranges():
    rng = Scripted(0.5)
    perturbations.color_jitter(quarters(), rng)
    assert rng.ranges == [(0.2, 1.3), (0.2, 1.8), (0.2, 1.8)]


def test_rotation_turns_both_ways_by_at_most_ten_degrees_with_black_corners():
    left, right = (perturbations.rotation(quarters(), Scripted(fraction)) for fraction in (1.0, 0.0))
    # counter-clockwise the upper seam leans left: tan 10° · 40 px = 7 px at 40 px above the centre
    assert (left.getpixel((45, 10)), left.getpixel((40, 10))) == (GREEN, RED)
    assert (right.getpixel((54, 10)), right.getpixel((59, 10))) == (RED, GREEN)
    for image in (left, right):
        assert [image.getpixel(corner) for corner in ((0, 0), (99, 0), (0, 99), (99, 99))] == [BLACK] * 4
        inner = [image.getpixel(point) for point in ((25, 25), (75, 25), (25, 75), (75, 75))]
        assert inner == [RED, GREEN, BLUE, YELLOW]


def test_perspective_leaves_half_of_the_draws_alone():
    image = quarters()
    assert perturbations.perspective(image, Scripted(1.0, coin=0.5)).tobytes() == image.tobytes()
    unchanged = [
        perturbations.perspective(image, np.random.default_rng(seed)).tobytes() == image.tobytes() for seed in range(200)
    ]
    assert 75 <= sum(unchanged) <= 125


def test_perspective_at_its_strongest_shrinks_the_picture_to_the_middle_80_percent():
    out = perturbations.perspective(quarters(), Scripted(1.0, coin=0.4))
    edges = [(8, 50), (91, 50), (50, 8), (50, 91)]
    assert [out.getpixel(point) for point in edges] == [BLACK] * 4
    corners = [(12, 12), (87, 12), (12, 87), (87, 87)]
    assert [out.getpixel(point) for point in corners] == [RED, GREEN, BLUE, YELLOW]


def test_homography_sends_corners_to_corners_and_diagonals_to_diagonals():
    square = np.array([[0, 0], [8, 0], [8, 8], [0, 8]], dtype=float)
    assert np.allclose(perturbations._homography(square, square), [1, 0, 0, 0, 1, 0, 0, 0])
    trapezoid = np.array([[2, 0], [6, 0], [8, 8], [0, 8]], dtype=float)  # its diagonals meet at (4, 8/3)
    a, b, c, d, e, f, g, h = perturbations._homography(trapezoid, square)

    def moved(x, y):
        scale = g * x + h * y + 1
        return ((a * x + b * y + c) / scale, (d * x + e * y + f) / scale)

    assert np.allclose([moved(*corner) for corner in trapezoid], square)
    assert np.allclose(moved(4, 8 / 3), (4, 4))


def test_blur_keeps_constants_and_spreads_a_dot_with_gaussian_weights():
    flat = Image.new("RGB", (9, 9), (17, 99, 201))
    assert perturbations.blur(flat, UNUSED).tobytes() == flat.tobytes()
    dot = Image.new("RGB", (9, 9))
    dot.putpixel((4, 4), (255, 255, 255))
    spread = np.asarray(perturbations.blur(dot, UNUSED))[3:6, 3:6, 0].astype(float)
    # e^(−d²/2) is 1, 0.6065, 0.3679 at the centre, sides and corners; their sum is 4.8976
    assert np.abs(spread - [[19.2, 31.6, 19.2], [31.6, 52.1, 31.6], [19.2, 31.6, 19.2]]).max() <= 1


@pytest.mark.parametrize("sigma", [0.5, 1.0, 2.0])
def test_blur_agrees_with_scipy_away_from_the_border(sigma):
    image = noise_picture((30, 20))
    expected = gaussian_filter(np.asarray(image, dtype=float), sigma=(sigma, sigma, 0), radius=(1, 1, 0))
    out = np.asarray(perturbations.blur(image, UNUSED, sigma), dtype=float)
    assert np.abs(out - expected)[1:-1, 1:-1].max() <= 1


def test_noise_patches_cover_a_good_third_of_the_image():
    # 50 patches of 1 % each leave about e^(−0.5) = 61 % uncovered, a little more near the border
    shares = [
        (np.asarray(perturbations.noise_patches(Image.new("RGB", (200, 100)), np.random.default_rng(seed))) > 0).any(2).mean()
        for seed in range(20)
    ]
    assert 0.32 < np.mean(shares) < 0.42
    assert max(shares) < 0.55


def test_a_noise_patch_is_5_to_15_percent_of_each_side():
    widths, heights = [], []
    for seed in range(80):
        one = perturbations.noise_patches(Image.new("RGB", (400, 200)), np.random.default_rng(seed), 1 / 50)
        left, top, right, bottom = one.getbbox()
        widths.append((right - left) / 400)
        heights.append((bottom - top) / 200)
    for sides in (widths, heights):
        assert 0.05 <= min(sides) < 0.06
        assert 0.14 < max(sides) <= 0.15


def test_zoom_crop_keeps_60_to_70_percent_of_each_side():
    across, down = np.meshgrid(np.arange(250), np.arange(200))
    ramps = Image.fromarray(np.stack([across, down, 0 * down], axis=2).astype(np.uint8))
    for seed in range(30):
        out = np.asarray(perturbations.zoom_crop(ramps, np.random.default_rng(seed)), dtype=float)
        kept_width, kept_height = np.ptp(out[..., 0]) / 249, np.ptp(out[..., 1]) / 199
        assert 0.585 < kept_width < 0.705
        assert 0.585 < kept_height < 0.705


@pytest.mark.parametrize("size", [(48, 48), (120, 40), (7, 5)])
def test_black_squares_cover_80_percent_and_little_more(size):
    for seed in range(5):
        out = perturbations.black_squares(Image.new("RGB", size, "white"), np.random.default_rng(seed))
        assert 0.8 <= (np.asarray(out) == 0).all(2).mean() < 0.86


def test_patch_mask_blacks_out_60_percent_of_whole_14_pixel_patches():
    shares = []
    for seed in range(5):
        out = np.asarray(perturbations.patch_mask(Image.new("RGB", (280, 280), "white"), np.random.default_rng(seed)))
        patches = out.reshape(20, 14, 20, 14, 3).swapaxes(1, 2).reshape(400, -1)
        assert set(np.ptp(patches, axis=1)) == {0}
        shares.append((patches[:, 0] == 0).mean())
    assert 0.56 < np.mean(shares) < 0.64


def test_blank_is_one_grey_whatever_the_image_shows():
    for colour in ((10, 20, 30), (30, 60, 230)):
        assert perturbations.blank(Image.new("RGB", (6, 4), colour), UNUSED).getcolors() == [(24, (128, 128, 128))]
    half = perturbations.blank(Image.new("RGB", (6, 4), (28, 128, 228)), UNUSED, strength=0.5)
    assert half.getcolors() == [(24, (78, 128, 178))]


@pytest.mark.parametrize(("draw", "table"), [(preserve, PRESERVING), (remove, REMOVING)], ids=["preserve", "remove"])
def test_the_kind_of_view_is_drawn_uniformly(draw, table, monkeypatch):
    names, drawn = list(table)[:3], []
    for name in names:
        monkeypatch.setitem(table, name, lambda image, rng, strength, name=name: drawn.append(name) or image)
    for step in range(600):
        draw(quarters(4), np.random.default_rng([5, step]), names)
    assert all(abs(drawn.count(name) - 200) < 4 * 11.5 for name in names)  # 11.5: standard deviation of a count
    assert len(drawn) == 600


@pytest.mark.parametrize("draw", [preserve, remove])
@pytest.mark.parametrize("names", [[], ["sharpen"], ["rotation", "blank"]], ids=["none", "unknown", "of the other kind"])
def test_views_that_cannot_be_drawn_are_named(draw, names):
    with pytest.raises(ValueError, match="expected one or more of") as caught:
        draw(quarters(4), np.random.default_rng(0), names)
    assert str(names) in str(caught.value)


# --- how far these views are from the authors', as docs/details.md quotes it ---

DETAILS = (Path(__file__).parent.parent / "docs" / "details.md").read_text()


def share_covered_by_patches_rounded_down(size, pictures):
    """The authors' patches: sides rounded down, any corner at which they fit."""
    (width, height), shares = size, []
    for seed in range(pictures):
        rng, covered = np.random.default_rng(seed), np.zeros((height, width), dtype=bool)
        for _ in range(50):
            w, h = int(rng.uniform(0.05, 0.15) * width), int(rng.uniform(0.05, 0.15) * height)
            left, top = rng.integers(0, width - w + 1), rng.integers(0, height - h + 1)
            covered[top : top + h, left : left + w] = True
        shares.append(covered.mean())
    return np.mean(shares)


@pytest.mark.parametrize(
    ("size", "ours", "theirs"), [((48, 48), 0.388, 0.325), ((200, 160), 0.383, 0.367)], ids=["48 px", "200×160 px"]
)
def test_noise_patches_cover_more_than_the_authors_on_small_pictures(size, ours, theirs):
    black = Image.new("RGB", size)
    views = [np.asarray(perturbations.noise_patches(black, np.random.default_rng(seed))) for seed in range(300)]
    assert np.mean([(view > 0).any(2).mean() for view in views]) == pytest.approx(ours, abs=0.004)
    assert share_covered_by_patches_rounded_down(size, 300) == pytest.approx(theirs, abs=0.004)
    assert f"{ours:.1%} in place of {theirs:.1%}".replace("%", " %") in DETAILS


def test_zoom_crop_stretches_the_cut_by_5_percent_on_average():
    across, down = np.meshgrid(np.arange(500), np.arange(500))
    ramps = [Image.fromarray(np.stack([axis // 2] * 3, axis=2).astype(np.uint8)) for axis in (across, down)]
    stretch = []
    for seed in range(100):
        cut = [np.ptp(np.asarray(perturbations.zoom_crop(ramp, np.random.default_rng(seed)), dtype=float)) for ramp in ramps]
        stretch.append(max(cut) / min(cut) - 1)  # with one factor for both sides: 0
    assert np.mean(stretch) == pytest.approx(0.05, abs=0.01)
    assert max(stretch) < 0.18  # 0.7 / 0.6 is 1.17
    assert "5 % on average, 17 % at most" in DETAILS


def test_rotation_differs_from_the_nearest_pixel_by_4_grey_levels():
    rows = load_rows("shapes", "validation")
    pictures = [row_at(rows, i)["image"].convert("RGB") for i in range(60)]
    differences = []
    for seed, picture in enumerate(pictures):
        angle = np.random.default_rng(seed).uniform(-10, 10)
        nearest = np.asarray(picture.rotate(angle), dtype=float)
        differences.append(np.abs(np.asarray(perturbations.rotation(picture, np.random.default_rng(seed))) - nearest).mean())
    assert np.mean(differences) == pytest.approx(4, abs=0.5)
    assert "4 of 255 grey levels a pixel" in DETAILS


def test_blur_copies_the_border_that_zero_padding_darkens():
    white = Image.new("RGB", (48, 48), "white")
    assert np.asarray(perturbations.blur(white, UNUSED)).min() == 255
    line = np.exp(-0.5 * np.arange(-1, 2) ** 2)
    padded = convolve(np.full((48, 48), 255.0), np.outer(line, line) / line.sum() ** 2, mode="constant")
    assert padded[24, 0] == pytest.approx(185, abs=0.5)
    assert padded[1:-1, 1:-1].min() == pytest.approx(255)
    assert "from 255 to 185" in DETAILS


def test_perspective_moves_corners_by_a_fifth_more_than_the_authors_on_small_pictures():
    drawn = Scripted(0.5)
    perturbations.perspective(Image.new("RGB", (48, 48)), drawn)
    assert drawn.ranges == [(0, 0.1)]  # of the side, any fraction of a pixel: 2.4 of 48 on average
    assert np.mean(range(int(0.2 * 24) + 1)) == 2.0  # whole pixels, 0 to 4: torchvision, which the authors use
    assert "2.4 pixels in place of 2.0" in DETAILS
