"""Observations: the user's preference state, its parts or a belief, and the session's context.

The preference state is the response-weighted mean embedding of the user's logged history and of
the session so far. Because the platform chose what to show, it is contaminated by popularity from
the first step on. Its parts keep log and session, and what was liked and what was shown, apart.
"""

from __future__ import annotations

from copy import copy
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from kuaisim_gym.config import check_choice, check_whole
from kuaisim_gym.data.dataset import TrainingData
from kuaisim_gym.engine.reference import NumpyEngine, mean_embedding, preference
from kuaisim_gym.engine.types import Beliefs, Engine, Pooled, StepResult
from kuaisim_gym.errors import ConfigError, NoPreferenceError
from kuaisim_gym.simulator.belief import Belief, no_beliefs
from kuaisim_gym.simulator.catalogue import Catalogue
from kuaisim_gym.simulator.core import SessionCore
from kuaisim_gym.snapshots import Snapshot, under, within

OBSERVATION_TYPES = ("state", "dict", "history", "belief")
PREFERENCES = ("pooled", "parts", "belief")
PARTS = ("log liked", "log shown", "session liked", "session shown")
CONTEXT = ("progress", "popular_share", "last_reward", "mean_reward")
HISTORY_LEN = 50  # events
PREFERENCE_BOUND = 10.0  # standard deviations; keeps the space finite
WEIGHT_SCALE = 5.0  # of log(1 + weight): 147 rows show as one

FloatArray = NDArray[np.float32]
Observation = FloatArray | dict[str, NDArray[np.generic]]


class PreferenceEncoder:
    """Turns weighted item histories into standardised preference states.

    A state is the weighted mean embedding of a history, standardised by the mean and spread of
    the train users' logged states; a user without history sits at the origin.

    Args:
        data: Source of the logged histories.
        catalogue: Source of the embeddings.

    Attributes:
        embedding: (n_all_items, d) float32.
        history_sum: (n_users, d) float32, response-weighted sum of each user's logged items.
        history_weight: (n_users,) float32, sum of those weights.
        exposure_sum: (n_users, d) float32, plain sum of each user's logged items.
        exposure_count: (n_users,) float32, logged rows.
        mean: (d,) float32.
        scale: (d,) float32.
        reach: Largest absolute value of a standardised embedding, which no mean of them passes.
    """

    def __init__(self, data: TrainingData, catalogue: Catalogue) -> None:
        self.embedding = catalogue.embedding
        log = data.log
        shape = (data.n_users, data.n_all_items)
        rows = (log.users, log.items)
        liked = csr_matrix((log.response, rows), shape=shape)
        self.history_sum, self.history_weight = self.pool(liked)
        shown = csr_matrix((np.ones(len(log), dtype=np.float32), rows), shape=shape)
        self.exposure_sum, self.exposure_count = self.pool(shown)
        train = data.train_users
        states = mean_embedding(self.history_sum[train], self.history_weight[train])
        self.mean: FloatArray = states.mean(axis=0)
        spread = states.std(axis=0)
        self.scale: FloatArray = np.where(spread > 0, spread, np.float32(1.0))
        self.reach = float(np.abs((self.embedding - self.mean) / self.scale).max())
        sums = (self.history_sum, self.history_weight, self.exposure_sum, self.exposure_count)
        for array in (*sums, self.mean, self.scale):
            array.setflags(write=False)  # shared by all environments of the dataset

    @property
    def dim(self) -> int:
        """Dimension d of the preference state."""
        return int(self.embedding.shape[1])

    def with_stranger(self) -> PreferenceEncoder:
        """The same encoder with one more user, the last, of whom nothing is logged."""
        encoder = copy(self)
        for name in ("history_sum", "history_weight", "exposure_sum", "exposure_count"):
            known = getattr(self, name)
            setattr(encoder, name, np.concatenate([known, np.zeros_like(known[:1])]))
        return encoder

    def pool(self, weights: csr_matrix) -> tuple[FloatArray, FloatArray]:
        """Weighted sums of item embeddings.

        Args:
            weights: (n, n_all_items) sparse, not negative.

        Returns:
            (n, d) float32 sums and (n,) float32 total weights.
        """
        weights = weights.astype(np.float32)
        return weights @ self.embedding, np.asarray(weights.sum(axis=1)).ravel()

    def encode(self, total: FloatArray, weight: FloatArray) -> FloatArray:
        """Standardised states of pooled histories.

        Args:
            total: (n, d) float32 weighted sums.
            weight: (n,) float32 total weights.

        Returns:
            (n, d) float32 in [-PREFERENCE_BOUND, PREFERENCE_BOUND].
        """
        return preference(total, weight, self.mean, self.scale, PREFERENCE_BOUND)

    def encode_parts(
        self, total: FloatArray, weight: FloatArray, engine: Engine | None = None
    ) -> FloatArray:
        """Encodes the sums of all :data:`PARTS` as ``preference="parts"`` shows them.

        Args:
            total: (4, n, d) float32 weighted sums.
            weight: (4, n) float32 total weights.
            engine: The engine; ``None`` for NumPy's, which gives the same.

        Returns:
            (n, 4 d + 4) float32: standardised means within :attr:`reach`, zero without weight, and
            ``log(1 + weight) / 5``, in [0, PREFERENCE_BOUND].
        """
        engine = engine or NumpyEngine()
        n_parts, n, dim = total.shape
        vectors: FloatArray = np.empty((n, n_parts * (dim + 1)), dtype=np.float32)
        standard = (self.mean, self.scale, self.reach)
        for index in range(n_parts):
            engine.write_preference(vectors, index * dim, total[index], weight[index], *standard)
        vectors[:, n_parts * dim :] = encode_weights(weight)
        return vectors

    def pooled(self, parts: FloatArray) -> FloatArray:
        """Preference states, as ``preference="pooled"`` shows them, from their parts.

        Standardised means of log and session are averaged by what was liked.

        Args:
            parts: (..., 4 d + 4) float32, as ``preference="parts"`` shows them: the columns of
                :attr:`ObservationEncoder.preference_slice`.

        Returns:
            (..., d) float32.

        Raises:
            ConfigError: ``parts`` has another number of columns.
        """
        n_parts, dim = len(PARTS), self.dim
        if parts.shape[-1] != n_parts * (dim + 1):
            raise ConfigError(
                f"parts must have {n_parts * (dim + 1)} columns, got {parts.shape[-1]}: pass the "
                'columns of preference_slice of an environment with preference="parts".'
            )
        means = parts[..., : n_parts * dim].reshape(*parts.shape[:-1], n_parts, dim)
        weights = np.expm1(WEIGHT_SCALE * parts[..., n_parts * dim :].astype(np.float64))
        liked = slice(0, n_parts, 2)
        total = np.einsum("...p,...pd->...d", weights[..., liked], means[..., liked, :])
        weight = np.maximum(weights[..., liked].sum(axis=-1), np.finfo(np.float32).tiny)
        pooled: FloatArray = (total / weight[..., None]).astype(np.float32)
        return np.clip(pooled, -PREFERENCE_BOUND, PREFERENCE_BOUND, out=pooled)


def encode_weights(weight: FloatArray) -> FloatArray:
    """(n, 4) float32 that show the (4, n) weights of :data:`PARTS`."""
    weights = np.log1p(weight) / np.float32(WEIGHT_SCALE)
    shown: FloatArray = np.minimum(weights, np.float32(PREFERENCE_BOUND)).T
    return shown


def shown_preference(observation_type: str, preference: str | None = None) -> tuple[str, str]:
    """Names what an observation is made of.

    Args:
        observation_type: As for :class:`ObservationEncoder`.
        preference: As for the same class.

    Returns:
        ``"state"``, ``"dict"`` or ``"history"``, and what tells of the preference.

    Raises:
        ConfigError: Unknown names, or two that contradict each other.
    """
    check_choice("observation_type", observation_type, OBSERVATION_TYPES)
    usual = "belief" if observation_type == "belief" else "pooled"
    preference = check_choice("preference", preference or usual, PREFERENCES)
    fixed = observation_type in ("belief", "history")
    if fixed and preference != usual:
        raise ConfigError(
            f"observation_type={observation_type!r} does not show a preference of "
            f'{preference!r}: use observation_type="state" or "dict" with it.'
        )
    return ("state" if observation_type == "belief" else observation_type), preference


class ObservationEncoder:
    """Observations of N sessions, from their logged histories and the steps that they make.

    Args:
        data: Source of the logged histories.
        encoder: Encodes preference states.
        core: The sessions.
        observation_type: ``"state"``, one vector; ``"dict"``, the vector under ``"state"``, the
            session's item positions, -1 padded, under ``"exposed"`` and how they were answered,
            0 padded, under ``"responses"``, and where the dataset has pools the items that the
            user can be shown, -1 padded, under ``"pool"``, all -1 for every item; and where the
            catalogue changes, today's items under ``"available"`` and today's popular ones under
            ``"popular"``, bits of :mod:`~kuaisim_gym.engine.bits`;
            ``"history"``, the user's last events under ``"items"`` and ``"responses"``, and the
            context; ``"belief"`` is ``"state"`` with ``preference="belief"``.
        preference: What the vector tells of the user's preference, before the context:
            ``"pooled"``, the preference state; ``"parts"``, what it is made of, see
            :class:`PooledHistories`; or ``"belief"``, posterior means and variances. ``None`` for
            what the type says.
        history_len: H, events in a history; 50 if ``None``.
        belief: What ``preference="belief"`` observes; it can be had beside others, too.
        extra: Names of further context columns.

    Attributes:
        context: Names of the columns of the context.
        context_slice: Position of the context in the state vector; a history has the context alone.
        extra: (N, len(extra)) float32, the further columns; the task fills them by
            :meth:`set_context`.
        belief: The belief that the steps update, if any.

    Raises:
        ConfigError: Unknown type, or ``history_len`` is no positive integer, or not needed.
    """

    def __init__(
        self,
        data: TrainingData,
        encoder: PreferenceEncoder,
        core: SessionCore,
        observation_type: str,
        preference: str | None = None,
        history_len: int | None = None,
        extra: tuple[str, ...] = (),
        belief: Belief | None = None,
    ) -> None:
        self.encoder = encoder
        self.belief = belief
        self.core = core
        self.observation_type, self.preference = shown_preference(observation_type, preference)
        self.context = (CONTEXT[0], core.groups.measure, *CONTEXT[2:], *extra)
        self.extra: FloatArray = np.zeros((core.n_sessions, len(extra)), dtype=np.float32)
        self._pooled: PooledHistories | None = None
        shown = 0
        if self.preference == "belief":
            if belief is None:
                raise ConfigError('preference="belief" needs a belief, got None.')
            shown = 2 * belief.dim
        elif observation_type != "history":
            n_parts = len(PARTS) if self.preference == "parts" else 1
            self._pooled = PooledHistories(encoder, core, n_parts)
            shown = self._pooled.width
        self.context_slice = slice(shown, shown + len(self.context))
        self._history: History | None = None
        if observation_type == "history":
            length = HISTORY_LEN if history_len is None else history_len
            self._history = History(data, len(core.model.behaviours), core.n_sessions, length)
        elif history_len is not None:
            raise ConfigError('history_len is for observation_type="history" alone.')

    @property
    def preference_slice(self) -> slice:
        """Position of the preference, or of its parts, in the state vector; of a belief its mean.

        Raises:
            NoPreferenceError: The observation is a history.
        """
        if self._history is not None:
            raise NoPreferenceError(
                'observation_type="history" has no preference state; use "state" or "dict".'
            )
        if self.preference == "belief":
            return slice(0, self.context_slice.start // 2)
        return slice(0, self.context_slice.start)

    @property
    def preference_unit(self) -> str:
        """Unit of the preference in the state vector.

        Returns:
            ``"score"``, in which a taste's inner product with an item's vector is a score, or
            ``"spread"``, in which train users' pooled states have unit variance.
        """
        return "score" if self.preference == "belief" else "spread"

    @property
    def variance_slice(self) -> slice:
        """Position of the preference's variances in a belief."""
        if self.preference != "belief":
            raise NoPreferenceError(
                f"preference={self.preference!r} says nothing of how certain it is; use "
                'preference="belief".'
            )
        return slice(self.context_slice.start // 2, self.context_slice.start)

    def space(self) -> spaces.Space[Any]:
        """Observation space of one session."""
        low = np.zeros(self.context_slice.stop, dtype=np.float32)
        high = np.ones_like(low)
        low[: self.context_slice.start] = -PREFERENCE_BOUND
        high[: self.context_slice.start] = PREFERENCE_BOUND
        if self._history is not None:
            context = spaces.Box(low[self.context_slice], high[self.context_slice])
            return spaces.Dict({**self._history.spaces(), "context": context})
        if self.preference == "belief":
            low[self.variance_slice] = 0.0
        if self.preference == "parts":
            means = slice(0, self.context_slice.start - len(PARTS))
            high[means] = self.encoder.reach
            low[: self.context_slice.start] = 0.0
            low[means] = -self.encoder.reach
        state = spaces.Box(low, high, dtype=np.float32)
        if self.observation_type == "state":
            return state
        room = self.core.config.longest * self.core.config.slate_size
        exposed = spaces.Box(-1, self.core.groups.n_items - 1, (room,), dtype=np.int32)
        responses = spaces.Box(0.0, 1.0, (room,), dtype=np.float32)
        by_key: dict[str, spaces.Space[Any]]
        by_key = {"state": state, "exposed": exposed, "responses": responses}
        if self.core.pools is not None:
            pool = (self.core.pools.room,)
            by_key["pool"] = spaces.Box(-1, self.core.pools.n_items - 1, pool, dtype=np.int32)
        if self.core.platform is not None:
            flags = spaces.Box(0, 255, self.core.platform.hidden.shape, dtype=np.uint8)
            by_key |= {"available": flags, "popular": flags}
        return spaces.Dict(by_key)

    def set_context(self, rows: NDArray[np.int64], **columns: NDArray[np.floating] | float) -> None:
        """Fills further context columns, by name, of some sessions.

        Args:
            rows: (n,) sessions.
            **columns: (n,) values, or the same for all of them, of a column each.

        Raises:
            ConfigError: There is no such column.
        """
        names = self.context[len(CONTEXT) :]
        for name, values in columns.items():
            self.extra[rows, names.index(check_choice("A context column", name, names))] = values

    def reset(self, slots: NDArray[np.bool_]) -> None:
        """Starts from the logged history of the users who have just arrived in ``slots``."""
        rows = np.flatnonzero(slots)
        users = self.core.state.users[rows]
        if self._pooled is not None:
            self._pooled.reset(rows, users)
        if self._history is not None:
            self._history.reset(rows, users)
        if self.belief is not None:
            self.belief.reset(slots)

    def update(self, result: StepResult) -> None:
        """Adds one step, its items and their answers, to the histories."""
        if self._pooled is not None:
            self._pooled.update(result)
        if self._history is not None:
            self._history.update(result.slates, result.feedback)
        if self.belief is not None:
            self.belief.update(result)

    def observe(self) -> Observation:
        """The observations of all N sessions, freshly allocated."""
        core = self.core
        state: FloatArray = np.zeros((core.n_sessions, self.context_slice.stop), dtype=np.float32)
        first = self.context_slice.start
        core.engine.write_context(state, first, core.state, core.config.max_len)
        if self.extra.shape[1]:
            state[:, first + len(CONTEXT) :] = self.extra
        if self._history is not None:
            return {**self._history.observe(), "context": state}
        if self._pooled is not None:
            self._pooled.write(state)
        else:
            assert self.belief is not None
            self.belief.write(state, PREFERENCE_BOUND)
        return self._with_record(state)

    def completed(self, state: FloatArray) -> Observation:
        """Observations of (N, ...) float32 state vectors; of no histories.

        Weights of sums that are apart are written here: their logarithm is NumPy's.
        """
        if self._pooled is not None:
            self._pooled.write_weights(state)
        return self._with_record(state)

    def _with_record(self, state: FloatArray) -> Observation:
        if self.observation_type == "state":
            return state
        core = self.core
        shown = {"exposed": core.state.slates, "responses": core.state.responses}
        flat = {name: array.reshape(core.n_sessions, -1).copy() for name, array in shown.items()}
        if core.pools is not None:
            flat["pool"] = core.pools.padded(core.state.users)
        if core.platform is not None:
            for name, flags in core.platform.bits.items():
                flat[name] = np.empty((core.n_sessions, len(flags)), dtype=np.uint8)
                flat[name][:] = flags  # faster than np.tile
        return {"state": state, **flat}

    def arrays(self) -> tuple[Pooled, Beliefs] | None:
        """Arrays by which compiled steps follow and show sessions; ``None`` if they cannot."""
        if self._history is not None or self.extra.shape[1]:
            return None
        if self._pooled is None:
            pooled = PooledHistories(self.encoder, self.core, n_parts=0).arrays()
        else:
            pooled = self._pooled.arrays()
        if self.belief is None:
            return pooled, no_beliefs()
        return pooled, self.belief.arrays(self.preference == "belief", PREFERENCE_BOUND)

    def snapshot(self) -> Snapshot:
        """Copies of all arrays that the sessions change, by name."""
        snapshot = {"extra": self.extra.copy()}
        for name, record in self._records().items():
            snapshot |= under(name, record.snapshot())
        return snapshot

    def restore(self, snapshot: Snapshot) -> None:
        """Restores a snapshot of an encoder with the same options."""
        self.extra[...] = snapshot["extra"]
        for name, record in self._records().items():
            record.restore(within(name, snapshot))

    def _records(self) -> dict[str, PooledHistories | History | Belief]:
        """Records of the sessions, by their names in a snapshot."""
        records = {"pooled": self._pooled, "history": self._history, "belief": self.belief}
        return {name: record for name, record in records.items() if record is not None}


class PooledHistories:
    """Sums of the histories of N sessions, which preference states are standardised means of.

    Apart, there are four of them, :data:`PARTS`, and they show as ``[log liked mean (d) | log shown
    mean (d) | session liked mean (d) | session shown mean (d) | log liked weight | log rows |
    session liked weight | session rows]``. What was liked is weighted by its responses, what was
    shown is not; rows of the session are those that were answered; weights and rows show as
    ``log(1 + x) / 5``. All means are standardised like the preference state, and zero where there
    is nothing, but not cut at :data:`PREFERENCE_BOUND`, which means of few items pass easily. A
    session is all that came since the user arrived. In logs of positives alone all that is shown is
    liked. :meth:`PreferenceEncoder.pooled` gives the preference state back.

    Args:
        encoder: Standardises means, and knows the logs.
        core: The sessions.
        n_parts: Sums: four; one of what was liked, in log and session; or none.
    """

    def __init__(self, encoder: PreferenceEncoder, core: SessionCore, n_parts: int) -> None:
        self.encoder, self.core, self.apart = encoder, core, n_parts > 1
        n = core.n_sessions
        self._total: FloatArray = np.zeros((n_parts, n, encoder.dim), dtype=np.float32)
        self._weight: FloatArray = np.zeros((n_parts, n), dtype=np.float32)

    @property
    def width(self) -> int:
        """Columns of the vector that they take."""
        dim = self.encoder.dim
        return len(PARTS) * (dim + 1) if self.apart else dim

    def reset(self, rows: NDArray[np.int64], users: NDArray[np.int32]) -> None:
        """Starts from the logs of ``users`` in some slots."""
        encoder = self.encoder
        self._total[0, rows] = encoder.history_sum[users]
        self._weight[0, rows] = encoder.history_weight[users]
        if self.apart:
            self._total[1, rows] = encoder.exposure_sum[users]
            self._weight[1, rows] = encoder.exposure_count[users]
            self._total[2:, rows] = 0.0
            self._weight[2:, rows] = 0.0

    def update(self, result: StepResult) -> None:
        """Adds one step's items: to the session's sums, or to those of log and session."""
        if self.apart:
            self._add(2, result.slates, result.responses)
            self._add(3, result.slates, result.answered.astype(np.float32))
        else:
            self._add(0, result.slates, result.responses)

    def _add(self, index: int, slates: NDArray[np.int64], weights: FloatArray) -> None:
        total, weight = self._total[index], self._weight[index]
        self.core.engine.update(total, weight, self.encoder.embedding, slates, weights)

    def write(self, vectors: FloatArray) -> None:
        """Writes the first columns of (N, ...) float32 vectors."""
        encoder, engine, total, weight = self.encoder, self.core.engine, self._total, self._weight
        if self.apart:
            vectors[:, : self.width] = encoder.encode_parts(total, weight, engine)
        else:
            standard = (encoder.mean, encoder.scale, PREFERENCE_BOUND)
            engine.write_preference(vectors, 0, total[0], weight[0], *standard)

    def write_weights(self, vectors: FloatArray) -> None:
        """Writes the weights of four sums into (N, ...) float32 vectors, if there are four."""
        if self.apart:
            vectors[:, self.width - len(PARTS) : self.width] = encode_weights(self._weight)

    def arrays(self) -> Pooled:
        """Arrays by which compiled steps follow the sessions."""
        encoder = self.encoder
        bound = encoder.reach if self.apart else PREFERENCE_BOUND
        return Pooled(
            self._total,
            self._weight,
            encoder.embedding,
            encoder.history_sum,
            encoder.history_weight,
            encoder.exposure_sum,
            encoder.exposure_count,
            encoder.mean,
            encoder.scale,
            np.float32(bound),
        )

    def snapshot(self) -> Snapshot:
        """Copies of sums and weights, by name."""
        return {"total": self._total.copy(), "weight": self._weight.copy()}

    def restore(self, snapshot: Snapshot) -> None:
        """Returns to a snapshot of as many sessions and sums."""
        self._total[...] = snapshot["total"]
        self._weight[...] = snapshot["weight"]


class History:
    """The last events of N users: logged ones, then those of the session.

    Args:
        data: Source of the logged histories.
        n_behaviours: B, behaviours of an answer.
        n_sessions: N.
        length: H, events kept.

    Raises:
        ConfigError: ``length`` is no positive integer.
    """

    def __init__(self, data: TrainingData, n_behaviours: int, n_sessions: int, length: int) -> None:
        check_whole("history_len", length, 1)
        self.log = data.log
        self._starts = data.log.starts(data.n_users)
        self._n_items = data.n_all_items
        self._items: NDArray[np.int32] = np.full((n_sessions, length), -1, dtype=np.int32)
        self._responses: FloatArray = np.zeros((n_sessions, length, n_behaviours), np.float32)

    def spaces(self) -> dict[str, spaces.Space[Any]]:
        """Spaces of one user's items and responses."""
        _, length, n_behaviours = self._responses.shape
        room = (length * n_behaviours,)  # flat: common tools know vectors and images
        return {
            "items": spaces.Box(-1, self._n_items - 1, (length,), dtype=np.int32),
            "responses": spaces.Box(0.0, 1.0, room, dtype=np.float32),
        }

    def reset(self, rows: NDArray[np.int64], users: NDArray[np.int32]) -> None:
        """Starts some histories from the last logged events of ``users``."""
        length = self._items.shape[1]
        logged = self._starts[users + 1][:, None] + np.arange(-length, 0)
        real = logged >= self._starts[users][:, None]
        events = self.log.take(logged[real])
        items = np.full(logged.shape, -1, dtype=np.int32)
        items[real] = events.items
        responses = np.zeros((*logged.shape, self._responses.shape[2]), dtype=np.float32)
        for b in range(responses.shape[2]):
            responses[real, b] = events.behaviour(b)
        self._items[rows], self._responses[rows] = items, responses

    def update(self, slates: NDArray[np.int64], feedback: FloatArray) -> None:
        """Appends (N, K) items and their (N, K, B) answers, and drops the oldest events."""
        length = self._items.shape[1]
        items = np.concatenate([self._items, slates.astype(np.int32)], axis=1)
        self._items = np.ascontiguousarray(items[:, -length:])
        responses = np.concatenate([self._responses, feedback], axis=1)
        self._responses = np.ascontiguousarray(responses[:, -length:])

    def observe(self) -> dict[str, NDArray[np.generic]]:
        """(N, H) int32 items and (N, H * B) float32 responses, oldest event first."""
        responses = self._responses.reshape(len(self._responses), -1)
        return {"items": self._items.copy(), "responses": responses.copy()}

    def snapshot(self) -> Snapshot:
        """Copies of the (N, H) int32 items and their (N, H, B) float32 responses."""
        return {"items": self._items.copy(), "responses": self._responses.copy()}

    def restore(self, snapshot: Snapshot) -> None:
        """Restores a snapshot of histories of the same size."""
        self._items[...] = snapshot["items"]
        self._responses[...] = snapshot["responses"]
