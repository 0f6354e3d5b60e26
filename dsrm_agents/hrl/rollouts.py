"""Per-item credit and logging statistics of a rollout."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from stable_baselines3.common.logger import Logger


def within_group_credit(
    responses: NDArray[np.float32], groups: NDArray[np.generic]
) -> NDArray[np.float32]:
    """Response to each item above the mean of the slate's items of its group.

    Args:
        responses: (N, K).
        groups: (N, K), of each item.

    Returns:
        (N, K) float32, summing to zero over each group of a slate.
    """
    alike = groups[:, :, None] == groups[:, None, :]
    mean = (responses[:, None, :] * alike).sum(axis=2) / alike.sum(axis=2)
    return np.asarray(responses - mean, dtype=np.float32)


class RolloutStatistics:
    """Means over the steps of a rollout, for the logger."""

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
