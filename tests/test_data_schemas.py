"""The public schemas, written small with images of the shape world: the rows, the malformed ones, two steps of training."""

import dataclasses
import json
import re
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image

from cppo_ref.__main__ import main
from cppo_ref.config import CPPOConfig, InputError
from cppo_ref.examples.loading import load_rows, rows_for
from cppo_ref.examples.overlong import drop_overlong, prompt_tokens
from cppo_ref.examples.rows import INSTRUCTION, find_columns, images_of, plain_answer, plain_question, row_at
from cppo_ref.rewards import reward
from cppo_ref.runs.options import EvaluateFlags, TrainFlags
from cppo_ref.training import train
from cppo_ref.vlm.policy import load_policy
from cppo_ref.worlds.shapes import LEVELS, sample_row

TEXT, PICTURE = datasets.Value("string"), datasets.Image()
SMALL = {"steps": 2, "prompts_per_step": 2, "group_size": 2, "max_new_tokens": 8, "lora_rank": 2, "eval_rows": 0}
QUESTIONS, COUNTS = ["How many red shapes?", "How many blue shapes?", "How many green shapes?"], ["1", "0", "2"]


def pictures(count=3):
    rng = np.random.default_rng(7)
    return [sample_row(rng, LEVELS["easy"])["image"] for _ in range(count)]


def write_parquet(path, columns, features):
    datasets.Dataset.from_dict(columns, features=datasets.Features(features)).to_parquet(path)
    return str(path)


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def geometry3k(folder):
    """hiyouga/geometry3k: a list of pictures, a marker in the problem."""
    columns = {
        "images": [[picture] for picture in pictures()],
        "problem": [f"<image>{question}" for question in QUESTIONS],
        "answer": COUNTS,
        "choices": [["0", "1", "2", "3"]] * 3,
    }
    features = {"images": datasets.List(PICTURE), "problem": TEXT, "answer": TEXT, "choices": datasets.List(TEXT)}
    return write_parquet(folder / "geometry3k.parquet", columns, features)


def virl39k(folder):
    """TIGER-Lab/ViRL39K: paths into an images folder beside the parquet, boxed answers."""
    (folder / "images").mkdir()
    for number, picture in enumerate(pictures()):
        picture.save(folder / "images" / f"q{number}-0.png")
    columns = {
        "question": [f"<image>\n{question}" for question in QUESTIONS],
        "answer": [f"\\boxed{{{count}}}" for count in COUNTS],
        "PassRate_32BTrained": [0.25, 0.5, 1.0],
        "category": ["Tables/Diagrams/Charts"] * 3,
        "source": ["Processed"] * 3,
        "qid": [f"q{number}" for number in range(3)],
        "image": [[f"images/q{number}-0.png"] for number in range(3)],
    }
    paths = {"image": datasets.List(TEXT), "PassRate_32BTrained": datasets.Value("float64")}
    return write_parquet(folder / "39Krelease.parquet", columns, {name: paths.get(name, TEXT) for name in columns})


def clevr_count(folder):
    """leonardPKU/clevr_cogen_a_train: a picture, no marker, the answer in tags."""
    columns = {"image": pictures(), "problem": QUESTIONS, "solution": [f"<answer> {count} </answer>" for count in COUNTS]}
    return write_parquet(folder / "clevr.parquet", columns, {"image": PICTURE, "problem": TEXT, "solution": TEXT})


schemas = pytest.mark.parametrize("schema", [geometry3k, virl39k, clevr_count])


@schemas
def test_a_row_is_the_same_whatever_schema_it_came_in(schema, tmp_path):
    rows = load_rows(schema(tmp_path), instruction="none")
    assert len(rows) == 3
    for index, picture in enumerate(pictures()):
        row = row_at(rows, index)
        assert row["question"] == QUESTIONS[index]
        assert row["answer"] == COUNTS[index]
        assert (np.asarray(row["image"]) == np.asarray(picture)).all()
        assert [image.size for image in row["images"]] == [picture.size]
        assert reward(f"<think> so many </think> \\boxed{{{COUNTS[index]}}}", row["answer"]) == 1.0


@schemas
def test_two_steps_of_training_from_a_local_parquet(schema, tmp_path):
    result = train(CPPOConfig(data=schema(tmp_path), output=str(tmp_path / "run"), **SMALL), progress=False)
    assert [step["step"] for step in result.history] == [0, 1]
    assert result.adapter.is_dir()
    lines = [json.loads(line) for line in (tmp_path / "run" / "completions.jsonl").read_text().splitlines()]
    assert len(lines) == 2 * 2 * 2
    asked = {question: count for question, count in zip(QUESTIONS, COUNTS, strict=True)}
    assert all(line["answer"] == asked[line["question"].removesuffix(f"\n{INSTRUCTION}")] for line in lines)
    assert all(line["question"].endswith(INSTRUCTION) for line in lines)


def test_other_columns_stay_and_the_ones_that_were_read_do_not(tmp_path):
    row = row_at(load_rows(virl39k(tmp_path)), 1)
    assert set(row) == {"image", "images", "question", "answer", "PassRate_32BTrained", "category", "source", "qid"}
    assert (row["qid"], row["PassRate_32BTrained"]) == ("q1", 0.5)
    (tmp_path / "g").mkdir()
    assert set(row_at(load_rows(geometry3k(tmp_path / "g")), 0)) == {"image", "images", "question", "answer", "choices"}


def test_the_shape_world_is_read_as_before():
    row = row_at(load_rows("shapes", "test"), 0)
    assert row["images"] == [row["image"]]
    assert row["question"].endswith("?")
    assert row["objects"]


@pytest.mark.parametrize(
    ("stored", "plain"),
    [
        ("<answer> 3 </answer>", "3"),
        ("<think>two and one</think> <answer>3</answer>", "3"),
        ("<answer>\\boxed{ 3 }</answer>", "3"),
        ("\\boxed{\\frac{1}{2}}", "\\frac{1}{2}"),
        (" \\boxed{ 17^\\circ }\n", "17^\\circ"),
        ("\\boxed{1} or \\boxed{2}", "\\boxed{1} or \\boxed{2}"),
        ("about \\boxed{3}", "about \\boxed{3}"),
        ("\\boxed{3} cm^{2}", "\\boxed{3} cm^{2}"),
        ("x < answer", "x < answer"),
        (4, "4"),
        (0.5, "0.5"),
    ],
)
def test_answers_are_unwrapped(stored, plain):
    assert plain_answer(stored) == plain


@pytest.mark.parametrize(
    ("stored", "images", "plain"),
    [
        ("<image>Find x.", 1, "Find x."),
        ("Find x.\n<image>\n", 1, "Find x."),
        ("<image>\n<image>\nWhich is larger?\n\nA or B?", 2, "Which is larger?\n\nA or B?"),
        ("In <image> and <image>, find x.", 2, "In and , find x."),
        ("Find x.", 2, "Find x."),
    ],
)
def test_markers_leave_the_question(stored, images, plain):
    assert plain_question(stored, images) == plain


@pytest.mark.parametrize(
    ("data", "setting", "ending"),
    [
        ("shapes", "auto", ""),
        ("shapes", "Be brief.", "\nBe brief."),
        ("file", "auto", f"\n{INSTRUCTION}"),
        ("file", "none", ""),
        ("file", "Be brief.", "\nBe brief."),
    ],
)
def test_the_instruction_ends_every_question_once(data, setting, ending, tmp_path):
    source = clevr_count(tmp_path) if data == "file" else data
    row = row_at(rows_for(CPPOConfig(data=source, instruction=setting)), 0)
    plain = QUESTIONS[0] if data == "file" else row_at(load_rows("shapes"), 0)["question"]
    assert row["question"] == plain + ending


def test_the_instruction_asks_for_what_the_format_reward_pays_for():
    assert all(part in INSTRUCTION for part in ("<think>", "</think>", "\\boxed{}"))
    assert "<image>" not in INSTRUCTION


def test_a_row_may_have_several_images(tmp_path):
    first, second = pictures(2)
    columns = {"images": [[first, second]], "problem": ["<image> or <image>: which has more?"], "answer": ["2"]}
    path = write_parquet(tmp_path / "two.parquet", columns, {"images": datasets.List(PICTURE), "problem": TEXT, "answer": TEXT})
    row = row_at(load_rows(path, instruction="none"), 0)
    assert row["question"] == "or : which has more?"
    assert len(row["images"]) == 2
    assert row["image"] is row["images"][0]
    assert (np.asarray(row["images"][1]) == np.asarray(second)).all()


def test_a_view_in_the_place_of_the_image_is_what_the_policy_sees():
    first, second = pictures(2)
    view = Image.new("RGB", (48, 48))
    row = row_at(load_rows("shapes", "test"), 0)
    assert images_of(row) == [row["image"]]
    assert images_of({**row, "image": view}) == [view]
    assert images_of({"image": view, "images": [first, second]}) == [view, second]
    assert images_of({"image": view}) == [view]


@pytest.mark.parametrize("row", [{}, {"image": None, "images": []}])
def test_a_row_of_no_image_is_refused(row):
    with pytest.raises(InputError, match=r"^a row has no image, expected one or more: give it one, or leave the row out$"):
        images_of(row)


def test_image_paths_start_beside_the_data_file_or_in_the_image_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for place, colour in (("data", "red"), ("elsewhere", "blue"), (".", "black")):
        (tmp_path / place).mkdir(exist_ok=True)
        Image.new("RGB", (4, 4), colour).save(tmp_path / place / "a.png")
    path = write_jsonl(tmp_path / "data" / "rows.jsonl", [{"image": "a.png", "question": "?", "answer": "1"}])
    relative = "data/rows.jsonl"
    for rows in (load_rows(path), load_rows(relative)):
        assert row_at(rows, 0)["image"].getpixel((0, 0)) == (255, 0, 0)
    assert row_at(load_rows(path, image_folder="elsewhere"), 0)["image"].getpixel((0, 0)) == (0, 0, 255)
    said = "image_folder is 'nowhere', but there is no such folder: give one that image paths start in$"
    with pytest.raises(InputError, match=said):
        load_rows(path, image_folder="nowhere")


@pytest.mark.parametrize("metadata", ["metadata.jsonl", "metadata.csv", "train/metadata.jsonl"])
def test_an_image_folder_with_a_metadata_file(metadata, tmp_path):
    file = tmp_path / metadata
    (file.parent / "sub").mkdir(parents=True)
    for number, picture in enumerate(pictures(2)):
        picture.save(file.parent / "sub" / f"{number}.png")
    rows = [{"file_name": f"sub/{number}.png", "question": f"{number}?", "answer": number + 5} for number in range(2)]
    if file.suffix == ".csv":
        file.write_text("\n".join(["file_name,question,answer", *(",".join(map(str, row.values())) for row in rows)]) + "\n")
    else:
        write_jsonl(file, rows)
    loaded = load_rows(str(tmp_path), instruction="none")
    assert [(row_at(loaded, i)["question"], row_at(loaded, i)["answer"]) for i in range(2)] == [("0?", "5"), ("1?", "6")]
    assert (np.asarray(row_at(loaded, 1)["image"]) == np.asarray(pictures(2)[1])).all()


@pytest.mark.parametrize(("file", "said"), [("rows.jsonl", True), ("metadata.jsonl", True), ("test/metadata.jsonl", False)])
def test_a_test_split_of_what_has_no_splits_is_said_to_be_all_of_its_rows(file, said, tmp_path, capsys):
    (tmp_path / file).parent.mkdir(exist_ok=True)
    pictures(1)[0].save((tmp_path / file).parent / "0.png")
    write_jsonl(tmp_path / file, [{"file_name": "0.png", "question": "?", "answer": "1"}])
    source = str(tmp_path / file if file == "rows.jsonl" else tmp_path)
    assert len(load_rows(source, "test")) == 1
    printed = capsys.readouterr().out
    assert bool(printed) == said and ("has no splits: its 'test' split is all of its rows" in printed) == said
    load_rows(str(tmp_path / file))
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("data", "model", "said"), [("file", "tiny", True), ("file", "other/vlm", False), ("shapes", "tiny", False)]
)
def test_the_tiny_model_says_that_other_words_than_its_own_are_unknown_to_it(data, model, said, policy, tmp_path, capsys):
    rows_for(CPPOConfig(data=geometry3k(tmp_path) if data == "file" else data, model=model))
    assert ("reads words outside the shape world as <unk>" in capsys.readouterr().out) == said
    known, others = (policy.tokenizer.decode(policy.tokenizer(text)["input_ids"]) for text in (QUESTIONS[0], "How many cups?"))
    assert "<unk>" not in known and "<unk>" in others


def mapped(folder):
    pictures(1)[0].save(folder / "a.png")
    row = {"photo": "a.png", "prompt": "How many red shapes?", "label": 1, "answer": "unused"}
    return write_jsonl(folder / "rows.jsonl", [row] * 3)


def test_a_column_map_from_the_command_line(tmp_path, capsys):
    options = ["--columns", "image=photo", "question=prompt", "answer=label", "--instruction", "none"]
    options += [f"--{name}={value}" for name, value in SMALL.items()]
    assert main(["train", "--data", mapped(tmp_path), "--output", str(tmp_path / "run"), *options]) == 0
    lines = [json.loads(line) for line in (tmp_path / "run" / "completions.jsonl").read_text().splitlines()]
    assert {(line["question"], line["answer"]) for line in lines} == {("How many red shapes?", "1")}


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        (["photo"], "columns holds 'photo', expected NAME=COLUMN"),
        (["qestion=prompt"], "columns holds 'qestion=prompt', expected NAME=COLUMN: did you mean 'question'"),
        (["question=promt"], "'question=promt', but data 'x' has no such column: did you mean 'prompt'"),
        (["question=zzz"], "'question=zzz', but data 'x' has no such column: there are photo, prompt, answer"),
        (
            ["question=prompt"],
            "data 'x' has no image column: expected one of image, images, .* with one of photo, prompt, answer",
        ),
    ],
)
def test_a_column_map_that_does_not_fit(chosen, message):
    with pytest.raises(InputError, match=message):
        find_columns(["photo", "prompt", "answer"], chosen, "x")


def test_a_column_of_ours_wins_over_the_usual_names():
    present = ["image", "photo", "question", "answer", "solution"]
    assert find_columns(present, ["image=photo"], "x") == {"image": "photo", "question": "question", "answer": "answer"}


def png(picture, folder):
    picture.save(folder / "good.png")
    return (folder / "good.png").read_bytes()


MALFORMED = {  # id: (changes to a good row, column named, what is said)
    "image file that is absent": (
        {"images": [{"path": "no.png"}]},
        "images",
        "no.png' does not exist: correct the path, or set --image_folder",
    ),
    "null image": ({"images": None}, "images", "no image: fill it or drop the row"),
    "no image in the list": ({"images": []}, "images", "no image"),
    "null in the list": ({"images": [None]}, "images", "image is None, expected a picture"),
    "undecodable image": (
        {"images": [{"bytes": b"not a picture"}]},
        "images",
        "image b'not a picture' is in no format that Pillow knows: give a PNG or JPEG",
    ),
    "empty question": ({"problem": ""}, "problem", "no question"),
    "null question": ({"problem": None}, "problem", "no question"),
    "question of a marker alone": ({"problem": " <image> \n"}, "problem", "no question"),
    "more markers than images": ({"problem": "<image><image>?"}, "problem", "markers in the question: 2, images in the row: 1"),
    "empty answer": ({"answer": " "}, "answer", "no answer"),
    "null answer": ({"answer": None}, "answer", "no answer"),
    "answer of an empty box": ({"answer": "\\boxed{}"}, "answer", "no answer"),
}


@pytest.mark.parametrize(("changes", "column", "said"), MALFORMED.values(), ids=MALFORMED)
def test_a_malformed_row_is_named_by_its_index_and_column(changes, column, said, tmp_path):
    good = {"images": [{"bytes": png(pictures(1)[0], tmp_path)}], "problem": "<image>How many?", "answer": "1"}
    picture = {"bytes": datasets.Value("binary"), "path": TEXT}
    features = datasets.Features({"images": datasets.List(picture), "problem": TEXT, "answer": TEXT})
    path = tmp_path / "rows.parquet"
    datasets.Dataset.from_list([good, good | changes], features=features).to_parquet(path)
    rows = load_rows(str(path))
    assert row_at(rows, 0)["answer"] == "1"
    with pytest.raises(InputError) as caught:
        row_at(rows, 1)
    assert str(caught.value).startswith(f"row 1, column {column}: ")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("column", "value", "said"),
    [
        ("image", 3, "image is 3, expected a picture, its bytes or its path"),
        ("question", 3, "question is 3, expected text"),
        ("answer", ["1"], "answer is ['1'], expected text or a finite number"),
    ],
)
def test_a_column_of_the_wrong_type_is_named(column, value, said, tmp_path):
    pictures(1)[0].save(tmp_path / "a.png")
    row = {"image": "a.png", "question": "?", "answer": "1"} | {column: value}
    with pytest.raises(InputError) as caught:
        row_at(load_rows(write_jsonl(tmp_path / "rows.jsonl", [row])), 0)
    assert str(caught.value) == f"row 0, column {column}: {said}"


@pytest.mark.parametrize(
    ("image", "said"),
    [
        ("../a.png", "image path '../a.png' leads out of '.*': set --image_folder to one that holds all images"),
        ("inner", "image path 'inner' is no regular file: give a PNG or JPEG"),
        ("large.png", "image has 8193×4096 pixels, at most 33,554,432 are read: scale it down"),
        ("two.gif", "image has several frames, expected one: save the one that is meant"),
        ("float.tiff", "image mode is F, expected grey or colours in whole numbers: save it as RGB"),
        ("lab.tiff", "image mode is LAB, expected grey or colours in whole numbers: save it as RGB"),
    ],
)
def test_an_image_that_is_not_read_is_named(image, said, tmp_path):
    (tmp_path / "inner").mkdir()
    Image.new("1", (8193, 4096)).save(tmp_path / "large.png")
    Image.new("L", (9, 9)).save(tmp_path / "two.gif", save_all=True, append_images=[Image.new("L", (9, 9), 9)])
    for mode, name in (("F", "float"), ("LAB", "lab")):
        Image.new(mode, (9, 9)).save(tmp_path / f"{name}.tiff")
    path = write_jsonl(tmp_path / "rows.jsonl", [{"image": image, "question": "?", "answer": "1"}])
    with pytest.raises(InputError, match=f"^row 0, column image: {said}$"):
        row_at(load_rows(path), 0)


def test_the_images_of_a_hub_dataset_are_read_from_its_cache(tmp_path, monkeypatch):
    """An image folder on the Hub: `datasets` gives paths into the cache, where files are links to what they hold."""
    snapshot, blobs, here = (tmp_path / name for name in ("cache/hub/snapshots/1", "cache/hub/blobs", "here"))
    for folder in (snapshot, blobs, here):
        folder.mkdir(parents=True)
    pictures(1)[0].save(blobs / "b1", format="PNG")
    (snapshot / "a.png").symlink_to(blobs / "b1")
    picture = {"bytes": None, "path": str(snapshot / "a.png")}
    table = datasets.Dataset.from_list([{"image": picture, "question": "?", "answer": "1"}])
    monkeypatch.setattr("cppo_ref.examples.loading._from_hub", lambda source, split: table)
    monkeypatch.chdir(here)
    with pytest.raises(InputError, match="leads out"):
        row_at(load_rows("somebody/images"), 0)
    monkeypatch.setattr("cppo_ref.examples.rows.HF_CACHE_HOME", str(tmp_path / "cache"))
    assert np.array_equal(row_at(load_rows("somebody/images"), 0)["image"], pictures(1)[0])


@pytest.fixture(scope="module")
def policy():
    return load_policy("tiny", quantize="none", lora=None)


def words(folder, counts):
    """Rows whose question has so many words, each one token to the tiny VLM."""
    pictures(1)[0].save(folder / "a.png")
    rows = [{"image": "a.png", "question": " ".join(["red"] * count), "answer": str(count)} for count in counts]
    return load_rows(write_jsonl(folder / "rows.jsonl", rows), instruction="none")


def limits(prompt, completion):
    return CPPOConfig(data="rows.jsonl", max_prompt_tokens=prompt, max_new_tokens=completion)


# the tiny VLM's prompt: <user>, 4×4 patches of the image, the question, <assistant>; its context: 256
@pytest.mark.parametrize(
    ("limit", "new_tokens", "kept", "said"),
    [
        (38, 8, [20, 10, 5], "dropped 2 of 5 rows: prompt longer than 38 tokens\n"),
        (37, 8, [10, 5], "dropped 3 of 5 rows: prompt longer than 37 tokens\n"),
        (0, 8, [20, 200, 10, 5], "dropped 1 of 5 rows: prompt longer than 248 tokens\n"),
        (250, 50, [20, 10, 5], "dropped 2 of 5 rows: prompt longer than 206 tokens\n"),
    ],
)
def test_overlong_prompts_are_dropped_and_counted(limit, new_tokens, kept, said, policy, tmp_path, capsys):
    rows = drop_overlong(policy, words(tmp_path, [20, 200, 10, 240, 5]), limits(limit, new_tokens))
    assert [int(row_at(rows, index)["answer"]) for index in range(len(rows))] == kept
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == (said, "")


def test_every_image_of_a_row_counts(policy, tmp_path):
    for number, picture in enumerate(pictures(2)):
        picture.save(tmp_path / f"{number}.png")
    rows = [{"image": [f"{number}.png" for number in range(count)], "question": "red", "answer": "1"} for count in (1, 2)]
    loaded = load_rows(write_jsonl(tmp_path / "rows.jsonl", rows), instruction="none")
    assert [prompt_tokens(policy, row_at(loaded, index)) for index in range(2)] == [1 + 16 + 1 + 1, 1 + 32 + 1 + 1]


def test_nothing_is_said_where_nothing_is_dropped(policy, tmp_path, capsys):
    assert len(drop_overlong(policy, words(tmp_path, [1, 2]), limits(0, 8))) == 2
    assert capsys.readouterr().out == ""


def test_a_limit_that_leaves_no_row_says_how_far_off_it_is(policy, tmp_path):
    said = "all 2 prompts are longer than 12 tokens, the shortest has 23: "
    said += "shorten the questions, raise --max_prompt_tokens, or lower --max_new_tokens or --max_pixels$"
    with pytest.raises(InputError, match=said):
        drop_overlong(policy, words(tmp_path, [20, 5]), limits(12, 8))


def test_a_file_of_nothing_but_malformed_rows_is_refused(policy, tmp_path):
    rows = load_rows(write_jsonl(tmp_path / "rows.jsonl", [{"image": "no.png", "question": "?", "answer": "1"}] * 2))
    skipping = CPPOConfig(data="rows.jsonl", on_bad_row="skip")
    with pytest.raises(InputError, match="all 2 rows were refused, the first: row 0, column image: image file "):
        drop_overlong(policy, rows, skipping)


def test_a_row_keeps_its_number_in_the_file_when_others_were_dropped(tmp_path):
    rows = words(tmp_path, [1, 2, 3, 4]).keep([1, 3]).keep([1])
    assert (len(rows), row_at(rows, 0)["answer"]) == (1, "4")
    (tmp_path / "a.png").unlink()
    said = f"row 3, column image: image file {str(tmp_path / 'a.png')!r} does not exist: "
    said += "correct the path, or set --image_folder"
    with pytest.raises(InputError, match=re.escape(said)):
        row_at(rows, 0)


def test_training_drops_overlong_prompts_but_looks_at_none_of_the_shape_world(tmp_path, monkeypatch, capsys):
    words(tmp_path, [1, 2, 3, 60])
    config = CPPOConfig(data=str(tmp_path / "rows.jsonl"), output=str(tmp_path / "run"), max_prompt_tokens=64, **SMALL)
    train(CPPOConfig.from_dict(config.to_dict() | {"steps": 1, "instruction": "none"}), progress=False)
    assert "dropped 1 of 4 rows: prompt longer than 64 tokens" in capsys.readouterr().out
    monkeypatch.setattr("cppo_ref.examples.overlong.prompt_tokens", None)  # a call would raise
    train(CPPOConfig(output=str(tmp_path / "shapes"), **SMALL | {"steps": 1, "max_new_tokens": 19}), progress=False)


def test_the_page_about_data_names_options_that_exist():
    named = set(re.findall(r"--(\w+)", (Path(__file__).parent.parent / "docs" / "data.md").read_text()))
    known = {field.name for kind in (CPPOConfig, TrainFlags, EvaluateFlags) for field in dataclasses.fields(kind)}
    assert {"data", "columns", "image_folder", "instruction", "max_prompt_tokens"} <= named <= known
