"""Sampling one token after the other: each prompt is computed once, and its keys and values serve all of its completions."""

from typing import Any

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from transformers import DynamicCache


class Decoder:
    """B completions under way; `hidden` is the state that predicts the next token of each."""

    hidden: Float[Tensor, "B H"]

    def __init__(
        self, vlm: Any, language: Any, inputs: dict[str, Tensor], positions: Int[Tensor, "*axes P W"], prompt: Int[Tensor, " B"]
    ) -> None:
        """Compute the P prompts.

        `inputs` (padded on the left) and `positions` are the prompts'; `prompt` is the prompt of each completion. `vlm.model`
        takes the inputs; `language`, the language model in it, goes on.
        """
        self.language = language
        self.cache = DynamicCache(config=vlm.config.get_text_config())
        output = vlm.model(**inputs, position_ids=positions, past_key_values=self.cache, use_cache=True)
        self.cache.reorder_cache(prompt)  # pyright: ignore[reportArgumentType]
        self.hidden = output.last_hidden_state[prompt, -1]
        self.mask = inputs["attention_mask"][prompt]
        self.position = positions[..., prompt, -1:]

    def append(self, ids: Int[Tensor, " B"]) -> None:
        """Go on by one token each."""
        self.mask = F.pad(self.mask, (0, 1), value=1)
        self.position = self.position + 1
        state = {"attention_mask": self.mask, "position_ids": self.position, "past_key_values": self.cache}
        output = self.language(input_ids=ids[:, None], **state, use_cache=True)
        self.hidden = output.last_hidden_state[:, -1]
