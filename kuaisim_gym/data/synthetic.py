"""A synthetic KuaiRec: a causal model of who sees what, and why they watch it.

    interest -> true preference p_u ------+--> expected response (unbiased)
    category -> item vector v_i ----------+           |
    quality q_i, user level b_u ----------+           v
    popularity -> exposure (with relevance) --> logged response <- conformity c_u * popularity

Users are exposed to popular and, more weakly, to relevant items; when they answer, popularity
sways them. The log therefore over-states popular items, while popularity says almost nothing
about quality. Test users answer every catalogue item without exposure or conformity.

The watch ratio is a monotone map of a Gaussian-like latent score, chosen so that the log's
quantiles are those measured on the real data (KuaiRec, CIKM 2022). Latent variances and the
spread of popularity are calibrated to the other published facts; ``tests/data/test_synthetic.py``
holds each fact with its tolerance.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray
from tqdm.auto import tqdm

from kuaisim_gym.data.dataset import Dataset, FloatArray, IntArray, Interactions, Truth
from kuaisim_gym.errors import ConfigError

# Quantiles of watch_ratio in the real rows; the two outermost bound the simulated range.
WATCH_RATIO_LEVELS = np.array([0.0, 0.01, 0.05, 0.10, 0.25, 0.50, 0.75, 0.90, 0.95, 0.99, 1.0])
WATCH_RATIO_QUANTILES = np.array(
    [0.001, 0.017, 0.097, 0.182, 0.467, 0.779, 1.137, 1.586, 1.994, 3.670, 144.3]
)
_BLOCK = 512  # users whose dense rows are held at once


@dataclass(frozen=True)
class SyntheticConfig:
    """Knobs of the synthetic KuaiRec world; the defaults are the calibrated ones.

    Attributes:
        n_users: Users in the log.
        n_test_users: Users, of those, who answer every item.
        n_items: Catalogue size.
        n_categories: Item categories, also the corners of the preference manifold.
        dim: Dimension of true preferences and item vectors.
        events_per_user: Mean logged rows of a user.
        quality: Standard deviation of item quality, in latent units (total variance near 1).
        quality_skew: Share of quality that comes from a left-skewed draw, in [0, 1].
        user_level: Standard deviation of a user's general inclination to watch.
        personal: Standard deviation of the true-preference term.
        conformity: Mean pull of one standard deviation of log-popularity on a logged answer.
        quality_popularity: Correlation of true quality and log-popularity; slightly negative,
            so that with conformity the logged correlation is the measured .01.
        popularity_spread: Pull of one standard deviation of log-popularity on exposure, logits.
        exposure_relevance: Pull of one standard deviation of true relevance on exposure, logits.
        interests: Dirichlet concentration of a user's interests; small means few interests.
    """

    n_users: int = 7176
    n_test_users: int = 1411
    n_items: int = 3327
    n_categories: int = 31
    dim: int = 16
    events_per_user: int = 120
    quality: float = 0.70
    quality_skew: float = 0.95
    user_level: float = 0.20
    personal: float = 0.25
    conformity: float = 0.12
    quality_popularity: float = -0.17
    popularity_spread: float = 1.34
    exposure_relevance: float = 0.6
    interests: float = 0.12

    def __post_init__(self) -> None:
        if not 1 <= self.n_test_users <= self.n_users:
            raise ConfigError(
                f"n_test_users must lie in [1, {self.n_users}], got {self.n_test_users}."
            )
        if self.n_items < 8 or not 1 <= self.events_per_user <= self.n_items // 4:
            raise ConfigError(
                "n_items must be at least 8 and events_per_user at most a quarter of it, got "
                f"{self.n_items} and {self.events_per_user}."
            )
        if self.noise_variance <= 0:
            raise ConfigError(
                "quality, user_level, personal and conformity leave no variance for noise: "
                f"{asdict(self)}. Lower one of them."
            )

    @property
    def noise_variance(self) -> float:
        """Latent variance that no cause explains; total latent variance is one."""
        # Conformity is gamma(2, 1/2) times its mean: E[c^2] = 1.5 mean^2.
        causes = self.quality**2 + self.user_level**2 + self.personal**2 + 1.5 * self.conformity**2
        return 1.0 - causes


@dataclass(frozen=True)
class _Causes:
    """Everything drawn before anybody sees anything."""

    preference: FloatArray  # (U, m)
    item_vectors: FloatArray  # (I, m)
    interest: IntArray  # (U,)
    relevance: FloatArray  # (U, I), standardised
    quality: FloatArray  # (I,), standardised
    popularity: FloatArray  # (I,), standardised log-popularity
    level: FloatArray  # (U,), standardised
    conformity: FloatArray  # (U,), mean one

    def latent(self, config: SyntheticConfig, users: IntArray, items: IntArray) -> FloatArray:
        """Unbiased latent score of some (user, item) pairs."""
        score = (
            config.quality * self.quality[items]
            + config.user_level * self.level[users]
            + config.personal * self.relevance[users, items]
        )
        return np.asarray(score, dtype=np.float32)


def synthetic_kuairec(seed: int = 0, config: SyntheticConfig | None = None) -> Dataset:
    """Generates the world.

    Args:
        seed: Same seed and configuration, same world.
        config: Knobs; ``None`` for the calibrated defaults.

    Returns:
        A dataset marked synthetic, with its causes under ``truth``. Users
        ``0 .. n_test_users - 1`` are the test users.
    """
    config = config or SyntheticConfig()
    rng = np.random.default_rng(seed)
    with tqdm(total=4, desc="Synthetic KuaiRec world", unit="part", leave=False) as progress:
        causes = _draw_causes(config, rng)
        progress.update()
        users, items = _expose(config, causes, rng)
        progress.update()
        noise = np.sqrt(config.noise_variance)
        swayed = config.conformity * causes.conformity[users] * causes.popularity[items]
        score = causes.latent(config, users, items) + swayed
        score += noise * rng.standard_normal(len(users))
        watch = _WatchRatioMap(score, noise)
        log = Interactions(users, items, watch.of(score).astype(np.float32))
        progress.update()
        test_users = np.repeat(np.arange(config.n_test_users, dtype=np.int32), config.n_items)
        test_items = np.tile(np.arange(config.n_items, dtype=np.int32), config.n_test_users)
        unbiased = causes.latent(config, test_users, test_items)
        realised = watch.of(unbiased + noise * rng.standard_normal(len(unbiased), dtype=np.float32))
        test = Interactions(test_users, test_items, realised.astype(np.float32))
        expected = watch.expected(unbiased).reshape(config.n_test_users, config.n_items)
        progress.update()
    return Dataset(
        name="kuairec",
        synthetic=True,
        user_ids=np.arange(config.n_users, dtype=np.int64),
        item_ids=np.arange(config.n_items, dtype=np.int64),
        n_items=config.n_items,
        log=log,
        test=test,
        truth=Truth(
            causes.preference,
            causes.item_vectors,
            causes.interest,
            causes.conformity,
            expected.astype(np.float32),
        ),
    )


def _draw_causes(config: SyntheticConfig, rng: np.random.Generator) -> _Causes:
    share = 1.0 / np.arange(1, config.n_categories + 1) ** 0.7
    share /= share.sum()
    centres = _unit_rows(rng.standard_normal((config.n_categories, config.dim)))
    category = rng.choice(config.n_categories, config.n_items, p=share)
    scatter = rng.standard_normal((config.n_items, config.dim)) / np.sqrt(config.dim)
    item_vectors = _unit_rows(centres[category] + 0.5 * scatter)
    weights = rng.dirichlet(share * config.n_categories * config.interests, config.n_users)
    preference = _unit_rows(weights @ centres)
    relevance = (preference @ item_vectors.T).astype(np.float32)
    relevance -= relevance.mean(axis=0)
    relevance /= relevance.std()

    popularity = rng.standard_normal(config.n_items)
    skewed = (1.5 - rng.gamma(1.5, 1.0, config.n_items)) / np.sqrt(1.5)
    quality = config.quality_skew * skewed + np.sqrt(
        1 - config.quality_skew**2
    ) * rng.standard_normal(config.n_items)
    rho = config.quality_popularity
    quality = _standardised(rho * popularity + np.sqrt(1 - rho**2) * quality)
    return _Causes(
        preference=preference.astype(np.float32),
        item_vectors=item_vectors.astype(np.float32),
        interest=weights.argmax(axis=1).astype(np.int32),
        relevance=relevance,
        quality=quality.astype(np.float32),
        popularity=_standardised(popularity).astype(np.float32),
        level=rng.standard_normal(config.n_users).astype(np.float32),
        conformity=rng.gamma(2.0, 0.5, config.n_users).astype(np.float32),
    )


def _expose(
    config: SyntheticConfig, causes: _Causes, rng: np.random.Generator
) -> tuple[IntArray, IntArray]:
    """Draws each user's exposures without replacement (Gumbel top-n), in order of exposure."""
    spread = 0.5  # s.d. of the log of a user's activity; the mean stays events_per_user
    activity = np.exp(spread * rng.standard_normal(config.n_users) - spread**2 / 2)
    floor = min(20, config.events_per_user)
    counts = np.clip(np.rint(config.events_per_user * activity), floor, config.n_items // 4)
    counts = counts.astype(np.int64)
    pull = config.popularity_spread * causes.popularity
    items = []
    for start in range(0, config.n_users, _BLOCK):
        block = slice(start, min(start + _BLOCK, config.n_users))
        relevance = config.exposure_relevance * causes.relevance[block]
        exponential = rng.standard_exponential(relevance.shape, dtype=np.float32)
        gumbel = -np.log(np.maximum(exponential, np.finfo(np.float32).tiny))
        keys = pull + relevance + gumbel
        most = int(counts[block].max())
        top = np.argpartition(-keys, most - 1, axis=1)[:, :most]
        order = np.argsort(-np.take_along_axis(keys, top, axis=1), axis=1)
        top = np.take_along_axis(top, order, axis=1)
        items.append(top[np.arange(most) < counts[block, None]])
    users = np.repeat(np.arange(config.n_users, dtype=np.int32), counts)
    return users, np.concatenate(items).astype(np.int32)


class _WatchRatioMap:
    """Monotone map of latent scores to watch ratios, fitted to the measured quantiles."""

    def __init__(self, score: NDArray[np.floating], noise: float) -> None:
        self._knots = np.quantile(score, WATCH_RATIO_LEVELS)
        self._log_watch = np.log(WATCH_RATIO_QUANTILES)
        self._noise = noise

    def of(self, score: NDArray[np.floating]) -> NDArray[np.float64]:
        """Watch ratio of a latent score."""
        return np.asarray(np.exp(np.interp(score, self._knots, self._log_watch)))

    def expected(self, score: NDArray[np.floating]) -> NDArray[np.float64]:
        """E[min(watch ratio, 1)] over the noise, given the noise-free latent score."""
        nodes, weights = np.polynomial.hermite_e.hermegauss(64)
        grid = np.linspace(float(score.min()), float(score.max()), 1024)
        responses = np.minimum(self.of(grid[:, None] + self._noise * nodes), 1.0)
        expected = responses @ (weights / weights.sum())
        return np.asarray(np.interp(score, grid, expected), dtype=np.float64)


def _unit_rows(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True))


def _standardised(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray((values - values.mean()) / values.std())
