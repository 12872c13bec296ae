"""Every setting of a run, with its meaning, the paper's value and where that value comes from."""

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal

from cppo_ref.cpl import Estimator
from cppo_ref.grpo import Aggregation
from cppo_ref.perception import Ranking
from cppo_ref.runs.checks import TRACKERS, nearest, problem
from cppo_ref.runs.presets import PRESETS
from cppo_ref.worlds.shapes import LEVELS


class InputError(ValueError):
    """Something the user gave is wrong; the message is one sentence that names it, what was expected and what to do."""


def setting(default: Any, meaning: str) -> Any:
    """A dataclass field with its help text; list defaults are copied."""
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata={"help": meaning})
    return field(default=default, metadata={"help": meaning})


@dataclass(frozen=True)
class CPPOConfig:
    """A training run. "Authors": github.com/vbdi/cppo, verl recipe, unless AReaL is named; docs/details.md: what differs."""

    # what is trained, on what
    model: str = setting("tiny", 'VLM: "tiny", a local folder or a Hub name (paper: Qwen2.5-VL-3B/7B)')
    quantize: Literal["nf4", "none"] = setting("nf4", "4-bit language model (QLoRA) or none (paper: none, full fine-tune)")
    lora_rank: int = setting(16, "rank of the adapters (paper: none)")
    lora_alpha: int = setting(32, "adapters are scaled by alpha / rank (paper: none)")
    lora_scope: Literal["all", "language", "vision"] = setting("all", "where adapters sit (paper: everything trains)")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = setting("auto", "compute dtype; auto suits the device")
    device: Literal["auto", "cpu", "cuda"] = setting("auto", "auto takes the GPU if there is one")
    data: str = setting("shapes", '"shapes", a .parquet/.jsonl/.csv file, an image folder, or a Hub dataset (paper: ViRL39K)')
    columns: list[str] = setting([], "which column holds what, where names differ: image=photo question=prompt answer=label")
    image_folder: str = setting("", "folder that relative image paths start in; empty: beside the data file")
    instruction: str = setting("auto", "text that ends every question; auto: none for shapes, else think-then-box; or none")
    max_prompt_tokens: int = setting(0, "drop longer prompts, image included; 0: what the context leaves (authors: 512)")
    on_bad_row: Literal["stop", "skip"] = setting("stop", "a malformed row ends the run before it starts, or is left out")
    max_pixels: int = setting(0, "images with more pixels are scaled down to it; 0: as they are (AReaL: 320², 448²)")
    level: Literal["easy", "hard"] = setting("easy", "shape world: 3×3; 4×4, two colours asked")
    seed: int = setting(0, "seeds adapters, data order, sampling and views (authors: unseeded views)")

    # rollouts
    steps: int = setting(80, "rollout batches (paper: 2 epochs; AReaL: 3)")
    prompts_per_step: int = setting(8, "prompts per rollout batch (paper: 512)")
    group_size: int = setting(8, "completions per prompt, G (paper: 5; AReaL: 4)")
    max_new_tokens: int = setting(0, "longest completion, tokens; 0: the level's, other data 128 (paper: 4096; AReaL: 512)")
    rollout_batch_size: int = setting(64, "completions sampled at a time; changes memory and the draws")
    temperature: float = setting(1.0, "sampling temperature; logits are divided by it everywhere (paper: 1)")

    # GRPO
    advantage_scale: Literal["std", "none"] = setting("std", "divide advantages by the group's std, or not (paper: std)")
    clip_low: float = setting(0.2, "lower clip of the ratio, ε (paper: 0.2; AReaL: 0.4)")
    clip_high: float = setting(0.2, "upper clip of the ratio, ε (paper: 0.2; AReaL: 0.4)")
    kl_weight: float = setting(0.01, "β, weight of the KL to the reference (paper: 0.01; AReaL: 0)")
    aggregation: Literal["token", "sequence", "constant"] = setting("token", "how token losses add up (authors: token)")

    # CPL
    cpl_weight: float = setting(0.01, "λ, weight of the perception loss; 0 is plain GRPO (paper: 0.01)")
    tau: float = setting(0.1, "τ, temperature of the contrast, nats (paper: 0.1)")
    top_fraction: float = setting(0.5, "share of tokens with ΔH > 0 that count as perception (paper: 0.5)")
    ranking: Ranking = setting("absolute", "rank by ΔH or by ΔH/H⁻ (paper's words: absolute; authors: normalized)")
    kl_estimator: Estimator = setting("exact", "KL between views (paper: distributions; authors: k3; AReaL: k1)")
    detach_anchor: bool = setting(True, "no CPL gradient through the original view (authors: False)")
    advantage_gate: bool = setting(True, "CPL only on rows with A > 0 (paper: yes)")
    preserving: list[str] = setting(["color_jitter", "perspective", "rotation"], "kinds that I⁺ is drawn from (authors: these)")
    removing: list[str] = setting(["noise_patches"], "kinds that I⁻ is drawn from (authors: noise_patches zoom_crop)")
    preserving_strength: float = setting(1.0, "departure of I⁺ from the image; 1: the authors' ranges, our drawing")
    removing_strength: float = setting(1.0, "departure of I⁻ from the image; 1: the authors' ranges, our drawing")

    # optimizer
    learning_rate: float = setting(6e-4, "AdamW step size for adapters (paper: 1e-6, full fine-tune; AReaL: 2e-6)")
    warmup_steps: int = setting(0, "linear warm-up, steps, then constant (authors: 0)")
    weight_decay: float = setting(0.0, "AdamW weight decay on adapters (authors: 0.01)")
    max_grad_norm: float = setting(1.0, "gradients are clipped to this norm (authors: 1.0)")
    num_minibatches: int = setting(1, "optimizer updates per rollout batch and epoch; > 1 is off-policy (authors: 8; AReaL: 1)")
    num_epochs: int = setting(1, "passes over a rollout batch; > 1 is off-policy (paper: 1)")
    micro_batch_size: int = setting(64, "rows per forward; changes memory, never the gradient (authors: 8; it does there)")
    unpack: bool = setting(False, "small model on a CPU: hold 4-bit weights unpacked, merge adapters to score: memory for time")
    activation_checkpointing: bool = setting(False, "recompute activations in the backward pass: less memory, more time")

    # the run folder
    output: str = setting("runs/cppo", "run folder")
    probe_rows: int = setting(0, "rows that the model is tried on before step 0; 0: none (see `python -m cppo_ref probe`)")
    save_every: int = setting(20, "steps between checkpoints; in the shape world each has a validation of eval_rows")
    save_minutes: int = setting(20, "minutes after which a checkpoint is due in any case, without a validation")
    keep_checkpoints: int = setting(2, "newest checkpoints kept, beside the best by validation and by reward")
    eval_rows: int = setting(32, "shape world: validation images per checkpoint, 4 completions each; 0: no validation")
    trackers: list[str] = setting([], f"any of {', '.join(TRACKERS)}")

    def __post_init__(self) -> None:
        if wrong := problem(self):
            raise InputError(wrong)
        if self.max_new_tokens == 0:
            object.__setattr__(self, "max_new_tokens", LEVELS[self.level].max_new_tokens if self.data == "shapes" else 128)

    @property
    def on_policy(self) -> bool:
        """One update per rollout batch: every ratio is 1 and nothing is clipped."""
        return self.num_minibatches == self.num_epochs == 1

    @property
    def token_aggregation(self) -> Aggregation:
        """`aggregation` as `grpo.token_weights` takes it; "constant" divides by max_new_tokens."""
        return ("constant", float(self.max_new_tokens)) if self.aggregation == "constant" else self.aggregation

    def learning_rate_at(self, step: int) -> float:
        """The learning rate of step `step` (from 0): linear warm-up, then constant."""
        return self.learning_rate * min(1.0, (step + 1) / max(self.warmup_steps, 1))

    def to_dict(self) -> dict[str, Any]:
        """All settings as a plain dict."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "CPPOConfig":
        """Build from a dict; an unknown key raises InputError with the nearest name."""
        known = [f.name for f in dataclasses.fields(cls)]
        for key in values:
            if key not in known:
                raise InputError(f"unknown setting {key!r}{nearest(key, known, 'see `python -m cppo_ref train --help`')}")
        return cls(**values)

    @classmethod
    def preset(cls, name: str, **changes: Any) -> "CPPOConfig":
        """The loss choices of a variant (see PRESETS), with `changes` on top."""
        if name not in PRESETS:
            raise InputError(f"preset is {name!r}, expected one of {', '.join(PRESETS)}")
        return cls.from_dict({**PRESETS[name], **changes})
