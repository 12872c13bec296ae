"""The repository's address: one place, every page in step with it, and none that nobody here owns."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "scripts"))
import links  # noqa: E402

CITED = {
    "huggingface/trl",
    "huggingface/peft",
    "vllm-project/vllm",
    "vbdi/cppo",
    "huggingface/Math-Verify",
    "googlecolab/backend-info",
}  # the paper's code, a library, Colab's versions
DATASETS = {"hiyouga/geometry3k", "TIGER-Lab/ViRL39K", "leonardPKU/clevr_cogen_a_train"}
HOSTS = {"arxiv.org", "joschu.net", "download.pytorch.org", "github.com", "huggingface.co"}  # where pages may send a reader
SUFFIXES = {".md", ".ipynb", ".toml", ".py", ".yml", ".cff", ".txt", ".json", ".jinja", ""}
FOLDERS = ("cppo_ref", "notebooks", "docs", "scripts", "benchmarks", "data", ".ci")
REPOSITORY = "some-owner/some.name"


def texts():
    """(path, text) of every page and source file but the tests."""
    for path in [*ROOT.iterdir(), *(path for folder in FOLDERS for path in (ROOT / folder).rglob("*"))]:
        if path.is_file() and path.suffix in SUFFIXES and path.name not in (".git", "LICENSE", "tokenizer.json"):
            yield path, path.read_text(encoding="utf-8")


def sources(path):
    """The sources of a notebook's cells."""
    return ["".join(cell["source"]) for cell in json.loads(path.read_text())["cells"]]


def run(root, *arguments):
    """Run the copy of the script that lies in `root`."""
    return subprocess.run(
        [sys.executable, root / "scripts" / "links.py", *arguments], capture_output=True, text=True, check=False
    )


def snapshot(root):
    return {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}


@pytest.fixture
def copy(tmp_path):
    """A copy of what the script reads and writes."""
    for name in ("pyproject.toml", "CITATION.cff", "README.md", "Makefile"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "scripts").mkdir()
    shutil.copy(ROOT / "scripts" / "links.py", tmp_path / "scripts")
    shutil.copytree(ROOT / "notebooks", tmp_path / "notebooks", ignore=shutil.ignore_patterns(".ipynb_checkpoints"))
    return tmp_path


def test_every_page_agrees_with_pyproject():
    behind = [path.name for path, text in links.pages(links.current()).items() if path.read_text(encoding="utf-8") != text]
    assert behind == [], "run make links"


def test_every_github_project_that_is_named_is_cited_or_our_own():
    allowed = CITED | {links.current()}
    named = {(name, path) for path, text in texts() for name in re.findall(r"github\.com[/:]([\w.-]+/[\w-]+(?:\.\w+)*)", text)}
    assert {name for name, _ in named} >= {"vbdi/cppo"}
    assert [(name, str(path)) for name, path in named if name not in allowed] == []


def test_pages_send_a_reader_to_known_hosts_and_data_sets_only():
    hosts = HOSTS | ({"colab.research.google.com"} if links.current() else set())
    for path, text in texts():
        if path.name != "links.py":  # which knows both states
            assert set(re.findall(r"https?://([\w.-]+\.[a-z]+)", text)) <= hosts, path
            assert set(re.findall(r"huggingface\.co/(?:datasets/)?([\w-]+/[\w-]+)", text)) <= DATASETS, path


def test_nothing_installs_the_package_by_its_bare_name():
    for path, text in texts():
        for line in re.findall(r"(?:pip|conda|uv|pipx)\S* +(?:install|add|run)\b.*", text):
            words = [word.strip("\\\"'`,.;") for word in line.split()]
            bare = [word for word in words if re.fullmatch(r"cppo[-_]ref(\[.*\])?([=<>~].*)?", word, re.IGNORECASE)]
            assert not bare or "cppo_ref @ git+" in line, (
                f"{path}: whoever registers {bare} on an index runs code on readers' machines"
            )


def test_with_an_address_every_page_names_it(copy):
    assert run(copy, REPOSITORY).returncode == 0
    url = f"https://github.com/{REPOSITORY}"
    assert links.current(copy) == REPOSITORY
    assert f'\nrepository-code: "{url}"\n' in (copy / "CITATION.cff").read_text()
    for page in ((copy / "README.md").read_text(), sources(copy / "notebooks" / "00_start_here.ipynb")[0]):
        assert f"\ngit clone {url} && cd some.name\nmake " in page
    notebooks = sorted(copy.glob("notebooks/**/*.ipynb"))
    assert len(notebooks) == 23
    for path in notebooks:
        title, set_up, *_ = sources(path)
        opens = f"https://colab.research.google.com/github/{REPOSITORY}/blob/main/{path.relative_to(copy).as_posix()}"
        badge = f"[![Open In Colab](https://colab.research.google.com/assets/colab-badge.svg)]({opens})"
        assert title.split("\n")[1:4] == ["", badge, ""]
        assert set_up.count(f'"cppo_ref @ git+{url}@main"') == 1 and "upload" not in set_up


def test_without_an_address_no_page_names_one(copy):
    run(copy, REPOSITORY)
    assert run(copy, "").returncode == 0
    assert links.current(copy) == ""
    for path in copy.rglob("*.*"):
        if path.suffix in (".md", ".cff", ".toml", ".ipynb"):
            text = path.read_text()
            assert "some-owner" not in text and "colab-badge" not in text and "git clone" not in text
    assert "# clone this repository" in (copy / "README.md").read_text()


def test_writing_twice_changes_nothing_and_taking_out_gives_every_byte_back(copy):
    assert run(copy, "").returncode == 0
    unset = snapshot(copy)
    run(copy, REPOSITORY)
    first = snapshot(copy)
    again, refreshed = run(copy, REPOSITORY), run(copy)
    assert again.stdout == refreshed.stdout == "" and snapshot(copy) == first != unset
    run(copy, "")
    assert snapshot(copy) == unset


def test_only_the_first_two_cells_of_a_notebook_change(copy):
    before = {path: json.loads(path.read_text()) for path in copy.glob("notebooks/**/*.ipynb")}
    run(copy, REPOSITORY if not links.current() else "")
    for path, book in before.items():
        after = json.loads(path.read_text())
        assert after["cells"][1] != book["cells"][1]
        for cell in (*book["cells"][:2], *after["cells"][:2]):
            cell["source"] = None
        assert after == book


BAD = [
    "name",
    "https://github.com/owner/name",
    "git@github.com:owner/name",
    "owner/name/x",
    "owner/",
    "/name",
    "owner/..",
    "-o/name",
]
BAD += [
    "owner/name.git",
    "owner/na me",
    "owner/$(id)",
    "owner/`id`",
    'owner/"x',
    "owner/x;ls",
    "owner/name\n",
    "öwner/name",
    " ",
]


@pytest.mark.parametrize("repository", BAD)
def test_what_is_no_repository_is_refused_in_one_sentence_and_nothing_is_written(copy, repository):
    before = snapshot(copy)
    result = run(copy, repository)
    assert result.returncode == 1 and result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert repr(repository) in line and "expected owner/name" in line
    assert snapshot(copy) == before


def test_a_notebook_without_the_set_up_cell_is_named_and_nothing_is_written(copy):
    path = copy / "notebooks" / "03_perturbations.ipynb"
    book = json.loads(path.read_text())
    del book["cells"][1]
    path.write_text(json.dumps(book))
    before = snapshot(copy)
    result = run(copy, REPOSITORY)
    assert result.returncode == 1 and snapshot(copy) == before
    assert result.stderr.splitlines() == [
        "notebooks/03_perturbations.ipynb: expected the Colab set-up cell as the second cell; copy it from another notebook"
    ]


@pytest.mark.skipif(not shutil.which("make"), reason="needs make")
@pytest.mark.parametrize(("given", "expected"), [(["REPOSITORY=a/b"], "a/b"), (["REPOSITORY="], ""), ([], "old/one")])
def test_make_hands_the_address_over_and_keeps_it_where_none_is_given(copy, monkeypatch, given, expected):
    monkeypatch.delenv("REPOSITORY", raising=False)
    run(copy, "old/one")
    subprocess.run(["make", "--silent", "-C", copy, "links", f"PYTHON={sys.executable}", *given], check=True)
    assert links.current(copy) == expected


@pytest.mark.skipif(not shutil.which("make"), reason="needs make")
def test_make_runs_nothing_that_stands_in_the_address(copy):
    command = ["make", "--silent", "-C", copy, "links", f"PYTHON={sys.executable}", 'REPOSITORY=a/b"; touch ran; "']
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode != 0 and "expected owner/name" in result.stderr
    assert not (copy / "ran").exists()
