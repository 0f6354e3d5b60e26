"""Audit of finished sessions: ten ways to say how fair and how even their exposure was."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kuaisim_gym.errors import DataFormatError
from kuaisim_gym.metrics.exposure import (
    Counts,
    Labels,
    attention,
    coverage,
    entropy,
    gini,
    group_difference,
    group_divergence,
    group_shares,
    jain_index,
    novelty,
    self_information,
    slate_unfairness,
)
from kuaisim_gym.metrics.merit import (
    envy,
    equal_exposure,
    expected_exposure,
    exposure_over_merit,
    inequity,
)
from kuaisim_gym.metrics.sessions import FloatArray, Sessions
from kuaisim_gym.metrics.users import worst_mean

PATIENCE = 0.85  # LensKit's; .85 ** 9 = .23: the tenth item of a slate is looked at by one in four
RELEVANT = 0.1  # share of the catalogue that is relevant to a user: the best by expected response
ENVIED = 1000  # sessions at most that a user compares with, spread evenly


@dataclass(frozen=True, eq=False)
class Merit:
    """Expected responses of some users to all items: what these deserve of them.

    Attributes:
        users: (U,) int32 positions of the users, ascending.
        responses: (U, n_items) float32 in [0, 1].
    """

    users: NDArray[np.int32]
    responses: NDArray[np.float32]

    def rows(self, users: NDArray[np.int32]) -> NDArray[np.int64]:
        """(S,) int64 rows of users.

        Raises:
            DataFormatError: A user has no row.
        """
        rows = np.minimum(np.searchsorted(self.users, users), len(self.users) - 1)
        strangers = users[self.users[rows] != users]
        if strangers.size:
            raise DataFormatError(
                f"Merit has no row of user {strangers[0]}, whose session is audited; give the "
                "expected responses of np.unique(sessions.users)."
            )
        return rows


@dataclass(frozen=True, eq=False)
class Comparison:
    """Merit beside what the sessions showed.

    Attributes:
        responses: (U, n_items) float32 expected responses.
        ideal: (U, n_items) float32 target exposures by expected response.
        rows: (S,) row of each session's user in the two.
        envied: (V,) sessions that all users compare theirs with.
        envies: (S, V) float64 envy of each session's user.
    """

    responses: NDArray[np.float32]
    ideal: NDArray[np.float32]
    rows: NDArray[np.int64]
    envied: NDArray[np.int64]
    envies: FloatArray

    @classmethod
    def of(
        cls, sessions: Sessions, merit: Merit, counts: Any, weights: FloatArray, relevant: float
    ) -> Comparison:
        """Compares merit with the counts of :class:`Audit`."""
        rows, n = merit.rows(sessions.users), len(sessions)
        envied = np.unique(np.linspace(0, n - 1, min(n, ENVIED)).astype(np.int64))
        # Of every session, the mean response of every user to its slates.
        worth = (counts @ merit.responses.T) / counts.sum(axis=1)[:, None]
        ideal = equal_exposure(relevance(merit.responses, relevant), weights)
        return cls(
            responses=merit.responses,
            ideal=ideal.astype(np.float32),
            rows=rows,
            envied=envied,
            envies=envy(worth[envied][:, rows].T, worth[np.arange(n), rows]),
        )


@dataclass(frozen=True, eq=False)
class Audit:
    """The sessions' exposure, worked out once, in a form that is quick to resample.

    Make it with :meth:`of`. Every metric is a function of sums over the sessions, weighted by
    how often each is in the sample.

    Attributes:
        weight: (S,) float64 times that each session is in the sample.
        length: (S,) float64 steps.
        reward: (S,) float64 mean reward of a step.
        counts: (S, n_items) how often each session showed each item.
        attended: (S, n_items) attention that it got, 1 for each slate.
        unfairness: (S,) sum of the AWRF of the slates that hold an item of a group.
        n_judged: (S,) number of those slates.
        labels: (n_items,) groups, -1 for none.
        target: (G,) target distribution over groups.
        information: (n_items,) self-information of the items in bits.
        comparison: The same sessions beside merit, or ``None`` where that is not known.
    """

    weight: FloatArray
    length: FloatArray
    reward: FloatArray
    counts: Any  # scipy.sparse.csr_array
    attended: Any  # scipy.sparse.csr_array
    unfairness: FloatArray
    n_judged: FloatArray
    labels: Labels
    target: FloatArray
    information: FloatArray
    comparison: Comparison | None = None

    @classmethod
    def of(
        cls,
        sessions: Sessions,
        labels: Labels,
        popularity: Counts,
        merit: Merit | None = None,
        target: FloatArray | None = None,
        patience: float = PATIENCE,
        relevant: float = RELEVANT,
    ) -> Audit:
        """Audits finished sessions.

        Args:
            sessions: Finished sessions.
            labels: (n_items,) groups from 0 on, -1 for items of no group.
            popularity: (n_items,) counts of exposures or positives, by which novelty is measured.
            merit: Expected responses of the sessions' users; ``None`` to leave out what needs them.
            target: (G,) distribution over groups, equal shares if ``None``.
            patience: Of the browsing model of :func:`~kuaisim_gym.metrics.attention`, for exposure
                over merit, expected exposure and AWRF; the other metrics count exposures.
            relevant: Share of the catalogue, by expected response, that is relevant to a user.

        Raises:
            DataFormatError: There is no group, the target is no distribution over the groups,
                merit lacks a user, or an array does not fit the items.
        """
        goal = group_target(labels, target)
        if len(popularity) != len(labels) or sessions.slates.max(initial=-1) >= len(labels):
            raise DataFormatError(
                f"labels and popularity must have a number for each item, got {len(labels)} and "
                f"{len(popularity)}; the sessions show item {sessions.slates.max(initial=-1)}."
            )
        n, weights = len(sessions), attention(sessions.slates.shape[2], patience)
        shown = sessions.slates[:, :, 0] >= 0
        session, slates = np.nonzero(shown)[0], sessions.slates[shown]
        unfairness = slate_unfairness(slates, labels, goal, weights)
        judged = ~np.isnan(unfairness)
        counts, attended = (
            _by_session(slates, session, mass, (n, len(labels)))
            for mass in (np.ones(len(weights)), weights)
        )
        return cls(
            weight=np.ones(n),
            length=sessions.length.astype(np.float64),
            reward=sessions.rewards.sum(axis=1) / sessions.length,
            counts=counts,
            attended=attended,
            unfairness=_totals(session[judged], unfairness[judged], n),
            n_judged=_totals(session, judged.astype(np.float64), n),
            labels=labels,
            target=goal,
            information=self_information(popularity),
            comparison=(
                None if merit is None else Comparison.of(sessions, merit, counts, weights, relevant)
            ),
        )

    def __len__(self) -> int:
        return len(self.weight)

    def take(self, rows: NDArray[np.int64]) -> Audit:
        """The same audit of some of the sessions, repeats allowed."""
        times = np.bincount(rows, minlength=len(self))
        return replace(self, weight=self.weight * times)

    def summarise(self) -> dict[str, float]:
        """The metrics by their names in result files, see :data:`EXPOSURE_METRICS`."""
        return {
            metric.name: metric.measure(self)
            for metric in EXPOSURE_METRICS
            if self.comparison is not None or not metric.needs_merit
        }

    @cached_property
    def exposure(self) -> FloatArray:
        """(n_items,) how often each item was shown."""
        return np.asarray(self.weight @ self.counts)

    @cached_property
    def shares(self) -> FloatArray:
        """(G,) each group's share of the exposures."""
        return group_shares(self.exposure, self.labels, len(self.target))

    @cached_property
    def attention_share(self) -> FloatArray:
        """(n_items,) each item's share of all attention."""
        total = np.asarray(self.weight @ self.attended)
        return np.asarray(total / total.sum())

    @cached_property
    def merit_share(self) -> FloatArray:
        """(n_items,) each item's share of the merit, which every slate's user counts once for."""
        total = self._requests @ self._compared.responses
        return np.asarray(total / total.sum())

    @cached_property
    def expected_exposure(self) -> tuple[float, float, float]:
        """EE-L, EE-D and EE-R of a request of any of the users.

        Exposure and target are means over all slates, and in units of an equal share for all items:
        EE-D is 1 where all items get the same, and n_items / K where all slates are alike and the
        whole slate is looked at.
        """
        ideal = self._requests @ self._compared.ideal
        values = expected_exposure(self.attention_share, ideal / ideal.sum())
        loss, disparity, relevance = (len(self.labels) * float(value) for value in values)
        return loss, disparity, relevance

    @cached_property
    def group_merit(self) -> float:
        """Smallest group's attention per merit over the largest's."""
        groups = self.labels, len(self.target)
        attended, deserved = (
            group_shares(share, *groups) for share in (self.attention_share, self.merit_share)
        )
        return exposure_over_merit(attended, deserved)

    @cached_property
    def envy(self) -> float:
        """Mean envy over pairs of different sessions, in units of the response; NaN of none."""
        envied, envies = self._compared.envied, self._compared.envies
        weight = self.weight
        pairs = weight.sum() * weight[envied].sum() - (weight[envied] ** 2).sum()
        return float(weight @ envies @ weight[envied] / pairs) if pairs else np.nan

    @property
    def _compared(self) -> Comparison:
        if self.comparison is None:
            raise DataFormatError("This metric needs the users' expected responses: give merit.")
        return self.comparison

    @property
    def _requests(self) -> NDArray[np.float32]:
        """(U,) float32 number of slates that each user was shown."""
        compared = self._compared
        requests = _totals(compared.rows, self.weight * self.length, len(compared.ideal))
        return requests.astype(np.float32)


@dataclass(frozen=True)
class ExposureMetric:
    """A number of an audit.

    Attributes:
        name: Key in result files.
        title: Heading of tables and figures.
        goal: Its value in the fairest or most even case; ``None`` where there is no such value.
        measure: The metric.
        needs_merit: Whether it needs the users' expected responses.
    """

    name: str
    title: str
    goal: float | None
    measure: Callable[[Audit], float]
    needs_merit: bool = False


EXPOSURE_METRICS: tuple[ExposureMetric, ...] = (
    ExposureMetric(
        "group_ad", "group AD", 0.0, lambda a: float(group_difference(a.shares, a.target))
    ),
    ExposureMetric(
        "group_kl", "group KL", 0.0, lambda a: float(group_divergence(a.shares, a.target))
    ),
    ExposureMetric(
        "group_jain", "group Jain", 1.0, lambda a: float(jain_index(a.shares, a.target))
    ),
    ExposureMetric("merit_ratio", "exposure / merit", 1.0, lambda a: a.group_merit, True),
    ExposureMetric(
        "inequity", "inequity", 0.0, lambda a: float(inequity(a.attention_share, a.merit_share)),
        True,
    ),
    ExposureMetric("ee_l", "EE-L", 0.0, lambda a: a.expected_exposure[0], True),
    ExposureMetric("ee_d", "EE-D", 1.0, lambda a: a.expected_exposure[1], True),
    ExposureMetric("ee_r", "EE-R", None, lambda a: a.expected_exposure[2], True),
    ExposureMetric(
        "awrf", "AWRF", 0.0, lambda a: float(a.weight @ a.unfairness / (a.weight @ a.n_judged))
    ),
    ExposureMetric("envy", "envy", 0.0, lambda a: a.envy, True),
    ExposureMetric("gini", "Gini", 0.0, lambda a: float(gini(a.exposure))),
    ExposureMetric("coverage", "coverage", 1.0, lambda a: coverage(a.exposure)),
    ExposureMetric("entropy", "entropy", 1.0, lambda a: float(entropy(a.exposure))),
    ExposureMetric("novelty", "novelty", None, lambda a: novelty(a.exposure, a.information)),
    ExposureMetric(
        "len_worst", "Len, worst tenth", None, lambda a: worst_mean(a.length, weight=a.weight)
    ),
    ExposureMetric(
        "r_each_worst", "R_each, worst tenth", None,
        lambda a: worst_mean(a.reward, weight=a.weight),
    ),
)  # fmt: skip


def summarise_exposure(
    sessions: Sessions,
    labels: Labels,
    popularity: Counts,
    merit: Merit | None = None,
    **options: Any,
) -> dict[str, float]:
    """Metrics of exposure, by their names in result files; the arguments are those of an audit.

    ``bootstrap_ci95(audit, Audit.summarise, rng)`` gives their intervals.

    Args:
        sessions: Finished sessions.
        labels: (n_items,) groups from 0 on, -1 for items of no group.
        popularity: (n_items,) counts.
        merit: Expected responses of the sessions' users; ``None`` to leave out what needs them.
        **options: As for :meth:`Audit.of`.
    """
    return Audit.of(sessions, labels, popularity, merit, **options).summarise()


def relevance(responses: NDArray[np.float32], share: float) -> NDArray[np.int8]:
    """(U, n_items) int8: 1 for the share of items with the best responses of a user, else 0.

    Args:
        responses: (U, n_items) expected responses.
        share: In (0, 1].
    """
    count = max(1, round(share * responses.shape[1]))
    best = np.argsort(-responses, axis=1, kind="stable")[:, :count]
    grades = np.zeros(responses.shape, dtype=np.int8)
    np.put_along_axis(grades, best, 1, axis=1)
    return grades


def group_target(labels: Labels, target: FloatArray | None = None) -> FloatArray:
    """(G,) target distribution over the groups, equal shares if ``None``.

    Raises:
        DataFormatError: There is no group, or the target is no distribution over the groups.
    """
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise DataFormatError(
            f"labels must be (n_items,) integers, got {labels.dtype} of shape {labels.shape}."
        )
    n_groups = int(labels.max(initial=-1)) + 1
    if n_groups == 0 or labels.min() < -1:
        raise DataFormatError(
            "labels must number groups from 0 on, -1 for none; they lie between "
            f"{labels.min(initial=-1)} and {labels.max(initial=-1)}."
        )
    if target is None:
        return np.full(n_groups, 1.0 / n_groups)
    goal = np.asarray(target, dtype=np.float64)
    fits = goal.ndim == 1 and len(goal) >= n_groups  # a last group may have no item
    if not fits or (goal < 0).any() or not np.isclose(goal.sum(), 1.0):
        raise DataFormatError(
            f"target must be shares that sum to 1, one for each of {n_groups} groups, got {target}."
        )
    return goal


def _by_session(
    slates: NDArray[np.int32], session: NDArray[np.int64], mass: FloatArray, shape: tuple[int, int]
) -> Any:
    """Sparse array of (sessions, items): the mass of each item's ranks in a session's slates."""
    from scipy.sparse import csr_array  # importing the environments stays light

    rows = np.repeat(session, slates.shape[1])
    values = np.broadcast_to(mass, slates.shape).ravel()
    return csr_array((values, (rows, slates.ravel())), shape=shape)


def _totals(rows: NDArray[np.int64], values: FloatArray, size: int) -> FloatArray:
    """(size,) float64: sum of the values of each row."""
    return np.bincount(rows, weights=values, minlength=size).astype(np.float64)
