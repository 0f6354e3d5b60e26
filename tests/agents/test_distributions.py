"""The slate distribution against enumeration, a slow implementation and sampling."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dsrm_agents.common.bounds import Band, FeasibleCounts, SlateBounds, target_bounds
from dsrm_agents.hrl import distributions
from dsrm_agents.hrl.distributions import SlateDistribution
from kuaisim_gym.simulator.groups import count_boxes

N_ITEMS, N_POPULAR, K = 6, 3, 3
ALL_BOUNDS = [(least, most) for least in range(K + 1) for most in range(least, K + 1)]


HALVES = np.array([0.5, 0.5])


def two_groups(least: Tensor | int, most: Tensor | int, k: int = K, n: int = 1) -> SlateBounds:
    """Bounds on popular items alone, those on the rest being what they leave."""
    low, high = torch.as_tensor(least).expand(n), torch.as_tensor(most).expand(n)
    return SlateBounds(torch.stack([low, k - high], 1), torch.stack([high, k - low], 1))


def popular_range(bounds: SlateBounds, k: int) -> tuple[int, int]:
    """Least and most popular items that one slate within bounds can have."""
    (least, least_tail), (most, most_tail) = bounds.least[0].tolist(), bounds.most[0].tolist()
    return max(least, k - most_tail), min(most, k - least_tail)


def feasible(demand: float, k: int, left: tuple[int, int]) -> tuple[int, int]:
    bounds = FeasibleCounts(HALVES, k)(torch.tensor([demand]), torch.tensor([left]))
    return popular_range(bounds, k)


def of_scores(
    scores: Tensor, least: int = 0, most: int = K, masked: Iterable[int] = ()
) -> SlateDistribution:
    """Slates of 3 out of items with given (N, n) scores, the first three of them popular."""
    n = len(scores)
    return SlateDistribution(
        scores,
        torch.eye(scores.shape[1], dtype=scores.dtype),
        torch.tensor(list(masked), dtype=torch.long).expand(n, -1),
        (0, N_POPULAR),
        two_groups(least, most, n=n),
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
    everything = all_slates()
    log_prob = of_scores(some_scores(n=len(everything)), least, most).log_prob(everything)
    assert float(log_prob.sum(dim=1).exp().sum()) == pytest.approx(1.0, abs=1e-5)


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
    bounds = two_groups(least, most, 4, n=4)
    slates = SlateDistribution(query, key, masked, (0, 10), bounds, 4)
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
            n_popular = slates.starts[1]
            if popular == slates.bounds.most[row, 0]:
                allowed[:n_popular] = False
            if draw - popular == slates.bounds.most[row, 1]:
                allowed[n_popular:] = False
            assert allowed[item]
            among = torch.arange(scores.shape[1]) < n_popular
            among = allowed & (among if item < n_popular else ~among)
            own = scores[row, among].logsumexp(0)
            groups.append(own - scores[row, allowed].logsumexp(0))
            members.append(scores[row, item] - own)
            left[item] = False
            popular += item < n_popular
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
        return SlateDistribution(query, key, slates.masked, (0, 10), bounds, 4).log_prob(drawn)

    inputs = (slates.query.requires_grad_(), slates.key.requires_grad_())
    assert torch.autograd.gradcheck(log_prob, inputs)


@pytest.mark.parametrize(("masked", "popular"), [((0, 1, 2), 0), ((3, 4, 5), 3)])
def test_a_whole_group_may_be_hidden(masked: tuple[int, ...], popular: int) -> None:
    assert feasible(1.0, K, (popular, 3 - popular)) == (popular, popular)
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
    assert feasible(demand, 10, (99, 99)) == expected


def check_can_be_met(found: tuple[int, int], k: int, popular: int, tail: int) -> None:
    least, most = found
    assert 0 <= least <= most <= min(k, popular)
    assert k - most <= tail or most == popular
    assert k - least <= tail


@settings(max_examples=200, deadline=None)
@given(st.floats(0, 1), st.integers(1, 12), st.integers(0, 15), st.integers(0, 15))
def test_bounds_can_always_be_met(demand: float, k: int, popular: int, tail: int) -> None:
    if popular + tail < k:
        return
    check_can_be_met(feasible(demand, k, (popular, tail)), k, popular, tail)


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
    shares = torch.tensor([1.0 - target, target])
    past, left = torch.tensor([[popular_shown, tail_shown]]), torch.tensor([[popular, tail]])
    found = target_bounds(shares, k, past, left)
    check_can_be_met(popular_range(found, k), k, popular, tail)
    if popular >= k and tail >= k:
        assert torch.equal(found.least, found.most)


def popular_counts(targets: list[float], k: int, steps: int) -> Tensor:
    """(len(targets), steps) popular items of slates that follow a target, of all there are."""
    rows = []
    for target in targets:
        shares, shown, counts = torch.tensor([1.0 - target, target]), torch.zeros(1, 2).long(), []
        for _ in range(steps):
            found = target_bounds(shares, k, shown, 1000 - shown)
            assert torch.equal(found.least, found.most)
            counts.append(found.least[0, 0])
            shown = shown + found.least
        rows.append(torch.stack(counts))
    return torch.stack(rows)


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
    past, left = torch.tensor([[0, 4]]), torch.tensor([[9, 9]])
    found = target_bounds(torch.tensor([0.5, 0.5]), 4, past, left)
    assert popular_range(found, 4) == (4, 4)


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
        scores, torch.eye(3), torch.empty(1, 0, dtype=torch.int64), (0, 1), two_groups(0, 1, 1), 1,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(0)
        drawn = torch.cat([slates.sample()[0] for _ in range(4000)])
    share = torch.bincount(drawn[:, 0], minlength=3) / 4000
    torch.testing.assert_close(share, torch.full((3,), 1 / 3), atol=0.03, rtol=0)


THREE = (0, 2, 5)  # groups of 2, 3 and 2 items
BOUNDS = [
    ((0, 0, 0), (4, 4, 4)),
    ((1, 1, 1), (2, 2, 2)),
    ((0, 1, 2), (1, 3, 2)),
    ((2, 2, 0), (2, 2, 0)),
    ((0, 2, 0), (1, 3, 1)),
]


def of_three(
    least: tuple[int, ...], most: tuple[int, ...], n: int
) -> tuple[SlateDistribution, Tensor]:
    """Slates of 4 out of 7 items in three groups, and all that the bounds allow."""
    scores = 2 * torch.randn(1, 7, generator=torch.Generator().manual_seed(3))
    group = np.searchsorted(THREE, np.arange(7), side="right") - 1
    allowed = [
        slate
        for slate in itertools.permutations(range(7), 4)
        if all(
            low <= count <= high
            for low, count, high in zip(
                least, np.bincount(group[list(slate)], minlength=3), most, strict=True
            )
        )
    ]
    n = n or len(allowed)
    bounds = SlateBounds(torch.tensor([least]).expand(n, -1), torch.tensor([most]).expand(n, -1))
    none = torch.empty(n, 0, dtype=torch.int64)
    slates = SlateDistribution(scores.expand(n, -1), torch.eye(7), none, THREE, bounds, 4)
    return slates, torch.tensor(allowed)


@pytest.mark.parametrize(("least", "most"), BOUNDS)
def test_slates_of_three_groups_have_probabilities_that_sum_to_one(least, most) -> None:
    slates, allowed = of_three(least, most, 0)
    draws = slates.log_prob(allowed)
    probability = draws.sum(1).exp()
    assert float(probability.sum()) == pytest.approx(1.0, abs=1e-5)
    for length in range(1, 5):  # and so do those of the first draws, given what they leave open
        alike = (allowed[:, None, :length] == allowed[None, :, :length]).all(dim=2)
        marginal = (alike.float() * probability).sum(dim=1)
        first = (draws[:, :length] + draws[:, 4 : 4 + length]).sum(1).exp()
        torch.testing.assert_close(first, marginal, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("least", "most"), BOUNDS)
def test_slates_of_three_groups_are_drawn_as_stated(least, most) -> None:
    n = 100_000
    with torch.random.fork_rng():
        torch.manual_seed(0)
        drawn, log_prob = of_three(least, most, n)[0].sample()
    slates, allowed = of_three(least, most, 0)
    base = 7 ** torch.arange(4)
    counts = torch.bincount((drawn * base).sum(1), minlength=7**4)[(allowed * base).sum(1)]
    assert int(counts.sum()) == n  # none that the bounds forbid
    stated = slates.log_prob(allowed).sum(1).exp()
    torch.testing.assert_close(counts / n, stated, atol=0.006, rtol=0)
    torch.testing.assert_close(log_prob[:9], of_three(least, most, n)[0].log_prob(drawn)[:9])
    best, scores = slates.best()[0], slates.query[0]
    assert float(scores[best].sum()) == pytest.approx(float(scores[allowed].sum(1).max()))


@settings(max_examples=100, deadline=None)
@given(st.integers(2, 6), st.integers(1, 12), st.floats(0, 1), st.integers(0, 1000))
def test_all_slates_within_feasible_counts_meet_the_demand(
    n_groups: int, k: int, demand: float, seed: int
) -> None:
    target = np.random.default_rng(seed).dirichlet(np.ones(n_groups))
    counts = FeasibleCounts(target, k)
    left = torch.full((1, n_groups), 99)
    bounds = counts(torch.tensor([demand]), left)
    least, most = bounds.least[0].tolist(), bounds.most[0].tolist()
    assert sum(least) <= k <= sum(most)
    furthest = 2.0 * (1.0 - target.min())
    tightest = float(counts.worst[0]) * 2 / k
    for slate in itertools.product(*map(range, least, (high + 1 for high in most))):
        if sum(slate) == k:
            distance = np.abs(np.array(slate) / k - target).sum()
            assert distance <= max((1.0 - demand) * furthest, tightest) + 1e-3


@settings(max_examples=60, deadline=None)
@given(st.sampled_from([2, 3, 4]), st.integers(0, 10_000))
def test_a_band_holds_the_session_at_the_target_whatever_is_drawn(n_groups: int, seed: int) -> None:
    k, rng = 10, np.random.default_rng(seed)
    target = np.full(n_groups, 1.0 / n_groups)
    free = count_boxes(target, k).within(1.5)  # L1 distance below 0.3
    assert free is not None
    band, shown = Band(target, *free, k), torch.zeros(1, n_groups, dtype=torch.int64)
    room = np.maximum(target * k - free[0], free[1] - target * k)
    for _ in range(30):
        bounds = band(torch.tensor([rng.random()]), shown, 1000 - shown)
        least, most = bounds.least[0].numpy(), bounds.most[0].numpy()
        assert (free[0] <= least).all()
        assert (most <= free[1]).all()
        count = least.copy()
        while count.sum() < k:
            open_groups = np.flatnonzero(count < most)
            count[rng.choice(open_groups)] += 1
        assert np.abs(count / k - target).sum() < 0.3
        shown += torch.as_tensor(count)
        drift = np.abs(shown[0].numpy() - target * int(shown.sum()))
        assert (drift <= room + (0 if n_groups == 2 else 1)).all()


def test_a_band_of_ten_repairs_what_it_allowed() -> None:
    band = Band(HALVES, np.array([4, 4]), np.array([6, 6]), 10)
    plenty, none = torch.tensor([[99, 99]]), torch.zeros(1)
    for shown, expected in (
        ((0, 0), (4, 6)),
        ((6, 4), (4, 5)),
        ((4, 6), (5, 6)),
        ((9, 11), (5, 6)),
    ):
        assert popular_range(band(none, torch.tensor([shown]), plenty), 10) == expected
    few = torch.tensor([[2, 99]])
    assert popular_range(band(none, torch.tensor([[6, 4]]), few), 10) == (2, 2)


def test_a_demand_narrows_the_band_in_proportion() -> None:
    # 7 to 13 of 20: half the demand's range leaves all, the rest takes a popular item off each end.
    band = Band(HALVES, np.array([7, 7]), np.array([13, 13]), 20)
    plenty, nothing = torch.tensor([[99, 99]]), torch.zeros(1, 2, dtype=torch.int64)
    for demand, least in ((0.0, 7), (0.5, 7), (0.6, 8), (0.7, 9), (0.9, 10), (1.0, 10)):
        bounds = band(torch.tensor([demand]), nothing, plenty)
        assert popular_range(bounds, 20) == (least, 20 - least)
    # A session that is two popular items ahead may not get more than 11 at once.
    ahead = torch.tensor([[12, 8]])
    assert popular_range(band(torch.zeros(1), ahead, plenty), 20) == (7, 11)
    assert popular_range(band(torch.tensor([0.7]), ahead, plenty), 20) == (9, 11)
    assert popular_range(band(torch.ones(1), ahead, plenty), 20) == (10, 10)


@pytest.mark.parametrize("noise", [0.0, 1.0 - 2.0**-53])
@pytest.mark.parametrize("spread", [1.0, 40.0, 400.0])
def test_no_hidden_item_is_sampled_at_the_ends_of_the_noise(monkeypatch, noise, spread) -> None:
    """From scores on: hidden items have a weight of exactly 0."""

    class Constant:
        def random(self, shape: tuple[int, ...]) -> np.ndarray:
            return np.full(shape, noise)

    monkeypatch.setattr(distributions, "generator", Constant)
    drawn, log_prob = of_scores(spread * some_scores(n=3), 1, 2, (1, 5)).sample()
    assert not torch.isin(drawn, torch.tensor([1, 5])).any()
    assert all(len(set(slate)) == K for slate in drawn.tolist())
    assert log_prob.isfinite().all()
