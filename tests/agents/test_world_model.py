"""The ensemble that DORL asks what an answer will be, and how sure that is."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from dsrm_agents.baselines.world_model import LEAST_LOG_VARIANCE, WorldModel, fit_world_model
from kuaisim_gym.data import TrainingData, WatchLog
from kuaisim_gym.errors import ConfigError


@pytest.fixture(scope="module")
def fitted(small) -> WorldModel:
    return fit_world_model(small.training)


def with_log(data: TrainingData, users, items, response) -> TrainingData:
    log = WatchLog(
        np.asarray(users, np.int32), np.asarray(items, np.int32), np.asarray(response, np.float32)
    )
    return dataclasses.replace(data, train_log=log)


def test_the_prediction_is_the_mean_of_the_members_and_the_variance_the_largest() -> None:
    users = np.array([[[0.1, -1.0, 1.0, 2.0], [0.3, 0.5, 0.0, 1.0]]], dtype=np.float32)
    items = np.array([[[0.2, 0.4, 0.1, 0.1], [-0.2, 0.0, 5.0, -0.2]]], dtype=np.float32)
    model = WorldModel(users, items, np.array([[0.1, -1.0], [0.5, -2.0]], dtype=np.float32))
    mean, uncertainty = model.predict(np.array([0]), np.array([[0, 0]]))
    members = [0.1 + 0.1 + 0.2 + (0.1 + 0.2), 0.5 + 0.3 - 0.2 + (0.0 - 0.2)]
    np.testing.assert_allclose(mean, np.full((1, 2), np.mean(members)), rtol=1e-6)
    np.testing.assert_allclose(uncertainty, np.full((1, 2), np.exp(-1.5)), rtol=1e-6)
    sure = WorldModel(users - 50, 0 * items, model.level)
    mean, uncertainty = sure.predict(np.array([0]), np.array([0]))
    assert mean == 0.0
    assert uncertainty == np.exp(np.float32(LEAST_LOG_VARIANCE))


@pytest.mark.parametrize("name", ["small", "small_rand"])
def test_held_out_answers_are_foreseen_better_than_by_their_mean(request, name: str) -> None:
    data = request.getfixturevalue(name).training
    held_out = np.random.default_rng(0).random(len(data.train_log)) < 0.1
    part = dataclasses.replace(data, train_log=data.train_log.take(~held_out))
    rows = data.train_log.take(held_out)
    mean, uncertainty = fit_world_model(part).predict(rows.users, rows.items)
    error = (mean - rows.response) ** 2
    assert error.mean() < 0.9 * rows.response.var()
    assert mean.dtype == uncertainty.dtype == np.float32
    sure = uncertainty < np.median(uncertainty)
    assert error[sure].mean() < error[~sure].mean()


def test_few_rows_and_noisy_answers_are_uncertain(small) -> None:
    rng = np.random.default_rng(0)
    frequent, rare, noisy = np.arange(0, 20), np.arange(20, 40), np.arange(40, 60)
    items = np.concatenate([np.repeat(frequent, 300), np.repeat(rare, 2), np.repeat(noisy, 300)])
    users = rng.choice(small.training.train_users, len(items))
    spread = np.where(np.isin(items, noisy), 0.3, 0.1)
    response = np.clip(0.5 + spread * rng.choice([-1, 1], len(items)), 0, 1)
    model = fit_world_model(with_log(small.training, users, items, response))
    someone = small.training.train_users[:50, None]
    sure, few, swaying = (
        model.predict(someone, group)[1].mean() for group in (frequent, rare, noisy)
    )
    assert sure == pytest.approx(0.01, abs=0.006)
    assert few > 1.3 * sure
    assert swaying > 4 * sure


def test_who_has_no_rows_is_the_average_of_those_who_have(small, fitted) -> None:
    stranger = np.setdiff1d(np.arange(small.n_users), small.training.train_log.users)
    known = np.unique(small.training.train_log.users)
    assert len(stranger)
    average = fitted.users[known].mean(axis=0)
    for one in fitted.users[stranger]:
        np.testing.assert_allclose(one, average, atol=1e-6)


def test_the_seed_decides_and_members_differ(small, fitted) -> None:
    again, other = (fit_world_model(small.training, seed=seed) for seed in (0, 1))
    assert again.fingerprint == fitted.fingerprint != other.fingerprint
    assert fitted.level.shape == (5, 2)
    assert fitted.items[:, :, 1].std(axis=1).min() > 0
    with pytest.raises(ConfigError, match="members must be an integer of at least 1"):
        fit_world_model(small.training, members=0)
