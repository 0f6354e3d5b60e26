"""Per-item responses of the last slate, for agents that assign credit to items."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from dsrm_agents.common.catalogue import CURE
from kuaisim_gym.errors import ConfigError


def shown_slates(
    before: dict[str, NDArray[Any]],
    after: Any,
    dones: NDArray[np.bool_],
    infos: list[dict[str, Any]],
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Reads the last slates and their responses off the observations.

    Args:
        before: Observations before the step.
        after: Observations after it, of the next session where one ended.
        dones: (N,) bool.
        infos: Of the step.

    Returns:
        (N, K) int64 items and (N, K) float32 responses.

    Raises:
        ConfigError: The observations do not show the slates.
    """
    exposed, responses = after["exposed"].copy(), after["responses"].copy()
    for slot in np.flatnonzero(dones):
        last = infos[slot]["terminal_observation"]
        exposed[slot], responses[slot] = last["exposed"], last["responses"]
    start = (before["exposed"] >= 0).sum(axis=1)
    size = int((exposed[0] >= 0).sum() - start[0])
    columns = start[:, None] + np.arange(size)
    rows = np.arange(len(columns))[:, None]
    if size < 1:
        raise ConfigError(
            "Credit by item needs episodes that are one session: here the items shown were "
            "forgotten in the middle of an episode, as between the visits of KuaiRand-Retention-v0."
        )
    return exposed[rows, columns].astype(np.int64), responses[rows, columns]


def check_mean_response(rewards: NDArray[np.float32], responses: NDArray[np.float32]) -> None:
    """Checks that (N,) rewards are the means of (N, K) responses.

    Raises:
        ConfigError: They are not.
    """
    if not np.allclose(responses.mean(axis=1), rewards, atol=1e-4):
        raise ConfigError(
            "Items are credited with their own responses, which needs a reward that is their mean; "
            f"the rewards of this environment differ, or were changed on the way. {CURE}"
        )
