"""The wheel that `make wheel` writes: whole, small, and enough for a notebook that lies nowhere near the repository."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "scripts"))
import links  # noqa: E402

DATA = ("shapes", "tiny-vlm", "results")
# a machine with all that the package needs but not the package, and Colab's files module
NOTEBOOK = """
import importlib.util, json, sys, types
from pathlib import Path
from IPython.core.interactiveshell import InteractiveShell
from traitlets.config import Config

site = sys.argv[1]
sys.path[:] = [path for path in sys.path if not (Path(path) / "cppo_ref" / "__init__.py").exists() and path != site]
colab = types.ModuleType("google.colab")
colab.files = types.SimpleNamespace(upload=lambda: sys.exit("asked"))
sys.modules["google.colab"] = colab
find_spec = importlib.util.find_spec
importlib.util.find_spec = lambda name: next(iter(Path(site).glob(f"{name}/__init__.py")), None)
shell = InteractiveShell(config=Config(HistoryManager={"enabled": False}))
assert shell.run_cell(Path("cell.py").read_text()).success
importlib.util.find_spec = find_spec
del sys.modules["google.colab"]
sys.path.insert(0, site)
import cppo_ref
from cppo_ref.worlds.splits import data_folder
from cppo_ref.vlm.policy import load_policy
load_policy("tiny", quantize=None)
exec(Path("imports.py").read_text())
import study
print(json.dumps([cppo_ref.__file__, study.__file__, str(data_folder()), len(runs), cppo_ref.__version__]))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dist")
    options = ["--quiet", "--no-deps", "--no-index", "--no-build-isolation", f"--wheel-dir={folder}"]
    subprocess.run([sys.executable, "-m", "pip", "wheel", *options, str(ROOT)], check=True)
    (path,) = folder.glob("*.whl")
    return path


def test_the_wheel_holds_the_package_and_the_data_of_the_course_and_is_small(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    package = {path.relative_to(ROOT).as_posix() for name in ("cppo_ref", "study") for path in (ROOT / name).rglob("*.py")}
    data = {path.relative_to(ROOT) for name in DATA for path in (ROOT / "data" / name).rglob("*") if path.is_file()}
    assert len(package) > 60 and len(data) > 20
    assert package | {f"cppo_ref/{path.as_posix()}" for path in data} <= names
    assert not [
        name for name in names if name.endswith((".ipynb", ".pyc")) or name.startswith(("tests", "notebooks", "study/images"))
    ]
    assert wheel.stat().st_size < 15e6


def test_the_wheel_says_no_address_that_is_not_set(wheel):
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = archive.read(name).decode()
    addresses = [line for line in metadata.splitlines() if line.startswith("Project-URL: Repository")]
    repository = links.current()
    assert addresses == ([f"Project-URL: Repository, https://github.com/{repository}"] if repository else [])


def test_from_nothing_but_the_wheel_the_set_up_cell_makes_the_course_importable(wheel, tmp_path):
    work, site = tmp_path / "content", tmp_path / "site"
    work.mkdir()
    (work / wheel.name).write_bytes(wheel.read_bytes())
    (work / "cell.py").write_text(links.set_up_cell("").replace(' "bitsandbytes==0.50.2"', ""))  # there is no index to ask
    seventh = nbformat.read(ROOT / "notebooks" / "07_does_it_help.ipynb", as_version=4)  # the one that reads the study's runs
    (work / "imports.py").write_text([cell.source for cell in seventh.cells if cell.cell_type == "code"][1])
    (work / "notebook.py").write_text(NOTEBOOK)
    pip = {"PIP_TARGET": str(site), "PIP_NO_DEPS": "1", "PIP_NO_INDEX": "1", "HF_HUB_OFFLINE": "1"}
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | pip
    command = [sys.executable, "notebook.py", str(site)]
    result = subprocess.run(command, cwd=work, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    *places, runs, version = json.loads(result.stdout.splitlines()[-1])
    assert all(Path(place).is_relative_to(site) for place in places), places
    assert runs > 100 and version in wheel.name


def test_an_editable_install_makes_package_and_study_importable_from_the_folder_of_the_notebooks(tmp_path):
    options = ["--quiet", "--no-deps", "--no-index", "--no-build-isolation", f"--target={tmp_path}"]
    subprocess.run([sys.executable, "-m", "pip", "install", *options, "--editable", str(ROOT)], check=True)
    (added,) = tmp_path.glob("*.pth")
    code = f"import site; site.addsitedir({str(tmp_path)!r}); import cppo_ref, study; print(cppo_ref.__file__, study.__file__)"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "-S", "-c", code]  # without the packages of this environment
    result = subprocess.run(command, cwd=ROOT / "notebooks", env=environment, capture_output=True, text=True, check=True)
    assert [Path(file).parents[1] for file in result.stdout.split()] == [ROOT, ROOT], added.read_text()
