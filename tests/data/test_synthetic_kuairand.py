"""The synthetic KuaiRand-Pure holds the facts that were published or measured of the real one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from kuaisim_gym.data import BehaviourLog, Dataset
from kuaisim_gym.data.split import is_test_user
from kuaisim_gym.data.synthetic import KuaiRandConfig, synthetic_kuairand
from kuaisim_gym.errors import ConfigError
from kuaisim_gym.metrics import gini

SMALL = KuaiRandConfig(
    n_users=300, n_items=200, n_categories=8, logged_per_user=20, random_per_user=12
)
CLICK, LONG_VIEW, HATE = 0, 1, 6


@pytest.fixture(scope="module")
def random(rand_world: Dataset) -> BehaviourLog:
    """The random log: test rows and randomised rows together, not in order."""
    return together(rand_world)


def together(dataset: Dataset) -> BehaviourLog:
    assert isinstance(dataset.test, BehaviourLog)
    assert isinstance(dataset.randomised, BehaviourLog)
    pairs = zip(dataset.test.columns.values(), dataset.randomised.columns.values(), strict=True)
    return BehaviourLog(*(np.concatenate(pair) for pair in pairs))


def rate(log: BehaviourLog, behaviour: int) -> float:
    return float(log.behaviour(behaviour).mean())


def test_sizes(rand_world: Dataset, random: BehaviourLog) -> None:
    assert rand_world.synthetic
    assert (rand_world.n_users, rand_world.n_items, len(rand_world.item_ids)) == (27285, 7583, 7583)
    assert len(rand_world.log) == pytest.approx(1_436_609, rel=0.02)
    assert len(random) == pytest.approx(1_186_059, rel=0.02)
    assert len(np.unique(rand_world.log.users)) == pytest.approx(26_285, abs=50)
    assert len(np.unique(rand_world.log.items)) == pytest.approx(7_551, abs=10)
    assert len(np.unique(random.users)) == 27285
    assert len(np.unique(random.items)) == pytest.approx(7583, abs=2)
    assert rand_world.behaviours[:2] == ("is_click", "long_view")
    assert rand_world.split_by == "user"
    assert "synthetic" in rand_world.description


def test_standard_log(rand_world: Dataset) -> None:
    assert rate(rand_world.log, CLICK) == pytest.approx(0.464, abs=0.008)
    assert rate(rand_world.log, LONG_VIEW) == pytest.approx(0.336, abs=0.008)


def test_random_log(random: BehaviourLog) -> None:
    assert rate(random, CLICK) == pytest.approx(0.176, abs=0.005)
    assert rate(random, LONG_VIEW) == pytest.approx(0.085, abs=0.004)


@pytest.mark.parametrize(
    ("behaviour", "low", "high"),
    [("is_like", 0.01, 0.02), ("is_comment", 0.002, 0.004), ("is_forward", 0.0005, 0.002),
     ("is_follow", 0.0005, 0.002), ("is_hate", 0.0002, 0.0005)],
)  # fmt: skip
def test_rates_that_are_not_measured_are_plausible(
    rand_world: Dataset, behaviour: str, low: float, high: float
) -> None:
    assert low < rate(rand_world.log, rand_world.behaviours.index(behaviour)) < high


def test_behaviours_hang_together(rand_world: Dataset) -> None:
    click = rand_world.log.behaviour(CLICK) > 0
    for behaviour in range(LONG_VIEW, HATE):
        assert not (rand_world.log.behaviour(behaviour)[~click] > 0).any()
    assert rand_world.truth is not None
    expected = rand_world.truth.expected(rand_world.log.users, rand_world.log.items)
    hate = rand_world.log.behaviour(HATE) > 0
    assert expected[hate].mean() < expected[~hate].mean() - 0.05


def test_videos_of_the_random_log(rand_world: Dataset, random: BehaviourLog) -> None:
    exposures = np.bincount(random.items, minlength=rand_world.n_items)
    assert np.median(exposures) == pytest.approx(162, rel=0.03)
    assert np.quantile(exposures, 0.9) == pytest.approx(179, rel=0.03)
    assert exposures.max() == pytest.approx(214, rel=0.05)
    assert gini(exposures) == pytest.approx(0.08, abs=0.01)
    clicks = np.bincount(random.items, random.behaviour(CLICK), rand_world.n_items)
    rates = (clicks / np.maximum(exposures, 1))[exposures > 0]
    assert np.median(rates) == pytest.approx(0.161, abs=0.008)
    assert np.quantile(rates, 0.9) == pytest.approx(0.303, abs=0.015)


def test_users_of_the_random_log(random: BehaviourLog) -> None:
    exposures = np.bincount(random.users)
    assert np.median(exposures) == pytest.approx(22, abs=1)
    assert np.quantile(exposures, 0.9) == pytest.approx(96, rel=0.04)
    assert exposures.max() == pytest.approx(1580, rel=0.1)
    rates = np.bincount(random.users, random.behaviour(CLICK)) / exposures
    assert np.median(rates) == pytest.approx(0.135, abs=0.01)
    assert np.quantile(rates, 0.9) == pytest.approx(0.385, abs=0.015)


def test_exploration_reaches_all_videos() -> None:
    unexplored = replace(SMALL, popularity_spread=4.0, unshown=0.0, exploration=0.0)
    explored = replace(unexplored, exploration=0.2)
    assert len(np.unique(synthetic_kuairand(1, unexplored).log.items)) < 150
    assert len(np.unique(synthetic_kuairand(1, explored).log.items)) == 200


def test_random_items_are_drawn_uniformly(rand_world: Dataset) -> None:
    """Apart from late videos, and whatever a video's quality, popularity or a user's taste."""
    assert isinstance(rand_world.randomised, BehaviourLog)
    assert rand_world.truth is not None
    counts = np.bincount(rand_world.randomised.items, minlength=rand_world.n_items)
    typical = np.median(counts)
    always = counts > 0.7 * typical
    expected = counts[always].mean()
    # Chi-square over its degrees of freedom: 1 for uniform draws; the cut lowers it a little.
    assert ((counts[always] - expected) ** 2 / expected).mean() == pytest.approx(1.0, abs=0.25)
    shown = np.bincount(rand_world.log.items, minlength=rand_world.n_items)
    assert abs(np.corrcoef(counts, np.log1p(shown))[0, 1]) < 0.05
    assert abs(np.corrcoef(counts, rand_world.truth.item_level)[0, 1]) < 0.05
    rows = np.arange(len(rand_world.randomised))
    users, items = rand_world.randomised.users, rand_world.randomised.items
    elsewhere = np.random.default_rng(0).permutation(rows)
    here = rand_world.truth.expected(users, items).mean()
    assert here == pytest.approx(
        rand_world.truth.expected(users, items[elsewhere]).mean(), abs=0.002
    )


def test_only_the_standard_log_overstates_popular_videos(
    rand_world: Dataset, random: BehaviourLog
) -> None:
    assert rand_world.truth is not None
    shown = np.bincount(rand_world.log.items, minlength=rand_world.n_items)
    popular = shown >= np.quantile(shown, 0.8)

    def gaps(log: BehaviourLog) -> tuple[float, float]:
        """Clicks beyond the unbiased expectation of the same rows: popular videos, others."""
        assert rand_world.truth is not None
        gap = log.behaviour(CLICK) - rand_world.truth.expected(log.users, log.items)
        return float(gap[popular[log.items]].mean()), float(gap[~popular[log.items]].mean())

    assert isinstance(rand_world.log, BehaviourLog)
    of_popular, of_others = gaps(rand_world.log)
    assert of_popular > 0.03
    assert of_popular > of_others + 0.03
    np.testing.assert_allclose(gaps(random), 0, atol=0.003)


def test_exposure_favours_relevant_videos(rand_world: Dataset, random: BehaviourLog) -> None:
    assert rand_world.truth is not None
    logged = rand_world.truth.expected(rand_world.log.users, rand_world.log.items)
    assert logged.mean() > 2 * rand_world.truth.expected(random.users, random.items).mean()
    # The same videos, shown to others.
    others = np.random.default_rng(0).permutation(rand_world.log.users)
    elsewhere = rand_world.truth.expected(others, rand_world.log.items)
    assert logged.mean() > elsewhere.mean() + 0.03


def test_exposure_favours_good_videos(rand_world: Dataset) -> None:
    assert rand_world.truth is not None
    shown = np.bincount(rand_world.log.items, minlength=rand_world.n_items)
    correlation = np.corrcoef(np.log1p(shown), rand_world.truth.item_level)[0, 1]
    assert correlation == pytest.approx(0.37, abs=0.05)


def test_the_expected_click_is_a_sigmoid_to_1e_4() -> None:
    truth = synthetic_kuairand(1, SMALL).truth
    assert truth is not None
    assert (np.diff(truth.map_scores) > 0).all()
    assert (np.diff(truth.map_responses) >= 0).all()
    users, items = np.arange(SMALL.n_users)[:, None], np.arange(SMALL.n_items)[None]
    latent = truth.user_level[users] + truth.item_level[items]
    latent = latent + truth.scale * (truth.preference @ truth.item_vectors.T)
    sigmoid = 1 / (1 + np.exp(-latent.astype(np.float64)))
    np.testing.assert_allclose(truth.expected(users, items), sigmoid, atol=1e-4)


def test_test_users(rand_world: Dataset) -> None:
    assert rand_world.randomised is not None
    assert not np.isin(rand_world.randomised.users, rand_world.test_users).any()
    # Every user has a random row, so half of all users are test users.
    np.testing.assert_array_equal(
        rand_world.test_users, np.flatnonzero(is_test_user(rand_world.user_ids))
    )
    assert len(rand_world.test_users) / rand_world.n_users == pytest.approx(0.5, abs=0.02)


def test_features(rand_world: Dataset) -> None:
    tag = rand_world.item_features.codes["tag"]
    assert tag.shape == (rand_world.n_items, 3)
    assert len(rand_world.item_features.values["tag"]) == 1 + 46
    shares = np.mean(tag > 0, axis=0)
    np.testing.assert_allclose(shares, [7487 / 7583, 1791 / 7583, 32 / 7583], atol=0.015)
    duration = rand_world.item_features.numbers["video_duration"]
    assert np.mean(np.isnan(duration)) == pytest.approx(239 / 7583, abs=0.01)
    quantiles = np.nanquantile(duration, [0.25, 0.5, 0.75, 0.95])
    np.testing.assert_allclose(quantiles, [31_949, 81_170, 148_228, 303_456], rtol=0.05)
    music = rand_world.item_features.codes["music_type"][:, 0]
    assert np.mean(music == 0) == pytest.approx(203 / 7583, abs=0.01)
    video = rand_world.item_features.codes["video_type"][:, 0]
    names = rand_world.item_features.values["video_type"]
    assert {"AD", "NORMAL"} < set(names) <= {"", "AD", "NORMAL", "UNKNOWN"}
    assert np.mean(video == names.index("AD")) == pytest.approx(76 / 7583, abs=0.005)

    users = rand_world.user_features
    assert len(users.values["user_active_degree"]) == 1 + 9
    assert users.values["is_live_streamer"] == ("", "-124", "1")
    live = np.mean(users.codes["is_live_streamer"] == 2)
    assert live == pytest.approx(6158 / 27285, abs=0.01)
    for field, missing in (("onehot_feat4", 874), ("onehot_feat12", 714)):
        share = np.mean(users.codes[field] == 0)
        assert share == pytest.approx(missing / 27285, abs=0.005)


@pytest.mark.parametrize(
    ("degree", "count"),
    [("full_active", 17959), ("high_active", 6158), ("middle_active", 2133),
     ("2_14_day_new", 635), ("low_active", 300), ("single_low_active", 68)],
)  # fmt: skip
def test_active_degrees(rand_world: Dataset, degree: str, count: int) -> None:
    code = rand_world.user_features.values["user_active_degree"].index(degree)
    has = rand_world.user_features.codes["user_active_degree"][:, 0] == code
    assert np.mean(has) == pytest.approx(count / 27285, abs=0.005)


def test_features_tell_of_activity_and_preference(rand_world: Dataset) -> None:
    assert rand_world.truth is not None
    names = rand_world.user_features.values["user_active_degree"]
    degree = rand_world.user_features.codes["user_active_degree"][:, 0]
    rows = np.bincount(rand_world.log.users, minlength=rand_world.n_users)
    full, middle = (degree == names.index(f"{name}_active") for name in ("full", "middle"))
    assert rows[full].mean() > 2 * rows[middle].mean()
    assert (
        rand_world.truth.user_level[full].mean() > rand_world.truth.user_level[middle].mean() + 0.1
    )

    # Videos that share their first tag lie near each other.
    first = rand_world.item_features.codes["tag"][:, 0]
    vectors = rand_world.truth.item_vectors[:1000]
    near = vectors @ vectors.T
    same = first[:1000, None] == first[None, :1000]
    np.fill_diagonal(same, False)
    assert near[same].mean() > near[~same].mean() + 0.4


def test_a_user_meets_an_item_once_in_a_log() -> None:
    world = synthetic_kuairand(2, SMALL)
    for log in (world.log, together(world)):
        cells = log.users.astype(np.int64) * world.n_items + log.items
        assert len(np.unique(cells)) == len(cells)


def test_same_seed_same_world() -> None:
    one, two = synthetic_kuairand(5, SMALL), synthetic_kuairand(5, SMALL)
    assert one.fingerprint == two.fingerprint
    assert one.fingerprint != synthetic_kuairand(6, SMALL).fingerprint


@pytest.mark.parametrize(
    "options",
    [{"n_users": 1}, {"n_items": 4}, {"n_categories": 47}, {"n_categories": 0},
     {"logged_per_user": 0.5}, {"logged_per_user": 1896}, {"random_per_user": 1517},
     {"unlogged": 1.0}, {"unshown": 0.9}, {"exploration": -0.1}, {"late": -0.1},
     {"late": float("nan")}, {"conformity": -1.0}, {"activity_level": 1.2}, {"quality_skew": 2.0}],
)  # fmt: skip
def test_impossible_worlds_are_refused(options) -> None:
    with pytest.raises(ConfigError):
        KuaiRandConfig(**options)
