"""Move a slider of notebook 10 in JupyterLab in a real browser, and press a token: each time the picture must change.

A screenshot of the page after both is kept in build/screenshots. Needs what run_notebooks.py needs.
"""

import sys
import tempfile
from pathlib import Path

from playwright.sync_api import Locator, Page, sync_playwright
from run_notebooks import FLAGS, ROOT, copy_without_outputs, find_chromium, jupyterlab, keep_screenshot, run_all

NOTEBOOK = ROOT / "notebooks" / "10_playground.ipynb"


def picture(explorer: Locator) -> Locator:
    """The picture of one explorer."""
    return explorer.locator(".jp-OutputArea img").first


def wait_for_another(page: Page, explorer: Locator, before: str) -> None:
    """Wait until the explorer shows another picture than `before`."""
    for _ in range(120):
        now = picture(explorer)
        if now.count() and now.get_attribute("src") != before:
            return
        page.wait_for_timeout(250)
    raise AssertionError("the picture did not change within 30 s")


def main() -> int:
    """Run the playground, move and press; 1 if a cell fails or a picture stays."""
    with tempfile.TemporaryDirectory() as temporary, sync_playwright() as playwright:
        (name,) = copy_without_outputs([NOTEBOOK], Path(temporary))
        browser = playwright.chromium.launch(executable_path=find_chromium(), args=FLAGS)
        with jupyterlab(Path(temporary)) as (address, token):
            page = browser.new_page()
            errors = run_all(page, f"{address}/lab/workspaces/slider/tree/{name}?token={token}")
            if not errors:
                explorers = page.locator(".jp-Notebook .jp-CodeCell", has=page.locator(".widget-box"))
                heatmap, distributions, *_ = (explorers.nth(number) for number in range(explorers.count()))
                before = picture(heatmap).get_attribute("src")
                heatmap.locator(".noUi-handle").first.press("ArrowRight")
                wait_for_another(page, heatmap, before)
                before = picture(distributions).get_attribute("src")
                distributions.locator(".widget-toggle-button").nth(5).click()
                wait_for_another(page, distributions, before)
            keep_screenshot(page, "playground-moved")
        browser.close()
    print("\n".join(errors) or "passed  a slider and a token change the picture")
    return int(bool(errors))


if __name__ == "__main__":
    sys.exit(main())
