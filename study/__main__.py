"""The study's commands: python -m study --help, python -m study demo --help."""

import sys
from collections.abc import Sequence

from cppo_ref.runs.commands import run_command
from cppo_ref.runs.options import parse
from study.demo import DemoOptions, run_demo
from study.runner import StudyOptions, run_study


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the study, or its demonstration; returns the exit status."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words[:1] == ["demo"]:
        return run_command("study", lambda: run_demo(*parse((DemoOptions,), "python -m study demo", words[1:])))
    return run_command("study", lambda: run_study(*parse((StudyOptions,), "python -m study", words)))


if __name__ == "__main__":
    sys.exit(main())
