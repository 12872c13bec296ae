import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parents[1]


def test_the_lowest_versions_tested_are_the_lowest_allowed():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    allowed = {
        r.name: [(s.operator, Version(s.version)) for s in r.specifier] for r in map(Requirement, project["dependencies"])
    }
    lines = (ROOT / "constraints-lowest.txt").read_text().splitlines()
    tested = dict(line.split("==") for line in lines if not line.startswith("#"))
    assert tested.pop("torch") == "2.13.0" and allowed.pop("torch")
    assert {name: [(">=", Version(version))] for name, version in tested.items()} == allowed
