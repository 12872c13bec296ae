"""What the rows say: paired differences by seed, their intervals, the primary family and its verdicts, and power.

Two arms of one seed share adapters' first values, data order, sampling streams, views and test images, so that the difference
within a seed is what counts; n is the number of seeds.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import optimize, stats

from cppo_ref.config import InputError
from study.store import read_csv

ALPHA = 0.05
POWER = 0.8
MARGIN = 0.02  # of avg@8: a difference whose whole interval is inside ±MARGIN is no difference that matters here
RESAMPLES = 10_000
PRIMARY_METRIC = "shift_avg_at_8"
PRIMARY_BASES = ("tiny", "robust", "hallucinating")
PRIMARY_PAIRS = (("cppo", "grpo"), ("cppo", "grpo_augmented"))
SEEDS = range(10)  # of each arm, by the protocol
SECOND_SEEDS = range(10, 20)  # of the second run of the primary family
SWEEP_SEEDS = range(100, 105)
Rows = Sequence[dict[str, Any]]
MAX_EXACT = 20  # seeds up to which every sign pattern is enumerated


@dataclass(frozen=True)
class Difference:
    """`arm` minus `other` on one metric, paired by seed."""

    base: str
    arm: str
    other: str
    metric: str
    value: float
    low: float
    high: float  # bootstrap 95 % interval
    p: float  # two-sided sign-flip test
    seeds: int

    @property
    def interval(self) -> str:
        """The value with its 95 % interval, as text."""
        return f"{self.value:+.3f} [{self.low:+.3f}, {self.high:+.3f}]"

    @property
    def equal(self) -> bool:
        """Whether the whole interval is inside ±MARGIN: the arms do not differ by more than matters."""
        return self.low > -MARGIN and self.high < MARGIN

    def __str__(self) -> str:
        return f"{self.interval}, n = {self.seeds} seeds"


def paired(rows: Rows, base: str, arm: str, other: str, metric: str) -> np.ndarray:
    """`arm` minus `other` on `metric`, one difference per seed that both have, by ascending seed.

    Raises:
        InputError: no seed that both arms have.
    """
    values = {
        name: {
            int(row["seed"]): float(row[metric]) for row in rows if (row["base"], row["arm"]) == (base, name) and row[metric]
        }
        for name in (arm, other)
    }
    seeds = sorted(values[arm].keys() & values[other].keys())
    if not seeds:
        raise InputError(f"no seed has {metric} of both {arm} and {other} on base {base}: run them first")
    return np.array([values[arm][seed] - values[other][seed] for seed in seeds])


def difference(rows: Rows, base: str, arm: str, other: str, metric: str = PRIMARY_METRIC, seed: int = 0) -> Difference:
    """The mean paired difference with its bootstrap interval and sign-flip p-value."""
    gaps = paired(rows, base, arm, other, metric)
    low, high = bootstrap_interval(gaps, seed)
    return Difference(base, arm, other, metric, float(gaps.mean()), low, high, sign_flip_p(gaps, seed), len(gaps))


def per_seed(curves: Rows, base: str, arm: str, metric: str, seeds: Sequence[int] = SEEDS) -> np.ndarray:
    """The mean of a probe over a run, for each of `seeds` that has one; InputError without any."""
    values: dict[int, list[float]] = {}
    for row in curves:
        value = row[metric]
        if (row["base"], row["arm"]) == (base, arm) and row["seed"] in seeds and value is not None and value == value:
            values.setdefault(row["seed"], []).append(value)
    if not values:
        raise InputError(f"no {metric} of {arm} on base {base}: run it first")
    return np.array([np.mean(values[seed]) for seed in sorted(values)])


def whole_arms(rows: Rows, seeds: Sequence[int] = SEEDS) -> Rows:
    """The rows with these seeds, of those arms and bases that have all of them."""
    final = [row for row in rows if int(row["seed"]) in seeds]
    runs = {(row["base"], row["arm"]) for row in final}
    whole = {(base, arm) for base, arm in runs if has_seeds(final, base, [arm], seeds)}
    return [row for row in final if (row["base"], row["arm"]) in whole]


def late_rows(rows: Rows) -> Rows:
    """The rows with validation seeds."""
    return [row for row in rows if int(row["seed"]) in SWEEP_SEEDS]


def has_seeds(rows: Rows, base: str, arms: Iterable[str], seeds: Sequence[int] = SEEDS) -> bool:
    """Whether each of the arms has exactly these seeds on a base."""
    return all(seeds_of(rows, base, arm) == list(seeds) for arm in arms)


def seeds_of(rows: Rows, base: str, arm: str) -> list[int]:
    """The seeds that an arm has on a base, ascending."""
    return sorted(int(row["seed"]) for row in rows if (row["base"], row["arm"]) == (base, arm))


def bootstrap_interval(gaps: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """The BCa bootstrap 95 % interval of the mean over seeds; the value itself where it has no spread."""
    if len(gaps) < 2 or np.ptp(gaps) == 0:
        return float(gaps.mean()), float(gaps.mean())
    result = stats.bootstrap((gaps,), np.mean, n_resamples=RESAMPLES, method="BCa", rng=np.random.default_rng(seed))
    return float(result.confidence_interval.low), float(result.confidence_interval.high)


def resampled(statistic: Callable[[np.ndarray], float], seeds: int, resamples: int = 2000) -> tuple[float, float]:
    """95 % bootstrap interval of what `statistic` makes of the positions of the seeds drawn; percentiles."""
    draws = np.random.default_rng(0).integers(seeds, size=(resamples, seeds))
    low, high = np.percentile([statistic(draw) for draw in draws], [2.5, 97.5])
    return float(low), float(high)


def sign_flip_p(gaps: np.ndarray, seed: int = 0) -> float:
    """Two-sided p of the mean under random signs: exact up to 20 seeds, else over seeded draws with the +1 correction.

    If the arms were the same, each difference could as well have had the other sign. No normal distribution is assumed.
    """
    if len(gaps) <= MAX_EXACT:
        sums = np.zeros(1)
        for gap in gaps:
            sums = np.concatenate((sums + gap, sums - gap))
        return float(np.mean(np.abs(sums) >= np.abs(gaps.sum()) - 1e-12))
    signs = np.random.default_rng(seed).choice((1, -1), size=(RESAMPLES, len(gaps)))
    return float((1 + np.sum(np.abs(signs @ gaps) >= np.abs(gaps.sum()) - 1e-12)) / (1 + RESAMPLES))


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted for the family by Holm's step-down method, in the given order."""
    order = np.argsort(p_values, kind="stable")
    adjusted, highest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = highest
    return adjusted


def primary_family(rows: Rows) -> list[tuple[Difference, float, str]]:
    """The pre-registered comparisons: (difference, Holm-adjusted p, verdict) for each base and pair."""
    found = [difference(rows, base, arm, other) for base in PRIMARY_BASES for arm, other in PRIMARY_PAIRS]
    adjusted = holm([one.p for one in found])
    return [(one, p, verdict(one, p)) for one, p in zip(found, adjusted, strict=True)]


def verdict(found: Difference, adjusted_p: float) -> str:
    """ "equal": the interval is inside ±MARGIN; "helps" or "hurts": it is on one side of 0 and p < 0.05; else "undecided"."""
    if found.equal:
        return "equal"
    if adjusted_p < ALPHA and found.low > 0:
        return "helps"
    if adjusted_p < ALPHA and found.high < 0:
        return "hurts"
    return "undecided"


def power_of(effect: float, spread: float, seeds: int, alpha: float = ALPHA) -> float:
    """Power of a two-sided paired t-test for a mean difference `effect`, differences having standard deviation `spread`."""
    shift, bound = effect / spread * np.sqrt(seeds), stats.t.ppf(1 - alpha / 2, seeds - 1)
    wrong_side = np.nan_to_num(stats.nct.cdf(-bound, seeds - 1, shift))  # SciPy gives NaN where it is too small to compute
    return float(stats.nct.sf(bound, seeds - 1, shift) + wrong_side)


def minimal_effect(spread: float, seeds: int, alpha: float = ALPHA, power: float = POWER) -> float:
    """The smallest mean difference that `seeds` seeds detect with `power`, in the unit of `spread`."""
    highest = 35 / np.sqrt(seeds)  # SciPy's noncentral t ends at about 38
    scaled = optimize.brentq(lambda effect: power_of(effect, 1.0, seeds, alpha) - power, 1e-6, highest)
    return float(scaled) * spread  # pyright: ignore[reportArgumentType]


def pilot_spread(path: Path, split: str = "test_shift") -> tuple[np.ndarray, float, float]:
    """The pilot's CPPO − GRPO per seed (demo_seeds.csv), their standard deviation, and its one-sided 95 % upper bound.

    Three seeds say little about a spread: the bound is sd · √((n−1)/χ²₀.₀₅).
    """
    rows = [row | {"base": "tiny", "arm": row["method"]} for row in read_csv(path) if row["split"] == split]
    gaps = paired(rows, "tiny", "cppo", "grpo", "avg_at_8")
    spread = float(gaps.std(ddof=1))
    return gaps, spread, spread * float(np.sqrt((len(gaps) - 1) / stats.chi2.ppf(0.05, len(gaps) - 1)))


def power_table(path: Path, counts: Sequence[int] = (5, 10, 15, 20)) -> str:
    """How many seeds detect which difference, as a Markdown table; α is Holm's strictest, 0.05 / 6."""
    _, spread, bound = pilot_spread(path)
    alpha = ALPHA / len(PRIMARY_BASES) / len(PRIMARY_PAIRS)
    lines = [f"| seeds | with the pilot's sd ({spread:.4f}) | with its upper bound ({bound:.4f}) |", "|---|---|---|"]
    for count in counts:
        effects = [minimal_effect(sd, count, alpha) for sd in (spread, bound)]
        lines.append(f"| {count} | {effects[0]:.3f} | {effects[1]:.3f} |")
    return "\n".join(lines)
