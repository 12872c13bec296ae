"""What sphinx must know to make the book; `make book` calls it by way of scripts/book.py, which lays the pages out."""

import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "build" / "book" / "source"  # laid out by scripts/book.py
sys.path.insert(0, str(ROOT / "scripts"))
import links  # noqa: E402

project = "CPPO, by hand"
author = "the authors of cppo_ref"
language = "en"
extensions = ["myst_nb"]
nb_execution_mode = "off"  # the notebooks are committed with their outputs
nb_merge_streams = True
nb_code_prompt_show = "Set-up for Colab"  # the one kind of cell that is folded
myst_enable_extensions = ["dollarmath", "amsmath"]
myst_heading_anchors = 4
exclude_patterns = ["_static", "_extra"]

html_theme = "sphinx_book_theme"
html_title = project
html_static_path = [str(SOURCE / "_static")]
html_extra_path = [str(SOURCE / "_extra")]  # the slides
html_copy_source = True  # the download button gives the notebook
html_show_sphinx = False
html_show_search_summary = False  # it would fetch pages, which a browser refuses for files on disk
mathjax_path = "mathjax/tex-mml-chtml.js"  # beside the pages: no network
html_theme_options = {
    "home_page_in_toc": True,
    "show_navbar_depth": 1,
    "navbar_persistent": [],  # search is in the sidebar
    "use_download_button": True,
    "use_fullscreen_button": False,
    **links.book_buttons(links.current()),
}
