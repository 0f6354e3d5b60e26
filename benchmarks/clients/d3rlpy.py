# /// script
# dependencies = [
#     "minari[hdf5]==0.5.4", "torch==2.13.0", "gym==0.26.2", "click==8.5.1", "colorama==0.4.6",
#     "dataclasses-json==0.6.7", "scikit-learn==1.9.1", "structlog==26.1.0",
# ]
#
# [tool.clients]
# extras = ["minari"]
# without-dependencies = ["d3rlpy==2.8.1"]  # it asks for gymnasium 1.0.0
# ///
"""d3rlpy: an exported Minari dataset, and CQL on it."""

from __future__ import annotations

import os

import gymnasium as gym
import numpy as np

os.environ["MINARI_DATASETS_PATH"] = os.getcwd()  # before the import, which reads it

import d3rlpy

import kuaisim_gym

ENV_ID = "KuaiRec-Fair-v0"


class RandomAgent:
    """Draws actions for a batch of observations."""

    def __init__(self, env: gym.Env) -> None:
        self.space = env.action_space

    def predict(self, observation, state=None, episode_start=None, deterministic=False):
        return np.stack([self.space.sample() for _ in observation]), state


env = gym.make(ENV_ID, max_len=5)
assert env.spec.max_episode_steps is None
episodes = list(kuaisim_gym.collect_episodes(env, RandomAgent(env), 20, seed=7))
kuaisim_gym.write_minari("exported-v0", episodes, env=env)
dataset, limited = d3rlpy.datasets.get_minari("exported-v0")
assert len(dataset.episodes) == 20
assert [len(read) for read in dataset.episodes] == [len(episode) for episode in episodes]
limited.reset(seed=1)
steps, over = 0, False
while not over:
    _, _, terminated, truncated, _ = limited.step(limited.action_space.sample())
    steps, over = steps + 1, terminated or truncated
assert terminated and not truncated and steps <= 5
learner = d3rlpy.algos.CQLConfig(batch_size=16).create()
learner.fit(
    dataset, n_steps=5, n_steps_per_epoch=5, show_progress=False,
    logger_adapter=d3rlpy.logging.NoopAdapterFactory(),
)  # fmt: skip
print(learner.predict(episodes[0].observations[:2]).shape)
