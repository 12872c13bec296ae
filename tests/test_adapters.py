"""Memory for speed: unpacked weights and merged adapters compute what packed ones and peft's layers do."""

from dataclasses import replace

import pytest
import torch
from bitsandbytes.nn.modules import Linear4bit
from policies import nudge
from torch.testing import assert_close

from cppo_ref.config import CPPOConfig
from cppo_ref.examples.loading import load_rows, split_rows, step_rows
from cppo_ref.rollouts import generate_rollouts
from cppo_ref.step import cppo_step
from cppo_ref.vlm.adapters import merged_adapters, unpack_4bit
from cppo_ref.vlm.policy import load_policy, policy_for
from cppo_ref.vlm.scoring import completion_logprobs

SMALL = CPPOConfig(prompts_per_step=2, group_size=4)


@pytest.fixture(scope="module")
def pair():
    """The same policy twice, packed and unpacked, with adapters that do something."""
    return nudge(policy_for(SMALL)), nudge(policy_for(replace(SMALL, unpack=True)))


def completions(policy):
    """Two prompts and a completion of each."""
    prompts = policy.encode([row["image"] for row in split_rows("test", count=2)], ["How many red shapes?"] * 2)
    return prompts, torch.tensor([[7, 8, 9], [9, 8, 7]]), torch.tensor([[True] * 3, [True, True, False]])


def test_unpacked_weights_are_those_that_the_kernels_multiply_by_to_the_bit():
    """Peft's own layers on top of both: only the weights differ."""
    packed, plain = load_policy("tiny", lora=None), load_policy("tiny", lora=None)
    assert sum(isinstance(module, Linear4bit) for module in plain.model.modules()) == 21
    unpack_4bit(plain.model, torch.float32)
    assert not any(isinstance(module, Linear4bit) for module in plain.model.modules())
    with torch.no_grad():
        assert torch.equal(packed.score(*completions(packed)), plain.score(*completions(plain)))


def test_the_same_words_are_sampled_from_the_same_draws(pair):
    rows = step_rows(load_rows("shapes", "train"), 4, 0, 0)
    for temperature in (1.0, 0.0):
        options = {"group_size": 4, "max_new_tokens": 32, "temperature": temperature}
        packed, plain = (generate_rollouts(p, rows, **options, rng=torch.Generator().manual_seed(1)) for p in pair)
        assert torch.equal(packed.completion_ids, plain.completion_ids)
        assert_close(packed.entropy, plain.entropy, atol=1e-5, rtol=1e-4)
    assert len(set(packed.texts)) > 1


@pytest.mark.parametrize("changes", [{}, {"cpl_weight": 0.0}, {"advantage_gate": False, "micro_batch_size": 3}])
def test_a_step_has_the_same_losses_and_gradients(pair, changes):
    """The optimizer's step is the gradient itself: SGD with learning rate 1."""
    rows, config, moved, metrics = step_rows(load_rows("shapes", "train"), 2, 3, 0), replace(SMALL, **changes), [], []
    for policy in pair:
        before = [parameter.detach().clone() for parameter in policy.trainable]
        metrics.append(cppo_step(policy, torch.optim.SGD(policy.trainable, lr=1.0), rows, config, 3)[0])
        moved.append(torch.cat([(a - b).flatten() for a, b in zip(before, policy.trainable, strict=True)]).detach())
        for parameter, value in zip(policy.trainable, before, strict=True):
            parameter.data.copy_(value)
    assert moved[0].norm() > 1e-3
    assert_close(moved[1], moved[0], atol=2e-6, rtol=1e-3)
    for name in ("reward", "policy_loss", "kl", "cpl", "entropy_shift", "gated_rows", "perturbed_rows"):
        assert getattr(metrics[1], name) == pytest.approx(getattr(metrics[0], name), abs=1e-5), name


def test_the_reference_is_the_base_model_also_where_adapters_would_be_merged(pair):
    packed, plain = pair
    now = completion_logprobs(plain, *completions(plain))
    with packed.reference(), plain.reference():
        reference = completion_logprobs(plain, *completions(plain))
        assert_close(reference, completion_logprobs(packed, *completions(packed)), atol=1e-5, rtol=1e-5)
    assert not torch.allclose(reference, now, atol=1e-3)
    assert torch.equal(completion_logprobs(plain, *completions(plain)), now)


def test_merged_weights_follow_the_optimizer_and_leave_no_trace(pair):
    _, policy = pair
    before = [parameter.detach().clone() for parameter in policy.trainable]
    with torch.no_grad():
        plain = policy.score(*completions(policy))
        with merged_adapters(policy.model):
            merged = policy.score(*completions(policy))
        assert_close(merged, plain, atol=1e-5, rtol=1e-5)
        assert torch.equal(policy.score(*completions(policy)), plain)
    optimizer = torch.optim.AdamW(policy.trainable, lr=0.01)
    policy.score(*completions(policy)).square().sum().backward()
    optimizer.step()
    with torch.no_grad(), merged_adapters(policy.model):
        assert not torch.allclose(policy.score(*completions(policy)), merged, atol=1e-3)
    for parameter, value in zip(policy.trainable, before, strict=True):
        parameter.data.copy_(value)
        parameter.grad = None


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_unpacked_weights_in_16_bits_take_a_step_and_are_not_merged(dtype):
    """On a GPU 16 bits are the default; a merged sum would round what the adapter learned away."""
    packed, unpacked = (nudge(load_policy("tiny", dtype=dtype, unpack=unpack)) for unpack in (False, True))
    rows = step_rows(load_rows("shapes", "train"), 2, 0, 0)
    cppo_step(unpacked, torch.optim.SGD(unpacked.trainable, lr=0.0), rows, CPPOConfig(prompts_per_step=2, group_size=2), 0)
    args = completions(packed)
    with packed.scoring():
        want = packed.score(*args)
    with unpacked.scoring():
        assert_close(unpacked.score(*args), want, atol=0.15, rtol=0.02)


def test_prompts_are_the_same_only_if_they_are_taken_from_the_same(pair):
    image, other = (row["image"] for row in split_rows("test", count=2))
    prompts = pair[0].encode([image, other], ["How many red shapes?", "How many blue plus red shapes?"])
    inputs, which = prompts.take(torch.tensor([1, 1, 0, 1])).take(torch.tensor([0, 1, 3])).distinct()
    assert which.tolist() == [0, 0, 0] and len(inputs["input_ids"]) == 1
    assert torch.equal(inputs["pixel_values"][0], prompts.encoded["pixel_values"][1])
