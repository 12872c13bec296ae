"""Run notebooks in JupyterLab in a real browser: python tests/e2e/run_notebooks.py [NOTEBOOK …], all by default.

Starts JupyterLab on copies without outputs, opens each notebook in headless Chromium, runs all cells, and fails on any error
output. A screenshot of each page is kept in build/screenshots. Needs Debian's chromium (or CHROMIUM=/path/to/it).
"""

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import nbformat
from playwright.sync_api import Page, TimeoutError, sync_playwright

ROOT = Path(__file__).parents[2]
SCREENSHOTS = ROOT / "build" / "screenshots"
SECONDS = 300  # for one notebook
TALLEST = 16_000  # pixels; Chromium draws no taller page
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
FLAGS += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
SETTINGS = {  # every cell on the page, not only the visible ones; no questions; no news from the network
    "notebook-extension/tracker": {"windowingMode": "none", "autoStartDefaultKernel": True},
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
}
# Finished: every cell with code has a number at its left, or one of them failed.
FINISHED = """() => {
  const errors = document.querySelectorAll('.jp-Notebook [data-mime-type="application/vnd.jupyter.error"]');
  const cells = [...document.querySelectorAll('.jp-Notebook .jp-CodeCell')];
  const numbers = cells.map(cell => cell.querySelector('.jp-InputPrompt').textContent);
  return errors.length > 0 || (cells.length > 0 && numbers.every(number => /^\\[\\d+\\]:$/.test(number)));
}"""
ERRORS = '.jp-Notebook [data-mime-type="application/vnd.jupyter.error"]'
TO_THE_TOP = """() => {
  const panel = document.querySelector('.jp-Notebook .jp-WindowedPanel-outer');
  panel.scrollTop = 0;
  return panel.scrollHeight;
}"""


def find_chromium() -> str:
    """Where Chromium is; leaves with one sentence if it is nowhere."""
    candidates = [os.environ.get("CHROMIUM"), shutil.which("chromium"), "/usr/bin/chromium"]
    for candidate in candidates:
        if candidate and Path(candidate).exists():
            return candidate
    sys.exit("e2e: no chromium found: apt-get install -y chromium, or set CHROMIUM to a Chromium or Chrome binary")


def copy_without_outputs(paths: list[Path], folder: Path) -> list[str]:
    """Copy notebooks, outputs dropped, into `folder`; their paths in it."""
    names = []
    for path in paths:
        notebook = nbformat.read(path, as_version=4)
        for cell in notebook.cells:
            if cell.cell_type == "code":
                cell.outputs, cell.execution_count = [], None
        name = path.resolve().relative_to(ROOT / "notebooks")
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(notebook, folder / name)
        names.append(str(name))
    return names


@contextmanager
def jupyterlab(folder: Path) -> Iterator[tuple[str, str]]:
    """JupyterLab on `folder`; its address and token. It ends with the context."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    settings = folder / ".settings"
    for name, values in SETTINGS.items():
        file = settings / "@jupyterlab" / f"{name}.jupyterlab-settings"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(values))
    address, token = f"http://127.0.0.1:{port}", secrets.token_hex(16)
    options = ["--no-browser", "--ip=127.0.0.1", f"--port={port}", "--ServerApp.port_retries=0"]
    options += [f"--IdentityProvider.token={token}", f"--ServerApp.root_dir={folder}"]
    options += ["--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate"]
    options += ["--allow-root"] if os.geteuid() == 0 else []
    # a workspace of this run: the user's own would open the notebooks of last time beside the one under test
    workspaces = str(folder / ".workspaces")
    own = {"JUPYTERLAB_SETTINGS_DIR": str(settings), "JUPYTERLAB_WORKSPACES_DIR": workspaces}
    environment = {"HF_HUB_OFFLINE": "1", "CPPO_FAST": "1", **os.environ, **own}
    log = folder / ".lab.log"
    with log.open("w") as stream:
        command = [sys.executable, "-m", "jupyterlab", *options]
        server = subprocess.Popen(command, env=environment, stdout=stream, stderr=subprocess.STDOUT)
        try:
            wait_for(address, server, log)
            yield address, token
        finally:
            server.terminate()
            server.wait(timeout=30)


def wait_for(address: str, server: subprocess.Popen, log: Path) -> None:
    """Wait until JupyterLab answers."""
    for _ in range(120):
        if server.poll() is not None:
            break
        try:
            urllib.request.urlopen(f"{address}/api", timeout=2)
            return
        except OSError:
            time.sleep(0.5)
    sys.exit(f"e2e: JupyterLab did not start:\n{log.read_text()[-2000:]}")


def run_all(page: Page, url: str) -> list[str]:
    """Open the notebook at `url`, run all cells; the texts of the error outputs."""
    page.set_viewport_size({"width": 1250, "height": 900})
    page.goto(url)
    page.wait_for_selector(".jp-Notebook .jp-CodeCell", timeout=60_000)
    page.get_by_text("Python 3 (ipykernel) | Idle").wait_for(timeout=120_000)
    page.keyboard.press("Control+b")  # the file browser makes room
    page.locator(".lm-MenuBar-itemLabel", has_text="Run").first.click()
    page.locator(".lm-Menu-itemLabel", has_text="Run All Cells").first.click()
    try:
        page.wait_for_function(FINISHED, timeout=SECONDS * 1000, polling=500)
    except TimeoutError:
        return [f"not finished after {SECONDS} s"]
    return page.locator(ERRORS).all_inner_texts()


def keep_screenshot(page: Page, name: str) -> None:
    """The whole page as a reader sees it, as build/screenshots/NAME.png."""
    height = min(int(page.evaluate(TO_THE_TOP)) + 120, TALLEST)
    page.set_viewport_size({"width": 1250, "height": height})
    page.wait_for_timeout(1000)  # formulas and figures settle
    page.evaluate(TO_THE_TOP)
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SCREENSHOTS / f"{name.replace('/', '-').removesuffix('.ipynb')}.png")


def shut_kernels_down(page: Page, address: str, token: str) -> None:
    """End every kernel, so that a long run holds the memory of one notebook only."""
    headers = {"Authorization": f"token {token}"}
    for kernel in page.request.get(f"{address}/api/kernels", headers=headers).json():
        page.request.delete(f"{address}/api/kernels/{kernel['id']}", headers=headers)


def main(arguments: list[str]) -> int:
    """Run the notebooks named in `arguments` (default: the course and the solutions); 1 if any fails."""
    everything = [*ROOT.glob("notebooks/*.ipynb"), *ROOT.glob("notebooks/exercises/solutions/*.ipynb")]
    paths = [Path(argument) for argument in arguments] or sorted(everything)
    chromium, failed = find_chromium(), 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # leave through the contexts: no server stays behind
    with tempfile.TemporaryDirectory() as temporary, sync_playwright() as playwright:
        names = copy_without_outputs(paths, Path(temporary))
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        with jupyterlab(Path(temporary)) as (address, token):
            for name in names:
                start = time.monotonic()
                page = browser.new_page()
                workspace = name.replace("/", "-").removesuffix(".ipynb")
                errors = run_all(page, f"{address}/lab/workspaces/{workspace}/tree/{name}?token={token}")
                keep_screenshot(page, name)
                shut_kernels_down(page, address, token)
                page.close()
                failed += bool(errors)
                print(f"{'FAILED' if errors else 'passed'}  {name}  {time.monotonic() - start:.0f} s", flush=True)
                print("\n".join(errors), end="\n" if errors else "")
        browser.close()
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
