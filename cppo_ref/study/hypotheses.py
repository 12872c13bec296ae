"""The protocol's hypotheses H1–H8 as rules over the rows: what was predicted, what would refute it, what the runs say.

Each rule returns an outcome and its evidence. "supported": all of the prediction holds; "refuted": what the protocol names as
refutation holds; "undecided": neither; "not run": rows are missing. "above x" means that the whole interval is above x.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cppo_ref.config import InputError
from cppo_ref.shapes import LEVELS
from cppo_ref.study.analysis import MARGIN, Difference, bootstrap_interval, difference, primary_family
from cppo_ref.study.arms import MAIN
from cppo_ref.study.plan import VALIDATION_SEEDS

Rows = Sequence[dict[str, Any]]
SEEDS = 10  # of each arm, by the protocol


@dataclass(frozen=True)
class Outcome:
    """What became of a hypothesis, and the numbers that say so."""

    name: str
    claim: str
    verdict: str
    evidence: str


def judged(supported: bool, refuted: bool) -> str:
    """The outcome's word; a refutation outweighs support."""
    return "refuted" if refuted else "supported" if supported else "undecided"


def equal_or_below(found: Difference) -> bool:
    """Whether the whole interval is below +0.02."""
    return found.high < MARGIN


def pull_does_the_work(rows: Rows, curves: Rows) -> tuple[str, str]:
    """H1: `pull` keeps half of the gain, `push` has none."""
    gain, pull, push = (difference(rows, "tiny", arm, "grpo") for arm in ("cppo", "pull", "push"))
    half = pull.value >= gain.value / 2
    verdict = judged(half and equal_or_below(push), not half or push.low > MARGIN)
    return verdict, "; ".join([f"CPPO − GRPO {gain.interval}", f"pull − GRPO {pull.interval}", f"push − GRPO {push.interval}"])


def needs_the_vision_tower(rows: Rows, curves: Rows) -> tuple[str, str]:
    """H2: no gain with adapters on the language layers only, a gain with adapters on the vision tower only."""
    language, vision = (difference(rows, "tiny", f"cppo_{scope}", f"grpo_{scope}") for scope in ("language", "vision"))
    verdict = judged(equal_or_below(language) and vision.low > 0, language.low > MARGIN)
    return verdict, "; ".join([f"language only {language.interval}", f"vision only {vision.interval}"])


def strong_removal_saturates(rows: Rows, curves: Rows) -> tuple[str, str]:
    """H3: gain and gradient ratio fall along the removing strength 1, 2, 4 and blank; on validation seeds."""
    late = [row for row in rows if int(row["seed"]) >= VALIDATION_SEEDS]
    arms = ["cppo", "cppo-removing_strength=2.0", "cppo-removing_strength=4.0", "cppo-removing=blank"]
    gains = [difference(late, "tiny", arm, "grpo").value for arm in arms]
    ratios = [float(np.mean(per_seed(curves, "tiny", arm, "gradient_ratio", VALIDATION_SEEDS, 10**6))) for arm in arms]
    falls = all(np.diff(gains) < 0) and all(np.diff(ratios) < 0)
    shown = ", ".join(f"{gain:+.3f} and {ratio:.3f}" for gain, ratio in zip(gains, ratios, strict=True))
    return judged(falls, gains[2] >= gains[0] or ratios[2] >= ratios[0]), f"gain and gradient ratio at 1, 2, 4, blank: {shown}"


def tokens_matter_little(rows: Rows, curves: Rows) -> tuple[str, str]:
    """H4: random, all and true tokens are within ±0.02 of CPPO."""
    found = {name: difference(rows, "tiny", "cppo", f"{name}_tokens") for name in ("random", "all", "true")}
    verdict = judged(all(one.equal for one in found.values()), found["random"].low > MARGIN)
    return verdict, "; ".join(f"CPPO − {name} tokens {one.interval}" for name, one in found.items())


def no_shift_no_gain(rows: Rows, curves: Rows) -> tuple[str, str]:
    """H5: on `robust`, CPPO equals GRPO, with augmentation and without."""
    family = [(found, word) for found, _, word in primary_family(rows) if found.base == "robust"]
    verdict = judged(all(word == "equal" for _, word in family), any(word == "helps" for _, word in family))
    return verdict, "; ".join(f"CPPO − {found.other} {found.interval}" for found, _ in family)


def consistency_not_eyes(rows: Rows, curves: Rows) -> tuple[str, str]:
    """H6: CPPO raises consistency and perception on shifted images, not perception on plain ones."""
    names = ("consistency", "shift_perception", "perception")
    consistent, shifted, plain = (difference(rows, "tiny", "cppo", "grpo", metric) for metric in names)
    verdict = judged(consistent.low > 0 and shifted.low > 0 and plain.high <= MARGIN, plain.low > MARGIN)
    labels = ("consistency", "shifted perception", "plain perception")
    return verdict, "; ".join(
        f"{label} {one.interval}" for label, one in zip(labels, (consistent, shifted, plain), strict=True)
    )


def works_against_a_shortcut(rows: Rows, curves: Rows) -> tuple[str, str]:
    """H7: on `shortcut`, CPPO is above GRPO on shifted images, and blank accuracy comes nearer to the constant guess."""
    guess = 1 / (LEVELS["easy"].max_answer + 1)  # of the easy level, whose answers are uniform
    found = difference(rows, "shortcut", "cppo", "grpo")
    blank = {arm: mean_of(rows, "shortcut", arm, "blank") for arm in ("cppo", "grpo")}
    nearer = abs(blank["cppo"] - guess) < abs(blank["grpo"] - guess)
    evidence = f"CPPO − GRPO {found.interval}; on blank images CPPO {blank['cppo']:.3f}, GRPO {blank['grpo']:.3f}"
    return judged(found.low > 0 and nearer, equal_or_below(found)), evidence


def where_it_hurts_it_fights(rows: Rows, curves: Rows) -> tuple[str, str]:
    """H8: arms below GRPO on plain images have a negative gradient cosine or a gradient ratio above 1."""
    below, fighting = [], []
    both = [arm for arm in MAIN if arm.changes.get("cpl_weight") != 0 and arm.changes.get("policy_weight") != 0]
    arms = [arm.name for arm in both]  # those that have two gradients
    measured = [arm for arm in arms if any((row["base"], row["arm"]) == ("tiny", arm) for row in rows)]
    if not measured:
        raise InputError("no arm with CPL was run on base tiny: run them first")
    for arm in measured:
        found = difference(rows, "tiny", arm, "grpo", "avg_at_8")
        if found.high >= 0:
            continue
        cosine, ratio = (per_seed(curves, "tiny", arm, metric) for metric in ("gradient_cosine", "gradient_ratio"))
        fights = bootstrap_interval(cosine)[1] < 0 or bootstrap_interval(ratio)[0] > 1
        below.append(f"{arm} {found.interval}, cosine {np.mean(cosine):+.3f}, ratio {np.mean(ratio):.2f}")
        fighting.append(fights)
    return judged(all(fighting) and bool(below), not all(fighting)), "; ".join(below) or "no arm is below GRPO"


def per_seed(curves: Rows, base: str, arm: str, metric: str, first: int = 0, last: int = VALIDATION_SEEDS - 1) -> np.ndarray:
    """The mean of a probe over a run, for each seed from `first` to `last`; InputError without any."""
    values: dict[int, list[float]] = {}
    for row in curves:
        value = row[metric]
        if (row["base"], row["arm"]) == (base, arm) and first <= row["seed"] <= last and value is not None and value == value:
            values.setdefault(row["seed"], []).append(value)
    if not values:
        raise InputError(f"no {metric} of {arm} on base {base}: run it first")
    return np.array([np.mean(values[seed]) for seed in sorted(values)])


def mean_of(rows: Rows, base: str, arm: str, metric: str) -> float:
    """The mean of a metric over the seeds of an arm that have it."""
    return float(np.mean([float(row[metric]) for row in rows if (row["base"], row["arm"]) == (base, arm) and row[metric]]))


HYPOTHESES: dict[str, tuple[str, Callable[[Rows, Rows], tuple[str, str]]]] = {
    "H1": ("the pull towards the preserving view does the work", pull_does_the_work),
    "H2": ("CPL helps only where the vision tower can learn", needs_the_vision_tower),
    "H3": ("strong removal saturates the contrast", strong_removal_saturates),
    "H4": ("which tokens matters little", tokens_matter_little),
    "H5": ("no shift to fix, no gain", no_shift_no_gain),
    "H6": ("the gain is consistency, not better eyes", consistency_not_eyes),
    "H7": ("CPL works against a language shortcut", works_against_a_shortcut),
    "H8": ("where CPPO hurts, it fights GRPO", where_it_hurts_it_fights),
}


def outcomes(rows: Rows, curves: Rows) -> list[Outcome]:
    """What became of each hypothesis; "not run" where an arm has fewer than 10 seeds (H3: none).

    Test seeds and validation seeds are never mixed.
    """
    final = [row for row in rows if int(row["seed"]) < VALIDATION_SEEDS]
    counts = Counter((row["base"], row["arm"]) for row in final)
    final = [row for row in final if counts[row["base"], row["arm"]] >= SEEDS]
    found = []
    for name, (claim, rule) in HYPOTHESES.items():
        try:
            verdict, evidence = rule(rows if name == "H3" else final, curves)
        except InputError:
            verdict, evidence = "not run", "–"
        found.append(Outcome(name, claim, verdict, evidence))
    return found
