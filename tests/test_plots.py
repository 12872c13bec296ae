"""Pictures: they are drawn from what they are given, and saved whole."""

import matplotlib as mpl
import matplotlib.pyplot as plt
import pytest
from PIL import Image

from cppo_ref.evaluation import SplitReport
from cppo_ref.examples.loading import split_rows
from cppo_ref.pictures import plots
from cppo_ref.runs.intervals import Interval
from cppo_ref.worlds.shapes import TokenLabel

mpl.use("Agg")


@pytest.fixture(scope="module")
def image():
    return split_rows("test", count=1)[0]["image"]


def texts(fig):
    return [text.get_text() for text in fig.findobj(mpl.text.Text)]


def test_a_figure_is_shown_with_its_description_and_closed(monkeypatch):
    shown = []
    monkeypatch.setattr("IPython.display.display", lambda *figures, metadata: shown.append((figures, metadata)))
    figure, _ = plt.subplots()
    plots.show("a figure for the test")
    assert shown == [((figure,), {"image/png": {"alt": "a figure for the test"}})]
    assert not plt.fignum_exists(figure.number)


def test_a_heatmap_shows_every_token_and_frames_the_chosen_ones(image):
    tokens, shift, chosen = ["<think>", "red", "none", ";"], [0.0, 1.2, 0.4, -0.1], [False, True, False, False]
    fig = plots.plot_heatmap(tokens, shift, chosen, {"I": image, "I⁺": image, "I⁻": image}, title="a completion")
    assert set(tokens) <= set(texts(fig))
    boxes = [p for p in fig.findobj(mpl.patches.Rectangle) if p.get_height() == pytest.approx(0.8)]
    assert [box.get_edgecolor()[:3] == (0, 0, 0) for box in boxes] == chosen
    assert boxes[1].get_facecolor() == plots.SHIFT_MAP(plots.SHIFT_NORM(1.2))


def test_the_colour_scale_is_white_at_zero_and_symmetric():
    assert plots.SHIFT_MAP(plots.SHIFT_NORM(0.0))[:3] == pytest.approx((1, 1, 1), abs=0.01)
    assert plots.SHIFT_NORM(plots.SHIFT_LIMIT) == 1
    assert plots.SHIFT_NORM(-plots.SHIFT_LIMIT) == 0


def test_curves_have_units_and_one_line_per_method():
    history = [{"accuracy": i / 10, "cpl": 1.0, "kl": 0.1, "zero_variance_groups": 0.0} for i in range(10)]
    fig = plots.plot_training_curves({"cppo": history, "grpo": history})
    assert [ax.get_xlabel() for ax in fig.axes] == ["step"] * 4
    assert fig.axes[1].get_ylabel() == "CPL (nats)"
    assert all(len(ax.lines) == 4 for ax in fig.axes)


def test_the_before_after_figure_is_saved(image, tmp_path):
    report = SplitReport(Interval(0.5, 0.4, 0.6), 0.9, 0.8, 1.0, 10, 8)
    labels = [TokenLabel("red", "perception", False), TokenLabel(";", "format", True)]
    splits = dict.fromkeys(["test", "test_shift", "test_blank"], report)
    fig = plots.plot_before_after(splits, splits, [(image, {"before": labels, "after": labels})], "cppo after")
    assert "avg@8 (share right, 95 % interval)" in [ax.get_ylabel() for ax in fig.axes]
    path = plots.save_figure(fig, tmp_path / "deep" / "figure.png")
    assert Image.open(path).size[0] > 800


def test_the_perturbation_panel_says_which_views_preserve(image):
    fig = plots.plot_perturbations(image, {"rotation": image, "noise_patches": image}, preserving=["rotation"])
    assert [ax.get_xlabel() for ax in fig.axes][:3] == ["", "preserving", "removing"]
