"""What can be seen of a notebook without running it: is it whole, in order, readable, and the same everywhere?"""

import ast
import re
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).parents[1]
PATHS = sorted(path for path in ROOT.glob("notebooks/**/*.ipynb") if ".ipynb_checkpoints" not in path.parts)
STUDENT = {path for path in PATHS if path.parent.name == "exercises"}  # not executed: stubs
MARKERS = re.compile(r"# NBVAL_(CHECK_OUTPUT|IGNORE_OUTPUT|SKIP|TEST_NAME: .+)")
FIGURE = re.compile(r"\*\*Figure (\d+)\.\*\* \S")

every_notebook = pytest.mark.parametrize("path", PATHS, ids=lambda path: str(path.relative_to(ROOT / "notebooks")))
executed_notebook = pytest.mark.parametrize(
    "path", [path for path in PATHS if path not in STUDENT], ids=lambda path: str(path.relative_to(ROOT / "notebooks"))
)


def read(path):
    return nbformat.read(path, as_version=4)


def code_of(path):
    return [cell for cell in read(path).cells if cell.cell_type == "code"]


def python_of(cell):
    """A code cell as Python: IPython's lines (%magic, !command) become pass."""
    return re.sub(r"^(\s*)[%!].*$", r"\1pass", cell.source, flags=re.M)


def images_of(cell):
    """(kind, metadata) of each picture that a code cell put out."""
    return [
        (kind, output.metadata.get(kind, {}))
        for output in cell.outputs
        for kind in output.get("data", {})
        if kind.startswith("image/")
    ]


def test_there_are_notebooks():
    assert len(PATHS) > len(STUDENT) > 0


@every_notebook
def test_it_is_a_valid_notebook_of_at_most_1_mb(path):
    nbformat.validate(read(path))
    assert path.stat().st_size <= 1_000_000
    metadata = read(path).metadata
    assert metadata.kernelspec.name == "python3"
    assert "widgets" not in metadata, "GitHub shows such notebooks as invalid"
    assert "jupytext" not in metadata


@executed_notebook
def test_it_was_executed_from_top_to_bottom_without_an_error(path):
    cells = [cell for cell in code_of(path) if cell.source.strip()]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    for cell in cells:
        allowed = "raises-exception" in cell.metadata.get("tags", [])
        errors = [output.evalue for output in cell.outputs if output.output_type == "error"]
        assert allowed or not errors, f"{cell.source[:60]!r}: {errors}"


@every_notebook
def test_it_begins_with_title_and_what_it_takes(path):
    first = read(path).cells[0]
    assert first.cell_type == "markdown"
    assert re.match(rf"# {path.name[:2]} · \S", first.source)
    for part in ("**Goals**", "**You need**", "**Time**", "**Hardware**"):
        assert part in first.source


@every_notebook
def test_the_set_up_cell_comes_before_the_imports_and_has_no_output(path):
    first = code_of(path)[0]
    assert read(path).cells[1] == first
    assert first.source.startswith('import sys\n\nif "google.colab" in sys.modules:')
    assert first.metadata.tags == ["nbval-skip"]
    assert first.outputs == []


@every_notebook
def test_its_code_is_python_in_cells_of_at_most_25_lines(path):
    for cell in code_of(path):
        ast.parse(python_of(cell))
        assert cell.source.count("\n") < 25, cell.source[:60]
        assert not cell.source.rstrip().endswith(";"), "nbval shows what a trailing ; hides: use _ = or plots.show(alt)"
        for forbidden in ("clear_output", "tqdm.notebook", "ipywidgets"):
            assert forbidden not in cell.source, "GitHub and nbval show none of these"


@every_notebook
def test_markers_of_nbval_are_lines_of_their_own(path):
    for cell in code_of(path):
        for line in cell.source.split("\n"):
            assert "NBVAL_" not in line or MARKERS.fullmatch(line), f"nbval does not see {line!r}"


@executed_notebook
def test_a_description_follows_every_figure(path):
    cells = read(path).cells
    numbers = []
    for cell, after in zip(cells, [*cells[1:], None], strict=True):
        if cell.cell_type == "code" and images_of(cell):
            assert after is not None and after.cell_type == "markdown", f"nothing follows the figure of {cell.source[:60]!r}"
            match = FIGURE.match(after.source)
            assert match, f"no **Figure N.** after {cell.source[:60]!r}"
            assert len(after.source.split()) >= 15, "a description and a takeaway need more words"
            assert "Takeaway: " in after.source, f"no takeaway below the figure of {cell.source[:60]!r}"
            numbers.append(int(match[1]))
    assert numbers == list(range(1, len(numbers) + 1))
    described = [cell for cell in cells if cell.cell_type == "markdown" and FIGURE.match(cell.source)]
    assert len(described) == len(numbers), "a description without a figure"


@executed_notebook
def test_every_figure_carries_a_description_for_screen_readers(path):
    for cell in code_of(path):
        assert "plt.show" not in cell.source, f"plots.show(alt) saves a description as well: {cell.source[:60]!r}"
        for kind, metadata in images_of(cell):
            assert len(metadata.get("alt", "").split()) >= 5, f"a {kind} without a description: {cell.source[:60]!r}"


@every_notebook
def test_its_links_to_files_of_the_project_lead_somewhere(path):
    for cell in read(path).cells:
        if cell.cell_type == "markdown":
            for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", cell.source):
                assert (path.parent / target).exists(), f"{target} is not there"


@every_notebook
def test_every_detail_that_unfolds_folds_again(path):
    text = "\n".join(cell.source for cell in read(path).cells if cell.cell_type == "markdown")
    assert text.count("<details>") == text.count("</details>") == text.count("<summary>") == text.count("</summary>")


@executed_notebook
def test_a_teaching_notebook_has_its_parts_and_asserts(path):
    number = int(path.name[:2])
    cells = read(path).cells
    assert any("assert" in cell.source or "check_" in cell.source for cell in cells if cell.cell_type == "code")
    if path.parent.name == "notebooks" and 1 <= number <= 6:
        headings = [line for cell in cells if cell.cell_type == "markdown" for line in cell.source.split("\n")]
        for part in ("## How this breaks", "## Exercises", "## Recap", "## Further reading"):
            assert any(line.startswith(part) for line in headings), part
        assert any("**Predict" in line for line in headings)


def test_the_map_gives_the_minutes_that_each_notebook_gives():
    text = "\n".join(cell.source for cell in read(ROOT / "notebooks" / "00_start_here.ipynb").cells)
    planned = {number: int(minutes) for number, minutes in re.findall(r"(?m)^\| (\d\d) \|.*\| (\d+) \|$", text)}
    course = [path for path in PATHS if path.parent.name == "notebooks"]
    assert sorted(planned) == sorted(path.name[:2] for path in course)
    for path in course:
        said = re.search(r"\*\*Time\*\*: (\d+) minutes", read(path).cells[0].source)
        assert said and planned[path.name[:2]] == int(said[1]), path.name


GUIDE = (ROOT / "docs" / "instructor-guide.md").read_text()


def test_the_instructor_guide_points_at_files_figures_and_sections_that_exist():
    for target in re.findall(r"\]\(([^)#:]+)\)", GUIDE):
        assert (ROOT / "docs" / target).exists(), target
    for target, said in re.findall(r"\]\(\.\./(notebooks/[\w./]+)\)([^|\[\n]*)", GUIDE):
        text = "\n".join(cell.source for cell in read(ROOT / target).cells if cell.cell_type == "markdown")
        for kind, there in (("Figure", r"\*\*Figure {}\.\*\*"), ("section", r"(?m)^## {}\. ")):
            for numbers in re.findall(rf"{kind}s? (\d+(?:(?: and | to |, )\d+)*)", said):
                for number in re.findall(r"\d+", numbers):
                    assert re.search(there.format(number), text), f"{target} has no {kind} {number}"


def test_the_instructor_guide_names_exercises_that_exist():
    for chapter, number in set(re.findall(r"\b(0[1-6])\.(\d)\b", GUIDE)):
        (path,) = ROOT.glob(f"notebooks/exercises/{chapter}_*.ipynb")
        assert f"## {number}. " in path.read_text(), f"there is no exercise {chapter}.{number}"
