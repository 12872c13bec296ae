"""The commands that suit real models, on a tiny random Qwen2.5-VL and a parquet file: evaluate and export, with their peaks."""

import json
import shutil
from dataclasses import replace

import datasets
import pytest
import tiny_families
from policies import nudge
from tiny_families import make_family

from cppo_ref.__main__ import main
from cppo_ref.config import CPPOConfig
from cppo_ref.examples.loading import load_rows, split_rows
from cppo_ref.examples.overlong import prompt_tokens
from cppo_ref.examples.rows import row_at
from cppo_ref.runs.checkpoints import save_adapter
from cppo_ref.runs.options import EvaluateFlags, run_settings, settings
from cppo_ref.runs.report import evaluate_run
from cppo_ref.vlm.export import export_merged, export_peak
from cppo_ref.vlm.memory import evaluation_peak, measure
from cppo_ref.vlm.peaks import LiveTensors
from cppo_ref.vlm.policy import policy_for
from cppo_ref.vlm.quantization import model_config, skeleton


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The settings of a run on a user's own rows, with a Qwen wide enough for weights to count, and where its adapter lies."""
    folder = tmp_path_factory.mktemp("real")
    with pytest.MonkeyPatch.context() as patch:
        larger = {
            "hidden_size": 256,
            "intermediate_size": 1024,
            "num_hidden_layers": 6,
            "num_attention_heads": 8,
            "head_dim": 32,
        }
        patch.setattr(tiny_families, "TEXT", tiny_families.TEXT | larger)
        vision = tiny_families.VISION["qwen2_5_vl"] | {"depth": 4, "hidden_size": 128, "out_hidden_size": 256}
        patch.setattr(tiny_families, "VISION", tiny_families.VISION | {"qwen2_5_vl": vision})
        model = make_family("qwen2_5_vl", folder / "model")
    rows = [{key: row[key] for key in ("image", "question", "answer")} for row in split_rows("test", count=16)]
    datasets.Dataset.from_list(rows).cast_column("image", datasets.Image()).to_parquet(str(folder / "rows.parquet"))
    config = CPPOConfig(
        model=str(model),
        data=str(folder / "rows.parquet"),
        max_new_tokens=24,
        rollout_batch_size=16,
        dtype="float32",
        device="cpu",
    )
    (folder / "run").mkdir()
    (folder / "run" / "config.json").write_text(json.dumps(config.to_dict()))
    save_adapter(folder / "run" / "adapter", nudge(policy_for(config)))
    return config, folder


def test_evaluate_takes_the_runs_settings_and_judges_own_rows_with_and_without_their_images(run, capsys):
    config, folder = run
    command = [
        "evaluate",
        "--adapter",
        str(folder / "run" / "adapter"),
        "--images",
        "6",
        "--report",
        str(folder / "report.json"),
    ]
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("estimated memory at the peak: ") and "given" in printed and "blank" in printed and "–" in printed
    report = json.loads((folder / "report.json").read_text())
    assert report["data"] == config.data and report["images"] == 6 and report["detector"] == {}
    assert set(report["splits"]) == {"given", "blank"}
    assert main(command) == 2
    assert "exists already" in capsys.readouterr().err
    assert main(["evaluate", "--adapter", str(folder / "run" / "adapter"), "--data", "none.parquet"]) == 2
    assert "no such file" in capsys.readouterr().err


def test_an_adapter_in_a_checkpoint_has_its_runs_settings_and_other_data_their_own_length(run):
    config, folder = run
    place = folder / "run" / "checkpoints" / "step-000001"
    shutil.copytree(folder / "run" / "adapter", place / "adapter", dirs_exist_ok=True)
    found, _, _ = settings("evaluate", ["--adapter", str(place / "adapter")], EvaluateFlags)
    assert found == config
    other, _, _ = settings("evaluate", ["--adapter", str(place / "adapter"), "--data", "shapes"], EvaluateFlags)
    assert other.max_new_tokens == config.max_new_tokens  # it was chosen
    (folder / "easy.json").write_text(json.dumps(CPPOConfig().to_dict()))
    followed, *_ = settings("evaluate", ["--config", str(folder / "easy.json"), "--data", "rows.jsonl"], EvaluateFlags)
    assert followed.max_new_tokens == CPPOConfig(data="rows.jsonl").max_new_tokens != CPPOConfig().max_new_tokens
    assert run_settings(str(folder / "elsewhere" / "adapter")) == {}


def test_a_column_called_objects_is_not_the_shape_worlds(run, tmp_path):
    config = run[0]
    rows = datasets.Dataset.from_parquet(config.data)
    rows.add_column("objects", [{"label": 1}] * len(rows)).to_parquet(str(tmp_path / "rows.parquet"))
    own = CPPOConfig(**config.to_dict() | {"data": str(tmp_path / "rows.parquet"), "group_size": 5, "rollout_batch_size": 5})
    assert evaluate_run(own, images=2)["images"] == 2
    assert evaluation_peak(own) > 0


def test_the_peak_of_an_evaluation_is_near_the_tensors_it_holds(run):
    config, folder = replace(run[0], max_new_tokens=6), run[1]
    with LiveTensors() as live:
        evaluate_run(config, str(folder / "run" / "adapter"), images=16)
    images = replace(config, max_pixels=48 * 48)
    policy, rows = policy_for(config), load_rows(config.data)
    prompt = max(prompt_tokens(policy, row_at(rows, i)) for i in range(16))
    question = prompt - measure(skeleton(model_config(config.model), images), 48 * 48).image_tokens
    assert live.peak == pytest.approx(evaluation_peak(images, question_tokens=question), rel=0.25)


def test_the_peak_of_an_export_is_near_the_tensors_it_holds_and_below_two_models(run):
    config, folder = run
    model, adapter = config.model, str(folder / "run" / "adapter")
    with LiveTensors() as live:
        export_merged(model, adapter, folder / "merged", "bfloat16")
    assert live.peak == pytest.approx(export_peak(model), rel=0.25)
    assert not list(folder.glob(".merged*"))


def test_export_says_its_peak_first(run, capsys):
    config, folder = run
    command = [
        "export",
        "--model",
        config.model,
        "--adapter",
        str(folder / "run" / "adapter"),
        "--output",
        str(folder / "again"),
    ]
    assert main(command) == 0
    first, second = capsys.readouterr().out.splitlines()[:2]
    assert first.startswith("estimated memory at the peak: ") and second.startswith("merged model in ")
