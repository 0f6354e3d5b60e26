from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from dsrm_agents import unbiased_quality
from kuaisim_gym.data import BehaviourLog, TrainingData

N_USERS, N_ITEMS = 400, 200


@pytest.fixture
def planted(small_rand):
    """Training data with given clicks: ``rows`` users each answered every item or a few of them."""

    def make(chance: np.ndarray, rows: int, seed: int = 0) -> TrainingData:
        rng = np.random.default_rng(seed)
        users = np.repeat(np.arange(N_USERS, dtype=np.int32), rows)
        items = np.concatenate(
            [rng.choice(N_ITEMS, rows, replace=False) for _ in range(N_USERS)]
        ).astype(np.int32)
        clicks = (rng.random(len(items)) < chance[items]).astype(np.uint8)
        log = BehaviourLog(users, items, clicks)
        return dataclasses.replace(
            small_rand.training, n_users=N_USERS, n_items=N_ITEMS, n_all_items=N_ITEMS,
            randomised=log,
        )  # fmt: skip

    return make


def standard(values: np.ndarray) -> np.ndarray:
    return (values - values.mean()) / values.std()


def test_many_rows_decide_and_the_log_is_corrected(planted) -> None:
    rng = np.random.default_rng(1)
    truth = rng.normal(size=N_ITEMS)
    logged = truth + rng.normal(size=N_ITEMS)  # half of its variance is distortion
    found = unbiased_quality(planted(0.5 + 0.1 * truth.clip(-4, 4), rows=150), logged)
    assert found.dtype == np.float32
    assert abs(found.mean()) < 1e-5
    assert abs(found.std() - 1) < 1e-5
    assert np.corrcoef(found, truth)[0, 1] > 0.9 > np.corrcoef(logged, truth)[0, 1] + 0.1


@pytest.mark.parametrize("rows", [2, 4, 50])
def test_what_chance_explains_moves_no_item(planted, rows: int) -> None:
    # The log tells all there is: rows are noise around it, however few an item has.
    logged = standard(np.random.default_rng(2).normal(size=N_ITEMS))
    found = unbiased_quality(planted(0.5 + 0.1 * logged.clip(-4, 4), rows), logged)
    assert np.corrcoef(found, logged)[0, 1] > 0.9


def test_few_rows_do_better_than_the_log_or_the_rows_alone(planted) -> None:
    rng = np.random.default_rng(3)
    truth = rng.normal(size=N_ITEMS)
    logged = truth + rng.normal(size=N_ITEMS)
    data = planted(0.5 + 0.1 * truth.clip(-4, 4), rows=10)
    rows = data.randomised
    mean = np.bincount(rows.items, rows.response, N_ITEMS) / np.bincount(rows.items)
    close = np.corrcoef([truth, unbiased_quality(data, logged), logged, mean])[0, 1:]
    assert close[0] > max(close[1], close[2])


def test_without_randomised_rows_of_the_catalogue_there_is_none(planted) -> None:
    data = planted(np.full(N_ITEMS, 0.5), rows=2)
    logged = np.zeros(N_ITEMS)
    assert unbiased_quality(dataclasses.replace(data, randomised=None), logged) is None
    beyond = dataclasses.replace(data.randomised, items=data.randomised.items + np.int32(N_ITEMS))
    data = dataclasses.replace(data, randomised=beyond, n_all_items=2 * N_ITEMS)
    assert unbiased_quality(data, logged) is None
