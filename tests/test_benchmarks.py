"""The GPU benchmark's harness, on a CPU: every phase is measured, and without a GPU it says so and writes nothing."""

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


def test_the_cases_are_the_profiles_and_the_papers_model_on_12_gb(benchmark):
    assert set(benchmark.CASES) == {"8gb", "12gb", "t4", "24gb", "12gb-paper"}
    paper = benchmark.settings("12gb-paper", plain=False)
    assert (paper.model, paper.group_size, paper.max_new_tokens) == ("Qwen/Qwen2.5-VL-3B-Instruct", 8, 512)
    plain = benchmark.settings("12gb", plain=True)
    assert not plain.activation_checkpointing and not plain.advantage_gate and plain.micro_batch_size == 8


def test_without_a_gpu_it_says_so_and_writes_nothing(benchmark, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("sys.argv", ["gpu_memory.py", "--output", str(tmp_path / "table.csv")])
    assert benchmark.main() == 2
    assert "no GPU here" in capsys.readouterr().err
    assert not (tmp_path / "table.csv").exists()
