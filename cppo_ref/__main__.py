"""The command line: python -m cppo_ref COMMAND --help."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from cppo_ref.config import InputError
from cppo_ref.runs.commands import run_command
from cppo_ref.runs.options import EvaluateFlags, ExportOptions, check_between, check_free, parse, run_settings, settings


def train_command(arguments: Sequence[str]) -> None:
    """Train a policy; writes a run folder."""
    from cppo_ref.training import train
    from cppo_ref.vlm.audit import audit

    config, flags = settings("train", arguments)
    if flags.profile:
        print(audit(config, flags.profile), flush=True)
    result = train(config, resume=flags.resume, checkpoint=flags.checkpoint)
    print(f"{len(result.history)} steps in {result.output}; adapter in {result.adapter}")


def audit_command(arguments: Sequence[str]) -> None:
    """Show what is in 4 bits, what learns, and the memory a step needs; takes the options of train."""
    from cppo_ref.vlm.audit import audit

    config, flags = settings("audit", arguments)
    print(audit(config, flags.profile))


def probe_command(arguments: Sequence[str]) -> None:
    """Try a model on rows before training: does it look, can it learn, what to change; takes the options of train."""
    from cppo_ref.examples.loading import rows_for
    from cppo_ref.examples.overlong import drop_overlong
    from cppo_ref.runs.probe import probe_text, run_probe
    from cppo_ref.vlm.policy import policy_for

    config, _ = settings("probe", arguments)
    rows, policy = rows_for(config), policy_for(config)
    rows = drop_overlong(policy, rows, config)
    print(probe_text(run_probe(policy, rows, config, config.probe_rows or 8), config))


def evaluate_command(arguments: Sequence[str]) -> None:
    """Evaluate a policy at temperature 1, on its images and blank ones; takes the options of train, by default its run's."""
    from cppo_ref.runs.report import evaluate_run, report_text, write_report
    from cppo_ref.vlm.memory import GIGABYTE, evaluation_peak

    config, _, options = settings("evaluate", arguments, EvaluateFlags)
    check_free(options.report, "report")
    check_between(options, images=(1, 10**6))
    print(f"estimated memory at the peak: {evaluation_peak(config) / GIGABYTE:.1f} GB")
    report = evaluate_run(config, options.adapter, options.split, options.images)
    print(report_text(report))
    if options.report:
        write_report(report, Path(options.report))


def export_command(arguments: Sequence[str]) -> None:
    """Merge an adapter into a stand-alone 16-bit model."""
    from cppo_ref.vlm.export import export_merged, export_peak
    from cppo_ref.vlm.memory import GIGABYTE

    (options,) = parse((ExportOptions,), "python -m cppo_ref export", arguments)
    check_free(options.output)
    run = run_settings(options.adapter)
    model = options.model or run.get("model", "tiny")
    print(f"estimated memory at the peak: {export_peak(model) / GIGABYTE:.1f} GB")
    how = {"dtype": options.dtype, "device": options.device, "quantize": run.get("quantize", "nf4")}
    print(export_merged(model, options.adapter, Path(options.output), **how))


COMMANDS: dict[str, Callable[[Sequence[str]], None]] = {
    "train": train_command,
    "audit": audit_command,
    "probe": probe_command,
    "evaluate": evaluate_command,
    "export": export_command,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("-h", "--help"):
        print("usage: python -m cppo_ref COMMAND [--help]\n")
        print("\n".join(f"  {name:<10}{command.__doc__}" for name, command in COMMANDS.items()))
        return 0
    return run_command("cppo_ref", lambda: command_named(words[0])(words[1:]))


def command_named(name: str) -> Callable[[Sequence[str]], None]:
    """One of COMMANDS; InputError for another name."""
    if name not in COMMANDS:
        raise InputError(f"unknown command {name!r}: expected one of {', '.join(COMMANDS)}")
    return COMMANDS[name]


if __name__ == "__main__":
    sys.exit(main())
