"""Rollouts: G sampled completions for each prompt.

Paper: sample G completions per (image, question) from the policy at temperature 1.
Here:  plain sampling (no top-k, no top-p), one token after the other; placeholders and padding are never drawn. Each prompt is
       computed once for its G completions, and what the step needs of every distribution, its entropy, is noted on the way.
Why:   the loop is short, and the one source of randomness is the generator that the caller passes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from cppo_ref.examples.rows import images_of
from cppo_ref.perception import token_entropy
from cppo_ref.vlm.policy import Policy
from cppo_ref.vlm.prompts import Prompts


class NonFiniteError(ArithmeticError):
    """A logit, loss or gradient was NaN or infinite; the parameters are still those of the last good update."""


@dataclass(frozen=True)
class Rollouts:
    """P prompts with G completions each; the B = P·G completions of one prompt are adjacent rows."""

    rows: list[dict[str, Any]]  # the P dataset rows
    prompts: Prompts  # P
    group_size: int
    completion_ids: Int[Tensor, "B T"]
    completion_mask: Bool[Tensor, "B T"]  # True up to and including the end-of-sequence token
    entropy: Float[Tensor, "B T"]  # of the policy before each token, placeholders not ruled out yet, nats
    finished: Bool[Tensor, " B"]  # False where max_new_tokens cut the completion
    texts: list[str]  # B

    @property
    def prompt_of_row(self) -> Int[Tensor, " B"]:
        """Index of each completion's prompt."""
        return torch.arange(len(self.texts), device=self.completion_ids.device) // self.group_size

    @property
    def answers(self) -> list[str]:
        """The right answer of each completion's question."""
        return [row["answer"] for row in self.rows for _ in range(self.group_size)]


@dataclass
class Batch:
    """What is known of a step's B completions; `cppo_step` fills it in from top to bottom."""

    rollouts: Rollouts
    rewards: Float[Tensor, " B"]
    advantages: Float[Tensor, " B"]
    gate: Bool[Tensor, " B"]  # rows that CPL applies to
    ref_logprobs: Float[Tensor, "B T"] | None = None  # None: β = 0
    old_logprobs: Float[Tensor, "B T"] | None = None  # None: on-policy, every ratio is 1
    shift: Float[Tensor, "B T"] | None = None  # None: λ = 0, as for the next two
    selected: Bool[Tensor, "B T"] | None = None  # perception tokens
    views: tuple[Prompts, Prompts] | None = None  # each completion's prompt with I⁺ for I, and with I⁻; None: no row is gated
    removed_hidden: Float[Tensor, "B T H"] | None = None  # under I⁻, with its graph; None: the update computes it again

    @property
    def prompts(self) -> Prompts:
        """Each completion's prompt."""
        return self.rollouts.prompts.take(self.rollouts.prompt_of_row)


def generate_rollouts(
    policy: Policy,
    rows: Sequence[dict[str, Any]],
    *,
    group_size: int,
    max_new_tokens: int,
    temperature: float = 1.0,
    batch_size: int | None = None,
    rng: torch.Generator,
) -> Rollouts:
    """Sample `group_size` completions of at most `max_new_tokens` tokens for each row {image, question, answer}.

    `temperature` 0 takes the likeliest token (greedy). `batch_size` completions are sampled at a time, None for all: the cache
    of keys and values grows with it. `rng` is the one source of randomness.

    Raises:
        ValueError: no rows, `group_size` or `max_new_tokens` below 1, or a negative temperature.
        InputError: prompt and completion do not fit the model.
    """
    if min(len(rows), group_size, max_new_tokens) < 1 or not temperature >= 0:
        asked = f"{len(rows)} rows, group_size {group_size}, max_new_tokens {max_new_tokens}, temperature {temperature}"
        raise ValueError(f"asked to sample {asked}: expected 1 or more of each, and a temperature of 0 or more")
    prompts = policy.encode([images_of(row) for row in rows], [row["question"] for row in rows])
    policy.check_length(prompts, max_new_tokens)
    draws = torch.Generator(policy.device).manual_seed(int(torch.randint(2**62, (), generator=rng)))
    copies = torch.arange(len(rows), device=policy.device).repeat_interleave(group_size if temperature > 0 else 1)
    ids, entropy = [], []
    with policy.scoring():
        for part in copies.split(batch_size or len(copies)):
            drawn, spread = sample(policy, prompts.take(part), max_new_tokens, temperature, draws, first=len(ids))
            ids, entropy = [*ids, *drawn], [*entropy, *spread]
    completion_ids = pad_sequence(ids, batch_first=True, padding_value=policy.tokenizer.pad_token_id)
    entropies = pad_sequence(entropy, batch_first=True)
    if temperature == 0:
        completion_ids, entropies = (t.repeat_interleave(group_size, dim=0) for t in (completion_ids, entropies))
    mask = completion_mask(completion_ids, policy.eos_ids)
    texts = [policy.tokenizer.decode(i[m], skip_special_tokens=True) for i, m in zip(completion_ids, mask, strict=True)]
    finished = torch.isin(completion_ids, torch.tensor(policy.eos_ids, device=policy.device)).any(dim=1)
    return Rollouts(list(rows), prompts, group_size, completion_ids, mask, entropies * mask, finished, texts)


def sample(
    policy: Policy, prompts: Prompts, max_new_tokens: int, temperature: float, draws: torch.Generator, first: int = 0
) -> tuple[Int[Tensor, "B T"], Float[Tensor, "B T"]]:
    """One completion per prompt, padded after its end, and the policy's entropy before each token; row 0 is called `first`."""
    decoder, ends = policy.decode(prompts), torch.tensor(policy.eos_ids, device=policy.device)
    going_on = torch.ones(len(prompts), dtype=torch.bool, device=policy.device)
    columns, entropies = [], []
    while len(columns) < max_new_tokens and going_on.any():
        if columns:
            decoder.append(columns[-1])
        logits = policy.logits(decoder.hidden, temperature=temperature or 1.0)
        entropies.append(token_entropy(logits))
        if not (finite := entropies[-1].isfinite()).all():
            row = first + int((~finite).nonzero()[0])
            raise NonFiniteError(f"the logits of token {len(entropies)} of row {row} are not finite while sampling")
        logits[:, policy.forbidden_ids] = -torch.inf
        if temperature > 0:
            drawn = torch.multinomial(logits.softmax(dim=-1), num_samples=1, generator=draws).squeeze(1)
        else:
            drawn = logits.argmax(dim=-1)
        columns.append(torch.where(going_on, drawn, policy.tokenizer.pad_token_id))
        going_on &= ~torch.isin(drawn, ends)
    return torch.stack(columns, dim=1), torch.stack(entropies, dim=1)


def completion_mask(completion_ids: Int[Tensor, "B T"], eos_ids: Sequence[int]) -> Bool[Tensor, "B T"]:
    """True up to and including the first end-of-sequence token: ending is an action of the policy, even where pad = EOS."""
    ends = torch.isin(completion_ids, torch.tensor(eos_ids, device=completion_ids.device))
    return ends.cumsum(dim=1) - ends.long() == 0
