#!/usr/bin/env bash
# d3rlpy reads Minari datasets with the actions of other observations, from the second episode on.
#
# Behaviour: an episode of Minari has one observation more than it has actions: that after the last
# step. `d3rlpy.datasets.get_minari` strings together all observations, and all actions, and cuts
# both at the same places. Of the second episode all observations come one step late, of the n-th
# n - 1 steps; its first are the last ones of the episode before. Nothing is said.
#
# Since: seen in d3rlpy 2.8.1 with Minari 0.5.4.
#
# Matters: after as many episodes as one has steps, no pair of state and action is right. Logs of
# recommender systems are many short episodes: what is learned of them is noise, and still trains.
# Build the dataset with `d3rlpy.dataset.MDPDataset` from `episode.observations[:-1]`.
#
# Source: d3rlpy/datasets.py:527 and 567 (`np.concatenate(observations)`), and
# d3rlpy/dataset/episode_generator.py:80 (`start:end`, the same for observations and actions).
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    d3rlpy==2.8.1 'minari[hdf5]==0.5.4' pillow==11.3.0 gymnasium==1.0.0 gym==0.26.2 \
    numpy==2.4.6 torch==2.13.0
cd "$folder"
cat > counting.py <<'CODE'
import gymnasium as gym
import numpy as np


class Counting(gym.Env):
    """Shows the number of steps so far; three steps an episode."""

    observation_space = gym.spaces.Box(0, 9, (1,), np.float32)
    action_space = gym.spaces.Box(0, 9, (1,), np.float32)
CODE
export MINARI_DATASETS_PATH=$folder
"$folder/venv/bin/python" -W ignore - 2> errors <<'CODE' || { cat errors; exit 1; }
import importlib.metadata

import gymnasium as gym
import minari
import numpy as np

import d3rlpy

gym.register("Counting-v0", "counting:Counting", max_episode_steps=3)
moments = np.arange(4, dtype=np.float32)[:, None]  # before each step, and after the last
episode = minari.data_collector.EpisodeBuffer(
    observations=moments,
    actions=moments[:3],  # an action repeats what was observed
    rewards=np.zeros(3),
    terminations=np.array([False, False, True]),
    truncations=np.zeros(3, dtype=bool),
)
minari.create_dataset_from_buffers("counting-v0", [episode] * 3, env="Counting-v0")
dataset, _ = d3rlpy.datasets.get_minari("counting-v0")
seen = [
    list(zip(read.observations[:, 0].tolist(), read.actions[:, 0].tolist()))
    for read in dataset.episodes
]
for name in ("d3rlpy", "minari", "gymnasium"):
    print(name, importlib.metadata.version(name), end=" ")
print("\nexpected, pairs of observation and action:", [[(0, 0), (1, 1), (2, 2)]] * 3)
print("seen:", seen)
assert seen == [[(0, 0), (1, 1), (2, 2)], [(3, 0), (0, 1), (1, 2)], [(2, 0), (3, 1), (0, 2)]]
CODE
