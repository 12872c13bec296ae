"""Presets: what they set, and the size of what they leave different from the authors' code, as docs/details.md quotes it."""

from itertools import count
from pathlib import Path

import pytest
import torch

from cppo_ref import step as algorithm
from cppo_ref.config import PRESETS, CPPOConfig
from cppo_ref.cpl import contrast, contrastive_perception_loss
from cppo_ref.examples.loading import load_rows, step_rows
from cppo_ref.grpo import group_advantages
from cppo_ref.perception import select_perception_tokens
from cppo_ref.vlm.policy import load_policy

DETAILS = (Path(__file__).parent.parent / "docs" / "details.md").read_text()


# --- what they set ---


BOTH_VIEWS = ["noise_patches", "zoom_crop"]
WRITTEN_OUT = {
    "paper": {"detach_anchor": False, "removing": BOTH_VIEWS, "kl_estimator": "exact", "ranking": "absolute"},
    "verl": {"detach_anchor": False, "removing": BOTH_VIEWS, "kl_estimator": "k3", "ranking": "normalized"},
    "areal": {
        "detach_anchor": False,
        "removing": BOTH_VIEWS,
        "kl_estimator": "k1",
        "ranking": "normalized",
        "kl_weight": 0.0,
        "clip_low": 0.4,
        "clip_high": 0.4,
        "preserving": ["color_jitter", "perspective", "rotation", "blur"],
    },
    "cppo-ref": {},
    "grpo": {"cpl_weight": 0.0},
}


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_sets_loss_choices_and_kinds_of_view_only(name):
    ours, preset = CPPOConfig().to_dict(), CPPOConfig.preset(name).to_dict()
    assert preset == {**ours, **WRITTEN_OUT[name]}


def test_details_name_every_setting_of_the_authors_that_the_presets_leave_alone():
    left = {"num_minibatches": "8", "group_size": "5", "learning_rate": "1e-6", "weight_decay": "0.01", "micro_batch_size": "8"}
    for setting, theirs in left.items():
        assert not any(setting in changes for changes in PRESETS.values())
        assert f"`{setting}` {theirs}" in DETAILS, setting


@pytest.mark.parametrize("words", ["the authors'", "published variant"])
def test_no_help_text_claims_the_authors_settings(words, capsys):
    from cppo_ref.__main__ import main

    with pytest.raises(SystemExit):
        main(["train", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "loss choices to start from" in text
    for found in text.split(words)[1:]:
        assert found.strip().startswith("ranges, our drawing"), found[:60]


# --- the mean of CPL: over an update's tokens here, over micro-batches there ---


def simulated_batch(prompts, group_size, shortest, longest):
    """A seeded batch: [B, T] entropies, KLs and mask, and the rows with A > 0. Answers of a row share their luck in KL⁺."""
    generator = torch.Generator().manual_seed(0)
    rows = prompts * group_size

    def uniform(*shape):
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    lengths = torch.randint(shortest, longest + 1, (rows,), generator=generator)
    mask = torch.arange(longest) < lengths[:, None]
    solved = uniform(prompts).repeat_interleave(group_size)  # chance of a right answer to the prompt
    gate = group_advantages((uniform(rows) < solved).float(), group_size) > 0
    entropy = uniform(rows, longest)
    removed_entropy = (entropy + 0.6 * (uniform(rows, longest) - 0.5)).clamp(min=0)
    preserved, removed = 0.4 * uniform(rows, longest) * uniform(rows, 1), 0.2 * uniform(rows, longest)
    return torch.where(mask, removed_entropy - entropy, 0.0), removed_entropy, mask, gate, preserved, removed


def verl_selection(shift, removed_entropy):
    """One row: positions of the top half by normalised shift, rounded down but at least one, every tie kept."""
    score = {t: dh / (h + 1e-6) for t, (dh, h) in enumerate(zip(shift, removed_entropy, strict=True)) if dh > 0}
    if not score:
        return []
    threshold = sorted(score.values(), reverse=True)[max(len(score) // 2, 1) - 1]
    return [t for t, value in score.items() if value >= threshold]


def in_eights(rows):
    return [rows[i : i + 8] for i in range(0, len(rows), 8)]


def means_of_micro_batches(token_losses, lengths):
    """(equal weights, weights by response tokens, largest token weight over smallest), micro-batches of 8 rows."""
    micro = [[loss for row in rows for loss in row] for rows in in_eights(token_losses)]
    means = [sum(losses) / len(losses) if losses else 0.0 for losses in micro]
    tokens = [sum(rows) for rows in in_eights(lengths)]
    weighted = sum(mean * n for mean, n in zip(means, tokens, strict=True)) / sum(tokens)
    filled = [len(losses) for losses in micro if losses]
    return sum(means) / len(means), weighted, max(filled) / min(filled)


@pytest.mark.parametrize("shape", [(8, 8, 8, 24), (64, 5, 50, 400)], ids=["short completions", "long completions"])
def test_the_mean_of_cpl_here_and_there_is_as_quoted(shape):
    shift, removed_entropy, mask, gate, preserved, removed = simulated_batch(*shape)
    ours = select_perception_tokens(shift, removed_entropy, mask, ranking="normalized") & gate[:, None]
    here = contrastive_perception_loss(preserved, removed, ours).item()
    losses = contrast(preserved, removed).tolist()
    rows = zip(shift.tolist(), removed_entropy.tolist(), gate.tolist(), strict=True)
    theirs = [verl_selection(rises, entropies) if opened else [] for rises, entropies, opened in rows]
    token_losses = [[row[t] for t in chosen] for row, chosen in zip(losses, theirs, strict=True)]
    equal, by_tokens, spread = means_of_micro_batches(token_losses, mask.sum(dim=1).tolist())
    prompts, group_size, shortest, longest = shape
    line = f"| {prompts} × {group_size}, {shortest}–{longest} tokens | {int(ours.sum())} / {sum(map(len, theirs))} | "
    line += f"{here:.3f} | {equal:.3f} | {by_tokens:.3f} | {spread:.0f} |"
    assert line in DETAILS, line


# --- the gate of a dead group ---


# Rewards, completion tokens, and the advantage (r − mean)/std of each row; the second group's std is √(3/4 · ¼ · 4/3) = ½
TABLE = [
    *[(1.0, 4, 0.0)] * 4,  # all right: a dead group
    (1.0, 2, 1.5),  # 0.75 / 0.5
    *[(0.0, 6, -0.5)] * 3,  # −0.25 / 0.5, and longer than the right answer
]


def test_a_batch_mean_would_open_the_gate_of_a_dead_group_and_ours_stays_shut():
    rewards, tokens, expected = (torch.tensor(column) for column in zip(*TABLE, strict=True))
    advantages = group_advantages(rewards, 4)
    torch.testing.assert_close(advantages, expected, atol=1e-3, rtol=0)  # ε is 1e-4
    assert (advantages > 0).tolist() == [False] * 4 + [True] + [False] * 3
    # tokens: 16 + 20; their advantages sum to 1.5 · 2 − 0.5 · 18 = −6: the mean is −1/6
    after_areal = advantages - (advantages * tokens).sum() / tokens.sum()
    assert after_areal[:4].tolist() == pytest.approx([1 / 6] * 4, abs=1e-3)
    assert (after_areal > 0).tolist() == [True] * 5 + [False] * 3


def test_the_gate_of_a_step_is_shut_for_a_dead_group_whatever_the_mean_of_the_batch(monkeypatch):
    scripted = [1.0] * 4 + [0.0, 0.0, 0.0, 1.0]
    number = count()
    monkeypatch.setattr(algorithm, "reward", lambda text, answer: scripted[next(number)])
    config = CPPOConfig(prompts_per_step=2, group_size=4, temperature=3.0, micro_batch_size=8)  # 3: lengths differ
    policy = load_policy("tiny")
    rows = step_rows(load_rows("shapes", "train"), 2, 0, 0)
    _, batch = algorithm.cppo_step(policy, torch.optim.SGD(policy.trainable, lr=0.0), rows, config, step=0)
    lengths = batch.rollouts.completion_mask.sum(dim=1)
    assert (batch.advantages * lengths).sum() < 0  # after subtracting this mean, the dead group would have A > 0
    assert batch.gate.tolist() == [False] * 7 + [True]
    assert batch.selected is not None and not batch.selected[:7].any()
