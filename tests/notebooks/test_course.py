"""What the course promises its reader: short cells, cells to write in, predictions, quizzes, and minutes that are true."""

import re
from itertools import pairwise
from pathlib import Path

import nbformat
import pytest

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
COURSE = sorted(NOTEBOOKS.glob("0*.ipynb"))
EVERY = [*COURSE, *sorted(NOTEBOOKS.glob("exercises/**/0*.ipynb"))]
SOLUTIONS = sorted(NOTEBOOKS.glob("exercises/solutions/*.ipynb"))
FOLDED = re.compile(r"<details><summary>(.+?)</summary>\n\n(.+?)\n\n</details>", re.DOTALL)

every_notebook = pytest.mark.parametrize("path", EVERY, ids=lambda path: str(path.relative_to(NOTEBOOKS)))
course_notebook = pytest.mark.parametrize("path", COURSE, ids=lambda path: path.stem)


def cells_of(path):
    return nbformat.read(path, as_version=4).cells


def prose_of(path):
    return [cell.source for cell in cells_of(path) if cell.cell_type == "markdown"]


def written_cells(path):
    """(code cell, the markdown below it) where the reader writes a function before the page shows it."""
    cells = cells_of(path)
    pairs = pairwise(cells)
    return [(cell, after) for cell, after in pairs if cell.cell_type == "code" and "# your code here\n" in cell.source]


@every_notebook
def test_no_cell_of_prose_is_above_180_words(path):
    assert [(len(text.split()), text[:50]) for text in prose_of(path) if len(text.split()) > 180] == []


def test_notebook_07_is_read_in_a_quarter_of_an_hour():
    assert sum(len(text.split()) for text in prose_of(NOTEBOOKS / "07_does_it_help.ipynb")) <= 2000


@course_notebook
def test_the_reader_writes_functions_before_the_page_shows_them(path):
    written = written_cells(path)
    assert len(written) >= (2 if 1 <= int(path.name[:2]) <= 6 else 1)
    for cell, below in written:
        (name,) = re.findall(r"^def my_(\w+)\(", cell.source, flags=re.MULTILINE)
        assert f"written(my_{name}, check_{name})" in cell.source
        folds = FOLDED.findall(below.source)
        assert [title for title, _ in folds] == ["Hint", "Solution"], name
        assert f"def my_{name}(" in folds[1][1], name
        before = [c.source for c in cells_of(path) if c.cell_type == "code"]
        assert sum(f"def {name}(" in source for source in before[: before.index(cell.source)]) == 0, f"{name} is shown above"


def test_there_are_at_least_24_graded_exercises():
    asked = sum(cell.source.count("### BEGIN SOLUTION") for path in SOLUTIONS for cell in cells_of(path))
    assert asked + sum(len(written_cells(path)) for path in COURSE) >= 24


@every_notebook
def test_a_prediction_is_a_variable_and_is_shown_beside_the_truth(path):
    cells = cells_of(path)
    shown = "\n".join(cell.source for cell in cells if cell.cell_type == "code")
    for place, cell in enumerate(cells):
        if cell.cell_type == "markdown" and "**Predict" in cell.source:
            near = [after.source for after in cells[place + 1 : place + 8] if after.cell_type == "code"]
            assert any("# your prediction" in source for source in near), cell.source[-120:]
    for line in re.findall(r"^(.+) = .+# your prediction", shown, flags=re.MULTILINE):
        for name in line.split(", "):
            assert len(re.findall(rf"\b{name}\b", shown)) >= 2, f"{name} is never shown"
    assert shown.count("# your prediction") <= shown.count("predicted(")


@every_notebook
def test_what_is_asked_to_think_about_has_a_folded_answer(path):
    for text in prose_of(path):
        if re.search(r"to think about|think further", text, re.IGNORECASE) and re.search(r"(?m)^(1\.|-) ", text):
            assert "Answers" in [title for title, _ in FOLDED.findall(text)], text[:80]


@course_notebook
def test_it_ends_with_a_quiz_whose_choices_are_all_explained(path):
    text = "\n\n".join(prose_of(path))
    quiz = text[text.index("## Quiz") :]
    questions = re.split(r"\*\*Question \d\.\*\*", quiz)[1:]
    assert len(questions) == 4
    for question in questions:
        told = [answer.split(":")[0].split(".")[0] for title, answer in FOLDED.findall(question) if title[1:3] == ". "]
        assert len(told) >= 3 and sorted(set(told)) == ["Right", "Wrong"] and told.count("Right") == 1, question[:60]
    earlier = [int(n) for n in re.findall(r"From notebook (\d\d):", quiz)]
    assert path.name[:2] == "00" or [n < int(path.name[:2]) for n in earlier] == [True]


@course_notebook
def test_its_minutes_are_those_of_reading_computing_and_writing(path):
    texts = prose_of(path)
    found = re.search(
        r"\*\*Time\*\*: (\d+) minutes: (\d+) to read, (\d+) to compute, (\d+) to write, predict and answer", texts[0]
    )
    assert found, texts[0]
    total, read, compute, write = map(int, found.groups())
    assert abs(read - sum(len(text.split()) for text in texts) / 130) <= 1
    assert total == read + compute + write
    assert write >= 10 * len(written_cells(path))
