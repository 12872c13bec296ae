"""Make the student notebooks from the solution notebooks: python scripts/make_exercises.py.

The solutions in notebooks/exercises/solutions are the single source. In the student's copy, what stands between the two
solution marks (nbgrader's) becomes `raise NotImplementedError` and is shown folded below its cell; outputs are dropped.
"""

import textwrap
from pathlib import Path

import nbformat
from nbformat import NotebookNode

EXERCISES = Path(__file__).parents[1] / "notebooks" / "exercises"
BEGIN, END = "### BEGIN SOLUTION", "### END SOLUTION"
RENAMED = {"Exercises with solutions:": "Exercises:", "/exercises/solutions/": "/exercises/", "](../../": "](../"}
FOLDED = "<details><summary>Solution</summary>\n\n```python\n{}\n```\n\n</details>"


def stub(source: str) -> tuple[str, str]:
    """A solution cell's source without its solution, and the whole function with it."""
    head, rest = source.split(BEGIN)
    solution, tail = rest.split(END)
    indent = head[head.rindex("\n") + 1 :]
    student = f"{head}raise NotImplementedError  # your code here{tail}"
    return student, head.removesuffix(indent) + solution.strip("\n").removesuffix(indent).rstrip() + tail


def student_cells(cell: NotebookNode) -> list[NotebookNode]:
    """What becomes of one cell of the solution notebook: itself, or a stub and the folded solution."""
    if cell.cell_type == "markdown":
        for ours, theirs in RENAMED.items():
            cell.source = cell.source.replace(ours, theirs)
        return [cell]
    cell.outputs, cell.execution_count = [], None
    cell.source = cell.source.removeprefix("# NBVAL_CHECK_OUTPUT\n")
    if BEGIN not in cell.source:
        return [cell]
    cell.source, solution = stub(cell.source)
    folded = nbformat.v4.new_markdown_cell(FOLDED.format(textwrap.dedent(solution)), id=f"{cell.id}-solution")
    return [cell, folded]


def student_notebook(solutions: Path) -> str:
    """The student notebook of a solution notebook, as the text of its file."""
    notebook = nbformat.read(solutions, as_version=4)
    notebook.cells = [made for cell in notebook.cells for made in student_cells(cell)]
    notebook.metadata.language_info = {"name": "python"}  # without the version that last ran the solutions
    return nbformat.writes(notebook) + "\n"


def main() -> None:
    """Write every student notebook."""
    for solutions in sorted(EXERCISES.glob("solutions/*.ipynb")):
        target = EXERCISES / solutions.name
        target.write_text(student_notebook(solutions))
        print(target)


if __name__ == "__main__":
    main()
