"""Write the repository's address on every page: make links REPOSITORY=owner/name; REPOSITORY= takes it out again.

The address has one place, `Repository` under [project.urls] in pyproject.toml; badges, clone lines, the citation and the
notebooks' set-up cells follow it. Without an argument they are written again from there: do so after adding a notebook.
While no address is set, no page names one: whoever owned it could run code on readers' machines.
"""

import json
import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
GITHUB = "https://github.com/"
COLAB_URL = "https://colab.research.google.com"
NAME = re.compile(r"[a-z\d](?:-?[a-z\d])*/\w(?:[\w.-]*\w)?", re.ASCII | re.IGNORECASE)
BADGE = re.compile(r"\[!\[Open In Colab\]\(\S+\)\]\(\S+\)\n\n")
CLONE = re.compile(r"^(?:git clone \S+(?: && |\n)cd \S+|# clone this repository.*)$", re.MULTILINE)
COLAB = re.compile(r"^\*\*Colab\*\*: .*$", re.MULTILINE)
SET_UP = 'import sys\n\nif "google.colab" in sys.modules:  # elsewhere: see notebook 00\n'
FROM_ADDRESS = '    %pip install -q "cppo_ref @ git+{}@main" "bitsandbytes==0.50.2"'
FROM_WHEEL = """\
    import re
    from importlib.util import find_spec
    from pathlib import Path
    from zipfile import is_zipfile

    from google.colab import files

    class NoWheelError(Exception):
        def _render_traceback_(self):  # what IPython shows in place of a traceback
            return [str(self)]

    def wheels():
        return sorted(filter(is_zipfile, Path().glob("cppo_ref-*.whl")), key=lambda path: path.stat().st_mtime)

    if not (wheels() or find_spec("cppo_ref")):
        print("Choose the file dist/cppo_ref-….whl, which `make wheel` writes in the repository.")
        files.upload()
    for wheel in wheels()[-1:]:  # the last to come; a second upload is named "… (1).whl", which pip refuses
        wheel = wheel.rename(re.sub(r" ?\\(\\d+\\)", "", wheel.name))
        %pip install -q "{wheel}" "bitsandbytes==0.50.2"
    if not find_spec("cppo_ref"):
        raise NoWheelError("cppo_ref is not installed: run this cell again with the wheel that `make wheel` writes.")"""


def checked(repository: str) -> str:
    """`owner/name` or "" as it is; ValueError for anything else."""
    if repository and (not NAME.fullmatch(repository) or repository.endswith(".git")):
        wanted = "expected owner/name, as in the address on GitHub, or nothing to take the address out"
        raise ValueError(f"REPOSITORY is {repository!r}: {wanted}")
    return repository


def current(root: Path = ROOT) -> str:
    """The repository in pyproject.toml as `owner/name`; "" while none is set."""
    urls = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]["urls"]
    return checked(urls.get("Repository", "").removeprefix(GITHUB))


def set_up_cell(repository: str) -> str:
    """The source of the notebooks' second cell, which installs the package on Colab."""
    return SET_UP + (FROM_ADDRESS.format(GITHUB + repository) if repository else FROM_WHEEL)


def front(text: str, notebook: str, repository: str) -> str:
    """A page that begins with a title: the badge that opens `notebook` on Colab, the clone line, the way to Colab."""
    text = BADGE.sub("", text, count=1)
    clone = "# clone this repository; then, in its folder:"
    colab = (
        "**Colab**: run `make wheel` in the repository, open this notebook with *File → Upload notebook*, and run the cells in "
        "order. The next cell asks for the wheel, `dist/cppo_ref-….whl`, and installs what Colab lacks"
    )
    if repository:
        title, rest = text.split("\n\n", 1)
        target = f"{COLAB_URL}/github/{repository}/blob/main/{notebook}"
        badge = f"[![Open In Colab]({COLAB_URL}/assets/colab-badge.svg)]({target})"
        text = f"{title}\n\n{badge}\n\n{rest}"
        clone = f"git clone {GITHUB}{repository} && cd {repository.split('/')[1]}"
        colab = "**Colab**: press the badge above and run the cells in order. The next cell installs what Colab lacks"
    text = CLONE.sub(clone, text, count=1)
    return COLAB.sub(f"{colab}; the runtime needs no GPU and no restart.", text, count=1)


def book_buttons(repository: str) -> dict[str, object]:
    """The book's buttons that lead to the repository and to Colab: none while no address is set."""
    if not repository:
        return {}
    where = {"repository_url": GITHUB + repository, "repository_branch": "main", "use_repository_button": True}
    return where | {"launch_buttons": {"colab_url": COLAB_URL}}


def notebook_page(text: str, path: str, repository: str) -> str:
    """A notebook's file with its first two cells in step; ValueError if the second is not the set-up cell."""
    book = json.loads(text)
    old = ["".join(cell["source"]) for cell in book["cells"][:2]]
    if len(old) < 2 or not old[1].startswith(SET_UP):
        raise ValueError(f"{path}: expected the Colab set-up cell as the second cell; copy it from another notebook")
    for cell, source in zip(book["cells"], (front(old[0], path, repository), set_up_cell(repository)), strict=False):
        cell["source"] = source.splitlines(keepends=True)
    return json.dumps(book, indent=1, ensure_ascii=False) + "\n"


def line_after(text: str, key: str, above: str, line: str) -> str:
    """The text with `line` (or none) for the line that begins with `key`, below the line that begins with `above`."""
    text = re.sub(rf"^{key}.*\n", "", text, flags=re.MULTILINE)
    return re.sub(rf"^{above}.*\n", rf"\g<0>{line}", text, count=1, flags=re.MULTILINE)


def pages(repository: str, root: Path = ROOT) -> dict[Path, str]:
    """Every file that depends on the address, with the text that it should have."""
    names = ["pyproject.toml", "CITATION.cff", "README.md"]
    paths = [*(root / name for name in names), *sorted(root.glob("notebooks/**/[0-9]*.ipynb"))]
    texts = {path: path.read_text(encoding="utf-8") for path in paths if ".ipynb_checkpoints" not in path.parts}
    project, citation, readme, *_ = texts
    url = f'"{GITHUB}{repository}"\n'
    new = {
        project: line_after(texts[project], "Repository = ", r"\[project\.urls\]", repository and f"Repository = {url}"),
        citation: line_after(texts[citation], "repository-code: ", "license: ", repository and f"repository-code: {url}"),
        readme: front(texts[readme], "notebooks/00_start_here.ipynb", repository),
    }
    for path in texts.keys() - new.keys():
        new[path] = notebook_page(texts[path], path.relative_to(root).as_posix(), repository)
    return new


def main(arguments: list[str]) -> None:
    """Write the pages whose text changes."""
    try:
        changed = pages(checked(arguments[0]) if arguments else current())
    except ValueError as error:
        sys.exit(str(error))
    for path, text in changed.items():
        if path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
            print(path.relative_to(ROOT))


if __name__ == "__main__":
    main(sys.argv[1:])
