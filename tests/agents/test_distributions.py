"""The slate distribution against enumeration, a slow implementation and sampling."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dsrm_agents.common.bounds import SlateBounds, feasible_bounds, target_bounds
from dsrm_agents.hrl.distributions import SlateDistribution

N_ITEMS, N_POPULAR, K = 6, 3, 3
ALL_BOUNDS = [(least, most) for least in range(K + 1) for most in range(least, K + 1)]


def of_scores(
    scores: Tensor, least: int = 0, most: int = K, masked: Iterable[int] = ()
) -> SlateDistribution:
    """Slates of 3 out of items with given (N, n) scores, the first three of them popular."""
    n = len(scores)
    return SlateDistribution(
        scores,
        torch.eye(scores.shape[1], dtype=scores.dtype),
        torch.tensor(list(masked), dtype=torch.long).expand(n, -1),
        N_POPULAR,
        SlateBounds(torch.full((n,), least), torch.full((n,), most)),
        K,
    )


def all_slates(least: int = 0, most: int = K, masked: Iterable[int] = ()) -> Tensor:
    slates = [
        slate
        for slate in itertools.permutations(set(range(N_ITEMS)) - set(masked), K)
        if least <= sum(item < N_POPULAR for item in slate) <= most
    ]
    return torch.tensor(slates)


def some_scores(seed: int = 0, n: int = 1) -> Tensor:
    one = torch.randn(1, N_ITEMS, generator=torch.Generator().manual_seed(seed))
    return (2 * one).expand(n, -1)


@pytest.mark.parametrize(("least", "most"), ALL_BOUNDS)
def test_probabilities_of_the_feasible_slates_sum_to_one(least: int, most: int) -> None:
    slates = all_slates(least, most)
    log_prob = of_scores(some_scores(n=len(slates)), least, most).log_prob(slates).sum(dim=1)
    assert float(log_prob.exp().sum()) == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize(("least", "most"), ALL_BOUNDS)
def test_a_draw_is_conditional_on_the_draws_before(least: int, most: int) -> None:
    slates = all_slates(least, most)
    choices = of_scores(some_scores(n=len(slates)), least, most).log_prob(slates)
    draws = choices[:, :K] + choices[:, K:]  # of a group, and of an item in it
    probability = draws.sum(dim=1).exp()
    for length in range(1, K + 1):
        alike = (slates[:, None, :length] == slates[None, :, :length]).all(dim=2)
        marginal = (alike.float() * probability).sum(dim=1)  # of the first so many draws
        torch.testing.assert_close(draws[:, :length].sum(1).exp(), marginal, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("masked", [(1, 5), (1, 5, 5, 1, 1)])
def test_hidden_items_have_exactly_no_probability(masked: tuple[int, ...]) -> None:
    slates = all_slates(1, 2, masked)
    scores = some_scores(n=len(slates)).clone()
    log_prob = of_scores(scores, 1, 2, masked).log_prob(slates)
    assert float(log_prob.sum(dim=1).exp().sum()) == pytest.approx(1.0, abs=1e-5)
    scores[:, [1, 5]] = 40.0  # e^40 times the weight of the others: any share would be seen
    attractive = of_scores(scores, 1, 2, masked)
    assert torch.equal(attractive.log_prob(slates), log_prob)
    assert not torch.isin(attractive.sample()[0], torch.tensor([1, 5])).any()
    assert not torch.isin(attractive.best(), torch.tensor([1, 5])).any()


def test_hidden_items_get_no_gradient() -> None:
    scores = some_scores(n=2).clone().requires_grad_()
    of_scores(scores, 1, 2, (1, 5)).log_prob(torch.tensor([[0, 3, 2], [4, 2, 3]])).sum().backward()
    assert scores.grad is not None
    assert (scores.grad[:, [1, 5]] == 0).all()
    assert (scores.grad[:, [0, 2, 3, 4]] != 0).all()


@pytest.mark.parametrize("masked", [(), (1,)])
@pytest.mark.parametrize(("least", "most"), [(0, 3), (1, 2), (1, 1), (2, 2)])
def test_samples_have_the_stated_probability(
    least: int, most: int, masked: tuple[int, ...]
) -> None:
    n = 200_000
    with torch.random.fork_rng():
        torch.manual_seed(0)
        drawn = of_scores(some_scores(n=n), least, most, masked).sample()[0]
    slates = all_slates(least, most, masked)
    stated = of_scores(some_scores(n=len(slates)), least, most, masked).log_prob(slates)
    base = torch.tensor([36, 6, 1])
    counts = torch.bincount((drawn * base).sum(1), minlength=216)[(slates * base).sum(1)]
    assert int(counts.sum()) == n  # feasible ones only
    torch.testing.assert_close(counts / n, stated.sum(1).exp(), atol=0.005, rtol=0)


def test_without_bounds_it_is_plackett_luce() -> None:
    s = some_scores()[0]
    expected = [
        s[4] - s.logsumexp(0),
        s[0] - s[[0, 1, 2, 3, 5]].logsumexp(0),
        s[2] - s[[1, 2, 3, 5]].logsumexp(0),
    ]
    found = of_scores(s[None]).log_prob(torch.tensor([[4, 0, 2]]))[0]
    torch.testing.assert_close(found[:K] + found[K:], torch.stack(expected))


def test_the_best_feasible_slate() -> None:
    s = torch.tensor([[5.0, 4.0, 3.0, 2.0, 1.0, 0.0]])
    assert of_scores(s).best().tolist() == [[0, 1, 2]]
    assert of_scores(s, 1, 1).best().tolist() == [[0, 3, 4]]
    assert of_scores(s, 1, 1, (0, 4)).best().tolist() == [[1, 3, 5]]
    assert of_scores(-s, 2, 2).best().tolist() == [[5, 2, 1]]


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 1000), st.sampled_from(ALL_BOUNDS))
def test_the_best_slate_has_the_highest_feasible_score(seed: int, limits: tuple[int, int]) -> None:
    scores = some_scores(seed)
    found = scores[0, of_scores(scores, *limits).best()[0]]
    highest = scores[0, all_slates(*limits)].sum(dim=1).max()
    torch.testing.assert_close(found.sum(), highest)
    assert (found.diff() <= 0).all()


def crowd(least: int = 1, most: int = 3) -> tuple[SlateDistribution, Tensor]:
    """Four sessions with 30 items of 5 dimensions in float64, 6 masked each, and drawn slates."""
    rng = torch.Generator().manual_seed(1)
    query = torch.randn(4, 5, dtype=torch.float64, generator=rng)
    key = torch.randn(30, 5, dtype=torch.float64, generator=rng)
    masked = torch.stack([torch.randperm(30, generator=rng)[:6] for _ in range(4)])
    bounds = SlateBounds(torch.full((4,), least), torch.full((4,), most))
    slates = SlateDistribution(query, key, masked, 10, bounds, 4)
    return slates, slates.sample()[0]


def slow_log_prob(slates: SlateDistribution, drawn: Tensor) -> Tensor:
    """As ``slates.log_prob(drawn)``, by a mask of what is allowed at each draw."""
    scores = slates.query @ slates.key.T
    groups, members = [], []
    for row, items in enumerate(drawn.tolist()):
        left = torch.ones(scores.shape[1], dtype=torch.bool)
        left[slates.masked[row]] = False
        popular = 0
        for draw, item in enumerate(items):
            allowed = left.clone()
            if popular == slates.bounds.most[row]:
                allowed[: slates.n_popular] = False
            if draw - popular == slates.slate_size - slates.bounds.least[row]:
                allowed[slates.n_popular :] = False
            assert allowed[item]
            among = torch.arange(scores.shape[1]) < slates.n_popular
            among = allowed & (among if item < slates.n_popular else ~among)
            own = scores[row, among].logsumexp(0)
            groups.append(own - scores[row, allowed].logsumexp(0))
            members.append(scores[row, item] - own)
            left[item] = False
            popular += item < slates.n_popular
    parts = [torch.stack(part).reshape(drawn.shape) for part in (groups, members)]
    return torch.cat(parts, dim=1)


@pytest.mark.parametrize(("least", "most"), [(0, 4), (1, 3), (2, 2), (0, 0), (4, 4)])
def test_values_and_gradients_are_those_of_a_slow_implementation(least: int, most: int) -> None:
    slates, drawn = crowd(least, most)
    inputs = [slates.query.requires_grad_(), slates.key.requires_grad_()]
    fast, slow = slates.log_prob(drawn), slow_log_prob(slates, drawn)
    weight = torch.randn(fast.shape, dtype=torch.float64, generator=torch.Generator())
    torch.testing.assert_close(fast, slow)
    for found, expected in zip(
        torch.autograd.grad((weight * fast).sum(), inputs),
        torch.autograd.grad((weight * slow).sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(("least", "most"), [(0, 4), (1, 3), (2, 2)])
def test_gradients_match_differences(least: int, most: int) -> None:
    slates, drawn = crowd(least, most)

    def log_prob(query: Tensor, key: Tensor) -> Tensor:
        bounds = slates.bounds
        return SlateDistribution(query, key, slates.masked, 10, bounds, 4).log_prob(drawn)

    inputs = (slates.query.requires_grad_(), slates.key.requires_grad_())
    assert torch.autograd.gradcheck(log_prob, inputs)


@pytest.mark.parametrize(("masked", "popular"), [((0, 1, 2), 0), ((3, 4, 5), 3)])
def test_a_whole_group_may_be_hidden(masked: tuple[int, ...], popular: int) -> None:
    left = (torch.tensor([popular]), torch.tensor([3 - popular]))
    bounds = feasible_bounds(torch.tensor([1.0]), K, *left)
    assert (int(bounds.least), int(bounds.most)) == (popular, popular)
    slates = all_slates(popular, popular, masked)
    scores = some_scores(n=len(slates)).clone().requires_grad_()
    for limits in ((popular, popular), (0, K)):  # bound to it, or left no choice
        one = of_scores(scores, *limits, masked)
        log_prob = one.log_prob(slates).sum(dim=1)
        assert float(log_prob.detach().exp().sum()) == pytest.approx(1.0, abs=1e-5)
        (gradient,) = torch.autograd.grad(log_prob.sum(), scores)
        assert gradient.isfinite().all()
        for drawn in (one.sample()[0], one.best()):
            assert set(drawn.flatten().tolist()) == set(range(N_ITEMS)) - set(masked)
            assert all(len(set(slate)) == K for slate in drawn.tolist())


@pytest.mark.parametrize(("least", "most"), ALL_BOUNDS)
def test_very_large_scores_stay_finite(least: int, most: int) -> None:
    scores = torch.tensor(list(itertools.product([-1e3, 1e3], repeat=N_ITEMS)))
    scores.requires_grad_()
    slates = of_scores(scores, least, most)
    for drawn in (slates.sample()[0], slates.best()):
        assert all(len(set(slate)) == K for slate in drawn.tolist())
        popular = (drawn < N_POPULAR).sum(dim=1)
        assert ((least <= popular) & (popular <= most)).all()
    for drawn in (slates.best(), slates.best().flip(1)):
        log_prob = slates.log_prob(drawn)
        assert log_prob.isfinite().all()
        assert (log_prob <= 1e-3).all()
        (gradient,) = torch.autograd.grad(log_prob.sum(), scores, retain_graph=True)
        assert gradient.isfinite().all()


def test_sampling_is_reproducible_under_torch_s_seed() -> None:
    slates = of_scores(some_scores(n=500))
    with torch.random.fork_rng():
        torch.manual_seed(7)
        first, second = slates.sample()[0], slates.sample()[0]
        torch.manual_seed(7)
        assert torch.equal(slates.sample()[0], first)
        assert torch.equal(slates.sample()[0], second)
        assert not torch.equal(first, second)
        torch.manual_seed(8)
        assert not torch.equal(slates.sample()[0], first)


def test_entropy_is_that_of_the_first_draw() -> None:
    torch.testing.assert_close(of_scores(torch.zeros(1, 6)).entropy(), torch.tensor([6.0]).log())
    masked = of_scores(torch.zeros(1, 6), masked=(0, 4)).entropy()
    torch.testing.assert_close(masked, torch.tensor([4.0]).log())
    probability = torch.softmax(some_scores(), dim=1)
    expected = -(probability * probability.log()).sum(dim=1)
    torch.testing.assert_close(of_scores(some_scores()).entropy(), expected)


@pytest.mark.parametrize(
    ("demand", "expected"),
    [(0.0, (0, 10)), (0.5, (3, 7)), (0.7, (4, 6)), (0.8, (4, 6)), (0.81, (5, 5)), (1.0, (5, 5))],
)
def test_the_demand_bounds_the_popular_count(demand: float, expected: tuple[int, int]) -> None:
    # 1 - |2k/10 - 1| >= demand.
    found = feasible_bounds(torch.tensor([demand]), 10, torch.tensor([99]), torch.tensor([99]))
    assert (int(found.least), int(found.most)) == expected


def check_can_be_met(found: SlateBounds, k: int, popular: int, tail: int) -> None:
    least, most = int(found.least), int(found.most)
    assert 0 <= least <= most <= min(k, popular)
    assert k - most <= tail or most == popular
    assert k - least <= tail


@settings(max_examples=200, deadline=None)
@given(st.floats(0, 1), st.integers(1, 12), st.integers(0, 15), st.integers(0, 15))
def test_bounds_can_always_be_met(demand: float, k: int, popular: int, tail: int) -> None:
    if popular + tail < k:
        return
    left = (torch.tensor([popular]), torch.tensor([tail]))
    check_can_be_met(feasible_bounds(torch.tensor([demand]), k, *left), k, popular, tail)


@settings(max_examples=200, deadline=None)
@given(
    st.floats(0, 1),
    st.integers(1, 12),
    st.integers(0, 15),
    st.integers(0, 15),
    st.integers(0, 15),
    st.integers(0, 15),
)
def test_a_target_can_always_be_met(
    target: float, k: int, popular: int, tail: int, popular_shown: int, tail_shown: int
) -> None:
    if popular + tail < k:
        return
    past = (torch.tensor([popular_shown]), torch.tensor([popular_shown + tail_shown]))
    left = (torch.tensor([popular]), torch.tensor([tail]))
    found = target_bounds(torch.tensor(target), k, *past, *left)
    check_can_be_met(found, k, popular, tail)
    if popular >= k and tail >= k:
        assert int(found.least) == int(found.most)


def popular_counts(targets: list[float], k: int, steps: int) -> Tensor:
    """(len(targets), steps) popular items of slates that follow a target, of all there are."""
    plenty = torch.full((len(targets),), 1000)
    shown, counts = torch.zeros_like(plenty), []
    for step in range(steps):
        left = (plenty - shown, plenty - step * k + shown)
        found = target_bounds(
            torch.tensor(targets), k, shown, torch.full_like(shown, step * k), *left
        )
        assert torch.equal(found.least, found.most)
        counts.append(found.least)
        shown = shown + found.least
    return torch.stack(counts, dim=1)


@settings(max_examples=100, deadline=None)
@given(st.floats(0, 1), st.integers(1, 12), st.integers(1, 30))
def test_a_session_comes_within_half_an_item_of_its_target(
    target: float, k: int, steps: int
) -> None:
    popular = popular_counts([target], k, steps)[0].cumsum(0)
    shown = k * torch.arange(1, steps + 1)
    wanted = (1.0 - target) * shown
    assert float((popular - wanted).abs().max()) <= 0.5 + 1e-3


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=2, max_size=8), st.integers(1, 12), st.integers(1, 10))
def test_a_higher_target_never_shows_more_popular_items(
    targets: list[float], k: int, steps: int
) -> None:
    popular = popular_counts(sorted(targets), k, steps).cumsum(1)
    assert (popular.diff(dim=0) <= 0).all()


@pytest.mark.parametrize("k", range(1, 13))
def test_a_target_that_slates_can_express_is_met_by_every_slate(k: int) -> None:
    targets = [tail / k for tail in range(k + 1)]
    expected = torch.arange(k, -1, -1)[:, None].expand(-1, 10)
    assert torch.equal(popular_counts(targets, k, 10), expected)


def test_what_a_group_lacked_is_made_up_for() -> None:
    # Half of 4 + 4 should be popular; the first slate had none, so the second has four.
    past = (torch.tensor([0]), torch.tensor([4]))
    found = target_bounds(torch.tensor(0.5), 4, *past, torch.tensor([9]), torch.tensor([9]))
    assert (int(found.least), int(found.most)) == (4, 4)


@pytest.mark.parametrize("spread", [1.0, 40.0, 400.0])
def test_a_sample_comes_with_its_own_log_probability(spread: float) -> None:
    # At the widest spread weights underflow, and logarithms take over.
    scores = spread * some_scores(n=200)
    slates = of_scores(scores, 1, 2)
    drawn, log_prob = slates.sample()
    torch.testing.assert_close(log_prob, slates.log_prob(drawn), atol=1e-4 * spread, rtol=1e-4)
    assert all(len(set(slate)) == K for slate in drawn.tolist())
    popular = (drawn < N_POPULAR).sum(1)
    assert ((popular >= 1) & (popular <= 2)).all()


def test_a_single_session_is_sampled_as_stated() -> None:
    # With K = 1 the popular group is empty once its one item is drawn: logarithms take over then,
    # and must not draw anew.
    scores = torch.zeros(1, 3)
    slates = SlateDistribution(
        scores, torch.eye(3), torch.empty(1, 0, dtype=torch.int64), 1,
        SlateBounds(torch.tensor([0]), torch.tensor([1])), 1,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(0)
        drawn = torch.cat([slates.sample()[0] for _ in range(4000)])
    share = torch.bincount(drawn[:, 0], minlength=3) / 4000
    torch.testing.assert_close(share, torch.full((3,), 1 / 3), atol=0.03, rtol=0)
