# /// script
# dependencies = ["torchrl==0.14.1", "tensordict==0.14.3", "torch==2.13.0"]
# ///
"""TorchRL: environments by id, and rollouts of vector environments in each autoreset mode."""

from __future__ import annotations

import gymnasium as gym
import torch
from torchrl.envs import GymEnv, GymWrapper, check_env_specs

import kuaisim_gym  # noqa: F401  # registers the ids

ENV_ID = "KuaiRec-Fair-v0"


def check_ids() -> None:
    """``GymEnv`` offers ``frameskip=``, and goes on without it."""
    for options in ({}, {"action_type": "slate"}, {"observation_type": "dict"}):
        check_env_specs(GymEnv(ENV_ID, **options))
    check_env_specs(GymEnv(ENV_ID, num_envs=2))


def check_rollouts() -> None:
    """Rollouts go on over the ends of sessions."""
    for mode in ("SameStep", "Disabled"):  # TorchRL refuses the third
        for observation_type in ("state", "dict", "history"):
            options = {"max_len": 4, "observation_type": observation_type}
            env = GymWrapper(gym.make_vec(ENV_ID, num_envs=3, autoreset_mode=mode, **options))
            env.set_seed(1)
            rollout = env.rollout(12, break_when_any_done=False)
            rewards = rollout["next", "reward"]
            assert rollout.shape == (3, 12)
            assert torch.isfinite(rewards).all() and (rewards > 0).any()
            assert rollout["next", "done"].sum() >= 3


if __name__ == "__main__":  # GymEnv(num_envs=2) starts processes, which import this module
    check_ids()
    check_rollouts()
