"""What the user gets wrong: exit status 2, one line on stderr that names it, and nothing written."""

import dataclasses
import errno
import json
import os
import re
import shutil
import struct
import zlib
from contextlib import suppress
from pathlib import Path

import datasets
import numpy as np
import peft.peft_model
import pytest
import torch
from jaxtyping import config as jaxtyping_config
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from cppo_ref.__main__ import main
from cppo_ref.config import CPPOConfig, InputError
from cppo_ref.examples.loading import load_rows
from cppo_ref.examples.rows import open_image, row_at
from cppo_ref.runs.checkpoints import checkpoints, save_atomically, save_checkpoint
from cppo_ref.vlm.adapters import LoraOptions, load_adapter
from cppo_ref.vlm.families import FAMILIES
from cppo_ref.vlm.policy import load_policy
from study.pretraining import build_model, build_processor

TRAIN = "train --model model --steps 1 --prompts_per_step 3 --group_size 2 --max_new_tokens 19 --eval_rows 0"
HUGE = "how many red shapes? " * 100


@pytest.fixture(autouse=True, scope="module")
def users_have_no_type_checker():
    """The tests' checker would speak before the package does."""
    before = jaxtyping_config.jaxtyping_disable
    jaxtyping_config.update("jaxtyping_disable", True)
    yield
    jaxtyping_config.update("jaxtyping_disable", before)


def png_claiming(width, height):
    """A PNG whose header claims `width` × `height` pixels and which holds none of them."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def write_bad_rows(folder):
    """Three rows per file; the last one is bad."""
    picture = {"bytes": png_bytes(folder), "path": None}
    good = {"image": picture, "question": "How many red shapes?", "answer": "1"}
    bad = {
        "no-image": {"image": None},
        "no-answer": {"answer": None},
        "no-question": {"question": ""},
        "garbage": {"image": {"bytes": b"not a picture", "path": None}},
        "truncated": {"image": {"bytes": picture["bytes"][:-30], "path": None}},
        "bomb": {"image": {"bytes": png_claiming(60000, 60000), "path": None}},
        "half-bomb": {"image": {"bytes": png_claiming(10000, 10000), "path": None}},
    }
    text = datasets.Value("string")
    features = datasets.Features({"image": datasets.Image(), "question": text, "answer": text})
    for name, changes in bad.items():
        rows = [good, good, good | changes]
        datasets.Dataset.from_list(rows, features=features).to_parquet(folder / f"{name}.parquet")
    datasets.Dataset.from_list([good | {"question": HUGE}] * 3, features=features).to_parquet(folder / "huge.parquet")
    listed = datasets.Features({"images": datasets.List(datasets.Image()), "problem": text, "answer": text})
    rows = [{"images": [image], "problem": "?", "answer": "1"} for image in (picture, picture, bad["garbage"]["image"])]
    datasets.Dataset.from_list(rows, features=listed).to_parquet(folder / "garbage-listed.parquet")
    datasets.Dataset.from_dict({name: [] for name in features}, features=features).to_parquet(folder / "empty.parquet")
    (folder / "empty.jsonl").write_text("")
    (folder / "twice.csv").write_text("image,question,answer,answer\na.png,?,1,2\n")
    (folder / "broken.parquet").write_text("no parquet")
    (folder / "broken.jsonl").write_text('{"image": ')
    (folder / "no-column.jsonl").write_text('{"picture": "a.png", "question": "?", "answer": "1"}\n')


def png_bytes(folder):
    path = folder / "good.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)).save(path)
    return path.read_bytes()


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a model, a finished run, a file that is in the way, and settings and rows of all bad kinds."""
    folder = tmp_path_factory.mktemp("place")
    processor = build_processor()
    build_model(processor, seed=0).save_pretrained(folder / "model")
    processor.save_pretrained(folder / "model")
    (folder / "other-model").mkdir()
    (folder / "other-model" / "config.json").write_text('{"model_type": "bert"}')
    (folder / "coded-model").mkdir()
    (folder / "coded-model" / "config.json").write_text('{"model_type": "mystery", "auto_map": {"AutoConfig": "code.Config"}}')
    (folder / "file").write_text("mine")
    (folder / "notes").mkdir()
    (folder / "notes" / "mine.txt").write_text("mine")
    (folder / "hollow").mkdir()
    write_bad_rows(folder)
    settings = {"typo": '{"stpes": 3}', "list": "[3]", "text": '{"steps": "many"}', "flag": '{"detach_anchor": "no"}'}
    settings |= {"null": '{"tau": null}', "cut": '{"steps": ', "level": '{"level": "medium"}'}
    for name, text in settings.items():
        (folder / f"{name}.json").write_text(text)
    (folder / "binary.json").write_bytes(b"\xff\xfe\x00")
    previous = os.getcwd()
    os.chdir(folder)
    assert main(f"{TRAIN} --output done --lora_rank 2".split()) == 0
    os.chdir(previous)
    return folder


# id: (command line, what the message must name)
ERRORS = {
    "unknown command": ("trian", ["'trian'", "expected one of train, audit, probe, evaluate"]),
    "unknown option": ("train --group_sise 4", ["'--group_sise'", "did you mean '--group_size'?"]),
    "unknown option with a value": ("train --taus=4", ["'--taus=4'", "did you mean '--tau'?"]),
    "option like no other": ("evaluate --zzz", ["'--zzz'", "evaluate --help"]),
    "option without a value": ("train --steps", ["--steps", "expected one argument (see python -m cppo_ref train --help)"]),
    "bad choice": ("train --ranking foo", ["--ranking", "'foo'", "'absolute'", "'normalized'"]),
    "bad number": ("train --steps abc", ["--steps", "'abc'"]),
    "number that is not one": ("train --tau nan", ["tau is nan", "above 0"]),
    "bad switch": ("train --detach_anchor maybe", ["--detach_anchor", "maybe"]),
    "unknown preset": ("train --preset dapo", ["'dapo'", "paper, verl, areal"]),
    "unknown view": ("train --removing sharpen", ["removing", "'sharpen'", "noise_patches"]),
    "unknown tracker": ("train --trackers mlflow", ["trackers", "'mlflow'", "tensorboard"]),
    "group of one": ("train --group_size 1", ["group_size is 1", "2 or more"]),
    "tau of zero": ("train --tau 0", ["tau is 0.0", "above 0"]),
    "minibatches that do not divide": ("train --num_minibatches 7", ["num_minibatches is 7", "divisor of the 64 rows"]),
    "config with an unknown setting": ("train --config typo.json", ["'stpes'", "did you mean 'steps'?"]),
    "config with text for a number": ("train --config text.json", ["steps is 'many'", "whole number"]),
    "config with text for a switch": ("train --config flag.json", ["detach_anchor is 'no'", "true or false"]),
    "config with an unknown level": ("train --config level.json", ["level is 'medium', expected easy, hard"]),
    "config with null": ("train --config null.json", ["tau is None", "a number"]),
    "config that is absent": (
        "train --config absent.json",
        ["config 'absent.json' could not be read (", "No such file", "): give a JSON file of settings"],
    ),
    "config that is cut": (
        "train --config cut.json",
        ["config 'cut.json' could not be read (", "): give a JSON file of settings"],
    ),
    "config that is a list": (
        "train --config list.json",
        ["config 'list.json' holds a list, expected one JSON object of settings"],
    ),
    "config that is no text": (
        "train --config binary.json",
        ["config 'binary.json' could not be read (", "): give a JSON file of settings"],
    ),
    "unknown model": (
        f"{TRAIN} --model nowhere/nothing",
        ["model 'nowhere/nothing' not found here, and the Hub was not reached: give \"tiny\", a model folder or a Hub name"],
    ),
    "model of another family": (
        f"{TRAIN} --model other-model",
        [f"model type 'bert' is not supported, expected one of {', '.join(FAMILIES)}"],
    ),
    "model with code of its own": (
        f"{TRAIN} --model coded-model",
        ["model 'coded-model' brings code of its own, which is never run: take another model"],
    ),
    "no data file": (
        f"{TRAIN} --data absent.parquet",
        ["data is 'absent.parquet', but there is no such file: give a path to a .parquet file"],
    ),
    "no data set": (
        f"{TRAIN} --data nobody/nothing",
        ["data is 'nobody/nothing': not \"shapes\", no local file, and the Hub gave no split 'train' (", ")"],
    ),
    "data without rows": (
        f"{TRAIN} --data empty.parquet",
        ["data 'empty.parquet' has no rows: give a dataset with at least one"],
    ),
    "data of no bytes": (f"{TRAIN} --data empty.jsonl", ["data 'empty.jsonl' has no rows: give a dataset with at least one"]),
    "data that is no parquet": (f"{TRAIN} --data broken.parquet", ["'broken.parquet'", "could not be read as parquet"]),
    "data that is no JSON": (f"{TRAIN} --data broken.jsonl", ["'broken.jsonl'", "could not be read as json"]),
    "data without an image column": (f"{TRAIN} --data no-column.jsonl", ["'no-column.jsonl'", "no image column", "images"]),
    "column that is not there": (f"{TRAIN} --data huge.parquet --columns answer=anser", ["'answer=anser'", "mean 'answer'?"]),
    "image folder that is not there": (
        f"{TRAIN} --data huge.parquet --image_folder absent",
        ["image_folder is 'absent', but there is no such folder: give one that image paths start in"],
    ),
    "data with two columns of one name": (f"{TRAIN} --data twice.csv", ["'twice.csv'", "two columns 'answer': rename one"]),
    "prompt limit below 0": ("train --max_prompt_tokens -1", ["max_prompt_tokens is -1", "0 or more"]),
    "row without image": (f"{TRAIN} --data no-image.parquet", ["row 2", "no image"]),
    "row without answer": (f"{TRAIN} --data no-answer.parquet", ["row 2", "no answer"]),
    "row without question": (f"{TRAIN} --data no-question.parquet", ["row 2", "no question"]),
    "image that is none": (
        f"{TRAIN} --data garbage.parquet",
        ["row 2, column image: image b'not a picture' is in no format that Pillow knows: give a PNG or JPEG"],
    ),
    "listed image that is none": (
        f"{TRAIN} --data garbage-listed.parquet",
        ["row 2, column images: image b'not a picture' is in no format that Pillow knows: give a PNG or JPEG"],
    ),
    "image that is cut": (f"{TRAIN} --data truncated.parquet", ["row 2", "image", "truncated"]),
    "decompression bomb": (
        f"{TRAIN} --data bomb.parquet",
        ["row 2", "refused as a decompression bomb", "3600000000 pixels", "scale it down"],
    ),
    "smaller bomb": (f"{TRAIN} --data half-bomb.parquet", ["row 2", "decompression bomb", "100000000 pixels"]),
    "prompts that are all too long": (
        f"{TRAIN} --data huge.parquet",
        [
            "all 3 prompts are longer than 237 tokens, the shortest has 535: ",
            "shorten the questions, raise --max_prompt_tokens, or lower --max_new_tokens or --max_pixels",
        ],
    ),
    "resume without a run": (
        f"{TRAIN} --output new --resume",
        ["output 'new' holds no run to resume: give the run's folder, or leave out --resume"],
    ),
    "output that holds a run": (f"{TRAIN} --output done", ["'done'", "holds a run already", "--resume"]),
    "resume with another setting": (
        f"{TRAIN} --output done --resume --lora_rank 2 --seed 7 --tau 0.5",
        ["'done'", "seed was 0 and is 7", "tau was 0.1 and is 0.5"],
    ),
    "output that is a file": (
        f"{TRAIN} --output file",
        ["'file'", "is a file, expected a folder or a new name: choose another --output"],
    ),
    "output that holds other things": (
        f"{TRAIN} --output notes",
        ["'notes'", "is no run and holds", "a new or an empty folder"],
    ),
    "data file of another kind": (
        f"{TRAIN} --data notes/mine.txt",
        ["data file 'notes/mine.txt' is not read: give a .parquet, .json, .jsonl, .csv file"],
    ),
    "data folder without metadata": (
        f"{TRAIN} --data hollow",
        ["data 'hollow' is a folder without metadata.jsonl, .csv or .parquet, and no split 'train' was found in it ("],
    ),
    "output without a name": ("train --output=", ["output is '', expected the name of a folder"]),
    "seed that no generator takes": (
        f"train --seed {2**64}",
        ["seed is 18446744073709551616", "at most 9,223,372,036,854,775,807"],
    ),
    "infinite number": ("train --kl_weight inf", ["kl_weight is inf", "0 or more and at most 1,000"]),
    "tracker that is not installed": (
        f"{TRAIN} --trackers trackio",
        ["tracker 'trackio' is not installed: pip install trackio, or take it from --trackers"],
    ),
    "checkpoint without resume": (
        f"{TRAIN} --checkpoint step-000001",
        ["checkpoint is 'step-000001', which a run goes on from with --resume only: add it, or leave this out"],
    ),
    "resume with fewer steps": (f"{TRAIN} --output done --resume --lora_rank 2 --steps 0", ["steps is 0", "above 0"]),
    "no such device": (f"{TRAIN} --device tpu", ["--device", "'tpu'", "'cuda'"]),
    "adapter that is absent": (
        "evaluate --model model --adapter absent",
        ["adapter 'absent'", "not found or not made for this model: give its folder"],
    ),
    "adapter that is a model": ("evaluate --model model --adapter model", ["adapter 'model'"]),
    "adapter that is a run": (
        "evaluate --model model --adapter done",
        ["adapter 'done' holds no adapter_config.json: give a folder that does, such as a run's adapter/"],
    ),
    "evaluate: split of the shape world": (
        "evaluate --model model --split train",
        ["split is 'train', but the shape world is judged on its three test splits: leave out --split"],
    ),
    "evaluate: unknown level": ("evaluate --model model --level medium", ["'medium'", "'easy', 'hard'"]),
    "evaluate: no images": ("evaluate --model model --images 0", ["images is 0", "1 or more"]),
    "evaluate: unknown quantization": ("evaluate --quantize int8", ["'int8'", "'nf4', 'none'"]),
    "evaluate: output exists": (
        "evaluate --report file",
        ["report 'file'", "exists already: choose another --report, nothing was overwritten"],
    ),
    "export: output exists": ("export --output file", ["'file'", "exists already"]),
    "export: output without a name": ("export --output=", ["output is '', expected the name of a folder"]),
    "export: unknown dtype": ("export --output new --dtype int8", ["dtype is 'int8', expected bfloat16 or float16"]),
    "export: adapter that is absent": ("export --model model --adapter absent --output new", ["adapter 'absent'"]),
}


ODD = ["", "x", "\0", None, True, False, 0, -1, 1, 1.5, 2**70, float("inf"), float("nan"), [], [1], ["x"], [None], {}, {"a": 1}]


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(CPPOConfig)])
def test_whatever_a_file_holds_a_setting_is_taken_or_refused(name):
    for value in ODD:
        with suppress(InputError):
            CPPOConfig.from_dict({name: value})


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ({"quantize": "int8"}, "quantize is 'int8', expected nf4 or none"),
        ({"device": "cuda:1"}, "device is 'cuda:1', expected auto, cpu, cuda: CUDA_VISIBLE_DEVICES chooses among several GPUs"),
        ({"dtype": "float8"}, "dtype is 'float8', expected auto, float32, bfloat16, float16"),
        ({"lora": {"scope": "head"}}, "scope of the adapters is 'head', expected vision, language, all"),
    ],
)
def test_an_option_that_no_policy_has_is_refused(option, said):
    with pytest.raises(ValueError, match=f"^{said}"):
        load_policy("tiny", **{name: LoraOptions(**value) if name == "lora" else value for name, value in option.items()})


def contents(folder):
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*")}


@pytest.mark.parametrize(("command", "named"), ERRORS.values(), ids=ERRORS.keys())
def test_one_line_names_what_is_wrong_and_nothing_is_written(command, named, place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    before = contents(place)
    status = main(command.split())
    lines = capsys.readouterr().err.splitlines()
    assert status == 2
    assert len(lines) == 1, lines
    assert lines[0].startswith("cppo_ref: ")
    assert [part for part in named if part not in lines[0]] == []
    assert contents(place) == before


def test_a_bad_row_of_a_later_step_is_found_before_the_first(place, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(place)
    command = f"{TRAIN} --data garbage.parquet --output {tmp_path}/run --prompts_per_step 1 --steps 3".split()
    assert main(command) == 2
    assert capsys.readouterr().err.startswith("cppo_ref: row 2, column image:")
    assert not (tmp_path / "run").exists()


@pytest.fixture(scope="module")
def policy(place):
    return load_policy(str(place / "model"), quantize="none", lora=LoraOptions(rank=2))


def grey(mode, size=(9, 6)):
    """A picture of middle grey, red where the mode has colours."""
    if mode == "I;16":
        return Image.fromarray(np.full(size[::-1], 128 * 257, dtype=np.uint16))
    return Image.new("RGBA", size, (128, 128, 128, 200)).convert(mode)


@pytest.mark.parametrize("suffix", ["png", "tiff"])
@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "LA", "RGBA", "CMYK", "I;16"])
@pytest.mark.parametrize("size", [(1, 1), (9, 6)], ids=["1x1", "9x6"])
def test_images_of_all_kinds_go_from_file_to_pixels(mode, suffix, size, policy, tmp_path):
    if (mode, suffix) == ("CMYK", "png"):
        suffix = "jpg"
    image = grey(mode, size)
    path = tmp_path / f"grey.{suffix}"
    image.save(path)
    (tmp_path / "rows.jsonl").write_text(json.dumps({"image": str(path), "question": "?", "answer": "1"}) + "\n")
    row = row_at(load_rows(str(tmp_path / "rows.jsonl")), 0)
    assert (row["image"].mode, row["image"].size) == (mode, size)
    pixels = policy.encode([row["image"]], [row["question"]]).inputs["pixel_values"]
    assert pixels.shape == (1, 3, 48, 48)
    assert torch.isfinite(pixels).all()
    if mode not in ("1", "P"):  # these two cannot hold this grey
        assert (pixels - policy.encode([grey("RGB")], ["?"]).inputs["pixel_values"]).abs().max() < 0.05


NO_IMAGES = [None, "", b"", 3, {}, {"bytes": None, "path": None}, [], ["a.png", "b.png"], "absent.png"]


@pytest.mark.parametrize("source", NO_IMAGES, ids=str)
def test_what_is_no_image_is_refused(source):
    with pytest.raises(InputError, match="image"):
        open_image(source)


@pytest.mark.parametrize("nothing", [None, [], ()])
def test_a_prompt_without_an_image_is_named(policy, nothing):
    with pytest.raises(InputError, match=r"^row 1 has no image, expected one or more: give it one, or leave the row out$"):
        policy.encode([grey("RGB"), nothing], ["?", "?"])


def test_a_prompt_that_leaves_its_completion_no_room_is_named(policy):
    said = "prompt of 19 tokens and 9999 new ones exceed the model's 256: "
    said += "shorten the question, shrink the image or lower --max_new_tokens$"
    with pytest.raises(InputError, match=said):
        policy.check_length(policy.encode([grey("RGB")], ["?"]), 9999)


def test_a_model_that_lacks_a_weight_and_an_adapter_that_is_not_finite_or_not_whole_are_named(place, policy, tmp_path):
    shutil.copytree(place / "model", tmp_path / "model")
    weights = load_file(tmp_path / "model" / "model.safetensors")
    lost = next(name for name in sorted(weights) if "q_proj" in name)
    save_file(
        {name: weights[name] for name in weights if name != lost}, tmp_path / "model" / "model.safetensors", {"format": "pt"}
    )
    with pytest.raises(InputError, match=r"model '.*model' lacks .*q_proj.*: give a whole model"):
        load_policy(str(tmp_path / "model"), quantize="none", lora=None)
    policy.model.save_pretrained(tmp_path / "adapter")
    held = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    broken = min(held)
    save_file(held | {broken: held[broken] * torch.nan}, tmp_path / "adapter" / "adapter_model.safetensors")
    with pytest.raises(InputError, match=rf"adapter '.*adapter': {broken} is not finite; take an earlier checkpoint"):
        load_adapter(policy.model, str(tmp_path / "adapter"), "cpu")
    (tmp_path / "adapter" / "adapter_model.safetensors").write_bytes(b"torn")
    said = f"adapter {str(tmp_path / 'adapter')!r} could not be read: give a whole one, or train it again"
    with pytest.raises(InputError, match=re.escape(said)):
        load_adapter(policy.model, str(tmp_path / "adapter"), "cpu")


def full_disk(*_, **__):
    raise OSError(errno.ENOSPC, "No space left on device")


def full_disk_in_safetensors(*_, **__):
    raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")


@pytest.mark.parametrize(
    ("owner", "name", "failure"),
    [
        (peft.peft_model, "safe_save_file", full_disk_in_safetensors),
        (os, "fsync", full_disk),
        (Path, "write_bytes", full_disk),
        (Path, "write_text", full_disk),
    ],
    ids=["adapter", "flush", "optimizer", "state"],
)
def test_a_full_disk_costs_the_new_checkpoint_and_not_the_earlier_one(owner, name, failure, policy, tmp_path, monkeypatch):
    optimizer = torch.optim.AdamW(policy.trainable)
    first = save_checkpoint(tmp_path, 1, policy, optimizer, None, keep=2)
    before = {path: path.read_bytes() for path in first.rglob("*") if path.is_file()}
    assert len(before) >= 4
    second = first.with_name("step-000002")
    said = f"no space left on the device for {second}: free some; nothing half-written was kept"
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, failure)
        with pytest.raises(InputError, match=re.escape(said)):
            save_checkpoint(tmp_path, 2, policy, optimizer, None, keep=2)
    assert checkpoints(tmp_path) == [first]
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-000001"]
    assert {path: path.read_bytes() for path in first.rglob("*") if path.is_file()} == before


def test_whatever_fails_while_saving_leaves_the_old_folder_and_no_half_written_one(tmp_path):
    save_atomically(tmp_path / "kept", lambda folder: (folder / "a").write_text("old") and None)

    def fail(folder):
        (folder / "a").write_text("new")
        raise ArithmeticError("the check failed")

    with pytest.raises(ArithmeticError, match="the check failed"):
        save_atomically(tmp_path / "kept", fail)
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
    assert (tmp_path / "kept" / "a").read_text() == "old"


def test_every_setting_refuses_a_value_of_another_type():
    for name in CPPOConfig().to_dict():
        with pytest.raises(InputError, match=f"^{name} is {{}}, expected "):
            CPPOConfig(**{name: {}})
    assert CPPOConfig(tau=1).tau == 1  # a whole number is a number


def test_no_command_prints_the_list_of_commands(capsys):
    assert main([]) == 0
    printed = capsys.readouterr()
    assert all(f"  {name} " in printed.out for name in ("train", "probe", "evaluate", "export"))
    assert printed.err == ""
