"""The options of the commands: from dataclasses, with errors of one sentence."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from transformers import HfArgumentParser

from cppo_ref.config import PRESETS, CPPOConfig, InputError, setting
from cppo_ref.runs.checks import nearest
from cppo_ref.vlm.profiles import PROFILES


@dataclass(frozen=True)
class TrainFlags:
    """Where the settings of a run come from; later ones win: preset, profile, config file, options."""

    preset: str = setting("cppo-ref", f"loss choices to start from, of the paper, its code, or ours: {', '.join(PRESETS)}")
    profile: str = setting("", f"real VLM on one GPU: {', '.join(PROFILES)}; empty: the course's tiny VLM")
    config: str = setting("", "JSON file of settings, such as a run folder's config.json")
    resume: bool = setting(False, "go on from the newest whole checkpoint of --output")
    checkpoint: str = setting("", "with --resume: the checkpoint to go on from, such as step-000020; later ones are dropped")


@dataclass(frozen=True)
class EvaluateFlags:
    """What to judge, beside the settings of its run."""

    adapter: str = setting("", "folder of a trained adapter, with its run's config.json beside it; empty: the model as it is")
    split: str = setting("test", "split of a Hub dataset or an image folder; a file has only its own rows")
    images: int = setting(300, "rows to judge, 8 completions each")
    report: str = setting("", "JSON file to write the numbers to; it must not exist")


@dataclass(frozen=True)
class ExportOptions:
    """Merge an adapter into 16-bit weights and check that the merged model computes the same."""

    adapter: str = setting("runs/cppo/adapter", "folder of a trained adapter")
    output: str = setting("runs/merged", "folder for the merged model; it must not exist")
    model: str = setting("", "the VLM that the adapter was trained on; empty: its run's, else the tiny one")
    dtype: str = setting("bfloat16", "bfloat16 or float16")
    device: str = setting("cpu", "cpu, cuda or auto; the peak is printed first")


class Parser(HfArgumentParser):
    """Options from dataclasses; errors are one sentence."""

    def error(self, message: str) -> NoReturn:
        """Raise instead of printing the usage and leaving."""
        raise InputError(f"{message} (see {self.prog} --help)")


def parse(types: Sequence[Any], program: str, arguments: Sequence[str], defaults: dict[str, Any] | None = None) -> tuple:
    """Parse what follows `program` into one instance of each dataclass; an unknown option is named with the nearest one."""
    parser = Parser(tuple(types), prog=program, allow_abbrev=False)
    parser.set_defaults(**(defaults or {}))
    *parsed, rest = parser.parse_args_into_dataclasses(list(arguments), return_remaining_strings=True)
    if rest:
        known = [option for action in parser._actions for option in action.option_strings]
        hint = nearest(rest[0].split("=")[0], known, f"see {program} --help")
        raise InputError(f"unknown option {rest[0]!r}{hint}")
    return tuple(parsed)


def settings(command: str, arguments: Sequence[str], *others: Any) -> tuple:
    """(CPPOConfig, TrainFlags, one instance of each of `others`): a run's settings; InputError for what does not fit.

    Where `others` name an adapter and no config file is given, the config.json of the adapter's run is read.
    """
    types, program = (CPPOConfig, TrainFlags, *others), f"python -m cppo_ref {command}"
    _, flags, *named = parse(types, program, arguments)
    if flags.profile and flags.profile not in PROFILES:
        raise InputError(f"profile is {flags.profile!r}, expected one of {', '.join(PROFILES)}")
    chosen = {**PROFILES.get(flags.profile, {}), **_read_config(flags.config)}
    if not flags.config:
        chosen |= next((run_settings(options.adapter) for options in named), {})
    usual = CPPOConfig(**{name: chosen[name] for name in ("data", "level") if name in chosen}).max_new_tokens
    if chosen.get("max_new_tokens") == usual:
        del chosen["max_new_tokens"]  # it followed from data and level, and does so again
    CPPOConfig.preset(flags.preset, **chosen)  # names what is wrong with them
    # only what they set: what follows from other settings must follow those of the command line
    return parse(types, program, arguments, {**PRESETS[flags.preset], **chosen})


def run_settings(adapter: str) -> dict[str, Any]:
    """The settings of the run that `adapter` lies in, beside its checkpoints or in one of them; empty if it lies elsewhere."""
    places = Path(adapter or ".").resolve().parents
    found = [place / "config.json" for place in (*places[:1], *places[2:3]) if (place / "config.json").is_file()]
    return _read_config(str(found[0])) if adapter and found else {}


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


def check_free(path: str, option: str = "output") -> None:
    """InputError if the `path` given as `option` exists."""
    if option == "output" and not path.strip():
        raise InputError("output is '', expected the name of a folder")
    if path and Path(path).exists():
        raise InputError(f"{option} {path!r} exists already: choose another --{option}, nothing was overwritten")


def check_between(options: Any, **ranges: tuple[int, int]) -> None:
    """InputError if an option is not in its range, ends included."""
    for name, (low, high) in ranges.items():
        if not low <= getattr(options, name) <= high:
            raise InputError(f"{name} is {getattr(options, name)}, expected {low} or more and at most {high:,}")
