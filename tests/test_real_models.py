"""The commands that suit real models, on a tiny random Qwen2.5-VL and a parquet file: evaluate and export, with their peaks."""

import json

import datasets
import pytest
import tiny_families
from policies import nudge
from tiny_families import make_family

from cppo_ref.__main__ import main
from cppo_ref.config import CPPOConfig
from cppo_ref.examples.loading import split_rows
from cppo_ref.runs.checkpoints import save_adapter
from cppo_ref.runs.report import evaluate_run
from cppo_ref.vlm.export import export_merged, export_peak
from cppo_ref.vlm.memory import evaluation_peak
from cppo_ref.vlm.peaks import LiveTensors
from cppo_ref.vlm.policy import policy_for


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
    rows = [{key: row[key] for key in ("image", "question", "answer")} for row in split_rows("test", count=12)]
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


def test_the_peak_of_an_evaluation_is_near_the_tensors_it_holds(run):
    config, folder = run
    with LiveTensors() as live:
        evaluate_run(config, str(folder / "run" / "adapter"), images=6)
    images = CPPOConfig(**config.to_dict() | {"max_pixels": 48 * 48})
    assert live.peak == pytest.approx(evaluation_peak(images, question_tokens=50), rel=0.25)


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
