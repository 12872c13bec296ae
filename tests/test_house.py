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


def imported(tree, modules):
    """The package's modules that running `tree` imports at once; imports inside functions come later."""
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            names = []
        yield from (name for name in names if name in modules and name != "cppo_ref")


def test_no_module_imports_itself_by_a_detour():
    trees = {module_name(path): tree for path, tree in TREES.items()}
    graph = {name: set(imported(tree, trees)) for name, tree in trees.items()}
    order = list(TopologicalSorter(graph).static_order())  # raises CycleError, which names the circle
    assert order.index("cppo_ref.worlds.shapes") < order.index("cppo_ref.examples.loading") < order.index("cppo_ref.training")
    assert sum(map(len, graph.values())) > 30


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
    circle = {name: set(imported(tree, trees)) for name, tree in trees.items()}
    with pytest.raises(ValueError, match="cycle"):
        list(TopologicalSorter(circle).static_order())
