"""What a step was like: what was shown and answered, whom it speaks for, what is logged of it."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from stable_baselines3.common.logger import Logger

from kuaisim_gym.errors import ConfigError


def shown_slates(
    before: dict[str, NDArray[Any]],
    after: Any,
    dones: NDArray[np.bool_],
    infos: list[dict[str, Any]],
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """What the last step showed, (N, K) items and (N, K) responses, from the observations."""
    exposed, responses = after["exposed"].copy(), after["responses"].copy()
    for slot in np.flatnonzero(dones):
        last = infos[slot]["terminal_observation"]
        exposed[slot], responses[slot] = last["exposed"], last["responses"]
    start = (before["exposed"] >= 0).sum(axis=1)
    size = int((exposed[0] >= 0).sum() - start[0])
    places = start[:, None] + np.arange(size)
    rows = np.arange(len(places))[:, None]
    if size < 1:
        raise ConfigError(
            "HierarchicalPPO needs episodes that are one session: here the items shown were "
            "forgotten in the middle of an episode, as between the visits of KuaiRand-Retention-v0."
        )
    return exposed[rows, places].astype(np.int64), responses[rows, places]


def check_mean_response(rewards: NDArray[np.float32], responses: NDArray[np.float32]) -> None:
    """Checks that (N,) rewards are the means of (N, K) responses.

    Raises:
        ConfigError: They are not.
    """
    if not np.allclose(responses.mean(axis=1), rewards, atol=1e-4):
        raise ConfigError(
            "HierarchicalPPO credits items with their own responses, which needs a reward that is "
            "their mean; the rewards of this environment differ, or were changed on the way."
        )


def within_group_credit(
    responses: NDArray[np.float32], popular: NDArray[np.bool_]
) -> NDArray[np.float32]:
    """How much better each draw was answered than the slate's others of its popularity group.

    Args:
        responses: (N, K).
        popular: (N, K) of each draw.

    Returns:
        (N, K) float32, summing to zero over each group of a slate.
    """
    credit = np.zeros_like(responses)
    for group in (popular, ~popular):
        size = np.maximum(group.sum(axis=1, keepdims=True), 1)
        mean = (responses * group).sum(axis=1, keepdims=True) / size
        credit += (responses - mean) * group
    return credit


class Steps:
    """What a rollout's steps were like, for the logger."""

    def __init__(self) -> None:
        self._rows: list[list[float]] = []
        self._q: list[float] = []

    def add(
        self,
        popular: NDArray[np.bool_],
        fair: NDArray[np.float32],
        rewards: NDArray[np.float32],
        infos: list[dict[str, Any]],
    ) -> None:
        """Adds one step of all sessions."""
        self._rows.append([popular.mean(), fair.mean(), *rewards.mean(axis=0)])
        self._q += [info["session"]["q"] for info in infos if "session" in info]

    @property
    def mean_fair(self) -> float:
        """Mean of Fair."""
        return float(np.mean(self._rows, axis=0)[1])

    def record(self, logger: Logger, weight: float) -> None:
        """Writes the means; ``weight`` is lambda."""
        names = ("popular_share", "fairness", "manager_reward", "worker_reward")
        for name, value in zip(names, np.mean(self._rows, axis=0), strict=True):
            logger.record(f"rollout/{name}", float(value))
        logger.record("rollout/multiplier", weight)
        if self._q:
            logger.record("rollout/q", float(np.mean(self._q)))
