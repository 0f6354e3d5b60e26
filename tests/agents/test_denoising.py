"""Losses that trust some answers less: T-CE, R-CE and BOD."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score
from torch import nn

from dsrm_agents.encoders import bod
from dsrm_agents.encoders import objectives as losses
from dsrm_agents.encoders.bod import Bod
from dsrm_agents.encoders.objectives import Batch
from dsrm_agents.encoders.pretrain import LeftOut
from kuaisim_gym.simulator.catalogue import Catalogue

LOGITS = torch.tensor([2.0, -1.0, 0.0, -3.0, 3.0, 1.0])
LABELS = torch.tensor([1.0, 1.0, 1.0, 0.0, 0.0, 1.0])
# softplus(-z) of positives, softplus(z) of negatives
BY_HAND = [0.126928, 1.313262, 0.693147, 0.048587, 3.048587, 0.313262]


def test_the_truncated_loss_leaves_out_the_worst_positives() -> None:
    # A third of six rows are two: the positives of 1.31 and .69. The negative of 3.05 stays.
    kept = losses.trusted(LOGITS, LABELS, 1 / 3)
    assert kept.tolist() == [True, False, False, True, True, True]
    expected = (BY_HAND[0] + BY_HAND[3] + BY_HAND[4] + BY_HAND[5]) / 4
    value, dropped = losses.truncated_cross_entropy(LOGITS, LABELS, 1 / 3)
    assert value.item() == pytest.approx(expected, abs=1e-5)
    assert dropped.tolist() == [0.0, 1.0, 1.0, 0.0, 0.0, 0.0]
    value, dropped = losses.truncated_cross_entropy(LOGITS, LABELS, 0.0)
    assert value.item() == pytest.approx(np.mean(BY_HAND), abs=1e-5)
    assert not dropped.any()


def test_what_is_dropped_has_no_gradient() -> None:
    logits = LOGITS.clone().requires_grad_()
    losses.truncated_cross_entropy(logits, LABELS, 1 / 3)[0].backward()
    assert (logits.grad == 0).tolist() == [False, True, True, False, False, False]


@given(
    st.lists(st.tuples(st.floats(-30, 30, width=32), st.booleans()), min_size=1, max_size=60),
    st.floats(0.0, 1.0),
)
def test_the_stated_share_is_dropped_and_never_a_negative(rows, rate) -> None:
    logits = torch.tensor([logit for logit, _ in rows])
    labels = torch.tensor([float(label) for _, label in rows])
    kept = losses.trusted(logits, labels, rate)
    assert kept[labels == 0].all()
    assert (~kept).sum() == min(round(rate * len(rows)), int(labels.sum()))
    each = losses.cross_entropy(logits, labels)
    positives = labels > 0
    if (~kept).any() and (kept & positives).any():
        assert each[~kept].min() >= each[kept & positives].max()


def test_the_drop_rate_grows_to_the_largest() -> None:
    rates = [losses.drop_rate(step, 10, 0.2) for step in (0, 5, 10, 1000)]
    assert rates == pytest.approx([0.0, 0.1, 0.2, 0.2])
    assert losses.drop_rate(10, 10) == losses.LARGEST_DROP_RATE


def test_the_reweighted_loss_weighs_by_likelihood() -> None:
    weights = losses.trust(LOGITS, LABELS, 0.25)
    expected = [
        (1 / (1 + math.exp(-logit)) if label else 1 / (1 + math.exp(logit))) ** 0.25
        for logit, label in zip(LOGITS.tolist(), LABELS.tolist(), strict=True)
    ]
    np.testing.assert_allclose(weights, expected, rtol=1e-5)
    value, discount = losses.reweighted_cross_entropy(LOGITS, LABELS, 0.25)
    assert value.item() == pytest.approx(np.mean(np.multiply(expected, BY_HAND)), abs=1e-5)
    np.testing.assert_allclose(discount, 1 - np.array(expected), atol=1e-5)
    assert losses.trust(LOGITS, LABELS, 0.0).tolist() == [1.0] * 6


def test_the_weights_of_the_reweighted_loss_are_data() -> None:
    logits = LOGITS.clone().requires_grad_()
    losses.reweighted_cross_entropy(logits, LABELS, 0.25)[0].backward()
    expected = losses.trust(LOGITS, LABELS, 0.25) * (LOGITS.sigmoid() - LABELS) / 6
    np.testing.assert_allclose(logits.grad, expected, atol=1e-6)


def test_disagreement_by_hand() -> None:
    # Two losses linear in a matrix: their gradients are their coefficients.
    theta = torch.zeros(2, 2, requires_grad=True)
    weights = torch.tensor([1.0, 1.0], requires_grad=True)
    first = (theta * torch.tensor([[1.0, 0.0], [3.0, 4.0]])).sum()
    second = weights[0] * theta[0, 0] + weights[1] * theta[0, 1] + 4 * theta[1, 0] + 3 * theta[1, 1]
    value = bod.gradient_disagreement(first, second, theta)
    # Rows: (1, 0) and (1, 1), of cosine 1 / sqrt 2; (3, 4) and (4, 3), of 24 / 25.
    assert value.item() == pytest.approx((1 - 2**-0.5) + (1 - 0.96), abs=1e-6)
    gradient = torch.autograd.grad(value, weights)[0]
    # cos = a / sqrt(a^2 + b^2); at a = b = 1 its slopes are +-2^(-3/2).
    np.testing.assert_allclose(gradient, [-(2**-1.5), 2**-1.5], atol=1e-6)


def test_bod_losses_by_hand() -> None:
    users, items = torch.tensor([[3.0, 0.0]]), torch.tensor([[0.0, 2.0]])
    assert bod.weighted_alignment(users, items, torch.tensor([0.5])).item() == pytest.approx(1.0)
    weights = torch.tensor([0.5]), torch.tensor([0.25])
    value = bod.weighted_bpr(users, users * 2, -users, *weights)  # 0.5 * 1 + 0.25 * 1
    assert value.item() == pytest.approx(math.log1p(math.exp(-0.75)), abs=1e-6)
    corners = torch.tensor([[1.0, 0.0], [-5.0, 0.0]])
    assert bod.uniformity(corners).item() == pytest.approx(-8.0, abs=1e-5)


class Tiny(nn.Module):
    """theta over users' features in place of histories: what Bod asks of a model."""

    def __init__(self, features: torch.Tensor, vectors: torch.Tensor) -> None:
        super().__init__()
        self.encoder, self.vectors, self.features = self, vectors, features
        d = features.shape[1]
        self.below, self.head = nn.Sequential(nn.Linear(d, 32), nn.GELU()), nn.Linear(32, d)

    def summary(self, items: torch.Tensor, responses: torch.Tensor) -> torch.Tensor:
        return self.below(self.features[items[:, 0]])


def noisy_world(seed: int):
    """Users who like items near their taste; a quarter of their positives are random items."""
    draw = torch.Generator().manual_seed(seed)
    vectors, tastes = (torch.randn(n, 8, generator=draw) for n in (300, 200))
    chances = torch.softmax(3 * tastes @ vectors.T / 8**0.5, dim=1)
    items = torch.multinomial(chances, 30, replacement=True, generator=draw)
    noise = torch.rand(items.shape, generator=draw) < 0.25
    items = torch.where(noise, torch.randint(300, items.shape, generator=draw), items)
    return vectors, items, noise


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_bod_finds_planted_noise(seed) -> None:
    vectors, liked, noise = noisy_world(seed)
    torch.manual_seed(seed)
    model = Tiny(vectors[liked].mean(dim=1), vectors)
    level = Bod(model, 150)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    users = torch.arange(len(liked)).repeat_interleave(liked.shape[1])
    items, labels = liked.flatten(), torch.ones(256)
    for step in range(150):
        rows = torch.randint(len(users), (256,))
        unmet = torch.randint(len(vectors), (256,))
        batch = Batch(users[rows, None], labels, items[rows], labels, unmet)
        value, _ = level(batch, step)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    with torch.no_grad():
        states = model.head(model.summary(users[:, None], labels))
        weights = level.generator(states, vectors[items])
    false = noise.flatten()
    assert weights[false].mean() < weights[~false].mean() - 0.1
    assert roc_auc_score(~false, weights) > 0.75


def test_each_level_of_bod_moves_its_own_parameters() -> None:
    vectors, liked, _ = noisy_world(0)
    model = Tiny(vectors[liked].mean(dim=1), vectors)
    level = Bod(model, 150)
    ones = torch.ones(20)
    batch = Batch(torch.arange(20)[:, None], ones, liked[:20, 0], ones, liked[20:40, 0])
    theta = [one.detach().clone() for one in model.parameters()]
    phi = [one.detach().clone() for one in level.generator.parameters()]
    value, missing = level(batch, 0)
    assert all(map(torch.equal, theta, model.parameters()))  # the outer level moved phi alone
    assert not all(map(torch.equal, phi, level.generator.parameters()))
    assert all(one.grad is None for one in model.parameters())
    assert missing.mean().item() == pytest.approx(0.0, abs=1e-6)  # weights are in units of a mean
    assert (missing < 1).all()
    assert missing.std() > 0
    for one in level.generator.parameters():
        one.grad = None
    value.backward()
    assert all(one.grad is None for one in level.generator.parameters())
    assert model.head.weight.grad.abs().sum() > 0


def test_what_is_left_out_is_counted_by_group() -> None:
    # Of five items the fifth, and no more, is popular: item 0. Item 5 is of the log alone.
    catalogue = Catalogue(np.zeros((6, 2), np.float32), np.array([9, 1, 1, 1, 1]))
    assert catalogue.popular.tolist() == [True, False, False, False, False]
    left_out = LeftOut(catalogue)
    targets = torch.tensor([0, 0, 1, 2, 5, 3])
    labels = torch.tensor([1.0, 1.0, 1.0, 1.0, 1.0, 0.0])
    empty = torch.zeros(6, 1)
    left_out.add(
        Batch(empty.long(), empty, targets, labels, targets),
        torch.tensor([0.0, 0.5, 1.0, 1.0, 0.0, 1.0]),
    )
    assert left_out.shares() == pytest.approx(
        {"left_out": 0.5, "left_out_popular": 0.25, "left_out_longtail": 1.0}
    )
