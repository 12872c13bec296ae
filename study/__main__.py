"""The study's commands: python -m study --help, python -m study demo --help."""

import sys
from collections.abc import Sequence

from cppo_ref.__main__ import quiet
from cppo_ref.config import InputError
from cppo_ref.runs.options import parse
from study.demo import DemoOptions, run_demo
from study.runner import StudyOptions, run_study


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the study, or its demonstration; what the user got wrong ends as one sentence on stderr and exit status 2."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    quiet()
    try:
        if words[:1] == ["demo"]:
            run_demo(*parse((DemoOptions,), "demo", words[1:]))
        else:
            run_study(*parse((StudyOptions,), "study", words))
    except (InputError, ArithmeticError, OSError) as error:
        print(f"study: {' '.join(str(error).splitlines())}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
