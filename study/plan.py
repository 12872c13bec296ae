"""Runs: what one is, in which order they come, and the hash that says when a finished one still counts."""

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from cppo_ref.config import CPPOConfig, InputError
from study.arms import ARMS, LEARNING_RATE, STEPS, Arm
from study.bases import base_digest, base_folder, base_named
from study.controls import Controls
from study.hints import LEVEL
from study.worlds import WORLDS
from study.worlds.rows import NOISE

VALIDATION_SEEDS = 100  # seeds from here on are scored on validation images, and never on test images
CONTROLS = {field.name for field in dataclasses.fields(Controls)}
# The settings that make a run what it is, the controls among them. One that is added to CPPOConfig later belongs here as soon
# as an arm changes it.
HASHED = (
    *("quantize", "lora_rank", "lora_alpha", "lora_scope", "dtype", "data", "level", "seed", "steps", "prompts_per_step"),
    *("group_size", "max_new_tokens", "temperature", "advantage_scale", "clip_low", "clip_high", "kl_weight", "aggregation"),
    *("cpl_weight", "tau", "top_fraction", "ranking", "kl_estimator", "detach_anchor", "advantage_gate", "preserving"),
    *("removing", "preserving_strength", "removing_strength", "tokens", "perception_loss", "policy_weight", "augment"),
    *("learning_rate", "warmup_steps", "weight_decay", "max_grad_norm", "num_minibatches", "num_epochs", "micro_batch_size"),
)

# came after rows had hashes: part of it if changed
LATER = {name: getattr(Controls(), name) for name in ("noisy", "reward", "credit")}


@dataclass(frozen=True)
class Run:
    """One training from one seed, and its evaluation."""

    base: str
    arm: str
    seed: int
    steps: int = STEPS  # of the study; an arm's step_ratio is on top
    images: int = 300  # per split of the final evaluation, 8 completions each
    probe_every: int = 10  # steps between two looks at validation images and gradients

    @property
    def config(self) -> CPPOConfig:
        """The settings that it trains with."""
        arm = ARMS[self.arm]
        changes = {name: value for name, value in arm.changes.items() if name not in CONTROLS}
        steps = max(round(self.steps * arm.step_ratio), 1)
        return CPPOConfig.from_dict(
            {
                "model": str(base_folder(self.base)),
                "seed": self.seed,
                "steps": steps,
                "eval_rows": 0,
                "device": "cpu",
                "unpack": True,
                **self._level_settings,
                "learning_rate": LEARNING_RATE,
                **changes,
            }
        )

    @property
    def _level_settings(self) -> dict[str, Any]:
        if self.level in WORLDS:
            return {"max_new_tokens": WORLDS[self.level].max_new_tokens}
        return {} if self.level == LEVEL else {"level": self.level}

    @property
    def level(self) -> str:
        """The level of the shape world that it is trained and scored on, or the shortcut world, or another world."""
        return ARMS[self.arm].changes.get("level", base_named(self.base).level)

    @property
    def controls(self) -> Controls:
        """What it puts in the place of CPPO's own parts."""
        return Controls(**{name: value for name, value in ARMS[self.arm].changes.items() if name in CONTROLS})

    @property
    def trained_steps(self) -> int:
        """Steps that it trains for; 0 for the untrained base."""
        return self.config.steps if ARMS[self.arm].step_ratio else 0

    @property
    def split(self) -> str:
        """Which images it is scored on."""
        return "validation" if self.seed >= VALIDATION_SEEDS else "test"

    @property
    def key(self) -> tuple[str, str, str, int]:
        """(base, level, arm, seed): one row of the study."""
        return self.base, self.level, self.arm, self.seed

    @property
    def config_hash(self) -> str:
        """12 hexadecimal digits over what was chosen for it: settings, steps, images, weights of the base.

        The code is not part of it: rows name its commit, and what rounds or draws differently in their `versions`.
        """
        settings = self.config.to_dict() | asdict(self.controls)
        content = {name: settings[name] for name in HASHED} | {"level": self.level}
        content |= {name: settings[name] for name, usual in LATER.items() if settings[name] != usual}
        content |= {"noise": NOISE[self.level]} if self.level in WORLDS else {}
        content |= {"trained_steps": self.trained_steps, "split": self.split}
        content |= {"images": self.images, "probe_every": self.probe_every, "base": base_digest(self.base)}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]

    def to_json(self) -> str:
        """As one line, for the process that executes it."""
        return json.dumps(asdict(self))


def seeds_in(text: str) -> list[int]:
    """ "0-9" or "0,3,5-7" as numbers, in this order; InputError for anything else."""
    seeds: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdigit() or (dash and not last.isdigit()):
            raise InputError(f"seeds are {text!r}, expected numbers and ranges such as 0-9 or 0,3,5-7")
        seeds += range(int(first), int(last or first) + 1)
    if len(set(seeds)) != len(seeds) or not seeds:
        raise InputError(f"seeds are {text!r}, expected each seed once and at least one")
    return seeds


def plan(bases: Sequence[str], arms: Sequence[Arm], seeds: Sequence[int], **options: int) -> list[Run]:
    """All runs, seed-major: every arm and base of a seed before the next seed, so that a partial study is balanced.

    An arm with a level of its own runs on bases of the easy level only.
    """
    return [
        Run(base, arm.name, seed, **options, **({"probe_every": STEPS} if base_named(base).level in WORLDS else {}))
        for seed in seeds
        for base in bases
        for arm in arms
        if "level" not in arm.changes or base_named(base).level == "easy"
    ]
