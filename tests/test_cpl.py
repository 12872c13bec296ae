"""KL between views and the Contrastive Perception Loss, against enumeration, hand-worked numbers and torch's own functions."""

import math
from inspect import unwrap

import pytest
import torch
import torch.nn.functional as F

from cppo_ref.cpl import contrast, contrastive_perception_loss, sampled_divergence, view_divergence

ESTIMATORS = ["exact", "k3", "k1"]
INF, NAN = math.inf, math.nan

# Three outcomes under the original view (p) and under a perturbed view (q).
P, Q = (1 / 2, 1 / 4, 1 / 4), (1 / 8, 1 / 8, 3 / 4)
KL_P_Q = 0.5917809035  # ½ ln 4 + ¼ ln 2 + ¼ ln ⅓
KL_Q_P = 0.5640290238  # ⅛ ln ¼ + ⅛ ln ½ + ¾ ln 3


def logits_of(probabilities, tokens=1):
    """Logits [1, tokens, V], float64, with the same distribution at every token."""
    return torch.tensor(probabilities, dtype=torch.float64).log().expand(1, tokens, -1)


def random_logits(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=generator).requires_grad_()


def no_tokens(logits):
    """Token ids where none are needed."""
    return torch.zeros(logits.shape[:2], dtype=torch.long)


def gradients(loss, *inputs):
    return torch.autograd.grad(loss, inputs)


# --- view_divergence ---


def test_exact_kl_by_hand_and_in_the_right_direction():
    p, q = logits_of(P), logits_of(Q)
    assert view_divergence(p, q, no_tokens(p)).item() == pytest.approx(KL_P_Q, abs=1e-9)
    assert view_divergence(q, p, no_tokens(p)).item() == pytest.approx(KL_Q_P, abs=1e-9)


def test_exact_kl_is_that_of_torch_distributions():
    original, view = random_logits(2, 3, 7), random_logits(2, 3, 7, seed=1)
    expected = torch.distributions.kl_divergence(
        torch.distributions.Categorical(logits=original), torch.distributions.Categorical(logits=view)
    )
    torch.testing.assert_close(view_divergence(original, view, no_tokens(view)), expected)


@pytest.mark.parametrize("estimator", ["k3", "k1"])
@pytest.mark.parametrize(("p", "q", "kl"), [(P, Q, KL_P_Q), (Q, P, KL_Q_P)])
def test_estimators_are_unbiased_over_all_outcomes(estimator, p, q, kl):
    outcomes = torch.tensor([[0, 1, 2]])  # token t of the row sampled outcome t
    estimates = view_divergence(logits_of(p, tokens=3), logits_of(q, tokens=3), outcomes, estimator=estimator)
    expectation = sum(chance * estimate for chance, estimate in zip(p, estimates[0].tolist(), strict=True))
    assert expectation == pytest.approx(kl, abs=1e-6)


@pytest.mark.parametrize(
    ("p", "q", "k3", "k1"),
    [
        (1 / 2, 1 / 2, 0.0, 0.0),
        (1 / 4, 1 / 2, 0.3068528194, -0.6931471806),  # r = ln 2:   2 - ln 2 - 1
        (1 / 2, 1 / 4, 0.1931471806, 0.6931471806),  # r = -ln 2:  ½ + ln 2 - 1
    ],
)
def test_estimates_of_one_token_by_hand(p, q, k3, k1):
    views = logits_of((p, 1 - p)), logits_of((q, 1 - q))
    token = torch.tensor([[0]])
    assert view_divergence(*views, token, estimator="k3").item() == pytest.approx(k3, abs=1e-9)
    assert view_divergence(*views, token, estimator="k1").item() == pytest.approx(k1, abs=1e-9)


@pytest.mark.parametrize(("estimator", "expected"), [("exact", [1e4, 1e4]), ("k3", [10.0, 10.0]), ("k1", [10.0, -10.0])])
def test_extreme_logits_stay_finite(estimator, expected):
    original = torch.tensor([[[1e4, 0.0], [1e4, 0.0]]], requires_grad=True)
    view = torch.tensor([[[0.0, 1e4], [0.0, 1e4]]], requires_grad=True)
    sampled = torch.tensor([[0, 1]])  # certain before and impossible after; impossible before and certain after
    divergence = view_divergence(original, view, sampled, estimator=estimator)
    assert divergence[0].tolist() == pytest.approx(expected)
    assert all(torch.isfinite(gradient).all() for gradient in gradients(divergence.sum(), original, view))


CLAMPS = [  # log π′ − log π of the sampled token, r; k1 and its slope in r; k3 and its slope in r
    (-24.0, 10.0, 0.0, 10.0, 0.0),
    (-12.0, 10.0, 0.0, 10.0, 0.0),  # −r is 12, cut to 10; e^−12 + 12 − 1 = 11, cut to 10
    (-10.5, 10.0, 0.0, 9.5000275, -0.9999725),  # e^−10.5 + 10.5 − 1
    (-9.0, 9.0, -1.0, 8.0001234, -0.9998766),
    (0.0, 0.0, -1.0, 0.0, 0.0),
    (2.0, -2.0, -1.0, 4.3890561, 6.3890561),  # e² − 2 − 1
    (2.5, -2.5, -1.0, 8.6824940, 11.1824940),
    (3.0, -3.0, -1.0, 10.0, 0.0),  # e³ − 3 − 1 = 16.1, cut to 10
    (9.0, -9.0, -1.0, 10.0, 0.0),
    (12.0, -10.0, 0.0, 10.0, 0.0),
]


@pytest.mark.parametrize(("r", "k1", "k1_slope", "k3", "k3_slope"), CLAMPS)
def test_clamps_by_hand(r, k1, k1_slope, k3, k3_slope):
    rare = math.exp(-abs(r)) / 2  # the token has this chance under one of the two views, and ½ under the other
    chances = (rare, 1 / 2) if r > 0 else (1 / 2, rare)
    original, view = (torch.tensor([[[p, 1 - p]]], dtype=torch.float64).log().requires_grad_() for p in chances)
    token, chance_of_the_other = torch.tensor([[0]]), 1 - chances[1]
    for estimator, value, slope in (("k1", k1, k1_slope), ("k3", k3, k3_slope)):
        estimate = view_divergence(original, view, token, estimator=estimator)
        assert estimate.item() == pytest.approx(value, abs=1e-6)
        (gradient,) = gradients(estimate.sum(), view)  # ∂ log π′_o / ∂ logit_o = 1 − π′_o
        assert gradient[0, 0, 0].item() == pytest.approx(slope * chance_of_the_other, abs=1e-6)


@pytest.mark.parametrize(("estimator", "cancels"), [("exact", False), ("k3", False), ("k1", True)])
def test_the_anchor_cancels_in_k1_only(estimator, cancels):
    original, preserved, removed = (random_logits(2, 3, 5, seed=seed) for seed in range(3))
    ids = torch.tensor([[0, 1, 2], [3, 4, 0]])
    kls = (view_divergence(original, view, ids, estimator=estimator) for view in (preserved, removed))
    (gradient,) = gradients(contrast(*kls, tau=1.0).sum(), original)
    assert (torch.count_nonzero(gradient) == 0) == cancels


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_a_detached_anchor_gets_no_gradient_and_the_view_keeps_its_own(estimator):
    original, view = random_logits(2, 3, 5), random_logits(2, 3, 5, seed=1)
    ids = torch.tensor([[0, 1, 2], [3, 4, 0]])
    flowing = view_divergence(original, view, ids, estimator=estimator)
    detached = view_divergence(original, view, ids, estimator=estimator, detach_anchor=True)
    assert torch.equal(detached, flowing)
    assert torch.autograd.grad(detached.sum(), original, retain_graph=True, allow_unused=True) == (None,)
    assert torch.equal(*gradients(detached.sum(), view), *gradients(flowing.sum(), view))


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_gradients_of_the_divergence_are_numerically_right(estimator):
    original, view = random_logits(1, 2, 4), random_logits(1, 2, 4, seed=1)
    ids = torch.tensor([[1, 3]])
    assert torch.autograd.gradcheck(lambda a, b: view_divergence(a, b, ids, estimator=estimator), (original, view))


def test_an_unknown_estimator_is_named():
    with pytest.raises(ValueError, match='estimator is \'k2\', expected "exact", "k3" or "k1"'):
        unwrap(sampled_divergence)(torch.zeros(1), torch.zeros(1), "k2")  # unwrap: past the type checks


# --- the loss ---


@pytest.mark.parametrize(
    ("kl_preserved", "kl_removed", "tau", "loss"),
    [
        (0.3, 0.3, 0.1, 0.6931471806),  # no contrast: ln 2
        (0.4, 0.3, 0.1, 1.3132616875),  # one τ the wrong way: ln(1 + e)
        (0.3, 0.4, 0.1, 0.3132616875),  # one τ the right way: ln(1 + 1/e)
        (0.5, 0.3, 0.2, 1.3132616875),  # τ is the unit
        (0.0, 9.0, 0.1, 0.0),  # wide apart, the right way
        (9.0, 0.0, 0.1, 90.0),  # wide apart, the wrong way: linear, no overflow
    ],
)
def test_loss_of_one_token_by_hand(kl_preserved, kl_removed, tau, loss):
    preserved, removed, chosen = torch.tensor([[kl_preserved]]), torch.tensor([[kl_removed]]), torch.tensor([[True]])
    value = contrastive_perception_loss(preserved, removed, chosen, tau=tau)
    assert value.item() == pytest.approx(loss, abs=1e-6)


def test_loss_is_the_mean_over_the_selected_tokens_of_all_rows():
    preserved = torch.tensor([[0.3, 0.4, 7.0], [7.0, 7.0, 0.4]])
    removed = torch.tensor([[0.3, 0.3, 0.0], [0.0, 0.0, 0.3]])
    selected = torch.tensor([[True, True, False], [False, False, True]])
    loss = contrastive_perception_loss(preserved, removed, selected)
    assert loss.item() == pytest.approx((0.6931471806 + 2 * 1.3132616875) / 3, abs=1e-6)


def test_loss_is_infonce_with_one_positive_and_one_negative():
    preserved, removed = random_logits(4, 6).detach().abs(), random_logits(4, 6, seed=1).detach().abs()
    everything = torch.ones(4, 6, dtype=torch.bool)
    similarity = -torch.stack([preserved, removed], dim=-1).flatten(0, 1) / 0.1
    infonce = F.cross_entropy(similarity, torch.zeros(24, dtype=torch.long))
    torch.testing.assert_close(contrastive_perception_loss(preserved, removed, everything), infonce)


def test_loss_rises_with_the_preserved_divergence_and_falls_with_the_removed():
    kls = torch.linspace(0, 1, 11)
    fixed = torch.full_like(kls, 0.5)
    assert (contrast(kls, fixed).diff() > 0).all()
    assert (contrast(fixed, kls).diff() < 0).all()


def test_nothing_selected_gives_exactly_zero_with_a_graph():
    preserved, removed = random_logits(2, 3), random_logits(2, 3, seed=1)
    loss = contrastive_perception_loss(preserved, removed, torch.zeros(2, 3, dtype=torch.bool))
    assert loss.item() == 0.0
    assert loss.grad_fn is not None
    assert not any(gradient.any() for gradient in gradients(loss, preserved, removed))


def test_what_stands_on_unselected_tokens_does_not_matter():
    preserved = torch.tensor([[0.4, NAN, INF, -INF]], requires_grad=True)
    removed = torch.tensor([[0.3, 1.0, INF, NAN]], requires_grad=True)
    loss = contrastive_perception_loss(preserved, removed, torch.tensor([[True, False, False, False]]))
    assert loss.item() == pytest.approx(1.3132616875)
    for gradient in gradients(loss, preserved, removed):
        assert gradient[0, 0] != 0
        assert gradient[0, 1:].tolist() == [0.0, 0.0, 0.0]


def test_gradients_of_the_loss_are_numerically_right():
    selected = torch.tensor([[True, False, True], [True, True, False]])
    kls = random_logits(2, 3), random_logits(2, 3, seed=1)
    assert torch.autograd.gradcheck(lambda a, b: contrastive_perception_loss(a, b, selected, tau=0.5), kls)


def test_a_descent_step_pulls_the_preserved_view_in_and_pushes_the_removed_view_away():
    original, *views = (random_logits(2, 3, 5, seed=seed) for seed in range(3))
    selected = torch.ones(2, 3, dtype=torch.bool)

    def divergences(preserved, removed):
        ids = no_tokens(original)
        return [view_divergence(original, view, ids, detach_anchor=True) for view in (preserved, removed)]

    before = divergences(*views)
    slopes = gradients(contrastive_perception_loss(*before, selected, tau=1.0), *views)
    after = divergences(*(view - 0.1 * slope for view, slope in zip(views, slopes, strict=True)))
    assert (after[0] < before[0]).all()
    assert (after[1] > before[1]).all()


@pytest.mark.parametrize("tau", [0.0, -0.1])
def test_a_temperature_that_is_not_positive_is_named(tau):
    kl = torch.ones(1, 1)
    with pytest.raises(ValueError, match=f"tau is {tau}, expected a positive temperature in nats"):
        contrastive_perception_loss(kl, kl, kl.bool(), tau=tau)
