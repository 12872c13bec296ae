"""The arms of the study: a name, what it changes in CPPOConfig, and the question it answers. No other difference is allowed.

study/protocol.md holds this table; a test compares the two.
"""

from dataclasses import dataclass, field, replace
from typing import Any

from cppo_ref.config import PRESETS, InputError

STEPS = 80  # of every arm, unless its step_ratio is another
LEARNING_RATE = 3e-4  # of every arm that does not change it: the package's default when the study began
# Seconds of a CPPO step over seconds of a GRPO step, fixed before the study: study/protocol.md, "Equal time".
TIME_RATIO = 1.75


@dataclass(frozen=True)
class Arm:
    """One way to train; `changes` are on top of the package's defaults, which are CPPO, and LEARNING_RATE."""

    name: str
    changes: dict[str, Any] = field(hash=False)
    question: str
    step_ratio: float = 1.0  # steps of this arm, as a multiple of the study's

    @property
    def baseline(self) -> str:
        """The arm that this one is compared with: GRPO, with adapters on the same part of the model."""
        scope = self.changes.get("lora_scope")
        return f"grpo_{scope}" if scope else "grpo"


GRPO = {"cpl_weight": 0.0}
# PAPO-G (arXiv 2507.06448, its 3B script): maximise 0.02 · k3 to a view with 60 % of the patches black, on all tokens and rows
PAPO = {
    "perception_loss": "papo",
    "cpl_weight": 0.02,
    "tokens": "all",
    "advantage_gate": False,
    "kl_estimator": "k3",
    "detach_anchor": False,
    "removing": ["patch_mask"],
}

MAIN = (
    Arm("grpo", GRPO, "the baseline"),
    Arm("cppo", {}, "does CPL help? (the package's defaults)"),
    Arm("grpo_augmented", {**GRPO, "augment": 0.5}, "do the preserving views help by themselves, as image augmentation?"),
    Arm("grpo_equal_time", GRPO, "does GRPO catch up in the time that CPPO takes?", step_ratio=TIME_RATIO),
    Arm(
        "paper",
        PRESETS["paper"],
        "the paper's text: exact KL, absolute ranking, both removing views, gradient through the anchor",
    ),
    Arm(
        "verl",
        PRESETS["verl"],
        "after the authors' verl code, loss choices only: as `paper` with k3 and the normalised ranking",
    ),
    Arm("k1", {"kl_estimator": "k1"}, "is the one-token estimate of the AReaL code enough?"),
    Arm("anchor_flows", {"detach_anchor": False}, "what does the gradient through the original view do?"),
    Arm("papo", PAPO, "PAPO: only moving away from a masked view, on all tokens, no gate"),
    Arm("no_gate", {"advantage_gate": False}, "does the gate A > 0 matter?"),
    Arm("all_tokens", {"tokens": "all"}, "does it matter where CPL acts?"),
    Arm("random_tokens", {"tokens": "random"}, "does the detector choose better than chance, at equal count?"),
    Arm("true_tokens", {"tokens": "true"}, "what would a perfect detector earn?"),
    Arm("pull", {"perception_loss": "pull"}, "is the pull towards the preserving view enough? (KL⁻ a constant)"),
    Arm("push", {"perception_loss": "push"}, "is the push away from the removing view enough? (KL⁺ a constant)"),
    Arm("cpl_only", {"policy_weight": 0.0}, "what does CPL do without GRPO? (the gate stays)"),
    Arm("grpo_language", {**GRPO, "lora_scope": "language"}, "GRPO, adapters on the language layers only"),
    Arm("cppo_language", {"lora_scope": "language"}, "CPPO, adapters on the language layers only"),
    Arm("grpo_vision", {**GRPO, "lora_scope": "vision"}, "GRPO, adapters on the vision tower only"),
    Arm("cppo_vision", {"lora_scope": "vision"}, "CPPO, adapters on the vision tower only"),
)
# The second study (study/protocol-2.md): what a sceptic would try instead, at a rate and weight that validation seeds chose.
CONSISTENT = {"perception_loss": "consistency", "tokens": "all", "advantage_gate": False}
RATES = (6e-4, 1.2e-3)
RIVALS = {  # four settings each; the same two rates are open to all, and GRPO, which has no weight, gets two more
    "grpo": [{**GRPO, "learning_rate": rate} for rate in (3e-4, *RATES, 2.4e-3)],
    "cppo": [{"learning_rate": rate, "cpl_weight": weight} for rate in RATES for weight in (0.003, 0.01)],
    "augmented": [{**GRPO, "learning_rate": rate, "augment": share} for rate in RATES for share in (0.25, 0.5)],
    "consistency": [{**CONSISTENT, "learning_rate": rate, "cpl_weight": weight} for rate in RATES for weight in (0.1, 0.3)],
}
TUNING = tuple(
    Arm(f"{rival}#{number}", changes, f"tuning of {rival}")
    for rival, settings in RIVALS.items()
    for number, changes in enumerate(settings)
)
CHOSEN_SETTINGS: dict[str, int] = {
    "grpo": 1,
    "cppo": 0,
    "augmented": 0,
    "consistency": 0,
}  # by tuning on both worlds; a test repeats it
# CPU seconds of a CPPO step over those of a step of these, from the tuning runs, rounded up to a tenth in their favour: so many
# times the steps take the same time.
EQUAL_TIME = {"augmented": 1.3, "consistency": 0.8}


def _tuned(rival: str, question: str) -> Arm:
    """A rival with the settings that tuning chose."""
    return Arm(f"{rival}_tuned", RIVALS[rival][CHOSEN_SETTINGS[rival]], question, EQUAL_TIME.get(rival, 1.0))


WORLD_MAIN = (
    _tuned("grpo", "the baseline"),
    _tuned("cppo", "does CPL help?"),
    _tuned("augmented", "are the preserving views enough, as augmentation, in the same time?"),
    _tuned("consistency", "is KL⁺ enough, in the same time: no removing view, no contrast, no detector, no gate?"),
)
_CPPO, _GRPO = (RIVALS[rival][CHOSEN_SETTINGS[rival]] for rival in ("cppo", "grpo"))
# no token gets CPL: a weight above 0 has the views made, and all rows looked at, as this credit needs
LOOKING = {**_CPPO, "credit": "looking", "advantage_gate": False, "removing": ["patch_mask"]}
EXPLORED = (  # after the primary family, on `eyes`
    Arm("cppo_random", {**_CPPO, "tokens": "random"}, "as many tokens at random"),
    Arm("cppo_all", {**_CPPO, "tokens": "all"}, "all tokens"),
    Arm("cppo_true", {**_CPPO, "tokens": "true"}, "the true perception tokens"),
    Arm("cppo_tau1", {**_CPPO, "tau": 1.0}, "a softer contrast, τ = 1"),
    Arm("cppo_all_tau1", {**_CPPO, "tokens": "all", "tau": 1.0}, "all tokens, τ = 1"),
    Arm("grpo_longer", _GRPO, "GRPO for as long as CPPO takes", EQUAL_TIME["augmented"]),
    Arm("grpo_noisy", {**_GRPO, "noisy": 0.5}, "half of each group sampled under a preserving view (NoisyRollout)"),
    Arm("grpo_looking", LOOKING, "credit to the 40 % of tokens that depend most on the image (after VPPO)"),
    Arm("grpo_percepts", {**_GRPO, "reward": "percepts"}, "reward: the share of words seen rightly"),
    Arm("grpo_format", {**_GRPO, "reward": "format"}, "reward: format alone"),
    Arm("grpo_random", {**_GRPO, "reward": "random"}, "reward: a coin"),
)
UNTRAINED = Arm("untrained", GRPO, "the base model, and its entropy shift as a detector", step_ratio=0.0)


def _sweep(name: str, values: list[Any], arms: tuple[str, ...] = ("cppo",)) -> list[Arm]:
    """One arm per value of the setting `name`; a list setting takes one name."""
    start = {"cppo": {}, "grpo": GRPO}
    swept = []
    for value in values:
        changed = {name: [value] if isinstance(value, str) else value}
        if name == "group_size":  # equal rollouts: fewer prompts with more completions each
            changed["prompts_per_step"] = 64 // int(value)
        for arm in arms:
            changes = {**start[arm], **changed}
            swept.append(Arm(f"{arm}-{name}={value}", changes, f"{name} {value}"))
    return swept


SWEEPS = (
    *_sweep("cpl_weight", [0.003, 0.03, 0.1, 0.3]),
    *_sweep("tau", [0.03, 0.3, 1.0]),
    *_sweep("top_fraction", [0.25, 1.0]),
    Arm("cppo-ranking=normalized", {"ranking": "normalized"}, "ranking normalized"),
    *_sweep("preserving", ["color_jitter", "perspective", "rotation", "blur"]),
    *_sweep("preserving_strength", [0.5, 1.5]),
    *_sweep("removing", ["zoom_crop", "black_squares", "patch_mask", "blank"]),
    *_sweep("removing_strength", [0.5, 2.0, 4.0]),
    *_sweep("group_size", [4, 16], ("grpo", "cppo")),
    *_sweep("learning_rate", [1e-4, 6e-4, 1.2e-3], ("grpo", "cppo")),
    Arm("grpo-level=hard", {**GRPO, "level": "hard"}, "a harder task: 4×4 cells, two colours"),
    Arm("cppo-level=hard", {"level": "hard"}, "a harder task: 4×4 cells, two colours"),
    Arm("grpo_augmented-level=hard", {**GRPO, "augment": 0.5, "level": "hard"}, "a harder task: 4×4 cells, two colours"),
)
# A test of dilution (study/dilution.py) by intervention: on `tiny`, 0.89 of a CPPO step serves the reward.
SHARE = 0.89
MECHANISM = (
    Arm(
        "grpo_slower",
        {**GRPO, "learning_rate": LEARNING_RATE * SHARE},
        "does GRPO with a share of its step lose what CPPO loses?",
    ),
    Arm("cppo_faster", {"learning_rate": LEARNING_RATE / SHARE}, "does CPPO with that share given back lose nothing?"),
    # a test of delay (study/delay.py), beside grpo_equal_time
    Arm("cppo_longer", {}, "does CPPO lose less on plain images if both train for longer?", step_ratio=TIME_RATIO),
    # a test of why random tokens are better than detected ones (study/elsewhere.py)
    Arm("pull_random", {"perception_loss": "pull", "tokens": "random"}, "does the choice of tokens matter without the push?"),
)
# The sweeps chose 6e-4 for both methods, and it became the package's default: the primary family is run again with it, and
# the arms that ask where its price on `robust` comes from.
CHOSEN_RATE = 6e-4
CHOSEN = f"-learning_rate={CHOSEN_RATE}"


def _at_chosen(*names: str) -> tuple[Arm, ...]:
    """The arms of these names at the chosen learning rate."""
    known = {arm.name: arm for arm in (*MAIN, *MECHANISM)}
    changes = {"learning_rate": CHOSEN_RATE}
    return tuple(replace(known[name], name=name + CHOSEN, changes={**known[name].changes, **changes}) for name in names)


SECOND = (*(arm for arm in SWEEPS if arm.name.endswith(CHOSEN)), *_at_chosen("grpo_augmented"))
PRICE = _at_chosen("pull", "push", "cppo_longer", "grpo_equal_time")
SUITES = {
    "main": MAIN,
    "sweeps": SWEEPS,
    "mechanism": MECHANISM,
    "second": SECOND,
    "price": PRICE,
    "tuning": TUNING,
    "worlds": WORLD_MAIN,
    "explored": EXPLORED,
    "detector": (UNTRAINED,),
}
ARMS = {arm.name: arm for suite in SUITES.values() for arm in suite}


def arms_of(suite: str, names: str = "") -> list[Arm]:
    """The arms of a suite, or those of its arms that are named, separated by commas.

    Raises:
        InputError: no such suite, or no such arm in it.
    """
    if suite not in SUITES:
        raise InputError(f"suite is {suite!r}, expected one of {', '.join(SUITES)}")
    table = {arm.name: arm for arm in SUITES[suite]}
    wanted = [name for name in names.split(",") if name] or list(table)
    for name in wanted:
        if name not in table:
            raise InputError(f"arm {name!r} is not in suite {suite}, expected some of {', '.join(table)}")
    return [table[name] for name in wanted]


def arms_table() -> str:
    """The main arms as a Markdown table, for the protocol."""
    lines = ["| arm | changes to the defaults | question |", "|---|---|---|"]
    for arm in MAIN:
        changes = ", ".join(f"`{key}={_short(value)}`" for key, value in arm.changes.items())
        steps = f"{arm.step_ratio:g} × the steps" if arm.step_ratio != 1 else ""
        lines.append(f"| `{arm.name}` | {', '.join(filter(None, [changes, steps])) or '–'} | {arm.question} |")
    return "\n".join(lines)


def _short(value: Any) -> str:
    return "+".join(value) if isinstance(value, list) else f"{value}"
