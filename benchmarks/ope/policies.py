"""The policies of the study: softmax rankers of one world, by score, temperature and dial."""

from __future__ import annotations

from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dsrm_agents import make_vec_env
from dsrm_agents.ope.estimators import Columns, Interval, delta_interval
from dsrm_agents.ope.evaluation import session_metrics
from dsrm_agents.ope.logged import LoggedSessions
from dsrm_agents.ope.propensities import SoftmaxPolicy
from dsrm_agents.ope.recording import log_sessions
from kuaisim_gym.envs.assembly import SessionBatch

from ..runs.settings import Run

USERS = 400  # test users whose sessions are played: tables of scores of all would fill the memory
TOGETHER = 20_000  # sessions that are played at once


class Ranker(NamedTuple):
    """A policy in a few numbers.

    Attributes:
        score: ``"belief"``, the belief about the user before the session; ``"quality"``, the items'
            mean logged answers; ``"popularity"``; or ``"none"``, which is uniform.
        temperature: Of the softmax, in units of the scores' spread over the catalogue.
        share: Long-tail share of the slates; ``None`` leaves it to the scores.
    """

    score: str
    temperature: float = 1.0
    share: float | None = None

    @property
    def label(self) -> str:
        """The policy in words."""
        if self.score == "none" and self.share is None:
            return "uniform"
        dial = "" if self.share is None else f", {self.share:g} long tail"
        return f"{self.score} at {self.temperature:g}{dial}"


class OpeWorld:
    """A world whose policies are known.

    Args:
        spec: Environment, data, length and slates.
    """

    def __init__(self, spec: Run) -> None:
        self.spec, self.dataset = spec, spec.load()
        users = self.dataset.test_users
        self.users = users[:: max(len(users) // USERS, 1)][:USERS]
        batch = self.batch(len(self.users))
        belief = batch.belief()
        batch.core.reset(users=self.users)
        batch.encoder.reset(np.ones(len(self.users), dtype=bool))
        self._belief = belief.scores()
        self._quality = batch.catalogue.item_embedding[:, 0]
        self._popularity = batch.catalogue.log_popularity
        self._labels = batch.groups.labels.astype(np.int64)
        self.popular: NDArray[np.bool_] = batch.catalogue.popular
        # What the platform expects of the users' answers, from logs before the sessions.
        self.covariate = belief.model.mean[:, 0]

    def batch(self, n: int) -> SessionBatch:
        """n sessions of the test users."""
        options: dict[str, Any] = {"action_type": "slate", **self.spec.session_options}
        users = self.users
        env = make_vec_env(self.spec.env, n, "test", dataset=self.dataset, users=users, **options)
        return env.batch

    @cached_property
    def _crowd(self) -> SessionBatch:
        return self.batch(TOGETHER)

    def policy(self, ranker: Ranker) -> SoftmaxPolicy:
        """The policy."""
        scores = {
            "belief": self._belief,
            "quality": self._quality,
            "popularity": self._popularity,
            "none": np.zeros_like(self._quality),
        }[ranker.score]
        spread = float(scores.std(axis=-1).mean()) or 1.0
        dial = None if ranker.share is None else (ranker.share, 1.0 - ranker.share)
        labels = None if dial is None else self._labels
        users = self.users if scores.ndim == 2 else None
        return SoftmaxPolicy(scores / spread, ranker.temperature, dial, labels, users)

    def log(self, policy: SoftmaxPolicy, n: int, seed: int) -> LoggedSessions:
        """n logged sessions, at most ``TOGETHER``."""
        batch = self._crowd if n == TOGETHER else self.batch(n)
        return log_sessions(batch, policy, seed)

    def truth(self, policy: SoftmaxPolicy, n: int, seed: int) -> Interval:
        """(5,) metrics of n sessions of the policy itself, and their 95 % intervals."""
        sums = []
        for first in range(0, n, TOGETHER):
            logged = self.log(policy, min(n - first, TOGETHER), seed + first)
            shown = logged.slates >= 0
            popular = self.popular[np.where(shown, logged.slates, 0)] & shown
            sums.append(
                np.stack(
                    [logged.length, logged.rewards.sum(axis=1), popular.mean(axis=2).sum(axis=1)],
                    axis=1,
                )
            )
        return delta_interval(Columns(np.concatenate(sums), session_metrics))
