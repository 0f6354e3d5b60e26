"""A synthetic KuaiRand-Pure: seven behaviours, a standard log and a uniformly random one.

On the shared causal model (:mod:`~kuaisim_gym.data.synthetic.causal`) the latent score is the logit
of a click. The standard log holds what the platform chose, popular and relevant items, with
popularity swaying the answers; the random log holds items drawn uniformly for every user, answered
without sway: a random insertion carries no sign that it is popular. The random rows of test users
are the test rows, those of train users ``Dataset.randomised``.

Calibrated to what is published or measured of KuaiRand-Pure (KuaiRand, CIKM 2022): users, items and
rows; click and long-view rates of both logs; exposures and click rates per video and per user in
the random log; and what clicks of the standard log say of popularity. Those clicks are at hand as
a republisher filtered them (at least six a user and a video), and are compared after the same
filter: the share of clicks on the top fifth of videos, their rank correlation with the click rate
in the random log, and this rate for the top fifth and the others.
``tests/data/test_synthetic_facts.py`` and ``test_synthetic_kuairand.py`` hold each fact with its
tolerance.

Exposures of the standard log are published as a total alone. Their spread, a standard deviation of
the logarithm of about 1.4, follows from the clicks; that of the statistics file's ``show_cnt`` is
1.1, but it counts what the whole platform showed. Not measured either, and chosen to be plausible:
rates of like, comment, forward, follow and hate; the spread of activity in the standard log; how
much of the excess of logged clicks is conformity and how much relevance; how strongly features tell
of preferences.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit
from tqdm.auto import tqdm

from kuaisim_gym.data.dataset import Dataset
from kuaisim_gym.data.feedback import BehaviourLog, IntArray
from kuaisim_gym.data.split import is_test_user
from kuaisim_gym.data.synthetic.causal import Vector, WorldConfig, draw_causes, expose, row_counts
from kuaisim_gym.data.synthetic.kuairand_features import TAG_COUNTS, item_features, user_features
from kuaisim_gym.errors import ConfigError

# Logit of each further behaviour: offset, and slope on the click score. Long views are fitted to
# both logs; of the others the offsets give plausible rates in the standard log.
_RESPONSES = {
    "long_view": (0.33, 1.29),
    "is_like": (-4.13, 0.5),
    "is_comment": (-5.78, 0.5),
    "is_forward": (-6.69, 0.4),
    "is_follow": (-6.69, 0.4),
    "is_hate": (-8.2, -0.4),
}
_WITHOUT_CLICK = ("is_hate",)  # the others need one
_ACTIVITY_SPREAD = 1.15  # s.d. of the log of a user's rows, in either log
_SAME_ACTIVITY = 0.6  # correlation of a user's log-activity in the two logs
_MAP_SCORES = np.linspace(-16.0, 16.0, 2049)  # interpolation errs by less than 1e-5


@dataclass(frozen=True)
class KuaiRandConfig(WorldConfig):
    """Parameters of the synthetic KuaiRand-Pure world; the defaults are the calibrated ones.

    The others are described in :class:`~kuaisim_gym.data.synthetic.causal.WorldConfig`. The
    latent score is the logit of a click, so spreads and pulls are logits.

    Attributes:
        click_level: Score of a mean user for a mean item.
        logged_per_user: Mean standard rows of the users who have any.
        random_per_user: Mean random rows of a user; every user has one at least.
        unlogged: Share of users who occur in the random log alone.
        unshown: Share of videos that occur in the random log alone.
        exploration: Share of standard exposures that go to all videos alike, whatever their
            popularity, so that nearly all of them occur.
        late: Share of videos that joined the random log late: each after a part of its time that
            is uniform in [0, 0.95].
    """

    n_users: int = 27285
    n_items: int = 7583
    n_categories: int = 46
    dim: int = 16
    quality: float = 0.82
    quality_skew: float = 0.0
    user_level: float = 1.22
    personal: float = 1.17
    conformity: float = 0.15
    quality_popularity: float = 0.48
    activity_level: float = 0.1
    popularity_spread: float = 1.8
    exposure_relevance: float = 1.18
    interests: float = 0.12
    click_level: float = -2.46
    logged_per_user: float = 54.4
    random_per_user: float = 43.1
    unlogged: float = 0.03665
    unshown: float = 0.004
    exploration: float = 0.025
    late: float = 0.09

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.n_categories > len(TAG_COUNTS):
            raise ConfigError(
                f"n_categories must be at most {len(TAG_COUNTS)}, the number of tags, got "
                f"{self.n_categories}."
            )
        if len(np.unique(is_test_user(np.arange(self.n_users)))) < 2:
            raise ConfigError(
                f"n_users must be large enough for test and train users, got {self.n_users}."
            )
        for name, most in (
            ("logged_per_user", self.most_logged),
            ("random_per_user", self.most_random),
        ):
            if not 1 <= getattr(self, name) <= most:
                raise ConfigError(
                    f"{name} must lie in [1, {most}] with {self.n_items} items, got "
                    f"{getattr(self, name)}."
                )
        for name in ("unlogged", "unshown", "exploration", "late"):
            if not 0 <= getattr(self, name) <= 0.5:
                raise ConfigError(f"{name} is a share in [0, 0.5], got {getattr(self, name)}.")

    @property
    def most_logged(self) -> int:
        """Largest number of standard rows of a user."""
        return self.n_items // 4

    @property
    def most_random(self) -> int:
        """Largest number of random rows of a user; 1,516 of 7,583 items, 1,580 in the real data."""
        return self.n_items // 5


def synthetic_kuairand(seed: int = 0, config: KuaiRandConfig | None = None) -> Dataset:
    """Generates the world.

    Args:
        seed: Same seed and configuration, same world.
        config: Parameters; ``None`` for the calibrated defaults.

    Returns:
        A dataset marked synthetic, with its causes under ``truth``; ``truth.expected`` is the
        probability of an unbiased click.
    """
    config = config or KuaiRandConfig()
    rng = np.random.default_rng(seed)
    user_ids = np.arange(config.n_users, dtype=np.int64)
    with tqdm(total=4, desc="Synthetic KuaiRand world", unit="part", leave=False) as progress:
        share = np.fromiter(TAG_COUNTS.values(), dtype=np.float64)[: config.n_categories]
        causes = draw_causes(config, share / share.sum(), rng)
        causes = replace(causes, user_level=causes.user_level + config.click_level)
        progress.update()
        counts = row_counts(
            causes.activity, config.logged_per_user, _ACTIVITY_SPREAD, 1, config.most_logged
        )
        counts[rng.permutation(config.n_users) < round(config.unlogged * config.n_users)] = 0
        pull = _pull(config, causes.popularity)
        pull[rng.permutation(config.n_items) < round(config.unshown * config.n_items)] = -np.inf
        users, items = expose(causes, counts, pull, config.exposure_relevance, rng)
        score = causes.latent(users, items) + config.conformity * causes.sway(users, items)
        log = BehaviourLog(users, items, _flags(score, rng))
        progress.update()
        independent = rng.standard_normal(config.n_users)
        activity = _SAME_ACTIVITY * causes.activity + np.sqrt(1 - _SAME_ACTIVITY**2) * independent
        counts = row_counts(
            activity, config.random_per_user, _ACTIVITY_SPREAD, 1, config.most_random
        )
        late = rng.random(config.n_items) < config.late
        time = np.where(late, 1 - 0.95 * rng.random(config.n_items), 1.0)
        users, items = _show_at_random(counts, time, rng)
        random = BehaviourLog(users, items, _flags(causes.latent(users, items), rng))
        progress.update()
        is_test = is_test_user(user_ids)[random.users]
        features = np.random.default_rng([seed, 1])
        dataset = Dataset(
            name="kuairand",
            synthetic=True,
            user_ids=user_ids,
            item_ids=np.arange(config.n_items, dtype=np.int64),
            n_items=config.n_items,
            log=log,
            test=random.take(is_test),
            randomised=random.take(~is_test),
            user_features=user_features(causes, features),
            item_features=item_features(causes, features),
            truth=causes.truth(_MAP_SCORES, expit(_MAP_SCORES)),
        )
        progress.update()
    return dataset


def _pull(config: KuaiRandConfig, popularity: Vector) -> Vector:
    """(n_items,) logits of exposure: popularity, over a floor of exploration."""
    weight = np.exp(config.popularity_spread * popularity)
    floor = config.exploration * weight.mean()
    return np.asarray(np.log((1 - config.exploration) * weight + floor))


def _flags(score: Vector, rng: np.random.Generator) -> NDArray[np.uint8]:
    """(n,) uint8: behaviours of rows with these click scores."""
    click = rng.random(len(score)) < expit(score)
    flags: NDArray[np.uint8] = click.astype(np.uint8)
    for bit, name in enumerate(BehaviourLog.behaviours[1:], start=1):
        offset, slope = _RESPONSES[name]
        shown = rng.random(len(score)) < expit(offset + slope * score)
        if name not in _WITHOUT_CLICK:
            shown &= click
        flags |= np.left_shift(shown, bit, dtype=np.uint8)
    return flags


def _show_at_random(
    counts: NDArray[np.int64], time: Vector, rng: np.random.Generator
) -> tuple[IntArray, IntArray]:
    """Draws (n_users,) counts of items without replacement; returns users and items of the rows.

    An item's probability is proportional to its (n_items,) share of the time; users ascend.
    """
    bounds = np.cumsum(time)
    users = np.repeat(np.arange(len(counts)), counts)
    items = np.empty(len(users), dtype=np.int64)
    undrawn = np.arange(len(users))
    while len(undrawn):
        draws = rng.random(len(undrawn)) * bounds[-1]
        items[undrawn] = np.searchsorted(bounds, draws, side="right")
        cell = users * len(time) + items
        order = np.argsort(cell, kind="stable")
        cell = cell[order]
        undrawn = np.sort(order[1:][cell[1:] == cell[:-1]])  # what a user has already
    return users.astype(np.int32), items.astype(np.int32)
