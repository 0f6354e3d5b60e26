"""Pairs of an observed state and a cleaner one, built without any row of the test source.

What the reverse process should arrive at cannot be read off eq. 7, whose target is its own
condition. Four sources of something better, of which the first two need no clean state at all: a
noisy target is as good as a clean one if its noise is independent of the condition, because the
regression of either on the condition is the same (Lehtinen et al. 2018).

``"unbiased"``
    The condition is a part of the user's log; the target is what the same user answered to items
    that nobody chose for them (KuaiRand's randomised rows, or fully observed users, see
    :meth:`~kuaisim_gym.data.Dataset.with_unbiased_users`), each answer counting by how far it lies
    from what this item and this user get anyway.
``"history"``
    The condition is a random part of the user's log, the target is the rest of it. What chance
    showed the user in one part, the other does not repeat; what the user wants, it does. The
    target's items are placed by embeddings that were fitted without the user
    (:func:`cross_fitted_embeddings`): the environment's own have seen which items the train users
    met by chance, and would repeat it.
``"clean"``
    The target is the state of the whole history, the condition that of a thinned copy, corrupted
    further as the recipe says: niche items lost, popular ones inserted, answers flipped.
``"identity"``
    Target = condition, as eq. 7 prints it.

Inverse-propensity weights and the erasure of popularity directions apply to the targets of any.
"""

from __future__ import annotations

from collections.abc import Iterator
from copy import copy
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from dsrm_agents.dsrm.erasure import erase
from dsrm_agents.dsrm.popularity import STATISTICS, popularity_statistics
from kuaisim_gym.config import check_choice, check_whole
from kuaisim_gym.data import Interactions, TrainingData
from kuaisim_gym.errors import ConfigError
from kuaisim_gym.observation import PreferenceEncoder
from kuaisim_gym.simulator.catalogue import spectral_embedding

SOURCES = ("unbiased", "history", "clean", "identity")
FOLDS = 2  # of users, in cross-fitting
LEAST_KEPT = 0.5  # smallest share of a history that is observed
MOST_KEPT = 0.95  # largest share where the rest is the target
PROPENSITY_CLIP = 10.0  # largest weight of a row over the median row's
SMOOTHING = 5.0  # rows' worth of the overall mean in an item's or user's mean response
PRIOR_ROWS = 20.0  # rows' worth of no preference in a target made of few unbiased rows

TOO_SMALL = "No train user has both a condition and a target: the log is too small."

FloatArray = NDArray[np.float32]
Vector = NDArray[np.float64]


@dataclass(frozen=True)
class TargetConfig:
    """How pairs are built.

    Attributes:
        source: One of :data:`SOURCES`; ``None`` for ``"unbiased"`` where the dataset has such rows
            and ``"history"`` elsewhere.
        propensity_power: Exponent of the inverse propensity by which logged rows count in
            targets made of them; 0 for none, 1 for full correction of an item's exposure.
        erased: How many statistics of popularity are erased from the targets, of
            :data:`~dsrm_agents.dsrm.popularity.STATISTICS`.
        popularity_pull: Exponent of popularity in the chance that a logged row is kept in the
            condition; 0 thins all rows alike.
        inserted: Popular rows that the user never had, as a share of the rows of the condition.
        flipped: Share of the condition's answers that are turned to their opposite.
        views: Pairs of each user, with different parts of the history.
    """

    source: str | None = None
    propensity_power: float = 0.0
    erased: int = 0
    popularity_pull: float = 0.0
    inserted: float = 0.0
    flipped: float = 0.0
    views: int = 8

    def __post_init__(self) -> None:
        if self.source is not None:
            check_choice("source", self.source, SOURCES)
        check_whole("views", self.views, 1)
        if check_whole("erased", self.erased, 0) > len(STATISTICS):
            raise ConfigError(f"erased must be at most {len(STATISTICS)}, got {self.erased}.")
        for name in ("propensity_power", "popularity_pull", "inserted"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"{name} must be at least 0, got {getattr(self, name)}.")
        if not 0 <= self.flipped <= 1:
            raise ConfigError(f"flipped must lie in [0, 1], got {self.flipped}.")
        if self.propensity_power and self.source in ("unbiased", "identity"):
            raise ConfigError(f'propensity_power has no effect on source="{self.source}".')


@dataclass(frozen=True, eq=False)
class Pairs:
    """Training pairs in the encoder's units.

    Attributes:
        observed: (n, d) float32, what an agent would see.
        target: (n, d) float32, what it should see.
        popularity: (n, 3) float32, statistics of the popularity of the items behind ``observed``.
        weight: (n,) float32, what a pair counts, one on average.
        user: (n,) int64, whose pair it is, as a position among the train users.
    """

    observed: FloatArray
    target: FloatArray
    popularity: FloatArray
    weight: FloatArray
    user: NDArray[np.int64]


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
        matrix = self._matrix(weight)
        total, mass = self.encoder.pool(matrix)
        for fold, embedding in enumerate(embeddings):
            mine = np.arange(self.n) % len(embeddings) == fold
            total[mine] = matrix[mine] @ embedding
        return self.encoder.encode(total, mass)

    def mass(self, weight: NDArray[np.floating] | NDArray[np.bool_]) -> FloatArray:
        """(n,) float32: total weight of each history."""
        return np.bincount(self.rows, weights=weight, minlength=self.n).astype(np.float32)

    def popularity(self, weight: NDArray[np.floating] | NDArray[np.bool_]) -> FloatArray:
        """(n, 3) float32: statistics of the popularity of weighted rows, NaN without any."""
        found = popularity_statistics(
            self.rows, self.items, self.exposures, self.n, np.asarray(weight, dtype=np.float64)
        )
        return found.astype(np.float32)

    def inverse_propensity(self, power: float) -> Vector:
        """(n_rows,) weights that undo exposure, relative to the median row's and clipped."""
        exposures = self.exposures[self.items]
        weight = (np.median(exposures) / exposures) ** power
        return np.asarray(np.minimum(weight, PROPENSITY_CLIP))

    def thinned(
        self, least: float, most: float, pull: float, rng: np.random.Generator
    ) -> NDArray[np.bool_]:
        """(n_rows,) bool: a random part of every history, of a share of its own."""
        share = rng.uniform(least, most, self.n)[self.rows]
        exposures = self.exposures[self.items]
        chance = (exposures / exposures.max()) ** pull
        return np.asarray(rng.random(len(self.rows)) < share * chance / chance.mean())

    def _matrix(self, weight: NDArray[np.floating]) -> csr_matrix:
        cells = (np.asarray(weight, dtype=np.float32), (self.rows, self.items))
        return csr_matrix(cells, shape=(self.n, self.n_items))


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
        config: How; ``None`` for the defaults.
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
    if source == "unbiased":
        if data.randomised is None:
            raise ConfigError(
                'source="unbiased" needs rows of train users that are free of exposure bias; this '
                'dataset has none. Use source="history", or dataset.with_unbiased_users(n).'
            )
        views = _unbiased(histories, data.randomised, data.n_users, config, rng)
    elif source == "history":
        views = _other_part(histories, config, rng)
    else:
        views = _same_history(histories, config, rng, clean=source == "clean")
    pairs = _stacked(list(views))
    if config.erased:
        erased = erase(pairs.target, pairs.popularity[:, : config.erased])
        pairs = replace(pairs, target=erased(pairs.target))
    return pairs


def _other_part(
    histories: Histories, config: TargetConfig, rng: np.random.Generator
) -> Iterator[Pairs]:
    embeddings = cross_fitted_embeddings(histories)
    response = histories.response
    weight = response * histories.inverse_propensity(config.propensity_power)
    for _ in range(config.views):
        kept = histories.thinned(LEAST_KEPT, MOST_KEPT, config.popularity_pull, rng)
        target = histories.states(weight * ~kept, embeddings)
        told = histories.mass(~kept) * (histories.mass(response * ~kept) > 0)
        yield _view(histories, config, rng, kept, target, told)


def _unbiased(
    histories: Histories,
    table: Interactions,
    n_users: int,
    config: TargetConfig,
    rng: np.random.Generator,
) -> Iterator[Pairs]:
    rows = _positions(histories.users, n_users)[table.users]
    items, response = table.items[rows >= 0], table.response[rows >= 0].astype(np.float64)
    rows = rows[rows >= 0]
    if not len(rows):
        raise ConfigError("None of the rows that are free of exposure bias is a train user's.")
    residual = response - smoothed_means(items, response, histories.n_items)[items]
    residual += response.mean() - smoothed_means(rows, response, histories.n)[rows]
    matrix = csr_matrix((residual, (rows, items)), shape=(histories.n, histories.n_items))
    told = np.bincount(rows, minlength=histories.n).astype(np.float32)
    encoder = histories.encoder
    # The environment's own embedding: it was fitted on other rows than these, chance and all.
    target = np.asarray(matrix @ encoder.embedding) / (told[:, None] + PRIOR_ROWS) / encoder.scale
    for view in range(config.views):
        kept = histories.thinned(LEAST_KEPT, 1.0, config.popularity_pull, rng)
        kept |= view == 0  # one view is the whole history
        yield _view(histories, config, rng, kept, target.astype(np.float32), told)


def _same_history(
    histories: Histories, config: TargetConfig, rng: np.random.Generator, *, clean: bool
) -> Iterator[Pairs]:
    response = histories.response
    weight = response * histories.inverse_propensity(config.propensity_power)
    whole, told = histories.states(weight), np.ones(histories.n, dtype=np.float32)
    for view in range(config.views):
        kept = histories.thinned(LEAST_KEPT, 1.0, config.popularity_pull, rng)
        kept |= view == 0
        pairs = _view(histories, config, rng, kept, whole, told)
        if not clean:
            pairs = replace(pairs, target=pairs.observed)
        yield pairs


def _view(
    histories: Histories,
    config: TargetConfig,
    rng: np.random.Generator,
    kept: NDArray[np.bool_],
    target: FloatArray,
    told: FloatArray,
) -> Pairs:
    """Pairs of one view: conditions from the kept rows, for users whose target tells something."""
    response = histories.response
    if config.flipped:
        flip = rng.random(len(response)) < config.flipped
        response = np.where(flip, np.float32(1.0) - np.minimum(response, 1.0), response)
    seen = histories
    if config.inserted:
        seen, response, kept = _with_hits(histories, response, kept, config.inserted, rng)
    observed, popularity = seen.states(response * kept), seen.popularity(kept)
    users = np.flatnonzero((seen.mass(response * kept) > 0) & (told > 0))
    return Pairs(observed[users], target[users], popularity[users], told[users], users)


def _with_hits(
    histories: Histories,
    response: FloatArray,
    kept: NDArray[np.bool_],
    inserted: float,
    rng: np.random.Generator,
) -> tuple[Histories, FloatArray, NDArray[np.bool_]]:
    """Histories with liked rows inserted, drawn by popularity alone; answers; what is kept."""
    count = rng.poisson(inserted * histories.mass(kept))
    rows = np.repeat(np.arange(histories.n), count)
    chance = histories.exposures / histories.exposures.sum()
    hits = rng.choice(histories.n_items, size=len(rows), p=chance)
    seen = copy(histories)
    seen.rows = np.concatenate([histories.rows, rows])
    seen.items = np.concatenate([histories.items, hits])
    liked = np.ones(len(rows), dtype=np.float32)
    return seen, np.concatenate([response, liked]), np.concatenate([kept, liked > 0])


def cross_fitted_embeddings(histories: Histories) -> tuple[Vector, ...]:
    """Item embeddings in the environment's coordinates that were fitted without some users.

    For each fold of users the spectral embedding is made again from the other users' rows and laid
    over the environment's by least squares, items counting by their rows. Coordinates that the
    others do not confirm come out near zero: those were chance.

    Args:
        histories: User k belongs to fold k modulo :data:`FOLDS`.

    Returns:
        For each fold (n_items, d) float64, fitted without its users.
    """
    n_items = histories.n_items
    found = []
    for fold in range(FOLDS):
        others = histories.rows % FOLDS != fold
        items, response = histories.items[others], histories.response[others]
        vectors = spectral_embedding(
            histories.rows[others].astype(np.int32), items, response, (histories.n, n_items)
        )
        mean = smoothed_means(items, response.astype(np.float64), n_items)
        design = np.column_stack([np.ones(n_items), mean, vectors])
        weight = np.sqrt(np.bincount(items, minlength=n_items))[:, None]
        own = histories.encoder.embedding.astype(np.float64)
        found.append(design @ np.linalg.lstsq(design * weight, own * weight, rcond=1e-6)[0])
    return tuple(found)


def smoothed_means(groups: NDArray[np.integer], response: Vector, n: int) -> Vector:
    """(n,) mean response of each group, smoothed towards the overall mean."""
    total = np.bincount(groups, weights=response, minlength=n)
    overall = response.mean() if len(response) else 0.0
    return np.asarray(
        (total + SMOOTHING * overall) / (np.bincount(groups, minlength=n) + SMOOTHING)
    )


def _positions(users: NDArray[np.integer], n_users: int) -> NDArray[np.int64]:
    """(n_users,): each user's place in ``users``, -1 for others."""
    place = np.full(n_users, -1, dtype=np.int64)
    place[users] = np.arange(len(users))
    return place


def _stacked(views: list[Pairs]) -> Pairs:
    parts = [
        np.concatenate([getattr(view, name) for view in views])
        for name in ("observed", "target", "popularity", "weight", "user")
    ]
    observed, target, popularity, weight, user = parts
    if not len(user):
        raise ConfigError(TOO_SMALL)
    return Pairs(observed, target, popularity, weight / weight.mean(), user)
