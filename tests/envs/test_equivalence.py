"""The shells agree step by step, over many resets, for every option."""

from __future__ import annotations

import itertools

import gymnasium as gym
import numpy as np
import pytest

from dsrm_agents import make_vec_env
from kuaisim_gym.errors import ConfigError, ResetNeededError

N = 3


def parts(observation) -> dict:
    return observation if isinstance(observation, dict) else {"state": observation}


def assert_same(one, two) -> None:
    for name, part in parts(one).items():
        np.testing.assert_array_equal(part, parts(two)[name])


def row(observation, slot: int):
    return {name: part[slot] for name, part in parts(observation).items()}


@pytest.mark.parametrize(
    ("observation", "action", "abandonment", "max_steps"),
    list(
        itertools.product(
            ("state", "dict"),
            ("continuous", "slate"),
            ("imbalance", "popularity", "none"),
            (None, 4),
        )
    ),
)
def test_the_sb3_shell_is_the_single_environment(
    small, observation, action, abandonment, max_steps
) -> None:
    options = {
        "dataset": small,
        "observation_type": observation,
        "action_type": action,
        "abandonment": abandonment,
        "max_steps": max_steps,
        "max_len": 9,
    }
    vector = make_vec_env("KuaiRec-Fair-v0", N, "train", seed=20, **options)
    singles = [gym.make("KuaiRec-Fair-v0", **options) for _ in range(N)]
    seen = vector.reset()
    for slot, env in enumerate(singles):
        own, info = env.reset(seed=20 + slot)
        assert_same(row(seen, slot), own)
        assert vector.reset_infos[slot] == info
    rng = np.random.default_rng(0)
    ends = 0
    for _ in range(80):
        if action == "continuous":
            actions = rng.uniform(-1, 1, (N, 33)).astype(np.float32)
        else:
            actions = rng.integers(0, small.n_items, (N, 10))
        seen, rewards, dones, infos = vector.step(actions)
        for slot, env in enumerate(singles):
            own, reward, terminated, truncated, info = env.step(actions[slot])
            assert rewards[slot] == np.float32(reward)
            assert dones[slot] == (terminated or truncated)
            if dones[slot]:
                ends += 1
                assert_same(infos[slot]["terminal_observation"], own)
                assert infos[slot]["TimeLimit.truncated"] == (truncated and not terminated)
                assert infos[slot]["session"] == info["session"]
                own, info = env.reset()
                assert vector.reset_infos[slot] == info
            else:
                assert infos[slot] == {}
            assert_same(row(seen, slot), own)
    assert ends >= 3 * N


def test_seeding_again_starts_over(small) -> None:
    vector = make_vec_env("KuaiRec-Fair-v0", N, seed=1, dataset=small)
    first = vector.reset()
    assert np.any(first != vector.reset())
    vector.seed(1)
    np.testing.assert_array_equal(first, vector.reset())


def test_the_record_is_what_happened(small) -> None:
    vector = make_vec_env(
        "KuaiRec-Fair-v0", 2, seed=1, dataset=small, action_type="slate", max_len=6
    )
    vector.reset()
    rng = np.random.default_rng(0)
    shown, rewards = [], []
    while True:
        slates = rng.permutation(small.n_items)[:20].reshape(2, 10)
        _, reward, done, infos = vector.step(slates)
        shown.append(slates[0])
        rewards.append(reward[0])
        if done[0]:
            break
    record = infos[0]["record"]
    assert record.length[0] == len(shown)
    np.testing.assert_array_equal(record.slates[0, : len(shown)], shown)
    np.testing.assert_allclose(record.rewards[0, : len(shown)], rewards, rtol=1e-6)
    assert (record.slates[0, len(shown) :] == -1).all()


def test_the_shell_refuses_what_it_has_not(small) -> None:
    vector = make_vec_env("KuaiRec-Fair-v0", 2, dataset=small)
    with pytest.raises(ConfigError, match="an integer in"):
        make_vec_env("KuaiRec-Fair-v0", 2, seed=-1, dataset=small)
    with pytest.raises(ConfigError, match="Did you mean 'KuaiRec-Fair-v0'"):
        make_vec_env("KuaiRec-Fare-v0", 2, dataset=small)
    with pytest.raises(ResetNeededError):
        vector.step_wait()
    assert not vector.has_attr("nothing")
    with pytest.raises(AttributeError):
        vector.get_attr("nothing")
    with pytest.raises(AttributeError):
        vector.env_method("action_masks")
    assert vector.get_attr("preference_slice") == [slice(0, 32)] * 2
