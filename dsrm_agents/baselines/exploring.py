"""Ranking by the belief, by a policy that learns the items, too: Thompson sampling.

Nobody has logged an item that has just been born. The factor model knows how much it may differ
from what its features say; answers of all sessions tell how much it does.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from dsrm_agents.baselines.bands import Composition
from dsrm_agents.baselines.slates import best_slates
from kuaisim_gym.envs.assembly import SessionBatch
from kuaisim_gym.randomness import POLICY_STREAM, uniform

FloatArray = NDArray[np.float32]
_LEAST_VARIANCE = 1e-6  # of an item's score before any answer


class ExploringFilter:
    """Shows the best items by scores that are drawn from what is known of users and items.

    An item's score for a user is the posterior mean of the user's preference, as of the row
    ``filter``, plus the item's own offset, Gaussian with the factor model's variance of an item's
    score at first. Every answer y to an expected p, at a slope b of p over the score, is Gaussian
    evidence of the offset with variance ``p (1 - p) / b**2``: that of a yes or no, so that learning
    from shares that were watched is slower than it could be. Each session's slate is the best by
    offsets drawn for it alone (Thompson, Biometrika 1933).

    All sessions are of one platform, and what they learn ends with it: where it opens anew, the
    policy forgets. The last answers of a session are not learned from, since its slot has begun the
    next by the time that the policy is asked again.

    Args:
        batch: Sessions to act in, before their first step.
        composition: Numbers of items of each group in a slate.
    """

    def __init__(self, batch: SessionBatch, composition: Composition) -> None:
        self.batch, self.composition = batch, composition
        self._model = batch.belief().model  # from the sessions' start
        n_items = batch.catalogue.n_items
        self._prior = 1.0 / np.maximum(self._model.variance[:n_items], _LEAST_VARIANCE)
        self._forget()
        self._shown: tuple[NDArray[np.int64], NDArray[np.float64]] | None = None
        self._session = np.full((2, batch.n_sessions), -1, dtype=np.int64)
        self._opening = self._platform()

    @property
    def offsets(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """(n_items,) posterior means and variances of the items' offsets."""
        return self._evidence / self._precision, 1.0 / self._precision

    def predict(
        self,
        observation: Any,
        state: Any = None,
        episode_start: Any = None,
        deterministic: bool = True,
    ) -> tuple[NDArray[np.int64], None]:
        """Learns from the last answers, and shows the best items by drawn scores.

        Args:
            observation: Not read.
            state: Not used.
            episode_start: Not used.
            deterministic: Not used: draws are those of the sessions' own seeds.

        Returns:
            (N, K) item positions, and no hidden state.
        """
        self._learn()
        scores = self.composition.adjusted(self._drawn_scores())
        slates = best_slates(self.batch, scores, self.composition(scores))
        belief, sessions = self.batch.belief(), self.batch.core.state
        taste = np.einsum("nkd,nd->nk", self._model.vectors[slates], belief.mean[:, 1:])
        self._shown = slates, self._model.quality[slates] + belief.mean[:, :1] + taste
        self._session = np.stack([sessions.episodes, sessions.steps])
        return slates, None

    def _drawn_scores(self) -> FloatArray:
        """(N, n_items) float32."""
        state, (mean, variance) = self.batch.core.state, self.offsets
        lots = ndtri(uniform(state.seeds, state.episodes, state.steps, len(mean), POLICY_STREAM))
        drawn = mean + np.sqrt(variance) * lots
        return np.asarray(self.batch.belief().scores() + drawn, dtype=np.float32)

    def _learn(self) -> None:
        """Learns from the answers to the last slates."""
        if self._platform() != self._opening:
            self._opening = self._platform()
            self._forget()
            return
        state, (episodes, steps) = self.batch.core.state, self._session
        went_on = (state.episodes == episodes) & (state.steps == steps + 1)
        if self._shown is None or not went_on.any():
            return
        rows = np.flatnonzero(went_on)
        slates, scores = self._shown[0][rows], self._shown[1][rows]
        answers = state.responses[rows, steps[rows]]
        offset = self.offsets[0][slates]
        expected = self._model.expected(scores + offset)
        slope = self._model.slope(scores + offset)
        information = slope**2 / (expected * (1.0 - expected))
        evidence = slope * (answers - expected) / (expected * (1.0 - expected))
        np.add.at(self._precision, slates, information)
        np.add.at(self._evidence, slates, evidence + information * offset)

    def _forget(self) -> None:
        """Knows of the items what the model knows."""
        self._precision, self._evidence = self._prior.copy(), np.zeros_like(self._prior)

    def _platform(self) -> int:
        """Number of times that the platform has opened; 0 where the catalogue is fixed."""
        platform = self.batch.platform
        return 0 if platform is None else platform.today[0]
