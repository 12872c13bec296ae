"""The probe: what a model does before it has learned anything, and whether it can learn from these rows.

It samples groups as a step would, asks again with blank images, and takes one gradient. Nothing of the run is changed:
adapters, order of the rows and random draws stay as they were.
"""

import time
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import torch

from cppo_ref.config import CPPOConfig, InputError
from cppo_ref.evaluation import correctness
from cppo_ref.examples.loading import rows_for, step_rows
from cppo_ref.examples.rows import Rows, images_of, row_at
from cppo_ref.examples.views import blanked, views_of
from cppo_ref.rewards import extract_boxed, format_reward, reward
from cppo_ref.rollouts import Rollouts, generate_rollouts
from cppo_ref.runs.seeds import stream_seed
from cppo_ref.vlm.chunks import over_tokens
from cppo_ref.vlm.peaks import process_peak, read_peak, reset_peak
from cppo_ref.vlm.policy import Policy
from cppo_ref.vlm.prompts import Prompts, fit_pixels
from cppo_ref.vlm.scoring import completion_entropy

# nats, mean over tokens: sampling and scoring round differently. The bound for 16 bits is a guess, not measured on a GPU
AGREEMENT = {torch.float32: 1e-3, torch.bfloat16: 0.05, torch.float16: 0.05}


@dataclass(frozen=True)
class Probe:
    """What was seen; shares are between 0 and 1."""

    prompts: str
    completions: int
    right: float
    formatted: float
    dead: float  # groups whose rewards are all equal: they teach nothing
    finished: float
    tokens: float  # of a completion, mean
    changed: float  # rows whose likeliest answer is another one once the image is blank
    shift: list[float]  # 10 %, 50 % and 90 % of ΔH under the run's removing views, nats
    disagreement: float  # |H while sampling − H while scoring|, nats, mean
    silent: list[str]  # adapted layers without a gradient
    sampling_seconds: float
    learning_seconds: float  # of one micro-batch, forward and backward
    peak: float | None  # bytes
    counted: str  # what the peak is of


def run_probe(policy: Policy, rows: Rows, config: CPPOConfig, count: int) -> Probe:
    """Look at the first `count` rows that a run with `config` would train on.

    Raises:
        InputError: something that must work does not: the image reaches the logits, sampling and scoring agree, adapters in
            every scope get a gradient.
    """
    first = step_rows(rows, count, 0, config.seed)
    reset_peak(policy.device)
    start = time.perf_counter()
    rollouts = _sample(policy, first, config)
    sampled = time.perf_counter() - start
    disagreement = check_agreement(policy, rollouts, config)
    removed = policy.encode([views_of(row, i, config, 0)[1] for i, row in enumerate(first)], [row["question"] for row in first])
    shift = scored_entropy(policy, removed, rollouts, config) - rollouts.entropy
    greedy, blind = (_sample(policy, some, config, greedy=True) for some in (first, [blanked(row) for row in first]))
    check_image_matters(policy, greedy, blind, config.micro_batch_size)
    answers = zip(*([extract_boxed(text) or text for text in r.texts] for r in (greedy, blind)), strict=True)
    start = time.perf_counter()
    silent = check_gradients(policy, rollouts, config)
    learned = time.perf_counter() - start
    held = rows_for(config, "validation") if config.data == "shapes" else rows  # as evaluation reads them
    rewards = torch.tensor([reward(t, a) for t, a in zip(rollouts.texts, rollouts.answers, strict=True)])
    groups = rewards.view(-1, config.group_size)
    return Probe(
        prompts=prompts_text(policy, first[0], row_at(held, len(held) - 1)),
        completions=len(rewards),
        right=float(correctness([rollouts]).mean()),
        formatted=sum(map(format_reward, rollouts.texts)) / len(rewards),
        dead=(groups == groups[:, :1]).all(dim=1).float().mean().item(),
        finished=rollouts.finished.float().mean().item(),
        tokens=rollouts.completion_mask.sum(dim=1).float().mean().item(),
        changed=sum(before != after for before, after in answers) / count,
        shift=shift[rollouts.completion_mask].quantile(torch.tensor([0.1, 0.5, 0.9], device=shift.device)).tolist(),
        disagreement=disagreement,
        silent=silent,
        sampling_seconds=sampled,
        learning_seconds=learned,
        peak=read_peak(policy.device) or process_peak(),
        counted="tensors" if read_peak(policy.device) else "the whole process",
    )


def _sample(policy: Policy, rows: list[dict[str, Any]], config: CPPOConfig, greedy: bool = False) -> Rollouts:
    group_size, temperature = (1, 0.0) if greedy else (config.group_size, config.temperature)
    options = {"max_new_tokens": config.max_new_tokens, "batch_size": config.rollout_batch_size, "temperature": temperature}
    rng = torch.Generator().manual_seed(stream_seed(config.seed, 0, 0))
    return generate_rollouts(policy, rows, group_size=group_size, rng=rng, **options)


def scored_entropy(policy: Policy, prompts: Prompts, rollouts: Rollouts, config: CPPOConfig) -> torch.Tensor:
    """[B, T]: the entropy before each token of the completions behind `prompts`, one for each of the P, in nats."""
    completions = prompts.take(rollouts.prompt_of_row), rollouts.completion_ids, rollouts.completion_mask
    return completion_entropy(policy, *completions, temperature=config.temperature, batch_size=config.micro_batch_size)


def check_agreement(policy: Policy, rollouts: Rollouts, config: CPPOConfig) -> float:
    """How far the entropies noted while sampling are from those of a scored sequence; InputError if too far."""
    scored = scored_entropy(policy, rollouts.prompts, rollouts, config)
    apart = (scored - rollouts.entropy).abs()[rollouts.completion_mask].mean().item()
    if not apart <= AGREEMENT[policy.dtype]:
        raise InputError(
            f"sampling and scoring give entropies {apart:.2g} nats apart, expected at most {AGREEMENT[policy.dtype]:g}: "
            "with this model and these library versions the policy that samples is not the one that learns"
        )
    return apart


@torch.no_grad()
def check_image_matters(policy: Policy, seen: Rollouts, blind: Rollouts, count: int = 1) -> None:
    """InputError if a blank image leaves every logit of the first `count` completions of `seen` as it was."""
    ids, mask = seen.completion_ids[:count], seen.completion_mask[:count]
    with policy.scoring():
        hidden = [policy.hidden_states(r.prompts.take(slice(count)), ids, mask) for r in (seen, blind)]
    if torch.equal(*hidden):
        raise InputError("a blank image changes no logit: images do not reach the language model, or are blank already")


def check_gradients(policy: Policy, rollouts: Rollouts, config: CPPOConfig) -> list[str]:
    """The adapted layers that one micro-batch gives no gradient; InputError if there is a part in which no layer gets one.

    LLaVA reads its vision tower before the last layer, so that layer never gets one.
    """
    rows = slice(0, config.micro_batch_size)
    ids, mask = rollouts.completion_ids[rows], rollouts.completion_mask[rows]
    with policy.learning():
        hidden = policy.hidden_states(rollouts.prompts.take(rollouts.prompt_of_row[rows]), ids, mask)
        # of each token's logit: that of its log-probability vanishes where the policy is certain
        logits = over_tokens(
            lambda h, i: policy.logits(h).gather(-1, i[:, None])[:, 0], mask, hidden, ids, vocabulary=policy.vocabulary
        )
        logits.sum().backward()
    layers: dict[str, bool] = defaultdict(bool)
    for name, parameter in policy.model.named_parameters():
        if parameter.requires_grad:
            layer = name.split(".lora_")[0].removeprefix("base_model.model.")
            layers[layer] |= parameter.grad is not None and bool(parameter.grad.any())  # A's is zero, because B begins at zero
    policy.model.zero_grad(set_to_none=True)
    for part in (policy.family.vision, policy.family.language):
        adapted = [reached for layer, reached in layers.items() if layer.startswith(part)]
        if adapted and not any(adapted):
            raise InputError(f"no adapter in {part} gets a gradient: give --lora_scope without it, or another model")
    return [layer for layer, reached in layers.items() if not reached]


def prompts_text(policy: Policy, train: dict[str, Any], evaluation: dict[str, Any]) -> str:
    """The prompts of a training and an evaluation row as the model reads them, with their images' sizes."""
    lines, ends = [], []
    image_id = getattr(policy.vlm.config, "image_token_id", None)
    for kind, row in (("training", train), ("evaluation", evaluation)):
        ids = policy.encode([images_of(row)], [row["question"]]).inputs["input_ids"][0].tolist()
        fitted = [fit_pixels(image, policy.max_pixels) for image in images_of(row)]
        size, read = (", ".join(f"{i.width}×{i.height}" for i in images) for images in (images_of(row), fitted))
        scaled = f" read as {read}" if read != size else ""
        lines.append(f"{kind} prompt: {len(ids)} tokens, {ids.count(image_id)} of them images; {size}{scaled}")
        lines.append(f"  {policy.tokenizer.decode([i for i in ids if i != image_id])!r}")
        ends.append(ids[::-1])
    same = next((i for i, (a, b) in enumerate(zip(*ends, strict=False)) if a != b), min(map(len, ends)))
    return "\n".join([*lines, f"both end in the same {same} tokens"])


def verdicts(probe: Probe) -> list[str]:
    """What stands in the way of learning, and what to change; nothing if nothing does."""
    right, changed = probe.right, probe.changed
    dead = f"{probe.dead:.0%} of the groups teach nothing: take rows that are right now and then, or a larger group"
    obstacles = {
        "every completion was cut: raise --max_new_tokens, or ask for shorter answers with --instruction": probe.finished == 0,
        "no completion has the format: say in --instruction that the answer belongs into \\boxed{}": probe.formatted == 0,
        "no answer is right, so accuracy teaches nothing: check the prompt, take easier rows or a stronger model": right == 0,
        "every answer is right, so there is nothing to learn: take harder rows": right == 1,
        dead: probe.dead > 0.8 and right < 1,
        "no answer changes when the image is blank: the model does not look, or the rows do not need the image": changed == 0,
    }
    return [text for text, stands in obstacles.items() if stands]


def probe_text(probe: Probe, config: CPPOConfig) -> str:
    """The probe in words."""
    low, middle, high = probe.shift
    step = probe.sampling_seconds * config.prompts_per_step * config.group_size / probe.completions
    micro = -(-config.prompts_per_step * config.group_size // config.micro_batch_size)
    peak = "not counted here" if probe.peak is None else f"{probe.peak / 1e9:.2f} GB ({probe.counted})"
    lines = [
        probe.prompts,
        f"{probe.completions} completions: {probe.right:.0%} right, {probe.formatted:.0%} in the format; "
        f"{probe.dead:.0%} of the groups earn the same reward throughout",
        f"length: {probe.tokens:.0f} tokens on average, {probe.finished:.0%} finished, {1 - probe.finished:.0%} cut",
        f"does it look? {probe.changed:.0%} of the likeliest answers change when the image is blank",
        f"ΔH: {low:.3f}, {middle:.3f} and {high:.3f} nats at 10, 50 and 90 % of the tokens",
        f"self-test: the image reaches the logits; sampling and scoring agree to {probe.disagreement:.0e} nats; gradients flow",
        f"  adapted layers without a gradient: {', '.join(probe.silent) or 'none'}",
        f"measured: {probe.sampling_seconds:.1f} s to sample ({step:.1f} s for a step's rollouts), "
        f"{probe.learning_seconds:.1f} s for a micro-batch forward and backward (a step has {micro} or more), peak {peak}",
    ]
    return "\n".join([*lines, *(f"→ {text}" for text in verdicts(probe) or ["nothing stands in the way of learning"])])
