"""The GPU benchmark's harness, on a CPU: every phase is measured, and without a GPU it says so and writes nothing."""

import csv
import importlib.util
from dataclasses import replace
from pathlib import Path

import pytest
from tiny_families import make_family

from cppo_ref import step
from cppo_ref.config import CPPOConfig
from cppo_ref.vlm import chunks
from cppo_ref.vlm.peaks import LiveTensors

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "gpu_memory.py"


@pytest.fixture
def benchmark(monkeypatch):
    spec = importlib.util.spec_from_file_location("gpu_memory", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for name in (
        "reward",
        "generate_rollouts",
        "completion_logprobs",
        "find_perception_tokens",
        "loss_terms",
        "perception_term",
    ):
        monkeypatch.setattr(step, name, getattr(step, name))  # it wraps them: put them back
    monkeypatch.setattr(chunks, "BLOCK", chunks.BLOCK)
    return module


def test_every_phase_is_measured(benchmark, tmp_path):
    run = CPPOConfig(
        model=str(make_family("qwen3_vl", tmp_path)), prompts_per_step=1, group_size=4, max_new_tokens=8, eval_rows=0
    )
    run = replace(run, micro_batch_size=2, max_pixels=64 * 64, device="cpu", kl_weight=0.01)
    with LiveTensors():
        row = benchmark.run_case(run, plain=False, steps=2)
    for phase in benchmark.PHASES:
        assert row[f"{phase}_gb"] > 0 and row[f"{phase}_s"] > 0, phase
    assert row["peak_gb"] == max(row[f"{phase}_gb"] for phase in benchmark.PHASES)
    assert row["backward_gb"] > row["load_gb"]  # gradients and moments beside the weights
    assert set(row) <= set(benchmark.COLUMNS)
    assert row["step_s"] > row["rollouts_s"] and row["finite"] is True and row["loss_scale"] is None


def test_the_implementations_differ_in_what_their_names_say(benchmark):
    cppo, grpo, plain = (benchmark.settings("12gb-3b", name) for name in benchmark.IMPLEMENTATIONS)
    assert (cppo.model, cppo.group_size, cppo.max_new_tokens) == ("Qwen/Qwen2.5-VL-3B-Instruct", 8, 512)
    assert replace(grpo, cpl_weight=cppo.cpl_weight) == cppo and grpo.cpl_weight == 0
    assert not plain.activation_checkpointing and not plain.advantage_gate and plain.micro_batch_size == 8


def test_what_is_measured_is_written_at_once_and_not_measured_again(benchmark, tmp_path, capsys):
    target = tmp_path / "table.csv"
    target.write_text("case,implementation,gpu,commit\n8gb,grpo,another,0000000\n")
    for _ in range(2):
        assert benchmark.measure_all(["t4"], ["grpo"], True, target, tmp_path) == 0
    assert "t4 (grpo): measured already" in capsys.readouterr().out
    rows = list(csv.DictReader(target.open()))
    assert [(row["case"], row["implementation"]) for row in rows] == [("8gb", "grpo"), ("t4", "grpo")]
    assert float(rows[1]["peak_gb"]) > 0 and rows[1]["fits"] == "True"


def test_without_a_gpu_it_says_so_and_writes_nothing(benchmark, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("sys.argv", ["gpu_memory.py", "--output", str(tmp_path / "table.csv")])
    assert benchmark.main() == 2
    assert "no GPU here" in capsys.readouterr().err
    assert not (tmp_path / "table.csv").exists()
