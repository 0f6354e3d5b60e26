from __future__ import annotations

import itertools
import pickle
import warnings

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env as gymnasium_check
from stable_baselines3.common.env_checker import check_env as sb3_check

import kuaisim_gym
from kuaisim_gym.errors import ConfigError, InvalidActionError, ResetNeededError

OPTIONS = list(
    itertools.product(
        kuaisim_gym.ENVIRONMENTS,
        ("state", "dict"),
        ("continuous", "slate"),
        ("imbalance", "popularity", "none"),
    )
)


@pytest.fixture
def worlds(small, small_rand) -> dict:
    return {"KuaiRec-Fair-v0": small, "KuaiRand-Fair-v0": small_rand}


@pytest.mark.parametrize(("env_id", "observation", "action", "abandonment"), OPTIONS)
def test_both_checkers_pass_without_a_warning(
    env_id, observation, action, abandonment, worlds
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env = gym.make(
            env_id,
            dataset=worlds[env_id],
            observation_type=observation,
            action_type=action,
            abandonment=abandonment,
        )
        gymnasium_check(env.unwrapped, skip_render_check=True)
        sb3_check(env)


@pytest.mark.parametrize(
    ("env_id", "name", "n_items"),
    [("KuaiRec-Fair-v0", "kuairec", 3327), ("KuaiRand-Fair-v0", "kuairand", 7583)],
)
def test_the_default_world_needs_no_download(env_id, name, n_items) -> None:
    env = gym.make(env_id)
    observation, info = env.reset(seed=1)
    assert observation.shape == (36,)
    assert env.action_space.shape == (33,)
    assert info["dataset"] == f"{name} (synthetic)"
    assert env.unwrapped.preference_slice == slice(0, 32)
    assert env.unwrapped.catalogue.n_items == n_items


def test_kuairand_answers_seven_behaviours(small_rand) -> None:
    env = gym.make("KuaiRand-Fair-v0", dataset=small_rand, reward_weights={"long_view": 1.0})
    env.reset(seed=2)
    _, reward, _, _, info = env.step(env.action_space.sample())
    assert info["feedback"].shape == (10, 7)
    assert set(np.unique(info["feedback"])) <= {0.0, 1.0}
    np.testing.assert_array_equal(info["responses"], info["feedback"][:, 1])
    assert reward == pytest.approx(info["feedback"][:, 1].mean())


def test_calibration_moves_rewards(small_rand) -> None:
    """Balanced classes lift the click probability of unbiased rows far above its rate."""
    rates = {}
    for calibration in ("balanced", "calibrated"):
        simulator = kuaisim_gym.build_simulator(small_rand, "test", calibration=calibration)
        test = small_rand.test
        rates[calibration] = simulator.model.probability(test.users, test.items).mean()
    assert rates["calibrated"] == pytest.approx(small_rand.test.response.mean(), abs=0.03)
    assert rates["balanced"] > rates["calibrated"] + 0.15
    assert (
        rates["balanced"]
        == kuaisim_gym.build_simulator(small_rand).model.probability(test.users, test.items).mean()
    )


def play(env, steps: int, seed: int) -> list:
    env.action_space.seed(seed)
    trace = [env.reset(seed=seed)[0]]
    for _ in range(steps):
        observation, reward, terminated, truncated, info = env.step(env.action_space.sample())
        trace += [observation, reward, terminated, info["responses"]]
        if terminated or truncated:
            trace.append(env.reset()[0])
    return trace


def test_same_seed_same_trajectory_also_after_pickling(small) -> None:
    env = gym.make("KuaiRec-Fair-v0", dataset=small).unwrapped
    first = play(env, 60, seed=4)
    for one in (first, play(env, 60, seed=4), play(pickle.loads(pickle.dumps(env)), 60, seed=4)):
        for a, b in zip(first, one, strict=True):
            np.testing.assert_array_equal(a, b)
    assert any(np.any(a != b) for a, b in zip(first, play(env, 60, seed=5), strict=False))


def test_unseeded_environments_differ(small) -> None:
    users = {gym.make("KuaiRec-Fair-v0", dataset=small).reset()[1]["user_id"] for _ in range(12)}
    assert len(users) > 1


def test_info_stays_small_until_the_end(small) -> None:
    env = gym.make("KuaiRec-Fair-v0", dataset=small, max_len=5)
    env.reset(seed=0)
    rewards, terminated = [], False
    while not terminated:
        _, reward, terminated, _, info = env.step(env.action_space.sample())
        rewards.append(reward)
        assert ("session" in info) == terminated
    assert info["session"]["len"] == len(rewards)
    assert info["session"]["r_cum"] == pytest.approx(sum(rewards))


def test_the_split_decides_who_arrives(small) -> None:
    test = {int(small.user_ids[user]) for user in small.test_users}
    for split in ("train", "test"):
        env = gym.make("KuaiRec-Fair-v0", dataset=small, split=split)
        arrived = {env.reset(seed=seed)[1]["user_id"] for seed in range(40)}
        assert (arrived <= test) == (split == "test")
        assert split == "test" or not arrived & test


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"observation_type": "states"}, "Did you mean 'state'"),
        ({"action_type": "discret"}, "action_type must be one of"),
        ({"split": "validation"}, "split must be one of"),
        ({"slate_sise": 5}, "Did you mean 'slate_size'"),
        ({"dataset": 5}, "dataset must be a Dataset, a folder or None, got int"),
        ({"max_len": 0}, "max_len"),
        ({"render_mode": "human"}, "cannot be rendered"),
        ({"calibration": "balanced"}, "yes-or-no behaviours"),
        ({"calibration": "platt"}, "calibration must be one of"),
        ({"response_model": "transformer"}, "response_model must be one of"),
        ({"reward_weights": {"is_click": 1.0}}, "a behaviour must be one of"),
        ({"dataset_seed": -1}, "seed must be an integer of at least 0, got -1"),
    ],
)
def test_unknown_options_are_refused(options, message) -> None:
    with pytest.raises(ConfigError, match=message):
        gym.make("KuaiRec-Fair-v0", **options)


def test_a_dataset_of_the_other_kind_is_refused(small, small_rand) -> None:
    with pytest.raises(ConfigError, match="simulates kuairand, got a dataset of kuairec"):
        gym.make("KuaiRand-Fair-v0", dataset=small)
    with pytest.raises(ConfigError, match="simulates kuairec, got a dataset of kuairand"):
        gym.make("KuaiRec-Fair-v0", dataset=small_rand)


@pytest.mark.parametrize(
    ("action", "message"),
    [
        (np.zeros(32, np.float32), "shape"),
        (np.zeros((1, 33), np.float32), r"shape \(33,\), got \(1, 33\)"),
        (None, "shape"),
        ([[1.0, 2.0], [3.0]], "must be an array"),
        (np.zeros(33, np.int64), "floats"),
        (np.full(33, np.nan, np.float32), "finite"),
        (np.full(33, 1.5, np.float32), r"\[-1, 1\], got 1.5"),
    ],
)
def test_bad_continuous_actions_are_refused(small, action, message) -> None:
    env = gym.make("KuaiRec-Fair-v0", dataset=small).unwrapped
    env.reset(seed=0)
    with pytest.raises(InvalidActionError, match=message):
        env.step(action)


def test_bad_slates_and_untimely_steps_are_refused(small) -> None:
    env = gym.make("KuaiRec-Fair-v0", dataset=small, action_type="slate")
    with pytest.raises(ResetNeededError, match="has not begun"):
        env.step(np.arange(10))
    env.reset(seed=0)
    with pytest.raises(InvalidActionError, match=r"\[0, 240\), got 240"):
        env.step(np.arange(231, 241))
    while not env.step(np.arange(10))[2]:
        pass
    with pytest.raises(ResetNeededError, match="is over"):
        env.step(np.arange(10))
