"""The audit of a model before training: what is in 4 bits, what learns, and how much memory a step will need."""

import torch

from cppo_ref.config import CPPOConfig
from cppo_ref.vlm.costs import time_table
from cppo_ref.vlm.memory import CONTEXT, GIGABYTE, QUESTION_TOKENS, estimate, measure, peak
from cppo_ref.vlm.profiles import CAPACITY
from cppo_ref.vlm.quantization import Skeleton, model_config, skeleton

PARTS = ("vision tower", "projector", "language model", "embeddings", "lm_head")


def parts(model: Skeleton) -> dict[str, list[str]]:
    """The names of the model's linear and embedding layers, by the part they belong to; each name once."""
    family = model.family
    prefixes = {family.projector: "projector", family.vision: "vision tower", family.language: "language model"}
    found: dict[str, list[str]] = {name: [] for name in PARTS}
    for name, module in model.modules.items():
        part = next((part for prefix, part in prefixes.items() if name.startswith(prefix)), "")
        if isinstance(module, torch.nn.Embedding) and part == "language model":
            part = "embeddings"
        elif name == "lm_head":
            part = name
        if part and isinstance(module, torch.nn.Linear | torch.nn.Embedding | torch.nn.Conv2d | torch.nn.Conv3d):
            found[part].append(name)
    return found


def audit(run: CPPOConfig, profile: str = "") -> str:
    """A report on the model of `run`, from its config alone: no weights are read.

    Raises:
        InputError: no such model, or its family is not supported.
    """
    model = skeleton(model_config(run.model), run)
    lines = [f"{run.model}: {model.config.model_type}, {model.total_weights / 1e6:,.0f} M weights", ""]
    lines += [f"{'part':<16}{'weights':>10}{'layers':>8}{'in 4 bits':>11}{'kept':>7}{'with adapter':>14}"]
    for part, names in parts(model).items():
        weights = sum(parameter.numel() for name in names for parameter in model.modules[name].parameters())  # none is packed
        quantised, adapted = (sum(name in some for name in names) for some in (model.in_4bit, model.adapted))
        counts = f"{len(names):>8}{quantised:>11}{len(names) - quantised:>7}{adapted:>14}"
        lines.append(f"{part:<16}{weights / 1e6:>8,.1f} M{counts}")
    if model.config.tie_word_embeddings:
        lines.append("(lm_head and the embeddings are one matrix, counted in both rows)")
    lines.append(f"adapters: {model.adapter_weights / 1e6:,.1f} M weights in float32, the only ones that learn")
    return "\n".join([*lines, "", *_estimates(model, run, profile)])


def _estimates(model: Skeleton, run: CPPOConfig, profile: str) -> list[str]:
    width = 4 if run.dtype == "float32" else 2
    size = measure(model, run.max_pixels)
    task = f"{size.image_tokens} image and {QUESTION_TOKENS} text tokens, completions of {run.max_new_tokens}"
    rows = f"{run.rollout_batch_size} rows sampled and {run.micro_batch_size} scored at a time"
    lines = [f"estimated memory at the peak of each phase ({task}; {rows}):"]
    lines += [f"  {name:<11}{value / 1e6:8,.0f} MB" for name, value in estimate(size, run, width=width).items()]
    total = peak(size, run, width=width)
    lines.append(f"  {'in all':<11}{total / 1e6:8,.0f} MB, with {CONTEXT / 1e6:.0f} MB that CUDA takes for itself")
    if profile:
        lines.append(f"  profile {profile}: {total / CAPACITY[profile]:.0%} of {CAPACITY[profile] / GIGABYTE:.0f} GB")
    lines.append("  not counted: fragments (PYTORCH_ALLOC_CONF=expandable_segments:True helps), a desktop, longer text")
    title = "estimated time of a step, completions of full length (cppo_ref/vlm/costs.py; not compared with a GPU yet):"
    return [*lines, "", title, time_table(size, run)]
