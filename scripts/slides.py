"""Slides for lecturers: one deck per notebook, made of what it says already, so that nothing is written twice.

Slides are the title, each section's heading with its equations, each **Predict**, each figure with its takeaway, and the recap.
A section's other words are the notes of its slide: press S in the deck. Tags of a cell overrule this: `slide` makes the whole
cell a slide, `no-slide` leaves it out. `make book` writes the decks; python scripts/slides.py lists them on lecturers' pages.
"""

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import nbformat
from blocks import filled, write_or_check
from nbconvert.exporters import SlidesExporter
from nbformat.notebooknode import NotebookNode
from nbformat.v4 import new_markdown_cell, new_notebook

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted(ROOT.glob("notebooks/[0-9]*.ipynb"))
TEMPLATES = ROOT / "docs" / "book"
MINUTES = 1.5  # planned for a slide
LEFT_OUT = ("Exercises", "Further reading", "Check yourself", "Quiz")  # sections that are not for a lecture
EQUATION = re.compile(r"\$\$.+?\$\$", re.DOTALL)
PREDICT = re.compile(r"^(?:.*\S )?\*\*Predict.*$", re.MULTILINE)
BOLD = re.compile(r"\*\*(?!Predict|Figure)(.+?)\*\*")
SENTENCE = re.compile(r"\A[^#|*$\n<-].*?[.!?](?=\s|\Z)")
LINK = re.compile(r"\]\((?!\w+:|#)([^)\s]+?)\.(?:ipynb|md)(#[^)\s]*)?\)")  # to another page of the book
TAKEAWAY = re.compile(r"Takeaway: (.+)", re.DOTALL)


def deck(notebook: NotebookNode) -> NotebookNode:
    """The slides of a notebook, as a notebook whose cells say where a slide begins and what is a note."""
    slides = list(title_slide(notebook.cells[0].source))
    section, figure = "", ""
    for cell in notebook.cells[1:]:
        tags = cell.metadata.get("tags", [])
        if cell.cell_type == "code":
            figure = "".join(images(cell)) if "no-slide" not in tags else ""
            continue
        section = (re.findall(r"^## (.+)$", cell.source, re.MULTILINE) or [section])[-1]
        if "slide" in tags:
            slides.append(slide(cell.source))
        elif "no-slide" not in tags and not section.startswith(LEFT_OUT):
            takeaway = TAKEAWAY.search(cell.source)
            if figure and takeaway:
                message = takeaway[1].split("\n\n")[0]
                slides.append(slide(f"## {section}\n\n{figure}\n\n{message[0].upper()}{message[1:]}"))
            slides += text_slides(cell.source, section)
        figure = ""
    for cell in slides:
        cell.source = LINK.sub(r"](../notebooks/\1.html\2)", cell.source)
    return new_notebook(cells=slides, metadata=notebook.metadata)


def title_slide(source: str) -> Iterator[NotebookNode]:
    """Title and promise of the first cell; its list is for the notes."""
    title, promise, *rest = [part for part in source.split("\n\n") if not part.startswith("[![")]
    yield slide(f"{title}\n\n{promise}")
    yield note("\n\n".join(rest))


def text_slides(source: str, section: str) -> Iterator[NotebookNode]:
    """A slide for each section that begins in this cell, with its equations; one for each prediction; the words as notes."""
    for part in re.split(r"(?m)^(?=## )", source):
        heading = re.match(r"## (.+)", part)
        body = part[heading.end() :].strip() if heading else part
        title = heading[1] if heading else section
        if title.startswith(LEFT_OUT):
            continue
        if heading:
            shown = body if title.startswith("Recap") else essence(body)
            yield slide(f"## {title}\n\n{shown}")
        if body and not body.startswith("**Figure"):
            yield note(body)
        for question in PREDICT.findall(body):
            yield slide(f"## {title}\n\n{question}")


def essence(body: str) -> str:
    """What a slide shows of a section's words: what is set in bold, or else the first sentence, and the equations."""
    words = [bold for bold in BOLD.findall(body) if len(bold.split()) >= 5] or SENTENCE.findall(body)
    return "\n\n".join([*words, *EQUATION.findall(body)])


def images(cell: NotebookNode) -> Iterator[str]:
    """The pictures of a code cell, each as HTML that carries it along."""
    for output in cell.outputs:
        if picture := output.get("data", {}).get("image/png"):
            alt = output.metadata.get("image/png", {}).get("alt", "")
            yield f'<img alt="{alt}" src="data:image/png;base64,{"".join(picture.split())}">'


def slide(source: str) -> NotebookNode:
    """A cell that begins a slide."""
    return new_markdown_cell(source, metadata={"slideshow": {"slide_type": "slide"}})


def note(source: str) -> NotebookNode:
    """A cell for the lecturer's eyes."""
    return new_markdown_cell(source, metadata={"slideshow": {"slide_type": "notes"}})


def write_decks(paths: list[Path], folder: Path) -> None:
    """Write a deck for each notebook as `folder`/NAME.html; it expects reveal.js and MathJax in ../_static."""
    exporter = SlidesExporter(
        reveal_url_prefix="../_static/reveal",
        reveal_theme="white",
        exclude_anchor_links=True,
        template_name="slides",
        extra_template_basedirs=[str(TEMPLATES)],
    )
    folder.mkdir(parents=True, exist_ok=True)
    for path in paths:
        html, _ = exporter.from_notebook_node(deck(nbformat.read(path, as_version=4)), {"metadata": {"name": path.stem}})
        (folder / f"{path.stem}.html").write_text(html, encoding="utf-8")


def lengths() -> dict[Path, int]:
    """Notebook -> the number of its slides."""
    decks = {path: deck(nbformat.read(path, as_version=4)) for path in NOTEBOOKS}
    return {path: sum(c.metadata.slideshow.slide_type == "slide" for c in cells.cells) for path, cells in decks.items()}


def table() -> str:
    """For the instructor guide: notebook, slides, minutes."""
    head = ["| deck | slides | minutes |", "|---|---|---|"]
    rows = [f"| [{p.stem[:2]}](../notebooks/{p.name}) | {n} | {5 * round(MINUTES * n / 5)} |" for p, n in lengths().items()]
    return "\n".join(head + rows)


def list_of_links() -> str:
    """For the book: a link to each deck."""
    return "\n".join(f'- <a href="slides/{path.stem}.html">{path.stem[:2]} · {title_of(path)}</a>' for path in NOTEBOOKS)


def title_of(path: Path) -> str:
    """A notebook's title without its number."""
    return nbformat.read(path, as_version=4).cells[0].source.split("\n")[0].split(" · ")[1]


def main() -> int:
    """Write the lists; with --check, 1 if one is out of date."""
    blocks = {"decks": table, "links": list_of_links}
    pages = [ROOT / "docs" / "instructor-guide.md", TEMPLATES / "slides.md"]
    return write_or_check({page: filled(page.read_text(), "scripts/slides.py", blocks) for page in pages}, __doc__)


if __name__ == "__main__":
    sys.exit(main())
