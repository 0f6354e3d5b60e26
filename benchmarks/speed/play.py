"""Environments whose time and memory are measured."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import cycle, islice
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space

from kuaisim_gym import ENVIRONMENTS
from kuaisim_gym.data import Dataset
from kuaisim_gym.data.synthetic import (
    KuaiRandConfig,
    SyntheticConfig,
    synthetic_kuairand,
    synthetic_kuairec,
)
from kuaisim_gym.envs.options import shared_dataset

TINY = 240  # items of a world that is built quickly
LEAST_STEPS = 45  # more than three sessions of random actions: every timing includes resets


@dataclass(frozen=True)
class Case:
    """A measured environment.

    Attributes:
        env: Registered id.
        actions: Action type.
        shell: ``"SameStep"`` or ``"NextStep"``, the native vector environment; ``"sb3"``; or
            ``"single"``.
        sessions: Number of sessions that are stepped together.
        engine: As for the environment.
        observation: Observation type.
        preference: What the state tells of the user's preference; ``None`` for the usual.
        items: As for :func:`world`.
    """

    env: str = "KuaiRec-Fair-v0"
    actions: str = "discrete"
    shell: str = "SameStep"
    sessions: int = 1
    engine: str = "auto"
    observation: str = "state"
    preference: str | None = None
    items: int | None = None


def make(case: Case) -> Any:
    """The environment of a case."""
    options: dict[str, Any] = {
        "action_type": case.actions,
        "engine": case.engine,
        "observation_type": case.observation,
        "preference": case.preference,
        "dataset": world(ENVIRONMENTS[case.env]["name"], case.items),
    }
    if case.shell == "single":
        return gym.make(case.env, **options)
    if case.shell == "sb3":
        from dsrm_agents import make_vec_env  # loads torch, which the other shells do without

        return make_vec_env(case.env, case.sessions, seed=0, **options)
    return gym.make_vec(case.env, case.sessions, autoreset_mode=case.shell, **options)


def draw(env: Any, sessions: int) -> list[Any]:
    """Random actions, batched if the environment is a vector."""
    space = env.unwrapped.batch.action_space
    if not isinstance(env, gym.Env):
        space = batch_space(space, sessions)
    space.seed(0)
    return [space.sample() for _ in range(16 if sessions > 1 else 256)]


def player(env: Any, actions: list[Any]) -> Callable[[int], int]:
    """A function that plays some steps with the actions in turn, across sessions.

    It returns the number of user-steps: a slot that restarts in the next step makes none in it.
    """
    single, endless = isinstance(env, gym.Env), cycle(actions)
    sessions: int = env.unwrapped.batch.n_sessions
    pauses = getattr(env, "autoreset_mode", None) is AutoresetMode.NEXT_STEP
    env.reset()

    def play(steps: int) -> int:
        idle = 0
        for action in islice(endless, steps):
            _, _, terminated, truncated, *_ = env.step(action)
            if single and (terminated or truncated):
                env.reset()
            if pauses:
                idle += int(np.count_nonzero(terminated | truncated))
        return steps * sessions - idle

    return play


def enough(play: Callable[[int], int], seconds: float) -> int:
    """Steps of a :func:`player` that take some seconds, and at least so many as count."""
    started = time.perf_counter()
    play(5)
    return max(LEAST_STEPS, int(seconds * 5 / (time.perf_counter() - started)))


def in_turns(
    plays: Mapping[str, Callable[[int], int]], steps: int, repeats: int
) -> dict[str, float]:
    """Median processor microseconds of a step of several players, measured in turns."""
    taken: dict[str, list[float]] = {name: [] for name in plays}
    for _ in range(repeats):
        for name, play in plays.items():
            begun = time.process_time()
            play(steps)
            taken[name].append(1e6 * (time.process_time() - begun) / steps)
    return {name: statistics.median(times) for name, times in taken.items()}


@lru_cache(maxsize=2)
def world(name: str, items: int | None) -> Dataset:
    """A synthetic world of 400 users and some items; ``None`` for the world at full size."""
    if items is None:
        return shared_dataset(name, None, 0)
    if name == "kuairand":
        return synthetic_kuairand(config=KuaiRandConfig(n_users=400, n_items=items))
    config = SyntheticConfig(n_users=400, n_test_users=10, n_items=items, events_per_user=30)
    return synthetic_kuairec(config=config)
