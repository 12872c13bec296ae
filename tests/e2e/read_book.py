"""Read the book that `make book` wrote in a real browser, from disk and without network, with and without JavaScript.

Formulas are set, search finds, links lead somewhere, nothing is asked of the network, slides turn. Screenshots are kept in
build/screenshots. Needs Debian's chromium (or CHROMIUM=/path/to/it).
"""

import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from urllib.parse import unquote, urlsplit

from playwright.sync_api import Browser, Page, sync_playwright
from run_notebooks import FLAGS, ROOT, SCREENSHOTS, find_chromium

BOOK = ROOT / "build" / "book" / "html"
CHAPTER = "notebooks/04_perception_tokens.html"


class Links(HTMLParser):
    """What a page links to or loads, and the names that others can link to."""

    def __init__(self, text: str):
        super().__init__()
        self.targets: set[str] = set()
        self.names: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note the targets and the names of a tag."""
        values = dict(attrs)
        self.targets |= {values[name] or "" for name in ("href", "src") if name in values and tag != "iframe"}
        self.names |= {value for name, value in attrs if name in ("id", "name") and value}


def broken_links() -> Iterator[str]:
    """Every link within the book that leads to no file, or to no place in it."""
    pages = {
        path.resolve(): Links(path.read_text(encoding="utf-8")) for path in BOOK.rglob("*.html") if "_static" not in path.parts
    }
    for path, links in pages.items():
        for target in links.targets:
            parts = urlsplit(target)
            if parts.scheme or parts.netloc or target in ("", "#"):
                continue
            file = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            fragment = unquote(parts.fragment)
            if not file.is_file() or (
                fragment and file in pages and not fragment.startswith("/") and fragment not in pages[file].names
            ):
                yield f"{path.relative_to(BOOK)}: {target}"


def open_page(browser: Browser, name: str, problems: list[str], *, javascript: bool = True) -> Page:
    """Open a page of the book; whatever fails on it, or asks the network, is added to `problems`."""
    page = browser.new_context(java_script_enabled=javascript, viewport={"width": 1280, "height": 1000}).new_page()
    page.on("pageerror", lambda error: problems.append(f"{name}: {error}"))
    if javascript:  # else every script counts as failed
        page.on("requestfailed", lambda request: problems.append(f"{name}: could not load {request.url}"))
    page.on(
        "request", lambda request: request.url.startswith(("file:", "data:")) or problems.append(f"{name}: asks {request.url}")
    )
    page.goto((BOOK / name.split("?")[0]).as_uri() + "".join(name.partition("?")[1:]))
    page.wait_for_load_state("load")
    return page


def expect(ok: object, what: str, problems: list[str]) -> None:
    """Note `what` as a problem unless `ok`."""
    if not ok:
        problems.append(what)


def shoot(page: Page, name: str) -> None:
    """Keep what is on the screen as build/screenshots/NAME.png."""
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SCREENSHOTS / f"{name}.png")


def read(browser: Browser) -> list[str]:
    """Everything that is wrong with the book."""
    problems = [f"leads nowhere: {link}" for link in broken_links()]
    page = open_page(browser, "index.html", problems)
    page.wait_for_timeout(500)
    shoot(page, "book-index")
    page = open_page(browser, CHAPTER, problems)
    page.wait_for_selector("mjx-container", timeout=30_000)
    expect(page.locator("mjx-container").count() > 10, "formulas are not set", problems)
    expect(page.locator("a[href$='.ipynb'][download], a[href$='.ipynb']").count(), "no button to download", problems)
    expect(page.locator(".cell_output img:not([alt])").count() == 0, "figures without a description", problems)
    shoot(page, "book-chapter")
    page.locator(".cell_output img").first.scroll_into_view_if_needed()
    page.wait_for_timeout(500)
    shoot(page, "book-figure")
    page = open_page(browser, "search.html?q=entropy", problems)
    page.wait_for_selector("#search-results li a", timeout=30_000)
    shoot(page, "book-search")
    page = open_page(browser, CHAPTER, problems, javascript=False)
    for words in ("Perception tokens", "the entropy shift", "Figure 1."):
        expect(page.get_by_text(words).first.is_visible(), f"without JavaScript {words!r} is not to be seen", problems)
    expect(page.locator("nav a", has_text="GRPO by hand").first.is_visible(), "no contents without JavaScript", problems)
    shoot(page, "book-without-javascript")
    page = open_page(browser, "slides/04_perception_tokens.html", problems)
    page.wait_for_selector(".reveal.ready", timeout=30_000)
    for turn in range(1, 9):
        page.keyboard.press("ArrowRight")
        page.wait_for_url(f"**#/{turn}", timeout=10_000)
        if turn in (1, 8):
            page.wait_for_timeout(500)
            shoot(page, f"slide-{turn}")
    return problems


def main() -> int:
    """1 if anything is wrong with the book."""
    if not BOOK.exists():
        sys.exit("e2e: there is no book: run make book first")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_chromium(), args=FLAGS)
        problems = read(browser)
        browser.close()
    print("\n".join(problems) or "passed  the book, read in a browser")
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main())
