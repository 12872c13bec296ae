"""The primary family again, at the learning rate that the sweeps chose for both methods: fresh seeds, the same comparisons."""

from collections.abc import Sequence
from dataclasses import replace

from study.analysis import (
    PRIMARY_BASES,
    PRIMARY_METRIC,
    PRIMARY_PAIRS,
    SECOND_SEEDS,
    Difference,
    Rows,
    difference,
    has_seeds,
    primary_family,
    whole_arms,
)
from study.arms import CHOSEN, PRICE, SECOND
from study.comparisons import ANSWERS, SHOWN, TOKENS, mean_of, table

RATES = ("3e-4", "6e-4")  # of the first and the second family


def second_rows(rows: Rows) -> Rows:
    """The runs at the chosen learning rate with the fresh seeds, under their plain names: `cppo` for CPPO with it.

    An arm is left out on a base where seeds are missing.
    """
    names = {arm.name: arm.name.removesuffix(CHOSEN) for arm in (*SECOND, *PRICE)}
    return whole_arms([row | {"arm": names[row["arm"]]} for row in rows if row["arm"] in names], SECOND_SEEDS)


def second_complete(rows: Rows) -> bool:
    """Whether the second family can be tested: all of its `second_rows` are there."""
    arms = {arm for pair in PRIMARY_PAIRS for arm in pair}
    return all(has_seeds(second_rows(rows), base, arms, SECOND_SEEDS) for base in PRIMARY_BASES)


def families_table(first: Rows, second: Rows) -> str:
    """Both families side by side: difference, Holm's p and verdict of each comparison."""
    lines = []
    for (once, p, word), (again, p_again, word_again) in zip(primary_family(first), primary_family(second), strict=True):
        cells = [once.interval, f"{p:.3f}", f"**{word}**", again.interval, f"{p_again:.3f}", f"**{word_again}**"]
        lines.append([once.base, f"{once.arm} − {once.other}", *cells])
    spans = zip(RATES, ("seeds 0–9", "seeds 10–19"), strict=True)
    headers = [cell for rate, seeds in spans for cell in (f"{rate}, {seeds}", "p (Holm)", "verdict")]
    return table(["base", "shifted avg@8", *headers], lines)


def second_differences(second: Rows) -> str:
    """CPPO minus both rivals on every measure, with unadjusted intervals: a table per rival, a line per measure."""
    tables = []
    for arm, other in PRIMARY_PAIRS:
        lines = [
            [SHOWN[metric], *(difference(second, base, arm, other, metric).interval for base in PRIMARY_BASES)]
            for metric in (*ANSWERS, *TOKENS)
        ]
        tables.append(table([f"`{arm}` − `{other}` at {RATES[1]}", *PRIMARY_BASES], lines))
    return "\n\n".join(tables)


def forest_of_both(first: Rows, second: Rows) -> list[Difference]:
    """The comparisons of both families, each named with its learning rate, as the forest plot takes them."""
    found: list[Difference] = []
    for pair in PRIMARY_PAIRS:
        for rate, rows in zip(RATES, (first, second), strict=True):
            found += [replace(difference(rows, base, *pair), other=f"{pair[1]}, {rate}") for base in PRIMARY_BASES]
    return found


def change_table(first: Rows, second: Rows, metrics: Sequence[str] = ("avg_at_8", PRIMARY_METRIC)) -> str:
    """The means of both families, arm by arm: what the learning rate did for each."""
    lines = []
    for base in PRIMARY_BASES:
        for arm in dict.fromkeys(arm for pair in PRIMARY_PAIRS for arm in reversed(pair)):
            cells = [mean_of(rows, base, arm, metric) for metric in metrics for rows in (first, second)]
            lines.append([base, f"`{arm}`", *cells])
    return table(["base", "mean of ten seeds", *(f"{SHOWN[m]}, {rate}" for m in metrics for rate in RATES)], lines)
