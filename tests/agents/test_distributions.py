"""The slate distribution against enumeration and sampling."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dsrm_agents.hrl.distributions import (
    MASKED,
    SlateBounds,
    feasible_bounds,
    first_draw_entropy,
    sample_slate,
    slate_log_prob,
)

N_ITEMS, N_POPULAR, K = 6, 3, 3


def bounds(least: int, most: int, n: int) -> SlateBounds:
    return SlateBounds(torch.full((n,), least), torch.full((n,), most))


def all_slates(least: int, most: int, forbidden: frozenset[int] = frozenset()) -> torch.Tensor:
    slates = [
        slate
        for slate in itertools.permutations(set(range(N_ITEMS)) - forbidden, K)
        if least <= sum(item < N_POPULAR for item in slate) <= most
    ]
    return torch.tensor(slates)


def scores(seed: int = 0) -> torch.Tensor:
    return 2 * torch.randn(1, N_ITEMS, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("least", "most"), [(0, 3), (1, 2), (1, 1), (2, 3), (0, 0), (3, 3)])
def test_probabilities_of_the_feasible_slates_sum_to_one(least: int, most: int) -> None:
    slates = all_slates(least, most)
    n = len(slates)
    log_prob = slate_log_prob(scores().expand(n, -1), slates, N_POPULAR, bounds(least, most, n))
    assert float(log_prob.exp().sum()) == pytest.approx(1.0, abs=1e-5)


def test_items_that_may_not_be_shown_carry_no_weight() -> None:
    slates = all_slates(1, 2, frozenset({1, 5}))
    n = len(slates)
    masked = scores().clone()
    masked[:, [1, 5]] = MASKED
    log_prob = slate_log_prob(masked.expand(n, -1), slates, N_POPULAR, bounds(1, 2, n))
    assert float(log_prob.exp().sum()) == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize(("least", "most"), [(0, 3), (1, 2), (1, 1)])
def test_samples_have_the_stated_probability(least: int, most: int) -> None:
    n = 200_000
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(0)
        drawn = sample_slate(scores().expand(n, -1), N_POPULAR, bounds(least, most, n), K)
    slates = all_slates(least, most)
    probability = slate_log_prob(
        scores().expand(len(slates), -1), slates, N_POPULAR, bounds(least, most, len(slates))
    ).exp()
    base = torch.tensor([36, 6, 1])
    counts = torch.bincount((drawn * base).sum(1), minlength=216)
    frequency = counts[(slates * base).sum(1)] / n
    assert int(counts.sum()) == int(counts[(slates * base).sum(1)].sum())  # feasible ones only
    torch.testing.assert_close(frequency, probability, atol=0.005, rtol=0)


def test_without_a_constraint_it_is_plackett_luce() -> None:
    s = scores()[0]
    slate = torch.tensor([[4, 0, 2]])
    expected = (
        s[4] - s.logsumexp(0) + s[0] - s[[0, 1, 2, 3, 5]].logsumexp(0) + s[2]
        - s[[1, 2, 3, 5]].logsumexp(0)
    )  # fmt: skip
    found = slate_log_prob(s[None], slate, N_POPULAR, bounds(0, 3, 1))
    torch.testing.assert_close(found[0], expected)


def test_the_best_feasible_slate() -> None:
    s = torch.tensor([[5.0, 4.0, 3.0, 2.0, 1.0, 0.0]])
    assert sample_slate(s, 3, bounds(0, 3, 1), 3, True).tolist() == [[0, 1, 2]]
    assert sample_slate(s, 3, bounds(1, 1, 1), 3, True).tolist() == [[0, 3, 4]]
    assert sample_slate(-s, 3, bounds(2, 2, 1), 3, True).tolist() == [[5, 2, 1]]


def test_gradients_are_finite_and_match_differences() -> None:
    s = torch.randn(2, N_ITEMS, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    s[0, 4] = MASKED
    s.requires_grad_()
    slates = torch.tensor([[0, 3, 5], [5, 4, 1]])
    assert torch.autograd.gradcheck(
        lambda x: slate_log_prob(x, slates, N_POPULAR, bounds(1, 2, 2)), s, atol=1e-4
    )


def test_entropy_of_a_uniform_draw() -> None:
    value = first_draw_entropy(torch.zeros(1, 8))
    torch.testing.assert_close(value, torch.log(torch.tensor([8.0])))


@pytest.mark.parametrize(
    ("demand", "expected"),
    [(0.0, (0, 10)), (0.5, (3, 7)), (0.7, (4, 6)), (0.8, (4, 6)), (0.81, (5, 5)), (1.0, (5, 5))],
)
def test_the_demand_bounds_the_popular_count(demand: float, expected: tuple[int, int]) -> None:
    # 1 - |2k/10 - 1| >= demand.
    found = feasible_bounds(torch.tensor([demand]), 10, torch.tensor([99]), torch.tensor([99]))
    assert (int(found.least), int(found.most)) == expected


@settings(max_examples=200, deadline=None)
@given(st.floats(0, 1), st.integers(1, 12), st.integers(0, 15), st.integers(0, 15))
def test_bounds_can_always_be_met(demand: float, k: int, popular: int, tail: int) -> None:
    if popular + tail < k:
        return
    found = feasible_bounds(
        torch.tensor([demand]), k, torch.tensor([popular]), torch.tensor([tail])
    )
    least, most = int(found.least), int(found.most)
    assert 0 <= least <= most <= min(k, popular)
    assert k - most <= tail or most == popular
    assert k - least <= tail
