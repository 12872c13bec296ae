"""The command line: python -m cppo_ref COMMAND --help."""

import difflib
import json
import logging
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch
from transformers import HfArgumentParser

from cppo_ref.config import PRESETS, CPPOConfig, InputError, setting
from cppo_ref.vlm.profiles import PROFILES


@dataclass(frozen=True)
class TrainFlags:
    """Where the settings of a run come from; later ones win: preset, profile, config file, options."""

    preset: str = setting("cppo-ref", f"loss choices to start from, of the paper, its code, or ours: {', '.join(PRESETS)}")
    profile: str = setting("", f"real VLM on one GPU: {', '.join(PROFILES)}; empty: the course's tiny VLM")
    config: str = setting("", "JSON file of settings, such as a run folder's config.json")
    resume: bool = setting(False, "go on from the newest checkpoint of --output")


@dataclass(frozen=True)
class EvaluateOptions:
    """Judge a policy on the shape world."""

    model: str = setting("tiny", 'VLM: "tiny", a local folder or a Hub name')
    adapter: str = setting("", "folder of a trained adapter; empty: the model as it is")
    quantize: str = setting("nf4", "nf4 or none")
    level: str = setting("easy", "easy or hard")
    images: int = setting(300, "test images per split, 8 completions each")
    seed: int = setting(0, "seed of the samples and views")
    output: str = setting("", "JSON file to write the numbers to; it must not exist")


@dataclass(frozen=True)
class ExportOptions:
    """Merge an adapter into 16-bit weights and check that the merged model computes the same."""

    adapter: str = setting("runs/cppo/adapter", "folder of a trained adapter")
    output: str = setting("runs/merged", "folder for the merged model; it must not exist")
    model: str = setting("tiny", "the VLM that the adapter was trained on")
    dtype: str = setting("bfloat16", "bfloat16 or float16")


@dataclass(frozen=True)
class DataOptions:
    """Write the shape world's splits again; the committed ones are these, to the byte."""

    output: str = setting("runs/shapes", "folder for LEVEL/SPLIT.parquet")


class Parser(HfArgumentParser):
    """Options from dataclasses; errors are one sentence."""

    def error(self, message: str) -> NoReturn:
        """Raise instead of printing the usage and leaving."""
        raise InputError(f"{message} (see {self.prog} --help)")


def parse(types: Sequence[Any], command: str, arguments: Sequence[str], defaults: dict[str, Any] | None = None) -> tuple:
    """Parse `arguments` into one instance of each dataclass; an unknown option is named with the nearest known one."""
    parser = Parser(tuple(types), prog=f"cppo_ref {command}", allow_abbrev=False)
    parser.set_defaults(**(defaults or {}))
    *parsed, rest = parser.parse_args_into_dataclasses(list(arguments), return_remaining_strings=True)
    if rest:
        known = [option for action in parser._actions for option in action.option_strings]
        close = difflib.get_close_matches(rest[0].split("=")[0], known, n=1)
        hint = f"did you mean {close[0]}?" if close else f"see cppo_ref {command} --help"
        raise InputError(f"unknown option {rest[0]!r}: {hint}")
    return tuple(parsed)


def train_command(arguments: Sequence[str]) -> None:
    """Train a policy; writes a run folder."""
    from cppo_ref.training import train

    config, flags = _settings("train", arguments)
    result = train(config, resume=flags.resume)
    print(f"{len(result.history)} steps in {result.output}; adapter in {result.adapter}")


def audit_command(arguments: Sequence[str]) -> None:
    """Show what is in 4 bits, what learns, and the memory a step needs; takes the options of train."""
    from cppo_ref.vlm.audit import audit

    config, flags = _settings("audit", arguments)
    print(audit(config, flags.profile))


def _settings(command: str, arguments: Sequence[str]) -> tuple[CPPOConfig, TrainFlags]:
    _, flags = parse((CPPOConfig, TrainFlags), command, arguments)
    if flags.profile and flags.profile not in PROFILES:
        raise InputError(f"profile is {flags.profile!r}, expected one of {', '.join(PROFILES)}")
    chosen = {**PROFILES.get(flags.profile, {}), **_read_config(flags.config)}
    CPPOConfig.preset(flags.preset, **chosen)  # names what is wrong with them
    # only what they set: what follows from other settings must follow those of the command line
    config, flags = parse((CPPOConfig, TrainFlags), command, arguments, {**PRESETS[flags.preset], **chosen})
    return config, flags


def _read_config(path: str) -> dict[str, Any]:
    if not path:
        return {}
    try:
        values = json.loads(Path(path).read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"config {path!r} could not be read ({error}): give a JSON file of settings") from error
    if not isinstance(values, dict):
        raise InputError(f"config {path!r} holds a {type(values).__name__}, expected one JSON object of settings")
    return values


def evaluate_command(arguments: Sequence[str]) -> None:
    """Evaluate a policy on the plain, shifted and blank test images, and its entropy shift as a detector."""
    from cppo_ref.evaluation import evaluation_report, report_text
    from cppo_ref.vlm.policy import load_policy

    (options,) = parse((EvaluateOptions,), "evaluate", arguments)
    _check_free(options.output)
    quantize = options.quantize if options.quantize in ("nf4", "none") else None
    if quantize is None:
        raise InputError(f"quantize is {options.quantize!r}, expected nf4 or none")
    _check_least(options, images=1, seed=0)
    policy = load_policy(options.model, quantize=quantize, lora=None, adapter=options.adapter or None)
    report = evaluation_report(policy, options.level, options.images, options.seed)
    print(report_text(report))
    if options.output:
        Path(options.output).parent.mkdir(parents=True, exist_ok=True)
        Path(options.output).write_text(json.dumps(report, indent=2) + "\n")


def export_command(arguments: Sequence[str]) -> None:
    """Merge an adapter into a stand-alone 16-bit model."""
    from cppo_ref.vlm.export import export_merged

    (options,) = parse((ExportOptions,), "export", arguments)
    _check_free(options.output)
    print(export_merged(options.model, options.adapter, Path(options.output), options.dtype))


def demo_command(arguments: Sequence[str]) -> None:
    """Watch the tiny VLM learn to trust its eyes: before, training, after."""
    from cppo_ref.demo import DemoOptions, run_demo

    run_demo(*parse((DemoOptions,), "demo", arguments))


def pretrain_command(arguments: Sequence[str]) -> None:
    """Make the tiny VLM again from nothing."""
    from cppo_ref.worlds.pretraining import PretrainOptions, pretrain

    (options,) = parse((PretrainOptions,), "pretrain", arguments)
    _check_free(options.output)
    _check_least(options, steps=1, batch_size=1, seed=0)
    pretrain(options)


def study_command(arguments: Sequence[str]) -> None:
    """Run the study of docs/study-protocol.md; what is finished is kept."""
    from study.runner import StudyOptions, run_study

    run_study(*parse((StudyOptions,), "study", arguments))


def data_command(arguments: Sequence[str]) -> None:
    """Write the shape world's splits."""
    from cppo_ref.worlds.splits import write_splits

    (options,) = parse((DataOptions,), "data", arguments)
    _check_free(options.output)
    write_splits(Path(options.output))
    print(f"splits written to {options.output}")


def _check_free(output: str) -> None:
    if output and Path(output).exists():
        raise InputError(f"output {output!r} exists already: choose another --output, nothing was overwritten")


def _check_least(options: Any, **least: int) -> None:
    for name, low in least.items():
        if getattr(options, name) < low:
            raise InputError(f"{name} is {getattr(options, name)}, expected {low} or more")


COMMANDS: dict[str, Callable[[Sequence[str]], None]] = {
    "demo": demo_command,
    "train": train_command,
    "audit": audit_command,
    "evaluate": evaluate_command,
    "export": export_command,
    "pretrain": pretrain_command,
    "study": study_command,
    "data": data_command,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; what the user got wrong ends as one sentence on stderr and exit status 2."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("-h", "--help"):
        print("usage: python -m cppo_ref COMMAND [--help]\n")
        print("\n".join(f"  {name:<10}{command.__doc__}" for name, command in COMMANDS.items()))
        return 0
    quiet()
    try:
        if words[0] not in COMMANDS:
            raise InputError(f"unknown command {words[0]!r}: expected one of {', '.join(COMMANDS)}")
        COMMANDS[words[0]](words[1:])
    except (InputError, ArithmeticError, OSError) as error:
        print(f"cppo_ref: {' '.join(str(error).splitlines())}", file=sys.stderr)
        return 2
    except torch.OutOfMemoryError:  # outside of a step, where training has its own advice
        print("cppo_ref: the GPU's memory ran out: `python -m cppo_ref audit` shows what these settings need", file=sys.stderr)
        return 2
    return 0


def quiet() -> None:
    """Leave out what libraries say about themselves; their errors still come through."""
    import datasets
    import transformers

    warnings.filterwarnings("ignore", category=FutureWarning)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(logging.CRITICAL)  # it reports an unreadable file twice: here, and as the exception
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


if __name__ == "__main__":
    sys.exit(main())
