"""Packs by hand: what stands where, what may look at what, and where each token is predicted."""

import torch

from cppo_ref.vlm.packing import pack

# two prompts, the first one token shorter; completions 0 and 2 follow the second prompt, 1 the first; 2 has one token
PACKS = pack(
    prompt_ids=torch.tensor([[0, 10, 11], [20, 21, 22]]),
    prompt_mask=torch.tensor([[False, True, True], [True, True, True]]),
    pack_of=torch.tensor([1, 0, 1, 1]),
    completion_ids=torch.tensor([[30, 31, 32], [40, 41, 99], [50, 99, 99], [60, 61, 99]]),
    completion_mask=torch.tensor([[1, 1, 1], [1, 1, 0], [1, 0, 0], [1, 1, 0]], dtype=torch.bool),
)


def test_completions_follow_their_prompt_without_their_last_token_and_without_padding_between():
    assert PACKS.ids.tolist() == [[0, 10, 11, 40, 0, 0], [20, 21, 22, 30, 31, 60]]
    assert PACKS.owner.tolist() == [[-1, 0, 0, 2, -1, -1], [0, 0, 0, 1, 1, 4]]


def test_positions_go_on_where_the_prompt_ends():
    prompts = torch.tensor([[0, 0, 1], [0, 1, 2]])
    assert PACKS.positions(prompts).tolist() == [[0, 0, 1, 2, 0, 0], [0, 1, 2, 3, 4, 3]]
    grid = torch.stack([prompts, prompts + 10])  # axes of their own, as in M-RoPE
    assert PACKS.positions(grid)[1].tolist() == [[10, 10, 11, 12, 0, 0], [10, 11, 12, 13, 14, 13]]


def test_a_token_sees_its_prompt_and_its_own_completion_up_to_itself():
    seen = (PACKS.attention_mask(torch.float32)[:, 0] == 0).int().tolist()
    assert seen[1] == [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [1, 1, 1, 1, 0, 0],
        [1, 1, 1, 1, 1, 0],
        [1, 1, 1, 0, 0, 1],
    ]
    assert seen[0][3] == [0, 1, 1, 1, 0, 0]  # not the padding
    assert all(any(row) for pack in seen for row in pack)  # a row of a softmax is never empty


def test_the_first_token_is_predicted_by_the_prompt_and_each_other_by_the_one_before_it():
    hidden = torch.arange(12.0).view(2, 6, 1)  # place 6n + p stands for itself
    assert PACKS.unpack(hidden)[..., 0].tolist() == [[8, 9, 10], [2, 3, 0], [8, 0, 0], [8, 11, 0]]
