"""The formulas in 16 bits, with two words, and with a forbidden word: finite, and near what is computed by hand."""

import math

import pytest
import torch

from cppo_ref.cpl import contrastive_perception_loss, view_divergence
from cppo_ref.grpo import token_logprobs
from cppo_ref.perception import token_entropy

EPS = {torch.float32: 1e-6, torch.bfloat16: 2e-2, torch.float16: 2e-3}  # a few units in the last place at these sizes
dtypes = pytest.mark.parametrize("dtype", EPS)


def two_words(p, dtype):
    """Logits [..., 2] of the probability p of the first word."""
    p = torch.as_tensor(p, dtype=torch.float64)
    return torch.stack([p.log() - (1 - p).log(), torch.zeros_like(p)], dim=-1).to(dtype)


@dtypes
def test_two_words_by_hand(dtype):
    logits, view = two_words([0.5, 0.8], dtype), two_words([0.8, 0.5], dtype)
    first = torch.zeros(2, dtype=torch.long)
    surprise = -0.8 * math.log(0.8) - 0.2 * math.log(0.2)
    to_view = math.log(0.5) - 0.5 * math.log(0.8) - 0.5 * math.log(0.2)  # KL(½ ‖ 0.8)
    back = 0.8 * math.log(0.8 / 0.5) + 0.2 * math.log(0.2 / 0.5)
    close = {"rel": 2 * EPS[dtype], "abs": EPS[dtype]}
    assert token_entropy(logits).tolist() == pytest.approx([math.log(2), surprise], **close)
    assert token_logprobs(logits, first).tolist() == pytest.approx([math.log(0.5), math.log(0.8)], **close)
    assert view_divergence(logits, view, first).tolist() == pytest.approx([to_view, back], **close)


@dtypes
@pytest.mark.parametrize("vocabulary", [2, 50])
def test_large_logits_keep_loss_and_gradient_finite(dtype, vocabulary):
    draw = torch.Generator().manual_seed(0)
    views = [(60 * torch.randn(2, 4, vocabulary, generator=draw)).to(dtype).requires_grad_() for _ in range(3)]
    ids = torch.zeros(2, 4, dtype=torch.long)
    plus, minus = (view_divergence(views[0], view, ids) for view in views[1:])
    loss = contrastive_perception_loss(plus, minus, torch.ones(2, 4, dtype=torch.bool), tau=0.1)
    loss = loss + token_logprobs(views[0], ids).mean()
    loss.backward()
    assert torch.isfinite(loss) and all(torch.isfinite(view.grad).all() for view in views)
    assert torch.isfinite(token_entropy(views[0])).all()


@dtypes
def test_a_forbidden_word_has_no_share_in_the_entropy(dtype):
    logits = torch.tensor([1.0, 1.0, -torch.inf], dtype=dtype)
    assert float(token_entropy(logits)) == pytest.approx(math.log(2), rel=EPS[dtype])
