from __future__ import annotations

import numpy as np
import pytest
from scipy.special import expit

from kuaisim_gym.data import WatchLog
from kuaisim_gym.simulator.quality import (
    auc,
    calibration_error,
    last_rows,
    log_loss,
    per_user_auc,
    platt,
    quality,
)


def test_auc_by_hand() -> None:
    score = np.array([0.1, 0.4, 0.35, 0.8])
    positive = np.array([False, False, True, True])
    assert auc(score, positive) == 0.75
    assert auc(-score, positive) == 0.25
    assert auc(np.zeros(4), positive) == 0.5
    assert np.isnan(auc(score, np.ones(4, bool)))


def test_auc_within_users_ignores_who_clicks_more() -> None:
    users = np.array([0, 0, 1, 1, 2, 2], np.int32)
    score = np.array([0.9, 0.8, 0.2, 0.1, 0.5, 0.5])
    positive = np.array([True, False, False, True, True, True])
    assert per_user_auc(score, positive, users) == 0.5  # (1 + 0) / 2; the third has no negative


def test_log_loss_and_calibration_error_by_hand() -> None:
    assert log_loss(np.array([0.5, 0.5]), np.array([1.0, 0.0])) == pytest.approx(np.log(2))
    assert log_loss(np.array([1.0]), np.array([0.0])) == pytest.approx(-np.log(1e-6))
    probability = np.repeat([0.2, 0.8], 500)
    response = np.concatenate([np.arange(500) < 150, np.arange(500) < 400]).astype(float)
    rng = np.random.default_rng(0)
    shuffled = np.concatenate([rng.permutation(500), 500 + rng.permutation(500)])
    error = calibration_error(probability, response[shuffled])
    # Group one is off by .1; group two is true, and its ten bins differ by chance alone.
    assert 0.05 <= error < 0.08


def test_platt_finds_the_scale_and_shift_that_were_planted() -> None:
    rng = np.random.default_rng(1)
    logits = rng.normal(0, 2, 50_000)
    answers = (rng.random(50_000) < expit(0.5 * logits - 1.0)).astype(float)
    scale, shift = platt(logits, answers)
    assert scale == pytest.approx(0.5, abs=0.02)
    assert shift == pytest.approx(-1.0, abs=0.03)


def test_platt_survives_answers_that_are_all_alike() -> None:
    scale, shift = platt(np.array([0.3, 2.0, -1.0]), np.zeros(3))
    assert np.isfinite([scale, shift]).all()
    assert scale > 0
    assert shift < 0


def test_the_last_tenth_of_each_user_is_held_out() -> None:
    users = np.repeat([0, 1, 2], [20, 9, 10]).astype(np.int32)
    table = WatchLog(users, np.zeros(39, np.int32), np.ones(39, np.float32))
    assert np.flatnonzero(last_rows(table)).tolist() == [18, 19, 38]


def test_quality_names_what_it_measures() -> None:
    users = np.zeros(4, np.int32)
    found = quality(np.array([0.1, 0.4, 0.35, 0.8]), np.array([0.0, 0.0, 1.0, 1.0]), users)
    assert found["auc"] == found["user_auc"] == 0.75
    assert found["rate"] == 0.5
    assert found["rows"] == 4
    assert found["mse"] == pytest.approx((0.01 + 0.16 + 0.65**2 + 0.04) / 4)
