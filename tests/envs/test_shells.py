"""Every shell says the same about what is no action, no seed and no option."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode

from dsrm_agents import make_vec_env
from dsrm_agents.baselines.scorer import ScorerVecEnv
from kuaisim_gym.config import check_choice, check_whole, is_number
from kuaisim_gym.envs import actions as action_kinds
from kuaisim_gym.errors import ConfigError, InvalidActionError
from tests.attack.calls import random_calls

ENV = "KuaiRec-Fair-v0"
SHELLS = ("made", "raw", *AutoresetMode, "sb3", "scorer")


def begun(shell, dataset):
    if shell == "scorer":
        env = ScorerVecEnv(make_vec_env(ENV, 3, dataset=dataset, action_type="slate"), quota=False)
    elif shell == "sb3":
        env = make_vec_env(ENV, 3, dataset=dataset)
    elif isinstance(shell, AutoresetMode):
        env = gym.make_vec(ENV, num_envs=3, autoreset_mode=shell, dataset=dataset)
    else:
        env = gym.make(ENV, dataset=dataset)
        env = env.unwrapped if shell == "raw" else env
    env.reset()
    return env


def nested() -> list:
    endless: list = []
    endless.append(endless)
    return endless


ODD_ACTIONS = {
    "ragged": [[1.0], [2.0, 3.0]],
    "endless": nested(),
    "with a gradient": torch.zeros(3, 11, requires_grad=True),
    "nothing": None,
    "text": "a",
    "a number": 0.5,
    "a huge number": 10**400,
    "another shape": np.zeros((3, 12), np.float32),
}


@pytest.mark.parametrize("odd", ODD_ACTIONS)
@pytest.mark.parametrize("shell", SHELLS)
def test_what_is_no_array_of_actions_is_refused_and_changes_nothing(small, shell, odd) -> None:
    env = begun(shell, small)
    batch = env.unwrapped.batch
    before = batch.snapshot()
    with pytest.raises(InvalidActionError, match=r"Actions must (be an array of|have) shape \("):
        env.step(ODD_ACTIONS[odd])
    for name, array in batch.snapshot().items():
        np.testing.assert_array_equal(array, before[name], err_msg=name)
    shape = env.action_space.shape
    env.step(np.zeros((3, *shape) if shell in ("sb3", "scorer") else shape, np.float32))


@pytest.mark.parametrize(
    "seed", [np.array(3), np.timedelta64(3), "abc", b"abc", {0, 1, 2}], ids=repr
)
def test_what_is_no_seed_is_refused_by_every_shell(small, seed) -> None:
    for shell in SHELLS:
        env = begun(shell, small)
        with pytest.raises(ConfigError, match=r"A seed must be an integer in \[0, 2\*\*64\), got"):
            env.seed(seed) if shell in ("sb3", "scorer") else env.reset(seed=seed)


def test_a_refused_seed_draws_nothing(small) -> None:
    """Neither from the environment's own generator nor for any slot."""
    env, other = (begun(AutoresetMode.NEXT_STEP, small) for _ in range(2))
    for one in (env, other):
        one.reset(seed=1)
    for seed in ([1, 2, -1], 2**64 - 2, [4, 5]):
        with pytest.raises(ConfigError):
            env.reset(seed=seed)
    assert env.np_random.integers(2**63) == other.np_random.integers(2**63)
    for bad in (2**64 - 2, -1):
        with pytest.raises(ConfigError, match="A seed must be"):
            begun("sb3", small).seed(bad)  # now, not at the next reset


@pytest.mark.parametrize(
    "options", [5, [], "", True, np.array([1, 2]), np.array(3), [("reset_mask", None)]], ids=repr
)
def test_what_is_no_dictionary_is_refused_by_every_shell(small, options) -> None:
    for shell in SHELLS:
        env, message = begun(shell, small), "must be a dictionary or None, got"
        if shell in ("sb3", "scorer"):
            message = f"{message}|options must be 3, one a slot"
        with pytest.raises(ConfigError, match=message):
            if shell in ("sb3", "scorer"):
                env.set_options(options)
            else:
                env.reset(options=options)


@pytest.mark.parametrize("options", [{5: 1}, {None: 1}, {("reset_mask",): 1}, {"x": 1}], ids=repr)
def test_options_of_odd_names_are_refused_by_every_shell(small, options) -> None:
    for shell in SHELLS:
        env = begun(shell, small)
        with pytest.raises(ConfigError, match="knows no options|a key must be one of"):
            if shell in ("sb3", "scorer"):
                env.set_options([{}, options, {}])
            else:
                env.reset(options=options)


def test_a_refused_first_reset_is_forgotten(small) -> None:
    """Gymnasium's passive checker would fail in every later step."""
    env = gym.make(ENV, dataset=small)
    with pytest.raises(ConfigError):
        env.reset(seed=-1)
    env.reset(seed=1)
    for _ in range(2):
        env.step(env.action_space.sample())


def test_the_sb3_shell_forgets_actions_that_are_refused(small) -> None:
    env = begun("sb3", small)
    env.step_async(np.full((3, *env.action_space.shape), np.nan, np.float32))
    with pytest.raises(InvalidActionError, match="finite"):
        env.step_wait()
    with pytest.raises(RuntimeError, match="step_async"):
        env.step_wait()


@pytest.mark.parametrize("value", [np.array(["train", "test"]), np.array("train"), ["train"], {}])
def test_choices_may_be_asked_of_anything(value) -> None:
    with pytest.raises(ConfigError, match="split must be one of"):
        check_choice("split", value, ("train", "test"))


def test_numbers_are_finite_and_durations_none() -> None:
    assert is_number(10**300) and is_number(np.float32(1)) and is_number(np.int8(1))
    for value in (10**400, -(10**400), np.timedelta64(3), True, float("nan"), np.inf, "1", 1j):
        assert not is_number(value)
    with pytest.raises(ConfigError, match="n must be an integer of at least 0"):
        check_whole("n", np.timedelta64(3), 0)


def test_random_calls_hold() -> None:
    counts = random_calls(400, seed=0)
    assert (counts.tried, counts.held, counts.lost) == (400, 400, [])


def test_random_calls_find_a_door_that_lets_anything_in(monkeypatch) -> None:
    monkeypatch.setattr(action_kinds, "as_actions", lambda value, shape: np.asarray(value))
    counts = random_calls(200, seed=0)
    assert counts.tried == 200 and counts.held == 200 - len(counts.lost) < 200
