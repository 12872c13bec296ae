"""The controls of the study: token choices and losses against hand tables, and defaults that change nothing."""

import dataclasses

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from policies import nudge
from torch.testing import assert_close

from cppo_ref.config import CPPOConfig, InputError
from cppo_ref.cpl import view_divergence
from cppo_ref.examples.loading import load_rows, step_rows
from cppo_ref.perturbations import preserve, view_rng
from cppo_ref.rollouts import generate_rollouts
from cppo_ref.step import contrastive_tokens, cppo_step, perception_tokens, update
from cppo_ref.vlm.policy import load_policy
from study.controls import Controls, augment_rows, choose_tokens, perception_loss, random_tokens, true_perception_tokens

CONFIG = CPPOConfig(prompts_per_step=2, group_size=4, cpl_weight=0.5)
MASK = torch.tensor([[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1], [1, 1, 0, 0, 0, 0]], dtype=torch.bool)
CHOSEN = torch.tensor([[1, 1, 0, 0, 0, 0], [0, 0, 0, 0, 0, 1], [0, 0, 0, 0, 0, 0]], dtype=torch.bool)


@pytest.fixture(scope="module")
def rows():
    return step_rows(load_rows("shapes", "train"), CONFIG.prompts_per_step, 0, CONFIG.seed)


@pytest.fixture(scope="module")
def policy():
    return nudge(load_policy("tiny"))


CPPO = Controls()


def step_with(policy, rows, controls=CPPO, **changes):
    """Metrics, batch and gradients of one step that moves nothing."""
    config = dataclasses.replace(CONFIG, max_grad_norm=1e9, **changes)
    still = torch.optim.SGD(policy.trainable, lr=0.0)
    metrics, batch = cppo_step(policy, still, rows, config, 0, parts=controls.parts(policy, config, 0))
    return metrics, batch, [parameter.grad.clone() for parameter in policy.trainable]


def test_random_tokens_are_as_many_per_row_and_completion_tokens_only():
    for seed in range(20):
        drawn = random_tokens(CHOSEN, MASK, torch.Generator().manual_seed(seed))
        assert drawn.sum(dim=1).tolist() == [2, 1, 0]
        assert not (drawn & ~MASK).any()


def test_random_tokens_are_drawn_evenly():
    rng = torch.Generator().manual_seed(0)
    counts = sum(random_tokens(CHOSEN, MASK, rng)[0].float() for _ in range(2000))
    assert_close(counts / 2000, torch.tensor([0.5, 0.5, 0.5, 0.5, 0.0, 0.0]), atol=0.04, rtol=0)


def test_true_perception_tokens_are_the_listing(policy, rows):
    rollouts = generate_rollouts(policy, rows, group_size=2, max_new_tokens=32, rng=torch.Generator().manual_seed(0))
    truth = true_perception_tokens(policy, rollouts)
    for text, row in zip(rollouts.texts, truth, strict=True):
        listing = text.removeprefix("<think> ").split(" ;")[0].split()
        assert row.nonzero().flatten().tolist() == list(range(1, 1 + len(listing)))


@pytest.mark.parametrize("tokens", ["shift", "random", "all", "true"])
def test_every_choice_of_tokens_stays_among_the_gated_ones(policy, rows, tokens):
    metrics, batch, _ = step_with(policy, rows, Controls(tokens=tokens))
    gated = batch.rollouts.completion_mask & batch.gate[:, None]
    assert batch.selected.any()
    assert not (batch.selected & ~gated).any()
    assert torch.equal(batch.selected, gated) == (tokens == "all")
    assert metrics.cpl > 0


def test_random_and_shift_choose_equally_many_and_the_seed_decides_which(policy, rows):
    _, batch, _ = step_with(policy, rows)
    gated = batch.rollouts.completion_mask & batch.gate[:, None]
    inputs = (policy, batch, batch.shift.abs())
    shift = perception_tokens(*inputs, CONFIG, 0)
    first, again, other = (
        choose_tokens(*inputs, dataclasses.replace(CONFIG, seed=seed), 0, tokens="random") for seed in (0, 0, 1)
    )
    assert not (first & ~gated).any()
    assert torch.equal(first.sum(dim=1), shift.sum(dim=1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def three_views(seed=0):
    """Logits [4, 5] under I, I⁺ and I⁻, with graph, and the sampled tokens."""
    rng = torch.Generator().manual_seed(seed)
    return [torch.randn(4, 5, generator=rng, dtype=torch.float64).requires_grad_() for _ in range(3)], torch.tensor(
        [0, 1, 2, 3]
    )


@pytest.mark.parametrize(("kind", "through"), [("cpl", (True, True)), ("pull", (True, False)), ("push", (False, True))])
def test_pull_and_push_have_the_value_of_cpl_and_half_of_its_gradient(kind, through):
    views, ids = three_views()
    whole = contrastive_tokens(*views, ids, CONFIG)
    loss = perception_loss(*views, ids, CONFIG, kind=kind)
    assert_close(loss, whole)
    both = torch.autograd.grad(whole.sum(), views[1:])
    gradients = torch.autograd.grad(loss.sum(), views[1:], allow_unused=True)
    for gradient, expected, used in zip(gradients, both, through, strict=True):
        assert (gradient is not None and bool(gradient.any())) == used
        if used:
            assert_close(gradient, expected)


def test_papo_is_minus_the_divergence_of_the_masked_view_which_has_no_gradient():
    views, ids = three_views()
    anchor, masked = (torch.distributions.Categorical(logits=view) for view in (views[0], views[2]))
    loss = perception_loss(*views, ids, dataclasses.replace(CONFIG, detach_anchor=False), kind="papo")
    assert_close(loss, -torch.distributions.kl_divergence(anchor, masked))
    got = torch.autograd.grad(loss.sum(), views, allow_unused=True)
    assert got[0].abs().max() > 0.01 and got[1] is None and got[2] is None


def test_papo_pushes_the_original_view_alone(policy, rows):
    """−γ · k3 over all tokens of all rows, written out: the masked view is a constant."""
    papo = Controls(perception_loss="papo", tokens="all", policy_weight=0.0)
    changes = {"advantage_gate": False, "kl_estimator": "k3", "detach_anchor": False}
    metrics, batch, gradients = step_with(policy, rows, papo, kl_weight=0.0, **changes)
    ids, mask = batch.rollouts.completion_ids, batch.rollouts.completion_mask
    with torch.no_grad():
        masked = policy.score(batch.views[1], ids, mask)
    original = policy.score(batch.prompts, ids, mask)
    loss = -view_divergence(original, masked, ids, estimator="k3")[mask].mean()
    assert_close(metrics.cpl, loss.item(), atol=1e-5, rtol=1e-4)
    for got, want in zip(gradients, torch.autograd.grad(CONFIG.cpl_weight * loss, policy.trainable), strict=True):
        assert_close(got, want, atol=1e-6, rtol=1e-3)


def test_without_the_policy_term_cpl_alone_is_left(policy, rows):
    _, batch, alone = step_with(policy, rows, Controls(policy_weight=0.0), kl_weight=0.0)
    _, _, both = step_with(policy, rows, kl_weight=0.0)
    still, everyone = torch.optim.SGD(policy.trainable, lr=0.0), torch.arange(len(batch.rewards))
    plain = dataclasses.replace(CONFIG, cpl_weight=0.0, kl_weight=0.0, max_grad_norm=1e9)
    update(policy, still, dataclasses.replace(batch, selected=None), everyone, plain, Accelerator(cpu=True))
    for cpl, total, grpo in zip(alone, both, [p.grad for p in policy.trainable], strict=True):
        assert_close(cpl + grpo, total, atol=1e-6, rtol=1e-3)
    assert max(gradient.abs().max() for gradient in alone) > 1e-3


def test_augmentation_replaces_an_even_share_by_the_views_that_cppo_contrasts_with(rows):
    four = [*rows, *rows]
    shown = augment_rows(four, dataclasses.replace(CONFIG, seed=3), step=7, share=0.5)
    assert [a is b for a, b in zip(shown, four, strict=True)] == [True, False, True, False]
    view = preserve(four[3]["image"], view_rng(3, 7, 3, "preserve"), CONFIG.preserving, CONFIG.preserving_strength)
    assert np.array_equal(shown[3]["image"], view)
    assert [shown[3][key] for key in ("question", "answer")] == [four[3][key] for key in ("question", "answer")]
    assert all(a is b for a, b in zip(augment_rows(four, CONFIG, 7, share=0.0), four, strict=True))
    assert not any(a is b for a, b in zip(augment_rows(four, CONFIG, 7, share=1.0), four, strict=True))


@pytest.mark.parametrize(
    ("name", "value"),
    [("augment", 1.5), ("augment", -0.1), ("policy_weight", -1.0), ("tokens", "some"), ("perception_loss", "kl")],
)
def test_bad_values_are_named(name, value):
    with pytest.raises(InputError, match=name):
        Controls(**{name: value})


def test_the_defaults_compute_what_they_computed_before_the_controls_existed():
    """One default step, as commit 76143fa computed it."""
    policy = load_policy("tiny")
    rows = step_rows(load_rows("shapes", "train"), 8, 0, 0)
    metrics, _ = cppo_step(policy, torch.optim.SGD(policy.trainable, lr=0.0), rows, CPPOConfig(), 0)
    assert (metrics.gated_rows, metrics.accuracy, metrics.completion_tokens) == (34, 0.53125, 18.90625)
    before = {"cpl": 1.98251, "policy_loss": -0.00463749, "grad_norm": 0.0808478, "perception_tokens": 0.278638}
    for name, value in before.items():
        assert getattr(metrics, name) == pytest.approx(value, rel=1e-3), name
