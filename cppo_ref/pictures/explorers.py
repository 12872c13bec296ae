"""Explorers: figures that a reader moves. Each is a function of what the sliders say; a page that stands still shows frames."""

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import torch
from matplotlib.figure import Figure
from PIL import Image

from cppo_ref.perception import entropy_shift, select_perception_tokens, token_entropy
from cppo_ref.perturbations import PRESERVING, REMOVING, view_rng
from cppo_ref.pictures import plots
from cppo_ref.rollouts import generate_rollouts
from cppo_ref.vlm.policy import Policy


class Explorer:
    """One completion of at most 32 tokens for a picture and a question, read again under two views of the picture."""

    def __init__(self, policy: Policy, picture: Image.Image, question: str, seed: int = 0):
        self.policy, self.seed, self.row = policy, seed, {"image": picture, "question": question, "answer": ""}
        sampling = {"max_new_tokens": 32, "temperature": 1.0, "rng": torch.Generator().manual_seed(seed)}
        self.rollouts = generate_rollouts(policy, [self.row], group_size=1, **sampling)
        self.tokens = [policy.tokenizer.decode([i]) for i in self.rollouts.completion_ids[0].tolist()]

    def read(self, preserving="rotation", removing="noise_patches", strength=1.0, top_fraction=0.5) -> tuple[Any, ...]:
        """The pictures I, I⁺, I⁻; the logits [3, T, V] under each; ΔH [T] in nats; which are perception tokens [T]."""
        pictures, mask = {"I": self.row["image"]}, self.rollouts.completion_mask
        for name, view, kind in (("I⁺", PRESERVING[preserving], "preserve"), ("I⁻", REMOVING[removing], "remove")):
            pictures[name] = view(self.row["image"], view_rng(self.seed, 0, 0, kind), strength)
        with self.policy.scoring():
            prompts = self.policy.encode(list(pictures.values()), [self.row["question"]] * 3)
            logits = self.policy.score(prompts, self.rollouts.completion_ids.expand(3, -1), mask.expand(3, -1))
        entropy, _, removed = token_entropy(logits)[:, None]
        shift = entropy_shift(entropy, removed, mask)
        chosen = select_perception_tokens(shift, removed, mask, top_fraction=top_fraction, ranking="absolute")
        return pictures, logits, shift[0], chosen[0]

    def heatmap(self, **settings: Any) -> Figure:
        """The completion coloured by ΔH, perception tokens framed, below the pictures; `settings` are those of `read`."""
        pictures, _, shift, chosen = self.read(**settings)
        said = ", ".join(f"{name} {value}".replace("_", " ") for name, value in settings.items())
        return plots.plot_heatmap(self.tokens, shift.tolist(), chosen.tolist(), pictures, title=said)

    def distributions(self, token: int, **settings: Any) -> Figure:
        """The five likeliest words for one token, below each of the pictures; `settings` are those of `read`."""
        pictures, logits, shift, _ = self.read(**settings)
        chances = logits[:, token].softmax(dim=-1)
        words = chances.amax(dim=0).topk(5).indices.sort().values
        with plots.style():
            fig, axes = plt.subplots(2, 3, figsize=(9, 4), height_ratios=[1.3, 1], sharey="row")
            for (top, bottom), (name, picture), chance in zip(axes.T, pictures.items(), chances, strict=True):
                plots.show_image(top, picture, f"{name}: H = {torch.special.entr(chance).sum():.2f} nats")
                bottom.bar([self.policy.tokenizer.decode([i]) for i in words.tolist()], chance[words].numpy(), color=plots.BLUE)
            axes[1, 0].set(ylabel="probability", ylim=(0, 1))
            fig.suptitle(f"token {token}, “{self.tokens[token]}”: ΔH = {shift[token]:+.2f} nats")
        return fig


def explore(make: Callable[..., Figure], frames: Sequence[Mapping[str, Any]], alt: str, **controls: Any) -> Any:
    """Controls that redraw the figure of `make`; for a page where nothing can move (CPPO_FRAMES is set), `frames` of it.
    `controls`: name -> (lowest, highest, step), a list of choices, of pairs (label, value) to press, or "upload" for a file.
    """
    if os.environ.get("CPPO_FRAMES"):
        for frame in frames:
            plots.show(alt, make(**frame))
        return None
    import ipywidgets as widgets  # where there are notebooks

    plt.close(make(**frames[0]))  # what is wrong shows here, not inside a widget
    made = {}
    for name, kind in controls.items():
        begin = {"value": frames[0][name], "description": name.replace("_", " ")}
        if kind == "upload":
            made[name] = widgets.FileUpload(accept="image/*")
        elif isinstance(kind, tuple):
            made[name] = widgets.FloatSlider(min=kind[0], max=kind[1], step=kind[2], continuous_update=False, **begin)
        else:
            made[name] = (widgets.ToggleButtons if isinstance(kind[0], tuple) else widgets.Dropdown)(options=kind, **begin)
    output = widgets.interactive_output(lambda **values: plots.show(alt, make(**values)), made)
    return widgets.VBox([widgets.Box(list(made.values()), layout={"flex_flow": "row wrap", "max_width": "930px"}), output])
