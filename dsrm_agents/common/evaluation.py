"""Evaluation of agents over finished sessions: agents meet the test split nowhere else."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import VecEnv
from tqdm.auto import tqdm

from dsrm_agents.common.origin import check_origin, shapes
from kuaisim_gym.config import check_whole
from kuaisim_gym.envs.shared import Agent, wants_masks
from kuaisim_gym.errors import ConfigError
from kuaisim_gym.metrics import Sessions


def evaluate(
    agent: Agent,
    env: VecEnv,
    sessions: int,
    deterministic: bool = True,
    *,
    strict: bool = True,
) -> Sessions:
    """Plays sessions to their end.

    All slots contribute equally many, so that short sessions are not over-represented.

    Args:
        agent: The agent.
        env: An environment of :func:`dsrm_agents.make_vec_env`, wrapped or not.
        sessions: How many episodes to finish; a multiple of the number of slots.
        deterministic: Whether the agent takes its best action instead of drawing.
        strict: Whether to refuse an agent that was trained on another dataset, or behind another
            purifier or encoder than ``env`` has.

    Returns:
        The finished sessions, in slot order; where an episode is several sessions of one user, all
        of them.

    Raises:
        ConfigError: ``agent`` or ``env`` is none; ``sessions`` is not a positive multiple of the
            number of slots; ``strict``, and the agent was trained behind other wrappers.
        CheckpointError: ``strict``, and the agent was trained on another dataset.
    """
    _check(agent, env, strict)
    quota, remainder = divmod(check_whole("sessions", sessions, 1), env.num_envs)
    if remainder:
        raise ConfigError(
            f"sessions must be a positive multiple of the {env.num_envs} slots, got {sessions}."
        )
    records: list[list[Sessions]] = [[] for _ in range(env.num_envs)]
    waiting = env.num_envs
    masked = wants_masks(agent)
    observation, state = env.reset(), None
    starts = np.ones(env.num_envs, dtype=bool)
    # A bar appears where it takes longer than a moment.
    with tqdm(total=sessions, desc="Sessions", unit="session", delay=2.0, leave=False) as bar:
        while waiting:
            actions, state = next_actions(
                agent, env, observation, state, starts, deterministic, masked=masked
            )
            observation, _, starts, infos = env.step(actions)
            for slot in np.flatnonzero(starts):
                if "record" not in infos[slot]:
                    raise ConfigError(
                        "evaluate() needs an environment that records its sessions, got "
                        f"{type(env).__name__}: make it with make_vec_env(id, n_envs)."
                    )
                if len(records[slot]) < quota:
                    records[slot].append(infos[slot]["record"])
                    waiting -= len(records[slot]) == quota
                    bar.update()
    return Sessions.concatenate([record for slot in records for record in slot])


def next_actions(
    agent: Agent,
    env: VecEnv,
    observation: Any,
    state: Any,
    starts: NDArray[np.bool_],
    deterministic: bool = True,
    *,
    masked: bool,
) -> tuple[Any, Any]:
    """Actions of an agent, and its hidden state.

    Args:
        agent: The agent.
        env: The environment, of which masks are asked.
        observation: Of all slots.
        state: Hidden state of the last call, ``None`` at first.
        starts: (N,) bool, slots whose session has just begun.
        deterministic: As for :func:`evaluate`.
        masked: What :func:`~kuaisim_gym.envs.shared.wants_masks` says of the agent.
    """
    masks = {"action_masks": np.stack(env.env_method("action_masks"))} if masked else {}
    played = agent.predict(observation, state, starts, deterministic=deterministic, **masks)
    if not isinstance(played, tuple) or len(played) != 2:
        raise ConfigError(
            f"predict() of {type(agent).__name__} must return a pair, actions and hidden state "
            f"(None where there is none), got {type(played).__name__}."
        )
    return played


def _check(agent: Any, env: Any, strict: bool) -> None:
    """Checks that an agent can be evaluated in an environment."""
    if isinstance(agent, type) or not callable(getattr(agent, "predict", None)):
        kind = f"the class {agent.__name__}" if isinstance(agent, type) else type(agent).__name__
        raise ConfigError(
            "evaluate() needs an agent with a method predict(), such as a Stable-Baselines3 model, "
            f"got {kind}."
        )
    if not isinstance(env, VecEnv):
        raise ConfigError(
            "evaluate() needs a Stable-Baselines3 VecEnv, got "
            f"{type(env).__name__}: make it with make_vec_env(id, n_envs) in place of "
            "gymnasium.make(id) or make_vec(id, num_envs)."
        )
    actions = getattr(agent, "action_space", None)
    if strict and actions is not None and actions != env.action_space:
        raise ConfigError(
            f"{type(agent).__name__} was trained to act in {actions}, the environment takes "
            f"{env.action_space}: make it with the options that it was trained with."
        )
    own, shown = (getattr(one, "observation_space", None) for one in (agent, env))
    if not strict or own is None or shown is None:
        return
    name = type(agent).__name__
    check_origin(own, shown, "evaluate(..., strict=False) plays it as it is", name)
    if own != shown:
        raise ConfigError(
            f"{name} was trained on observations {shapes(own)}, the environment shows "
            f"{shapes(shown)}, or others in range: make it with the options that it was trained "
            "with."
        )
