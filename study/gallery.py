"""The failure gallery: where the detector marks the wrong tokens, misses the right ones, or CPL acts on a wrong percept.

Every token of the gated completions of one batch is described by what could explain its fate; the gallery shows the first case
of each kind in the batch, not a chosen one, and counts all of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from cppo_ref.config import CPPOConfig
from cppo_ref.evaluation import completion_labels
from cppo_ref.examples.loading import load_rows, step_rows
from cppo_ref.perturbations import preserve, remove, view_rng
from cppo_ref.pictures.plots import plot_heatmap
from cppo_ref.rollouts import Batch
from cppo_ref.step import Parts, cppo_step
from cppo_ref.vlm.policy import Policy
from cppo_ref.vlm.scoring import completion_logprobs
from study.analysis import bootstrap_interval
from study.probes import gradient, parameters_at, snapshot

UNDECIDED = 0.01  # nats: an entropy shift below it says next to nothing
KINDS = {
    "marked": "a token that is no percept is marked",
    "missed": "a percept is missed",
    "wrong": "a wrong percept of a rewarded completion is marked",
}


@dataclass(frozen=True)
class Token:
    """One token of a gated completion and what could explain its fate."""

    row: int
    prompt: int
    position: int
    text: str
    kind: str
    right: bool | None
    selected: bool
    shift: float  # ΔH, nats
    changed: float  # mean absolute change of its cell under I⁻, share of full scale; NaN for other tokens than percepts
    likeliest: bool  # whether it is the policy's own first choice under I
    rise: float  # how CPL's gradient alone moves its log-probability under I⁺

    def fails(self, kind: str) -> bool:
        """Whether it is a failure of this kind."""
        percept = self.kind == "perception"
        if kind == "marked":
            return self.selected and not percept
        return percept and (not self.selected if kind == "missed" else self.selected and self.right is False)


def look(policy: Policy, config: CPPOConfig, train_steps: int, prompts: int) -> Batch:
    """Train for some steps, then take one batch of `prompts` prompts without learning from it."""
    rows, accelerator = load_rows(config.data, "train", config.level), Accelerator(cpu=True)
    optimizer = torch.optim.AdamW(policy.trainable, lr=config.learning_rate, weight_decay=config.weight_decay)
    for step in range(train_steps):
        optimizer.param_groups[0]["lr"] = config.learning_rate_at(step)
        cppo_step(
            policy,
            optimizer,
            step_rows(rows, config.prompts_per_step, step, config.seed),
            config,
            step,
            accelerator=accelerator,
        )
    still = torch.optim.SGD(policy.trainable, lr=0.0)
    _, batch = cppo_step(
        policy, still, step_rows(rows, prompts, train_steps, config.seed), config, train_steps, accelerator=accelerator
    )
    return batch


def views(batch: Batch, config: CPPOConfig, step: int, prompt: int) -> dict[str, Image.Image]:
    """I, I⁺ and I⁻ of a prompt, as the step saw them."""
    image = batch.rollouts.rows[prompt]["image"]
    kept = preserve(image, view_rng(config.seed, step, prompt, "preserve"), config.preserving, config.preserving_strength)
    gone = remove(image, view_rng(config.seed, step, prompt, "remove"), config.removing, config.removing_strength)
    return {"I": image, "I⁺": kept, "I⁻": gone}


def cell_change(image: Image.Image, other: Image.Image, cells: int) -> np.ndarray:
    """Mean absolute difference of two pictures in each of the grid's `cells` cells, row by row, as a share of full scale."""
    side = round(cells**0.5)
    gap = np.abs(np.asarray(image, dtype=float) - np.asarray(other, dtype=float)).mean(axis=2) / 255
    return np.array([block.mean() for band in np.array_split(gap, side) for block in np.array_split(band, side, axis=1)])


@torch.no_grad()
def observe(policy: Policy, batch: Batch, config: CPPOConfig, step: int) -> list[Token]:
    """Every token of the gated completions, row by row."""
    rollouts, labels = batch.rollouts, completion_labels(policy, batch.rollouts)
    assert batch.shift is not None and batch.selected is not None
    with torch.enable_grad():
        rise = rises(policy, batch, config).tolist()
    tokens: list[Token] = []
    for row in batch.gate.nonzero().flatten().tolist():
        prompt = int(rollouts.prompt_of_row[row])
        ids, mask = rollouts.completion_ids[row : row + 1], rollouts.completion_mask[row : row + 1]
        hidden = policy.hidden_states(rollouts.prompts.take(rollouts.prompt_of_row[row : row + 1]), ids, mask)
        likeliest = (policy.logits(hidden).argmax(dim=-1) == ids)[0].tolist()
        seen = views(batch, config, step, prompt)
        changes = cell_change(seen["I"], seen["I⁻"], len(rollouts.rows[prompt]["objects"])).tolist()
        for position, label in enumerate(labels[row]):
            change = changes.pop(0) if label.kind == "perception" and changes else float("nan")
            marked, shift = bool(batch.selected[row, position]), batch.shift[row, position].item()
            told = (row, prompt, position, label.token, label.kind, label.right)
            measured = (marked, shift, change, likeliest[position], rise[row][position])
            tokens.append(Token(*told, *measured))
    return tokens


def rises(policy: Policy, batch: Batch, config: CPPOConfig, size: float = 1e-3) -> Tensor:
    """How log π(token | I⁺) [B, T] moves in a step of length `size` along CPL's gradient alone, divided by `size`."""
    assert batch.views is not None
    values = snapshot(policy)
    direction = gradient(policy, batch, replace(config, kl_weight=0.0), Parts(policy_weight=0.0))
    moved, pieces = [], direction.split([value.numel() for value in values])
    for value, piece in zip(values, pieces, strict=True):
        moved.append(value - size * piece.view_as(value) / direction.norm())
    completions = batch.views[0], batch.rollouts.completion_ids, batch.rollouts.completion_mask
    before = completion_logprobs(policy, *completions, temperature=config.temperature)
    with parameters_at(policy, moved):
        after = completion_logprobs(policy, *completions, temperature=config.temperature)
    return (after - before) / size


def summary(tokens: Sequence[Token]) -> dict[str, Any]:
    """The counts behind the gallery; shares in [0, 1], entropies in nats, `rise` with its 95 % interval over prompts."""
    percepts = [token for token in tokens if token.kind == "perception"]
    found = {kind: [token for token in tokens if token.fails(kind)] for kind in KINDS}
    hits = [token for token in percepts if token.selected]
    right = [token for token in hits if token.right]
    rows, wrong_rows = {token.row for token in tokens}, {token.row for token in found["wrong"]}
    counts = {name: len(chosen) for name, chosen in (*found.items(), ("hits", hits), ("right", right), ("rows", list(rows)))}
    return {
        **{f"{name}_count": count for name, count in counts.items()},
        "tokens": len(tokens),
        "marked_share": share([token.kind != "perception" for token in tokens if token.selected]),
        "marked_undecided": share([token.shift < UNDECIDED for token in found["marked"]]),
        "hit_undecided": share([token.shift < UNDECIDED for token in hits]),
        "missed_share": share([not token.selected for token in percepts]),
        "missed_not_risen": share([token.shift <= 0 for token in found["missed"]]),
        "missed_change": share([token.changed for token in found["missed"]]),
        "hit_change": share([token.changed for token in hits]),
        "wrong_rows": len(wrong_rows) / max(len(rows), 1),
        "wrong_likeliest": share([token.likeliest for token in found["wrong"]]),
        "right_likeliest": share([token.likeliest for token in right]),
        "wrong_rise": over_prompts(found["wrong"]),
        "right_rise": over_prompts(right),
    }


def share(values: Sequence[float]) -> float | None:
    """Their mean without NaN; None if there are none."""
    known = [value for value in values if value == value]
    return float(np.mean(known)) if known else None


def over_prompts(tokens: Sequence[Token]) -> list[float] | None:
    """[mean, low, high] of `rise`: the mean of each prompt first, then a bootstrap over prompts; None without tokens."""
    prompts = {token.prompt for token in tokens}
    means = np.array([np.mean([token.rise for token in tokens if token.prompt == prompt]) for prompt in sorted(prompts)])
    return [float(means.mean()), *bootstrap_interval(means)] if len(means) else None


def cases(tokens: Sequence[Token]) -> dict[str, Token]:
    """The first failure of each kind in the batch, each of another prompt; a kind that did not happen is left out."""
    shown: dict[str, Token] = {}
    for kind in KINDS:
        taken = {token.prompt for token in shown.values()}
        case = next((token for token in tokens if token.fails(kind) and token.prompt not in taken), None)
        if case:
            shown[kind] = case
    return shown


def show_case(batch: Batch, tokens: Sequence[Token], case: Token, title: str, config: CPPOConfig, step: int) -> Figure:
    """The heatmap of the completion around a failure, below the three views; marked tokens framed, ◄ behind the failure."""
    told = [token for token in tokens if token.row == case.row]
    row = batch.rollouts.rows[case.prompt]
    return plot_heatmap(
        [f"{token.text} ◄" if token is case else token.text for token in told],
        [token.shift for token in told],
        [token.selected for token in told],
        views(batch, config, step, case.prompt),
        title=f"{row['question']}  (answer: {row['answer']}).  {title}",
    )
