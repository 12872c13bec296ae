"""Rollouts: G sampled completions for each prompt.

Paper: sample G completions per (image, question) from the policy at temperature 1.
Here:  transformers' `generate`, plain sampling (no top-k, no top-p), placeholders and padding suppressed, in eval mode.
Why:   generate is kept well and knows every model family. It draws from the global generator, so it runs inside a fork that is
       seeded from the generator passed in: the caller's randomness is explicit and nobody else's is touched.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from cppo_ref.policy import Policy
from cppo_ref.prompts import Prompts
from cppo_ref.rows import images_of


@dataclass(frozen=True)
class Rollouts:
    """P prompts with G completions each; the B = P·G completions of one prompt are adjacent rows."""

    rows: list[dict[str, Any]]  # the P dataset rows
    prompts: Prompts  # P
    group_size: int
    completion_ids: Int[Tensor, "B T"]
    completion_mask: Bool[Tensor, "B T"]  # True up to and including the end-of-sequence token
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

    Args:
        policy: samples with its adapters on.
        rows: dataset rows.
        group_size: completions per row, G.
        max_new_tokens: completions that reach it without an end-of-sequence token are cut.
        temperature: 0 takes the likeliest token (greedy).
        batch_size: completions sampled at a time, None for all; the cache of keys and values grows with it.
        rng: the one source of randomness.

    Raises:
        InputError: prompt and completion do not fit the model.
    """
    prompts = policy.encode([images_of(row) for row in rows], [row["question"] for row in rows])
    policy.check_length(prompts, max_new_tokens)
    seed = int(torch.randint(2**62, (), generator=rng))
    copies = torch.arange(len(rows)).repeat_interleave(group_size if temperature > 0 else 1)
    with policy.sampling(), torch.random.fork_rng():
        torch.manual_seed(seed)
        parts = [
            policy.sample(prompts.take(part), max_new_tokens, temperature) for part in copies.split(batch_size or len(copies))
        ]
    ids = pad_sequence([row for part in parts for row in part], batch_first=True, padding_value=policy.tokenizer.pad_token_id)
    if temperature == 0:
        ids = ids.repeat_interleave(group_size, dim=0)
    mask = completion_mask(ids, policy.eos_ids)
    texts = [policy.tokenizer.decode(i[m], skip_special_tokens=True) for i, m in zip(ids, mask, strict=True)]
    finished = torch.isin(ids, torch.tensor(policy.eos_ids, device=ids.device)).any(dim=1)
    return Rollouts(list(rows), prompts, group_size, ids, mask, finished, texts)


def completion_mask(completion_ids: Int[Tensor, "B T"], eos_ids: Sequence[int]) -> Bool[Tensor, "B T"]:
    """True up to and including the first end-of-sequence token: ending is an action of the policy, even where pad = EOS."""
    ends = torch.isin(completion_ids, torch.tensor(eos_ids, device=completion_ids.device))
    return ends.cumsum(dim=1) - ends.long() == 0
