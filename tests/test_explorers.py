"""Explorers: what the sliders say is what is computed; frames where nothing moves, controls where something can."""

import sys

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

from cppo_ref.examples.loading import split_rows
from cppo_ref.perturbations import PRESERVING, REMOVING, view_rng
from cppo_ref.pictures.explorers import Explorer, explore
from cppo_ref.vlm.policy import load_policy

mpl.use("Agg")
COMPLETION = 10  # tokens up to the end of the listing: <think> and nine cells


@pytest.fixture(scope="module")
def explorer():
    row = split_rows("test", count=13)[12]
    return Explorer(load_policy("tiny", quantize="none", lora=None), row["image"], row["question"], seed=1)


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def texts(fig):
    return [text.get_text() for text in fig.findobj(mpl.text.Text)]


def test_what_is_read_is_what_the_policy_says_of_each_picture_alone(explorer):
    pictures, logits, shift, chosen = explorer.read("blur", "zoom_crop", strength=2.0, top_fraction=0.5)
    image, policy, rollouts = explorer.row["image"], explorer.policy, explorer.rollouts
    views = [image, PRESERVING["blur"](image, view_rng(1, 0, 0, "preserve"), 2.0)]
    views.append(REMOVING["zoom_crop"](image, view_rng(1, 0, 0, "remove"), 2.0))
    entropies = []
    for view, picture, row in zip(views, pictures.values(), logits, strict=True):
        np.testing.assert_array_equal(np.asarray(view), np.asarray(picture))
        alone = policy.score(
            policy.encode([view], [explorer.row["question"]]), rollouts.completion_ids, rollouts.completion_mask
        )
        torch.testing.assert_close(row, alone[0], atol=1e-4, rtol=1e-4)
        p = alone[0].double().softmax(dim=-1)
        entropies.append(-(p * p.log()).sum(dim=-1))
    torch.testing.assert_close(shift.double(), entropies[2] - entropies[0], atol=1e-4, rtol=1e-4)
    rises = (shift > 0).nonzero().flatten().tolist()
    best = sorted(rises, key=lambda t: -shift[t])[: -(-len(rises) // 2)]
    assert chosen.nonzero().flatten().tolist() == sorted(best)


def test_at_strength_0_all_pictures_are_one_and_no_token_is_framed(explorer):
    _, _, shift, chosen = explorer.read(strength=0.0)
    assert shift.abs().max() < 1e-5
    strong = explorer.read(strength=4.0)
    assert strong[2][1:COMPLETION].mean() > 0.2  # nats; the cells depend on the picture, the rest does not
    assert strong[2][COMPLETION:].abs().max() < 0.05
    assert strong[3].sum() >= chosen.sum()


def test_the_heatmap_shows_every_token_and_says_its_settings(explorer):
    fig = explorer.heatmap(removing="blank", strength=1.0)
    assert set(explorer.tokens) <= {text.replace(r"\$", "$") for text in texts(fig)}
    assert "removing blank, strength 1.0" in texts(fig)
    assert {"I", "I⁺", "I⁻"} <= set(texts(fig))


def test_the_bars_are_the_probabilities_of_the_likeliest_words(explorer):
    fig = explorer.distributions(5, removing="blank")
    _, logits, _, _ = explorer.read(removing="blank")
    for ax, row in zip(fig.axes[3:], logits[:, 5].softmax(dim=-1), strict=True):
        words = [label.get_text() for label in ax.get_xticklabels()]
        assert set(words) == {"red", "green", "blue", "yellow", "none"}
        for word, bar in zip(words, ax.patches, strict=True):
            assert bar.get_height() == pytest.approx(row[explorer.policy.tokenizer.convert_tokens_to_ids(word)].item())


def drawn(calls):
    """A function that an explorer can draw with; it notes what it was called with."""

    def draw(**values):
        calls.append(values)
        return plt.figure()

    return draw


FRAMES = [{"strength": 1.0, "view": "blank", "token": 2}, {"strength": 2.0, "view": "blank", "token": 0}]
CONTROLS = {"strength": (0, 4, 0.5), "view": ["blank", "zoom_crop"], "token": [("a", 0), ("b", 2)]}


def test_where_nothing_moves_every_frame_is_shown_with_its_description(monkeypatch):
    monkeypatch.setenv("CPPO_FRAMES", "1")
    monkeypatch.setitem(sys.modules, "ipywidgets", None)
    shown, calls = [], []
    monkeypatch.setattr("IPython.display.display", lambda *figures, metadata: shown.append(metadata["image/png"]["alt"]))
    assert explore(drawn(calls), FRAMES, "what it shows", **CONTROLS) is None
    assert calls == FRAMES
    assert shown == ["what it shows"] * 2


def test_controls_begin_at_the_first_frame_and_redraw_with_what_they_say(monkeypatch):
    monkeypatch.delenv("CPPO_FRAMES", raising=False)
    calls = []
    box = explore(drawn(calls), [{**FRAMES[0], "file": ()}], "what it shows", **CONTROLS, file="upload")
    slider, menu, tokens, upload = box.children[0].children
    assert calls[-1] == {**FRAMES[0], "file": ()}
    assert (slider.min, slider.max, slider.step, slider.value) == (0, 4, 0.5, 1.0)
    slider.value = 3.5
    assert calls[-1]["strength"] == 3.5
    menu.value = "zoom_crop"
    tokens.value = 0
    assert calls[-1] == {"strength": 3.5, "view": "zoom_crop", "token": 0, "file": ()}
    assert upload.accept == "image/*"


def test_a_mistake_in_the_drawing_is_raised_and_not_hidden_in_a_widget(monkeypatch):
    monkeypatch.delenv("CPPO_FRAMES", raising=False)

    def broken(**values):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        explore(broken, FRAMES, "what it shows", **CONTROLS)
