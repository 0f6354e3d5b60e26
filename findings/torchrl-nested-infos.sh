#!/usr/bin/env bash
# TorchRL takes no vector environment under SAME_STEP whose info holds a dictionary.
#
# Behaviour: `torchrl.envs.GymWrapper` of a Gymnasium vector environment reads its infos into the
# rollout. If an info holds a dictionary, such as the metrics of a session, it raises "RuntimeError:
# expand_specs wasn't specified in the TensorDictPrimer constructor ..." under SAME_STEP. The same
# numbers beside each other, without the dictionary, work; under DISABLED the dictionary works, too.
# `GymEnv(..., num_envs=2)` makes a vector environment under SAME_STEP, and fails alike.
#
# Since: seen in TorchRL 0.14.1 with TensorDict 0.14.3 and Gymnasium 1.4.0.
#
# Matters: dictionaries in infos are Gymnasium's own form (its RecordEpisodeStatistics adds
# `{"episode": {"r": ..., "l": ...}}`), and sessions have metrics of their own. The error names
# neither infos nor the key. Use AutoresetMode.DISABLED, which TorchRL prefers, or a wrapper that
# flattens infos.
#
# Source: torchrl/envs/transforms/_env.py:474 (TensorDictPrimer.transform_observation_spec), which
# GymWrapper adds for the final infos of SAME_STEP.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    torchrl==0.14.1 tensordict==0.14.3 torch==2.13.0 numpy==2.4.6 gymnasium==1.4.0
cd "$folder"
export RL_LOGGING_LEVEL=ERROR
"$folder/venv/bin/python" -W ignore - 2> errors <<'CODE' || { cat errors; exit 1; }
import importlib.metadata

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from torchrl.envs import GymWrapper


class Shop(gym.Env):
    """Four steps a session, whose length so far is in the info, in a dictionary or not."""

    observation_space = gym.spaces.Box(0, 9, (1,), np.float32)
    action_space = gym.spaces.Discrete(5)

    def __init__(self, nested):
        self.nested = nested

    def seen(self):
        info = {"length": self.steps}
        return np.full(1, self.steps, np.float32), {"session": info} if self.nested else info

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return self.seen()

    def step(self, action):
        self.steps += 1
        observation, info = self.seen()
        return observation, 1.0, self.steps == 4, False, info


def outcome(mode, nested):
    envs = SyncVectorEnv([lambda: Shop(nested)] * 2, autoreset_mode=mode)
    try:
        rollout = GymWrapper(envs).rollout(9, break_when_any_done=False)
    except RuntimeError as error:
        return f"RuntimeError: {str(error).split(',')[0]}"
    return f"works, {tuple(rollout.shape)}"


seen = {
    (mode.name, "nested" if nested else "flat"): outcome(mode, nested)
    for mode in (AutoresetMode.SAME_STEP, AutoresetMode.DISABLED)
    for nested in (False, True)
}
for name in ("torchrl", "tensordict", "gymnasium"):
    print(name, importlib.metadata.version(name), end=" ")
print("\nexpected:", dict.fromkeys(seen, "works, (2, 9)"))
print("seen:", seen)
surprise = {
    ("SAME_STEP", "nested"): (
        "RuntimeError: expand_specs wasn't specified in the TensorDictPrimer constructor"
    )
}
assert seen == dict.fromkeys(seen, "works, (2, 9)") | surprise
CODE
