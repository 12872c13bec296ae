"""Datasets: splits that regenerate to the byte, rows in a seeded order, and local files with other column names."""

import copy
import functools
import hashlib
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from cppo_ref.config import InputError
from cppo_ref.examples.loading import load_rows, step_rows
from cppo_ref.examples.rows import Rows, row_at
from cppo_ref.perturbations import PRESERVING
from cppo_ref.worlds.splits import data_folder

SCRIPTS = Path(__file__).parents[1] / "scripts"
sys.path.insert(0, str(SCRIPTS))

from make_data import make_split  # noqa: E402

COMMITTED = data_folder() / "shapes"
VIEWS = {name: PRESERVING[name] for name in ("color_jitter", "perspective", "rotation")}
SMALL = [f"{level}/{split}" for level in ("easy", "hard") for split in ("validation", "test", "test_shift", "test_blank")]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Every split, written by another process with a hash seed of its own."""
    folder = tmp_path_factory.mktemp("splits") / "new"
    environment = os.environ | {"PYTHONHASHSEED": "4242"}
    subprocess.run([sys.executable, SCRIPTS / "make_data.py", folder], env=environment, check=True, capture_output=True)
    return folder


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def split_table(folder, name):
    return pq.read_table(folder / f"{name}.parquet").to_pydict()


def pixels(table):
    return [np.asarray(Image.open(io.BytesIO(image["bytes"]))) for image in table["image"]]


@pytest.mark.parametrize("name", SMALL)
def test_another_process_writes_the_same_bytes(name, written, tmp_path):
    level, split = name.split("/")
    make_split(split, level).to_parquet(tmp_path / "again.parquet")
    assert digest(tmp_path / "again.parquet") == digest(written / f"{name}.parquet")


@pytest.mark.skipif(not COMMITTED.exists(), reason="data/shapes is not there")
def test_committed_splits_are_what_the_code_writes(written):
    names = sorted(str(path.relative_to(written)) for path in written.rglob("*.parquet"))
    assert len(names) == 10
    assert names == sorted(str(path.relative_to(COMMITTED)) for path in COMMITTED.rglob("*.parquet"))
    for name in names:
        fresh, committed = (pq.read_table(folder / name).to_pydict() for folder in (written, COMMITTED))
        assert fresh.keys() == committed.keys()
        assert all(fresh[column] == committed[column] for column in ("question", "answer", "objects")), name
        assert all((a == b).all() for a, b in zip(pixels(fresh), pixels(committed), strict=True)), name


@pytest.mark.parametrize(("name", "rows"), [("train", 2000), ("validation", 200), ("test", 300), ("test_shift", 300)])
def test_split_sizes(name, rows, written):
    assert len(split_table(written, f"easy/{name}")["answer"]) == rows


@pytest.mark.parametrize("level", ["easy", "hard"])
def test_no_test_row_was_trained_or_validated_on(level, written):
    pictures = {split: split_table(written, f"{level}/{split}")["image"] for split in ("train", "validation", "test")}
    seen = {split: {image["bytes"] for image in images} for split, images in pictures.items()}
    assert not seen["test"] & (seen["train"] | seen["validation"])
    assert len(seen["train"]) == 2000


@pytest.mark.parametrize("level", ["easy", "hard"])
@pytest.mark.parametrize(("variant", "changed"), [("test_shift", 0.75), ("test_blank", 1.0)])
def test_variants_of_the_test_split_ask_the_same_about_other_pictures(variant, changed, level, written):
    plain, other = split_table(written, f"{level}/test"), split_table(written, f"{level}/{variant}")
    for column in ("question", "answer", "objects"):
        assert other[column] == plain[column]
    # a third of the shifts are perspectives, half of which leave the picture alone: 5 in 6 change
    assert np.mean([a["bytes"] != b["bytes"] for a, b in zip(plain["image"], other["image"], strict=True)]) >= changed


@pytest.mark.parametrize("level", ["easy", "hard"])
def test_all_blank_images_are_one_picture(level, written):
    blank = split_table(written, f"{level}/test_blank")["image"]
    assert len({image["bytes"] for image in blank}) == 1  # so whatever reads it gives one answer to all


def test_how_many_shifted_pictures_are_plain_and_how_many_lie_in_the_range_of_training(written, monkeypatch):
    plain, other = (pixels(split_table(written, f"easy/{split}")) for split in ("test", "test_shift"))
    same = [(a == b).all() for a, b in zip(plain, other, strict=True)]
    assert sum(same) == 39

    inside = []

    def recorded(kind, image, rng, strength):
        """Whether the same draws, made once more, lie in the range of strength 1."""
        again = copy.deepcopy(rng)
        if kind == "color_jitter":
            ends = [(0.2, 1.3), (0.2, 1.8), (0.2, 1.8)]
            drawn = [(1 + 1.2 * (again.uniform(*ends[i]) - 1), ends[i]) for i in again.permutation(3)]
            inside.append(all(low <= factor <= high for factor, (low, high) in drawn))
        elif kind == "perspective":
            inside.append((again.uniform(0, 0.12, (4, 2)) <= 0.1).all() or again.random() >= 0.5)
        else:
            inside.append(abs(1.2 * again.uniform(-10, 10)) <= 10)
        return VIEWS[kind](image, rng, strength)

    for kind in VIEWS:
        monkeypatch.setitem(PRESERVING, kind, functools.partial(recorded, kind))
    make_split("test_shift", "easy")
    assert len(inside) == 300 and sum(near and not plain for near, plain in zip(inside, same, strict=True)) == 152
    results = (Path(__file__).parents[1] / "study" / "first.md").read_text()
    assert "39 of the 300 changed pictures are the plain ones; 152 more lie inside the range" in results


@pytest.fixture
def ten_rows():
    picture = Image.new("RGB", (2, 2))
    return Rows(datasets.Dataset.from_list([{"image": picture, "question": f"{i}?", "answer": str(i)} for i in range(10)]))


def answers(rows, count, steps, seed=0):
    return [row["answer"] for step in steps for row in step_rows(rows, count, step, seed)]


def test_every_epoch_is_a_permutation_of_its_own(ten_rows):
    drawn = answers(ten_rows, 4, range(5))  # 20 rows: two epochs, the first ends inside the third step
    first, second = drawn[:10], drawn[10:]
    assert sorted(first) == sorted(second) == [str(i) for i in range(10)]
    assert first != second
    assert first != sorted(first)


def test_the_rows_of_a_step_depend_on_seed_and_step_alone(ten_rows):
    assert answers(ten_rows, 4, [3]) == answers(ten_rows, 4, range(4))[12:]
    assert answers(ten_rows, 10, [0], seed=1) != answers(ten_rows, 10, [0], seed=0)


def test_a_step_may_be_longer_than_the_dataset(ten_rows):
    drawn = answers(ten_rows, 25, [0])
    assert len(drawn) == 25
    assert {drawn.count(str(i)) for i in range(10)} == {2, 3}


@pytest.fixture
def png(tmp_path):
    path = tmp_path / "red.png"
    Image.new("RGB", (5, 3), (200, 0, 0)).save(path)
    return path


def write_rows(path, columns):
    if path.suffix == ".parquet":
        datasets.Dataset.from_dict(columns).to_parquet(path)
    elif path.suffix == ".csv":
        path.write_text("\n".join(",".join(map(str, line)) for line in [columns, *zip(*columns.values(), strict=True)]) + "\n")
    else:
        lines = [dict(zip(columns, line, strict=True)) for line in zip(*columns.values(), strict=True)]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


@pytest.mark.parametrize("suffix", ["parquet", "jsonl", "csv"])
@pytest.mark.parametrize("columns", ["image question answer", "images problem answer"], ids=["our names", "Geometry3K's names"])
def test_local_files_are_read_under_either_name_of_a_column(suffix, columns, png, tmp_path):
    image, question, answer = columns.split()
    path = write_rows(tmp_path / f"rows.{suffix}", {image: [str(png)] * 2, question: ["how many?", "which?"], answer: [0, 4]})
    rows = load_rows(path, instruction="none")
    assert len(rows) == 2
    first, second = row_at(rows, 0), row_at(rows, 1)
    assert (first["question"], first["answer"]) == ("how many?", "0")
    assert (second["question"], second["answer"]) == ("which?", "4")
    assert first["image"].size == (5, 3)
    assert first["image"].getpixel((0, 0)) == (200, 0, 0)


def test_parquet_may_hold_the_picture_or_a_list_of_one(tmp_path):
    picture = Image.new("L", (6, 2), 77)
    for name, image in (("one", picture), ("listed", [picture])):
        path = tmp_path / f"{name}.parquet"
        datasets.Dataset.from_list([{"image": image, "question": "?", "answer": "1"}]).to_parquet(path)
        opened = row_at(load_rows(str(path)), 0)["image"]
        assert (opened.mode, opened.size, opened.getpixel((0, 0))) == ("L", (6, 2), 77)


def test_other_columns_are_kept(png, tmp_path):
    path = write_rows(tmp_path / "more.jsonl", {"image": [str(png)], "question": ["?"], "answer": ["1"], "source": ["book"]})
    assert row_at(load_rows(path), 0)["source"] == "book"


@pytest.mark.parametrize("missing", ["image", "question", "answer"])
def test_a_missing_column_is_named(missing, png, tmp_path):
    columns = {"image": [str(png)], "question": ["?"], "answer": ["1"]}
    del columns[missing]
    with pytest.raises(InputError, match=f"has no {missing} column"):
        load_rows(write_rows(tmp_path / "rows.jsonl", columns))


@pytest.mark.parametrize(
    ("split", "level", "named"), [("tset", "easy", "easy/tset"), ("test", "medium", "medium/test")], ids=["split", "level"]
)
def test_an_unknown_split_or_level_is_named(split, level, named):
    with pytest.raises(InputError, match=f"{named}, expected easy or hard and one of train, validation"):
        load_rows("shapes", split, level)


def test_an_unreadable_file_is_named_with_the_reason(tmp_path):
    path = tmp_path / "rows.parquet"
    path.write_text("no parquet")
    with pytest.raises(InputError, match=r"rows\.parquet' could not be read as parquet: .*footer"):
        load_rows(str(path))
