"""How a command runs: quiet libraries, and errors of one sentence."""

import logging
import signal
import sys
import warnings
from collections.abc import Callable

import torch

from cppo_ref.config import InputError


def run_command(program: str, command: Callable[[], object]) -> int:
    """Run `command`; what the user got wrong ends as one sentence of `program` on stderr and exit status 2."""
    quiet()
    try:
        command()
    except (InputError, ArithmeticError, OSError) as error:
        print(f"{program}: {' '.join(str(error).splitlines())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:  # or SIGTERM, while training
        print(f"\n{program}: {str(stop) or 'stopped'}", file=sys.stderr)
        return 128 + getattr(stop, "number", signal.SIGINT)
    except torch.OutOfMemoryError:  # outside of a step, where training has its own advice
        advice = "the GPU's memory ran out: `python -m cppo_ref audit` shows what these settings need"
        print(f"{program}: {advice}", file=sys.stderr)
        return 2
    return 0


def quiet() -> None:
    """Leave out what libraries say about themselves; their errors still come through."""
    import datasets
    import transformers

    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", message="Detected pickle|Found missing adapter")  # refused in our words
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(logging.CRITICAL)  # it reports an unreadable file twice: here, and as the exception
