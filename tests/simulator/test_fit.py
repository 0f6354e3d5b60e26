"""The factor model: its fit against closed forms, planted worlds and its own promises."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import expit

from kuaisim_gym.data import BehaviourLog, Features, Interactions, WatchLog
from kuaisim_gym.errors import CheckpointError
from kuaisim_gym.simulator.fit import LINKS, _Problem, fit_factor_model
from kuaisim_gym.simulator.response import FACTOR_ARRAYS, FactorModel
from kuaisim_gym.tensors import save_tensors

NONE = Features()


def grouped(users: np.ndarray, items: np.ndarray, **columns: np.ndarray) -> tuple[np.ndarray, ...]:
    order = np.argsort(users, kind="stable")
    return tuple(np.asarray(one)[order] for one in (users, items, *columns.values()))


def clicks(users, items, clicked) -> BehaviourLog:
    users, items, flags = grouped(users, items, flags=clicked.astype(np.uint8))
    return BehaviourLog(users.astype(np.int32), items.astype(np.int32), flags)


def watches(users, items, ratio) -> WatchLog:
    users, items, ratio = grouped(users, items, ratio=ratio)
    return WatchLog(users.astype(np.int32), items.astype(np.int32), ratio.astype(np.float32))


def planted(seed: int, rows: int, personal: float) -> tuple[Interactions, np.ndarray]:
    """Clicks of 300 users on 200 items; returns them and the true log-odds of every pair."""
    rng = np.random.default_rng(seed)
    level, quality = rng.normal(0, 0.8, 300), rng.normal(0, 0.8, 200)
    taste = rng.normal(0, 1, (300, 3)) @ rng.normal(0, 1, (3, 200))
    odds = -0.5 + level[:, None] + quality[None] + personal * taste / np.sqrt(3)
    users, items = rng.integers(0, 300, rows), rng.integers(0, 200, rows)
    return clicks(users, items, rng.random(rows) < expit(odds[users, items])), odds


def all_pairs(model: FactorModel, n_users: int, n_items: int) -> np.ndarray:
    return model.probability(np.arange(n_users)[:, None], np.arange(n_items)[None, :])


def test_effects_are_the_joint_ridge_solution() -> None:
    """Against the normal equations of mean, users and items, solved at once."""
    rng = np.random.default_rng(0)
    users, items = rng.integers(0, 6, 400), rng.integers(0, 5, 400)
    ratio = np.clip(0.5 + 0.1 * users - 0.05 * items + 0.05 * rng.standard_normal(400), 0, 1)
    log = watches(users, items, ratio)
    model = fit_factor_model(log, log, NONE, NONE, (6, 5))
    design = np.zeros((400, 11))
    design[np.arange(400), log.users] = 1
    design[np.arange(400), 6 + log.items] = 1
    link = LINKS["identity"]
    ridge = np.diag([link.user_ridge] * 6 + [link.item_ridge] * 5)
    centred = log.response - log.response.mean()
    theta = np.linalg.solve(design.T @ design + ridge, design.T @ centred)
    # Held-out loss stops the alternation early, so the two agree to a part of the effects' size.
    np.testing.assert_allclose(model.user_effect[0], theta[:6], atol=0.02)
    np.testing.assert_allclose(model.item_effect[0], theta[6:], atol=0.02)


def test_log_odds_are_recovered() -> None:
    log, odds = planted(1, 60_000, personal=0.0)
    model = fit_factor_model(log, log, NONE, NONE, (300, 200))
    error = np.abs(all_pairs(model, 300, 200) - expit(odds)).mean()
    assert error < 0.04
    assert model.logistic


def test_effects_on_log_odds_are_the_joint_regression_s() -> None:
    """Against a general minimiser: mean free, effects pulled to zero, and nothing else."""
    rng = np.random.default_rng(8)
    users, items = rng.choice(6, 500, p=[0.5, 0.3, 0.1, 0.05, 0.03, 0.02]), rng.integers(0, 5, 500)
    log = clicks(users, items, rng.random(500) < expit(-2.5 + 0.8 * users - 0.4 * items))
    link = LINKS["logistic"]
    problem = _Problem(log, 0, (6, 5), link, {"user": None, "item": None}, None)
    fit = problem.alternate(problem.start(), 60)
    ridge = np.r_[0.0, [link.user_ridge] * 6, [link.item_ridge] * 5]

    def objective(theta: np.ndarray) -> float:
        score = theta[0] + theta[1:7][log.users] + theta[7:][log.items]
        return np.logaddexp(0.0, score).sum() - log.response @ score + ridge @ theta**2 / 2

    expected = minimize(objective, np.zeros(12), tol=1e-9).x
    found = np.r_[fit.mean, fit.theta["user"][:, 0], fit.theta["item"][:, 0]]
    np.testing.assert_allclose(found, expected, atol=2e-3)


def test_factors_are_fitted_where_there_is_taste_and_only_there() -> None:
    log, odds = planted(2, 120_000, personal=1.0)
    model = fit_factor_model(log, log, NONE, NONE, (300, 200))
    assert model.user_factors.shape[1] > 0
    error = np.mean((all_pairs(model, 300, 200) - expit(odds)) ** 2)
    effects = np.mean(
        (expit(model.mean[0] + model.user_effect[0][:, None] + model.item_effect[0]) - expit(odds))
        ** 2
    )
    assert error < 0.5 * effects
    tasteless, _ = planted(3, 20_000, personal=0.0)
    plain = fit_factor_model(tasteless, tasteless, NONE, NONE, (300, 200))
    assert plain.user_factors.shape[1] == 0


def test_features_speak_for_users_and_items_without_rows() -> None:
    rng = np.random.default_rng(4)
    kind, genre = rng.integers(1, 3, 400), rng.integers(1, 4, (150, 1))
    users, items = rng.integers(0, 300, 30_000), rng.integers(0, 120, 30_000)
    odds = np.where(kind == 1, -1.0, 1.0)[users] + np.array([0, -1.0, 0.0, 1.0])[genre[items, 0]]
    log = clicks(users, items, rng.random(30_000) < expit(odds))
    user_features = Features({"kind": kind[:, None].astype(np.int32)}, {"kind": ("", "a", "b")})
    item_features = Features({"genre": genre.astype(np.int32)}, {"genre": ("", "x", "y", "z")})
    model = fit_factor_model(log, log, user_features, item_features, (400, 150))
    predicted = all_pairs(model, 400, 150)[300:, 120:]  # nobody and nothing of these was logged
    truth = expit(
        np.where(kind == 1, -1.0, 1.0)[300:, None]
        + np.array([0, -1.0, 0.0, 1.0])[genre[120:, 0]][None]
    )
    assert np.abs(predicted - truth).mean() < 0.06
    blind = fit_factor_model(log, log, NONE, NONE, (400, 150))
    assert np.abs(all_pairs(blind, 400, 150)[300:, 120:] - truth).mean() > 0.15


def test_every_behaviour_has_its_own_rate_and_shares_the_taste() -> None:
    rng = np.random.default_rng(5)
    taste = rng.normal(0, 1, (300, 2)) @ rng.normal(0, 1, (2, 200))
    users, items = rng.integers(0, 300, 120_000), rng.integers(0, 200, 120_000)
    flags = np.zeros(120_000, np.uint8)
    for behaviour, constant in enumerate((0.0, -1.0, -4.0)):
        yes = rng.random(120_000) < expit(constant + taste[users, items])
        flags |= yes.astype(np.uint8) << behaviour
    users, items, flags = grouped(users, items, flags=flags)
    log = BehaviourLog(users.astype(np.int32), items.astype(np.int32), flags)
    model = fit_factor_model(log, log, NONE, NONE, (300, 200))
    assert model.behaviours == BehaviourLog.behaviours
    feedback = model.feedback(log.users, log.items)
    assert feedback.shape == (120_000, 7)
    for behaviour in range(3):
        rate = log.behaviour(behaviour).mean()
        assert feedback[:, behaviour].mean() == pytest.approx(rate, rel=0.05)
        assert model.slope[behaviour] == pytest.approx(1.0, abs=0.35)
    assert feedback[:, 6].max() < 1e-3  # never happened
    np.testing.assert_array_equal(feedback[:, 0], model.probability(log.users, log.items))


def test_a_row_twice_counts_twice() -> None:
    users, items = np.array([0, 0, 1, 1]), np.array([0, 1, 0, 1])
    ratio = np.array([1.0, 0.2, 0.6, 0.4])
    twice = watches(np.r_[users, 0], np.r_[items, 0], np.r_[ratio, 1.0])
    once = watches(users, items, ratio)
    one = fit_factor_model(once, once, NONE, NONE, (2, 2))
    two = fit_factor_model(twice, twice, NONE, NONE, (2, 2))
    assert two.item_effect[0, 0] > one.item_effect[0, 0]


def test_rescaling_moves_the_log_odds() -> None:
    log, _ = planted(6, 20_000, personal=1.0)
    model = fit_factor_model(log, log, NONE, NONE, (300, 200))
    scale = np.linspace(0.5, 2, 7).astype(np.float32)
    shift = np.arange(7, dtype=np.float32)
    users, items = np.array([[3], [4]]), np.array([[5, 6, 7]])
    np.testing.assert_allclose(
        model.rescaled(scale, shift).logits(users, items),
        model.logits(users, items) * scale + shift,
        rtol=1e-4,
        atol=1e-4,
    )


def test_saved_models_answer_alike_and_torn_files_are_refused(tmp_path: Path) -> None:
    log, _ = planted(7, 20_000, personal=1.0)
    model = fit_factor_model(log, log, NONE, NONE, (300, 200))
    path = tmp_path / "model.safetensors"
    model.save(path)
    again = FactorModel.load(path)
    assert again.behaviours == model.behaviours
    np.testing.assert_array_equal(all_pairs(again, 300, 200), all_pairs(model, 300, 200))
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(CheckpointError, match="cannot be read"):
        FactorModel.load(path)
    with pytest.raises(CheckpointError, match="cannot be read as a factor model"):
        FactorModel.load(tmp_path / "absent")
    arrays = {name: getattr(model, name) for name in FACTOR_ARRAYS}
    save_tensors(path, "another-1", arrays, behaviours='["click"]', logistic="true")
    with pytest.raises(CheckpointError, match="not a factor model of this version.*'another-1'"):
        FactorModel.load(path)
