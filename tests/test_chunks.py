"""Chunked logits: the same values and gradients as [B, T, V] at once, and no larger block than promised."""

import pytest
import torch
from torch.testing import assert_close

from cppo_ref.config import CPPOConfig
from cppo_ref.examples.loading import split_rows
from cppo_ref.step import cppo_step
from cppo_ref.vlm import chunks
from cppo_ref.vlm.chunks import over_tokens
from cppo_ref.vlm.policy import load_policy

V = 11


@pytest.fixture
def blocks(monkeypatch):
    """Three tokens a chunk; the sizes of the logits that were made."""
    monkeypatch.setattr(chunks, "BLOCK", 3 * V)
    return []


def problem():
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(2, 5, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    head = torch.randn(V, 4, generator=generator, dtype=torch.float64)
    ids = torch.randint(V, (2, 5), generator=generator)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]], dtype=torch.bool)
    return hidden, head, ids, mask


def test_values_and_gradients_equal_the_whole_block(blocks):
    hidden, head, ids, mask = problem()

    def logprob(h, i):
        blocks.append(len(h) * V)
        return (h @ head.T).log_softmax(dim=-1).gather(-1, i[:, None]).squeeze(-1)

    values = over_tokens(logprob, mask, hidden, ids, vocabulary=V)
    whole = torch.distributions.Categorical(logits=hidden @ head.T).log_prob(ids)
    assert_close(values[mask], whole[mask])
    assert (values[~mask] == 0).all()
    weights = torch.randn(2, 5, dtype=torch.float64)
    (mine,) = torch.autograd.grad((values * weights).sum(), hidden)
    (theirs,) = torch.autograd.grad((whole * weights * mask).sum(), hidden)
    assert_close(mine, theirs)
    assert sorted(blocks) == [V, V, 3 * V, 3 * V, 3 * V, 3 * V]  # 7 tokens as 3 + 3 + 1, forward and again in the backward


def test_without_a_graph_nothing_is_made_twice(blocks):
    hidden, head, ids, mask = problem()

    def two(h, i):
        blocks.append(len(h) * V)
        return torch.stack([(h @ head.T).sum(dim=-1), i.double()], dim=-1)

    with torch.no_grad():
        values = over_tokens(two, mask, hidden, ids, vocabulary=V)
    assert values.shape == (2, 5, 2) and blocks == [3 * V, 3 * V, V]
    assert torch.equal(values[..., 1], ids * mask.double())


def test_no_wanted_token_gives_zeros():
    hidden, head, ids, mask = problem()
    values = over_tokens(lambda h, i: (h @ head.T).sum(dim=-1), torch.zeros_like(mask), hidden, ids, vocabulary=V)
    assert values.shape == (2, 5) and (values == 0).all()


@pytest.mark.parametrize("estimator", ["exact", "k3"])
def test_a_step_in_chunks_has_the_gradient_of_a_step_at_once(monkeypatch, estimator):
    rows = split_rows("train", count=2)
    config = CPPOConfig(prompts_per_step=2, group_size=4, cpl_weight=0.3, kl_estimator=estimator, max_grad_norm=1e9)
    largest, grads = [], []
    for block in (chunks.BLOCK, 40 * 9):  # the tiny vocabulary holds 40: 9 tokens a chunk; sampling takes 8 at a time
        monkeypatch.setattr(chunks, "BLOCK", block)
        policy, seen = load_policy("tiny", quantize="none"), []
        logits = policy.logits
        policy.logits = lambda h, *, temperature=1.0, f=logits, seen=seen: (
            seen.append(h.shape[:-1].numel()),
            f(h, temperature=temperature),
        )[1]
        cppo_step(policy, torch.optim.SGD(policy.trainable, lr=0.0), rows, config, 0)
        largest.append(max(seen))
        grads.append([p.grad for p in policy.trainable])
    assert largest[0] > 9 and largest[1] == 9
    for whole, chunked in zip(*grads, strict=True):
        assert_close(chunked, whole, atol=1e-6, rtol=1e-5)
    assert any(g.abs().max() > 1e-3 for g in grads[0])
