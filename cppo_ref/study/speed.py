"""The same study in half of the time, for small models on a CPU: three savings, none of them an approximation.

Frozen 4-bit weights are unpacked once, not in every forward and backward. A prompt is computed once for its G completions,
which then attend to its keys and values. Where no gradient is wanted, an adapter is added to its weights and costs nothing.

Losses, gradients and up to SAMPLED_AT_A_TIME sampled answers are those of `Policy` up to rounding (tests compare); of more
answers, the draws are others. A sampled word can also change where two are as likely as rounding is small. So rows of the
table name this arithmetic beside the versions of the libraries.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from typing import Any

import torch
import torch.nn.functional as F
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn.modules import Linear4bit
from jaxtyping import Bool, Float, Int
from peft.tuners.lora import LoraLayer
from torch import Tensor
from transformers import DynamicCache

from cppo_ref.policy import Policy
from cppo_ref.prompts import Prompts

ARITHMETIC = "shared prompts"  # in the rows' `versions`: what rounds alike
SAMPLED_AT_A_TIME = 256  # rows; the keys and values of more do not stay in a processor's cache


def quick(policy: Policy) -> "QuickPolicy":
    """`policy` with its layers replaced by quicker ones that share its adapters' parameters: use the result instead of it."""
    dequantize_once(policy)
    adapted = [(name, module) for name, module in policy.model.named_modules() if isinstance(module, LoraLayer)]
    layers = [(name, QuickLora(module)) for name, module in adapted]
    for name, layer in layers:
        _replace(policy, name, layer)
    return QuickPolicy(**{f.name: getattr(policy, f.name) for f in fields(policy)})


def dequantize_once(policy: Policy) -> int:
    """Replace every NF4 linear layer by a plain one that holds the same, unpacked weights; returns how many there were.

    The weights are frozen and the kernels multiply by the unpacked matrix, so that losses, gradients and samples stay the same
    to the bit (a test compares). It costs the memory that NF4 saves: for small models on a CPU only.
    """
    packed = [(name, module) for name, module in policy.model.named_modules() if type(module) is Linear4bit]
    for name, module in packed:
        assert module.bias is None, f"{name} has a bias"
        weight = dequantize_4bit(module.weight.data, module.weight.quant_state).to(policy.dtype)  # pyright: ignore
        plain = torch.nn.Linear(module.in_features, module.out_features, bias=False, device="meta")
        plain.weight = torch.nn.Parameter(weight.reshape(module.out_features, module.in_features), requires_grad=False)
        _replace(policy, name, plain)
    return len(packed)


def _replace(policy: Policy, name: str, module: torch.nn.Module) -> None:
    parent, _, last = name.rpartition(".")
    setattr(policy.model.get_submodule(parent), last, module)


class QuickLora(torch.nn.Module):
    """A linear layer with a LoRA adapter: y = W x + b + s·B A x; without a graph, (W + s·B A) x + b."""

    weight: Tensor
    bias: Tensor | None
    down: Tensor
    up: Tensor

    def __init__(self, adapted: Any) -> None:
        super().__init__()
        base = adapted.get_base_layer()
        self.weight, self.bias = base.weight, base.bias
        self.down, self.up = adapted.lora_A["default"].weight, adapted.lora_B["default"].weight
        self.scale = adapted.scaling["default"]
        self.adapter_on = True
        self.merged_at: tuple[int, int] | None = None

    def forward(self, x: Float[Tensor, "*N I"]) -> Float[Tensor, "*N O"]:
        """The layer's output, in the way that is cheapest here."""
        if not self.adapter_on:
            return F.linear(x, self.weight, self.bias)
        if not torch.is_grad_enabled():
            return F.linear(x, self._merged_weight(), self.bias)
        rows = x.flatten(0, -2)
        out = torch.addmm(F.linear(rows, self.weight, self.bias), F.linear(rows, self.down), self.up.T, alpha=self.scale)
        return out.unflatten(0, x.shape[:-1])

    def _merged_weight(self) -> Tensor:
        """W + s·B A, made anew when an optimizer has changed A or B."""
        now = self.down._version, self.up._version
        if now != self.merged_at:
            self.merged, self.merged_at = torch.addmm(self.weight, self.up, self.down, alpha=self.scale), now
        return self.merged


class QuickPolicy(Policy):
    """A policy that computes each prompt once for all of its completions (families whose positions follow from the mask)."""

    def hidden_states(
        self, prompts: Prompts, completion_ids: Int[Tensor, "B T"], completion_mask: Bool[Tensor, "B T"]
    ) -> Float[Tensor, "B T H"]:
        """As `Policy.hidden_states`; equal prompts must be adjacent rows."""
        longest = max(int(completion_mask.any(dim=0).sum()), 1)
        last, mask, cache = self._prompted(prompts)
        hidden = last.unsqueeze(1)
        if longest > 1:
            mask = torch.cat([mask, completion_mask[:, : longest - 1].to(mask.dtype)], dim=1)
            hidden = torch.cat([hidden, self._continued(completion_ids[:, : longest - 1], mask, cache)], dim=1)
        return F.pad(hidden, (0, 0, 0, completion_ids.shape[1] - longest))

    def sample(self, prompts: Prompts, max_new_tokens: int, temperature: float) -> Int[Tensor, "B T"]:
        """As `Policy.sample`: the same draws of the global generator for up to SAMPLED_AT_A_TIME rows."""
        parts = [
            row
            for rows in torch.arange(len(prompts)).split(SAMPLED_AT_A_TIME)
            for row in self._sample(prompts.take(rows), max_new_tokens, temperature)
        ]
        return torch.nn.utils.rnn.pad_sequence(parts, batch_first=True, padding_value=self.tokenizer.pad_token_id)

    def _sample(self, prompts: Prompts, max_new_tokens: int, temperature: float) -> Int[Tensor, "B T"]:
        last, mask, cache = self._prompted(prompts)
        ends, columns = torch.tensor(self.eos_ids), []
        going_on = torch.ones(len(mask), dtype=torch.bool)
        while len(columns) < max_new_tokens and going_on.any():
            if columns:
                mask = F.pad(mask, (0, 1), value=1)
                last = self._continued(columns[-1].unsqueeze(1), mask, cache)[:, -1]
            logits = self.logits(last)
            logits[:, self.forbidden_ids] = -torch.inf
            if temperature > 0:
                drawn = torch.multinomial((logits / temperature).softmax(dim=-1), num_samples=1).squeeze(1)
            else:
                drawn = logits.argmax(dim=-1)
            columns.append(torch.where(going_on, drawn, self.tokenizer.pad_token_id))
            going_on &= ~torch.isin(drawn, ends)
        return torch.stack(columns, dim=1)

    def _prompted(self, prompts: Prompts) -> tuple[Tensor, Tensor, DynamicCache]:
        """The last hidden state and the attention mask of each row's prompt, and the keys and values to go on from."""
        first, of_row = distinct(prompts)
        mask = first.inputs["attention_mask"]
        cache = DynamicCache(config=self.vlm.config.get_text_config())
        positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
        output = self.vlm.model(**first.inputs, position_ids=positions, past_key_values=cache, use_cache=True)
        cache.batch_select_indices(of_row)
        return output.last_hidden_state[of_row, -1], mask[of_row], cache

    def _continued(self, ids: Int[Tensor, "B T"], mask: Int[Tensor, "B L"], cache: DynamicCache) -> Float[Tensor, "B T H"]:
        """Hidden states of `ids`, which come after what is in the cache; `mask` covers both."""
        positions = (mask.cumsum(dim=1) - 1)[:, -ids.shape[1] :].clamp(min=0)
        options = {"position_ids": positions, "past_key_values": cache, "use_cache": True}
        return self.vlm.model.language_model(input_ids=ids, attention_mask=mask, **options).last_hidden_state

    @contextmanager
    def reference(self) -> Iterator[None]:
        """Inside, the model is the reference policy: adapters off, no graph."""
        layers = [module for module in self.model.modules() if isinstance(module, QuickLora)]
        for layer in layers:
            layer.adapter_on = False
        try:
            with torch.no_grad():
                yield
        finally:
            for layer in layers:
                layer.adapter_on = True


def distinct(prompts: Prompts) -> tuple[Prompts, Int[Tensor, " B"]]:
    """The prompts without those that equal the one before them, and which of these each row has."""
    changed = [(values[1:] != values[:-1]).flatten(start_dim=1).any(dim=1) for values in prompts.inputs.values()]
    fresh = F.pad(torch.stack(changed).any(dim=0), (1, 0), value=True)
    return prompts.take(fresh.nonzero().flatten()), fresh.cumsum(dim=0) - 1
