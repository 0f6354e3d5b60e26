"""A synthetic KuaiRec: watch ratios, and test users who answer nearly every item.

On the shared causal model (:mod:`~kuaisim_gym.data.synthetic.causal`) a watch ratio comes about in
two stages:

    latent score + noise -----------------------------> how much of the video is watched, up to 1
    habit h_u, appeal m_i, relevance, noise (appetite) -> how often it runs again, if it was watched

Both are monotone maps, chosen so that the fully observed matrix has the quantiles measured on cells
of the real one (KuaiRec, CIKM 2022); the score has unit variance, noise included. The second stage
does not touch ``min(watch_ratio, 1)``, which the first alone decides. It stands for what real rows
show: that users differ tenfold in how often they watch a video twice, and next to nothing in
their mean of ``min(watch_ratio, 1)``.

Measured: quantiles; spreads of video and user means; and how positives, rows with a watch ratio of
at least 2, are distributed over videos and users and go with quality. Chosen, since no real row
tells: the correlation of popularity and quality, the spread of exposures (wider than positives
alone would suggest, so that exposure bias remains), conformity, and relevance. Not aimed at: the
median watch ratio of the real big matrix, .72, most of whose videos the catalogue lacks.
``tests/data/test_synthetic_facts.py`` holds each fact with its tolerance.

A test user's cells that occur in that user's log are left out of the test table, because the real
matrices are disjoint where both are read. Features are derived for the sake of their form: a
category list per item and an activity degree per user; their shares are not measured.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammaincinv, ndtri
from tqdm.auto import tqdm

from kuaisim_gym.data.dataset import Dataset, Features
from kuaisim_gym.data.feedback import FloatArray, WatchLog
from kuaisim_gym.data.synthetic.causal import (
    Causes,
    Vector,
    WorldConfig,
    draw_causes,
    expose,
    power_shares,
    row_counts,
    strata,
)
from kuaisim_gym.data.synthetic.features import by_rank, category_lists, coded
from kuaisim_gym.errors import ConfigError

# Quantiles of watch_ratio in cells of the real full matrix; the two outermost bound the simulated
# range. How many cells reach 2 is counted in the whole matrix.
WATCH_RATIO_LEVELS = np.array([0.0, 0.01, 0.05, 0.10, 0.25, 0.50, 0.75, 0.90, 0.9531, 0.99, 1.0])
WATCH_RATIO_QUANTILES = np.array(
    [0.001, 0.017, 0.097, 0.182, 0.467, 0.779, 1.137, 1.586, 2.0, 3.670, 144.3]
)
_ACTIVITY_SPREAD = 0.5  # s.d. of the log of a user's activity
_ACTIVE_DEGREES = {"full_active": 0.80, "high_active": 0.14, "middle_active": 0.05, "UNKNOWN": 0.01}
_MAP_POINTS = 1024
_CELLS = 1 << 18  # cells of the full matrix that the maps of scores are fitted to
_APPEAL_SHAPE = 0.3  # of a gamma distribution: a few videos are watched again and again

# Below 1 the quantiles are those of all cells, from 1 on those of the cells that get so far.
_LOG_QUANTILES = np.log(WATCH_RATIO_QUANTILES)
_END = float(np.interp(0.0, _LOG_QUANTILES, WATCH_RATIO_LEVELS))  # share of cells below 1
_SCORE_LOGS = np.append(_LOG_QUANTILES[_LOG_QUANTILES < 0], 0.0)
_SCORE_LEVELS = np.append(WATCH_RATIO_LEVELS[_LOG_QUANTILES < 0], _END)
_APPETITE_LOGS = np.append(0.0, _LOG_QUANTILES[_LOG_QUANTILES > 0])
_APPETITE_LEVELS = np.append(0.0, (WATCH_RATIO_LEVELS[_LOG_QUANTILES > 0] - _END) / (1 - _END))


@dataclass(frozen=True)
class SyntheticConfig(WorldConfig):
    """Parameters of the synthetic KuaiRec world; the defaults are the calibrated ones.

    The others are described in :class:`~kuaisim_gym.data.synthetic.causal.WorldConfig`. The
    latent score has unit variance. So has the chance in an appetite, which is the unit of the three
    parameters of watching again.

    Attributes:
        rewatch_user: Standard deviation of a user's habit of watching again.
        rewatch_item: Standard deviation of a video's appeal for it, which is skewed to the right.
        rewatch_taste: Pull of one standard deviation of true relevance on it.
        n_test_users: Users, of all, who answer every item that their log does not hold.
        events_per_user: Mean logged rows of a user.
    """

    n_users: int = 7176
    n_items: int = 3327
    n_categories: int = 31
    dim: int = 16
    quality: float = 0.72
    quality_skew: float = 0.96
    user_level: float = 0.22
    personal: float = 0.25
    conformity: float = 0.12
    quality_popularity: float = 0.12
    activity_level: float = 0.0
    popularity_spread: float = 0.65
    exposure_relevance: float = 0.6
    interests: float = 0.12
    rewatch_user: float = 0.78
    rewatch_item: float = 0.59
    rewatch_taste: float = 0.27
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
        for name in ("rewatch_user", "rewatch_item", "rewatch_taste"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"{name} must be at least 0, got {getattr(self, name)}.")
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
        answers = _Answers(config, causes, rng)
        sway = config.conformity * causes.sway(users, items)
        log = WatchLog(users, items, answers.draw(users, items, rng, sway))
        progress.update()
        test = _test_table(config, log, answers, rng)
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
        truth=causes.truth(*answers.expected()),
    )


class _Answers:
    """Draws watch ratios, by monotone maps that are fitted to the measured quantiles.

    Args:
        config: The parameters.
        causes: Causes of the scores.
        rng: Source of habits, appeals, and the cells that the maps are fitted to.
    """

    def __init__(self, config: SyntheticConfig, causes: Causes, rng: np.random.Generator) -> None:
        self._causes = causes
        self._noise = np.sqrt(config.noise_variance)
        self._taste = config.rewatch_taste
        # Test users have a share of their own in every level of habit.
        groups = (config.n_test_users, config.n_users - config.n_test_users)
        levels = np.concatenate([strata(size, rng) for size in groups])
        self._habit = config.rewatch_user * ndtri(levels)
        appeal = gammaincinv(_APPEAL_SHAPE, strata(config.n_items, rng))
        self._appeal = config.rewatch_item * (appeal - _APPEAL_SHAPE) / np.sqrt(_APPEAL_SHAPE)
        users, items = (rng.integers(n, size=_CELLS) for n in (config.n_users, config.n_items))
        taste = causes.taste(users, items)
        score = causes.score(users, items, taste) + self._noise * rng.standard_normal(_CELLS)
        self._score_knots = np.quantile(score, _SCORE_LEVELS)
        ended = score >= self._score_knots[-1]
        appetite = self._appetite(users[ended], items[ended], taste[ended], rng)
        self._appetite_knots = np.quantile(appetite, _APPETITE_LEVELS)

    def _appetite(
        self,
        users: NDArray[np.integer],
        items: NDArray[np.integer],
        taste: Vector,
        rng: np.random.Generator,
    ) -> Vector:
        appetite = self._habit[users] + self._appeal[items]
        appetite += self._taste * self._causes.relevance_of(items, taste)
        return np.asarray(appetite + rng.standard_normal(len(users), dtype=np.float32))

    def draw(
        self,
        users: NDArray[np.integer],
        items: NDArray[np.integer],
        rng: np.random.Generator,
        sway: Vector | float = 0.0,
    ) -> FloatArray:
        """Watch ratios of (user, item) pairs.

        Args:
            users: (n,) positions.
            items: (n,) positions.
            rng: Source of the noise.
            sway: (n,) pull of popularity on the scores.

        Returns:
            (n,) float32.
        """
        taste = self._causes.taste(users, items)
        score = self._causes.score(users, items, taste) + sway
        score += self._noise * rng.standard_normal(len(users), dtype=np.float32)
        log_ratio = np.interp(score, self._score_knots, _SCORE_LOGS)
        ended = np.flatnonzero(score >= self._score_knots[-1])
        appetite = self._appetite(users[ended], items[ended], taste[ended], rng)
        log_ratio[ended] = np.interp(appetite, self._appetite_knots, _APPETITE_LOGS)
        return np.asarray(np.exp(log_ratio), dtype=np.float32)

    def expected(self) -> tuple[Vector, Vector]:
        """Noise-free scores, wide enough for any pair, and E[min(watch ratio, 1)] at them."""
        nodes, weights = np.polynomial.hermite_e.hermegauss(64)
        causes = self._causes
        lowest = causes.user_level.min() + causes.item_level.min() - causes.scale
        highest = causes.user_level.max() + causes.item_level.max() + causes.scale
        scores = np.linspace(lowest, highest, _MAP_POINTS)
        noisy = scores[:, None] + self._noise * nodes
        responses = np.exp(np.interp(noisy, self._score_knots, _SCORE_LOGS))
        # Rounding may not break the ascent, nor leave [0, 1].
        expected = np.maximum.accumulate(responses @ (weights / weights.sum()))
        return scores, np.clip(expected, 0.0, 1.0)


def _test_table(
    config: SyntheticConfig, log: WatchLog, answers: _Answers, rng: np.random.Generator
) -> WatchLog:
    """The answers of the test users to every item that their log does not hold."""
    logged = log.take(log.users < config.n_test_users)
    is_logged = np.zeros((config.n_test_users, config.n_items), dtype=bool)
    is_logged[logged.users, logged.items] = True
    users, items = (positions.astype(np.int32) for positions in np.nonzero(~is_logged))
    return WatchLog(users, items, answers.draw(users, items, rng))


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
