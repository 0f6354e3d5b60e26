"""The return model against numbers worked out by hand, and what must hold for any user."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kuaisim_gym.data import BehaviourLog, Dataset, Interactions, WatchLog
from kuaisim_gym.errors import ConfigError
from kuaisim_gym.simulator.returns import ReturnModel

AVERAGE = ReturnModel(np.zeros(1, dtype=np.float32))
SHARES = st.floats(0, 1)
HABITS = st.floats(-8, 8, width=32)


def model(*habits: float, **options) -> ReturnModel:
    return ReturnModel(np.array(habits, dtype=np.float32), **options)


def of_all(one: ReturnModel, satisfaction: float) -> tuple[np.ndarray, np.ndarray]:
    """Every user, each with this satisfaction."""
    return np.arange(len(one.habit)), np.full(len(one.habit), satisfaction)


def with_test_rows(dataset: Dataset, test: Interactions) -> Dataset:
    return dataclasses.replace(dataset, test=test, truth=None)


def test_by_hand() -> None:
    # Logits -1 + 0 + 2 * .5 = 0 and -1 + 3 * log 3 / 3 + 1 = log 3: p = 1/2 and 3/4.
    one = model(0.0, np.log(3) / 3, bias=-1.0, habit_weight=3.0, influence=2.0, max_days=3)
    users, satisfaction = of_all(one, 0.5)
    np.testing.assert_allclose(one.probability(users, satisfaction), [0.5, 0.75], rtol=1e-6)
    # 1/2, 1/4, 1/8 over 7/8; 3/4, 3/16, 3/64 over 63/64.
    expected = [[4 / 7, 2 / 7, 1 / 7], [48 / 63, 12 / 63, 3 / 63]]
    np.testing.assert_allclose(one.distribution(users, satisfaction), expected, rtol=1e-6)
    days = one.expected_days(users, satisfaction)
    np.testing.assert_allclose(days, [11 / 7, 81 / 63], rtol=1e-6)


@pytest.mark.parametrize(
    ("satisfaction", "probability", "days"),
    [(0.0, 0.05, 5.1), (0.4, 0.14, 4.3), (0.6, 0.23, 3.5), (0.8, 0.35, 2.7), (1.0, 0.5, 2.0)],
)
def test_the_default_numbers_are_the_documented_ones(
    satisfaction: float, probability: float, days: float
) -> None:
    one = of_all(AVERAGE, satisfaction)
    assert AVERAGE.probability(*one)[0] == pytest.approx(probability, abs=0.005)
    assert AVERAGE.expected_days(*one)[0] == pytest.approx(days, abs=0.05)


def test_return_times_lie_where_kuaisim_publishes_them() -> None:
    many = ReturnModel(np.random.default_rng(0).standard_normal(20_000, dtype=np.float32))
    assert 3.4 < many.expected_days(*of_all(many, 0.6)).mean() < 3.6


@given(HABITS, SHARES, st.integers(1, 12))
def test_the_distribution_is_a_truncated_geometric(
    habit: float, satisfaction: float, max_days: int
) -> None:
    one = model(habit, max_days=max_days)
    users, level = of_all(one, satisfaction)
    chances = one.distribution(users, level)
    assert chances.shape == (1, max_days)
    assert chances.sum() == pytest.approx(1)
    assert (chances >= 0).all()
    p = one.probability(users, level)[0]
    np.testing.assert_allclose(chances[0, 1:], chances[0, :-1] * (1 - p), atol=1e-12)
    expected = (chances[0] * np.arange(1, max_days + 1)).sum()
    assert one.expected_days(users, level)[0] == pytest.approx(expected)


@pytest.mark.parametrize(("bias", "first"), [(-1e6, 0.1), (1e6, 1.0)])
def test_probabilities_that_round_to_zero_and_one(bias: float, first: float) -> None:
    one = model(0.0, bias=bias)
    chances = one.distribution(*of_all(one, 0.5))
    assert chances[0, 0] == pytest.approx(first)
    assert chances.sum() == pytest.approx(1)


@given(HABITS, SHARES, SHARES, st.floats(0.001, 0.999))
def test_more_satisfaction_never_means_a_later_return(
    habit: float, first: float, second: float, uniform: float
) -> None:
    one = model(habit)
    low, high = (of_all(one, level) for level in sorted([first, second]))
    assert one.probability(*low)[0] <= one.probability(*high)[0]
    assert one.expected_days(*low)[0] >= one.expected_days(*high)[0] - 1e-12
    later, earlier = (one.distribution(*level).cumsum() for level in (low, high))
    assert (earlier >= later - 1e-12).all()
    if np.abs(later - uniform).min() > 1e-12:  # else rounding decides
        draw = np.array([uniform])
        assert one.draw(*low, draw)[0] >= one.draw(*high, draw)[0]


def test_satisfaction_and_habit_matter() -> None:
    one = model(-1.0, 0.0, 1.0)
    low, high = (one.expected_days(*of_all(one, level)) for level in (0.4, 0.8))
    assert (low - high > 1.0).all()
    assert (np.diff(low) < -0.3).all()


def test_a_model_without_influence_ignores_satisfaction() -> None:
    one = model(0.3, influence=0.0)
    np.testing.assert_array_equal(
        one.distribution(*of_all(one, 0.0)), one.distribution(*of_all(one, 1.0))
    )


def test_draws_follow_the_distribution() -> None:
    n = 40_000
    one = model(-1.0, 1.5)
    users, level = np.repeat([0, 1], n), np.full(2 * n, 0.6)
    days = one.draw(users, level, np.random.default_rng(0).random(2 * n))
    assert days.dtype == np.int64
    for user in (0, 1):
        found = np.bincount(days[users == user], minlength=11)[1:] / n
        expected = one.distribution(np.array([user]), np.array([0.6]))[0]
        np.testing.assert_allclose(found, expected, atol=4 * np.sqrt(0.25 / n))


def test_the_inverse_is_exact_at_the_edges() -> None:
    one = model(0.2)
    reached = one.distribution(*of_all(one, 0.7)).cumsum()
    for day, edge in enumerate(reached[:-1], start=1):
        around = np.array([np.nextafter(edge, 0), edge, np.nextafter(edge, 1)])
        users = np.zeros(3, dtype=np.int64)
        assert one.draw(users, np.full(3, 0.7), around).tolist() == [day, day, day + 1]


def test_the_smallest_and_largest_uniforms_stay_inside() -> None:
    edges = np.array([np.nextafter(0.0, 1), np.nextafter(1.0, 0)])
    for max_days in range(1, 40):
        for level in (0.0, 0.31, 1.0):
            one = model(0.0, bias=-20.0, max_days=max_days)
            days = one.draw(np.zeros(2, dtype=np.int64), np.full(2, level), edges)
            assert days.tolist() == [1, max_days]


def test_a_row_does_not_depend_on_its_batch() -> None:
    one, rng = model(*np.linspace(-2, 2, 50)), np.random.default_rng(0)
    users, level, draw = rng.integers(0, 50, 200), rng.random(200), rng.random(200)
    days = one.draw(users, level, draw)
    for row in range(0, 200, 20):
        part = slice(row, row + 1)
        assert one.draw(users[part], level[part], draw[part]).tolist() == days[part].tolist()


@pytest.mark.parametrize("world", ["small", "small_rand"])
def test_habit_is_the_standardised_activity_of_the_log(world: str, request) -> None:
    dataset = request.getfixturevalue(world)
    one = ReturnModel.of(dataset.training)
    assert one.habit.shape == (dataset.n_users,)
    assert one.habit.dtype == np.float32
    train = one.habit[dataset.train_users].astype(np.float64)
    assert train.mean() == pytest.approx(0, abs=1e-5)
    assert train.std() == pytest.approx(1, abs=1e-5)
    rows = np.bincount(dataset.log.users, minlength=dataset.n_users)
    order = np.argsort(rows, kind="stable")
    assert (np.diff(one.habit[order]) >= 0).all()
    assert (one.habit[rows == rows.max()] == one.habit.max()).all()


def test_users_whose_logs_are_equally_long_have_no_habit(small: Dataset) -> None:
    n, items = small.n_users, np.tile(np.arange(40, dtype=np.int32), small.n_users)
    users = np.repeat(np.arange(n, dtype=np.int32), 40)
    log = WatchLog(users, items, np.ones(len(users), dtype=np.float32))
    one = ReturnModel.of(dataclasses.replace(small, log=log, truth=None).training)
    np.testing.assert_allclose(one.habit, 0, atol=1e-6)


def test_the_model_does_not_depend_on_test_rows(small: Dataset, small_rand: Dataset) -> None:
    rng = np.random.default_rng(0)
    users = np.repeat(small.test_users, 3)
    items = np.tile(np.arange(3, dtype=np.int32), len(small.test_users))
    watched = WatchLog(users, items, rng.random(len(users), dtype=np.float32))
    users = np.repeat(small_rand.test_users, 2)
    items = rng.integers(0, small_rand.n_items, len(users)).astype(np.int32)
    clicked = BehaviourLog(users, items, rng.integers(0, 128, len(users), np.uint8))
    for dataset, test in ((small, watched), (small_rand, clicked)):
        other = with_test_rows(dataset, test)
        assert other.fingerprint != dataset.fingerprint
        one, two = (ReturnModel.of(source.training) for source in (dataset, other))
        np.testing.assert_array_equal(one.habit, two.habit)


def test_the_model_can_be_changed_but_not_its_habits() -> None:
    one = model(0.5)
    other = dataclasses.replace(one, influence=0.1, max_days=3)
    assert other.distribution(*of_all(other, 1.0)).shape == (1, 3)
    with pytest.raises(ValueError, match="read-only"):
        one.habit[0] = 0.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"influence": -0.1}, "influence must be at least 0"),
        ({"influence": "3"}, "influence must be a finite number"),
        ({"bias": np.nan}, "bias must be a finite number"),
        ({"habit_weight": np.inf}, "habit_weight must be a finite number"),
        ({"habit_weight": True}, "habit_weight must be a finite number"),
        ({"max_days": 0}, "max_days must be an integer of at least 1"),
        ({"max_days": 2.0}, "max_days must be an integer of at least 1"),
        ({"max_days": True}, "max_days must be an integer of at least 1"),
    ],
)
def test_bad_options(options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        model(0.0, **options)


@pytest.mark.parametrize("habit", [np.zeros((2, 2)), np.array([0.0, np.nan])])
def test_bad_habits(habit: np.ndarray) -> None:
    with pytest.raises(ConfigError, match="habit must hold one finite number per user"):
        ReturnModel(habit.astype(np.float32))


@pytest.mark.parametrize("level", [-0.1, 1.1, np.nan])
def test_bad_satisfaction(level: float) -> None:
    with pytest.raises(ConfigError, match=r"satisfaction must lie in \[0, 1\]"):
        AVERAGE.probability(*of_all(AVERAGE, level))


def test_satisfaction_may_be_off_by_rounding_but_must_fit_the_users() -> None:
    assert AVERAGE.probability(*of_all(AVERAGE, 1.0 + 1e-7))[0] == pytest.approx(0.5)
    with pytest.raises(ConfigError, match="satisfaction must have the users' shape"):
        AVERAGE.distribution(np.zeros(2, dtype=np.int64), np.zeros(1))


@pytest.mark.parametrize("uniforms", [[0.0], [1.0], [np.nan], [0.5, 0.5]])
def test_bad_uniforms(uniforms: list[float]) -> None:
    with pytest.raises(ConfigError, match=r"one number in \(0, 1\) for each of 1 users"):
        AVERAGE.draw(*of_all(AVERAGE, 0.5), np.array(uniforms))
