#!/usr/bin/env bash
# Looking at `env.spec` copies the dataset that was passed to gymnasium.make, three times.
#
# Behaviour: `gymnasium.make(id, dataset=d)` passes d itself to the environment and keeps it in
# the spec's kwargs. The first look at `env.spec` deep-copies the spec, kwargs included, once in
# each wrapper around the environment, and each wrapper keeps its copy. `make` itself adds three
# wrappers where there is a step limit. No look, no copy.
#
# Since: Gymnasium 0.28 (2023), when specs began to record wrappers; seen in 0.28.1, 0.29.1, 1.0.0
# and 1.4.0. The code of 0.27.1 copies nothing there.
#
# Matters: a simulator's dataset or response model is its memory. A logger or a recorder that
# reads `env.spec.id` makes 4 GB of 1 GB, in each worker. Use `env.unwrapped.spec`, which copies
# nothing, pass a path, or define `__deepcopy__` on data that never change.
#
# Source: gymnasium/core.py:398 (Wrapper.spec: `env_spec = deepcopy(env_spec)`).
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    gymnasium==1.4.0 numpy==2.4.6
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'CODE'
import gymnasium as gym


class Dataset:
    copies = 0

    def __deepcopy__(self, memo):
        Dataset.copies += 1
        return Dataset()


class Shop(gym.Env):
    observation_space = action_space = gym.spaces.Discrete(2)

    def __init__(self, dataset):
        self.dataset = dataset


gym.register("Shop-v0", Shop, max_episode_steps=30)
dataset = Dataset()
env = gym.make("Shop-v0", dataset=dataset)
steps = {"make": Dataset.copies}
assert env.unwrapped.dataset is dataset
assert env.unwrapped.spec.kwargs["dataset"] is dataset
steps["env.unwrapped.spec"] = Dataset.copies
assert env.spec.id == "Shop-v0"
steps["env.spec.id"] = Dataset.copies
print("gymnasium", gym.__version__, env)
print("expected: no copy")
print("seen, copies after:", steps)
assert steps == {"make": 0, "env.unwrapped.spec": 0, "env.spec.id": 3}
CODE
