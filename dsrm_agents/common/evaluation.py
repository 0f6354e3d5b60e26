"""Evaluation of agents over finished sessions: agents meet the test split nowhere else."""

from __future__ import annotations

import numpy as np
from stable_baselines3.common.vec_env import VecEnv

from kuaisim_gym.envs.shared import Agent, wants_masks
from kuaisim_gym.errors import ConfigError
from kuaisim_gym.metrics import Sessions


def evaluate(agent: Agent, env: VecEnv, sessions: int, deterministic: bool = True) -> Sessions:
    """Plays sessions to their end.

    All slots contribute equally many, so that short sessions are not over-represented.

    Args:
        agent: The agent.
        env: An environment of :func:`dsrm_agents.make_vec_env`, wrapped or not.
        sessions: How many episodes to finish; a multiple of the number of slots.
        deterministic: Whether the agent takes its best action instead of drawing.

    Returns:
        The finished sessions, in slot order; where an episode is several sessions of one user, all
        of them.

    Raises:
        ConfigError: ``sessions`` is not a positive multiple of the number of slots.
    """
    quota, remainder = divmod(sessions, env.num_envs)
    if quota < 1 or remainder:
        raise ConfigError(
            f"sessions must be a positive multiple of the {env.num_envs} slots, got {sessions}."
        )
    records: list[list[Sessions]] = [[] for _ in range(env.num_envs)]
    waiting = env.num_envs
    masked = wants_masks(agent)
    observation, state = env.reset(), None
    starts = np.ones(env.num_envs, dtype=bool)
    while waiting:
        masks = {"action_masks": np.stack(env.env_method("action_masks"))} if masked else {}
        actions, state = agent.predict(
            observation, state, starts, deterministic=deterministic, **masks
        )
        observation, _, starts, infos = env.step(actions)
        for slot in np.flatnonzero(starts):
            if len(records[slot]) < quota:
                records[slot].append(infos[slot]["record"])
                waiting -= len(records[slot]) == quota
    return Sessions.concatenate([record for slot in records for record in slot])
