"""Metrics against numbers worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from dsrm_agents import evaluate, make_vec_env
from dsrm_agents.baselines.reference import make_reference
from kuaisim_gym import metrics
from kuaisim_gym.errors import DataFormatError
from kuaisim_gym.metrics import Sessions

POPULAR = np.array([True, True, False, False, False])
SHARES = st.floats(0, 1, width=32)
RESPONSES = arrays(np.float32, (3, 2, 4), elements=SHARES)
VECTORS = arrays(np.float32, (6, 3), elements=st.floats(-2, 2, width=16))


def answered(responses: object, slates: object = None) -> Sessions:
    """Sessions with these (S, T, K) responses, each step made, and slates 0 .. K - 1 by default."""
    values = np.asarray(responses, dtype=np.float32)
    n, steps, size = values.shape
    shown = np.broadcast_to(np.arange(size), values.shape) if slates is None else slates
    return Sessions(
        length=np.full(n, steps),
        rewards=values.mean(axis=2, dtype=np.float64),
        penalised=np.zeros((n, steps), dtype=bool),
        slates=np.array(shown, dtype=np.int32),
        responses=values,
        users=np.zeros(n, dtype=np.int32),
    )


def shown(*slates: list[int]) -> Sessions:
    """One session with these slates."""
    return answered(np.zeros((1, len(slates), len(slates[0]))), [list(slates)])


def returned(*days: int) -> Sessions:
    """Sessions of one step, with these return days."""
    n = len(days)
    return Sessions(
        length=np.ones(n, dtype=np.int64),
        rewards=np.full((n, 1), 0.25),
        penalised=np.zeros((n, 1), dtype=bool),
        slates=np.zeros((n, 1, 1), dtype=np.int32),
        responses=np.full((n, 1, 1), 0.25, dtype=np.float32),
        users=np.arange(n, dtype=np.int32),
        return_day=np.array(days),
    )


@pytest.fixture
def two() -> Sessions:
    """One session of two steps, one of one step, slates of two."""
    return Sessions(
        length=np.array([2, 1]),
        rewards=np.array([[1.0, 0.5], [0.0, 0.0]]),
        penalised=np.array([[False, True], [True, False]]),
        slates=np.array([[[0, 2], [1, 0]], [[3, 4], [-1, -1]]], dtype=np.int32),
        responses=np.array([[[1, 1], [0, 1]], [[0, 0], [0, 0]]], dtype=np.float32),
        users=np.array([7, 3], dtype=np.int32),
    )


def test_hand_computed(two: Sessions) -> None:
    found = metrics.summarise(two, POPULAR)
    assert found["len"] == 1.5
    assert found["r_cum"] == 0.75  # (1.5 + 0) / 2
    assert found["r_each"] == 0.5  # 1.5 over three steps
    assert found["q"] == pytest.approx(2 / 3)
    # Three of six exposures are popular; steps alone are not balanced (1 of 4, 2 of 2).
    assert found["ad"] == 0.0
    # Slates: {0,2} balanced, {1,0} and {3,4} one-sided: (0 + 1 + 1) / 3.
    assert found["slate_ad"] == pytest.approx(2 / 3)
    assert found["longtail_share"] == pytest.approx(0.5)
    assert found["coverage"] == 1.0
    # Counts 2,1,1,1,1: sum of ranks (-4,-2,0,2,4) over sorted (1,1,1,1,2) = 4; 4 / (5 * 6).
    assert found["gini"] == pytest.approx(4 / 30)


def test_ad_cancels_over_users_but_slate_ad_does_not() -> None:
    opposed = Sessions(
        length=np.array([1, 1]),
        rewards=np.zeros((2, 1)),
        penalised=np.ones((2, 1), dtype=bool),
        slates=np.array([[[0, 1]], [[2, 3]]], dtype=np.int32),
        responses=np.zeros((2, 1, 2), dtype=np.float32),
        users=np.array([0, 1], dtype=np.int32),
    )
    assert metrics.absolute_difference(opposed, POPULAR) == 0.0
    assert metrics.slate_absolute_difference(opposed, POPULAR) == 1.0


@given(st.lists(st.integers(0, 50), min_size=2, max_size=40).filter(sum))
def test_gini_is_bounded_and_knows_equality(counts: list[int]) -> None:
    value = metrics.gini(np.array(counts))
    assert -1e-12 <= value <= 1 - 1 / len(counts) + 1e-12
    assert metrics.gini(np.full(len(counts), 3)) == pytest.approx(0)
    assert metrics.gini(np.array(counts) * 7) == pytest.approx(value)


def test_the_bootstrap_matches_the_standard_error_of_a_mean() -> None:
    rng = np.random.default_rng(0)
    n = 400
    lengths = rng.integers(10, 31, n)
    shape = (n, 30, 1)
    sessions = Sessions(
        lengths,
        np.ones(shape[:2]),
        np.zeros(shape[:2], bool),
        np.zeros(shape, np.int32),
        np.ones(shape, np.float32),
        np.arange(n, dtype=np.int32),
    )
    half = metrics.bootstrap_ci95(
        sessions, lambda sample: {"len": metrics.session_length(sample)}, rng, resamples=1000
    )
    assert half["len"] == pytest.approx(1.96 * lengths.std() / np.sqrt(n), rel=0.1)


def test_sessions_of_one_user_are_resampled_together() -> None:
    """Four copies of each user tell no more than one."""
    rng = np.random.default_rng(0)
    users = returned(*rng.integers(1, 11, 200).tolist())
    copies = users.take(np.repeat(np.arange(200), 4))
    once, again = (
        metrics.bootstrap_ci95(sample, metrics.summarise_retention, rng, 1000, together)
        for sample, together in ((users, 1), (copies, 4))
    )
    assert again["return_time"] == pytest.approx(once["return_time"], rel=0.1)
    apart = metrics.bootstrap_ci95(copies, metrics.summarise_retention, rng, 1000)
    assert apart["return_time"] == pytest.approx(once["return_time"] / 2, rel=0.1)


def test_concatenate_keeps_order(two: Sessions) -> None:
    joined = Sessions.concatenate([two.take(np.array([1])), two.take(np.array([0]))])
    assert joined.length.tolist() == [1, 2]
    assert len(joined) == 2
    assert joined.responses[:, 0].tolist() == [[0, 0], [1, 1]]
    assert joined.return_day is None


def test_return_days_are_carried_along() -> None:
    days = returned(3, 1, 7)
    assert days.take(np.array([2, 0, 0])).return_day.tolist() == [7, 3, 3]
    assert Sessions.concatenate([days, returned(2)]).return_day.tolist() == [3, 1, 7, 2]


def test_batches_with_and_without_return_days_do_not_mix() -> None:
    with pytest.raises(ValueError, match="1 of 2 batches have them"):
        Sessions.concatenate([returned(3), answered([[[1.0]]])])


def test_requests_by_hand(two: Sessions) -> None:
    vectors = np.array([[2.0, 0.0], [0.0, 3.0], [5.0, 0.0], [1.0, 1.0], [0.0, 0.0]])
    found = metrics.summarise_requests(two, POPULAR, vectors)
    assert found["list_reward"] == 0.5  # lists of 1, 1/2 and 0
    # Best of 128 drawn from {0, 1/2, 1}: 1 unless none is the 1, which happens (2/3)^128 times.
    assert found["list_reward_max"] == pytest.approx(1 - 0.5 * ((2 / 3) ** 128 + (1 / 3) ** 128))
    # Gains (1, 1) in order; (0, 1) in reverse, log 2 / log 3; (0, 0) left out.
    assert found["r_ndcg"] == pytest.approx((1 + np.log(2) / np.log(3)) / 2)
    assert found["r_mrr"] == pytest.approx((1 + 1 / 2 + 0) / 3)
    assert found["coverage"] == 1.0
    # Items 0 and 2 point the same way, 1 and 0 at right angles, and 4 is no direction at all.
    assert found["ild"] == pytest.approx((0 + 1 + 1) / 3)
    assert found["slate_ad"] == pytest.approx(2 / 3)
    assert found["longtail_share"] == 0.5


def test_list_reward_is_the_reward_per_step_of_mean_responses(two: Sessions) -> None:
    assert metrics.average_list_reward(two) == metrics.reward_per_step(two)


def test_max_list_reward_by_hand() -> None:
    lists = answered([[[0.0, 0.0]], [[0.5, 0.5]], [[1.0, 1.0]], [[0.0, 1.0]]])
    # Two drawn from {0, 1/2, 1/2, 1}: 7 of 16 pairs hold the 1, one is (0, 0), 8 remain.
    assert metrics.max_list_reward(lists, requests=2) == pytest.approx((7 + 8 * 0.5) / 16)
    assert metrics.max_list_reward(lists, requests=1) == metrics.average_list_reward(lists)


@given(RESPONSES, st.integers(1, 200))
def test_max_list_reward_lies_between_mean_and_maximum(
    responses: np.ndarray, requests: int
) -> None:
    lists = answered(responses)
    best = metrics.max_list_reward(lists, requests)
    assert best >= metrics.average_list_reward(lists) - 1e-6
    assert best <= responses.mean(axis=2).max() + 1e-6
    assert metrics.max_list_reward(lists, requests + 1) >= best - 1e-12


def test_max_list_reward_does_not_grow_with_the_sample() -> None:
    lists = answered(np.random.default_rng(0).random((40, 5, 3)))
    thrice = Sessions.concatenate([lists] * 3)
    assert metrics.max_list_reward(thrice) == pytest.approx(metrics.max_list_reward(lists))


def test_r_ndcg_by_hand() -> None:
    # Gains .2, .8, .4 at discounts 1, 1/log2(3), 1/2.
    second = 1 / np.log2(3)
    expected = (0.2 + 0.8 * second + 0.4 / 2) / (0.8 + 0.4 * second + 0.2 / 2)
    assert metrics.reward_ndcg(answered([[[0.2, 0.8, 0.4]]])) == pytest.approx(expected)


def test_r_ndcg_without_any_response_is_undefined() -> None:
    assert np.isnan(metrics.reward_ndcg(answered(np.zeros((2, 2, 3)))))


@given(arrays(np.int8, (2, 2, 4), elements=st.integers(0, 3)).filter(np.any))
def test_r_ndcg_is_one_exactly_for_sorted_gains(grades: np.ndarray) -> None:
    found = metrics.reward_ndcg(answered(grades / 3))
    assert 0 < found <= 1 + 1e-12
    falling = bool((np.diff(grades, axis=2) <= 0).all())
    assert (found > 1 - 1e-9) == falling
    best_first = np.sort(grades, axis=2)[:, :, ::-1]
    assert metrics.reward_ndcg(answered(best_first / 3)) == pytest.approx(1)


@given(arrays(np.int8, (2, 2, 4), elements=st.integers(1, 8)), st.sampled_from([0.5, 0.25]))
def test_r_ndcg_does_not_know_the_level_of_responses(grades: np.ndarray, factor: float) -> None:
    whole = metrics.reward_ndcg(answered(grades / 8))
    assert metrics.reward_ndcg(answered(factor * grades / 8)) == pytest.approx(whole)


def test_r_mrr_by_hand() -> None:
    # .5 + .5 * 0 / 2 + .5 * .8 / 3
    assert metrics.reward_mrr(answered([[[0.5, 0.0, 0.8]]])) == pytest.approx(0.5 + 0.4 / 3)


@given(arrays(np.int8, (3, 2, 4), elements=st.integers(0, 1)))
def test_r_mrr_of_clicks_is_the_mean_reciprocal_rank(clicks: np.ndarray) -> None:
    ranks = [1 + int(np.argmax(row)) if row.any() else np.inf for row in clicks.reshape(-1, 4)]
    assert metrics.reward_mrr(answered(clicks)) == pytest.approx(np.mean(1 / np.array(ranks)))


@given(RESPONSES, st.integers(0, 3), SHARES)
def test_r_mrr_is_bounded_and_rises_with_every_response(
    responses: np.ndarray, position: int, higher: float
) -> None:
    before = metrics.reward_mrr(answered(responses))
    assert 0 <= before <= 1 + 1e-12
    responses[:, :, position] = np.maximum(responses[:, :, position], higher)
    assert metrics.reward_mrr(answered(responses)) >= before - 1e-12


def test_r_mrr_of_probabilities_is_that_of_their_draws_on_average() -> None:
    rng = np.random.default_rng(0)
    probabilities = np.broadcast_to([0.3, 0.1, 0.6], (20_000, 1, 3))
    draws = rng.random(probabilities.shape) < probabilities
    expected = metrics.reward_mrr(answered(probabilities))
    assert metrics.reward_mrr(answered(draws)) == pytest.approx(expected, abs=0.01)


def test_ild_by_hand() -> None:
    vectors = np.array([[1.0, 0.0], [0.0, 4.0], [-2.0, 0.0], [1.0, 1.0]])
    root = np.sqrt(0.5)
    # Slate {0, 1, 2}: cosines 0, -1, 0; slate {0, 1, 3}: 0, root, root.
    expected = 1 - (-1 + 2 * root) / 6
    found = metrics.intra_list_diversity(shown([0, 1, 2], [0, 1, 3]), vectors)
    assert found == pytest.approx(expected)


def test_ild_knows_equality_orthogonality_and_slates_of_one() -> None:
    orthogonal = np.diag([0.1, 2.0, 30.0])
    slates = shown([0, 1, 2], [2, 0, 1])
    assert metrics.intra_list_diversity(slates, orthogonal) == pytest.approx(1)
    assert metrics.intra_list_diversity(slates, np.ones((3, 2))) == pytest.approx(0)
    assert metrics.intra_list_diversity(shown([1, 1, 1]), orthogonal) == pytest.approx(0)
    assert metrics.intra_list_diversity(shown([0], [2]), orthogonal) == 0


@given(VECTORS, st.permutations(range(4)), arrays(np.int8, (2, 3, 4), elements=st.integers(0, 5)))
def test_ild_is_the_mean_over_pairs_whatever_order_length_or_chunk(
    vectors: np.ndarray, order: list[int], slates: np.ndarray
) -> None:
    sessions = answered(np.zeros(slates.shape), slates)
    found = metrics.intra_list_diversity(sessions, vectors)
    pairs = []
    for slate in slates.reshape(-1, 4):
        for i in range(4):
            for j in range(i):
                a, b = (vectors[slate[k]].astype(np.float64) for k in (i, j))
                length = np.linalg.norm(a) * np.linalg.norm(b)
                pairs.append(a @ b / length if length > 0 else 0.0)
    assert found == pytest.approx(1 - np.mean(pairs), abs=1e-9)
    assert -1e-9 <= found <= 2 + 1e-9
    permuted = answered(np.zeros(slates.shape), slates[:, :, order])
    for other in (
        metrics.intra_list_diversity(permuted, vectors),
        metrics.intra_list_diversity(sessions, 8 * vectors),
        metrics.intra_list_diversity(sessions, vectors, lists_at_once=1),
        metrics.intra_list_diversity(sessions, vectors, lists_at_once=4),
    ):
        assert other == pytest.approx(found, abs=1e-12)


def test_steps_that_were_not_made_count_in_no_list_metric(two: Sessions) -> None:
    first = two.take(np.array([1]))
    made = answered([[[0, 0]]], [[[3, 4]]])
    vectors = np.arange(10.0).reshape(5, 2)
    assert metrics.average_list_reward(first) == metrics.average_list_reward(made)
    assert metrics.reward_mrr(first) == metrics.reward_mrr(made)
    assert metrics.max_list_reward(first) == metrics.max_list_reward(made)
    assert metrics.intra_list_diversity(first, vectors) == metrics.intra_list_diversity(
        made, vectors
    )


def test_retention_by_hand() -> None:
    found = metrics.summarise_retention(returned(1, 3, 1, 10))
    assert found == {"return_time": 3.75, "retention": 0.5, "r_each": 0.25}


@given(st.lists(st.integers(1, 10), min_size=1, max_size=20))
def test_retention_and_return_time_agree(days: list[int]) -> None:
    found = metrics.summarise_retention(returned(*days))
    assert 1 <= found["return_time"] <= 10
    assert 0 <= found["retention"] <= 1
    assert (found["retention"] == 1) == (found["return_time"] == 1)


def test_sessions_without_returns_have_no_retention(two: Sessions) -> None:
    for metric in (metrics.return_time, metrics.retention):
        with pytest.raises(ValueError, match="no return days"):
            metric(two)


def test_every_summary_can_be_resampled(two: Sessions) -> None:
    rng, vectors = np.random.default_rng(0), np.eye(5)
    half = metrics.bootstrap_ci95(
        two, lambda sample: metrics.summarise_requests(sample, POPULAR, vectors), rng, resamples=5
    )
    assert half.keys() == metrics.summarise_requests(two, POPULAR, vectors).keys()
    half = metrics.bootstrap_ci95(returned(1, 2, 9), metrics.summarise_retention, rng)
    assert half["return_time"] > 0


@pytest.mark.parametrize("wrong", ["short", "counts", "floats", "table", "list of texts", "none"])
def test_a_popular_group_that_is_none_is_refused_by_all_summaries(wrong: str) -> None:
    sessions = shown([0, 1], [2, 3])
    n_items = int(sessions.slates.max()) + 1
    flags = np.zeros(n_items, dtype=bool)
    popular = {
        "short": flags[:-1],
        "counts": flags.astype(int),
        "floats": np.full(n_items, np.nan),
        "table": flags[None],
        "list of texts": ["a"] * n_items,
        "none": None,
    }[wrong]
    vectors = np.ones((n_items, 3))
    for summary in (
        metrics.each_session,
        metrics.summarise,
        lambda sessions, popular: metrics.summarise_requests(sessions, popular, vectors),
        metrics.absolute_difference,
        metrics.slate_absolute_difference,
        metrics.longtail_share,
    ):
        with pytest.raises(
            DataFormatError, match=r"popular must (be \(n_items,\) bools|have a fl)"
        ):
            summary(sessions, popular)


def test_arrays_that_do_not_fit_the_items_are_refused() -> None:
    sessions = shown([0, 1], [2, 3])
    n_items = int(sessions.slates.max()) + 1
    flags, labels = np.zeros(n_items, dtype=bool), np.arange(n_items) % 2
    for vectors in (np.ones((n_items - 1, 3)), np.ones(n_items), np.full((n_items, 2), np.nan)):
        with pytest.raises(DataFormatError, match=r"vectors must be \(\d+, d\) finite numbers"):
            metrics.summarise_requests(sessions, flags, vectors)
    for groups, popularity in ((labels[:-1], labels[:-1]), (labels, labels[:-1])):
        with pytest.raises(DataFormatError, match="must have a number for each item"):
            metrics.summarise_exposure(sessions, groups, popularity)
    with pytest.raises(DataFormatError, match=r"labels must be \(n_items,\) integers, got float64"):
        metrics.summarise_exposure(sessions, labels / 2, labels)
    with pytest.raises(DataFormatError, match="no return days"):
        metrics.summarise_retention(sessions)


def test_a_catalogue_or_a_dataset_stands_for_its_popular_items(small) -> None:
    env = make_vec_env("KuaiRec-Fair-v0", 8, seed=1, dataset=small, action_type="slate", max_len=5)
    sessions = evaluate(make_reference("random", env.batch), env, sessions=8)
    flags = env.catalogue.popular
    assert flags.sum() == 48  # a fifth of 240
    assert (small.popular == flags).all()
    by_flags = metrics.summarise(sessions, flags)
    assert by_flags == metrics.summarise(sessions, env.catalogue)
    assert by_flags == metrics.summarise(sessions, small)
    assert metrics.longtail_share(sessions, small) == by_flags["longtail_share"]
