"""Credit by looking: the factors against a hand table, and what a step makes of them."""

import dataclasses

import pytest
import torch
from accelerate import Accelerator
from policies import nudge
from torch.testing import assert_close

from cppo_ref.config import CPPOConfig
from cppo_ref.examples.loading import load_rows, step_rows
from cppo_ref.examples.views import blanked
from cppo_ref.step import Parts, cppo_step, update
from cppo_ref.vlm.policy import load_policy
from study.controls import Controls
from study.credit import credit, visual_dependency

CONFIG = CPPOConfig(prompts_per_step=2, group_size=4, advantage_gate=False, removing=["patch_mask"], kl_weight=0.0)


@pytest.fixture(scope="module")
def policy():
    return nudge(load_policy("tiny"))


@pytest.fixture(scope="module")
def rows():
    return step_rows(load_rows("shapes", "train"), CONFIG.prompts_per_step, 0, CONFIG.seed)


def step_of(policy, rows, controls):
    still = torch.optim.SGD(policy.trainable, lr=0.0)
    parts = controls.parts(policy, CONFIG, 0)
    _, batch = cppo_step(policy, still, rows, CONFIG, 0, parts=parts, accelerator=Accelerator(cpu=True))
    assert parts.credit is not None
    return batch, parts.credit


def gradient(policy, batch, parts):
    still, everyone = torch.optim.SGD(policy.trainable, lr=0.0), torch.arange(len(batch.rewards))
    update(policy, still, batch, everyone, dataclasses.replace(CONFIG, max_grad_norm=1e9), Accelerator(cpu=True), parts)
    return torch.cat([parameter.grad.flatten() for parameter in policy.trainable])


def test_two_of_five_tokens_learn_and_the_completion_that_looks_more_learns_more():
    dependency = torch.tensor([[0.0, 0.4, 0.1, 0.3, 0.2], [0.5, 0.1, 0.3, 9.0, 9.0]])
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]], dtype=torch.bool)
    # 40 % of 4 tokens with any dependency, and of 3, rounded up: 2 and 2. Means 0.2 and 0.3: factors 0.9 and 1.1
    expected = torch.tensor([[0, 0.9, 0, 0.9, 0], [1.1, 0, 1.1, 0, 0]])
    assert_close(credit(dependency, mask), expected)


def test_completions_that_depend_equally_have_the_same_factor():
    mask = torch.ones(2, 3, dtype=torch.bool)
    assert_close(credit(torch.tensor([[0.3, 0.2, 0.1]] * 2), mask), torch.tensor([[1.0, 1.0, 0.0]] * 2))


def test_a_step_gives_cpl_no_token_and_the_reward_the_tokens_that_depend_on_the_image(policy, rows):
    batch, credited = step_of(policy, rows, Controls(credit="looking"))
    assert batch.selected is not None and not batch.selected.any()
    factors = credited(batch)
    share = (factors > 0).sum(dim=1) / batch.rollouts.completion_mask.sum(dim=1)
    assert ((share > 0.3) & (share < 0.5)).all()
    assert not (factors[~batch.rollouts.completion_mask]).any()


def test_nothing_depends_on_a_picture_that_no_view_can_change(policy, rows):
    blank = dataclasses.replace(CONFIG, removing=["blank"])
    grey = [blanked(row) for row in rows]
    still = torch.optim.SGD(policy.trainable, lr=0.0)
    _, batch = cppo_step(policy, still, grey, blank, 0, accelerator=Accelerator(cpu=True))
    _, shown = cppo_step(policy, still, rows, blank, 0, accelerator=Accelerator(cpu=True))
    assert visual_dependency(policy, batch, blank).max() < 1e-6
    assert visual_dependency(policy, shown, blank).max() > 0.1


def test_the_gradient_is_linear_in_the_credit(policy, rows):
    batch, credited = step_of(policy, rows, Controls(credit="looking"))
    factors = credited(batch)
    full, some = gradient(policy, batch, Parts()), gradient(policy, batch, Parts(credit=credited))
    rest = gradient(policy, batch, Parts(credit=lambda batch: 1 - factors))
    assert_close(some + rest, full, atol=1e-6, rtol=1e-4)
    assert (some - full).abs().max() > 1e-3 * full.abs().max()
