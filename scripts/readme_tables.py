"""Write README's tables from the committed results; with --check, exit with status 1 if they are not up to date."""

import csv
import json
import statistics
import sys
from pathlib import Path

from blocks import filled, write_or_check

from cppo_ref.config import CPPOConfig
from cppo_ref.vlm.memory import measure, peak
from cppo_ref.vlm.profiles import CAPACITY, PROFILES
from cppo_ref.vlm.quantization import model_config, skeleton
from study.analysis import difference
from study.second import second_rows
from study.store import read_csv

ROOT = Path(__file__).parent.parent
README, RESULTS = ROOT / "README.md", ROOT / "data" / "results"
NAMES = {"untrained": "before training (3 samplings)", "grpo": "GRPO", "cppo": "CPPO"}


def seeds_table() -> str:
    """Accuracy per method and kind of image with the package's defaults, over the seeds of the study's second family.

    Before training the seeds are those of the sampling.
    """
    rows = read_csv(RESULTS / "study.csv")
    trained = second_rows(rows)
    everything = [*trained, *(row for row in rows if row["arm"] == "untrained")]
    shown = {"avg_at_8": "plain", "shift_avg_at_8": "shifted", "greedy": "plain, greedy"}
    lines = [f"| share of right answers, mean (lowest to highest seed) | {' | '.join(shown.values())} |", "|---|---|---|---|"]
    for arm, name in NAMES.items():
        values = [[float(row[m]) for row in everything if (row["base"], row["arm"]) == ("tiny", arm)] for m in shown]
        cells = (f"**{statistics.mean(one):.3f}** ({min(one):.3f} to {max(one):.3f})" for one in values)
        lines.append(f"| {name} | {' | '.join(cells)} |")
    found = {name: difference(trained, "tiny", "cppo", "grpo", metric) for metric, name in shown.items()}
    lines += ["", "CPPO minus GRPO, paired by seed, 95 % intervals and the sign-flip test's p:"]
    return "\n".join(lines + [f"- {name}: {one}, p = {one.p:.3f}" for name, one in found.items()])


def demo_output() -> str:
    """What `make demo` printed."""
    return f"```\n{(RESULTS / 'demo_output.txt').read_text().strip()}\n```"


def times() -> str:
    """The table of measured durations."""
    with (RESULTS / "times.csv").open() as file:
        rows = list(csv.DictReader(file))
    lines = ["| what | minutes | machine |", "|---|---|---|"]
    return "\n".join(lines + [f"| {row['what']} | {float(row['seconds']) / 60:.1f} | {row['machine']} |" for row in rows])


DETECTOR = """Good detection is not what earns it: 50 noise patches, as many as the authors draw, leave most of these large
shapes visible. Before training the entropy shift ranks tokens no better than chance over the whole batch (AUROC
{auroc_absolute:.2f}). Of the tokens that it selects, {precision:.0%} are perception tokens, and half of all tokens are.
[The model's card](data/tiny-vlm/README.md) has the table by view and strength."""


def detector() -> str:
    """How well the entropy shift detects at the authors' strength, in a sentence."""
    report = json.loads((ROOT / "data" / "tiny-vlm" / "evaluation.json").read_text())
    return DETECTOR.format(**report["detector"]["noise_patches ×1"]).replace("%", " %")


def memory() -> str:
    """The profiles: what the estimate says, and what a GPU said."""
    path = RESULTS / "gpu_memory.csv"
    rows = list(csv.DictReader(path.open())) if path.exists() else []
    measured = {row["case"]: row for row in rows if row["implementation"] == "cppo_ref"}
    others = [row for case, row in measured.items() if case not in PROFILES]
    lines = ["| profile | model | image, completion | estimated peak | measured peak |", "|---|---|---|---|---|"]
    for name, settings in PROFILES.items():
        run = CPPOConfig(**settings)
        needed = peak(measure(skeleton(model_config(run.model), run), run.max_pixels), run)
        side = round(run.max_pixels**0.5)
        seen = _measured(measured[name]) if name in measured else "not measured yet"
        task = f"{side} × {side}, {run.max_new_tokens} tokens"
        share = f"{needed / 1e9:.1f} GB of {CAPACITY[name] / 1e9:.0f}"
        lines.append(f"| `{name}` | {run.model.split('/')[-1]} | {task} | {share} | {seen} |")
    lines += [f"| {row['case']} | {row['model'].split('/')[-1]} | | | {_measured(row)} |" for row in others]
    return "\n".join(lines)


def _measured(row: dict[str, str]) -> str:
    if row["fits"] != "True":
        return f"out of memory under {row['cap_gb']} GB on a {row['gpu']}"
    return f"{float(row['peak_gb']):.1f} GB of tensors ({float(row['predicted_gb']):.1f} predicted) on a {row['gpu']}"


BLOCKS = {"demo output": demo_output, "seeds table": seeds_table, "detector": detector, "memory": memory, "times": times}

if __name__ == "__main__":
    sys.exit(write_or_check({README: filled(README.read_text(), "scripts/readme_tables.py", BLOCKS)}, __doc__))
