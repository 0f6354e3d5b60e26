"""Plays a policy through the days of a platform, and on stocks of items that it may not know."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import VecEnv

from dsrm_agents.common.evaluation import next_actions
from dsrm_agents.common.stateless import batch_of
from kuaisim_gym.config import check_whole
from kuaisim_gym.envs.shared import wants_masks
from kuaisim_gym.errors import ConfigError
from kuaisim_gym.metrics import Sessions, gini
from kuaisim_gym.simulator.lifecycle import Timetable
from kuaisim_gym.simulator.platform import Platform

SPARE_DAYS = 10  # after the last one, for sessions that began on it to end
_NEVER = 2**31


class PlayedDays(NamedTuple):
    """Sessions of a policy on the days of a platform.

    Attributes:
        sessions: All S sessions that began on these days, in the order of their ends.
        began: (S,) int64, the day on which each began.
        concentration: By day, the Gini coefficient of the popularity of the items that were there.
    """

    sessions: Sessions
    began: NDArray[np.int64]
    concentration: list[float]


def platform_of(env: VecEnv) -> Platform:
    """The platform of an environment.

    Raises:
        ConfigError: Its catalogue does not change.
    """
    platform = batch_of(env, "The days of a platform").platform
    if platform is None:
        raise ConfigError(
            "The days of a platform need a catalogue that changes, got a fixed one: name an "
            "environment such as KuaiRec-Dynamic-v0."
        )
    return platform


def play_days(
    policy: Any, env: VecEnv, last: int, follow: Callable[[int], None] | None = None
) -> PlayedDays:
    """Plays all sessions that begin from the platform's first day to some last one.

    Args:
        policy: Has the ``predict`` of Stable-Baselines3's models, and takes its best actions.
        env: The environment, whose days go on for :data:`SPARE_DAYS` after the last.
        last: The last day.
        follow: Called with each day before anything is shown on it.
    """
    platform, masked = platform_of(env), wants_masks(policy)
    observation, state = env.reset(), None
    starts = np.ones(env.num_envs, dtype=bool)
    began = np.full(env.num_envs, platform.day)
    records, days, concentration, today = [], [], [], 0
    while (began <= last).any():
        if platform.day != today:
            today = platform.day
            if today <= last:
                concentration.append(float(gini(platform.shares[platform.available])))
                if follow is not None:
                    follow(today)
        actions, state = next_actions(policy, env, observation, state, starts, masked=masked)
        observation, _, starts, infos = env.step(actions)
        for slot in np.flatnonzero(starts):
            if began[slot] <= last:
                records.append(infos[slot]["record"])
                days.append(began[slot])
                began[slot] = platform.day
    return PlayedDays(Sessions.concatenate(records), np.array(days), concentration)


def stocks(timetable: Timetable, day: int, learned: int) -> dict[str, NDArray[np.int64]]:
    """Items that are there on a day, by what a policy can know of them.

    Args:
        timetable: When items are there.
        day: The day.
        learned: The last day of training.

    Returns:
        Positions of ``"logged"`` items, which are there from the start; of ``"met"`` ones, which
        arrived in training, so that the policy has shown them and nobody has logged them; and of
        ``"newborn"`` ones, which arrived after it.
    """
    there, born = timetable.available(day), timetable.born
    return {
        "logged": np.flatnonzero(there & (born == 0)),
        "met": np.flatnonzero(there & (born >= 1) & (born <= learned)),
        "newborn": np.flatnonzero(there & (born > learned)),
    }


def mean_reward(policy: Any, env: VecEnv, stock: NDArray[np.int64], steps: int) -> float:
    """Mean reward of the first steps of sessions that can be shown a stock of items alone.

    Args:
        policy: As for :func:`play_days`.
        env: The environment, whose platform has this stock on all days from now on.
        stock: (m,) positions.
        steps: How many steps of every slot.
    """
    platform = platform_of(env)
    n_items = len(platform.timetable.born)
    gone = np.zeros(n_items, dtype=np.int64)
    gone[stock] = _NEVER
    platform.reschedule(Timetable(np.zeros(n_items, dtype=np.int64), gone))
    masked = wants_masks(policy)
    env.seed(0)
    observation, state = env.reset(), None
    starts, rewards = np.ones(env.num_envs, dtype=bool), []
    for _ in range(check_whole("steps", steps, 1)):
        actions, state = next_actions(policy, env, observation, state, starts, masked=masked)
        observation, reward, starts, _ = env.step(actions)
        rewards.append(reward.mean(dtype=np.float64))
    return float(np.mean(rewards))
