"""The causal model that both synthetic worlds share.

    interests -> true preference p_u --+--> expected response (unbiased)
    category --> item vector v_i ------+           |
    quality q_i, user level b_u -------+           v
    popularity -> exposure (with relevance) --> logged response <- conformity c_u * popularity

Popular and relevant items are shown more often, and popularity goes with quality to a degree that
is a parameter; when a user answers what the platform chose, popularity sways the answer. The log
therefore over-states popular items. Unbiased rows have neither exposure by popularity nor sway.

A platform counts answers, so what is measured on real rows is how positive answers go with quality;
how exposures do is known of neither dataset. The correlation of popularity (what drives exposure)
and quality, and the spread of popularity, are therefore chosen such that counted positives behave
as measured. They are no measurements themselves.

A response is a monotone function of a latent score,

    score = b_u + q_i + scale * <p_u, v_i>  [+ conformity * c_u * popularity_i in the log],

which is why :class:`~kuaisim_gym.data.dataset.Truth` holds no table of responses.

Scores and exposure keys are float64: another machine may round them otherwise in the last place,
which would have to meet a tie to change a row.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from kuaisim_gym.data.dataset import Truth
from kuaisim_gym.data.feedback import IntArray
from kuaisim_gym.errors import ConfigError

Vector = NDArray[np.float64]  # (n,)
Matrix = NDArray[np.float64]  # (n, m)

_USERS_AT_ONCE = 128  # users whose keys for every item are held at once
_ROWS_AT_ONCE = 1 << 17  # rows whose two vectors are held at once
_SCATTER = 0.5  # how far items lie from the centre of their category


@dataclass(frozen=True)
class WorldConfig:
    """Parameters of both worlds; spreads and pulls are in units of the latent score.

    Attributes:
        n_users: Users.
        n_items: Catalogue size.
        n_categories: Item categories, also the corners of the preference manifold.
        dim: Dimension of true preferences and item vectors.
        quality: Standard deviation of item quality.
        quality_skew: Share of quality that comes from a left-skewed draw, in [0, 1].
        user_level: Standard deviation of a user's general inclination to respond.
        personal: Standard deviation of the true-preference term.
        conformity: Mean pull of one standard deviation of log-popularity on a logged answer.
        quality_popularity: Correlation of true quality and log-popularity, the cause of exposure.
        activity_level: Correlation of a user's log-activity and general inclination.
        popularity_spread: Pull of one standard deviation of log-popularity on exposure, logits.
        exposure_relevance: Pull of one standard deviation of true relevance on exposure, logits.
        interests: Dirichlet concentration of a user's interests; small means few interests.
    """

    n_users: int
    n_items: int
    n_categories: int
    dim: int
    quality: float
    quality_skew: float
    user_level: float
    personal: float
    conformity: float
    quality_popularity: float
    activity_level: float
    popularity_spread: float
    exposure_relevance: float
    interests: float

    def __post_init__(self) -> None:
        for name in ("n_users", "n_categories", "dim"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}.")
        if self.n_items < 8:
            raise ConfigError(f"n_items must be at least 8, got {self.n_items}.")
        for name in ("quality", "user_level", "personal", "conformity"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"{name} must be at least 0, got {getattr(self, name)}.")
        if not 0 <= self.quality_skew <= 1:
            raise ConfigError(f"quality_skew must lie in [0, 1], got {self.quality_skew}.")
        for name in ("quality_popularity", "activity_level"):
            if not -1 <= getattr(self, name) <= 1:
                raise ConfigError(
                    f"{name} is a correlation and must lie in [-1, 1], got {getattr(self, name)}."
                )
        if not self.interests > 0:
            raise ConfigError(f"interests must be positive, got {self.interests}.")

    def __str__(self) -> str:
        return ", ".join(f"{name}={value}" for name, value in asdict(self).items())


@dataclass(frozen=True, eq=False)
class Causes:
    """Causes, all drawn before any exposure.

    Attributes:
        preference: (n_users, m) unit rows, true preferences.
        item_vectors: (n_items, m) unit rows.
        category: (n_items,) int64.
        category_centres: (n_categories, m) unit rows.
        interest: (n_users,) int32, the category that each user likes most.
        popularity: (n_items,), standardised log-popularity.
        activity: (n_users,), standard normal log-activity.
        conformity: (n_users,), mean one.
        user_level: (n_users,), in latent units.
        item_level: (n_items,), in latent units; quality, less what a mean user's taste adds.
        relevance_centre: (n_items,), mean of ``<p_u, v_i>`` over users.
        relevance_unit: Standard deviation of ``<p_u, v_i>`` about it, over all pairs.
        scale: Latent units of one unit of ``<p_u, v_i>``.
    """

    preference: Matrix
    item_vectors: Matrix
    category: NDArray[np.int64]
    category_centres: Matrix
    interest: IntArray
    popularity: Vector
    activity: Vector
    conformity: Vector
    user_level: Vector
    item_level: Vector
    relevance_centre: Vector
    relevance_unit: float
    scale: float

    def relevance(self, users: slice) -> Matrix:
        """(n, n_items) standardised relevance of every item for some users."""
        products = self.preference[users] @ self.item_vectors.T
        return np.asarray((products - self.relevance_centre) / self.relevance_unit)

    def latent(self, users: NDArray[np.integer], items: NDArray[np.integer]) -> Vector:
        """(n,) unbiased latent scores of (user, item) pairs."""
        return self.score(users, items, self.taste(users, items))

    def score(
        self, users: NDArray[np.integer], items: NDArray[np.integer], taste: Vector
    ) -> Vector:
        """(n,) unbiased latent scores of pairs whose taste is at hand."""
        return np.asarray(self.user_level[users] + self.item_level[items] + self.scale * taste)

    def taste(self, users: NDArray[np.integer], items: NDArray[np.integer]) -> Vector:
        """(n,) products ``<p_u, v_i>`` of (user, item) pairs."""
        products = np.empty(len(users))
        for start in range(0, len(users), _ROWS_AT_ONCE):
            rows = slice(start, start + _ROWS_AT_ONCE)
            products[rows] = np.einsum(
                "nd,nd->n", self.preference[users[rows]], self.item_vectors[items[rows]]
            )
        return products

    def relevance_of(self, items: NDArray[np.integer], taste: Vector) -> Vector:
        """(n,) standardised relevance of pairs whose taste is at hand."""
        return np.asarray((taste - self.relevance_centre[items]) / self.relevance_unit)

    def sway(self, users: NDArray[np.integer], items: NDArray[np.integer]) -> Vector:
        """(n,) pull of popularity on logged answers, before the parameter ``conformity``."""
        return np.asarray(self.conformity[users] * self.popularity[items])

    def truth(self, map_scores: Vector, map_responses: Vector) -> Truth:
        """The causes as the dataset stores them.

        Args:
            map_scores: (g,) ascending latent scores.
            map_responses: (g,) expected unbiased responses at them.
        """
        names = ("preference", "item_vectors", "conformity", "user_level", "item_level", "scale")
        arrays = {name: getattr(self, name) for name in names}
        arrays |= {"map_scores": map_scores, "map_responses": map_responses}
        single = {name: np.asarray(array, dtype=np.float32) for name, array in arrays.items()}
        return Truth(interest=self.interest, **single)


def strata(n: int, rng: np.random.Generator) -> Vector:
    """(n,) levels in (0, 1), one from the middle of each n-th, in random order.

    Quantiles of a distribution at these levels have its shape in every world, heavy tail included.
    """
    return np.asarray((rng.permutation(n) + 0.5) / n)


def power_shares(n: int) -> Vector:
    """(n,) shares of categories, the k-th proportional to ``k ** -0.7``."""
    share = 1.0 / np.arange(1, n + 1) ** 0.7
    return np.asarray(share / share.sum())


def draw_causes(config: WorldConfig, share: Vector, rng: np.random.Generator) -> Causes:
    """Draws preferences, items and everything else that comes before exposure.

    Args:
        config: The parameters.
        share: (n_categories,) share of each category among items, and among interests.
        rng: Source of the draws.
    """
    centres = _unit_rows(rng.standard_normal((config.n_categories, config.dim)))
    category = rng.choice(config.n_categories, config.n_items, p=share)
    scatter = rng.standard_normal((config.n_items, config.dim)) / np.sqrt(config.dim)
    item_vectors = _unit_rows(centres[category] + _SCATTER * scatter)
    weights = rng.dirichlet(share * config.n_categories * config.interests, config.n_users)
    preference = _unit_rows(weights @ centres)

    popularity = rng.standard_normal(config.n_items)
    skewed = 1.0 - rng.standard_exponential(config.n_items)
    quality = _mixed(config.quality_skew, skewed, rng.standard_normal(config.n_items))
    quality = standardised(_mixed(config.quality_popularity, popularity, quality))
    level = rng.standard_normal(config.n_users)
    conformity = rng.gamma(2.0, 0.5, config.n_users)
    activity = rng.standard_normal(config.n_users)
    level = _mixed(config.activity_level, activity, level)

    mean_preference = preference.mean(axis=0)
    centre = item_vectors @ mean_preference
    # The variance of <p_u - mean p, v_i> over all pairs, without forming them.
    away = preference - mean_preference
    products = (away.T @ away) * (item_vectors.T @ item_vectors)
    unit = float(np.sqrt(products.sum() / (config.n_users * config.n_items)))
    if not unit > 1e-6:
        raise ConfigError(f"All users prefer the same: {config}. Use more users or categories.")
    return Causes(
        preference=preference,
        item_vectors=item_vectors,
        category=category,
        category_centres=centres,
        interest=weights.argmax(axis=1).astype(np.int32),
        popularity=standardised(popularity),
        activity=activity,
        conformity=conformity,
        user_level=config.user_level * level,
        item_level=config.quality * quality - config.personal * centre / unit,
        relevance_centre=centre,
        relevance_unit=unit,
        scale=config.personal / unit,
    )


def row_counts(
    activity: Vector, mean: float, spread: float, least: int, most: int
) -> NDArray[np.int64]:
    """Numbers of rows: log-normal, rounded and clipped.

    Args:
        activity: (n_users,) standard normal.
        mean: Mean number of rows, before clipping.
        spread: Standard deviation of its logarithm.
        least: Lower bound.
        most: Upper bound.
    """
    counts = np.rint(mean * np.exp(spread * activity - spread**2 / 2))
    return np.clip(counts, least, most).astype(np.int64)


def expose(
    causes: Causes,
    counts: NDArray[np.int64],
    pull: Vector,
    relevance: float,
    rng: np.random.Generator,
) -> tuple[IntArray, IntArray]:
    """Draws each user's exposures without replacement (Gumbel top-n).

    Args:
        causes: Preferences of the users.
        counts: (n_users,) exposures of each user, 0 allowed.
        pull: (n_items,) logits, each item's own pull on exposure; ``-inf`` where it is never shown.
        relevance: Logits, the pull of one standard deviation of relevance.
        rng: Source of the draws.

    Returns:
        Users and items of all exposures, users ascending, a user's items in order of exposure.
    """
    n_users, n_items = len(counts), len(pull)
    chosen = []
    for start in range(0, n_users, _USERS_AT_ONCE):
        users = slice(start, min(start + _USERS_AT_ONCE, n_users))
        exponential = rng.standard_exponential((users.stop - start, n_items), dtype=np.float32)
        # The logarithm of an exponential is a negative Gumbel: the smallest keys are exposed.
        keys = np.log(np.maximum(exponential, np.finfo(np.float32).tiny), dtype=np.float64)
        keys -= relevance * causes.relevance(users)
        keys -= pull
        for row, count in zip(keys, counts[users], strict=True):
            if count:
                top = np.argpartition(row, count - 1)[:count]
                chosen.append(top[np.argsort(row[top])])
    users_of_rows = np.repeat(np.arange(n_users, dtype=np.int32), counts)
    return users_of_rows, np.concatenate(chosen).astype(np.int32)


def standardised(values: Vector) -> Vector:
    """The values, shifted and scaled to mean 0 and standard deviation 1."""
    return np.asarray((values - values.mean()) / values.std())


def _mixed(correlation: float, first: Vector, second: Vector) -> Vector:
    """Mixes two unit-variance vectors; the result has this correlation with the first."""
    return np.asarray(correlation * first + np.sqrt(1 - correlation**2) * second)


def _unit_rows(rows: Matrix) -> Matrix:
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True))
