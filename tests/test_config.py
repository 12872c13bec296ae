"""Settings that become numbers: warm-up, what is off-policy, and what the published variants set."""

import pytest

from cppo_ref.config import CPPOConfig


@pytest.mark.parametrize(
    ("warmup_steps", "rates"),
    [
        (0, [0.8, 0.8, 0.8]),  # none
        (1, [0.8, 0.8, 0.8]),  # over with the first step
        (4, [0.2, 0.4, 0.6, 0.8, 0.8]),  # the first step learns, the fourth has the whole rate
    ],
)
def test_the_warm_up_is_linear_and_ends_after_its_steps(warmup_steps, rates):
    config = CPPOConfig(learning_rate=0.8, warmup_steps=warmup_steps)
    assert [config.learning_rate_at(step) for step in range(len(rates))] == pytest.approx(rates)


@pytest.mark.parametrize(("num_minibatches", "num_epochs", "on_policy"), [(1, 1, True), (2, 1, False), (1, 2, False)])
def test_only_one_update_per_rollout_batch_is_on_policy(num_minibatches, num_epochs, on_policy):
    config = CPPOConfig(num_minibatches=num_minibatches, num_epochs=num_epochs)
    assert config.on_policy == on_policy


@pytest.mark.parametrize(
    ("preset", "beta", "clip", "estimator"),
    [
        ("paper", 0.01, 0.2, "exact"),
        ("verl", 0.01, 0.2, "k3"),
        ("areal", 0.0, 0.4, "k1"),  # AReaL trains without a KL to the reference
        ("cppo-ref", 0.01, 0.2, "exact"),
        ("grpo", 0.01, 0.2, "exact"),
    ],
)
def test_presets_set_what_their_sources_say(preset, beta, clip, estimator):
    config = CPPOConfig.preset(preset)
    assert (config.kl_weight, config.kl_estimator) == (beta, estimator)
    assert config.clip_low == config.clip_high == clip
