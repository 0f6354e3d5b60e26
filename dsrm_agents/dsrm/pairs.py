"""Training examples of purifiers, built without any row of the test source.

A pair is an observed state and a cleaner target. The target cannot be read off eq. 7, which trains
the denoiser towards its own condition. Two sources are better, and neither needs a clean state: a
noisy target is as good as a clean one if its noise is independent of the condition, because the
regression of either on the condition is the same (Lehtinen et al. 2018).

``"unbiased"``
    The condition is a part of the user's log; the target is what the same user answered to items
    that nobody chose for them (KuaiRand's randomised rows, or fully observed users, see
    :meth:`~kuaisim_gym.data.Dataset.with_unbiased_users`), each answer counting by how far it lies
    from what this item and this user get anyway.
``"history"``
    The condition is a random part of the user's log, the target is the remainder. Items that
    chance showed the user in one part are not repeated in the other; the user's taste is. The
    target's items are placed by embeddings that were fitted without the user
    (:func:`cross_fitted_embeddings`): the environment's embedding has seen which items the train
    users met by chance, and would repeat it.
``"identity"``
    Target = condition, as eq. 7 prints it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from dsrm_agents.dsrm.erasure import popularity_statistics
from kuaisim_gym.config import check_choice, check_whole
from kuaisim_gym.data import Dataset, Interactions, TrainingData, Truth
from kuaisim_gym.envs.assembly import preference_encoder
from kuaisim_gym.errors import ConfigError
from kuaisim_gym.observation import PreferenceEncoder

SOURCES = ("unbiased", "history", "identity")
LEAST_OBSERVED = 0.5  # smallest share of a history that is observed
MOST_OBSERVED = 0.95  # largest share where the remainder is the target
PROPENSITY_CLIP = 10.0  # largest weight of a row over the median row's
SMOOTHING = 5.0  # rows' worth of the overall mean in an item's or user's mean response
PRIOR_ROWS = 20.0  # rows' worth of no preference in a target made of few unbiased rows
BLOCK = 256  # users at a time, against the full catalogue

TOO_SMALL = "No train user has both a condition and a target: the log is too small."

FloatArray = NDArray[np.float32]
Vector = NDArray[np.float64]


@dataclass(frozen=True)
class TargetConfig:
    """Construction of pairs.

    Attributes:
        source: One of :data:`SOURCES`; ``None`` for ``"unbiased"`` where the dataset has such rows
            and ``"history"`` elsewhere.
        propensity_power: Exponent of the inverse propensity by which logged rows count in
            targets made of them; 0 for none, 1 for full correction of an item's exposure.
        views: Pairs of each user, with different parts of the history.
    """

    source: str | None = None
    propensity_power: float = 0.0
    views: int = 8

    def __post_init__(self) -> None:
        if self.source is not None:
            check_choice("source", self.source, SOURCES)
        check_whole("views", self.views, 1)
        if not self.propensity_power >= 0:
            raise ConfigError(f"propensity_power must be at least 0, got {self.propensity_power}.")
        if self.propensity_power and self.source in ("unbiased", "identity"):
            raise ConfigError(f'propensity_power has no effect on source="{self.source}".')


@dataclass(frozen=True, eq=False)
class Pairs:
    """Training pairs in the encoder's units.

    Attributes:
        observed: (n, d) float32 states as an agent would see them.
        target: (n, d) float32 states as it should see them.
        weight: (n,) float32 weights in the loss, one on average.
        user: (n,) int64 positions among the train users.
    """

    observed: FloatArray
    target: FloatArray
    weight: FloatArray
    user: NDArray[np.int64]


class Examples:
    """All that a purifier may be fitted to; each piece is made when it is first read.

    Args:
        dataset: The data. Only ``training`` is read, and ``truth`` by :attr:`true_preferences`.
        config: Construction of the pairs.
        seed: Same seed, same pairs.

    Attributes:
        encoder: Encodes histories as the environment does.
    """

    def __init__(self, dataset: Dataset, config: TargetConfig | None = None, seed: int = 0) -> None:
        self.dataset, self.config, self.seed = dataset, config or TargetConfig(), seed
        self.encoder = preference_encoder(dataset)

    @cached_property
    def logged(self) -> tuple[FloatArray, FloatArray]:
        """(n, d) raw states of the train users, and (n, 3) popularity statistics of their logs.

        Users without any response have no state and are left out.
        """
        histories = Histories(self.dataset.training, self.encoder)
        has_state = histories.mass(histories.response) > 0
        states, popularity = histories.states(histories.response), histories.popularity()
        return states[has_state], popularity[has_state]

    @cached_property
    def pairs(self) -> Pairs:
        """The training pairs.

        Raises:
            ConfigError: The dataset lacks the rows that the source needs.
        """
        return build_pairs(self.dataset.training, self.encoder, self.config, self.seed)

    @cached_property
    def true_preferences(self) -> FloatArray:
        """(n, d) float32, the true preference of each pair's user.

        Raises:
            ConfigError: The dataset is real: nobody knows its users' preferences.
        """
        users = self.dataset.train_users
        return true_preference(self.dataset, users, self.encoder, users)[self.pairs.user]


class Histories:
    """The train users' logged rows, and the states that parts of them give.

    Args:
        data: Only ``train_log`` is read.
        encoder: Encodes histories as the environment does.
    """

    def __init__(self, data: TrainingData, encoder: PreferenceEncoder) -> None:
        self.encoder, self.users = encoder, data.train_users
        self.items, self.response = data.train_log.items, data.train_log.response
        self.rows = _positions(self.users, data.n_users)[data.train_log.users]
        self.n, self.n_items = len(self.users), data.n_all_items
        self.exposures = np.bincount(self.items, minlength=self.n_items)

    def states(
        self, weight: NDArray[np.floating], embeddings: tuple[NDArray[np.floating], ...] = ()
    ) -> FloatArray:
        """(n, d) states of histories whose rows have these weights.

        Args:
            weight: (n_rows,), zero for rows that are left out.
            embeddings: Item embeddings to pool instead of the environment's: the k-th for the
                users of fold k.
        """
        cells = (np.asarray(weight, dtype=np.float32), (self.rows, self.items))
        matrix = csr_matrix(cells, shape=(self.n, self.n_items))
        total, mass = self.encoder.pool(matrix)
        for fold, embedding in enumerate(embeddings):
            in_fold = np.arange(self.n) % len(embeddings) == fold
            total[in_fold] = matrix[in_fold] @ embedding
        return self.encoder.encode(total, mass)

    def mass(self, weight: NDArray[np.floating] | NDArray[np.bool_]) -> FloatArray:
        """(n,) float32: total weight of each history."""
        return np.bincount(self.rows, weights=weight, minlength=self.n).astype(np.float32)

    def popularity(self) -> FloatArray:
        """(n, 3) float32: statistics of the popularity of each history, NaN without rows."""
        statistics = popularity_statistics(self.rows, self.items, self.exposures, self.n)
        return statistics.astype(np.float32)

    def inverse_propensity(self, power: float) -> Vector:
        """(n_rows,) weights that undo exposure, relative to the median row's and clipped."""
        exposures = self.exposures[self.items]
        weight = (np.median(exposures) / exposures) ** power
        return np.asarray(np.minimum(weight, PROPENSITY_CLIP))

    def thinned(self, least: float, most: float, rng: np.random.Generator) -> NDArray[np.bool_]:
        """(n_rows,) bool: a random part of every history, its share uniform in [least, most]."""
        share = rng.uniform(least, most, self.n)[self.rows]
        return np.asarray(rng.random(len(self.rows)) < share)

    def pairs(
        self, observed: NDArray[np.bool_], weight: FloatArray, target: FloatArray | None = None
    ) -> Pairs:
        """One pair for each user who has both a condition and a target.

        Args:
            observed: (n_rows,) the rows that make the condition.
            weight: (n,) weights of the targets, zero for those that rest on nothing.
            target: (n, d), or ``None`` for the conditions themselves.
        """
        condition = self.states(self.response * observed)
        users = np.flatnonzero((self.mass(self.response * observed) > 0) & (weight > 0))
        target = condition if target is None else target
        return Pairs(condition[users], target[users], weight[users], users)


def build_pairs(
    data: TrainingData,
    encoder: PreferenceEncoder,
    config: TargetConfig | None = None,
    seed: int = 0,
) -> Pairs:
    """Builds up to ``views`` pairs for every train user.

    Args:
        data: Only ``train_log`` and ``randomised`` are read.
        encoder: Encodes histories as the environment does.
        config: Construction of the pairs; ``None`` for the defaults.
        seed: Same seed, same pairs.

    Returns:
        The pairs; users whose condition or target would rest on nothing are left out.

    Raises:
        ConfigError: The source needs rows that the dataset does not have.
    """
    config = config or TargetConfig()
    histories, rng = Histories(data, encoder), np.random.default_rng(seed)
    if not histories.response.any():
        raise ConfigError(TOO_SMALL)
    source = config.source or ("history" if data.randomised is None else "unbiased")
    if source == "history":
        return _stacked(list(_split_histories(histories, config, rng)))
    target, weight = None, np.ones(histories.n, dtype=np.float32)
    if source == "unbiased":
        if data.randomised is None:
            raise ConfigError(
                'source="unbiased" needs rows of train users that are free of exposure bias; this '
                'dataset has none. Use source="history", or dataset.with_unbiased_users(n).'
            )
        target, weight = _unbiased_targets(histories, data.randomised, data.n_users)
    views = []
    for view in range(config.views):
        observed = histories.thinned(LEAST_OBSERVED, 1.0, rng)
        observed |= view == 0  # one view is the full history
        views.append(histories.pairs(observed, weight, target))
    return _stacked(views)


def _split_histories(
    histories: Histories, config: TargetConfig, rng: np.random.Generator
) -> Iterator[Pairs]:
    """Pairs of a random part of each history and the remainder, one view after the other."""
    response = histories.response
    weight = response * histories.inverse_propensity(config.propensity_power)
    for _ in range(config.views):
        observed = histories.thinned(LEAST_OBSERVED, MOST_OBSERVED, rng)
        target = histories.states(weight * ~observed)
        count = histories.mass(~observed) * (histories.mass(response * ~observed) > 0)
        yield histories.pairs(observed, count, target)


def _unbiased_targets(
    histories: Histories, table: Interactions, n_users: int
) -> tuple[FloatArray, FloatArray]:
    """(n, d) targets made of unbiased rows, and (n,) the number of rows behind each.

    Raises:
        ConfigError: No row is a train user's.
    """
    rows = _positions(histories.users, n_users)[table.users]
    items, response = table.items[rows >= 0], table.response[rows >= 0].astype(np.float64)
    rows = rows[rows >= 0]
    if not len(rows):
        raise ConfigError("None of the rows that are free of exposure bias is a train user's.")
    residual = response - smoothed_means(items, response, histories.n_items)[items]
    residual += response.mean() - smoothed_means(rows, response, histories.n)[rows]
    matrix = csr_matrix((residual, (rows, items)), shape=(histories.n, histories.n_items))
    count = np.bincount(rows, minlength=histories.n).astype(np.float32)
    encoder = histories.encoder
    # The environment's embedding will do: it was fitted on other rows than these, chance and all.
    target = np.asarray(matrix @ encoder.embedding) / (count[:, None] + PRIOR_ROWS) / encoder.scale
    return target.astype(np.float32), count


def smoothed_means(groups: NDArray[np.integer], response: Vector, n: int) -> Vector:
    """(n,) mean response of each group, smoothed towards the overall mean."""
    total = np.bincount(groups, weights=response, minlength=n)
    overall = response.mean() if len(response) else 0.0
    return np.asarray(
        (total + SMOOTHING * overall) / (np.bincount(groups, minlength=n) + SMOOTHING)
    )


def true_preference(
    dataset: Dataset,
    users: NDArray[np.integer],
    encoder: PreferenceEncoder,
    reference: NDArray[np.integer],
) -> FloatArray:
    """The states that the users' true preferences would have.

    A state is an exposure-weighted mean of a user's answers; this is the same mean over the full
    catalogue, each item shown once and answered as an unbiased user would. How generous a user is
    and how good an item is are no preferences: each answer counts as its excess over both.

    Args:
        dataset: A synthetic world; only ``truth`` is read.
        users: (n,) positions.
        encoder: Gives the embedding and the units.
        reference: (m,) positions of the users whose answers are averaged into the items' means,
            such as a sample of the train users. They sit around the origin.

    Returns:
        (n, d) float32 in the encoder's units.

    Raises:
        ConfigError: The dataset is real: nobody knows its users' preferences.
    """
    embedding = encoder.embedding[: dataset.n_items]
    truth = dataset.truth
    if truth is None:
        raise ConfigError(f"True preferences are known in synthetic worlds only: {dataset.name}.")
    pooled, level = _pooled_answers(truth, users, embedding)
    reference_pooled, reference_level = _pooled_answers(truth, reference, embedding)
    # Sum of (answer - item's mean - (user's mean - overall mean)) * embedding, term by term.
    excess = pooled - reference_pooled.mean(axis=0)
    excess -= np.outer(level - reference_level.mean(), embedding.mean(axis=0, dtype=np.float64))
    return np.asarray(excess / encoder.scale, dtype=np.float32)


def _pooled_answers(
    truth: Truth, users: NDArray[np.integer], embedding: FloatArray
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(n, d) answer-weighted mean embeddings over the catalogue, and (n,) mean answers."""
    items = np.arange(len(embedding))[None, :]
    pooled, level = np.empty((len(users), embedding.shape[1])), np.empty(len(users))
    for start in range(0, len(users), BLOCK):
        rows = slice(start, start + BLOCK)
        answers = truth.expected(users[rows, None], items)
        pooled[rows] = answers @ embedding / len(embedding)
        level[rows] = answers.mean(axis=1, dtype=np.float64)
    return pooled, level


def _positions(users: NDArray[np.integer], n_users: int) -> NDArray[np.int64]:
    """(n_users,): each user's position in ``users``, -1 for users that are not among them."""
    position = np.full(n_users, -1, dtype=np.int64)
    position[users] = np.arange(len(users))
    return position


def _stacked(views: list[Pairs]) -> Pairs:
    """All views in one, their weights one on average.

    Raises:
        ConfigError: They are empty.
    """
    columns = {
        field.name: np.concatenate([getattr(view, field.name) for view in views])
        for field in fields(Pairs)
    }
    if not len(columns["user"]):
        raise ConfigError(TOO_SMALL)
    columns["weight"] /= columns["weight"].mean()
    return Pairs(**columns)
