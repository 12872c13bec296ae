"""On Colab: the set-up cell installs this package and what Colab lacks, upgrades nothing, and does nothing elsewhere."""

import json
import shlex
import subprocess
import sys
import tomllib
import types
import zipfile
from pathlib import Path

import nbformat
import pytest
from IPython.core.inputtransformer2 import TransformerManager
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
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


def set_up_commands(monkeypatch, on_colab):
    """Run the set-up cell with a recording %pip; return what pip was given."""
    notebook = min(ROOT.glob("notebooks/*.ipynb"))
    source = nbformat.read(notebook, as_version=4).cells[1].source
    if on_colab:
        monkeypatch.setitem(sys.modules, "google.colab", types.ModuleType("google.colab"))
    else:
        monkeypatch.delitem(sys.modules, "google.colab", raising=False)
    given = []
    shell = types.SimpleNamespace(run_line_magic=lambda magic, line: given.append((magic, shlex.split(line))))
    exec(TransformerManager().transform_cell(source), {"get_ipython": lambda: shell})
    return given


def test_on_colab_the_set_up_cell_installs_the_package_and_bitsandbytes(monkeypatch):
    ((magic, words),) = set_up_commands(monkeypatch, on_colab=True)
    assert magic == "pip" and words[:2] == ["install", "-q"]
    package, quantiser = (Requirement(word) for word in words[2:])
    assert package.name == PROJECT["name"] and package.url.startswith("git+https://github.com/cppo-ref/cppo_ref")
    assert quantiser.name == "bitsandbytes"
    (pin,) = quantiser.specifier
    assert pin.operator == "==" and pin.version in REQUIRED["bitsandbytes"].specifier
    constraints = (ROOT / "constraints.txt").read_text().splitlines()
    assert f"bitsandbytes=={pin.version}" in constraints, "the version that Colab gets is the version that was tested"


def test_elsewhere_the_set_up_cell_does_nothing(monkeypatch):
    assert set_up_commands(monkeypatch, on_colab=False) == []


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
