"""Write the study's tables into study/results.md from the committed results; with --check, only compare.

    python -m study.write_pages [--check] [--figures]

--figures draws forest.png, arms.png, arms_plain.png, sweeps.png and regimes.png (study/images) as well.
"""

# ruff: noqa: E501 (the page is prose)
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

from cppo_ref.pictures.plots import save_figure
from scripts.blocks import filled, write_or_check
from study.analysis import (
    ALPHA,
    PRIMARY_BASES,
    PRIMARY_METRIC,
    PRIMARY_PAIRS,
    SEEDS,
    Difference,
    difference,
    primary_family,
    seeds_of,
    whole_arms,
)
from study.arms import STEPS, TIME_RATIO, UNTRAINED
from study.bases import FIRST_BASES
from study.comparisons import ANSWERS, SHOWN, TOKENS, against_baselines, differences_table, levels_table, moved_table, table
from study.costs import price_table, step_cost, whole_run_costs
from study.delay import ACCURACIES, delayed_table, longer_table, slowdown_table
from study.dilution import dilution_table, intervention_table
from study.elsewhere import anchor_outcome, carry_table, choice_table, predictions_table, settings_table
from study.figures import arms_plot, forest_plot, regime_map
from study.hypotheses import outcomes
from study.price import delay_left, fight, halves_table, long_table, without_push
from study.report import (
    alignment_table,
    complete,
    coverage_table,
    curves_of,
    detector_table,
    final_rows,
    hypotheses_table,
    missed_table,
    primary_table,
    questions_table,
    regimes,
)
from study.robustness import one_machine_table, pictures_table, replica_table
from study.second import RATES, change_table, families_table, forest_of_both, second_complete, second_differences, second_rows
from study.store import read_csv, read_parquet
from study.sweeps import candidates_table, coverage_beside, hard_table, rivals_table, sweeps_table, swept

ROOT = Path(__file__).parent.parent
RESULTS, IMAGES = ROOT / "data" / "results", ROOT / "study" / "images"
ROWS = read_csv(RESULTS / "study.csv")
FINAL = final_rows(ROWS)
WHOLE = whole_arms(FINAL)  # an arm is shown when all of its seeds are there
BEFORE = [row for row in ROWS if row["arm"] == UNTRAINED.name and int(row["seed"]) in SEEDS]
SECOND = second_rows(ROWS)  # at the chosen learning rate, with fresh seeds
CURVES = read_parquet(RESULTS / "curves.parquet")
REPLICA = read_csv(RESULTS / "replica" / "study.csv")
COSTS = read_csv(RESULTS / "step_seconds.csv")
TIME = "grpo_equal_time"  # GRPO with the time that CPPO takes
CONCLUSIONS = {
    frozenset({"helps"}): "CPPO helps",
    frozenset({"equal"}): "CPPO makes no difference that matters",
    frozenset({"hurts"}): "CPPO hurts",
}
BASE_WORDS = {
    "tiny": "not shown such changes in pretraining",
    "robust": "shown them in pretraining",
    "hallucinating": "not shown them, and guesses more",
}


def answer() -> str:
    """Both runs of the primary family, base by base."""
    lines = []
    for base in PRIMARY_BASES:
        lines.append(f"- **{base}** ({BASE_WORDS[base]})")
        for rows, rate, seeds in zip((FINAL, SECOND), RATES, ("0–9", "10–19"), strict=True):
            family = {found.other: (found, word) for found, _, word in primary_family(rows) if found.base == base}
            (plain, said), (augmented, said_too) = (family[other] for _, other in PRIMARY_PAIRS)
            price = difference(rows, base, "cppo", "grpo", "avg_at_8")
            conclusion = CONCLUSIONS.get(frozenset({said, said_too}), "not shown that CPPO helps")
            lines.append(
                f"  - {rate}, seeds {seeds}: **{conclusion}**. CPPO − GRPO {plain.interval}, *{said}*; CPPO − GRPO with "
                f"augmentation {augmented.interval}, *{said_too}*. On plain images CPPO − GRPO is {price.interval}."
            )
    opening = f"avg@8 on 300 shifted test images, {len(SEEDS)} seeds per arm and base, paired by seed, 95 % intervals:"
    return "\n".join([opening, "", *lines])


def points(found: Difference) -> str:
    """The difference in hundredths, in brackets if its interval contains 0."""
    text = f"{100 * found.value:+.1f}"
    return f"({text})" if found.low <= 0 <= found.high else text


def short_table() -> str:
    """CPPO's lead in points, a line per base; bold where the protocol's rule says that it helps."""
    said = [{(found.base, found.other): word for found, _, word in primary_family(rows)} for rows in (FINAL, SECOND)]
    lines = []
    for base, words in BASE_WORDS.items():
        cells = []
        for other, metric in (*((other, PRIMARY_METRIC) for _, other in PRIMARY_PAIRS), ("grpo", "avg_at_8")):
            leads = [points(difference(rows, base, "cppo", other, metric)) for rows in (FINAL, SECOND)]
            if metric == PRIMARY_METRIC:
                verdicts = [family[base, other] for family in said]
                leads = [f"**{lead}**" if word == "helps" else lead for lead, word in zip(leads, verdicts, strict=True)]
            cells.append(", ".join(leads))
        cells += [points(difference(WHOLE, base, "cppo", TIME, metric)) for metric in (PRIMARY_METRIC, "avg_at_8")]
        lines.append([f"`{base}`: {words}", *cells])
    columns = ["shifted, over GRPO", "shifted, over GRPO with augmentation", "plain, over GRPO"]
    equal_time = [f"{images}, over GRPO with {TIME_RATIO} times the steps" for images in ("shifted", "plain")]
    return table(["CPPO's lead in points", *columns, *equal_time], lines)


def short() -> str:
    """The answer in a table and a few sentences for somebody who knows none of the words; each fact that they state is asserted."""
    first, second = ({(found.base, word) for found, _, word in primary_family(rows)} for rows in (FINAL, SECOND))
    assert first == {("tiny", "helps"), ("hallucinating", "helps"), ("robust", "equal")}, "the paragraph says something else"
    assert second == {("tiny", "helps"), ("hallucinating", "undecided"), ("robust", "undecided")}
    families = zip(RATES, (WHOLE, SECOND), strict=True)
    greedy = {(rate, base): difference(rows, base, "cppo", "grpo", "greedy") for rate, rows in families for base in BASE_WORDS}
    paid = [name for name, found in greedy.items() if found.high < 0]
    assert paid == [(RATES[0], "tiny")], "the paragraph says that only this interval is below 0"
    doubts = zip(RATES, (WHOLE, SECOND), strict=True)
    doubt = {
        (rate, base): difference(rows, base, "cppo", "grpo", "sensitivity") for rate, rows in doubts for base in BASE_WORDS
    }
    assert [name for name, found in doubt.items() if found.high < 0] == paid, "the paragraph says that doubt falls only there"
    helped = ("tiny", "hallucinating")
    left, gone = (difference(WHOLE, base, "cppo", TIME) for base in helped)
    assert left.low > 0 and gone.low < 0 < gone.high, "the paragraph says that the lead is left only on tiny"
    assert all(difference(WHOLE, base, "cppo", TIME, "avg_at_8").high < 0 for base in BASE_WORDS), "GRPO is said to be ahead"
    uneven = difference(SECOND, "hallucinating", "cppo", "grpo", "avg_at_8").p
    assert uneven > ALPHA, "the paragraph says that this price is uncertain"
    kept = [difference(WHOLE, base, "cppo", TIME, "shift_greedy") for base in helped]
    leads, trails = ([difference(WHOLE, base, "cppo_longer", TIME, m) for base in helped] for m in (PRIMARY_METRIC, "avg_at_8"))
    assert all(found.low > 0 for found in [*kept, *leads]), "the paragraph says that CPPO leads"
    assert all(found.high < 0 for found in trails), "the paragraph says that CPPO trails"
    return SHORT.format(
        table=short_table(),
        p=[f"{p:.3f}" for found, p, _ in primary_family(SECOND) if found.base == "hallucinating"],
        uneven=f"{uneven:.2f}",
        price=f"{-100 * greedy[RATES[0], 'tiny'].value:.1f}",
        greedy_p=f"{greedy[RATES[0], 'tiny'].p:.2f}",
        widest=f"{-100 * min(found.low for found in greedy.values()):.0f}",
        doubt=f"{-doubt[RATES[0], 'tiny'].value:.2f}",
        kept=[f"{100 * found.value:.1f}" for found in kept],
        leads=[f"{100 * found.value:.1f}" for found in leads],
        trails=[f"{-100 * found.value:.1f}" for found in trails],
        long_steps=round(STEPS * TIME_RATIO),
        step=f"{step_cost(COSTS, 'cppo'):.1f}",
        ratio=TIME_RATIO,
        first=RATES[0],
        chosen=RATES[1],
    )


SHORT = """**In short.** CPPO answers more questions right than GRPO about pictures that changed in the ways that CPPO trains with (clear on one base model at both learning rates, on a second at one of them). It answers fewer right about pictures that did not change. GRPO and these base models never see such changes; CPPO sees them at every step. So this is no test of changes that CPPO has not met: 39 of the 300 *shifted* pictures are the plain ones, and 152 more lie in the range that CPPO draws from. Three comparisons are missing: other kinds of change, augmentation for as much time, and a loss that asks for consistency alone. [A second study](../docs/results.md) makes them.

Ten trainings per method and base model at a learning rate of {first}, then ten more at {chosen}, which sweeps had found to be better for both methods and which is now this package's default. Points are hundredths of avg@8, the share of sampled answers that are right, on 300 *shifted* pictures (recoloured, rotated or tilted) and on 300 *plain* ones. Where a cell has two numbers, they are for {first} and {chosen}, else for {first}:

{table}

Bold: *helps* by the protocol's rule. In brackets: the 95 % interval, unadjusted, contains 0. On `hallucinating` trainings at {chosen} differ so much that both comparisons are *undecided* (p = {p[0]} and {p[1]}, after Holm). On `robust` both are *equal* at {first} (within ±0.02) and *undecided* at {chosen}.

- *The price* on plain pictures is paid in sampled answers. In greedy ones it is open: only the interval of `tiny` at {first} is below 0 ({price} points, sign-flip p = {greedy_p}), and those of the other bases allow for prices of up to {widest} points. The sampled price of `hallucinating` at {chosen} is uncertain too: p = {uneven}.
- *Doubt*. On `tiny` at {first}, CPPO's policy doubts less than GRPO's when the picture is covered: its entropy on percepts rises by {doubt} nats less. The loss was meant to do the opposite. On the other bases, and at {chosen}, it does not.
- *Time*. A step of CPPO takes {step} to {ratio} times as long as one of GRPO. After as much time GRPO is ahead on plain pictures, and CPPO's lead on shifted ones is left only on `tiny`; in greedy answers on `hallucinating` too ({kept[0]} and {kept[1]} points, at {first}).
- *Longer training*. If both take {long_steps} steps, CPPO leads by {leads[0]} and {leads[1]} points on shifted pictures of `tiny` and `hallucinating`, and trails by {trails[0]} and {trails[1]} on plain ones (at {first}).

All of it is one toy world and short training."""


def moved() -> str:
    """What was measured on every base, a table each."""
    return "\n\n".join(moved_table([*BEFORE, *WHOLE], base) for base in bases())


def every_arm() -> str:
    """Levels and differences of all arms on every base, folded."""
    folded = []
    for base in bases():
        tables = [
            levels_table([*BEFORE, *WHOLE], base),
            *(differences_table(WHOLE, base, chosen) for chosen in (ANSWERS, TOKENS)),
        ]
        text = "\n\n".join(tables)
        folded.append(f"<details><summary>Every arm on {base}: levels and differences</summary>\n\n{text}\n\n</details>")
    return "\n\n".join(folded)


def bases() -> list[str]:
    """The bases that have rows of GRPO, in the protocol's order."""
    return [base for base in FIRST_BASES if seeds_of(WHOLE, base, "grpo")]


def status() -> str:
    """What the tables are made from."""
    trained = [row for row in ROWS if row["arm"] != UNTRAINED.name]
    commits = ", ".join(f"`{name}`" for name in dict.fromkeys(row["commit"] for row in trained))
    return f"{len(trained)} trainings, by the package's commits {commits}; see [what was run](#what-was-run)."


def hurts() -> str:
    """CPPO minus GRPO on plain and on shifted images, both families: where it is below."""
    lines = []
    for base in PRIMARY_BASES:
        found = [difference(rows, base, "cppo", "grpo", m) for m in ("avg_at_8", PRIMARY_METRIC) for rows in (FINAL, SECOND)]
        lines.append([base, *(f"**{one.interval}**" if one.high < 0 else one.interval for one in found)])
    return table(["`cppo` − `grpo`", *(f"{images}, {rate}" for images in ("plain", "shifted") for rate in RATES)], lines)


def explanations() -> str:
    """Every explanation of the price, how it was tested, and the outcome by its logged rule."""
    fights = next(found.verdict for found in outcomes(ROWS, CURVES) if found.name == "H8")
    tested = [
        ("*dilution*: CPL's gradient takes its share of a step whose length Adam keeps", "GRPO with as much less of the learning rate, CPPO with as much more, on `tiny`", intervention_table(WHOLE)),
        ("*delay*: CPPO is only later", "both trained for 140 steps", longer_table(WHOLE)),
        ("the same on `robust`", "the same at 6e-4, with a rule that asks for no more than a delay predicts", delay_left(CURVES)),
        ("*fight*: the two gradients point against each other (H8)", "cosine and norm ratio of every arm on `tiny`", f"**{fights}**"),
        ("the same on `robust`", "the cosine of `cppo` at 6e-4", fight(CURVES)),
        ("*the push* costs on `robust`, more than the pull", "each half of CPL alone, at 6e-4", halves_table(SECOND)),
        ("*the push* costs, not only on `robust`", "CPPO without it on `hallucinating`, predicted from `robust`", without_push(WHOLE)),
        ("*the anchor*: with the paper's settings, the gradient through the original view costs", "CPPO with that gradient alone, on `hallucinating`", f"**{anchor_outcome(WHOLE)}**"),
        ("the push costs *on the detected tokens*", "CPPO without it on random tokens", choice_table(WHOLE)),
    ]  # fmt: skip
    lines = [[claim, test, "; ".join(OUTCOME.findall(text)) or "not run"] for claim, test, text in tested]
    return table(["explanation", "test", "outcome by its rule"], lines)


OUTCOME = re.compile(r"(?:on `\w+` )?\*\*[a-z ]+\*\*")


def cost() -> str:
    """How much more time CPPO's steps take, and what GRPO does with as much time."""
    said = price_table(WHOLE, COSTS)
    whole = f"Training time of whole runs, CPPO over GRPO, paired by seed: {whole_run_costs(FINAL)}."
    shown = {metric: SHOWN[metric] for metric in ACCURACIES}
    lines = [
        [base, *(difference(WHOLE, base, "cppo", "grpo_equal_time", metric).interval for metric in shown)]
        for base in bases()
        if seeds_of(WHOLE, base, "grpo_equal_time")
    ]
    opening = f"CPPO minus GRPO with {TIME_RATIO} times the steps, ten seeds:"
    return f"{said}\n\n{whole}\n\n{opening}\n\n{table(['base', *shown.values()], lines)}"


def failures() -> str:
    """The gallery's counts in sentences."""
    found = json.loads((RESULTS / "failures.json").read_text())
    rises = {name: "{:+.2f} [{:+.2f}, {:+.2f}]".format(*found[name]) for name in ("wrong_rise", "right_rise")}
    return FAILURES.format(**{**found, **rises}).replace("%", " %")


FAILURES = """A CPPO run on `tiny` with validation seed {seed}, looked at after {train_steps} steps: the {rows_count} rewarded
completions (A > 0) of {prompts} prompts, {tokens} tokens. Of each kind, the first in the batch that is on a picture of its own is shown; ◄ marks it.

**A token that is no percept is marked**: {marked_count} tokens, {marked_share:.0%} of the marked ones. The top half of all tokens with ΔH > 0 is taken, however small ΔH is:
{marked_undecided:.0%} of them have a shift below 0.01 nats ({hit_undecided:.0%} of the marked percepts do).

![A completion coloured by entropy shift in which the number in the box is marked](images/failure_marked.png)

**A percept is missed**: {missed_count} tokens, {missed_share:.0%} of the percepts. In {missed_not_risen:.0%} of the cases the entropy did not rise at all; the others were
cut by the top half. The removing view changed the cells of missed percepts less ({missed_change:.2f} of full scale on average) than those of marked ones ({hit_change:.2f}).

![A completion coloured by entropy shift in which the colour of a cell is not marked](images/failure_missed.png)

**A wrong percept of a rewarded completion is marked**: {wrong_count} tokens; {wrong_rows:.0%} of the rewarded completions have one, since the reward sees only the count. Does CPL reinforce it?
In a small step along CPL's gradient alone, the log-probability under I⁺ moves, per unit of length and with 95% intervals over prompts, by {wrong_rise} for wrong marked percepts: no clear direction; and by {right_rise} for the {right_count} right ones.
CPL pulls towards the distribution π(· | I), not towards the token that was sampled, and a wrong token is that distribution's first choice in {wrong_likeliest:.0%} of the cases (a right one in {right_likeliest:.0%}).
On this base that is so by construction: its wrong percepts are guesses against its own best knowledge. A model that is wrong by conviction would be the opposite case. And the GRPO term does push up every token of a rewarded completion, right or wrong.

![A completion coloured by entropy shift in which a cell is named wrongly and marked](images/failure_wrong.png)"""


def after_all_runs(make: Callable[[], str]) -> Callable[[], str]:
    """`make`, but not before the primary families are complete: the protocol allows no look at a part of one."""
    ready = complete(FINAL) and second_complete(ROWS)
    return lambda: make() if ready else "Nothing is shown before the runs of both primary families are complete."


FROM_RUNS = {
    "short": short,
    "answer": answer,
    "primary": lambda: primary_table(FINAL),
    "missed": lambda: missed_table(FINAL),
    "moved": moved,
    "every_arm": every_arm,
    "questions": lambda: questions_table(FINAL),
    "hypotheses": lambda: hypotheses_table(ROWS, CURVES),
    "alignment": lambda: alignment_table(curves_of(WHOLE, CURVES)),
    "dilution": lambda: dilution_table(WHOLE, CURVES),
    "settings": lambda: settings_table(WHOLE),
    "settings_elsewhere": lambda: "\n\n".join(settings_table(WHOLE, base) for base in PRIMARY_BASES[1:]),
    "carry": lambda: carry_table(WHOLE),
    "predictions": lambda: predictions_table(WHOLE),
    "choice": lambda: choice_table(WHOLE),
    "hurts": hurts,
    "explanations": explanations,
    "intervention": lambda: intervention_table(WHOLE),
    "slowdown": lambda: slowdown_table(curves_of(WHOLE, CURVES)),
    "longer": lambda: longer_table(WHOLE),
    "delayed": lambda: delayed_table(curves_of(WHOLE, CURVES)),
    "cost": cost,
    "replica": lambda: replica_table(FINAL, REPLICA),
    "one_machine": lambda: one_machine_table(WHOLE, REPLICA),
    "pictures": lambda: pictures_table(WHOLE, CURVES, ROWS),
    "sweeps": lambda: sweeps_table(ROWS),
    "candidates": lambda: candidates_table(ROWS),
    "rivals": lambda: rivals_table(ROWS),
    "hard": lambda: hard_table(ROWS),
}
FROM_SECOND = {
    "families": lambda: families_table(FINAL, SECOND),
    "second": lambda: second_differences(SECOND),
    "missed_second": lambda: missed_table(SECOND),
    "change": lambda: change_table(FINAL, SECOND),
    "halves": lambda: halves_table(SECOND),
    "fight": lambda: fight(CURVES),
    "long_robust": lambda: long_table(SECOND),
    "without_push": lambda: without_push(WHOLE),
    "delay_left": lambda: delay_left(CURVES),
}
BLOCKS = {name: after_all_runs(make) for name, make in {**FROM_RUNS, **FROM_SECOND}.items()} | {
    "detector": lambda: detector_table(read_csv(RESULTS / "detector.csv")),
    "failures": failures,
    "status": status,
    "coverage": lambda: f"{coverage_table(FINAL)}\n\n{coverage_beside(ROWS)}",
}


def draw() -> None:
    """The figures of study/results.md; none before the primary families are complete."""
    if not (complete(FINAL) and second_complete(ROWS)):
        return
    save_figure(forest_plot(forest_of_both(FINAL, SECOND)), IMAGES / "forest.png")
    panels = {"avg@8, shifted images": "shift_avg_at_8", "avg@8, plain images": "avg_at_8"}
    places = IMAGES / "arms.png", IMAGES / "arms_plain.png"
    for (label, metric), name in zip(panels.items(), places, strict=True):
        arms = {f"{label},\non {base}": against_baselines(WHOLE, base, metric) for base in PRIMARY_BASES}
        save_figure(arms_plot(arms), name)
    sweeps = {label: swept(ROWS, metric) for label, metric in panels.items()}
    if all(sweeps.values()):
        save_figure(arms_plot(sweeps), IMAGES / "sweeps.png")
    again = {(f"{pair}, {RATES[1]}", base): cell for (pair, base), cell in regimes(SECOND, PRIMARY_PAIRS).items()}
    save_figure(regime_map({**regimes(WHOLE), **again}, metric="avg@8"), IMAGES / "regimes.png")


if __name__ == "__main__":
    if "--figures" in sys.argv:
        sys.argv.remove("--figures")
        draw()
    page = ROOT / "study" / "results.md"
    sys.exit(write_or_check({page: filled(page.read_text(), "study/write_pages.py", BLOCKS)}, __doc__))
