"""Numbers of popular items in a slate: any, half of it, or as many as cost no penalty.

A user who starts with temper T survives m steps if ``2 m - G <= T - 1``, G the sum of their
rewards. G depends on which items these steps show, not on their order. Within a group the items
with the best answers come first, so that G depends on a single number: how many of the m K items
are popular, between m times the least and m times the most that a slate may hold. The longest
session is the greatest m that some number in this range survives.

Slates that are each the best within the band may miss it. A band from 4 to 6 takes 6 where popular
items are better, and has to take 4 bad ones later, where 5 and 5 would have taken 4 good ones and 1
bad one less. :class:`PlannedBand` therefore plans the number, up to the last step that the user is
expected to survive, and fills each slate as well as this plan allows.
"""

from __future__ import annotations

from typing import ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dsrm_agents.baselines.slates import unexposed
from dsrm_agents.common.catalogue import check_fixed
from kuaisim_gym.envs.assembly import SessionBatch
from kuaisim_gym.errors import ConfigError
from kuaisim_gym.simulator.groups import SLACK

FloatArray = NDArray[np.float32]
CountArray = NDArray[np.int64]


class Band(NamedTuple):
    """Least and most popular items of a slate, the same or one for each of N sessions."""

    least: int | CountArray
    most: int | CountArray


class Composition:
    """Numbers of items of each group in the slates of a batch: any that make the best slates.

    Args:
        batch: N sessions.

    Attributes:
        keeps_target: Whether sessions are held at the groups' target.
        reads_scores: Whether numbers depend on the scores.
    """

    keeps_target: ClassVar[bool] = False
    reads_scores: ClassVar[bool] = False

    def __init__(self, batch: SessionBatch) -> None:
        self.batch = batch

    def __call__(self, scores: FloatArray | None) -> CountArray | None:
        """Numbers for the next slates.

        Args:
            scores: (N, n_items) float32; ``None`` where they are not read.

        Returns:
            (N, G); ``None`` for the best items, whatever their group.
        """
        return None

    def adjusted(self, scores: FloatArray) -> FloatArray:
        """Scores by which the items of the next slates are the best.

        Args:
            scores: (N, n_items) float32.

        Returns:
            Likewise; the same, but for compositions that serve providers.
        """
        return scores


class Quota(Composition):
    """Numbers that are due to the groups: half popular, by default.

    Where that is no whole number of items, slates alternate, so that the session comes as near to
    the due shares as whole items can.

    Attributes:
        schedule: (longest, G) int64, the numbers for each step of a session.

    Raises:
        ConfigError: A group has too few items for a slate.
    """

    keeps_target = True

    def __init__(self, batch: SessionBatch) -> None:
        super().__init__(batch)
        groups, k = batch.core.groups, batch.config.slate_size
        self.schedule = np.zeros((batch.config.step_limit, len(groups)), dtype=np.int64)
        for step, counts in enumerate(self.schedule):
            due = groups.target * k * (step + 1) - self.schedule[:step].sum(axis=0)
            for _ in range(k):
                counts[np.argmax(np.round(due - counts, 6))] += 1  # thirds are not exact
        most = self.schedule.max(axis=0)
        for name, size, count in zip(groups.names, groups.sizes, most, strict=True):
            if size < count:
                raise ConfigError(
                    f"A quota needs {count} items of the group {name!r}, which has {size} of "
                    f"{groups.n_items}: choose shorter slates, or a row without +quota."
                )

    def __call__(self, scores: FloatArray | None) -> CountArray:
        last = len(self.schedule) - 1
        return self.schedule[np.minimum(self.batch.core.state.steps, last)]


class ProviderControl(Quota):
    """A quota whose items are raised as far as their providers are behind what is due to them.

    Proportional control as of FairCo (Morik et al., SIGIR 2020): a score grows by :attr:`gain`
    standard deviations of the session's scores of today's items for each exposure that is owed to
    the provider. Deviations: FairCo counts from the group that is furthest ahead, here from what is
    due, and providers who have it compete by their scores alone; one more exposure is owed than is
    due, because control stops short of its aim.

    Attributes:
        gain: Standard deviations for each exposure that is owed.

    Raises:
        ConfigError: As for the base class, or nothing is due to providers.
    """

    gain: ClassVar[float] = 0.25

    def __init__(self, batch: SessionBatch) -> None:
        super().__init__(batch)
        if batch.core.platform is None or batch.core.platform.providers is None:
            raise ConfigError(
                "A row with +providers serves those to whom exposure is due, and here it is to "
                'nobody: make the environment with catalogue={"providers": {...}}.'
            )
        self._platform, self._providers = batch.core.platform, batch.core.platform.providers

    def adjusted(self, scores: FloatArray) -> FloatArray:
        due, counts = self._providers.due, self._providers.exposures
        owed = np.where(due > 0, np.maximum(due * counts.sum() + 1.0 - counts, 0.0), 0.0)
        spread = scores[:, self._platform.available].std(axis=1, keepdims=True)
        raised = scores + self.gain * spread * owed[self._providers.labels]
        return np.asarray(raised, dtype=np.float32)


class InBand(Composition):
    """Each slate is the best of those that cost no penalty.

    Attributes:
        band: The popular counts without penalty, or of the second of any two groups.

    Raises:
        ConfigError: There are more groups than two; or the window is not one slate, so that the
            cost of a slate depends on earlier ones; or no count is without penalty.
    """

    reads_scores = True

    def __init__(self, batch: SessionBatch) -> None:
        super().__init__(batch)
        self.band = unpenalised_band(batch)

    def __call__(self, scores: FloatArray | None) -> CountArray:
        assert scores is not None
        return self._best_counts(scores, self.band)

    def _best_counts(self, scores: FloatArray, band: Band) -> CountArray:
        """(N, 2): a slate's sum is concave in its count, so the nearest to the free one is best."""
        core, k = self.batch.core, self.batch.config.slate_size
        slates = core.engine.top_items(unexposed(self.batch, scores), k)
        popular = np.clip(core.groups.labels[slates].sum(axis=1), band.least, band.most)
        return np.stack([k - popular, popular], axis=1)


class PlannedBand(InBand):
    """Slates without penalty that lead to the longest session; scores must be expected answers.

    No sequence of such slates is longer if answers are certain. Where they are draws, every step
    plans anew from what happened.

    Raises:
        ConfigError: As for the base class, or items may leave before a plan is carried out.
    """

    def __init__(self, batch: SessionBatch) -> None:
        changes = batch.core.platform is not None
        check_fixed(changes, f"{type(self).__name__}, which plans whole sessions,")
        super().__init__(batch)

    def __call__(self, scores: FloatArray | None) -> CountArray:
        assert scores is not None
        core, k, (least, most) = self.batch.core, self.batch.config.slate_size, self.band
        left = np.maximum(core.config.step_limit - core.state.steps, 1)
        temper = np.where(core.state.active, core.state.temper, 1.0)
        is_request = core.config.step_cost == "request"  # sessions of a length that is given
        longest = max(1, min(int((temper + SLACK).max()), int(left.max())))  # a step costs >= 1
        steps = np.arange(1, longest + 1)
        ranking = _Ranking(self.batch, scores, longest * k)
        totals = np.clip(self._totals(ranking, steps), least * steps, most * steps)
        reward = ranking.sums(totals, steps * k - totals) / k
        cost = 1.0 * steps if is_request else 2.0 * steps - reward + 1.0
        survived = (cost <= temper[:, None] + SLACK) & (steps <= left[:, None])
        last = np.maximum(survived.sum(axis=1), 1)  # each step adds to the cost
        total = np.take_along_axis(totals, last[:, None] - 1, axis=1)[:, 0]
        # What later slates can still make up for.
        lowest = np.maximum(least, total - (last - 1) * most)
        highest = np.minimum(most, total - (last - 1) * least)
        return self._best_counts(scores, Band(lowest, highest))

    def _totals(self, ranking: _Ranking, steps: CountArray) -> CountArray:
        """(N, M) wanted numbers of popular items in the next m slates, m = 1 to M."""
        return ranking.popular_among_best(steps * self.batch.config.slate_size)


class BalancedBand(PlannedBand):
    """Slates without penalty whose groups have their due shares over the expected session.

    As G above depends on the number alone, which is given, this cannot survive a step more than
    :class:`Quota` where answers are certain: it gains where a session ends sooner than expected.
    """

    keeps_target = True

    def _totals(self, ranking: _Ranking, steps: CountArray) -> CountArray:
        core, k = self.batch.core, self.batch.config.slate_size
        state, groups = core.state, core.groups
        is_shown = np.arange(state.slates.shape[1]) < state.steps[:, None]
        popular = (groups.labels[state.slates] * is_shown[:, :, None]).sum(axis=(1, 2))
        due = k * (state.steps[:, None] + steps) * groups.target[1]
        return np.asarray(np.floor(due + SLACK) - popular[:, None], dtype=np.int64)


COMPOSITIONS: dict[str, type[Composition]] = {
    "": Composition,
    "+quota": Quota,
    "+providers": ProviderControl,
    "+band": InBand,
    "+balanced-band": BalancedBand,
    "+planned-band": PlannedBand,
}


def unpenalised_band(batch: SessionBatch) -> Band:
    """The popular counts of a slate that cost no penalty, as far as the groups have items.

    Raises:
        ConfigError: As for :class:`InBand`.
    """
    config, groups = batch.config, batch.core.groups
    k = config.slate_size
    if len(groups) != 2:
        raise ConfigError(
            f"A band is for two groups, got {len(groups)} of {groups.column}: take a row with "
            "+quota."
        )
    if config.exposure_window != k:
        raise ConfigError(
            f"A band needs an exposure window of one slate, {k} items, got window="
            f"{config.exposure_window}: leave window out, or take a row with +quota."
        )
    (_, least), (_, most) = batch.core.free_counts()
    tail, popular = groups.sizes
    band = Band(max(int(least), k - int(tail)), min(int(most), int(popular)))
    if band.least > band.most:
        raise ConfigError(
            f"No slate of {k} items is without penalty at ad_bound={config.ad_bound}, with "
            f"{popular} items of {groups.names[1]!r} and {tail} others: raise ad_bound."
        )
    return band


class _Ranking:
    """The best answers that are left to some sessions.

    Args:
        batch: N sessions.
        scores: (N, n_items) float32 expected answers.
        depth: How many items to look at.
    """

    def __init__(self, batch: SessionBatch, scores: FloatArray, depth: int) -> None:
        scores, popular = unexposed(batch, scores), batch.core.groups.labels == 1
        top_items = batch.core.engine.top_items
        best = np.asarray(top_items(scores, min(depth, scores.shape[1])))
        is_left = np.isfinite(np.take_along_axis(scores, best, axis=1))
        self._popular = np.cumsum(popular[best] & is_left, axis=1)
        self._sums = []
        for group in (popular, ~popular):
            of_group = scores[:, group]
            answers = np.zeros((len(scores), 1), dtype=np.float64)
            if of_group.shape[1]:
                order = top_items(of_group, min(depth, of_group.shape[1]))
                ordered = np.take_along_axis(of_group, order, axis=1)
                # A user who sees an item again does not answer.
                ordered = np.where(np.isfinite(ordered), ordered, 0.0)
                answers = np.pad(np.cumsum(ordered, axis=1, dtype=np.float64), ((0, 0), (1, 0)))
            self._sums.append(answers)

    def popular_among_best(self, counts: CountArray) -> CountArray:
        """(N, M): how many of the best items are popular, of (M,) numbers of items."""
        last = np.minimum(counts, self._popular.shape[1]) - 1
        return np.asarray(self._popular[:, last], dtype=np.int64)

    def sums(self, popular: CountArray, tail: CountArray) -> NDArray[np.float64]:
        """(N, M) sums of the best answers of (N, M) numbers of items of each group."""
        gains = [
            np.take_along_axis(sums, np.minimum(counts, sums.shape[1] - 1), axis=1)
            for sums, counts in zip(self._sums, (popular, tail), strict=True)
        ]
        return np.asarray(gains[0] + gains[1])
