"""The benchmarks of speed on one or two steps: they measure what they say, and their committed tables can be read."""

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import growth, phases, speed
from benchmarks.measuring import RESULTS, Arm, PeakMemory, Ratio, cpu_phases, shape_rows, turns, write_table
from benchmarks.plain_update import copy_adapters, gradient, plain_update
from cppo_ref.config import CPPOConfig

SMALL = {"prompts_per_step": 2, "micro_batch_size": 16, "rollout_batch_size": 16}


def read(name: str) -> list[dict[str, str]]:
    with (RESULTS / name).open() as file:
        return list(csv.DictReader(file))


def test_arms_take_turns_and_warm_up_is_left_out():
    taken = []
    arms = {name: lambda step, name=name: taken.append((step, name)) for name in "ab"}
    seconds = turns(arms, steps=2, warm_up=1)
    assert taken == [(0, "a"), (0, "b"), (1, "a"), (1, "b"), (2, "a"), (2, "b")]
    assert [len(seconds[name]) for name in "ab"] == [2, 2]


def test_a_ratio_is_the_median_with_an_interval_around_it():
    ratio = Ratio(np.array([1.0, 2.0, 2.1, 2.2, 50.0]))
    low, high = ratio.interval
    assert 1 <= low <= ratio.median == 2.1 <= high
    row = ratio.row("mine")
    assert tuple(row) == speed.COLUMNS
    assert "torch" in row["versions"] and row["n"] == 5
    assert Ratio(np.array([3.0])).interval == (3.0, 3.0)


def test_rows_of_a_table_are_replaced_by_name(tmp_path):
    path = tmp_path / "table.csv"
    write_table(path, [{"name": "a", "n": 1}, {"name": "b", "n": 0.123456}], ("name", "n"), key=("name",))
    write_table(path, [{"name": "a", "n": 2}], ("name", "n"), key=("name",))
    assert path.read_text() == "name,n\na,2\nb,0.1235\n"


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux only")
def test_peak_memory_is_what_was_held_at_once():
    meter = PeakMemory()
    meter.start()
    for _ in range(3):
        block = np.ones(4_000_000)  # 32 MB, one at a time
        del block
    assert 30e6 < meter.stop() < 70e6
    meter.start()
    assert meter.stop() < 10e6  # a new peak


def test_trl_takes_the_same_steps(capsys, monkeypatch):
    monkeypatch.setattr(speed, "WARM_UP", 1)
    ratio = speed.grpo_vs_trl(steps=2)["grpo_vs_trl"]
    assert ratio.values.shape == (2,)
    assert "mean completion: ours 1" in capsys.readouterr().out  # of some 19 tokens; it asserts that both are as long


def test_the_plain_update_has_our_gradient():
    ours, plain = (Arm(CPPOConfig(quantize="none", unpack=unpack, **SMALL)) for unpack in (True, False))
    for step, rows in enumerate(shape_rows(ours.config, 2)):
        copy_adapters(ours, plain)
        with cpu_phases():
            metrics, batch = ours.step(rows, step)
        loss, selected = plain_update(plain, batch, step)
        assert torch.equal(selected, batch.selected) and selected.any()
        config = ours.config
        assert loss == pytest.approx(
            metrics.policy_loss + config.kl_weight * metrics.kl + config.cpl_weight * metrics.cpl, abs=1e-6
        )
        torch.testing.assert_close(gradient(ours), gradient(plain), rtol=0, atol=1e-4 * gradient(plain).abs().max().item())


def test_phases_add_up_to_the_step():
    seconds, flop = phases.measure(CPPOConfig(unpack=True, **SMALL), steps=1, warm_up=1)
    assert set(seconds) == set(flop) == set(phases.PHASES)
    computing = ("rollouts", "reference", "I- forward", "I forward", "I+ forward and contrast", "backward")
    assert all(flop[phase] > 0 and seconds[phase] > 0 for phase in computing)
    assert flop["rewards"] == flop["rest"] == 0
    plain, counted = phases.measure(CPPOConfig(unpack=True, cpl_weight=0.0, **SMALL), steps=1, warm_up=1)
    assert counted["I- forward"] == counted["I+ forward and contrast"] == plain["views"] == 0
    assert counted["backward"] < flop["backward"]


def test_flop_of_attention_on_a_cpu_are_counted():
    query = torch.randn(2, 4, 8, 16, requires_grad=True)
    with phases.FlopCounterMode(display=False, custom_mapping=phases.ATTENTION) as counter:
        output = torch.nn.functional.scaled_dot_product_attention(query, query, query)
        forward = counter.get_total_flops()
        output.sum().backward()
    assert forward == 2 * 2 * (2 * 4 * 8 * 8 * 16)  # two products of [8, 16] and [8, 16] per head
    assert counter.get_total_flops() > 2 * forward


def test_growth_measures_steps_of_the_size_it_says():
    seconds = growth.seconds_of(replace(growth.Sizes(), group=4, completion=4, vocabulary=64), steps=1)
    assert set(seconds) == {"grpo", "cppo"} and all(values.shape == (1,) for values in seconds.values())


def test_exponents_are_slopes_of_the_logarithms():
    sizes = np.array([10.0, 100.0, 1000.0])
    slope, intercept = growth.exponent(sizes, 0.5 * sizes**1.5)
    assert (slope, np.exp(intercept)) == pytest.approx((1.5, 0.5))


def test_committed_tables_are_complete(tmp_path):
    ratios = {row["name"]: row for row in read("speed.csv")}
    assert set(ratios) == {
        "grpo_vs_trl",
        "cppo_vs_grpo",
        "cppo_vs_grpo_first",
        "cppo_vs_grpo_packed",
        "update_vs_plain",
        "memory_vs_trl",
    }
    for row in ratios.values():
        assert tuple(row) == speed.COLUMNS
        assert 0 < float(row["low"]) <= float(row["median_ratio"]) <= float(row["high"])
    counted = read("phases.csv")
    assert {(row["step"], row["phase"]) for row in counted} >= {
        (step, p) for step in ("grpo", "cppo") for p in (*phases.PHASES, "whole")
    }
    assert tuple(counted[0]) == phases.COLUMNS
    sizes = {(row["axis"], int(row["size"])) for row in read("growth.csv")}
    assert sizes == {(axis, size) for axis, values in growth.SIZES.items() for size in values}
    growth.draw(RESULTS / "growth.csv", tmp_path / "growth.png")
    assert (tmp_path / "growth.png").stat().st_size > 10_000
