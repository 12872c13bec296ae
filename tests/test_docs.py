"""What README and the pages of docs/ name must exist; README and the results are short, and their numbers computed."""

import importlib
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from cppo_ref.config import CPPOConfig
from cppo_ref.runs.metrics import StepMetrics

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "scripts"))
import results_page  # noqa: E402

from study import first_page  # noqa: E402

PAGES = {
    str(path.relative_to(ROOT)): path.read_text()
    for path in [ROOT / "README.md", ROOT / "study/first.md", *sorted((ROOT / "docs").glob("*.md"))]
}
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
    names = re.findall(r"`((?:cppo_ref|tests|study|docs|scripts|notebooks|data|benchmarks)/[\w/.-]+\.\w+)", PAGES[page])
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
    assert "`gigabytes/` with the same names" in GLOSSARY


def test_settings_that_the_glossary_names_exist():
    settings = {"clip_low", "clip_high", "kl_weight", "top_fraction", "tau", "cpl_weight", "group_size"}
    assert all(f"`{name}`" in GLOSSARY for name in settings)
    assert settings <= CPPOConfig.__dataclass_fields__.keys()


@pytest.mark.parametrize(("page", "most"), [("README.md", 900), ("docs/results.md", 1400), ("study/first.md", 2125)])
def test_readme_and_results_are_read_in_minutes(page, most):
    assert len(PAGES[page].split()) <= most


@pytest.mark.parametrize("script", [["scripts/results_page.py"], ["-m", "study.first_page"]])
def test_findings_of_readme_and_results_are_computed(script):
    check = subprocess.run([sys.executable, *script, "--check"], capture_output=True, text=True, cwd=ROOT)
    assert check.returncode == 0, f"run python {' '.join(script)}\n{check.stderr}"


@pytest.mark.parametrize("page", ["docs/results.md", "study/first.md"])
def test_prose_of_the_results_has_no_number_of_its_own(page):
    """Outside the blocks that a script fills stand only names, seeds and learning rates."""
    prose = re.sub(r"<!-- [^>]+ -->.*?<!-- end -->", "", PAGES[page], flags=re.DOTALL)
    prose = re.sub(r"\]\([^)]*\)|^#.*$|CPPO|GRPO", "", prose, flags=re.MULTILINE)
    assert set(re.findall(r"\d(?:[\d.e–-]*\d)?", prose)) <= {"0–9", "3e-4", "95", "07"}


def test_a_word_that_the_results_contradict_is_refused():
    assert first_page.said("{more 3e-4 tiny cppo grpo changed}") == "8.2 [7.1, 9.6]"
    assert first_page.said("{fewer 3e-4 tiny cppo grpo plain}") == "4.0 [3.4, 4.9]"
    for wrong in ("fewer 3e-4 tiny cppo grpo changed", "equal 3e-4 tiny cppo grpo changed", "open 3e-4 tiny cppo grpo plain"):
        with pytest.raises(AssertionError):
            first_page.said(f"{{{wrong}}}")


def test_every_figure_of_the_results_is_drawn_with_every_line_and_interval():
    for name, panels in first_page.FIGURES.items():
        fig = first_page.leads_plot(panels, label=first_page.AXES[name])
        assert [ax.get_title() for ax in fig.axes] == list(panels)
        for ax, panel in zip(fig.axes, panels.values(), strict=True):
            points = [100 * found.value for line in panel.values() for found in line.values()]
            drawn = [x for container in ax.containers for x in container.lines[0].get_xdata()]
            assert sorted(drawn) == pytest.approx(sorted(points))


def test_leads_of_the_second_study_stand_with_interval_and_verdict():
    found, _, word = results_page.FOUND["eyes", "grpo_tuned", "unseen_greedy"]
    said = results_page.said("{eyes grpo unseen_greedy}")
    assert re.fullmatch(r"([+−]\d+\.\d) \[([+−]\d+\.\d), ([+−]\d+\.\d)\] \((\w+)\)", said)
    numbers = [float(number.replace("−", "-")) / 100 for number in re.findall(r"[+−]\d+\.\d", said)]
    assert numbers == pytest.approx([found.value, found.low, found.high], abs=5e-4) and said.endswith(f"({word})")
    with pytest.raises(KeyError):
        results_page.said("{eyes dapo unseen_greedy}")


def test_the_second_studys_figure_shows_every_run():
    fig = results_page.levels_figure()
    drawn = sorted(x for ax in fig.axes for line in ax.lines if line.get_marker() == "." for x in line.get_xdata())
    metrics = results_page.KINDS.values()
    runs = [row for row in results_page.ROWS if row["arm"] in results_page.SHORT and int(row["seed"]) in results_page.SEEDS]
    assert drawn == pytest.approx(sorted(100 * float(row[metric]) for row in runs for metric in metrics))


def test_readmes_figure_shows_all_leads_and_fills_those_with_a_verdict():
    fig = results_page.leads_figure()
    drawn = [x for ax in fig.axes for container in ax.containers for x in container.lines[0].get_xdata()]
    pale = [x for ax in fig.axes for line in ax.lines if line.get_markerfacecolor() == "white" for x in line.get_xdata()]
    decided = [one for one, _, word in [*results_page.FAMILY, *results_page.FOLLOW_UP] if word != "undecided"]
    assert len(drawn) == 18  # two worlds and fresh seeds, three rivals, two ways to answer
    assert sorted(set(drawn) - set(pale)) == pytest.approx(sorted(100 * one.value for one in decided))
