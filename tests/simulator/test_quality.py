from __future__ import annotations

import numpy as np
import pytest
from scipy.special import expit

from kuaisim_gym.data import LabelLog, WatchLog
from kuaisim_gym.errors import ConfigError
from kuaisim_gym.simulator.quality import (
    auc,
    calibration_error,
    last_rows,
    log_loss,
    platt,
    quality,
    rank_users,
    ranking_quality,
)


def test_auc_by_hand() -> None:
    score = np.array([0.1, 0.4, 0.35, 0.8])
    positive = np.array([False, False, True, True])
    assert auc(score, positive) == 0.75
    assert auc(-score, positive) == 0.25
    assert auc(np.zeros(4), positive) == 0.5
    assert np.isnan(auc(score, np.ones(4, bool)))


def test_auc_within_users_ignores_who_clicks_more() -> None:
    users = np.array([2, 0, 1, 0, 7, 1, 2, 9])
    score = np.array([0.5, 0.9, 0.2, 0.8, 0.3, 0.1, 0.5, 0.1])
    positive = np.array([True, True, False, False, True, True, True, False])
    judged = rank_users(score, positive, users)
    assert judged.users.tolist() == [0, 1]  # the others have positives, or negatives, alone
    assert judged.auc.tolist() == [1.0, 0.0]
    assert judged.gauc == 0.5
    assert judged.left_out == 3
    assert judged.rate.tolist() == [0.5, 0.5]
    assert judged.top_quarter.tolist() == [1.0, 0.0]  # a quarter of two rows is one
    assert rank_users(score, positive, users, least_rows=3).left_out == 5
    assert np.isnan(rank_users(score, positive, users, least_rows=3).gauc)


def test_measures_of_a_user_by_hand() -> None:
    # Of ten rows, positives score 10, 7 and 1: of the 7 negatives 9, 8, 6, 5, 4, 3 and 2 they
    # beat 7, 5 and none. The two best of them, of which one is positive, are the top quarter.
    positive = np.array([1, 0, 0, 1, 0, 0, 0, 0, 0, 1], dtype=bool)
    judged = rank_users(np.arange(10, 0, -1.0), positive, np.full(10, 3))
    assert judged.auc.tolist() == [12 / 21]
    assert judged.top_quarter.tolist() == [0.5]


def test_equal_scores_share_their_places() -> None:
    positive, users = np.array([1, 1] + [0] * 10, dtype=bool), np.ones(12, int)
    equal = rank_users(np.zeros(12), positive, users)
    assert equal.top_quarter.tolist() == [pytest.approx(1 / 6)]
    assert equal.auc.tolist() == [0.5]
    # Two of the three places go to four equal rows, one of which is positive.
    best = rank_users(np.array([2.0, 1, 1, 1, 1] + [0] * 7), positive, users).top_quarter
    assert best.tolist() == [pytest.approx((1 + 2 / 4) / 3)]


def test_the_order_of_rows_does_not_matter() -> None:
    rng = np.random.default_rng(2)
    users, positive = np.repeat(np.arange(20), 12), rng.integers(0, 2, 240) == 1
    scores, order = rng.normal(size=240), rng.permutation(240)
    first = rank_users(scores, positive, users)
    second = rank_users(scores[order], positive[order], users[order])
    for one, other in zip(first, second, strict=True):
        np.testing.assert_allclose(one, other)


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


def labels(users: list[int], label: list[int]) -> LabelLog:
    items = np.arange(len(users), dtype=np.int32)
    return LabelLog(np.array(users, np.int32), items, np.array(label, np.uint8))


def test_a_ranking_is_judged_within_users_by_hand() -> None:
    rows = labels([0] * 4 + [2] * 4 + [3] * 4 + [4] * 2, [1, 0, 0, 1, 0, 0, 1, 0, 1, 1, 1, 1, 0, 1])
    scores = np.array([4.0, 3, 2, 1, 7, 7, 7, 7, 1, 2, 3, 4, 2, 1])
    result = ranking_quality(rows, scores, least_rows=4)
    # User 0: of four pairs the first positive wins both, the second none. User 2: all ties.
    # User 3 likes everything, user 4 has two rows.
    assert result["users"] == 2.0
    assert result["left_out"] == 2.0
    assert result["gauc"] == 0.5
    assert result["top_quarter_rate"] == pytest.approx((1.0 + 0.25) / 2)
    assert result["rate"] == pytest.approx((0.5 + 0.25) / 2)
    half = 1.96 * np.std([1.0, 0.25]) / np.sqrt(2)
    assert result["top_quarter_rate_high"] - result["top_quarter_rate"] == pytest.approx(half)
    assert result["gauc_low"] == result["gauc_high"] == 0.5


def test_a_ranking_s_quality_is_that_of_the_users_one_by_one() -> None:
    rng = np.random.default_rng(0)
    users = np.sort(rng.integers(0, 30, 900))
    rows = labels(users.tolist(), rng.integers(0, 2, 900).tolist())
    scores = rng.integers(0, 6, 900) / 2.0
    aucs, tops = [], []
    for user in np.unique(users):
        mine = users == user
        answers, score = rows.label[mine] == 1, scores[mine]
        pairs = np.sign(score[answers][:, None] - score[~answers][None, :])
        aucs.append((1.0 + pairs.mean()) / 2.0)
        draws = []
        for _ in range(400):  # ties broken at random
            order = np.lexsort((rng.random(mine.sum()), -score))
            draws.append(answers[order[: round(mine.sum() / 4)]].mean())
        tops.append(np.mean(draws))
    result = ranking_quality(rows, scores)
    assert result["users"] == 30.0
    assert result["gauc"] == pytest.approx(np.mean(aucs), abs=1e-12)
    assert result["top_quarter_rate"] == pytest.approx(np.mean(tops), abs=0.01)


def test_a_ranking_that_no_user_can_judge_has_no_quality() -> None:
    result = ranking_quality(labels([0, 0], [1, 1]), np.zeros(2))
    assert result["users"] == 0.0
    assert result["left_out"] == 1.0
    assert np.isnan(result["gauc"])
    with pytest.raises(ConfigError, match="finite numbers, one a row"):
        ranking_quality(labels([0, 0], [1, 1]), np.zeros(3))
