"""The time estimate against a table worked by hand, and what must hold for any settings."""

from dataclasses import replace

import pytest

from cppo_ref.config import CPPOConfig
from cppo_ref.vlm.costs import CARDS, step_seconds, step_work, time_table
from cppo_ref.vlm.memory import ModelSize, measure
from cppo_ref.vlm.profiles import CAPACITY, PROFILES
from cppo_ref.vlm.quantization import model_config, skeleton

SIZE = ModelSize(
    nf4_weights=1_000_000,
    other_weights=300_000,
    adapter_weights=1,
    largest_linear=1,
    layers=2,
    hidden=10,
    intermediate=1,
    query_width=8,
    cache_width=4,
    vocabulary=20_000,
    vision_layers=3,
    vision_hidden=1,
    vision_intermediate=1,
    patches=16,
    image_tokens=72,  # with 128 of text: prompts of 200
    language_weights=1_000_000,
)
RUN = CPPOConfig(prompts_per_step=2, group_size=4, max_new_tokens=50, rollout_batch_size=4, micro_batch_size=4)


def test_a_step_counted_by_hand():
    """2 prompts of 200 tokens, 8 completions of 50; head 200 k weights, tower 100 k; no checkpointing, packs of 4."""
    work = step_work(SIZE, RUN)
    read = 2 * 200_000 + 4.515869140625 * 1_000_000  # 16-bit head; 4-bit weights read, written in 16 bits, read
    rollouts = 2 * (2e6 * 200 + 2 * 100_000 * 16) + 400 * 2 * 1_200_000
    assert work["rollouts"].flop == pytest.approx(rollouts)
    assert work["rollouts"].moved == pytest.approx(2 * 50 * (read + 4 * 4 * 2 * 4 * 225))  # two batches; middle of the answer
    assert work["rollouts"].kernels == 2 * 50 * 2 * 85
    tokens = 2 * 200 + 400  # each prompt in one pack
    attention = 4 * 2 * 8 * tokens * tokens / 2
    forward = 2e6 * tokens + attention + 2 * 2 * 100_000 * 16 + 2 * 200_000 * 400
    assert work["reference"].flop == pytest.approx(forward)
    assert work["reference"].moved == pytest.approx(2 * read)
    assert work["reference"].kernels == 2 * 5 * 85
    half = 2e6 * 400 + 4 * 2 * 8 * 400 * 400 + 2 * 100_000 * 16 + 2 * 200_000 * 200
    assert work["detection"].flop == pytest.approx(half)
    whole = 2e6 * 1600 + 4 * 2 * 8 * 1600 * 1600 / 4 + 4 * 2 * 100_000 * 16 + 2 * 200_000 * 800
    assert work["update"].flop == pytest.approx(2 * whole)  # forward, and backward through frozen weights


def test_seconds_are_those_of_the_slowest_of_three():
    work = step_work(SIZE, RUN)["reference"]
    for card, (rate, bandwidth) in CARDS.items():
        three = work.flop / (0.5e12 * rate), work.moved / (0.5e9 * bandwidth), work.kernels * 7e-6
        assert work.seconds(card) == pytest.approx(max(three))
    assert step_seconds(SIZE, RUN, "T4") == pytest.approx(sum(w.seconds("T4") for w in step_work(SIZE, RUN).values()))


def test_what_is_switched_off_costs_nothing():
    plain = step_work(SIZE, replace(RUN, cpl_weight=0.0, kl_weight=0.0))
    assert plain["reference"].flop == plain["detection"].flop == 0
    assert plain["update"].flop < step_work(SIZE, RUN)["update"].flop
    more = step_work(SIZE, replace(RUN, activation_checkpointing=True))["update"].flop
    assert more == pytest.approx(1.5 * step_work(SIZE, RUN)["update"].flop)


def test_without_4_bits_the_work_is_the_same_and_fewer_bytes_move():
    run = CPPOConfig(**PROFILES["12gb"])
    packed, plain = (
        step_work(measure(skeleton(model_config(r.model), r), r.max_pixels), r) for r in (run, replace(run, quantize="none"))
    )
    assert plain["update"].flop == pytest.approx(packed["update"].flop)
    assert 0.3 < plain["rollouts"].moved / packed["rollouts"].moved < 0.8


def test_more_epochs_and_the_pass_before_them_are_counted():
    often = step_work(SIZE, replace(RUN, num_epochs=4))
    assert often["update"].flop == pytest.approx(4 * step_work(SIZE, RUN)["update"].flop)
    assert often["reference"].flop == pytest.approx(2 * step_work(SIZE, RUN)["reference"].flop)


@pytest.mark.parametrize("name", PROFILES)
def test_the_table_of_a_profile_is_its_calculation(name):
    run = CPPOConfig(**PROFILES[name])
    size = measure(skeleton(model_config(run.model), run), run.max_pixels)
    *_, step, hours = time_table(size, run).splitlines()
    for card, seconds, hundred in zip(CARDS, step.split()[2::2], hours.split()[2::2], strict=True):
        assert float(seconds) == pytest.approx(step_seconds(size, run, card), abs=0.5)
        assert float(hundred) == pytest.approx(step_seconds(size, run, card) / 36, abs=0.05)
    assert name in CAPACITY


def test_the_t4_profile_fits_a_session_of_three_hours_even_if_it_is_twice_as_slow():
    run = CPPOConfig(**PROFILES["t4"])
    size = measure(skeleton(model_config(run.model), run), run.max_pixels)
    assert 2 * run.steps * step_seconds(size, run, "T4") < 3 * 3600
