"""Memory: what a run will need, counted from the model's shapes before anything is loaded. `peaks` measures what it did need.

The estimate counts tensors: weights, adapters with their gradients and moments, the cache of a rollout, the activations that
the backward pass waits for, and the logits of one chunk. Linear attention counts as full attention, which is too little. A GPU
also holds its context (`CONTEXT`).
"""

from dataclasses import dataclass, replace
from typing import Any

import torch

from cppo_ref.config import CPPOConfig
from cppo_ref.vlm import chunks
from cppo_ref.vlm.devices import choose_device, choose_dtype
from cppo_ref.vlm.families import image_size, shares_prompts
from cppo_ref.vlm.quantization import Skeleton, model_config, skeleton

NF4 = 0.5 + 1 / 64 + 4 / (64 * 256)  # bytes per weight: 4 bits, an 8-bit scale per 64 weights, a float32 per 256 scales
QUESTION_TOKENS = 128  # assumed length of question, template and instruction, beside the image's tokens
MAX_PIXELS = 448 * 448  # assumed where a run sets no max_pixels
CONTEXT = 500e6  # bytes assumed for what CUDA takes before the first tensor
GIGABYTE = 1e9


@dataclass(frozen=True)
class ModelSize:
    """The numbers of a VLM that decide its memory. Weights are counts, not bytes."""

    nf4_weights: int
    other_weights: int  # vision tower, projector, embeddings, head, norms
    adapter_weights: int  # float32
    largest_linear: int  # of the 4-bit layers, which are dequantised one at a time
    layers: int
    hidden: int
    intermediate: int
    query_width: int  # heads × width of a head
    cache_width: int  # key-value heads × width of a head
    vocabulary: int
    vision_layers: int
    vision_hidden: int
    vision_intermediate: int
    patches: int  # per image
    image_tokens: int  # per image
    shares_prompts: bool = True  # completions of a prompt are in one sequence
    language_weights: int = 0  # of the language model's linear layers, in 4 bits or not


def measure(model: Skeleton, max_pixels: int = 0) -> ModelSize:
    """Read the sizes off a model without weights; images have `max_pixels` (0: MAX_PIXELS) where the family lets them vary."""
    config = model.config
    text, vision = config.get_text_config(), config.vision_config
    head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    width = getattr(vision, "embed_dim", vision.hidden_size)  # Qwen2-VL's hidden_size is that of the projector's output
    patches, image_tokens = image_size(config, max_pixels or MAX_PIXELS)
    linear = {n: m.in_features * m.out_features for n, m in model.modules.items() if isinstance(m, torch.nn.Linear)}
    quantised = [linear[name] for name in model.in_4bit]
    return ModelSize(
        nf4_weights=sum(quantised),
        other_weights=model.total_weights - sum(quantised),
        adapter_weights=model.adapter_weights,
        largest_linear=max(quantised, default=0),
        layers=text.num_hidden_layers,
        hidden=text.hidden_size,
        intermediate=text.intermediate_size,
        query_width=text.num_attention_heads * head,
        cache_width=text.num_key_value_heads * head,
        vocabulary=text.vocab_size,
        vision_layers=getattr(vision, "depth", None) or vision.num_hidden_layers,
        vision_hidden=width,
        vision_intermediate=getattr(vision, "intermediate_size", None) or width * vision.mlp_ratio,
        patches=patches,
        image_tokens=image_tokens,
        shares_prompts=shares_prompts(config),
        language_weights=sum(count for name, count in linear.items() if name.startswith(model.family.language)),
    )


def estimate(size: ModelSize, run: CPPOConfig, *, width: int = 2, question_tokens: int = QUESTION_TOKENS) -> dict[str, float]:
    """Bytes at the peak of each phase of a step after the first, with `width` bytes per 16- or 32-bit number.

    Phases: load, rollouts, reference, detection, update, optimizer (its step, part of the update). One image per prompt.
    """
    prompt = size.image_tokens + question_tokens
    weights = (width if run.unpack else NF4) * size.nf4_weights + width * size.other_weights
    held = weights + 16 * size.adapter_weights  # float32: value, gradient, two moments
    rows = run.prompts_per_step * run.group_size
    sampled, micro = min(rows, run.rollout_batch_size), min(rows, run.micro_batch_size)
    block = 4 * min(chunks.BLOCK, micro * run.max_new_tokens * size.vocabulary)
    dequantised = width * size.largest_linear

    # completions of one prompt share it, if they may: tokens, images and attention mask of the packs of a micro-batch
    packs = -(-micro // run.group_size) + (micro % run.group_size > 0 < run.group_size % micro)  # a group may straddle two
    packs = min(micro, run.prompts_per_step if run.num_minibatches > 1 else packs) if size.shares_prompts else micro
    tokens, patches = packs * prompt + micro * run.max_new_tokens, packs * size.patches
    mask = 3 * width * packs * (tokens // packs) ** 2  # itself, and what it is made of
    cache = 2 * width * size.layers * size.cache_width * (prompt + run.max_new_tokens)
    prefill = -(-sampled // run.group_size) * _forward(size, prompt, size.patches, width)
    scored = _forward(size, tokens, patches, width) + mask + 4 * block + dequantised

    views = 3 if run.cpl_weight > 0 else 1
    layer, vision_layer = _layers(size, width)
    if run.activation_checkpointing:
        kept = width * (size.layers * size.hidden * tokens + size.vision_layers * size.vision_hidden * patches)
        recomputed = max(layer * tokens, vision_layer * patches)
    else:
        kept, recomputed = size.layers * layer * tokens + size.vision_layers * vision_layer * patches, 0
    learned = views * (kept + mask) + recomputed + 8 * block + dequantised
    detected = kept + mask + 4 * block if views == 3 and run.on_policy and rows <= run.micro_batch_size else scored
    return {
        "load": weights + 4 * size.adapter_weights,
        "rollouts": held + sampled * cache + prefill + dequantised,
        "reference": held + scored,
        "detection": held + detected,
        "update": held + learned,
        "optimizer": held + 4 * size.adapter_weights,  # AdamW's one temporary of each parameter
    }


def _forward(size: ModelSize, tokens: int, patches: int, width: int) -> float:
    """Bytes of the largest layer's values without a graph: language model or vision tower, one after the other."""
    parts = (tokens, size.hidden, size.intermediate), (patches, size.vision_hidden, size.vision_intermediate)
    return max(count * (width * (3 * hidden + 2 * wide) + 4 * wide) for count, hidden, wide in parts)


def _layers(size: ModelSize, width: int) -> tuple[float, float]:
    """Bytes that a decoder layer keeps of a token, and a vision layer of a patch, for the backward pass.

    All linear layers have adapters. These compute in float32: beside a layer's own values they keep copies of 16-bit inputs.
    """
    copy, hidden, seen = 4 if width != 4 else 0, size.hidden, size.vision_hidden
    own = width * (6 * hidden + 3 * size.query_width + 2 * size.cache_width + 4 * size.intermediate) + 4 * 2 * hidden
    own_vision = width * (10 * seen + 3 * size.vision_intermediate) + 4 * 2 * seen
    copies, copies_vision = 5 * hidden + size.query_width + size.intermediate, 3 * seen + size.vision_intermediate
    return own + copy * copies, own_vision + copy * copies_vision


def peak(size: ModelSize, run: CPPOConfig, *, width: int = 2) -> float:
    """Bytes that a GPU must have for `run`: the highest phase and the process's context."""
    return max(estimate(size, run, width=width).values()) + CONTEXT


def evaluation_peak(run: CPPOConfig, *, question_tokens: int = QUESTION_TOKENS) -> float:
    """Bytes that tensors take at the peak of an evaluation with a run's settings: no gradient, no moments.

    On the shape world completions are scored, too, for the detector: `rollout_batch_size` of as many prompts.
    """
    rows = run.rollout_batch_size
    scored = replace(run, prompts_per_step=rows, num_minibatches=rows, micro_batch_size=rows)
    size = measure(skeleton(model_config(run.model), run), run.max_pixels)
    width = choose_dtype(run.dtype, choose_device(run.device)).itemsize
    phases = estimate(size, scored, width=width, question_tokens=question_tokens)
    tokens = size.image_tokens + question_tokens
    cache = 2 * width * size.layers * size.cache_width * tokens
    prompt = _forward(size, tokens, size.patches, width) + 2 * cache  # its keys and values, and their reordered copy
    greedy = phases["load"] + rows * prompt  # one completion for each of as many prompts, which are computed first
    return max(greedy, max(phases["rollouts"], phases["reference"] * (run.data == "shapes")) - 12 * size.adapter_weights)


def advice(config: Any, run: CPPOConfig, *, width: int = 2) -> str:
    """What to lower when memory ran out, the most helpful first, with what each change saves by the estimate."""
    model = skeleton(config, run)  # the same under every change

    def needed(run: CPPOConfig) -> float:
        """The estimated peak of a run with these settings, bytes."""
        return peak(measure(model, run.max_pixels), run, width=width)

    now = needed(run)
    saved = [(now - needed(replace(run, **changes)), option) for option, changes in _leaner(run).items()]
    best = sorted((pair for pair in saved if pair[0] > 0.02 * now), reverse=True)[:3]
    if not best:
        return "every setting is as lean as it gets: take a smaller model, or a GPU with more memory"
    return "try " + ", or ".join(f"{option} (saves about {saving / GIGABYTE:.1f} GB)" for saving, option in best)


def _leaner(run: CPPOConfig) -> dict[str, dict[str, Any]]:
    """Options that ask for less, and what each changes; one that is at its least already saves nothing."""
    rows, pixels, new = run.prompts_per_step * run.group_size, run.max_pixels or MAX_PIXELS, run.max_new_tokens
    sampled, micro = min(rows, run.rollout_batch_size), min(rows, run.micro_batch_size)
    less = {"micro_batch_size": (micro, 1), "rollout_batch_size": (sampled, sampled // 2), "max_new_tokens": (new, new // 2)}
    return {
        **{f"--{name} {few} in place of {many}": {name: few} for name, (many, few) in less.items() if many > 1},
        f"--max_pixels {pixels // 2}": {"max_pixels": pixels // 2},
        "--activation_checkpointing": {"activation_checkpointing": True},
    }
