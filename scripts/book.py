"""Make the book: the committed notebooks and pages as a site in build/book/html, and a deck of slides for each notebook.

No notebook is run, and no network is needed, neither to build nor to read: MathJax and reveal.js come from packages.
"""

import re
import shutil
import subprocess
import sys
from importlib.metadata import distribution
from pathlib import Path

import nbformat
import slides

ROOT = Path(__file__).parents[1]
BOOK = ROOT / "build" / "book"
PAGES = ("README.md", "docs/*.md", "study/*.md", "notebooks/*.ipynb", "notebooks/exercises/*.ipynb")
LINK = re.compile(r"\]\((?!\w+:)([^)#\s]+)[^)\s]*\)")
OWN = {"index.md": "docs/book/index.md", "slides.md": "docs/book/slides.md"}  # pages of the book's own
VENDORED = {  # what the pages load in a reader's browser: package -> its folder, what is taken of it, where it goes
    "sphinx-mathjax-offline": (
        "sphinx-mathjax-offline/static/mathjax",
        ("tex-mml-chtml.js", "output/chtml"),
        "_static/mathjax",
    ),
    "sphinx-revealjs": (
        "sphinx_revealjs/_static/revealjs",
        (
            "dist/reveal.js",
            "dist/reveal.css",
            "dist/theme/white.css",
            "dist/theme/fonts/source-sans-pro",
            "plugin/notes",
            "LICENSE",
        ),
        "_static/reveal",
    ),
}


def lay_out(root: Path, folder: Path) -> None:
    """Copy the pages into `folder`, the links between them as they are, and every file of the project that they link to."""
    pages = {path.relative_to(root).as_posix(): path for pattern in PAGES for path in sorted(root.glob(pattern))}
    pages |= {name: root / source for name, source in OWN.items()}
    for name, path in pages.items():
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        text = page(path)
        target.write_text(text, encoding="utf-8")
        for linked in linked_files(path):
            source, copy = root / Path(name).parent / linked, target.parent / linked
            if source.is_file() and not copy.exists() and source.suffix not in (".md", ".ipynb"):
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(source, copy)


def linked_files(path: Path) -> list[str]:
    """The files that a page links to or shows, as paths from its folder."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".ipynb":
        text = "\n".join(cell.source for cell in nbformat.reads(text, as_version=4).cells if cell.cell_type == "markdown")
    return LINK.findall(text)


def page(path: Path) -> str:
    """The text of a page; a notebook's set-up cell is folded, and its figures carry their descriptions as HTML does."""
    if path.suffix != ".ipynb":
        return path.read_text(encoding="utf-8").replace(
            "](notebooks/exercises)", "](notebooks/exercises/01_rollouts_and_rewards.ipynb)"
        )
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            if "nbval-skip" in cell.metadata.get("tags", []):
                cell.metadata.tags.append("hide-input")
            for output in cell.outputs:
                if alt := output.get("metadata", {}).get("image/png", {}).get("alt"):
                    cell.metadata["mystnb"] = {"image": {"alt": alt}}
    return nbformat.writes(notebook)


def vendor(folder: Path) -> None:
    """Copy what the pages load in a browser out of the installed packages."""
    for package, (inside, names, place) in VENDORED.items():
        for name in names:
            source, target = Path(str(distribution(package).locate_file(inside))) / name, folder / place / name
            target.parent.mkdir(parents=True, exist_ok=True)
            (shutil.copytree if source.is_dir() else shutil.copy)(source, target)


def main() -> int:
    """Build the book from scratch; 1 on any warning, a link that leads nowhere among them."""
    shutil.rmtree(BOOK, ignore_errors=True)
    source = BOOK / "source"
    lay_out(ROOT, source)
    vendor(source)
    slides.write_decks(slides.NOTEBOOKS, source / "_extra" / "slides")
    options = ["-W", "--keep-going", "-q", "-b", "html", "-c", str(ROOT / "docs" / "book")]
    command = [sys.executable, "-m", "sphinx", *options, "-d", str(BOOK / "doctrees"), str(source), str(BOOK / "html")]
    status = subprocess.run(command, check=False).returncode
    print(f"{BOOK / 'html' / 'index.html'}" if status == 0 else "the book has warnings: see above")
    return status


if __name__ == "__main__":
    sys.exit(main())
