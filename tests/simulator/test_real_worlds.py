"""Simulators of the real worlds, and the law of session lengths in them."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from dsrm_agents import evaluate, make_vec_env
from dsrm_agents.baselines.reference import make_reference
from kuaisim_gym.data import Dataset
from kuaisim_gym.simulator import build_simulator, load_catalogue
from kuaisim_gym.simulator.build import assess
from kuaisim_gym.simulator.quality import rank_users, ranking_quality
from kuaisim_gym.simulator.watch import fit_watch_model

ENV = "Recommendation-Fair-v0"
POOL_SESSIONS = {"max_len": 20, "slate_size": 2}
REAL = {"like_world": {}, "watch_world": {}, "click_world": {}, "pool_world": POOL_SESSIONS}
WORLDS: dict[str, dict[str, int]] = {"world": {}, "rand_world": {}, **REAL}


def played(dataset: Dataset, name: str, **options: Any) -> dict[str, float]:
    """Metrics of a reference row's sessions, and what the law makes of their means."""
    env = make_vec_env(ENV, 97, "test", seed=1, dataset=dataset, action_type="slate", **options)
    metrics = env.batch.summarise(evaluate(make_reference(name, env.batch), env, sessions=970))
    law = (env.batch.config.max_len - 1) / (2.0 - metrics["r_each"] + metrics["q"]) + 0.5
    return metrics | {"law": law}


def test_every_answer_of_the_likes_is_looked_up(like_world) -> None:
    simulator = build_simulator(like_world, "test")
    assert simulator.observed_share == 1.0
    test = like_world.test
    rows = np.random.default_rng(0).choice(len(test), 2000)
    answers = simulator.model.probability(test.users[rows], test.items[rows])
    np.testing.assert_array_equal(answers, test.response[rows])


@pytest.mark.parametrize("name", ["random", "popularity", "quality+quota"])
@pytest.mark.parametrize("source", WORLDS)
def test_mean_session_length_follows_from_the_answers(source: str, name: str, request) -> None:
    """What the law leaves out is a last step's overshoot: its standard error is below .01."""
    metrics = played(request.getfixturevalue(source), name, **WORLDS[source])
    assert metrics["len"] == pytest.approx(metrics["law"], abs=0.25)
    # The last slates of a pool are what is left of it.
    penalty_rate = {"popularity": 1.0, "quality+quota": 0.0}.get(name, metrics["q"])
    assert metrics["q"] == pytest.approx(penalty_rate, abs=0.01 if source == "pool_world" else 0)
    if source == "pool_world" and name != "popularity":
        assert 0.2 < metrics["r_each"] < 0.4  # of the random log: .22


@pytest.mark.parametrize(
    ("name", "length", "reward"), [("random+quota", 15.47, 0.069), ("quality+quota", 16.46, 0.171)]
)
def test_likes_give_lengths_known_from_an_independent_program(
    name: str, length: float, reward: float, like_world
) -> None:
    """971 users there, greedy slates of five popular and five other items."""
    metrics = played(like_world, name)
    assert metrics["len"] == pytest.approx(metrics["law"], abs=0.25)
    assert metrics["len"] == pytest.approx(length, abs=0.15)
    assert metrics["r_each"] == pytest.approx(reward, abs=0.015)
    assert metrics["q"] == 0.0


def test_an_environment_plays_the_likes(like_world) -> None:
    env = gym.make(ENV, dataset=like_world, split="test")
    _, info = env.reset(seed=3)
    assert "kuairec-like (real)" in env.unwrapped.world
    over = False
    while not over:
        _, _, terminated, truncated, info = env.step(env.action_space.sample())
        assert set(info["slate_responses"].tolist()) <= {0.0, 1.0}
        over = terminated or truncated


@pytest.mark.parametrize("seed", range(3))
def test_likes_improve_on_effects_of_the_watch_ratios(seed: int, watch_world) -> None:
    test, size = watch_world.test, (watch_world.n_users, watch_world.n_all_items)
    held_out = test.is_sample & (np.random.default_rng(seed).random(len(test)) < 0.1)
    fitted, check = test.take(~held_out), test.take(held_out)
    errors = []
    for likes_known in (False, True):
        model = fit_watch_model(fitted, watch_world.n_items, size, likes_known)
        predicted = model.probability(check.users, check.items)
        errors.append(float(np.mean((predicted - check.response) ** 2)))
    # Of the cells that the list of likes does not answer; of all sampled ones it is below .93.
    assert errors[1] < 0.97 * errors[0]


def test_the_model_of_clicks_ranks_above_item_means_within_users(click_world) -> None:
    measured = assess(click_world, "test").metrics["positive"]
    rows = click_world.test.merged(click_world.randomised)
    held_out = np.random.default_rng(0).random(len(rows)) < 0.1  # as the assessment's
    fitted, check = rows.take(~held_out), rows.take(held_out)
    n_items = click_world.n_items
    shown = np.bincount(fitted.items, minlength=n_items)
    clicked = np.bincount(fitted.items, fitted.response, minlength=n_items)
    rate = (clicked + 5.0 * fitted.response.mean()) / (shown + 5.0)
    means = rank_users(rate[check.items], check.label == 1, check.users).gauc
    assert measured["rows"] == len(check)
    assert measured["user_auc"] > means + 0.01
    assert measured["calibration_error"] < 0.02
    simulator = build_simulator(click_world, "test")
    assert simulator.observed_share == pytest.approx(0.0073, abs=0.0005)


def test_the_log_s_own_model_ranks_real_labels_above_counts(click_world) -> None:
    test, catalogue = click_world.test, load_catalogue(click_world)
    model = build_simulator(click_world, "train").model
    counts = ranking_quality(test, catalogue.exposures[test.items].astype(float))
    taste = ranking_quality(test, model.probability(test.users, test.items))
    assert counts["gauc"] == pytest.approx(0.579, abs=0.006)  # of an independent program
    assert taste["gauc_low"] > counts["gauc_high"]
    assert taste["top_quarter_rate"] > counts["top_quarter_rate"]


def test_pools_answer_with_rows_alone(pool_world) -> None:
    options = {"dataset": pool_world, "action_type": "slate", "stochastic_response": False}
    env = make_vec_env(ENV, 50, "test", seed=1, **options, **POOL_SESSIONS)
    sessions = evaluate(make_reference("popularity", env.batch), env, sessions=50)
    shown = sessions.slates >= 0
    assert set(np.unique(sessions.responses[shown]).tolist()) <= {0.0, 1.0}
    assert (sessions.length < 20).all()
