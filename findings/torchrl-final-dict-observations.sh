#!/usr/bin/env bash
# In TorchRL the last dictionary observation of an episode is zeros, under SAME_STEP.
#
# Behaviour: `torchrl.envs.GymWrapper` puts the last observation of an ended episode, Gymnasium's
# `infos["final_obs"]`, into `rollout["next"]`. Where observations are dictionaries it looks for
# their parts in the wrong place, finds none, and leaves zeros. Box observations are right, and so
# are dictionaries under DISABLED. If a part is called "state", there is an error instead: "generator
# raised StopIteration".
#
# Since: seen in TorchRL 0.14.1 with TensorDict 0.14.3 and Gymnasium 1.4.0.
#
# Matters: the value of a truncated session's last state is what is learned of the time after it.
# Recommenders cut sessions, and have dictionaries for observations (state, items shown, masks): all
# these values are of a state that was never there, and nothing is said. Use
# AutoresetMode.DISABLED, which TorchRL prefers.
#
# Source: torchrl/envs/libs/gym.py:2318, the reader of final observations
# (`final_info["observation"] = terminal_obs`, then `final_info.get(key, None)` for each part), and
# torchrl/envs/gym_like.py:371 (a part called "state" is renamed).
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

BOX = gym.spaces.Box(0, 9, (1,), np.float32)


class Shop(gym.Env):
    """Shows 1, 2, 3 and 4, in a dictionary or not, and is cut after three steps."""

    action_space = gym.spaces.Discrete(5)

    def __init__(self, part):
        self.part = part
        self.observation_space = gym.spaces.Dict({part: BOX}) if part else BOX

    def seen(self):
        observation = np.full(1, 1 + self.steps, np.float32)
        return {self.part: observation} if self.part else observation

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return self.seen(), {}

    def step(self, action):
        self.steps += 1
        return self.seen(), 1.0, False, self.steps == 3, {}


def following(mode, part):
    """Observations after each of six steps."""
    envs = SyncVectorEnv([lambda: Shop(part)] * 2, autoreset_mode=mode)
    rollout = GymWrapper(envs).rollout(6, break_when_any_done=False)
    return rollout["next", part or "observation"][0, :, 0].tolist()


seen = {
    (mode.name, part): following(mode, part)
    for mode in (AutoresetMode.DISABLED, AutoresetMode.SAME_STEP)
    for part in ("", "shown")
}
for name in ("torchrl", "tensordict", "gymnasium"):
    print(name, importlib.metadata.version(name), end=" ")
print("\nexpected:", dict.fromkeys(seen, [2, 3, 4] * 2))
print("seen:", seen)
assert seen == dict.fromkeys(seen, [2, 3, 4] * 2) | {("SAME_STEP", "shown"): [2, 3, 0] * 2}
CODE
