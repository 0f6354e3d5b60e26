# /// script
# dependencies = [
#     "gymnasium==1.4.0", "torch==2.13.0", "jax==0.10.2", "array-api-compat==1.16.0",
#     "packaging==26.3",
# ]
# ///
"""Gymnasium's wrappers that convert arrays, and what tools ask vector environments for."""

from __future__ import annotations

import gymnasium as gym
import torch
from gymnasium.wrappers.vector import JaxToTorch, NumpyToTorch

import kuaisim_gym

ENV_ID = "KuaiRec-Fair-v0"


def check_conversion(wrapper: type, observation_type: str) -> None:
    """Rewards, observations and infos of both vector environments become tensors.

    Under SAME_STEP the wrappers fail with any environment: final observations are in an array of
    objects.
    """
    for mode in (None, "sync"):
        options = {"max_len": 4, "observation_type": observation_type}
        env = gym.make_vec(ENV_ID, num_envs=3, vectorization_mode=mode, **options)
        wrapped = wrapper(env)
        wrapped.reset(seed=1)
        for _ in range(10):
            actions = torch.as_tensor(env.action_space.sample())
            observation, reward, _, _, infos = wrapped.step(actions)
            arrays = observation.values() if isinstance(observation, dict) else [observation]
            for array in (*arrays, reward, infos["user_id"], infos["session"]["len"]):
                assert isinstance(array, torch.Tensor)


def check_attributes() -> None:
    """The native vector environment answers for its slots as Gymnasium's does."""
    for mode in (None, "sync"):
        envs = gym.make_vec(ENV_ID, num_envs=2, vectorization_mode=mode)
        assert [spec.id for spec in envs.get_attr("spec")] == [ENV_ID] * 2
        assert envs.call("render") == (None, None)
    try:
        gym.make_vec(ENV_ID, num_envs=2, vectorization_mode="sync", autoreset_mode="SameStep")
    except kuaisim_gym.ConfigError as error:
        assert "vector_kwargs" in str(error)
    else:
        raise AssertionError("autoreset_mode is no option of a single environment")


for converter in (NumpyToTorch, JaxToTorch):
    for kind in ("state", "dict", "history"):
        check_conversion(converter, kind)
check_attributes()
