"""Purifiers worn as observation wrappers, in every shell."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers import FlattenObservation
from stable_baselines3 import DQN, PPO, SAC
from stable_baselines3.common.vec_env import DummyVecEnv

from dsrm_agents import (
    PurifyObservation,
    PurifyVecEnv,
    PurifyVectorObservation,
    fit_purifier,
    make_vec_env,
)
from kuaisim_gym.errors import CheckpointError, ConfigError, NoPreferenceError

WIDTH, DIM = 40, 9  # of the parts, and of a preference
PARTS = {"preference": "parts"}


@pytest.mark.parametrize("observation", ["state", "dict"])
def test_the_three_shells_agree(small, dsrm, observation: str) -> None:
    n, options = 3, {"dataset": small, "observation_type": observation, "max_len": 6, **PARTS}
    raw = make_vec_env("KuaiRec-Fair-v0", n, seed=8, **options)
    sb3 = PurifyVecEnv(make_vec_env("KuaiRec-Fair-v0", n, seed=8, **options), dsrm)
    singles = [PurifyObservation(gym.make("KuaiRec-Fair-v0", **options), dsrm) for _ in range(n)]
    vector = PurifyVectorObservation(
        SyncVectorEnv([lambda: gym.make("KuaiRec-Fair-v0", **options)] * n), dsrm
    )

    def state(seen) -> np.ndarray:
        return seen["state"] if isinstance(seen, dict) else seen

    unpurified, seen = state(raw.reset()), state(sb3.reset())
    assert unpurified.shape[1] - seen.shape[1] == WIDTH - DIM
    np.testing.assert_array_equal(unpurified[:, WIDTH:], seen[:, DIM:])
    np.testing.assert_allclose(seen, state(vector.reset(seed=8)[0]), atol=1e-4)
    for slot, env in enumerate(singles):
        np.testing.assert_allclose(seen[slot], state(env.reset(seed=8 + slot)[0]), atol=1e-4)
    rng = np.random.default_rng(0)
    for _ in range(3):
        actions = rng.uniform(-1, 1, (n, DIM + 2)).astype(np.float32)
        raw.step(actions)
        seen, _, dones, infos = sb3.step(actions)
        batch = state(vector.step(actions)[0])
        for slot, env in enumerate(singles):
            own = state(env.step(actions[slot])[0])
            now = infos[slot]["terminal_observation"] if dones[slot] else None
            shown = state(seen)[slot] if now is None else state(now)
            np.testing.assert_allclose(shown, own, atol=1e-4)
            np.testing.assert_allclose(batch[slot], own, atol=1e-4)
        if dones.any():
            break


def test_terminal_observations_are_purified(small, dsrm) -> None:
    options = {"dataset": small, "max_len": 4, **PARTS}
    raw = make_vec_env("KuaiRec-Fair-v0", 2, seed=1, **options)
    worn = PurifyVecEnv(make_vec_env("KuaiRec-Fair-v0", 2, seed=1, **options), dsrm)
    raw.reset()
    worn.reset()
    actions, ends = np.zeros((2, DIM + 2), dtype=np.float32), 0
    for _ in range(4):
        _, _, dones, plain = raw.step(actions)
        ends += dones.sum()
        _, _, _, infos = worn.step(actions)
        for slot in np.flatnonzero(dones):
            last = plain[slot]["terminal_observation"]
            expected = dsrm.denoise(last[None, :WIDTH])[0]
            seen = infos[slot]["terminal_observation"]
            np.testing.assert_allclose(seen[:DIM], expected, atol=1e-5)
            np.testing.assert_array_equal(seen[DIM:], last[WIDTH:])
    assert ends >= 2


@pytest.mark.parametrize("observation", ["state", "dict"])
@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_native_vector_environments_wear_it_in_every_mode(small, dsrm, mode, observation) -> None:
    n, options = 4, {"dataset": small, "observation_type": observation, "max_len": 5, **PARTS}
    raw, plain = (
        gym.make_vec("KuaiRec-Fair-v0", num_envs=n, autoreset_mode=mode, **options)
        for _ in range(2)
    )
    worn = PurifyVectorObservation(plain, dsrm)

    def check(seen, own) -> None:
        if isinstance(seen, dict):
            np.testing.assert_array_equal(seen["exposed"], own["exposed"])
            seen, own = seen["state"], own["state"]
        seen, own = np.atleast_2d(seen), np.atleast_2d(own)
        np.testing.assert_array_equal(seen[:, DIM:], own[:, WIDTH:])
        np.testing.assert_allclose(seen[:, :DIM], dsrm.denoise(own[:, :WIDTH]), atol=1e-4)

    check(worn.reset(seed=3)[0], raw.reset(seed=3)[0])
    raw.action_space.seed(0)
    ends = 0
    for _ in range(12):
        actions = raw.action_space.sample()
        seen, *told, infos = worn.step(actions)
        own, *expected, plain_infos = raw.step(actions)
        check(seen, own)
        for one, other in zip(told, expected, strict=True):
            np.testing.assert_array_equal(one, other)
        over = told[1] | told[2]
        ends += over.sum()
        if mode is AutoresetMode.SAME_STEP and over.any():
            np.testing.assert_array_equal(infos["_final_obs"], over)
            for slot in range(n):
                if over[slot]:
                    check(infos["final_obs"][slot], plain_infos["final_obs"][slot])
                else:
                    assert infos["final_obs"][slot] is None
        if mode is AutoresetMode.DISABLED and over.any():
            check(
                worn.reset(options={"reset_mask": over})[0],
                raw.reset(options={"reset_mask": over})[0],
            )
    assert ends >= n


@pytest.mark.parametrize(
    ("algorithm", "action"), [(PPO, "scorer"), (SAC, "scorer"), (DQN, "discrete")]
)
def test_agents_wear_a_saved_purifier_with_one_line(
    small, dsrm, tmp_path, algorithm, action
) -> None:
    file = tmp_path / "dsrm.safetensors"
    dsrm.save(file)
    options = {"dataset": small, "action_type": action, **PARTS}
    shells = [
        PurifyVecEnv(make_vec_env("KuaiRec-Fair-v0", 4, **options), file),
        PurifyObservation(gym.make("KuaiRec-Fair-v0", **options), str(file)),
    ]
    for env in shells:
        brief = {"n_steps": 8, "batch_size": 8} if algorithm is PPO else {"learning_starts": 8}
        agent = algorithm("MlpPolicy", env, device="cpu", **brief).learn(40)
        assert agent.observation_space == env.observation_space
    plain = gym.make_vec("KuaiRec-Fair-v0", num_envs=3, **options)
    seen, _ = PurifyVectorObservation(plain, file).reset(seed=0)
    raw, _ = gym.make_vec("KuaiRec-Fair-v0", num_envs=3, **options).reset(seed=0)
    expected = np.concatenate([dsrm.denoise(raw[:, :WIDTH]), raw[:, WIDTH:]], axis=1)
    np.testing.assert_allclose(seen, expected, atol=1e-5)
    again, _ = shells[1].reset(seed=0)  # the file gives what the fitted one gives
    np.testing.assert_allclose(again, expected[0], atol=1e-5)


@pytest.mark.parametrize("observation", ["state", "dict"])
@pytest.mark.parametrize("name", ["dsrm", "linear"])
def test_spaces_hold_what_is_shown(small, quick_fit, name, observation) -> None:
    purifier = quick_fit(name, small)
    options = {"dataset": small, "observation_type": observation, "preference": purifier.reads}
    single = PurifyObservation(gym.make("KuaiRec-Fair-v0", **options), purifier)
    native = gym.make_vec("KuaiRec-Fair-v0", num_envs=3, **options)
    vector = PurifyVectorObservation(native, purifier)
    sb3 = PurifyVecEnv(make_vec_env("KuaiRec-Fair-v0", 3, seed=2, **options), purifier)
    space = single.observation_space
    assert vector.single_observation_space == sb3.observation_space == space
    assert space.contains(single.reset(seed=1)[0])
    assert vector.observation_space.contains(vector.reset(seed=1)[0])
    state = space["state"] if observation == "dict" else space
    own = single.env.observation_space
    own = own["state"] if observation == "dict" else own
    assert (state.low[:DIM] == -10).all()
    assert (state.high[:DIM] == 10).all()
    context = single.unwrapped.batch.encoder.context_slice
    np.testing.assert_array_equal(state.low[DIM:], own.low[context])
    np.testing.assert_array_equal(state.high[DIM:], own.high[context])


@pytest.mark.parametrize("shown", ["pooled", "belief"])
def test_an_environment_that_shows_something_else_is_refused(small, dsrm, quick_fit, shown) -> None:
    """And told which option to give."""
    options = {"dataset": small, "preference": shown}
    message = f"reads preference='parts', .* shows '{shown}': make it with preference='parts'"
    with pytest.raises(ConfigError, match=message):
        PurifyObservation(gym.make("KuaiRec-Fair-v0", **options), dsrm)
    with pytest.raises(ConfigError, match=message):
        PurifyVectorObservation(gym.make_vec("KuaiRec-Fair-v0", num_envs=2, **options), dsrm)
    with pytest.raises(ConfigError, match=message):
        PurifyVecEnv(make_vec_env("KuaiRec-Fair-v0", 2, **options), dsrm)
    with pytest.raises(ConfigError, match="make it with preference='pooled'"):
        env = make_vec_env("KuaiRec-Fair-v0", 2, dataset=small, **PARTS)
        PurifyVecEnv(env, quick_fit("linear", small))
    with pytest.raises(NoPreferenceError, match="no preference state"):
        env = make_vec_env("KuaiRec-Fair-v0", 2, dataset=small, observation_type="history")
        PurifyVecEnv(env, dsrm)


class Plugged:
    """Any object with the members of a purifier."""

    reads = "pooled"

    def __init__(self, fingerprint: str, give) -> None:
        self.fingerprint, self.denoise = fingerprint, give


def test_anything_with_denoise_plugs_in(small) -> None:
    halving = Plugged(small.fingerprint, lambda states: states / 2)
    raw = make_vec_env("KuaiRec-Fair-v0", 3, seed=2, dataset=small)
    worn = PurifyVecEnv(make_vec_env("KuaiRec-Fair-v0", 3, seed=2, dataset=small), halving)
    plain, halved = raw.reset(), worn.reset()
    np.testing.assert_array_equal(halved[:, :DIM], plain[:, :DIM] / 2)
    np.testing.assert_array_equal(halved[:, DIM:], plain[:, DIM:])


def test_what_a_plugged_in_purifier_returns_is_checked(small) -> None:
    for give, message in (
        (lambda states: states[:, :1], r"float32 of \(3, 1\)"),
        (lambda states: states * np.float32(np.nan), "finite preferences, got nan"),
    ):
        env = make_vec_env("KuaiRec-Fair-v0", 3, dataset=small)
        worn = PurifyVecEnv(env, Plugged(small.fingerprint, give))
        with pytest.raises(ConfigError, match=message):
            worn.reset()


def test_foreign_environments_are_refused(dsrm) -> None:
    with pytest.raises(ConfigError, match="environments of kuaisim_gym"):
        PurifyObservation(gym.make("CartPole-v1"), dsrm)
    with pytest.raises(ConfigError, match="environments of kuaisim_gym"):
        PurifyVecEnv(DummyVecEnv([lambda: gym.make("CartPole-v1")]), dsrm)


def test_a_purifier_of_another_dataset_is_refused(world, dsrm) -> None:
    with pytest.raises(CheckpointError, match="fit it again"):
        PurifyVecEnv(make_vec_env("KuaiRec-Fair-v0", 2, dataset=world, **PARTS), dsrm)


def test_a_purifier_stands_next_to_the_environment(small, dsrm) -> None:
    flat = FlattenObservation(
        gym.make("KuaiRec-Fair-v0", dataset=small, observation_type="dict", preference="parts")
    )
    with pytest.raises(ConfigError, match="next to the environment"):
        PurifyObservation(flat, dsrm)


def test_nothing_is_purified_twice(small) -> None:
    """Of pooled states purified ones have the very space."""
    raw = fit_purifier("identity", small)
    single = gym.make("KuaiRec-Fair-v0", dataset=small)
    several = gym.make_vec("KuaiRec-Fair-v0", num_envs=2, dataset=small)
    sb3 = make_vec_env("KuaiRec-Fair-v0", 2, dataset=small)
    for wrapper, env in (
        (PurifyObservation, single), (PurifyVectorObservation, several), (PurifyVecEnv, sb3)
    ):  # fmt: skip
        with pytest.raises(ConfigError, match="behind a purifier already"):
            wrapper(wrapper(env, raw), raw)


@pytest.mark.parametrize(
    ("worth", "message"),
    [(99.0, "got 99"), (np.nan, "finite preferences, got nan"), ("x", "numbers")],
)
def test_what_lies_outside_the_space_is_refused(small, worth, message: str) -> None:
    class Mine:
        reads, fingerprint = "pooled", small.fingerprint

        def denoise(self, states):
            return np.full(states.shape, worth)

    env = PurifyVecEnv(make_vec_env("KuaiRec-Fair-v0", 2, dataset=small), Mine())
    with pytest.raises(ConfigError, match=message):
        env.reset()


def test_whole_numbers_are_taken_as_floats(small) -> None:
    class Mine:
        reads, fingerprint = "pooled", small.fingerprint

        def denoise(self, states):
            return np.ones(states.shape, dtype=np.int64)

    env = PurifyVecEnv(make_vec_env("KuaiRec-Fair-v0", 2, dataset=small), Mine())
    seen = env.reset()
    assert seen.dtype == np.float32
    assert env.observation_space.contains(seen[0])
