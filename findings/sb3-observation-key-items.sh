#!/usr/bin/env bash
# Stable-Baselines3 takes no dictionary observation with a part called `items`.
#
# Behaviour: `MultiInputPolicy` keeps a module for each part of the observation in a torch
# `ModuleDict`, whose methods are attributes: a part called "items", "keys", "values", "pop",
# "clear" or "update" raises "KeyError: attribute 'items' already exists". The same observation
# with the part called "item" works.
#
# Since: the code is that of the first dictionary observations (Stable-Baselines3 1.1.0, 2021);
# seen in 2.9.2.
#
# Matters: "items" is what one calls the items that a user was shown. Rename the part, or bring a
# features extractor of your own which does not make a ModuleDict of the observation's keys.
#
# Source: stable_baselines3/common/torch_layers.py:301 (`nn.ModuleDict(extractors)`) and
# torch/nn/modules/module.py:659 (Module.add_module refuses names that are attributes).
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


def outcome(key):
    """The policy's observation space, or the error of its construction."""

    class Shop(gym.Env):
        observation_space = gym.spaces.Dict({key: gym.spaces.Box(-1, 9, (3,), np.int32)})
        action_space = gym.spaces.Discrete(10)

    try:
        return "works" if PPO("MultiInputPolicy", Shop()).policy else ""
    except KeyError as error:
        return f"KeyError: {error.args[0]}"


keys = ("item", "items", "values", "update")
seen = {key: outcome(key) for key in keys}
print("stable-baselines3", stable_baselines3.__version__, "torch", torch.__version__)
print("expected:", dict.fromkeys(keys, "works"))
print("seen:", seen)
assert seen == {"item": "works"} | {
    key: f"KeyError: attribute '{key}' already exists" for key in keys[1:]
}
CODE
