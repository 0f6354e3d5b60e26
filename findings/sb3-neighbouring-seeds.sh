#!/usr/bin/env bash
# Runs of Stable-Baselines3 with seeds 1, 2, 3 train on almost the same users.
#
# Behaviour: an algorithm's `seed` reseeds its environments when it is constructed, whatever they
# were seeded with before, and slot i of n gets seed + i. Slot 1 of the run with seed 1 is
# therefore slot 0 of the run with seed 2: two runs with neighbouring seeds share n - 1 of their n
# streams of random numbers.
#
# Since: 0.6.0 of 2020 has the offsets and the reseeding; seen in 2.9.2.
#
# Matters: where a session's user is drawn by the environment's generator, "three seeds" meet the
# same users in other slots. The runs are not independent, and confidence intervals over them are
# too narrow. Seed the environments again after the construction, with numbers that lie at least n
# apart: `env.seed(1000 * seed)`.
#
# Source: stable_baselines3/common/base_class.py:572 (`self.env.seed(seed)` in set_random_seed)
# and stable_baselines3/common/vec_env/base_vec_env.py:308 (`[seed + idx for idx in
# range(self.num_envs)]`).
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
from stable_baselines3 import A2C
from stable_baselines3.common.vec_env import DummyVecEnv

N_ENVS, N_SESSIONS = 8, 5


class Shop(gym.Env):
    """Sessions of one step, each of a user who is drawn by the environment's generator."""

    observation_space = gym.spaces.Box(0, 1, (1,), np.float32)
    action_space = gym.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.user = self.np_random.random(1, np.float32)
        return self.user, {}

    def step(self, action):
        return self.user, 0.0, True, False, {}


def users_of(seed):
    """The users that each slot meets in the run with a seed."""
    env = DummyVecEnv([Shop] * N_ENVS)
    env.seed(1_000_000 * seed)  # in vain
    A2C("MlpPolicy", env, seed=seed)
    users = [env.reset()]
    for _ in range(N_SESSIONS - 1):
        users.append(env.step(np.zeros(N_ENVS, int))[0])
    return {tuple(slot) for slot in np.concatenate(users, axis=1)}


first, second, third = (users_of(seed) for seed in (1, 2, 3))
print("stable-baselines3", stable_baselines3.__version__, "gymnasium", gym.__version__)
print(f"expected: 0 of {N_ENVS} streams of users are shared by runs with different seeds")
print(f"seen: {len(first & second)} by seeds 1 and 2, {len(first & third)} by seeds 1 and 3")
assert (len(first & second), len(first & third)) == (N_ENVS - 1, N_ENVS - 2)
CODE
