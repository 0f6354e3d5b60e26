"""The response model of watch ratios of which a sample and all likes are known."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import expit

from kuaisim_gym.data import WatchLog, WatchSample
from kuaisim_gym.simulator.fit import LINKS, _Problem
from kuaisim_gym.simulator.watch import fit_watch_model

N_USERS, N_ITEMS = 120, 150


@pytest.fixture(scope="module")
def world() -> tuple[np.ndarray, np.ndarray]:
    """Watch ratios of all pairs, by effects and a taste that likes tell of too; sampled cells."""
    rng = np.random.default_rng(0)
    taste = rng.normal(size=(N_USERS, 2)) @ rng.normal(size=(2, N_ITEMS))
    level = rng.normal(0, 0.6, N_USERS)[:, None] + rng.normal(0, 1.0, N_ITEMS) + 0.6 * taste
    ratio = 2.6 * expit(level + rng.normal(0, 0.6, level.shape) - 0.8)
    return ratio, rng.random(ratio.shape) < 0.25


def table_of(ratio: np.ndarray, sampled: np.ndarray) -> WatchSample:
    users, items = np.nonzero(sampled | (ratio >= 2.0))
    watched = ratio[users, items]
    return WatchSample(users.astype(np.int32), items.astype(np.int32), watched.astype(np.float32))


def test_only_rows_below_a_like_are_a_sample(world) -> None:
    table = table_of(*world)
    np.testing.assert_array_equal(table.is_sample, table.watch_ratio < 2.0)
    assert WatchLog(*table.columns.values()).is_sample.all()
    assert (table.response[~table.is_sample] == 1.0).all()


def test_the_matrix_of_likes_improves_on_effects_in_pairs_that_were_not_sampled(world) -> None:
    ratio, sampled = world
    table = table_of(ratio, sampled)
    unknown = ~sampled & (ratio < 2.0)
    answers = np.minimum(ratio, 1.0)
    errors = []
    for likes_known in (False, True):
        model = fit_watch_model(table, N_ITEMS, (N_USERS, N_ITEMS), likes_known)
        predicted = model.probability(np.arange(N_USERS)[:, None], np.arange(N_ITEMS)[None])
        errors.append(float(((predicted - answers)[unknown] ** 2).mean()))
    assert errors[1] < 0.9 * errors[0]


def test_without_likes_the_effects_are_the_factor_model_s(world) -> None:
    table = table_of(*world)
    model = fit_watch_model(table, N_ITEMS, (N_USERS, N_ITEMS), likes_known=False)
    designs = {"user": None, "item": None}
    rows = table.take(table.is_sample)
    problem = _Problem(rows, 0, (N_USERS, N_ITEMS), LINKS["identity"], designs, None)
    fit = problem.alternate(problem.start(), 30)
    users, items = (array.ravel() for array in np.indices((N_USERS, N_ITEMS)))
    expected = fit.mean + fit.theta["user"][users, 0] + fit.theta["item"][items, 0]
    np.testing.assert_allclose(model.logits(users, items)[:, 0], expected, atol=0.01)


def test_answers_of_sampled_likes_change_no_prediction(world) -> None:
    ratio, sampled = world
    one = fit_watch_model(table_of(ratio, sampled), N_ITEMS, (N_USERS, N_ITEMS))
    higher = np.where(ratio >= 2.0, ratio * 3.0, ratio)
    two = fit_watch_model(table_of(higher, sampled), N_ITEMS, (N_USERS, N_ITEMS))
    for name in ("mean", "user_effect", "item_effect", "user_factors", "item_factors"):
        np.testing.assert_array_equal(getattr(one, name), getattr(two, name))


def test_users_who_were_not_asked_have_no_effect(world) -> None:
    model = fit_watch_model(table_of(*world), N_ITEMS, (N_USERS + 5, N_ITEMS + 7))
    assert not model.user_effect[0, N_USERS:].any()
    assert not model.item_factors[N_ITEMS:].any()
