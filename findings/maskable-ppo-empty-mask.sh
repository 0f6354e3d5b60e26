#!/usr/bin/env bash
# MaskablePPO shows any forbidden item, with log-probability 0, where no item is allowed.
#
# Behaviour: a row of the action mask that forbids every action raises no error. Each action is
# then drawn with equal chance, and each has the log-probability 0, as if it were certain: masked
# logits are -1e8, where float32 has steps of 8, so that the logarithm of the number of actions is
# lost. Gymnasium's own masked sampling gives the first action, `start`, for the same mask.
#
# Since: the code is that of MaskablePPO's first version (sb3-contrib 1.3.0, 2021); seen in 2.9.2.
# Gymnasium documents its answer.
#
# Matters: users who have seen the whole catalogue, or whose candidates are filtered to none, have
# such a row. Training goes on with items that the environment forbids, and random and learned
# agents are compared on different ones. End the session, or refuse an empty mask in
# `action_masks()`.
#
# Source: sb3_contrib/common/maskable/distributions.py:59 (HUGE_NEG) and
# gymnasium/spaces/discrete.py:171.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    torch==2.13.0 numpy==2.4.6 gymnasium==1.4.0 stable-baselines3==2.9.2 sb3-contrib==2.9.2
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'CODE'
import gymnasium as gym
import numpy as np
import sb3_contrib
from sb3_contrib import MaskablePPO

N_ITEMS, N_STEPS = 5, 200


class Shop(gym.Env):
    """A user who has seen everything."""

    observation_space = gym.spaces.Box(0, 1, (1,), np.float32)
    action_space = gym.spaces.Discrete(N_ITEMS)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(1, np.float32), {}

    def step(self, action):
        return np.zeros(1, np.float32), 0.0, False, False, {}

    def action_masks(self):
        return np.zeros(N_ITEMS, bool)


agent = MaskablePPO("MlpPolicy", Shop(), n_steps=N_STEPS, batch_size=N_STEPS, n_epochs=1, seed=0)
agent.learn(N_STEPS)
shown = np.unique(agent.rollout_buffer.actions).astype(int).tolist()
log_probs = np.unique(agent.rollout_buffer.log_probs).tolist()
space = gym.spaces.Discrete(N_ITEMS, seed=0)
sampled = {int(space.sample(mask=np.zeros(N_ITEMS, np.int8))) for _ in range(N_STEPS)}
print("sb3-contrib", sb3_contrib.__version__, "gymnasium", gym.__version__)
print("expected: an error, or at least log-probabilities of items that sum to one")
print("seen: MaskablePPO shows", shown, "with log-probability", log_probs, "- Gymnasium", sampled)
assert (shown, log_probs, sampled) == (list(range(N_ITEMS)), [0.0], {0})
CODE
