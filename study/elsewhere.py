"""Whether what `tiny` says of the ways to build CPPO holds on the other bases, and why random tokens are better there.

Exploratory; the rules are those of the protocol's log.
"""

from study.analysis import PRIMARY_BASES, PRIMARY_METRIC, Difference, Rows, bootstrap_interval, difference, has_seeds, paired
from study.arms import MAIN
from study.comparisons import SHOWN, baseline_pairs, table
from study.hypotheses import judged
from study.report import seed_mean

METRICS = (PRIMARY_METRIC, "avg_at_8")
OPPOSITE = {"above": "below", "below": "above"}


def other_ways() -> list[str]:
    """The arms that train all layers on reward and a perception loss, in another way than `cppo`; PAPO is the last."""
    ours = [
        arm.name
        for arm in MAIN
        if arm.changes and arm.baseline == "grpo" and not {"cpl_weight", "policy_weight"} & arm.changes.keys()
    ]
    return [*ours, "papo"]


def settings_table(rows: Rows, base: str = "tiny") -> str:
    """CPPO minus every arm that builds it in another way: what a choice earns."""
    lines = [
        [f"`cppo` − `{other}`", *(difference(rows, base, "cppo", other, metric).interval for metric in METRICS)]
        for other in other_ways()
        if has_seeds(rows, base, ["cppo", other])
    ]
    return table([f"on `{base}`, ten seeds", "shifted avg@8 [95 %]", "plain avg@8"], lines)


def word_of(found: Difference) -> str:
    """ "equal" if the interval is inside ±0.02, "above" or "below" if it excludes 0, else "open"."""
    return "equal" if found.equal else "above" if found.low > 0 else "below" if found.high < 0 else "open"


def carry_table(rows: Rows) -> str:
    """`tiny`'s word for each other way to build CPPO beside those of the other bases, and how many of them agree."""
    lines = [
        [f"`cppo` − `{other}`"]
        + [word_of(difference(rows, base, "cppo", other, metric)) for metric in METRICS for base in PRIMARY_BASES]
        for other in other_ways()
        if all(has_seeds(rows, base, ["cppo", other]) for base in PRIMARY_BASES)
    ]
    told = []
    for base in PRIMARY_BASES[1:]:
        held = held_against_tiny(rows, base)
        numbers = [len(held[kind]) for kind in ("agrees", "equal", "open", "reversed")]
        told.append(
            "Of `tiny`'s {} differences, `{}` agrees with {}, is *equal* in {}, *open* in {} and reverses {}.".format(
                sum(numbers), base, *numbers
            )
        )
    header = [f"{_images(metric)}, {base}" for metric in METRICS for base in PRIMARY_BASES]
    return "\n\n".join([table(["", *header], lines), *told])


def held_against_tiny(rows: Rows, base: str) -> dict[str, list[str]]:
    """The comparisons of which `tiny` says "above" or "below", by what `base` says: "agrees", "reversed", "equal" or "open"."""
    held: dict[str, list[str]] = {"agrees": [], "reversed": [], "equal": [], "open": []}
    for other in other_ways():
        for metric in METRICS:
            if all(has_seeds(rows, one, ["cppo", other]) for one in ("tiny", base)):
                first, here = (word_of(difference(rows, one, "cppo", other, metric)) for one in ("tiny", base))
                if first in OPPOSITE:
                    kind = "agrees" if here == first else "reversed" if here == OPPOSITE[first] else here
                    held[kind].append(f"`{other}` ({_images(metric)})")
    return held


def predictions_table(rows: Rows) -> str:
    """The log's predictions about the other bases, each with its outcome."""
    if not all(has_seeds(rows, base, ["cppo", *other_ways()]) for base in PRIMARY_BASES):
        return "Not run yet."
    turned = held_against_tiny(rows, "hallucinating")["reversed"]
    with_cpl = {arm.name for arm in MAIN if arm.changes.get("cpl_weight") != 0}
    gains = [difference(rows, "robust", *pair) for pair in baseline_pairs(rows, "robust") if pair[0] in with_cpl]
    above = [f"`{one.arm}` {one.interval}" for one in gains if word_of(one) == "above"]
    highest = max(gains, key=lambda one: one.value)
    shifted, plain = (difference(rows, "hallucinating", "all_tokens", "cppo", metric) for metric in METRICS)
    through_anchor, whole = losses_to_cppo(rows, "anchor_flows"), losses_to_cppo(rows, "paper")
    none_above = f"none of {len(gains)}; the highest is `{highest.arm}`, {highest.interval}"
    lines = [
        ("on `hallucinating` no difference of `tiny` is reversed", not turned, ", ".join(turned) or "none is"),
        ("on `robust` no arm with CPL is above its baseline on shifted images", not above, "; ".join(above) or none_above),
        (
            "on `hallucinating` all tokens are better than the detected ones, on plain and on shifted images",
            min(plain.low, shifted.low) > 0,
            f"`all_tokens` − `cppo`: plain {plain.interval}, shifted {shifted.interval}",
        ),
        (
            "on `hallucinating` the gradient through the anchor is at least half of what `paper` loses, on both kinds of image",
            anchor_outcome(rows) == "supported",
            f"`anchor_flows` − `cppo`: plain {through_anchor[1].interval}, shifted {through_anchor[0].interval}; "
            f"`paper` − `cppo`: plain {whole[1].interval}, shifted {whole[0].interval}",
        ),
    ]
    shown = [[claim, "**yes**" if holds else "**no**", evidence] for claim, holds, evidence in lines]
    return table(["prediction", "holds", "evidence"], shown)


def losses_to_cppo(rows: Rows, arm: str) -> list[Difference]:
    """`arm` minus CPPO on `hallucinating`, on shifted and on plain images."""
    return [difference(rows, "hallucinating", arm, "cppo", metric) for metric in METRICS]


def anchor_outcome(rows: Rows) -> str:
    """Whether the gradient through the anchor is what `paper` loses, by the log.

    Supported: `anchor_flows` is below CPPO and loses at least half as much, on both kinds of image;
    refuted: it loses less than half on both.
    """
    pairs = list(zip(losses_to_cppo(rows, "anchor_flows"), losses_to_cppo(rows, "paper"), strict=True))
    half = [one.value <= all_of.value / 2 for one, all_of in pairs]
    return judged(all(half) and all(one.high < 0 for one, _ in pairs), not any(half))


def _images(metric: str) -> str:
    """The kind of image that an accuracy is of: "plain" or "shifted"."""
    return SHOWN[metric].split()[0]


def choice_table(rows: Rows) -> str:
    """Random instead of detected tokens, with the push and without it, and the difference of the two, paired by seed.

    By the log, that the push does its harm on the detected tokens is supported where the last is above 0 on plain images, and
    refuted where it is not and random tokens are better without the push as well.
    """
    lines, words = [], []
    for base in ("tiny", "hallucinating"):
        if not has_seeds(rows, base, ("cppo", "random_tokens", "pull", "pull_random")):
            return "Not run yet."
        for metric in ("avg_at_8", PRIMARY_METRIC):
            with_push = paired(rows, base, "random_tokens", "cppo", metric)
            without = paired(rows, base, "pull_random", "pull", metric)
            between = with_push - without
            lines.append([base, SHOWN[metric], *(seed_mean(gaps, "+.3f") for gaps in (with_push, without, between))])
            if metric == "avg_at_8":
                above = bootstrap_interval(between)[0] > 0
                words.append(f"on `{base}` **{judged(above, not above and bootstrap_interval(without)[0] > 0)}**")
    header = ["base", "ten seeds", "`random_tokens` − `cppo`", "`pull_random` − `pull`", "the first minus the second"]
    return f"{table(header, lines)}\n\nThat the push does its harm on the detected tokens: {', '.join(words)}."
