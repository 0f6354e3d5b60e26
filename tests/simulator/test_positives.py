"""The response model of a log of positives alone."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from scipy.special import expit

from kuaisim_gym.data import LabelLog, PositiveLog
from kuaisim_gym.errors import ConfigError, DataFormatError
from kuaisim_gym.simulator import build_simulator, load_catalogue
from kuaisim_gym.simulator import positives as module
from kuaisim_gym.simulator.build import assess
from kuaisim_gym.simulator.positives import (
    EXPOSURE_POWER,
    answers_behind,
    exposures_behind,
    fit_positive_model,
    with_taste,
)
from kuaisim_gym.simulator.quality import rank_users
from kuaisim_gym.simulator.response import FactorModel


def log_of(matrix: np.ndarray) -> PositiveLog:
    users, items = np.nonzero(matrix)
    return PositiveLog(users.astype(np.int32), items.astype(np.int32))


def two_tastes(n_users: int = 200, n_items: int = 60, contrast: float = 6.0) -> np.ndarray:
    """Positives of users who each like one half of the items ``contrast`` times as often."""
    rng = np.random.default_rng(0)
    popularity = rng.uniform(0.02, 0.15, n_items)
    same = (np.arange(n_users)[:, None] % 2) == (np.arange(n_items) % 2)
    return rng.random((n_users, n_items)) < popularity * np.where(same, contrast, 1.0) / 3.0


def test_one_side_is_the_weighted_ridge_regression_over_all_pairs() -> None:
    rng = np.random.default_rng(1)
    matrix = rng.random((30, 20)) < 0.2
    log, size, ridge = log_of(matrix), (30, 20), 3.0
    items = rng.normal(size=(20, 4))
    user_count, item_count = matrix.sum(axis=1), matrix.sum(axis=0)
    users = module._Factors(log, size).users(items, ridge, item_count.astype(float))
    for user in range(30):
        weight = user_count[user] * item_count / matrix.sum()  # of every pair, absent ones too
        target = np.divide(matrix[user], weight, out=np.zeros(20), where=weight > 0) - 1.0
        gram = (items.T * weight) @ items + ridge * np.eye(4)
        expected = np.linalg.solve(gram, items.T @ (weight * target))
        np.testing.assert_allclose(users[user], expected, atol=1e-9)


@pytest.mark.parametrize("rate", [0.05, 0.5])
def test_the_mean_probability_over_the_assumed_exposures_is_the_given_rate(rate: float) -> None:
    matrix = two_tastes()
    log = log_of(matrix)
    model = fit_positive_model(log, log, matrix.shape, rate)
    users, items = np.arange(200), np.arange(60)
    probability = model.probability(users[:, None], items[None])
    shown_users, shown_items = ((matrix.sum(axis=axis) + 0.5) ** EXPOSURE_POWER for axis in (1, 0))
    mean = shown_users @ probability @ shown_items / shown_users.sum() / shown_items.sum()
    assert mean == pytest.approx(rate, abs=1e-3)


def test_effects_are_half_the_logarithm_of_smoothed_counts() -> None:
    matrix = two_tastes()
    log = log_of(matrix)
    model = fit_positive_model(log, log, matrix.shape, 0.1)
    count = matrix.sum(axis=0)
    expected = 0.5 * np.log((count + 0.5) / (count.mean() + 0.5))
    np.testing.assert_allclose(model.item_effect[0], expected, atol=1e-6)
    assert model.mean.shape == (1,)
    assert model.logistic


def test_taste_is_found_where_there_is_some_and_not_where_there_is_none() -> None:
    matrix = two_tastes()
    model = fit_positive_model(log_of(matrix), log_of(matrix), matrix.shape, 0.1)
    users, items = np.nonzero(~matrix)
    liked = users % 2 == items % 2
    taste = np.einsum("nd,nd->n", model.user_factors[users], model.item_factors[items])
    assert rank_users(taste, liked, users).gauc > 0.75
    alike = two_tastes(contrast=1.0)
    plain = fit_positive_model(log_of(alike), log_of(alike), alike.shape, 0.1)
    assert plain.user_factors.shape == (200, 0)


def test_users_and_items_without_rows_are_answered_for() -> None:
    matrix = two_tastes()
    matrix[7], matrix[:, 3] = False, False
    model = fit_positive_model(log_of(matrix), log_of(matrix), matrix.shape, 0.1)
    probability = model.probability(np.arange(200)[:, None], np.arange(60)[None])
    assert np.isfinite(probability).all()
    assert probability[:, 3].max() < probability.mean()
    assert not model.user_factors[7].any()


@pytest.mark.parametrize("rows", [1, 2])
def test_a_log_of_a_row_or_two_is_fitted(rows: int) -> None:
    log = PositiveLog(np.zeros(rows, np.int32), np.arange(rows, dtype=np.int32))
    model = fit_positive_model(log, log, (2, 3), 0.1)
    probability = model.probability(np.arange(2)[:, None], np.arange(3)[None])
    assert ((probability > 0) & (probability < 1)).all()
    assert model.user_factors.shape == (2, 0)  # taste, of one user
    np.testing.assert_array_equal(probability[0, :rows], probability[0, 0])


def test_a_test_user_s_log_affects_that_user_alone(small_positive) -> None:
    dataset, user = small_positive, small_positive.test_users[0]
    other = dataset.log.users != user
    changed = dataclasses.replace(dataset, log=dataset.log.take(other))
    one, two = (build_simulator(data, "train").model for data in (dataset, changed))
    assert isinstance(one, FactorModel)
    assert isinstance(two, FactorModel)
    np.testing.assert_array_equal(one.item_factors, two.item_factors)
    np.testing.assert_array_equal(one.item_effect, two.item_effect)
    stays = np.arange(dataset.n_users) != user
    np.testing.assert_allclose(one.user_factors[stays], two.user_factors[stays], atol=1e-6)
    first, second = load_catalogue(dataset), load_catalogue(changed)
    np.testing.assert_array_equal(first.embedding, second.embedding)


def test_negatives_are_drawn_as_many_as_the_rate_demands_and_none_is_logged(
    small_positive,
) -> None:
    data = dataclasses.replace(small_positive, positive_rate=0.25).training
    rows = answers_behind(data, seed=1)
    assert isinstance(rows, LabelLog)
    rows.check("drawn", data.n_users, data.n_all_items)
    assert rows.response.mean() == pytest.approx(0.25, abs=1e-3)
    log = data.train_log
    logged = set(zip(log.users.tolist(), log.items.tolist(), strict=True))
    negative = rows.take(rows.label == 0)
    assert not logged & set(zip(negative.users.tolist(), negative.items.tolist(), strict=True))
    shown = np.zeros((data.n_users, data.n_all_items))
    shown[log.users, log.items] = 1.0
    counts = (shown.sum(axis=1), shown.sum(axis=0))
    weight = [np.where(count > 0, np.sqrt(count + 0.5), 0.0) for count in counts]
    expected = (np.outer(*weight) * (shown == 0)).sum(axis=0)
    drawn = np.bincount(negative.items, minlength=data.n_all_items)
    expected *= drawn.sum() / expected.sum()
    assert (np.abs(drawn - expected) < 5.0 * np.sqrt(expected + 1.0)).all()


def test_exposures_behind_a_log_are_its_rows_or_as_assumed(small, small_positive) -> None:
    data = small.training
    rows = np.bincount(data.train_log.items, minlength=data.n_all_items)
    np.testing.assert_array_equal(exposures_behind(data), rows)
    assert answers_behind(data) is data.train_log
    positive = small_positive.training
    shown = exposures_behind(positive)
    count = np.bincount(positive.train_log.items, minlength=positive.n_all_items)
    assert (shown >= count).all()
    assert shown.sum() == pytest.approx(len(positive.train_log) / positive.positive_rate, rel=0.05)


def test_labels_decide_how_much_of_the_log_s_taste_counts() -> None:
    matrix = two_tastes()
    taste = fit_positive_model(log_of(matrix), log_of(matrix), matrix.shape, 0.3)
    zero = np.zeros((1, 200), np.float32), np.zeros((1, 60), np.float32)
    none = np.zeros((200, 0), np.float32), np.zeros((60, 0), np.float32)
    flat = FactorModel(
        ("positive",), True, np.zeros(1, np.float32), np.ones(1, np.float32), *zero, *none
    )
    users, items = (array.ravel().astype(np.int32) for array in np.indices((200, 60)))
    product = np.einsum("nd,nd->n", taste.user_factors[users], taste.item_factors[items])
    rng = np.random.default_rng(2)
    for slope in (1.5, 0.0):
        label = (rng.random(len(users)) < expit(slope * product)).astype(np.uint8)
        model = with_taste(flat, taste, LabelLog(users, items, label))
        error = 2.0 / float(np.linalg.norm(product))  # of logistic regression at even odds
        found = float(model.slope[0]) if model.user_factors.size else 0.0
        assert found == pytest.approx(slope, abs=3.0 * error)
    assert with_taste(taste, taste, LabelLog(users, items, label)) is taste


@pytest.mark.parametrize("options", [{"calibration": "balanced"}, {"response_model": "sequential"}])
def test_what_needs_negatives_is_refused(small_positive, options: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match="a log of positives alone"):
        build_simulator(small_positive, "train", **options)


def test_nothing_is_assessed_without_negatives(small_positive) -> None:
    assessment = assess(small_positive, "train")
    assert assessment.metrics == {"positive": {}}
    assert assessment.scale.tolist() == [1.0]


@pytest.mark.parametrize("rate", [0.0, 1.0, float("nan")])
def test_a_rate_outside_its_range_is_refused(small_positive, rate: float) -> None:
    with pytest.raises(DataFormatError, match="positive_rate must lie in"):
        dataclasses.replace(small_positive, positive_rate=rate)


def test_the_rate_is_part_of_the_dataset_s_identity(small_positive) -> None:
    other = dataclasses.replace(small_positive, positive_rate=0.2)
    assert other.fingerprint != small_positive.fingerprint
    assert build_simulator(other, "train").model is not build_simulator(small_positive).model
