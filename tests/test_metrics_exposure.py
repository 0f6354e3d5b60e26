"""Metrics of exposure against numbers worked out by hand, laws, and published implementations.

Known answers of ir-measures 0.4.3, LensKit 2025.8.0 and fairlearn 0.15.0 are recorded as numbers.
"""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from kuaisim_gym import metrics
from kuaisim_gym.metrics import Audit, Merit, Sessions
from tests.test_metrics import answered

LABELS = np.array([0, 0, 1, -1, 2])
TARGET = np.array([0.5, 0.25, 0.25])
POPULARITY = np.array([6, 2, 3, 0, 0])
MERIT = Merit(
    np.array([3, 7], dtype=np.int32),
    np.array([[0.1, 0.1, 0.9, 0.2, 0.2], [0.8, 0.4, 0.2, 0.6, 0.1]], dtype=np.float32),
)
MASSES = arrays(np.int64, 4, elements=st.integers(0, 9)).filter(np.any)
TARGETS = arrays(np.int64, 4, elements=st.integers(1, 9))
SLATES = arrays(np.int8, (2, 3, 4), elements=st.integers(0, 5))


def shares_of(masses: np.ndarray) -> np.ndarray:
    """The masses over their sum."""
    return masses / masses.sum()


def sessions_of(*played: list[list[int]], users: list[int] | None = None) -> Sessions:
    """Sessions that showed these slates, a list of slates each; all rewards are zero."""
    n, steps, size = len(played), max(map(len, played)), len(played[0][0])
    slates = np.full((n, steps, size), -1, dtype=np.int32)
    for row, session in enumerate(played):
        slates[row, : len(session)] = session
    return Sessions(
        length=np.array([len(session) for session in played]),
        rewards=np.zeros((n, steps)),
        penalised=np.zeros((n, steps), dtype=bool),
        slates=slates,
        responses=np.zeros(slates.shape, dtype=np.float32),
        users=np.array(users or range(n), dtype=np.int32),
    )


@pytest.fixture
def two() -> Sessions:
    """A session of two steps by user 7, one of one step by user 3, slates of two."""
    return sessions_of([[0, 2], [1, 0]], [[3, 4]], users=[7, 3])


def test_ad_of_sessions_of_unequal_length() -> None:
    popular = np.array([True, True, False, False])
    sessions = sessions_of([[0, 1], [1, 0], [0, 1]], [[0, 2]], [[2, 3]])
    # 7 of 10 exposures are popular. The mean over the three steps would be (0 + 1 + 1) / 3.
    assert metrics.absolute_difference(sessions, popular) == pytest.approx(0.4)


def test_ad_does_not_grow_with_the_number_of_sessions() -> None:
    """Lengths differ and few sessions reach the last steps; the share is .56 in all of them."""
    rng = np.random.default_rng(0)
    popular, estimates = np.arange(10) < 5, []
    for n in (50, 1000):
        steps = rng.integers(1, 31, n)
        draws = np.where(rng.random((n, 30, 10)) < 0.56, 0, 9)
        draws[np.arange(30) >= steps[:, None]] = -1
        played = [session[session[:, 0] >= 0].tolist() for session in draws]
        estimates.append(metrics.absolute_difference(sessions_of(*played), popular))
    assert estimates == pytest.approx([0.12, 0.12], abs=0.035)
    few = sessions_of([[0, 9]], [[0, 0], [9, 0]])
    thrice = Sessions.concatenate([few] * 3)
    assert metrics.absolute_difference(few, popular) == pytest.approx(1 / 3)
    assert metrics.absolute_difference(thrice, popular) == pytest.approx(1 / 3)


@given(SLATES)
def test_ad_follows_from_the_long_tail_share(slates: np.ndarray) -> None:
    popular = np.arange(6) < 2
    sessions = answered(np.zeros(slates.shape), slates)
    share = metrics.longtail_share(sessions, popular)
    assert metrics.absolute_difference(sessions, popular) == pytest.approx(abs(1 - 2 * share))


def test_group_distances_by_hand() -> None:
    shares = metrics.group_shares(np.array([2, 1, 1, 1, 1]), LABELS, 3)
    assert shares == pytest.approx([0.6, 0.2, 0.2])  # item 3 has no group
    assert metrics.group_difference(shares, TARGET) == pytest.approx(0.2)
    expected = 0.6 * np.log(1.2) + 0.4 * np.log(0.8)
    assert metrics.group_divergence(shares, TARGET) == pytest.approx(expected)
    # Shares over targets are 1.2, .8, .8.
    assert metrics.jain_index(shares, TARGET) == pytest.approx(2.8**2 / (3 * 2.72))


def test_groups_that_get_nothing_and_groups_that_should() -> None:
    alone, nothing = np.array([1.0, 0.0]), np.array([0.0, 1.0])
    equal = np.array([0.5, 0.5])
    assert metrics.group_difference(alone, equal) == 1.0
    assert metrics.group_divergence(alone, equal) == pytest.approx(np.log(2))
    assert metrics.jain_index(alone, equal) == 0.5
    assert metrics.group_divergence(alone, nothing) == np.inf
    unseen = metrics.group_shares(np.zeros(5), LABELS, 3)
    assert np.isnan(unseen).all()
    assert np.isnan(metrics.group_divergence(unseen, TARGET))


@given(MASSES, TARGETS)
def test_group_distances_agree_on_what_is_fair(masses: np.ndarray, goal: np.ndarray) -> None:
    shares, target = shares_of(masses), shares_of(goal)
    difference = metrics.group_difference(shares, target)
    divergence = metrics.group_divergence(shares, target)
    jain = metrics.jain_index(shares, target)
    assert divergence >= difference**2 / 2 - 1e-12  # Pinsker
    assert 0.25 - 1e-12 <= jain <= 1 + 1e-12
    fair = np.allclose(shares, target)
    assert (difference < 1e-9) == (divergence < 1e-9) == (jain > 1 - 1e-9) == fair
    assert metrics.group_difference(np.stack([shares, target]), target)[1] == 0


@given(st.integers(0, 20))
def test_two_groups_give_the_published_ad(popular: int) -> None:
    shares = np.array([popular / 20, 1 - popular / 20])
    found = metrics.group_difference(shares, np.array([0.5, 0.5]))
    assert found == pytest.approx(abs(2 * popular / 20 - 1))


def test_entropy_by_hand() -> None:
    counts = np.array([2, 1, 1, 1, 1])
    assert metrics.entropy(counts) * np.log2(5) == pytest.approx(2.251629, abs=1e-4)  # LensKit
    assert metrics.entropy(counts) * np.log(5) == pytest.approx(np.log(3) / 3 + 2 * np.log(6) / 3)
    assert metrics.entropy(np.full(7, 3)) == pytest.approx(1)
    assert metrics.entropy(np.array([0, 5, 0])) == 0


def test_novelty_by_hand() -> None:
    information = metrics.self_information(np.array([7, 3, 1, 1]))  # 8, 4, 2, 2 of 16
    assert information.tolist() == [1, 2, 3, 3]
    assert metrics.novelty(np.array([1, 1, 2, 0]), information) == 2.25


def test_attention_by_hand() -> None:
    assert metrics.attention(3, 0.5) == pytest.approx([4 / 7, 2 / 7, 1 / 7])
    assert metrics.attention(4, 1.0).tolist() == [0.25] * 4
    for patience in (0.0, 1.1):
        with pytest.raises(ValueError, match=r"patience must be in \(0, 1\]"):
            metrics.attention(3, patience)


def test_gini_of_attention_is_lenskits() -> None:
    """Lists (0, 2), (1, 0), (3, 4) of five items under geometric weights, patience .85."""
    attended = np.array([1.85, 1.0, 0.85, 1.0, 0.85])
    assert metrics.gini(attended) == pytest.approx(0.15495495, abs=1e-7)


def test_awrf_by_hand() -> None:
    slates = np.array([[0, 2], [1, 0], [3, 4], [3, 3]])
    found = metrics.slate_unfairness(slates, LABELS, TARGET, metrics.attention(2, 0.5))
    # Attention by group (2/3, 1/3, 0), (1, 0, 0), (0, 0, 1), and a slate without groups.
    assert found == pytest.approx([1 / 6 + 1 / 12 + 1 / 4, 1.0, 1.5, np.nan], nan_ok=True)


@given(SLATES, TARGETS, st.sampled_from([0.5, 1.0]))
def test_awrf_is_the_distance_of_dense_vectors(
    slates: np.ndarray, goal: np.ndarray, patience: float
) -> None:
    labels, target = np.array([0, 1, 1, 2, 3, -1]), shares_of(goal)
    lists, weights = slates.reshape(-1, 4), metrics.attention(4, patience)
    expected = []
    for slate in lists:
        mass = np.zeros(4)
        for item, weight in zip(slate, weights, strict=True):
            if labels[item] >= 0:
                mass[labels[item]] += weight
        expected.append(np.abs(mass / mass.sum() - target).sum() if mass.any() else np.nan)
    found = metrics.slate_unfairness(lists, labels, target, weights)
    assert found == pytest.approx(expected, nan_ok=True)


@settings(deadline=None)  # the first audit loads SciPy
@given(SLATES)
def test_awrf_of_two_groups_under_equal_attention_is_the_slate_ad(slates: np.ndarray) -> None:
    popular = np.arange(6) < 3
    sessions = answered(np.zeros(slates.shape), slates)
    audit = Audit.of(sessions, np.where(popular, 0, 1), np.ones(6), patience=1.0)
    found = metrics.slate_absolute_difference(sessions, popular)
    assert audit.summarise()["awrf"] == pytest.approx(found)


def test_exposure_over_merit_by_hand() -> None:
    half = np.array([0.5, 0.5])
    assert metrics.exposure_over_merit(half, np.array([0.2, 0.8])) == pytest.approx(0.25)
    assert metrics.exposure_over_merit(np.array([0.2, 0.8]), np.array([0.2, 0.8])) == 1
    assert metrics.exposure_over_merit(np.array([1.0, 0.0]), half) == 0
    assert metrics.exposure_over_merit(half, np.array([1.0, 0.0])) == 1  # one group has merit
    # fairlearn's ratio of the mean predictions .85 and .15.
    found = metrics.exposure_over_merit(np.array([0.85, 0.15]), half)
    assert found == pytest.approx(0.17647058823529413)
    assert metrics.inequity(half, np.array([0.2, 0.8])) == pytest.approx(0.6)


def test_equal_exposure_by_hand() -> None:
    weights = np.array([1.0, 0.5, 0.25])
    found = metrics.equal_exposure(np.array([[2, 0, 1, 1], [1, 1, 1, 1]]), weights)
    # The formula of expeval for rank-biased precision gives (.5 - .125) / (2 * .5) for grade 1.
    assert found == pytest.approx(np.array([[1, 0, 0.375, 0.375], [1.75 / 4] * 4]))


@given(arrays(np.int8, 4, elements=st.integers(0, 2)), st.integers(1, 4))
def test_equal_exposure_is_the_mean_over_all_orders_of_ties(grades: np.ndarray, size: int) -> None:
    weights = metrics.attention(size, 0.5)
    orders = [
        order for order in permutations(range(4)) if (np.diff(grades[list(order)]) <= 0).all()
    ]
    expected = np.zeros(4)
    for order in orders:
        expected[list(order[:size])] += weights / len(orders)
    assert metrics.equal_exposure(grades, weights) == pytest.approx(expected)


def test_expected_exposure_by_hand() -> None:
    loss, disparity, relevance = metrics.expected_exposure(
        np.array([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0]]), np.array([1.0, 0.0, 0.0])
    )
    assert loss.tolist() == [0.5, 0.0]
    assert disparity.tolist() == [0.5, 1.0]
    assert relevance.tolist() == [0.5, 1.0]


@given(MASSES, TARGETS)
def test_expected_exposure_loss_is_made_of_the_other_two(
    masses: np.ndarray, goal: np.ndarray
) -> None:
    exposure, target = shares_of(masses), shares_of(goal)
    loss, disparity, relevance = metrics.expected_exposure(exposure, target)
    assert loss == pytest.approx(disparity - 2 * relevance + target @ target)
    assert disparity >= 1 / 4 - 1e-12


def test_envy_by_hand() -> None:
    utility = np.array([[0.5, 0.7, 0.2], [0.4, 0.3, 0.1]])
    found = metrics.envy(utility, np.array([0.5, 0.3]))
    assert found == pytest.approx(np.array([[0, 0.2, 0], [0.1, 0, 0]]))


def test_an_audit_by_hand(two: Sessions) -> None:
    found = metrics.summarise_exposure(
        two, LABELS, POPULARITY, MERIT, target=TARGET, patience=1.0, relevant=0.4
    )
    assert list(found) == [metric.name for metric in metrics.EXPOSURE_METRICS]
    assert found["group_ad"] == pytest.approx(0.2)
    assert found["group_kl"] == pytest.approx(0.6 * np.log(1.2) + 0.4 * np.log(0.8))
    assert found["group_jain"] == pytest.approx(2.8**2 / (3 * 2.72))
    # Merit of two slates for user 7 and one for user 3: 1.7, .9, 1.3, 1.4, .4; by group 2.6, 1.3,
    # .4, against 3, 1, 1 exposures: group 2 gets the most for its merit, group 1 the least.
    assert found["merit_ratio"] == pytest.approx((1 / 1.3) / (1 / 0.4))
    shares = np.array([2, 1, 1, 1, 1]) / 6, np.array([1.7, 0.9, 1.3, 1.4, 0.4]) / 5.7
    assert found["inequity"] == pytest.approx(np.abs(shares[0] - shares[1]).sum())
    # Relevant are items 0 and 3 to user 7, 2 and 3 to user 3 (3 before 4, which is as good): a
    # target of (2, 0, 1, 3, 0) / 6 against (2, 1, 1, 1, 1) / 6, in units of 1/5.
    assert found["ee_l"] == pytest.approx(5 * 6 / 36)
    assert found["ee_d"] == pytest.approx(5 * 8 / 36)
    assert found["ee_r"] == pytest.approx(5 * 8 / 36)
    # Slates by group (1/2, 1/2, 0), (1, 0, 0), (0, 0, 1).
    assert found["awrf"] == pytest.approx((0.5 + 1.0 + 1.5) / 3)
    # User 7 would get .35 from (3, 4) and has .55; user 3 has .2 and would get .3.
    assert found["envy"] == pytest.approx(0.1 / 2)
    assert found["gini"] == pytest.approx(4 / 30)
    assert found["coverage"] == 1.0
    assert found["entropy"] == pytest.approx(2.251629 / np.log2(5), abs=1e-6)
    # Popularity plus 1: 7, 3, 4, 1, 1 of 16.
    bits = [4 - np.log2(count) for count in (7, 7, 3, 4, 1, 1)]
    assert found["novelty"] == pytest.approx(np.mean(bits))
    assert (found["len_worst"], found["r_each_worst"]) == (1, 0)


def test_a_session_alone_envies_nobody(two: Sessions) -> None:
    audit = Audit.of(two.take(np.array([0])), LABELS, POPULARITY, MERIT)
    with np.errstate(all="raise"):
        assert np.isnan(audit.envy)


def test_attention_is_where_the_browsing_model_says(two: Sessions) -> None:
    """With patience .5 the first of two ranks gets two thirds."""
    audit = Audit.of(two, LABELS, POPULARITY, MERIT, TARGET, patience=0.5, relevant=0.2)
    assert audit.attention_share * 9 == pytest.approx([3, 2, 1, 2, 1])
    assert audit.exposure.tolist() == [2, 1, 1, 1, 1]
    # One relevant item each: 0 gets two thirds of user 7's slates, all others share a third.
    target = np.array([2 * 2 / 3 + 1 / 12, 1 / 6 + 1 / 12, 1 / 6 + 2 / 3, 0.25, 0.25]) / 3
    loss, _, _ = audit.expected_exposure
    assert loss == pytest.approx(5 * ((np.array([3, 2, 1, 2, 1]) / 9 - target) ** 2).sum())


def test_without_merit_what_needs_it_is_left_out(two: Sessions) -> None:
    audit = Audit.of(two, LABELS, POPULARITY)
    named = [metric.name for metric in metrics.EXPOSURE_METRICS if not metric.needs_merit]
    assert list(audit.summarise()) == named
    assert audit.target == pytest.approx([1 / 3] * 3)
    with pytest.raises(ValueError, match="give merit"):
        _ = audit.envy


def random_sessions(rng: np.random.Generator, n: int) -> Sessions:
    """Sessions of 1 to 4 steps with slates of 3 of 12 items and random rewards, of users 0 to 5."""
    played = [
        [rng.choice(12, 3, replace=False).tolist() for _ in range(rng.integers(1, 5))]
        for _ in range(n)
    ]
    sessions = sessions_of(*played, users=rng.integers(0, 6, n).tolist())
    sessions.rewards[...] = rng.random(sessions.rewards.shape) * (sessions.slates[:, :, 0] >= 0)
    return sessions


def test_a_resampled_audit_is_the_audit_of_resampled_sessions() -> None:
    rng = np.random.default_rng(0)
    sessions = random_sessions(rng, 40)
    merit = Merit(np.arange(6, dtype=np.int32), rng.random((6, 12), dtype=np.float32))
    labels, popularity = rng.integers(-1, 3, 12), rng.integers(0, 50, 12)
    audit = Audit.of(sessions, labels, popularity, merit)
    repeated = rng.integers(0, 40, 40)
    for rows in (rng.permutation(40)[:25], repeated):
        found = audit.take(rows).summarise()
        expected = Audit.of(sessions.take(rows), labels, popularity, merit).summarise()
        if rows is repeated:  # a session and its copy are no pair, two equal sessions are
            assert found.pop("envy") >= expected.pop("envy")
        assert found == pytest.approx(expected, rel=1e-5)
    half = metrics.bootstrap_ci95(audit, Audit.summarise, rng, resamples=20)
    assert half.keys() == audit.summarise().keys()
    assert all(0 <= width < np.inf for width in half.values())


def test_metrics_of_shares_do_not_depend_on_the_size_of_the_sample() -> None:
    rng = np.random.default_rng(1)
    sessions = random_sessions(rng, 30)
    merit = Merit(np.arange(6, dtype=np.int32), rng.random((6, 12), dtype=np.float32))
    once, thrice = (
        metrics.summarise_exposure(sample, np.arange(12) % 3, np.ones(12), merit)
        for sample in (sessions, Sessions.concatenate([sessions] * 3))
    )
    # Copies of a session do not envy each other.
    assert thrice.pop("envy") == pytest.approx(once.pop("envy") * (90 - 3) / (90 - 1), rel=1e-5)
    assert thrice == pytest.approx(once, rel=1e-5)


@pytest.mark.parametrize(
    ("labels", "target", "message"),
    [
        ([-1, -1, -1, -1, -1], None, "labels must number groups from 0 on"),
        ([0, -2, 1, 1, 1], None, "between -2 and 1"),
        ([0, 0, 1, 1, 1], [1.0], "shares that sum to 1, one for each of 2 groups"),
        ([0, 0, 1, 1, 1], [0.5, 0.6], "shares that sum to 1, one for each of 2 groups"),
        ([0, 0, 1, 1, 1], [-0.5, 1.5], "shares that sum to 1, one for each of 2 groups"),
    ],
)
def test_groups_and_targets_are_checked(
    two: Sessions, labels: list[int], target: list[float] | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        metrics.summarise_exposure(two, np.array(labels), POPULARITY, target=target)


def test_merit_of_other_users_is_refused(two: Sessions) -> None:
    for users in ([3, 8], [1, 3]):
        strange = Merit(np.array(users, dtype=np.int32), MERIT.responses)
        with pytest.raises(ValueError, match="no row of user 7"):
            metrics.summarise_exposure(two, LABELS, POPULARITY, strange)


def test_the_worst_tenth_by_hand() -> None:
    values = np.array([4.0, 1.0, 3.0, 2.0])
    assert metrics.worst_mean(values) == 1
    assert metrics.worst_mean(values, 0.5) == 1.5
    assert metrics.worst_mean(values, 0.375) == pytest.approx((1 + 0.5 * 2) / 1.5)
    assert metrics.worst_mean(values, 1.0) == 2.5
    weight = np.array([1.0, 0.0, 2.0, 1.0])  # 2, 3, 3, 4
    assert metrics.worst_mean(values, 0.5, weight) == 2.5
    assert metrics.worst_mean(np.repeat(values, 7), 0.375) == pytest.approx(4 / 3)


def test_classes_of_users_by_hand() -> None:
    users, items = np.array([0, 0, 0, 1, 2, 2, 3, 3]), np.array([0, 1, 4, 1, 0, 3, 0, 1])
    popular = np.array([True, True, False, False])
    rows = metrics.log_rows(users, 6)
    assert rows.tolist() == [3, 1, 2, 2, 0, 0]
    taste = metrics.popular_taste(users, items, popular, 6)  # item 4 is not in the catalogue
    assert taste == pytest.approx([1, 1, 0.5, 1, np.nan, np.nan], nan_ok=True)
    classes = metrics.user_classes(rows, np.array([0, 1, 2, 3]))
    assert classes.tolist() == [2, 0, 1, 1, -1, -1]
    assert metrics.user_classes(taste, np.arange(5)).tolist() == [1, 1, 0, 1, -1, -1]
    third = metrics.user_classes(np.arange(9.0), np.arange(9))
    assert third.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]


def test_users_by_class_by_hand() -> None:
    sessions = sessions_of([[0], [1]], [[0]], [[0], [1]], users=[4, 2, 0])
    sessions.rewards[...] = [[1.0, 0.5], [0.25, 0.0], [0.0, 0.25]]
    found = metrics.summarise_users(sessions, {"activity": np.array([0, 2, 2, 2, 0])})
    assert found["len_activity_low"] == 2
    assert found["r_each_activity_low"] == pytest.approx(1.75 / 4)
    assert (found["len_activity_high"], found["r_each_activity_high"]) == (1, 0.25)
    assert np.isnan(found["len_activity_middle"])
    assert np.isnan(found["r_each_activity_middle"])
    assert found["len_worst"] == 1
    assert found["r_each_worst"] == 0.125


def test_list_metrics_are_those_of_published_implementations() -> None:
    graded = answered([[[0.2, 0.8, 0.4]]])
    assert metrics.reward_ndcg(graded) == pytest.approx(0.7851144250702092)  # LensKit, offset 1
    second = answered([[[0.0, 1.0]]])  # falling scores, so that ir-measures has no ties
    assert metrics.reward_ndcg(second) == pytest.approx(0.6309297535714575)
    assert metrics.reward_mrr(second) == 0.5
