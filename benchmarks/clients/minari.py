# /// script
# dependencies = ["minari[create,hdf5]==0.5.4"]
#
# [tool.clients]
# extras = ["minari"]
# ///
"""Minari: its collector with infos, and exported sessions, which can be played again."""

from __future__ import annotations

import os

import gymnasium as gym
import numpy as np

os.environ["MINARI_DATASETS_PATH"] = os.getcwd()  # before the import, which reads it

import minari

import kuaisim_gym

ENV_ID = "KuaiRec-Fair-v0"


class RandomAgent:
    """Draws actions for a batch of observations."""

    def __init__(self, env: gym.Env) -> None:
        self.space = env.action_space

    def predict(self, observation, state=None, episode_start=None, deterministic=False):
        return np.stack([self.space.sample() for _ in observation]), state


def collected_by(name: str, episodes: int, **options) -> tuple[minari.MinariDataset, dict]:
    """Episodes of random actions, and the last info; the collector draws seeds of 64 bits."""
    env = gym.make(ENV_ID, max_len=5, **options)
    collector = minari.DataCollector(env, record_infos=True)
    for _ in range(episodes):
        collector.reset()
        over = False
        while not over:
            *_, terminated, truncated, info = collector.step(collector.action_space.sample())
            over = terminated or truncated
    return collector.create_dataset(name), info


collected_by("slates-v0", 3, observation_type="dict", action_type="slate")
collected_by("items-v0", 3, observation_type="history", action_type="discrete")
collected, info = collected_by("collected-v0", 20)
for episode in collected:
    assert episode.infos["slate"].shape == (len(episode) + 1, 10)
    assert episode.infos["session"]["len"].tolist() == list(range(len(episode) + 1))
    assert (episode.infos["slate"][0] == -1).all()
assert collected[19].infos["session"]["len"][-1] == info["session"]["len"]

env = gym.make(ENV_ID, max_len=5)
env.action_space.seed(1)
episodes = list(kuaisim_gym.collect_episodes(env, RandomAgent(env), 3, seed=7))
exported = kuaisim_gym.write_minari("exported-v0", episodes, env=env)
assert [episode.seed for episode in episodes] == [7, None, None]
recovered = exported.recover_environment()
first = exported[0]
recovered.reset(seed=int(next(exported.storage.get_episode_metadata([0]))["seed"]))
for step, action in enumerate(first.actions):
    observation, reward, terminated, truncated, _ = recovered.step(action)
    assert reward == first.rewards[step]
    np.testing.assert_array_equal(observation, first.observations[step + 1])
assert terminated and not truncated
