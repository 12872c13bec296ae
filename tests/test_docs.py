"""What details.md, glossary.md and README.md name must exist: code, files, settings, sections of notebooks, headings."""

import importlib
import json
import re
from pathlib import Path

import pytest

from cppo_ref.config import CPPOConfig
from cppo_ref.runs.metrics import StepMetrics

ROOT = Path(__file__).parent.parent
PAGES = {name: (ROOT / name).read_text() for name in ("README.md", "docs/details.md", "docs/glossary.md")}
DETAILS, GLOSSARY = PAGES["docs/details.md"], PAGES["docs/glossary.md"]
by_page = pytest.mark.parametrize("page", PAGES)
NAMED = r"`(cppo_ref/[\w/]+)\.py: ([\w.]+)`((?:, `[A-Za-z_]\w*`)*)"  # `cppo_ref/a.py: b`, `c`


def named_code(text):
    """(module, name) of all code that a page names."""
    for module, first, others in re.findall(NAMED, text):
        for name in [first, *re.findall(r"`(\w+)`", others)]:
            yield module.replace("/", "."), name


def missing(module, name):
    thing = importlib.import_module(module)
    for part in name.split("."):
        if part in getattr(thing, "__dataclass_fields__", {}):
            return False  # a field without a default is no attribute of its class
        if not hasattr(thing, part):
            return True
        thing = getattr(thing, part)
    return False


@by_page
def test_all_code_that_a_page_names_exists(page):
    assert [f"{module}: {name}" for module, name in named_code(PAGES[page]) if missing(module, name)] == []


def test_the_check_of_names_finds_a_function_that_moved():
    text = "`cppo_ref/vlm/policy.py: _check_4bit` `cppo_ref/grpo.py: policy_loss`, `weightless` `cppo_ref/cpl.py: contrast`"
    found = [(module, name, missing(module, name)) for module, name in named_code(text)]
    assert [name for _, name, gone in found if gone] == ["_check_4bit", "weightless"]
    assert len(found) == 4


def test_every_entry_of_details_names_its_code():
    entries = re.split(r"^\*\*\d+\. ", DETAILS, flags=re.MULTILINE)[1:]
    assert [entry[:40] for entry in entries if not list(named_code(entry))] == []


@by_page
def test_all_files_that_a_page_names_exist(page):
    names = re.findall(r"`((?:cppo_ref|tests|docs|scripts|notebooks|data|benchmarks)/[\w/.-]+\.\w+)", PAGES[page])
    assert [name for name in names if not (ROOT / name).exists()] == []


@by_page
def test_all_links_of_a_page_lead_to_a_file_and_a_heading(page):
    broken = []
    for target in re.findall(r"\]\((?!https?:)([^)\s]+)\)", PAGES[page]):
        path, _, anchor = target.partition("#")
        file = (ROOT / page).parent / path if path else ROOT / page
        headings = re.findall(r"^#+ (.+)$", file.read_text(), flags=re.MULTILINE) if anchor and file.exists() else []
        slugs = [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]
        if not file.exists() or (anchor and anchor not in slugs):
            broken.append(target)
    assert broken == []


def sections_of(number):
    """The numbers that the headings of a notebook carry."""
    (path,) = (ROOT / "notebooks").glob(f"{number}_*.ipynb")
    cells = json.loads(path.read_text())["cells"]
    texts = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown"]
    return {found for text in texts for found in re.findall(r"^## (\d+)\.", text, flags=re.MULTILINE)}


def test_sections_of_notebooks_that_details_name_exist():
    cited = re.findall(r"[Nn]otebook (\d\d), sections? (\d+)(?: and (\d+))?", DETAILS)
    assert len(cited) >= 10
    assert [(n, s) for n, *numbers in cited for s in numbers if s and s not in sections_of(n)] == []


def test_details_are_numbered_without_a_gap_and_refer_to_entries_that_exist():
    numbers = [int(n) for n in re.findall(r"^\*\*(\d+)\. ", DETAILS, flags=re.MULTILINE)]
    assert numbers == list(range(1, len(numbers) + 1))
    assert {int(n) for n in re.findall(r"\bentry (\d+)", DETAILS)} <= set(numbers)
    assert len(DETAILS.split()) <= 3000


def test_the_glossary_has_every_metric_and_no_other():
    table = GLOSSARY[GLOSSARY.index("| field |") : GLOSSARY.index("On a GPU")]
    named = re.findall(r"^\| `([\w/]+)`", table, flags=re.MULTILINE)
    phases = {"rollouts", "rewards", "reference", "detection", "update"}
    logged = set(StepMetrics.__dataclass_fields__) - {"seconds", "peak_bytes"}
    assert set(named) == logged | {f"seconds/{phase}" for phase in phases}
    assert "`gigabytes/` with the same five names" in GLOSSARY


def test_settings_that_the_glossary_names_exist():
    settings = {"clip_low", "clip_high", "kl_weight", "top_fraction", "tau", "cpl_weight", "group_size"}
    assert all(f"`{name}`" in GLOSSARY for name in settings)
    assert settings <= CPPOConfig.__dataclass_fields__.keys()
