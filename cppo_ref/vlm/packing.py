"""One prompt and its completions in one sequence: the prompt, and the image in it, is computed once for all of them.

    prompt ‖ completion 1 ‖ completion 2 ‖ …

A completion attends to the prompt and to itself, never to another completion, and its positions go on where the prompt ends.
So every hidden state, and every gradient, is that of the completion alone behind its prompt.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

Ids = Int[Tensor, "B T"]  # of B completions
Mask = Bool[Tensor, "B T"]


@dataclass(frozen=True)
class Packs:
    """N prompts of width W, each with its completions behind it, as N sequences of L tokens; made by `pack`."""

    ids: Int[Tensor, "N L"]
    owner: Int[Tensor, "N L"]  # 0: the prompt; i + 1: completion i; -1: padding
    depth: Int[Tensor, "N L"]  # how many tokens behind its prompt a completion's token is; 0 in the prompt
    pack_of: Int[Tensor, " B"]  # the sequence that completion i is in
    reads: Int[Tensor, "B T"]  # where in it token t of completion i is predicted
    completion_mask: Bool[Tensor, "B T"]

    def attention_mask(self, dtype: torch.dtype) -> Float[Tensor, "N 1 L L"]:
        """0 where a token may look, the lowest number of `dtype` where it may not: ahead, at padding, at another completion."""
        keys, queries = self.owner[:, None, :], self.owner[:, :, None]
        seen = ((keys == 0) | (keys == queries)).tril()
        return torch.where(seen, 0.0, torch.finfo(dtype).min).to(dtype).unsqueeze(1)

    def positions(self, prompt_positions: Int[Tensor, "*axes N W"]) -> Int[Tensor, "*axes N L"]:
        """The position of every token, given those of the prompts."""
        behind = self.depth + prompt_positions[..., -1:]
        padded = F.pad(prompt_positions, (0, self.ids.shape[1] - prompt_positions.shape[-1]))
        return torch.where(self.depth > 0, behind, padded)

    def unpack(self, hidden: Float[Tensor, "N L H"]) -> Float[Tensor, "B T H"]:
        """The hidden states that predict the completions' tokens; 0 off the mask."""
        return hidden[self.pack_of[:, None], self.reads].masked_fill(~self.completion_mask[..., None], 0.0)


def pack(
    prompt_ids: Int[Tensor, "N W"],
    prompt_mask: Bool[Tensor, "N W"],
    pack_of: Int[Tensor, " B"],
    completion_ids: Ids,
    completion_mask: Mask,
) -> Packs:
    """Put each completion behind its prompt, without padding between them.

    Prompts are padded on the left, where `prompt_mask` is False; `pack_of` is the prompt of each completion. `completion_mask`
    is True on the tokens that are asked for, from the first one on; the last of them predicts none of these, so it is left out.
    """
    width = prompt_ids.shape[1]
    fed = completion_mask[:, 1:]
    lengths = fed.sum(dim=1)
    neighbours = (pack_of[:, None] == pack_of).tril(diagonal=-1)  # completions that stand before this one in its pack
    start = width + (neighbours * lengths).sum(dim=1)
    room = (0, max(int((start + lengths).max()) - width, 0))

    row, step = fed.nonzero(as_tuple=True)
    place = pack_of[row], start[row] + step
    ids, owner = F.pad(prompt_ids, room), F.pad(prompt_mask.long() - 1, room, value=-1)
    depth = torch.zeros_like(ids)
    ids[place], owner[place], depth[place] = completion_ids[:, :-1][fed], row + 1, step + 1

    reads = start[:, None] - 1 + torch.arange(completion_ids.shape[1], device=start.device)
    reads[:, 0] = width - 1
    return Packs(ids, owner, depth, pack_of, reads.clamp(max=ids.shape[1] - 1), completion_mask)
