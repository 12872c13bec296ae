"""On Colab: the set-up cell installs this package and what Colab lacks, upgrades nothing, and does nothing elsewhere."""

import importlib.util
import json
import os
import shlex
import subprocess
import sys
import tomllib
import types
import zipfile
from pathlib import Path

import pytest
from IPython.core.interactiveshell import InteractiveShell
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from traitlets.config import Config

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "scripts"))
import links  # noqa: E402

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
REQUIRED = {canonicalize_name(r.name): r for r in map(Requirement, PROJECT["dependencies"])}
LINES = (ROOT / "tests" / "notebooks" / "colab-versions.txt").read_text().splitlines()
COLAB = dict(line.split("==") for line in LINES if line and not line.startswith("#"))
LACKING = {"bitsandbytes", "jaxtyping", "math-verify"}  # Colab has them not; pip brings them
COLAB_PYTHON = "3.13"
NEEDS = {  # what Colab's versions ask for of each other, from their metadata
    "transformers": ["numpy>=1.17", "safetensors>=0.8.0", "tqdm>=4.60"],
    "peft": ["numpy>=1.17", "torch>=1.13.0", "transformers", "tqdm", "accelerate>=0.21.0", "safetensors"],
    "accelerate": ["numpy>=1.17", "torch>=2.0.0", "safetensors>=0.4.3"],
    "datasets": ["numpy>=1.17", "tqdm>=4.66.3"],
    "scikit-learn": ["numpy>=1.19.5", "scipy>=1.6.0"],
    "matplotlib": ["numpy>=1.23", "pillow>=8"],
}


WHEEL = "cppo_ref-0.1.0-py3-none-any.whl"


class Colab:
    """A Colab session in the working folder: uploads, pip and what is installed are faked, IPython is real."""

    def __init__(self, monkeypatch):
        self.uploads, self.asked, self.given, self.installed, self.pip_works = {}, 0, [], False, True
        module = types.ModuleType("google.colab")
        module.files = types.SimpleNamespace(upload=self.upload)
        monkeypatch.setitem(sys.modules, "google.colab", module)
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: self if self.installed and name == "cppo_ref" else None)

    def upload(self):
        """Save the files that the reader chooses as Colab does: a name that is taken gets " (1)"."""
        self.asked += 1
        for name, content in self.uploads.items():
            path = Path(name)
            (path.with_name(f"{path.stem} (1){path.suffix}") if path.exists() else path).write_bytes(content)
        return self.uploads

    def pip(self, line):
        """What %pip is given; it installs if it works."""
        self.given.append(shlex.split(line))
        self.installed = self.installed or self.pip_works

    def run(self, repository=""):
        """Run the set-up cell as a notebook does; whether the cells after it would run."""
        shell = InteractiveShell(config=Config(HistoryManager={"enabled": False}))
        shell.register_magic_function(self.pip, "line", "pip")
        return shell.run_cell(links.set_up_cell(repository)).success


@pytest.fixture
def colab(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    return Colab(monkeypatch)


def a_wheel(folder, name=WHEEL, time=None):
    """An empty wheel in a file of that name, changed at that time; its bytes."""
    with zipfile.ZipFile(folder / name, "w") as wheel:
        wheel.writestr("empty", "")
    if time:
        os.utime(folder / name, (time, time))
    return (folder / name).read_bytes()


QUANTISER = "bitsandbytes==0.50.2"
STOPPED = "cppo_ref is not installed: run this cell again with the wheel that `make wheel` writes."


def test_the_quantiser_that_colab_gets_is_the_version_that_was_tested():
    assert Requirement(QUANTISER).specifier.contains("0.50.2") and "0.50.2" in REQUIRED["bitsandbytes"].specifier
    assert QUANTISER in (ROOT / "constraints.txt").read_text().splitlines()


def test_with_an_address_the_set_up_cell_installs_from_it_and_asks_for_nothing(colab):
    assert colab.run("some-owner/some.name")
    ((*options, package, quantiser),) = colab.given
    assert options == ["install", "-q"] and quantiser == QUANTISER
    assert Requirement(package).name == PROJECT["name"]
    assert Requirement(package).url == "git+https://github.com/some-owner/some.name@main"
    assert colab.asked == 0


@pytest.mark.parametrize("repository", ["", "owner/name"])
def test_elsewhere_the_set_up_cell_does_nothing(colab, monkeypatch, capsys, repository):
    monkeypatch.delitem(sys.modules, "google.colab")
    assert colab.run(repository)
    assert (colab.asked, colab.given, capsys.readouterr().out) == (0, [], "")


def test_without_an_address_the_set_up_cell_asks_for_the_wheel_and_installs_it(colab, tmp_path, capsys):
    colab.uploads = {WHEEL: a_wheel(tmp_path)}
    (tmp_path / WHEEL).unlink()
    assert colab.run()
    assert colab.asked == 1 and colab.given == [["install", "-q", WHEEL, QUANTISER]]
    (sentence,) = capsys.readouterr().out.splitlines()
    assert "make wheel" in sentence and "dist/cppo_ref-" in sentence


def test_a_wheel_that_already_lies_there_is_not_asked_for(colab, tmp_path):
    a_wheel(tmp_path)
    assert colab.run()
    assert colab.asked == 0 and colab.given == [["install", "-q", WHEEL, QUANTISER]]


def test_what_is_installed_in_another_way_is_left_alone(colab):
    colab.installed = True
    assert colab.run()
    assert colab.asked == 0 and colab.given == []


WRONG = {
    "nothing": {},
    "a notebook": {"00.ipynb": b"{}"},
    "another wheel": {"numpy-9.whl": b""},
    "half a wheel": {WHEEL: b"PK\3\4 cut"},
}


@pytest.mark.parametrize("uploads", WRONG.values(), ids=WRONG)
def test_without_the_wheel_one_sentence_says_so_and_the_next_run_asks_again(colab, tmp_path, capsys, uploads):
    colab.uploads = uploads
    assert not colab.run(), "the cells after it must not run"
    assert colab.given == []
    asks, stopped = capsys.readouterr().out.strip().splitlines()
    assert asks.startswith("Choose the file") and stopped == STOPPED
    colab.uploads = {WHEEL: a_wheel(tmp_path, "other.zip")}
    assert colab.run()
    assert colab.asked == 2 and colab.given == [["install", "-q", WHEEL, QUANTISER]]


def test_if_pip_fails_one_sentence_says_so(colab, tmp_path, capsys):
    a_wheel(tmp_path)
    colab.pip_works = False
    assert not colab.run()
    assert capsys.readouterr().out.strip() == STOPPED


def test_the_wheel_that_came_last_replaces_the_version_that_is_installed(colab, tmp_path):
    colab.installed = True
    a_wheel(tmp_path, "cppo_ref-0.9.0-py3-none-any.whl", time=1000)
    a_wheel(tmp_path, "cppo_ref-0.10.0-py3-none-any.whl", time=2000)
    assert colab.run()
    assert colab.asked == 0 and colab.given == [["install", "-q", "cppo_ref-0.10.0-py3-none-any.whl", QUANTISER]]


@pytest.mark.parametrize("name", [WHEEL.replace(".whl", " (1).whl"), WHEEL.replace(".whl", "(12).whl")])
def test_the_number_that_a_browser_adds_to_a_name_is_taken_off_for_pip(colab, tmp_path, name):
    a_wheel(tmp_path, time=1000)
    content = a_wheel(tmp_path, name, time=2000)
    (tmp_path / name).write_bytes(content + b"second")
    assert colab.run()
    assert colab.given == [["install", "-q", WHEEL, QUANTISER]]
    assert (tmp_path / WHEEL).read_bytes().endswith(b"second") and not (tmp_path / name).exists()


def test_what_the_package_needs_is_on_colab_in_a_version_that_will_do():
    assert set(REQUIRED) - set(COLAB) == LACKING
    for name, version in COLAB.items():
        if name in REQUIRED:
            assert version in REQUIRED[name].specifier, f"{REQUIRED[name]} would upgrade Colab's {version} and need a restart"


def test_nothing_asks_for_what_runs_the_notebook():
    running = {"ipython", "ipykernel", "ipywidgets", "jupyter-client", "tornado", "pyzmq"}
    assert not running & set(REQUIRED), "Colab warns of upgrades of its own kernel"


def test_colab_python_is_one_that_we_support():
    assert COLAB_PYTHON in Requirement(f"python{PROJECT['requires-python']}").specifier


def make_wheel(folder, name, version, requires=()):
    """A wheel of nothing but a name, a version and requirements."""
    stem = f"{name.replace('-', '_')}-{version}"
    metadata = [f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}", *(f"Requires-Dist: {r}" for r in requires)]
    with zipfile.ZipFile(folder / f"{stem}-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{stem}.dist-info/METADATA", "\n".join(metadata) + "\n")
        wheel.writestr(f"{stem}.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{stem}.dist-info/RECORD", "")


def dry_run(folder, *wanted):
    """What pip would install from the wheels in `folder` alone, as Colab's Python: {name: version}."""
    report = folder / "report.json"
    options = ["--dry-run", "--isolated", "--quiet", "--no-index", "--ignore-installed", "--only-binary=:all:"]
    places = [f"--find-links={folder}", f"--report={report}", f"--python-version={COLAB_PYTHON}", f"--target={folder}/site"]
    command = [sys.executable, "-m", "pip", "install", *options, *places, *wanted]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    installed = json.loads(report.read_text())["install"]
    return {canonicalize_name(item["metadata"]["name"]): item["metadata"]["version"] for item in installed}


def test_pip_finds_everything_among_colabs_versions(tmp_path):
    for name, version in COLAB.items():
        make_wheel(tmp_path, name, version, NEEDS.get(name, ()))
    for name in LACKING:
        make_wheel(tmp_path, name, "0.50.2" if name == "bitsandbytes" else "99")
    make_wheel(tmp_path, "cppo_ref", "0.1.0", PROJECT["dependencies"])
    installed = dry_run(tmp_path, "cppo_ref", "bitsandbytes==0.50.2")
    assert set(installed) == {"cppo-ref", *REQUIRED}
    assert {name: version for name, version in installed.items() if name in COLAB} == {
        name: version for name, version in COLAB.items() if name in REQUIRED
    }


def test_the_dry_run_would_notice_a_version_that_colab_does_not_have(tmp_path):
    make_wheel(tmp_path, "torch", COLAB["torch"])
    make_wheel(tmp_path, "cppo_ref", "0.1.0", ["torch>=99"])
    with pytest.raises(AssertionError, match=r"No matching distribution|ResolutionImpossible"):
        dry_run(tmp_path, "cppo_ref")
