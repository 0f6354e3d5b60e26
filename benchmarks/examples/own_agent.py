"""An agent of one's own: a class, and no more.

    kuaisim evaluate kuaisim_benchmarks.examples.own_agent:HalfAndHalf KuaiRec-Fair-v0
    kuaisim play kuaisim_benchmarks.examples.own_agent:HalfAndHalf

All commands with an agent take it as ``module:Class``; the module needs nothing of this package.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from kuaisim_gym import SessionBatch


class HalfAndHalf:
    """Half of a slate is popular, half long tail: the items that the log counts most, once each.

    Args:
        batch: The sessions that are to be played.
    """

    name = "half-and-half"
    env_options = {"action_type": "slate", "observation_type": "dict"}

    def __init__(self, batch: SessionBatch) -> None:
        catalogue = batch.catalogue
        self.popular, self.exposures = catalogue.popular, catalogue.exposures
        self.slate_size = batch.config.slate_size

    def predict(
        self,
        observation: Any,
        state: Any = None,
        episode_start: Any = None,
        deterministic: bool = True,
    ) -> tuple[NDArray[np.int64], None]:
        """Slates for all sessions: (N, K) item positions, and no hidden state."""
        exposed = observation["exposed"]  # (N, room), -1 padded
        sessions, places = np.nonzero(exposed >= 0)
        scores = np.tile(self.exposures.astype(float), (len(exposed), 1))
        scores[sessions, exposed[sessions, places].astype(int)] = -1.0  # shown before
        half = self.slate_size // 2
        best = [
            np.argsort(-np.where(group, scores, -2.0), axis=1, kind="stable")[:, :size]
            for group, size in ((self.popular, half), (~self.popular, self.slate_size - half))
        ]
        return np.concatenate(best, axis=1), None
