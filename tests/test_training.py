"""The training step: exactness of the gate, of micro-batches, of λ = 0, and a short real QLoRA run."""

import dataclasses
import inspect

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from policies import nudge, score_batch
from torch.testing import assert_close

from cppo_ref.config import CPPOConfig
from cppo_ref.cpl import contrastive_perception_loss, view_divergence
from cppo_ref.examples.loading import load_rows, step_rows
from cppo_ref.examples.views import encode_views, views_of
from cppo_ref.grpo import group_advantages, token_logprobs
from cppo_ref.perception import entropy_shift, select_perception_tokens, token_entropy
from cppo_ref.rewards import reward
from cppo_ref.rollouts import Batch, generate_rollouts
from cppo_ref.runs.seeds import stream_seed
from cppo_ref.step import NonFiniteError, Parts, cppo_step, find_perception_tokens, loss_terms, update
from cppo_ref.vlm.adapters import LoraOptions
from cppo_ref.vlm.devices import accelerator_for
from cppo_ref.vlm.policy import load_policy

CONFIG = CPPOConfig(prompts_per_step=3, group_size=4, cpl_weight=0.5)


@pytest.fixture
def rows():
    return step_rows(load_rows("shapes", "train"), CONFIG.prompts_per_step, 0, CONFIG.seed)


@pytest.fixture
def policy():
    """The tiny policy in NF4, its adapters nudged off zero so that it differs from the reference."""
    return nudge(load_policy("tiny"))


def make_batch(policy, rows, config=CONFIG):
    rng = torch.Generator().manual_seed(0)
    rollouts = generate_rollouts(policy, rows, group_size=config.group_size, max_new_tokens=config.max_new_tokens, rng=rng)
    rewards = torch.tensor([0.1, 1.0, 0.1, 0.1] * len(rows))
    advantages = group_advantages(rewards, config.group_size)
    batch = Batch(rollouts, rewards, advantages, advantages > 0)
    return score_batch(policy, batch, config)


def optimizer_for(policy):
    return torch.optim.SGD(policy.trainable, lr=1e-2)  # SGD: a parameter's change is its gradient


def gradients(policy, batch, config, accelerator):
    still = torch.optim.SGD(policy.trainable, lr=0.0)
    update(policy, still, batch, torch.arange(len(batch.rewards)), config, accelerator)
    return [parameter.grad.clone() for parameter in policy.trainable]


@pytest.fixture(scope="module")
def accelerator():
    return Accelerator(cpu=True)


def test_gating_changes_neither_loss_nor_gradient(policy, rows):
    """Against a plain implementation that scores every view of every row and multiplies by the gate afterwards."""
    batch = make_batch(policy, rows)
    ids, mask = batch.rollouts.completion_ids, batch.rollouts.completion_mask
    weights, cpl_weights = mask / mask.sum(), batch.selected / batch.selected.sum()
    everyone = torch.arange(len(ids))
    gated = loss_terms(policy, batch, everyone, weights, cpl_weights, CONFIG)["cpl"]
    gated_gradients = torch.autograd.grad(gated, policy.trainable)

    views = encode_views(policy, batch.rollouts, torch.ones_like(batch.gate), CONFIG, step=0)
    original, plus, minus = (policy.score(view, ids, mask) for view in (batch.prompts, *views))
    removed_entropy = token_entropy(minus).detach()
    shift = entropy_shift(token_entropy(original).detach(), removed_entropy, mask)
    selected = select_perception_tokens(shift, removed_entropy, mask, ranking="absolute") & (batch.advantages > 0)[:, None]
    kl_plus, kl_minus = (view_divergence(original, view, ids, detach_anchor=True) for view in (plus, minus))
    plain = contrastive_perception_loss(kl_plus, kl_minus, selected)

    assert torch.equal(selected, batch.selected)
    assert 0 < int(batch.gate.sum()) < len(ids)
    assert_close(gated, plain, atol=1e-6, rtol=1e-6)
    for gated_gradient, gradient in zip(gated_gradients, torch.autograd.grad(plain, policy.trainable), strict=True):
        assert_close(gated_gradient, gradient, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("aggregation", ["token", "sequence", "constant"])
def test_the_micro_batch_size_never_changes_the_gradient(policy, rows, accelerator, aggregation):
    whole = dataclasses.replace(CONFIG, aggregation=aggregation, max_grad_norm=1e9)
    batch = make_batch(policy, rows, whole)
    reference = gradients(policy, batch, whole, accelerator)
    assert max(gradient.abs().max() for gradient in reference) > 1e-3
    for size in (1, 5):
        again = gradients(policy, batch, dataclasses.replace(whole, micro_batch_size=size), accelerator)
        for got, want in zip(again, reference, strict=True):
            assert_close(got, want, atol=1e-5, rtol=1e-4)


def test_the_perturbed_forwards_run_for_the_rows_with_a_positive_advantage_only(policy, rows):
    scored = []
    hidden_states = policy.hidden_states
    policy.hidden_states = lambda prompts, *args: (scored.append(len(prompts)), hidden_states(prompts, *args))[1]
    metrics, batch = cppo_step(policy, optimizer_for(policy), rows, CONFIG, step=0)
    positive = int((batch.advantages > 0).sum())
    assert metrics.perturbed_rows == metrics.gated_rows == positive > 0
    looked = int(batch.selected.any(dim=1).sum())
    assert sum(scored) == 12 + positive + 12 + looked  # reference, I⁻ for detection and update, update, I⁺


def test_views_are_encoded_for_gated_prompts_and_computed_up_to_their_last_perception_token(policy, rows, monkeypatch):
    rewards = iter([1.0, 0.0, 0.0, 0.0] + [0.0] * 8)  # of three prompts one has a completion with A > 0
    monkeypatch.setattr("cppo_ref.step.reward", lambda text, answer: next(rewards))
    encoded, masks = [], []
    encode, hidden_states = policy.encode, policy.hidden_states
    policy.encode = lambda images, questions: (encoded.append(len(images)), encode(images, questions))[1]
    policy.hidden_states = lambda prompts, ids, mask: (masks.append(mask), hidden_states(prompts, ids, mask))[1]
    _, batch = cppo_step(policy, optimizer_for(policy), rows, CONFIG, step=0)
    assert encoded == [3, 1, 1]  # rollouts, I⁺, I⁻
    reference, removed, original, preserved = masks
    assert len(reference) == len(original) == 12 and len(removed) == len(preserved) == 1
    last = int(batch.selected[0].nonzero().max())
    assert removed.sum() == batch.rollouts.completion_mask[0].sum() > last + 1 == preserved.sum()


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_with_several_micro_batches_the_removed_view_is_computed_again_and_the_step_is_the_same(rows, temperature):
    moved = []
    for size in (64, 4):
        policy = nudge(load_policy("tiny"))
        before = [parameter.detach().clone() for parameter in policy.trainable]
        _, batch = cppo_step(
            policy,
            optimizer_for(policy),
            rows,
            dataclasses.replace(CONFIG, micro_batch_size=size, temperature=temperature),
            step=0,
        )
        assert batch.selected.any() and batch.removed_hidden is None
        moved.append([a - b for a, b in zip(policy.trainable, before, strict=True)])
    for one, several in zip(*moved, strict=True):
        assert_close(one, several, atol=1e-6, rtol=1e-3)


def plain_grpo_step(policy, optimizer, rows, config, step):
    """GRPO written out without the package's training code: on-policy, so the surrogate's gradient is A · ∇log π."""
    rng = torch.Generator().manual_seed(stream_seed(config.seed, step, 0))
    rollouts = generate_rollouts(policy, rows, group_size=config.group_size, max_new_tokens=config.max_new_tokens, rng=rng)
    rewards = torch.tensor([reward(t, a) for t, a in zip(rollouts.texts, rollouts.answers, strict=True)])
    advantages = group_advantages(rewards, config.group_size)
    prompts = rollouts.prompts.take(rollouts.prompt_of_row)
    ids, mask = rollouts.completion_ids, rollouts.completion_mask
    with policy.reference():
        ref = token_logprobs(policy.score(prompts, ids, mask), ids)
    optimizer.zero_grad()
    logprobs = token_logprobs(policy.score(prompts, ids, mask), ids)
    ratio = (logprobs - logprobs.detach()).exp()
    difference = ref - logprobs
    kl = torch.expm1(difference) - difference
    weights = (mask.float() / mask.sum())[mask]
    loss = (-(ratio * advantages[:, None])[mask] * weights).sum() + config.kl_weight * (kl[mask] * weights).sum()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(policy.trainable, config.max_grad_norm)
    optimizer.step()


def test_lambda_zero_is_grpo_to_the_bit(rows):
    config = dataclasses.replace(CONFIG, cpl_weight=0.0)
    ours, plain = load_policy("tiny"), load_policy("tiny")
    for step in range(2):
        metrics, _ = cppo_step(ours, optimizer_for(ours), rows, config, step)
        plain_grpo_step(plain, optimizer_for(plain), rows, config, step)
        assert metrics.perturbed_rows == 0
        assert metrics.updates == 1
    changed = load_policy("tiny")
    assert any(not torch.equal(a, b) for a, b in zip(ours.trainable, changed.trainable, strict=True))
    for got, want in zip(ours.trainable, plain.trainable, strict=True):
        assert torch.equal(got, want)


def test_identical_views_give_no_shift_and_select_nothing(policy, rows, monkeypatch):
    monkeypatch.setattr("cppo_ref.examples.views.remove", lambda image, *_: image)
    batch = make_batch(policy, rows)
    assert batch.shift.abs().max() == 0
    assert not batch.selected.any()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_what_rounding_alone_moves_is_not_selected(rows, monkeypatch, dtype):
    """H is noted while sampling, H⁻ scored: on the same image they differ by rounding, in 16 bits by much more."""
    policy = nudge(load_policy("tiny", dtype=dtype))
    monkeypatch.setattr("cppo_ref.examples.views.remove", lambda image, *_: image)
    batch = make_batch(policy, rows)
    assert batch.shift is not None and not batch.shift.any() and not batch.selected.any()


def test_a_choice_outside_the_gate_is_not_taken(policy, rows, monkeypatch):
    batch = make_batch(policy, rows)
    everything = Parts(choose=lambda policy, batch, *_: torch.ones_like(batch.rollouts.completion_mask))
    find_perception_tokens(policy, batch, CONFIG, 0, everything)
    assert torch.equal(batch.selected, batch.rollouts.completion_mask & batch.gate[:, None])


def test_logits_that_are_not_finite_stop_the_rollouts(policy, rows):
    policy.trainable[-1].data[:] = torch.nan
    with pytest.raises(NonFiniteError, match="the logits of token 1 of row 0 are not finite while sampling"):
        cppo_step(policy, optimizer_for(policy), rows, CONFIG, 0)


def test_the_row_that_is_not_finite_is_counted_in_the_whole_batch(policy, rows, monkeypatch):
    """12 rows in parts of 4; the third part's row 1 is row 9."""
    calls = []

    def entropy(logits):
        calls.append(len(calls))
        values = token_entropy(logits)
        return torch.where(torch.arange(len(values)) == 1, torch.nan, values) if calls[-1] == 4 else values

    monkeypatch.setattr("cppo_ref.rollouts.token_entropy", entropy)
    config = dataclasses.replace(CONFIG, rollout_batch_size=4, max_new_tokens=2)  # two tokens a part: call 4 opens the third
    with pytest.raises(NonFiniteError, match="the logits of token 1 of row 9 are not finite while sampling"):
        cppo_step(policy, optimizer_for(policy), rows, config, 0)


def test_rewards_may_be_whole_numbers(policy, rows):
    parts = Parts(reward=lambda rollouts: [1, 0, 0, 0] * 3)
    metrics, batch = cppo_step(policy, optimizer_for(policy), rows, CONFIG, 0, parts=parts)
    assert (metrics.reward, metrics.accuracy, metrics.gated_rows) == (0.25, 0.25, 3)
    by_hand = torch.tensor([1.4997, -0.4999, -0.4999, -0.4999])  # 0.75 and -0.25 over 0.5001
    assert_close(batch.advantages[:4], by_hand, atol=1e-4, rtol=0)


def test_identical_views_cost_log_two(policy, rows, monkeypatch):
    batch = make_batch(policy, rows)
    same = dataclasses.replace(batch, views=(batch.prompts, batch.prompts))
    mask = batch.rollouts.completion_mask
    terms = loss_terms(policy, same, torch.arange(12), mask / mask.sum(), batch.selected / batch.selected.sum(), CONFIG)
    assert_close(terms["cpl"].item(), 0.6931472, atol=1e-5, rtol=0)


def test_a_step_without_any_signal_updates_nothing(policy, rows, monkeypatch):
    monkeypatch.setattr("cppo_ref.step.reward", lambda text, answer: 0.1)
    before = [parameter.clone() for parameter in policy.trainable]
    config = dataclasses.replace(CONFIG, kl_weight=0.0)
    metrics, _ = cppo_step(policy, optimizer_for(policy), rows, config, step=0)
    assert (metrics.updates, metrics.zero_variance_groups, metrics.perturbed_rows) == (0, 1.0, 0)
    assert all(torch.equal(a, b) for a, b in zip(before, policy.trainable, strict=True))


def test_dead_groups_still_feel_the_kl(policy, rows, monkeypatch):
    monkeypatch.setattr("cppo_ref.step.reward", lambda text, answer: 0.1)
    metrics, _ = cppo_step(policy, optimizer_for(policy), rows, CONFIG, step=0)
    assert metrics.updates == 1
    assert metrics.grad_norm > 0


def test_a_non_finite_loss_stops_before_the_parameters_change(policy, rows, monkeypatch):
    before = [parameter.clone() for parameter in policy.trainable]
    monkeypatch.setattr("cppo_ref.step.clipped_surrogate", lambda logprobs, *_, **__: logprobs * float("nan"))
    with pytest.raises(NonFiniteError, match="loss is nan: policy_loss nan, clip_fraction 0, kl"):
        cppo_step(policy, optimizer_for(policy), rows, CONFIG, step=0)
    assert all(torch.equal(a, b) for a, b in zip(before, policy.trainable, strict=True))


def test_several_minibatches_and_epochs_go_off_policy(policy, rows):
    config = dataclasses.replace(CONFIG, num_minibatches=3, num_epochs=2, clip_low=1e-4, clip_high=1e-4)
    metrics, batch = cppo_step(policy, optimizer_for(policy), rows, config, step=0)
    assert metrics.updates == 6
    assert batch.old_logprobs is not None
    assert metrics.clip_fraction > 0


@pytest.mark.parametrize("preset", ["paper", "verl", "areal", "cppo-ref", "grpo"])
def test_every_preset_takes_a_step(policy, rows, preset):
    config = CPPOConfig.preset(preset, prompts_per_step=3, group_size=4)
    before = [parameter.clone() for parameter in policy.trainable]
    metrics, _ = cppo_step(policy, optimizer_for(policy), rows, config, step=0)
    assert (metrics.cpl > 0) == ("detection" in metrics.seconds) == (preset != "grpo")
    assert any(not torch.equal(a, b) for a, b in zip(before, policy.trainable, strict=True))


def drawn_views(monkeypatch, rows, config, step=0):
    """(preserved, removed): for each prompt and image (which, image, names, strength, what the generator draws)."""
    for which in ("preserve", "remove"):

        def note(image, rng, names, strength, which=which):
            return which, image, names, strength, rng.random()

        monkeypatch.setattr(f"cppo_ref.examples.views.{which}", note)
    draw = inspect.unwrap(views_of)  # past the type checks
    return zip(*(draw(row, i, config, step) for i, row in enumerate(rows)), strict=True)


def test_each_view_is_drawn_from_its_own_list_at_its_own_strength(monkeypatch, rows):
    config = dataclasses.replace(
        CONFIG, preserving=["blur"], removing=["blank"], preserving_strength=0.5, removing_strength=2.0
    )
    preserved, removed = drawn_views(monkeypatch, rows, config)
    assert [view[:4] for (view,) in preserved] == [("preserve", row["image"], ["blur"], 0.5) for row in rows]
    assert [view[:4] for (view,) in removed] == [("remove", row["image"], ["blank"], 2.0) for row in rows]


def test_every_row_kind_step_and_seed_has_a_view_stream_of_its_own(monkeypatch, rows):
    streams = []
    for seed, step in ((0, 0), (0, 1), (1, 0)):
        encoded = drawn_views(monkeypatch, rows, dataclasses.replace(CONFIG, seed=seed), step)
        streams += [view[4] for kind in encoded for (view,) in kind]
    assert len(set(streams)) == len(streams) == 3 * 2 * len(rows)


def test_every_image_of_a_row_gets_a_view_of_its_own(monkeypatch, rows):
    images = [row["image"] for row in rows]
    row = rows[0] | {"images": images}
    for kind in drawn_views(monkeypatch, [row], CONFIG):
        assert [view[1] for view in kind[0]] == images


def test_the_step_reports_right_answers_and_formats_of_its_rewards(policy, rows, monkeypatch):
    rewards = iter([1.0, 0.9, 0.9, 0.9, 0.1, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0])  # 4 right, 2 in the format
    monkeypatch.setattr("cppo_ref.step.reward", lambda text, answer: next(rewards))
    config = dataclasses.replace(CONFIG, cpl_weight=0.0, max_new_tokens=4)
    metrics, _ = cppo_step(policy, optimizer_for(policy), rows, config, step=0)
    assert (metrics.accuracy, metrics.format, metrics.reward) == pytest.approx((4 / 12, 2 / 12, 3.8 / 12))


def test_where_all_is_right_the_shares_are_1_and_not_a_rounding_above_it(policy, rows, monkeypatch):
    monkeypatch.setattr("cppo_ref.step.reward", lambda text, answer: 1.0)
    metrics, _ = cppo_step(policy, optimizer_for(policy), rows, dataclasses.replace(CONFIG, max_new_tokens=4), step=0)
    assert (metrics.accuracy, metrics.format, metrics.zero_variance_groups) == (1, 1, 1)


def test_language_only_adapters_leave_the_vision_tower_alone():
    policy = load_policy("tiny", lora=LoraOptions(scope="language"))
    names = [name for name, parameter in policy.model.named_parameters() if parameter.requires_grad]
    assert names
    assert all("language_model" in name for name in names)


def test_an_accelerator_of_another_precision_can_follow(policy):
    AcceleratorState._reset_state()
    Accelerator(cpu=True, mixed_precision="bf16")
    assert accelerator_for(policy).mixed_precision == "no"
