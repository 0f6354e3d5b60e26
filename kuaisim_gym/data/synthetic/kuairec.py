"""A synthetic KuaiRec: watch ratios, and test users who answer nearly every item.

On the shared causal model (:mod:`~kuaisim_gym.data.synthetic.causal`) the watch ratio is a monotone
map of the latent score, chosen so that the log's quantiles are those measured on the real data
(KuaiRec, CIKM 2022). The score includes noise, so that its total variance is near one.
Latent variances and the spread of popularity are calibrated to the other published facts;
``tests/data/test_synthetic.py`` holds each fact with its tolerance.

A test user's cells that occur in that user's log are left out of the test table, because the real
matrices are disjoint where both are read. Features are derived for the sake of their form: a
category list per item and an activity degree per user; their shares are not measured.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from tqdm.auto import tqdm

from kuaisim_gym.data.dataset import Dataset, Features
from kuaisim_gym.data.feedback import WatchLog
from kuaisim_gym.data.synthetic.causal import (
    Causes,
    Vector,
    WorldConfig,
    draw_causes,
    expose,
    power_shares,
    row_counts,
)
from kuaisim_gym.data.synthetic.features import by_rank, category_lists, coded
from kuaisim_gym.errors import ConfigError

# Quantiles of watch_ratio in the real rows; the two outermost bound the simulated range.
WATCH_RATIO_LEVELS = np.array([0.0, 0.01, 0.05, 0.10, 0.25, 0.50, 0.75, 0.90, 0.95, 0.99, 1.0])
WATCH_RATIO_QUANTILES = np.array(
    [0.001, 0.017, 0.097, 0.182, 0.467, 0.779, 1.137, 1.586, 1.994, 3.670, 144.3]
)
_ACTIVITY_SPREAD = 0.5  # s.d. of the log of a user's activity
_ACTIVE_DEGREES = {"full_active": 0.80, "high_active": 0.14, "middle_active": 0.05, "UNKNOWN": 0.01}
_MAP_POINTS = 1024


@dataclass(frozen=True)
class SyntheticConfig(WorldConfig):
    """Parameters of the synthetic KuaiRec world; the defaults are the calibrated ones.

    The others are described in :class:`~kuaisim_gym.data.synthetic.causal.WorldConfig`. The
    latent score has unit variance. ``quality_popularity`` is slightly negative, so that with
    conformity the logged correlation is the measured .01.

    Attributes:
        n_test_users: Users, of all, who answer every item that their log does not hold.
        events_per_user: Mean logged rows of a user.
    """

    n_users: int = 7176
    n_items: int = 3327
    n_categories: int = 31
    dim: int = 16
    quality: float = 0.70
    quality_skew: float = 0.95
    user_level: float = 0.20
    personal: float = 0.25
    conformity: float = 0.12
    quality_popularity: float = -0.17
    activity_level: float = 0.0
    popularity_spread: float = 1.34
    exposure_relevance: float = 0.6
    interests: float = 0.12
    n_test_users: int = 1411
    events_per_user: int = 120

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.n_test_users <= self.n_users:
            raise ConfigError(
                f"n_test_users must lie in [1, {self.n_users}], got {self.n_test_users}."
            )
        if not 1 <= self.events_per_user <= self.n_items // 4:
            raise ConfigError(
                "events_per_user must be at least 1 and at most a quarter of n_items, got "
                f"{self.events_per_user} and {self.n_items}."
            )
        if self.noise_variance <= 0:
            raise ConfigError(
                "quality, user_level, personal and conformity leave no variance for noise: "
                f"{self}. Lower one of them."
            )

    @property
    def noise_variance(self) -> float:
        """Latent variance that no cause explains; total latent variance is one."""
        # Conformity is gamma(2, 1/2) times its mean: E[c^2] = 1.5 mean^2.
        causes = self.quality**2 + self.user_level**2 + self.personal**2 + 1.5 * self.conformity**2
        return 1.0 - causes


def synthetic_kuairec(seed: int = 0, config: SyntheticConfig | None = None) -> Dataset:
    """Generates the world.

    Args:
        seed: Same seed and configuration, same world.
        config: Parameters; ``None`` for the calibrated defaults.

    Returns:
        A dataset marked synthetic, with its causes under ``truth``. Users
        ``0 .. n_test_users - 1`` are the test users.
    """
    config = config or SyntheticConfig()
    rng = np.random.default_rng(seed)
    with tqdm(total=4, desc="Synthetic KuaiRec world", unit="part", leave=False) as progress:
        causes = draw_causes(config, power_shares(config.n_categories), rng)
        progress.update()
        counts = row_counts(
            causes.activity,
            config.events_per_user,
            _ACTIVITY_SPREAD,
            least=min(20, config.events_per_user),
            most=config.n_items // 4,
        )
        pull = config.popularity_spread * causes.popularity
        users, items = expose(causes, counts, pull, config.exposure_relevance, rng)
        progress.update()
        noise = np.sqrt(config.noise_variance)
        score = causes.latent(users, items) + config.conformity * causes.sway(users, items)
        score += noise * rng.standard_normal(len(users))
        watch = _WatchRatioMap(score, noise)
        log = WatchLog(users, items, watch.of(score).astype(np.float32))
        progress.update()
        test = _test_table(config, causes, log, watch, rng)
        progress.update()
    user_features, item_features = _features(causes, counts, np.random.default_rng([seed, 1]))
    return Dataset(
        name="kuairec",
        synthetic=True,
        user_ids=np.arange(config.n_users, dtype=np.int64),
        item_ids=np.arange(config.n_items, dtype=np.int64),
        n_items=config.n_items,
        log=log,
        test=test,
        user_features=user_features,
        item_features=item_features,
        truth=causes.truth(*watch.expected(causes)),
    )


class _WatchRatioMap:
    """Monotone map of latent scores to watch ratios, fitted to the measured quantiles."""

    def __init__(self, score: Vector, noise: float) -> None:
        self._knots = np.quantile(score, WATCH_RATIO_LEVELS)
        self._log_watch = np.log(WATCH_RATIO_QUANTILES)
        self.noise = noise

    def of(self, score: Vector) -> Vector:
        """Watch ratio of a latent score."""
        return np.asarray(np.exp(np.interp(score, self._knots, self._log_watch)))

    def expected(self, causes: Causes) -> tuple[Vector, Vector]:
        """Noise-free scores, wide enough for any pair, and E[min(watch ratio, 1)] at them."""
        nodes, weights = np.polynomial.hermite_e.hermegauss(64)
        lowest = causes.user_level.min() + causes.item_level.min() - causes.scale
        highest = causes.user_level.max() + causes.item_level.max() + causes.scale
        scores = np.linspace(lowest, highest, _MAP_POINTS)
        responses = np.minimum(self.of(scores[:, None] + self.noise * nodes), 1.0)
        # Rounding may not break the ascent, nor leave [0, 1].
        expected = np.maximum.accumulate(responses @ (weights / weights.sum()))
        return scores, np.clip(expected, 0.0, 1.0)


def _test_table(
    config: SyntheticConfig,
    causes: Causes,
    log: WatchLog,
    watch: _WatchRatioMap,
    rng: np.random.Generator,
) -> WatchLog:
    """The answers of the test users to every item that their log does not hold."""
    noise = rng.standard_normal(config.n_test_users * config.n_items, dtype=np.float32)
    logged = log.take(log.users < config.n_test_users)
    is_logged = np.zeros((config.n_test_users, config.n_items), dtype=bool)
    is_logged[logged.users, logged.items] = True
    users, items = (positions.astype(np.int32) for positions in np.nonzero(~is_logged))
    score = causes.latent(users, items) + watch.noise * noise[~is_logged.ravel()]
    return WatchLog(users, items, watch.of(score).astype(np.float32))


def _features(
    causes: Causes, counts: NDArray[np.int64], rng: np.random.Generator
) -> tuple[Features, Features]:
    """Features of users and of items."""
    activity = np.log(counts) + 0.1 * rng.standard_normal(len(counts))
    n_items = len(causes.category)
    sizes = np.where(rng.permutation(n_items) < n_items // 4, 2, 1)  # some have two categories
    names = [str(number) for number in range(len(causes.category_centres))]
    return (
        coded({"user_active_degree": by_rank(activity, _ACTIVE_DEGREES)}),
        coded({"category": category_lists(causes, sizes, names)}),
    )
