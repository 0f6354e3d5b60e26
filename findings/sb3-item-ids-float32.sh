#!/usr/bin/env bash
# Stable-Baselines3 hands item numbers above 16,777,216 to the policy as other items.
#
# Behaviour: every Box observation becomes float32 before the features extractor sees it, integer
# boxes too. float32 holds whole numbers exactly up to 2**24 = 16,777,216; above it, neighbouring
# item numbers become one number, without a warning. The observation space, the rollout buffer and
# `check_env` keep int64 and show nothing of it.
#
# Since: the line is in 0.6.0 of 2020; seen in 2.9.2.
#
# Matters: KuaiRand-27K has 32,038,725 videos. An embedding that is looked up by such an
# observation gives half of the upper items their neighbour's vector. Number the items of the
# catalogue from 0 below 2**24, or send two numbers for an item.
#
# Source: stable_baselines3/common/preprocessing.py:120 (`return obs.float()`).
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    torch==2.13.0 numpy==2.4.6 gymnasium==1.4.0 stable-baselines3==2.9.2
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'CODE'
import gymnasium as gym
import numpy as np
import stable_baselines3
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.env_checker import check_env
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor

SHOWN = np.array([16_777_215, 16_777_216, 16_777_217, 32_038_723], np.int64)
received = []


class Shop(gym.Env):
    observation_space = gym.spaces.Box(-1, 32_038_724, SHOWN.shape, np.int64)
    action_space = gym.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return SHOWN, {}

    def step(self, action):
        return SHOWN, 0.0, False, False, {}


class Lookup(BaseFeaturesExtractor):
    """Keeps the item numbers that it is given."""

    def __init__(self, observation_space):
        super().__init__(observation_space, features_dim=1)

    def forward(self, observations):
        received.append(observations[0].long().tolist())
        return observations[:, :1] * 0


check_env(Shop())
agent = PPO("MlpPolicy", Shop(), policy_kwargs={"features_extractor_class": Lookup})
agent.predict(SHOWN)
print("stable-baselines3", stable_baselines3.__version__, "torch", torch.__version__)
print("expected:", SHOWN.tolist())
print("seen:", received[0])
assert received[0] == [16_777_215, 16_777_216, 16_777_216, 32_038_724]
CODE
