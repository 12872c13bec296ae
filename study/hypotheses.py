"""The protocol's hypotheses H1–H8 as rules over the rows: what was predicted, what would refute it, what the runs say.

Each rule returns an outcome and its evidence. "supported": all of the prediction holds; "refuted": what the protocol names as
refutation holds; "undecided": neither; "not run": rows are missing. "above x" means that the whole interval is above x, "equal
or below" that it is below 0.02. The protocol's log lists where its words had to be made exact.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from cppo_ref.config import InputError
from study.analysis import (
    MARGIN,
    SWEEP_SEEDS,
    Difference,
    Rows,
    bootstrap_interval,
    difference,
    has_seeds,
    per_seed,
    primary_family,
    whole_arms,
)
from study.arms import MAIN


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
    """H1: `pull` keeps half of the gain, `push` has none; without a gain there is nothing to divide."""
    gain, pull, push = (difference(rows, "tiny", arm, "grpo") for arm in ("cppo", "pull", "push"))
    half = pull.value >= gain.value / 2
    verdict = judged(half and equal_or_below(push), not half or push.low > MARGIN) if gain.low > 0 else "undecided"
    return verdict, "; ".join([f"CPPO − GRPO {gain.interval}", f"pull − GRPO {pull.interval}", f"push − GRPO {push.interval}"])


def needs_the_vision_tower(rows: Rows, curves: Rows) -> tuple[str, str]:
    """H2: no gain with adapters on the language layers only, a gain with adapters on the vision tower only."""
    language, vision = (difference(rows, "tiny", f"cppo_{scope}", f"grpo_{scope}") for scope in ("language", "vision"))
    verdict = judged(equal_or_below(language) and vision.low > 0, language.low > MARGIN)
    return verdict, "; ".join([f"language only {language.interval}", f"vision only {vision.interval}"])


def strong_removal_saturates(rows: Rows, curves: Rows) -> tuple[str, str]:
    """H3: gain and gradient ratio fall along the removing strength 1, 2, 4 and blank; on validation seeds.

    Strength 4 minus strength 1, paired by seed, decides: GRPO is the same for both, so it cancels.
    """
    late = [row for row in rows if int(row["seed"]) in SWEEP_SEEDS]
    arms = ["cppo", "cppo-removing_strength=2.0", "cppo-removing_strength=4.0", "cppo-removing=blank"]
    if not has_seeds(late, "tiny", ["grpo", *arms], SWEEP_SEEDS):
        raise InputError("H3 needs the sweep of removing_strength on seeds 100-104: run it first")
    gains = [difference(late, "tiny", arm, "grpo") for arm in arms]
    ratios = [per_seed(curves, "tiny", arm, "gradient_ratio", SWEEP_SEEDS) for arm in arms]
    gain, ratio = difference(late, "tiny", arms[2], arms[0]), bootstrap_interval(ratios[2] - ratios[0])
    means = [one.value for one in gains], [one.mean() for one in ratios]
    falls = all(np.diff(means[0]) < 0) and all(np.diff(means[1]) < 0)
    shown = ", ".join(f"{one.interval} and {ratio.mean():.3f}" for one, ratio in zip(gains, ratios, strict=True))
    verdict = judged(falls and gain.high < 0 and ratio[1] < 0, gain.low > 0 or ratio[0] > 0)
    return verdict, f"validation seeds; gain and gradient ratio at 1, 2, 4, blank: {shown}"


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
    """H7: on `shortcut`, CPPO is above GRPO on shifted images. Its half about blank images was withdrawn with their measure."""
    found = difference(rows, "shortcut", "cppo", "grpo")
    return judged(found.low > 0, equal_or_below(found)), f"CPPO − GRPO {found.interval}"


def where_it_hurts_it_fights(rows: Rows, curves: Rows) -> tuple[str, str]:
    """H8: arms below GRPO on plain images have a negative gradient cosine or a gradient ratio above 1.

    An arm with adapters on a part of the model is compared with GRPO on the same part.
    """
    both = [arm for arm in MAIN if arm.changes.get("cpl_weight") != 0 and arm.changes.get("policy_weight") != 0]
    if not has_seeds(rows, "tiny", [name for arm in both for name in (arm.name, arm.baseline)]):
        raise InputError("H8 needs all arms with CPL on base tiny: run them first")
    groups: dict[str, list[str]] = {"against it": [], "not": [], "open": []}
    for arm in both:
        if difference(rows, "tiny", arm.name, arm.baseline, "avg_at_8").high >= 0:
            continue
        cosine = bootstrap_interval(per_seed(curves, "tiny", arm.name, "gradient_cosine"))
        ratio = bootstrap_interval(per_seed(curves, "tiny", arm.name, "gradient_ratio"))
        fights, peaceful = cosine[1] < 0 or ratio[0] > 1, cosine[0] >= 0 and ratio[1] <= 1
        groups["against it" if fights else "not" if peaceful else "open"].append(arm.name)
    below = sum(map(len, groups.values()))
    told = f"{below} of {len(both)} arms are below GRPO on plain images"
    shown = [f"{word}: {', '.join(names) or 'none'}" for word, names in groups.items()]
    verdict = judged(below > 0 and len(groups["against it"]) == below, bool(groups["not"]))
    return verdict, "; ".join([told, *shown])


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
    """What became of each hypothesis; "not run" unless its arms have all seeds of the protocol. Nothing else is looked at."""
    final, found = whole_arms(rows), []
    for name, (claim, rule) in HYPOTHESES.items():
        try:
            verdict, evidence = rule(rows if name == "H3" else final, curves)
        except InputError:
            verdict, evidence = "not run", "–"
        found.append(Outcome(name, claim, verdict, evidence))
    return found
