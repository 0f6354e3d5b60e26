from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from dsrm_agents.dsrm.losses import Adversary, cosine_loss, hsic, info_nce
from kuaisim_gym.errors import ConfigError


@pytest.fixture(autouse=True)
def seeded():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def explained(states: Tensor, label: Tensor) -> float:
    """Share of the label's variance that a linear map of the states explains."""
    design = torch.cat([states, torch.ones(len(states), 1)], dim=1)
    fitted = design @ torch.linalg.lstsq(design, label[:, None]).solution
    return float(1 - (label - fitted[:, 0]).var() / label.var())


def test_cosine_loss_measures_direction_alone() -> None:
    states = torch.randn(20, 4)
    assert cosine_loss(states, 3 * states) == pytest.approx(0, abs=1e-6)
    assert cosine_loss(states, -states) == pytest.approx(2, abs=1e-6)
    across = torch.stack([-states[:, 1], states[:, 0]], dim=1)
    assert cosine_loss(states[:, :2], across) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("dim", [1, 8, 32])
def test_hsic_of_independent_states_is_near_zero(dim: int) -> None:
    found = [float(hsic(torch.randn(256, dim), torch.randn(256))) for _ in range(20)]
    assert max(found) < 0.03


def test_hsic_sees_linear_and_other_dependence() -> None:
    x, z = torch.randn(400), torch.randn(400, 3)
    states = torch.cat([x[:, None], z], dim=1)
    assert hsic(x[:, None], x) == pytest.approx(1, abs=1e-5)
    assert hsic(states, x) > 0.15
    assert hsic(x[:, None], x**2) > 0.25
    assert explained(x[:, None], x**2) < 0.1
    both = torch.stack([x, torch.randn(400)], dim=1)
    assert hsic(states, both) > 0.15
    rare = (x > 1.3).float()  # more than half of all pairs are ties
    assert hsic(states, rare) > 0.05
    assert hsic(z, rare) < 0.03


@settings(max_examples=25, deadline=None)
@given(st.floats(1e-3, 1e3), st.floats(1e-3, 1e3), st.floats(-10, 10), st.integers(0, 100))
def test_hsic_is_the_same_in_other_units(a: float, b: float, shift: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(64, 3, generator=generator, dtype=torch.float64)
    label = x[:, 0] * x[:, 1]
    own = hsic(x, label)
    assert 0 <= own <= 1
    torch.testing.assert_close(hsic(a * x + shift, b * label - shift), own, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("value", [0.0, 0.123, 1e3])
def test_constant_states_depend_on_nothing_and_have_finite_gradients(value: float) -> None:
    states = torch.full((50, 4), value, requires_grad=True)
    found = hsic(states, torch.randn(50))
    found.backward()
    assert found.item() == pytest.approx(0, abs=1e-3)
    assert states.grad is not None
    assert states.grad.isfinite().all()
    assert hsic(torch.randn(50, 4), torch.ones(50)) == pytest.approx(0, abs=1e-3)
    with pytest.raises(ConfigError, match="at least 4 rows, got 3"):
        hsic(torch.randn(3, 2), torch.randn(3))


def test_following_hsic_down_makes_states_independent() -> None:
    """A weight on the label's share of the states is driven to nothing."""
    weight = nn.Parameter(torch.tensor(1.0))
    optimizer = torch.optim.Adam([weight], lr=0.05)
    for _ in range(60):
        label, other = torch.randn(128), torch.randn(128, 2)
        loss = hsic(torch.cat([weight * label[:, None], other], dim=1), label)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert abs(weight.item()) < 0.3


def test_info_nce_is_least_where_histories_of_a_user_agree() -> None:
    users = torch.randn(64, 16)
    aligned = info_nce(users, 2 * users)
    assert 0 <= aligned < 0.1
    assert aligned < info_nce(users, users + 0.5 * torch.randn(64, 16))
    assert info_nce(users, users.roll(1, dims=0)) > 5
    collapsed = torch.ones(64, 16)
    assert info_nce(collapsed, collapsed) == pytest.approx(math.log(64), rel=1e-5)
    assert info_nce(users, users, temperature=1.0) > aligned


@pytest.mark.parametrize("strength", [0.0, 1.0, 2.5])
def test_the_adversary_s_gradients_point_its_own_way_and_against_the_states(
    strength: float,
) -> None:
    adversary = Adversary(4, strength=strength)
    states, label = torch.randn(100, 4, requires_grad=True), torch.randn(100)
    plain = 1 - torch.corrcoef(torch.stack([adversary.predict(states)[:, 0], label]))[0, 1] ** 2
    loss = adversary(states, label)
    torch.testing.assert_close(loss, plain)
    torch.testing.assert_close(loss, adversary(states, 5 * label + 3))
    own, *weights = torch.autograd.grad(loss, [states, *adversary.parameters()])
    expected, *others = torch.autograd.grad(plain, [states, *adversary.parameters()])
    torch.testing.assert_close(own, -strength * expected, atol=1e-6, rtol=1e-4)
    for one, other in zip(weights, others, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-4)


def test_an_adversary_of_several_labels_averages_and_bears_constants() -> None:
    adversary, states = Adversary(4, 2), torch.randn(50, 4)
    label = torch.randn(50, 2)
    half = torch.stack([label[:, 0], torch.ones(50)], dim=1)
    assert 0 <= adversary(states, label) <= 1
    assert 0.5 <= adversary(states, half) <= 1
    same = torch.ones(50, 4, requires_grad=True)
    loss = adversary(same, label)
    loss.backward()
    assert loss.item() == pytest.approx(1, abs=1e-3)
    assert same.grad is not None
    assert same.grad.isfinite().all()


def test_against_an_adversary_states_lose_the_label_and_keep_the_rest() -> None:
    causes = torch.randn(4096, 4)
    label, observed = causes[:, 0], causes @ torch.linalg.qr(torch.randn(4, 4))[0]
    encoder = nn.Sequential(nn.Linear(4, 32), nn.SiLU(), nn.Linear(32, 4))
    adversary = Adversary(4)
    optimizer = torch.optim.Adam([*encoder.parameters(), *adversary.parameters()], lr=3e-3)
    for _ in range(1200):
        rows = torch.randint(4096, (256,))
        states = encoder(observed[rows])
        # A little noise, without which a probe of exact numbers finds whatever small is left.
        noised = states + 0.1 * torch.randn_like(states)
        loss = (states - observed[rows]).square().mean() + adversary(noised, label[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        states = encoder(observed)
    assert explained(observed, label) > 0.99
    assert explained(states + 0.1 * torch.randn_like(states), label) < 0.15
    assert min(explained(states, other) for other in causes.T[1:]) > 0.8
