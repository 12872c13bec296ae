"""One update against formulas written out here: temperature, minibatches, epochs, clipping, and random streams."""

import dataclasses
from itertools import product

import pytest
import torch
from accelerate import Accelerator
from policies import nudge, score_batch
from torch.distributions import Categorical
from torch.testing import assert_close

from cppo_ref.config import CPPOConfig
from cppo_ref.examples.loading import load_rows, step_rows
from cppo_ref.rollouts import Batch, generate_rollouts
from cppo_ref.runs.seeds import minibatches, stream_seed
from cppo_ref.step import NonFiniteError, Parts, cppo_step, update
from cppo_ref.vlm.devices import accelerator_for
from cppo_ref.vlm.policy import load_policy

CONFIG = CPPOConfig(prompts_per_step=2, group_size=2, max_new_tokens=16, cpl_weight=0.5, max_grad_norm=1e9)
ADVANTAGES = torch.tensor([1.0, -0.5, 0.7, 0.3])


@pytest.fixture(scope="module")
def rows():
    return step_rows(load_rows("shapes", "train"), CONFIG.prompts_per_step, 0, CONFIG.seed)


@pytest.fixture
def policy():
    return nudge(load_policy("tiny"))


@pytest.fixture(scope="module")
def accelerator():
    return Accelerator(cpu=True)


def make_batch(policy, rows, config=CONFIG):
    """Four completions of unequal length, with advantages of both signs."""
    rng = torch.Generator().manual_seed(0)
    options = {"max_new_tokens": config.max_new_tokens, "temperature": config.temperature, "rng": rng}
    rollouts = generate_rollouts(policy, rows, group_size=config.group_size, **options)
    mask = rollouts.completion_mask & (torch.arange(rollouts.completion_mask.shape[1]) < torch.tensor([[3], [16], [8], [12]]))
    rollouts = dataclasses.replace(rollouts, completion_mask=mask)
    batch = Batch(rollouts, torch.zeros(4), ADVANTAGES, ADVANTAGES > 0)
    return score_batch(policy, batch, config)


def gradients(policy, batch, config, accelerator, rows=None, policy_weight=1.0):
    still, rows = torch.optim.SGD(policy.trainable, lr=0.0), torch.arange(4) if rows is None else rows
    update(policy, still, batch, rows, config, accelerator, Parts(policy_weight=policy_weight))
    return [parameter.grad.clone() for parameter in policy.trainable]


def assert_same(got, want):
    assert max(gradient.abs().max() for gradient in want) > 1e-4
    for a, b in zip(got, want, strict=True):
        assert_close(a, b, atol=1e-6, rtol=1e-3)


def logprobs(policy, batch, temperature=1.0):
    """log π of the sampled tokens, by torch's own categorical distribution."""
    rollouts = batch.rollouts
    logits = policy.score(batch.prompts, rollouts.completion_ids, rollouts.completion_mask) / temperature
    return Categorical(logits=logits).log_prob(rollouts.completion_ids)


# --- temperature ---


def test_scoring_and_detection_are_at_the_temperature_of_sampling(policy, rows):
    batch = make_batch(policy, rows, dataclasses.replace(CONFIG, temperature=2.0, num_epochs=2))
    mask = batch.rollouts.completion_mask
    with torch.no_grad():
        assert_close(batch.old_logprobs[mask], logprobs(policy, batch, 2.0)[mask], atol=1e-5, rtol=1e-4)
        entropies = [
            Categorical(logits=policy.score(view, batch.rollouts.completion_ids, mask) / 2).entropy()
            for view in (batch.prompts, batch.views[1])
        ]
    with policy.reference():
        assert_close(batch.ref_logprobs[mask], logprobs(policy, batch, 2.0)[mask], atol=1e-5, rtol=1e-4)
    gated = mask & (ADVANTAGES > 0)[:, None]
    assert_close(batch.shift[gated], (entropies[1] - entropies[0])[gated], atol=1e-5, rtol=1e-4)
    assert batch.shift.abs().max() > 0.01


@pytest.mark.parametrize("only", ["policy_weight", "kl_weight", "cpl_weight"])
def test_an_update_at_temperature_2_is_one_with_half_of_the_logits(policy, rows, accelerator, only):
    weights = {"policy_weight": 0.0, "kl_weight": 0.0, "cpl_weight": 0.0} | {only: 1.0}
    reward = {"policy_weight": weights.pop("policy_weight")}
    batch = make_batch(policy, rows, dataclasses.replace(CONFIG, temperature=2.0))
    alone = dataclasses.replace(CONFIG, **weights)
    got = gradients(policy, batch, dataclasses.replace(alone, temperature=2.0), accelerator, **reward)
    head = policy.vlm.lm_head
    head.weight = torch.nn.Parameter(head.weight.data / 2, requires_grad=False)
    assert head.bias is None
    assert_same(got, gradients(policy, batch, alone, accelerator, **reward))


def test_rollouts_are_sampled_at_the_temperature(policy, rows):
    cold = dataclasses.replace(CONFIG, temperature=1e-4, cpl_weight=0.0, kl_weight=0.0)
    _, batch = cppo_step(policy, torch.optim.SGD(policy.trainable, lr=0.0), rows, cold, step=0)
    options = {"group_size": 2, "max_new_tokens": 16, "temperature": 0, "rng": torch.Generator()}
    assert batch.rollouts.texts == generate_rollouts(policy, rows, **options).texts


# --- minibatches and epochs ---


def test_every_epoch_and_step_shuffles_anew_and_takes_every_row_once():
    config = CPPOConfig(num_minibatches=4, num_epochs=3)
    orders = []
    for step in range(2):
        parts = [part.tolist() for part in minibatches(64, config, step)]
        assert [len(part) for part in parts] == [16] * 12
        orders += [[row for part in parts[i : i + 4] for row in part] for i in (0, 4, 8)]
    assert all(sorted(order) == list(range(64)) for order in orders)
    assert len({tuple(order) for order in orders}) == 6
    other = dataclasses.replace(config, seed=1)
    assert torch.cat(list(minibatches(64, other, 0)))[:64].tolist() not in orders


def test_a_minibatch_is_averaged_over_its_own_tokens(policy, rows, accelerator):
    """Rows 0 and 2: 3 + 8 tokens, whatever the other rows hold."""
    batch, chosen = make_batch(policy, rows), torch.tensor([2, 0])
    mask = batch.rollouts.completion_mask
    assert mask[chosen].sum() == 11 < mask.sum()
    plain = dataclasses.replace(CONFIG, kl_weight=0.0, cpl_weight=0.0)
    got = gradients(policy, batch, plain, accelerator, chosen)
    log = logprobs(policy, batch)
    loss = -(1.0 * log[0][mask[0]].sum() + 0.7 * log[2][mask[2]].sum()) / 11  # on-policy: ∇ρ = ∇log π
    assert_same(got, torch.autograd.grad(loss, policy.trainable))


def test_a_minibatch_averages_cpl_over_its_own_perception_tokens(policy, rows, accelerator):
    batch = make_batch(policy, rows)
    only = dataclasses.replace(CONFIG, kl_weight=0.0)
    counts = batch.selected.sum(dim=1)
    assert counts[0] > 0 and counts[2] > 0 and counts[3] > 0
    alone = [gradients(policy, batch, only, accelerator, torch.tensor([row]), policy_weight=0.0) for row in (0, 2)]
    got = gradients(policy, batch, only, accelerator, torch.tensor([0, 2]), policy_weight=0.0)
    share = (counts[0] / (counts[0] + counts[2])).item()
    assert_same(got, [share * a + (1 - share) * b for a, b in zip(*alone, strict=True)])


def test_a_second_epoch_is_clipped_against_the_policy_that_sampled(policy, rows):
    """Two epochs of one batch, written out: ratios of the second are to the log-probabilities before the first."""
    config = dataclasses.replace(CONFIG, num_epochs=2, cpl_weight=0.0, kl_weight=0.0, clip_low=0.01, clip_high=0.01)
    rewards = iter([0.9, 0.0, 0.0, 0.9])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cppo_ref.step.reward", lambda text, answer: next(rewards))
        start = [parameter.detach().clone() for parameter in policy.trainable]
        metrics, batch = cppo_step(policy, torch.optim.SGD(policy.trainable, lr=0.3), rows, config, step=0)
        moved = [parameter.detach().clone() for parameter in policy.trainable]
    for parameter, value in zip(policy.trainable, start, strict=True):
        parameter.data.copy_(value)
    plain, mask = torch.optim.SGD(policy.trainable, lr=0.3), batch.rollouts.completion_mask
    old = logprobs(policy, batch).detach()
    for _ in range(2):
        ratio = (logprobs(policy, batch) - old).exp()
        gain = torch.stack([ratio, ratio.clamp(0.99, 1.01)]) * batch.advantages[:, None]
        plain.zero_grad()
        (-gain.amin(dim=0)[mask].mean()).backward()
        plain.step()
    assert metrics.updates == 2
    outside = ((ratio - 1).abs() > 0.01)[mask].float().mean().item()
    assert metrics.clip_fraction == pytest.approx(outside / 2, abs=1e-3)  # 0 in the first epoch
    assert outside > 0.02
    assert_same(
        [a - b for a, b in zip(moved, start, strict=True)], [p - b for p, b in zip(policy.trainable, start, strict=True)]
    )


def test_cpl_is_reported_as_the_mean_over_all_perception_tokens(policy, rows, monkeypatch):
    """3 tokens of 2 nats and 1 of 1 nat: 7 / 4, however many updates had no token."""
    config = dataclasses.replace(CONFIG, num_minibatches=4)
    values = iter([(0.0, 0), (2.0, 3), (0.0, 0), (1.0, 1)])
    rest = {"policy_loss": 1.0, "kl": 2.0, "grad_norm": 3.0, "clip_fraction": 0.5}
    monkeypatch.setattr("cppo_ref.step.update", lambda *_: rest | dict(zip(("cpl", "selected"), next(values), strict=True)))
    metrics, _ = cppo_step(policy, torch.optim.SGD(policy.trainable, lr=0.0), rows, config, step=0)
    assert metrics.cpl == 1.75
    assert (metrics.policy_loss, metrics.kl, metrics.grad_norm, metrics.clip_fraction) == (1.0, 2.0, 3.0, 0.5)


def test_minibatches_report_the_cpl_of_the_whole_batch_while_the_policy_stands_still(policy, rows):
    parts, still = Parts(reward=lambda rollouts: [0.9, 0.0, 0.0, 0.9]), torch.optim.SGD(policy.trainable, lr=0.0)
    found = [
        cppo_step(policy, still, rows, dataclasses.replace(CONFIG, num_minibatches=count), 0, parts=parts)[0].cpl
        for count in (1, 2, 4)  # in four, two have no perception token
    ]
    assert found[0] > 0.01
    assert found == pytest.approx([found[0]] * 3, rel=1e-4)


# --- gradients ---


def test_a_gradient_that_is_not_finite_changes_nothing(policy, rows, accelerator):
    batch = make_batch(policy, rows)
    before = [parameter.detach().clone() for parameter in policy.trainable]
    hook = policy.trainable[0].register_hook(lambda gradient: gradient * float("inf"))
    with pytest.raises(NonFiniteError, match="gradient norm is"):
        update(policy, torch.optim.SGD(policy.trainable, lr=1.0), batch, torch.arange(4), CONFIG, accelerator)
    hook.remove()
    assert all(torch.equal(a, b) for a, b in zip(before, policy.trainable, strict=True))


class Scaler(Accelerator):
    """Scales as the accelerator of a float16 GPU does, on a CPU, and unscales what was prepared."""

    def __init__(self):
        super().__init__(cpu=True)
        self.scaler = torch.amp.GradScaler("cpu", init_scale=2.0)


def test_a_gradient_that_stays_infinite_ends_a_run_in_float16_too(policy, rows, monkeypatch):
    """A loss scaler skips such steps and halves its scale; when nothing is left to halve, it is no overflow."""
    accelerator, batch = Scaler(), make_batch(policy, rows)
    optimizer = accelerator.prepare(torch.optim.SGD(policy.trainable, lr=1.0))
    before = [p.detach().clone() for p in policy.trainable]
    policy.trainable[0].register_hook(lambda gradient: gradient * torch.inf)
    for _ in range(2):  # at 2 and at 1
        update(policy, optimizer, batch, torch.arange(len(batch.rewards)), CONFIG, accelerator)
    with pytest.raises(NonFiniteError, match="gradient norm"):
        update(policy, optimizer, batch, torch.arange(len(batch.rewards)), CONFIG, accelerator)
    assert all(torch.equal(p, old) for p, old in zip(policy.trainable, before, strict=True))


def test_without_an_accelerator_nothing_is_scaled(policy, rows, monkeypatch):
    seen = []
    monkeypatch.setattr("cppo_ref.step.accelerator_for", lambda p, **options: seen.append(options) or accelerator_for(p))
    cppo_step(policy, torch.optim.SGD(policy.trainable, lr=0.0), rows, CONFIG, 0)
    assert seen == [{"scale": False}]


def test_gradients_are_clipped_to_their_norm_and_reported_before(policy, rows, accelerator):
    batch = make_batch(policy, rows)
    whole = gradients(policy, batch, CONFIG, accelerator)
    norm = torch.cat([gradient.flatten() for gradient in whole]).norm().item()
    limit = norm / 4
    before = [parameter.detach().clone() for parameter in policy.trainable]
    config = dataclasses.replace(CONFIG, max_grad_norm=limit)
    report = update(policy, torch.optim.SGD(policy.trainable, lr=1.0), batch, torch.arange(4), config, accelerator)
    assert report["grad_norm"] == pytest.approx(norm, rel=1e-4)
    change = torch.cat([(a - b).flatten() for a, b in zip(before, policy.trainable, strict=True)])
    assert change.norm().item() == pytest.approx(limit, rel=1e-3)


# --- random streams ---


def test_every_key_of_a_stream_counts_and_so_does_their_order():
    keys = [*product(range(4), repeat=3)]
    seeds = {key: stream_seed(*key) for key in keys}
    assert len(set(seeds.values())) == len(keys) == 64
    assert all(0 <= seed < 2**63 for seed in seeds.values())
    control = {stream_seed(*key, 1) for key in keys}  # tokens drawn at random have a stream of their own
    assert not control & set(seeds.values())


def test_the_same_rows_get_other_completions_at_another_step_and_seed(policy, rows):
    still = torch.optim.SGD(policy.trainable, lr=0.0)
    plain = dataclasses.replace(CONFIG, cpl_weight=0.0, kl_weight=0.0)
    texts = [
        tuple(cppo_step(policy, still, rows, dataclasses.replace(plain, seed=seed), step)[1].rollouts.texts)
        for seed, step in ((0, 0), (0, 1), (1, 0), (0, 0))
    ]
    assert texts[0] == texts[3]
    assert len(set(texts)) == 3
