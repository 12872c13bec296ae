"""Write the study's tables into docs/results.md and README from the committed results; with --check, only compare.

--figures draws docs/images/forest.png, regimes.png and curves.png as well.
"""

# ruff: noqa: E501 (the page is prose)
import json
import sys
from pathlib import Path

import numpy as np
from blocks import filled, write_or_check

from cppo_ref.plots import save_figure
from cppo_ref.study.analysis import PRIMARY_BASES, PRIMARY_PAIRS, difference, primary_family
from cppo_ref.study.figures import forest_plot, regime_map
from cppo_ref.study.report import (
    alignment_table,
    complete,
    coverage_table,
    detector_table,
    differences_table,
    final_rows,
    hypotheses_table,
    levels_table,
    missed_table,
    primary_table,
    questions_table,
    regimes,
    seeds_of,
)
from cppo_ref.study.store import read_csv, read_parquet

ROOT = Path(__file__).parent.parent
RESULTS, IMAGES = ROOT / "data" / "results", ROOT / "docs" / "images"
ROWS = read_csv(RESULTS / "study.csv")
FINAL = final_rows(ROWS)
CURVES = read_parquet(RESULTS / "curves.parquet")
BASE_WORDS = {
    "tiny": "never shown preserving shifts",
    "robust": "shown preserving shifts in pretraining",
    "hallucinating": "more of its pretraining text is guesses",
}


def answer() -> str:
    """The primary family in one paragraph."""
    if not complete(FINAL):
        return "No answer yet: the runs of the primary family are not complete."
    family = {(found.base, found.other): (found, word) for found, _, word in primary_family(FINAL)}
    sentences = []
    for base in PRIMARY_BASES:
        (plain, said), (augmented, said_too) = (family[base, other] for _, other in PRIMARY_PAIRS)
        cost = difference(FINAL, base, "cppo", "grpo", "avg_at_8")
        sentences.append(
            f"- **{base}** ({BASE_WORDS[base]}): CPPO − GRPO {plain.interval}, *{said}*; CPPO − GRPO with augmentation "
            f"{augmented.interval}, *{said_too}*. On plain images CPPO − GRPO is {cost.interval}."
        )
    seeds = len(seeds_of(FINAL, "tiny", "cppo"))
    opening = f"avg@8 on 300 shifted test images, {seeds} seeds per arm and base, paired by seed, 95 % intervals:"
    return "\n".join([opening, "", *sentences])


def levels() -> str:
    """The levels of every base, one table each."""
    return "\n\n".join(f"Base `{base}`:\n\n{levels_table(FINAL, base)}" for base in bases())


def differences() -> str:
    """Arm minus GRPO on every base, one table each."""
    return "\n\n".join(f"Base `{base}`:\n\n{differences_table(FINAL, base)}" for base in bases())


def bases() -> list[str]:
    """The bases that have rows of GRPO, in the protocol's order."""
    return [base for base in (*PRIMARY_BASES, "shortcut") if seeds_of(FINAL, base, "grpo")]


def failures() -> str:
    """The gallery's counts in sentences."""
    found = json.loads((RESULTS / "failures.json").read_text())
    return FAILURES.format(**found).replace("%", " %")


FAILURES = """A CPPO run on `tiny` with validation seed {seed}, looked at after {train_steps} steps: the {completions} rewarded
completions (A > 0) of {prompts} prompts, {tokens} tokens. Of each kind, the first in the batch that is on a picture of its own is shown.

**A token that is no percept is marked**: {marked_share:.0%} of the marked tokens. The top half of all tokens with ΔH > 0 is taken, however small ΔH is:
their median shift is {marked_shift:.4f} nats, and {marked_undecided:.0%} are below 0.01 nats ({hit_undecided:.0%} of the marked percepts are; their median is {hit_shift:.3f}).

![The completion's tokens coloured by entropy shift, the number in the box marked](images/failure_marked.png)

**A percept is missed**: {missed_share:.0%} of the percepts. The removing view left them to be seen: in the cell of a missed percept it changed
the pixels by {missed_change:.3f} of full scale on average, in that of a marked one by {hit_change:.3f}.

![A completion in which the colour of a cell that no noise covers is not marked](images/failure_missed.png)

**A wrong percept of a rewarded completion is marked**: {wrong_rows:.0%} of these completions have one; the reward sees only the count. Is it reinforced?
In a small step along CPL's gradient alone, the log-probability of marked wrong percepts under I⁺ moves by {wrong_rise:+.3f} on average per unit of length, that of right ones by {right_rise:+.3f}; it rises
for {wrong_rises:.0%} and {right_rises:.0%} of them. CPL pulls towards the distribution π(· | I), not towards the token that was sampled, and the wrong token is that distribution's first choice in {wrong_likeliest:.0%} of the cases (the right one in {right_likeliest:.0%}).

![A completion in which a cell is named wrongly, marked, and rewarded](images/failure_wrong.png)"""

BLOCKS = {
    "answer": answer,
    "primary": lambda: primary_table(FINAL),
    "missed": lambda: missed_table(FINAL) if complete(FINAL) else "Not computed before the family is complete.",
    "levels": levels,
    "differences": differences,
    "hypotheses": lambda: hypotheses_table(ROWS, CURVES),
    "alignment": lambda: alignment_table(CURVES),
    "detector": lambda: detector_table(read_csv(RESULTS / "detector.csv")),
    "failures": failures,
    "questions": lambda: questions_table(FINAL) if complete(FINAL) else "Not computed before the family is complete.",
    "coverage": lambda: coverage_table(FINAL),
    "cost": lambda: cost(),
}


def cost() -> str:
    """How much more time a CPPO step takes."""
    if not seeds_of(FINAL, "tiny", "cppo"):
        return "Not measured before the first runs."
    seconds = {
        arm: np.mean([float(r["seconds"]) for r in FINAL if (r["base"], r["arm"]) == ("tiny", arm)]) for arm in ("grpo", "cppo")
    }
    ratio = seconds["cppo"] / seconds["grpo"]
    return f"80 steps take {seconds['grpo']:.0f} CPU seconds with GRPO and {seconds['cppo']:.0f} with CPPO on `tiny`: a ratio of {ratio:.2f}."


def draw() -> None:
    """The figures of docs/results.md."""
    family = [difference(FINAL, base, *pair) for pair in PRIMARY_PAIRS for base in PRIMARY_BASES]
    save_figure(forest_plot(family), IMAGES / "forest.png")
    save_figure(regime_map(regimes(FINAL), metric="avg@8"), IMAGES / "regimes.png")


if __name__ == "__main__":
    if "--figures" in sys.argv:
        sys.argv.remove("--figures")
        draw()
    pages = [ROOT / "docs" / "results.md", ROOT / "README.md"]
    sys.exit(write_or_check({page: filled(page.read_text(), "scripts/study_report.py", BLOCKS) for page in pages}, __doc__))
