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


@pytest.mark.parametrize(("env_id", "observation", "action", "abandonment"), OPTIONS)
def test_both_checkers_pass_without_a_warning(
    env_id, observation, action, abandonment, small
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env = gym.make(
            env_id,
            dataset=small,
            observation_type=observation,
            action_type=action,
            abandonment=abandonment,
        )
        gymnasium_check(env.unwrapped, skip_render_check=True)
        sb3_check(env)


@pytest.mark.parametrize("env_id", kuaisim_gym.ENVIRONMENTS)
def test_the_default_world_needs_no_download(env_id) -> None:
    env = gym.make(env_id)
    observation, info = env.reset(seed=1)
    assert observation.shape == (36,)
    assert env.action_space.shape == (33,)
    assert info["dataset"] == "kuairec (synthetic)"
    assert env.unwrapped.preference_slice == slice(0, 32)
    assert env.unwrapped.catalogue.n_items == 3327


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
        ({"dataset_seed": -1}, "seed must be an integer of at least 0, got -1"),
    ],
)
def test_unknown_options_are_refused(options, message) -> None:
    with pytest.raises(ConfigError, match=message):
        gym.make("KuaiRec-Fair-v0", **options)


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
