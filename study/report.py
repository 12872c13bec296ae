"""The study's results as Markdown, computed from the committed tables and from nothing else."""

from collections.abc import Sequence

import numpy as np

from study.analysis import (
    ALPHA,
    PRIMARY_BASES,
    PRIMARY_METRIC,
    PRIMARY_PAIRS,
    SEEDS,
    Difference,
    Rows,
    bootstrap_interval,
    difference,
    has_seeds,
    minimal_effect,
    paired,
    per_seed,
    primary_family,
    seeds_of,
    verdict,
)
from study.arms import MAIN
from study.bases import FIRST_BASES
from study.comparisons import attempt, table
from study.hypotheses import outcomes

MAP_PAIRS = (*PRIMARY_PAIRS, ("cppo", "grpo_equal_time"), ("cppo_longer", "grpo_equal_time"))
PILOT_SEEDS = (0, 1, 2)  # looked at before the protocol was written
# what a reviewer of single runs would ask: (what is compared, with which arm, on which metric)
QUESTIONS = {
    "Is the gain larger than the luck of the seed?": (
        ("shifted avg@8", "grpo", "shift_avg_at_8"),
        ("plain avg@8", "grpo", "avg_at_8"),
    ),
    "Does it hold for greedy answers?": (("shifted greedy", "grpo", "shift_greedy"), ("plain greedy", "grpo", "greedy")),
    "Is it more than image augmentation?": (("shifted avg@8", "grpo_augmented", "shift_avg_at_8"),),
    "Does it see better?": (("plain perception", "grpo", "perception"), ("shifted perception", "grpo", "shift_perception")),
    "Is reasoning preserved?": (("plain reasoning", "grpo", "reasoning"), ("shifted reasoning", "grpo", "shift_reasoning")),
    "Is the answer stable under a preserving view?": (("consistency", "grpo", "consistency"),),
    "Does it doubt when the evidence is gone?": (("sensitivity, nats", "grpo", "sensitivity"),),
    "Do the detected tokens agree better with the truth?": (("AUROC of ΔH", "grpo", "detector_auroc"),),
}


def final_rows(rows: Rows, seeds: Sequence[int] = SEEDS) -> Rows:
    """The trained arms on test images with the protocol's seeds: what primary and secondary results are computed from."""
    return [row for row in rows if int(row["seed"]) in seeds and row["arm"] != "untrained"]


def curves_of(rows: Rows, curves: Rows) -> Rows:
    """The curves of the runs in `rows`."""
    runs = {(row["base"], row["arm"], int(row["seed"])) for row in rows}
    return [point for point in curves if (point["base"], point["arm"], int(point["seed"])) in runs]


def complete(rows: Rows, seeds: Sequence[int] = SEEDS) -> bool:
    """Whether the primary family can be tested: every arm and base of it has exactly the seeds of the protocol."""
    arms = {arm for pair in PRIMARY_PAIRS for arm in pair}
    return all(has_seeds(rows, base, arms, seeds) for base in PRIMARY_BASES)


def coverage_table(rows: Rows) -> str:
    """How many seeds each arm has on each base: what was run, and what was not."""
    counted = {arm.name: [len(seeds_of(rows, base, arm.name)) for base in FIRST_BASES] for arm in MAIN}
    lines = [[f"`{arm}`", *(str(count) if count else "not run" for count in counts)] for arm, counts in counted.items()]
    return table(["arm, seeds on", *FIRST_BASES], lines)


def primary_table(rows: Rows) -> str:
    """The pre-registered comparisons with their verdicts; only for rows that are `complete`."""
    later = [row for row in rows if int(row["seed"]) not in PILOT_SEEDS]
    lines = []
    for found, p, word in primary_family(rows):
        again = difference(later, found.base, found.arm, found.other)
        lines.append([found.base, f"{found.arm} − {found.other}", found.interval, f"{p:.3f}", f"**{word}**", again.interval])
    header = ["base", "comparison", "difference in avg@8 on shifted images", "p (Holm)", "verdict", "without seeds 0–2"]
    return table(header, lines)


def questions_table(rows: Rows, base: str = "tiny") -> str:
    """A reviewer's questions, each with the differences that answer it; unadjusted intervals."""
    lines = []
    for question, asked in QUESTIONS.items():
        for what, other, metric in asked:
            lines.append([question, f"{what}, CPPO − `{other}`", difference(rows, base, "cppo", other, metric).interval])
            question = ""
    return table(["question", f"measured on `{base}`", "difference [95 %]"], lines)


def missed_table(rows: Rows) -> str:
    """What these seeds could have missed: the effect found with power 0.8 at Holm's strictest level, at the observed spread."""
    alpha = ALPHA / len(PRIMARY_BASES) / len(PRIMARY_PAIRS)
    lines = []
    for base in PRIMARY_BASES:
        for arm, other in PRIMARY_PAIRS:
            gaps = paired(rows, base, arm, other, PRIMARY_METRIC)
            spread = float(gaps.std(ddof=1))
            lines.append([base, f"{arm} − {other}", f"{spread:.3f}", f"{minimal_effect(spread, len(gaps), alpha):.3f}"])
    return table(["base", "comparison", "standard deviation over seeds", "found with power 0.8 if at least"], lines)


def hypotheses_table(rows: Rows, curves: Rows) -> str:
    """H1–H8: outcome and evidence."""
    lines = [[found.name, found.claim, f"**{found.verdict}**", found.evidence] for found in outcomes(rows, curves)]
    return table(["", "hypothesis", "outcome", "evidence (avg@8 on shifted images unless it says otherwise)"], lines)


def alignment_table(curves: Rows, bases: Sequence[str] = FIRST_BASES) -> str:
    """Cosine of ∇(λ·CPL) and ∇GRPO and the ratio of their norms, of arms that have both: means over a run, then over seeds."""
    lines = []
    for base in bases:
        for arm in (arm.name for arm in MAIN if arm.changes.get("policy_weight") != 0):
            cosine, ratio = (
                attempt(lambda b=base, a=arm, m=metric: per_seed(curves, b, a, m))
                for metric in ("gradient_cosine", "gradient_ratio")
            )
            if cosine is not None and ratio is not None:
                lines.append([base, f"`{arm}`", seed_mean(cosine, "+.3f"), seed_mean(ratio, ".3f")])
    return table(["base", "arm", "cosine [95 % over seeds]", "norm ratio CPL / GRPO [95 % over seeds]"], lines)


def seed_mean(values: np.ndarray, form: str) -> str:
    """The mean over seeds with its 95 % interval, as text."""
    low, high = bootstrap_interval(values)
    return f"{values.mean():{form}} [{low:{form}}, {high:{form}}]"


def detector_table(rows: Rows, metric: str = "auroc_absolute") -> str:
    """AUROC of ΔH before any training: a line per removing view, a column per base; mean over seeds."""
    views = list(dict.fromkeys((row["view"], row["strength"]) for row in rows))
    lines = []
    for view, strength in views:
        cells = [
            [float(r[metric]) for r in rows if (r["base"], r["view"], r["strength"]) == (b, view, strength)]
            for b in FIRST_BASES
        ]
        lines.append([f"{view} ×{strength}", *(f"{np.mean(cell):.3f}" if cell else "–" for cell in cells)])
    counts = [len({row["seed"] for row in rows if row["base"] == base}) for base in FIRST_BASES]
    lines.append(["seeds of the samples", *(str(count) if count else "not run" for count in counts)])
    return table(["removing view × strength", *FIRST_BASES], lines)


def regimes(rows: Rows, pairs: Sequence[tuple[str, str]] = MAP_PAIRS) -> dict[tuple[str, str], tuple[Difference, str]]:
    """The cells of the regime map: (comparison, base and images) -> (difference, word by the interval alone).

    Exploratory, unadjusted. The words are not the verdicts': "equal" where the interval is inside ±0.02, else "above" or
    "below" where it excludes 0, else "open".
    """
    words = {"helps": "above", "hurts": "below", "equal": "equal", "undecided": "open"}
    cells = {}
    for arm, other in pairs:
        for base in FIRST_BASES:
            for metric, images in (("avg_at_8", "plain"), (PRIMARY_METRIC, "shifted")):
                found = attempt(lambda a=arm, o=other, b=base, m=metric: difference(rows, b, a, o, m))
                if found:
                    cells[f"{arm} − {other}", f"{base}\n{images}"] = found, words[verdict(found, 0.0)]
    return cells
