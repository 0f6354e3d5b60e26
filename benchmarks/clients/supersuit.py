# /// script
# dependencies = ["SuperSuit==3.11.0", "pettingzoo==1.27.0"]
# ///
"""SuperSuit: wrappers of single environments."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import supersuit

import kuaisim_gym  # noqa: F401  # registers the ids

env = gym.make("KuaiRec-Fair-v0", max_len=5)
width = env.observation_space.shape[0]
stacked = supersuit.frame_stack_v1(supersuit.clip_reward_v0(env, 0.0, 0.5), 3)
observation, _ = stacked.reset(seed=1)
assert observation.shape == (3 * width,)
over, rewards = False, []
while not over:
    observation, reward, terminated, truncated, info = stacked.step(stacked.action_space.sample())
    rewards.append(reward)
    over = terminated or truncated
assert info["session"]["len"] == len(rewards) and max(rewards) <= 0.5
assert np.isfinite(observation).all()
