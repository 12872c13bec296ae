"""The house rules: sizes, docstrings, no import circle, and set-up files that agree with each other."""

import ast
import importlib
import re
import tomllib
from graphlib import TopologicalSorter
from itertools import chain
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
SOURCES = sorted((ROOT / "cppo_ref").rglob("*.py"))
TREES = {path: ast.parse(path.read_text()) for path in SOURCES}
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
by_source = pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))


@by_source
def test_no_module_is_above_250_lines_and_no_function_above_50(path):
    assert len(path.read_text().splitlines()) <= 250
    functions = [node for node in ast.walk(TREES[path]) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    assert {f.name: f.end_lineno - f.lineno + 1 for f in functions if f.end_lineno - f.lineno + 1 > 50} == {}


def public(body):
    """The public functions and classes of a module or class body, and those inside the public classes."""
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            yield node
            if isinstance(node, ast.ClassDef):
                yield from public(node.body)


@by_source
def test_module_and_all_that_is_public_in_it_say_what_they_are(path):
    assert ast.get_docstring(TREES[path])
    assert [node.name for node in public(TREES[path].body) if not ast.get_docstring(node)] == []


def module_name(path):
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imported(nodes, modules):
    """The package's modules that these statements import; statements inside functions are not looked at."""
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            names = []
        yield from (name for name in names if name in modules and name != "cppo_ref")


BY_NAME = {module_name(path): tree for path, tree in TREES.items()}
NOW = {name: set(imported(tree.body, BY_NAME)) for name, tree in BY_NAME.items()}
EVER = {name: set(imported(ast.walk(tree), BY_NAME)) for name, tree in BY_NAME.items()}  # in functions, too
ROOMS = {"vlm", "worlds", "examples", "runs", "pictures", "grading"}
IDEAS = {"perturbations", "perception", "cpl", "grpo"}  # pure functions of tensors or images
LOOP = {"step", "training", "trl", "__main__"}
FRONT = {  # what each front file may import of the front; of rooms, all but the ideas may
    **{name: set() for name in IDEAS},
    "rewards": set(),
    "config": IDEAS,
    "rollouts": {"perception"},
    "evaluation": {"config", "perception", "perturbations", "rewards", "rollouts"},
    "step": {"config", "rewards", "rollouts", *IDEAS},
    "training": {"config", "evaluation", "step"},
    "__main__": {"config", "evaluation", "training"},
    "trl": {"config", "cpl", "perception", "step"},  # the step on TRL's engine; an extra, so nothing imports it
}


def test_no_module_imports_itself_by_a_detour():
    order = list(TopologicalSorter(NOW).static_order())  # raises CycleError, which names the circle
    assert order.index("cppo_ref.worlds.shapes") < order.index("cppo_ref.step") < order.index("cppo_ref.training")
    assert sum(map(len, NOW.values())) > 30


def test_the_front_holds_the_method_and_nothing_else_and_imports_what_it_says():
    folder = ROOT / "cppo_ref"
    assert {path.stem for path in folder.glob("*.py")} == {"__init__", *FRONT}
    assert {path.name for path in folder.iterdir() if path.is_dir() and path.name != "__pycache__"} == ROOMS
    for name, allowed in FRONT.items():
        parts = {module.split(".")[1] for module in EVER[f"cppo_ref.{name}"]}
        assert parts - ROOMS <= allowed, name
        assert name not in IDEAS or not parts, name


def test_rooms_never_import_the_loop_and_nothing_names_the_study():
    for name, modules in EVER.items():
        if name.split(".")[1:2] and name.split(".")[1] in ROOMS:
            assert not {module.split(".")[1] for module in modules} & LOOP, name
    named = [path.name for path in SOURCES if re.search(r"\bstudy\b", path.read_text(), re.IGNORECASE)]
    assert named == []


def test_the_package_is_small():
    def lines(paths):
        return sum(len(path.read_text().splitlines()) for path in paths)

    assert lines(path for path in SOURCES if "grading" not in path.parts) <= 5664
    assert lines((ROOT / "cppo_ref").glob("*.py")) <= 1671


def api_rows():
    """The names in the rows of README's tables."""
    rows = [line for line in (ROOT / "README.md").read_text().splitlines() if line.startswith("|")]
    return [names for row in rows if (names := re.findall(r"\bcppo_ref\.[A-Za-z_][\w.]*\w", row))]


def test_every_name_in_the_api_table_exists():
    rows = api_rows()
    assert len(rows) >= 10
    for name in (name for names in rows for name in names):
        _, module, *attributes = name.split(".")
        thing = importlib.import_module(f"cppo_ref.{module}")
        for attribute in attributes:
            assert hasattr(thing, attribute), name
            thing = getattr(thing, attribute)


def test_every_dependency_says_why_it_is_there():
    project = PYPROJECT["project"]
    declared = list(chain(project["dependencies"], *project["optional-dependencies"].values()))
    lines = (ROOT / "pyproject.toml").read_text().splitlines()
    explained = {found[1] for line in lines if (found := re.match(r'\s*"([^"]+)",?\s*# \w.*\w', line))}
    assert len(declared) > 20
    assert [dependency for dependency in declared if dependency not in explained] == []


def test_environment_yml_is_in_step_with_pyproject():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    python, pip, from_pip = environment["dependencies"]
    assert environment["name"] == "cppo-ref"
    assert environment["channels"] == ["conda-forge"]
    assert python == f"python{PYPROJECT['project']['requires-python']}"
    assert pip == "pip"
    assert from_pip == {"pip": ["-e .[notebooks,dev]"]}
    assert {"notebooks", "dev"} <= PYPROJECT["project"]["optional-dependencies"].keys()
    assert "--extra-index-url https://download.pytorch.org/whl/cpu" in (ROOT / "environment.yml").read_text()


def test_the_check_for_circles_finds_one():
    trees = {"a": ast.parse("from b import x"), "b": ast.parse("import a")}
    circle = {name: set(imported(tree.body, trees)) for name, tree in trees.items()}
    with pytest.raises(ValueError, match="cycle"):
        list(TopologicalSorter(circle).static_order())
