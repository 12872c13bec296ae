"""The book and the slides, as far as they can be seen without building them; tests/e2e/read_book.py reads the whole."""

import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "scripts"))
import book  # noqa: E402
import links  # noqa: E402
import slides  # noqa: E402


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("book")
    book.lay_out(ROOT, folder)
    return folder


def texts(folder):
    return {path: path.read_text(encoding="utf-8") for path in [*folder.rglob("*.md"), *folder.rglob("*.ipynb")]}


def test_every_page_and_what_it_links_to_is_laid_out(source):
    names = {path.relative_to(source).as_posix() for path in texts(source)}
    assert {"index.md", "slides.md", "README.md", "docs/results.md", "study/protocol.md"} <= names
    assert {f"notebooks/{path.name}" for path in ROOT.glob("notebooks/*.ipynb")} <= names
    assert {f"notebooks/exercises/{path.name}" for path in ROOT.glob("notebooks/exercises/*.ipynb")} <= names
    broken = [(path.name, to) for path in texts(source) for to in book.linked_files(path) if not (path.parent / to).is_file()]
    assert broken == []


def test_every_page_is_in_the_contents(source):
    text = (source / "index.md").read_text()
    entries = [
        line
        for block in re.findall(r"```\{toctree\}\n(.+?)```", text, re.DOTALL)
        for line in block.split("\n")
        if line[:1] not in (":", "")
    ]
    found = {path.with_suffix("").relative_to(source).as_posix() for entry in entries for path in source.glob(f"{entry}.*")}
    pages = {path.with_suffix("").relative_to(source).as_posix() for path in texts(source)}
    assert pages - found == {"index"}


def test_the_set_up_cell_is_folded_and_figures_carry_their_descriptions(source):
    for path in source.rglob("*.ipynb"):
        cells = nbformat.read(path, as_version=4).cells
        assert "hide-input" in cells[1].metadata.tags
        for cell in cells:
            described = [
                out.metadata["image/png"]["alt"] for out in cell.get("outputs", []) if "image/png" in out.get("data", {})
            ]
            assert not described or cell.metadata.mystnb.image.alt in described


def test_the_books_buttons_follow_the_one_address():
    assert links.book_buttons("") == {}
    buttons = links.book_buttons("owner/name")
    assert buttons["repository_url"] == "https://github.com/owner/name"
    assert buttons["launch_buttons"] == {"colab_url": "https://colab.research.google.com"}
    assert "links.book_buttons(links.current())" in (ROOT / "docs" / "book" / "conf.py").read_text()


def test_the_lists_of_decks_are_up_to_date():
    check = subprocess.run([sys.executable, ROOT / "scripts" / "slides.py", "--check"], capture_output=True, text=True)
    assert check.returncode == 0, f"run python scripts/slides.py\n{check.stderr}"


def lesson(*cells):
    first = new_markdown_cell("# 01 · A lesson\n\nAfter it you know a thing.\n\n- **Goals**: one.")
    return slides.deck(new_notebook(cells=[first, *cells]))


def kinds(deck):
    return [(cell.metadata.slideshow.slide_type, cell.source) for cell in deck.cells]


def test_a_deck_shows_what_is_to_be_seen_and_keeps_the_words_as_notes():
    words = "## 1. Look\n\nA first sentence. **This is what really matters here.** Then $x$ and $$y = 1$$\n\n**Predict** y."
    picture = new_output("display_data", {"image/png": "AAAA\n"}, metadata={"image/png": {"alt": "a dot"}})
    drawn = new_code_cell("plot()", outputs=[picture])
    caption = new_markdown_cell("**Figure 1.** A dot. Takeaway: it is small.\n\nMore words.")
    made = kinds(lesson(new_markdown_cell(words), drawn, caption, new_markdown_cell("## Exercises\n\nDo it.")))
    assert made == [
        ("slide", "# 01 · A lesson\n\nAfter it you know a thing."),
        ("notes", "- **Goals**: one."),
        ("slide", "## 1. Look\n\nThis is what really matters here.\n\n$$y = 1$$"),
        ("notes", words.split("\n\n", 1)[1]),
        ("slide", "## 1. Look\n\n**Predict** y."),
        ("slide", '## 1. Look\n\n<img alt="a dot" src="data:image/png;base64,AAAA">\n\nIt is small.'),
    ]


def test_tags_overrule_what_a_deck_shows():
    shown = new_markdown_cell("Any words.", metadata={"tags": ["slide"]})
    hidden = new_markdown_cell("## 2. Asides\n\nA sentence.", metadata={"tags": ["no-slide"]})
    assert kinds(lesson(shown, hidden))[2:] == [("slide", "Any words.")]


def test_links_between_notebooks_lead_to_the_pages_of_the_book():
    cell = new_markdown_cell(
        "See [05](05_x.ipynb), [ours](../docs/a.md#b) and [theirs](https://arxiv.org/a.md).", metadata={"tags": ["slide"]}
    )
    (_, text) = kinds(lesson(cell))[2]
    assert (
        text == "See [05](../notebooks/05_x.html), [ours](../notebooks/../docs/a.html#b) and [theirs](https://arxiv.org/a.md)."
    )


def test_decks_ask_the_network_for_nothing(tmp_path):
    slides.write_decks([ROOT / "notebooks" / "10_playground.ipynb"], tmp_path)
    text = (tmp_path / "10_playground.html").read_text()
    assert re.findall(r"""(?:src|href)=["'](?!data:|#|\.\./_static/)([^"']+:[^"']+)["']""", text) == []
    assert "../_static/reveal/dist/reveal.js" in text and "../_static/mathjax/tex-mml-chtml.js" in text
    assert "import mermaid" not in text
