"""Marked blocks of Markdown pages that scripts write: <!-- name: script --> … <!-- end -->."""

import argparse
import re
from collections.abc import Callable, Mapping
from pathlib import Path


def filled(text: str, script: str, blocks: Mapping[str, Callable[[], str]]) -> str:
    """The page with every block of `script` written anew; KeyError for a block that the script does not know."""

    def write(match: re.Match) -> str:
        return f"{match[1]}{blocks[match[2]]()}\n{match[3]}"

    return re.sub(rf"(<!-- ([^:>]+): {script} -->\n).*?(<!-- end -->)", write, text, flags=re.DOTALL)


def write_or_check(pages: Mapping[Path, str], description: str | None) -> int:
    """Write the pages; with --check on the command line, only compare. The exit status: 1 if a page was not up to date."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    if parser.parse_args().check:
        return int(any(page.read_text() != text for page, text in pages.items()))
    for page, text in pages.items():
        page.write_text(text)
    return 0
