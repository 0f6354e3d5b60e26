# /// script
# dependencies = ["tianshou==2.0.1", "torch==2.13.0", "gymnasium==1.4.0"]
#
# [tool.clients]
# constraints = false  # it wants an earlier pandas
# ///
"""Tianshou: the collector, with the infos of every step, over the ends of sessions."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from tianshou.algorithm.algorithm_base import Policy
from tianshou.data import Batch, Collector, VectorReplayBuffer
from tianshou.env import DummyVectorEnv

import kuaisim_gym  # noqa: F401  # registers the ids


class RandomPolicy(Policy):
    """Draws actions for a batch of observations."""

    def forward(self, batch: Any, state: Any = None, **kwargs: Any) -> Any:
        """Draws an action for each row of ``batch``."""
        actions = [self.action_space.sample() for _ in range(len(batch.obs))]
        return Batch(act=np.stack(actions), state=state)


for options in ({}, {"action_type": "discrete"}, {"observation_type": "dict"}):
    envs = DummyVectorEnv([lambda o=options: gym.make("KuaiRec-Fair-v0", max_len=4, **o)] * 3)
    collector = Collector(
        RandomPolicy(envs.action_space[0]),
        envs,
        VectorReplayBuffer(60, 3),
        raise_on_nan_in_buffer=True,
    )
    collector.reset()
    stats = collector.collect(n_step=30)
    buffer = collector.buffer
    assert stats.n_collected_steps == 30 and stats.n_collected_episodes >= 6
    played = buffer.info.session.len[:10]  # of the first slot: 1, 2, ... up to each end
    assert (played[0], set(np.diff(played))) == (1, {1} | set(1 - played[:-1][np.diff(played) < 1]))
    assert (buffer.info.slate[:10] >= 0).all()
