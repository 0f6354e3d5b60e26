"""The synthetic world holds the facts that were measured on the real rows."""

from __future__ import annotations

import numpy as np
import pytest

from kuaisim_gym.data import Dataset, Interactions
from kuaisim_gym.data.synthetic import SyntheticConfig, synthetic_kuairec
from kuaisim_gym.errors import ConfigError
from kuaisim_gym.metrics import gini


def item_means(log: Interactions) -> tuple[np.ndarray, np.ndarray]:
    counts = np.bincount(log.items)
    means = np.bincount(log.items, log.response) / np.maximum(counts, 1)
    return counts[counts > 0], means[counts > 0]


def test_sizes(world: Dataset) -> None:
    assert world.synthetic
    assert (world.n_users, world.n_items) == (7176, 3327)
    assert len(world.test_users) == 1411
    # Fully observed, but for what a test user's log holds.
    logged = np.count_nonzero(np.isin(world.log.users, world.test_users))
    assert len(world.test) == 1411 * 3327 - logged
    assert len(world.test) / (1411 * 3327) == pytest.approx(0.964, abs=0.005)
    assert world.split_by == "user"
    assert "synthetic" in world.description


@pytest.mark.parametrize(
    ("level", "expected"),
    [(0.01, 0.017), (0.05, 0.097), (0.10, 0.182), (0.25, 0.467), (0.50, 0.779),
     (0.75, 1.137), (0.90, 1.586), (0.95, 1.994), (0.99, 3.670)],
)  # fmt: skip
def test_watch_ratio_quantiles(world: Dataset, level: float, expected: float) -> None:
    assert np.quantile(world.log.watch_ratio, level) == pytest.approx(expected, rel=0.03)


def test_responses(world: Dataset) -> None:
    response = world.log.response
    assert response.mean() == pytest.approx(0.697, abs=0.01)
    assert response.std() == pytest.approx(0.314, abs=0.01)
    assert np.mean(world.log.watch_ratio >= 2) == pytest.approx(0.050, abs=0.002)


def test_videos(world: Dataset) -> None:
    _, means = item_means(world.log)
    assert means.mean() == pytest.approx(0.694, abs=0.02)
    assert means.std() == pytest.approx(0.230, abs=0.025)
    np.testing.assert_allclose(
        np.quantile(means, [0.25, 0.5, 0.75]), [0.607, 0.750, 0.857], atol=0.03
    )


def test_users(world: Dataset) -> None:
    counts = np.bincount(world.log.users)
    means = np.bincount(world.log.users, world.log.response) / counts
    assert means.std() == pytest.approx(0.079, abs=0.01)


def test_popularity_is_spread_as_measured_and_is_not_quality(world: Dataset) -> None:
    counts, means = item_means(world.log)
    assert gini(counts) == pytest.approx(0.63, abs=0.03)
    ordered = np.sort(counts)[::-1]
    assert ordered[: len(ordered) // 5].sum() / ordered.sum() == pytest.approx(0.64, abs=0.03)
    median = np.median(counts)
    # Rows per video at the 80th, 90th and 99th percentile, over the median: 67, 109, 353 over 22.
    ratios = np.quantile(counts, [0.8, 0.9, 0.99]) / median
    np.testing.assert_allclose(ratios, [67 / 22, 109 / 22, 353 / 22], rtol=0.15)
    assert np.corrcoef(np.log(counts), means)[0, 1] == pytest.approx(0.01, abs=0.04)


def predict(
    fit: Interactions, check: Interactions, sizes: tuple[int, int], ridge: float | None
) -> np.ndarray:
    """Responses by alternating ridge regressions: effects, then factors unless ridge is None."""
    response = fit.response.astype(np.float64)
    mean, pulls = response.mean(), (9.0, 1.2)
    fit_sides, check_sides = (fit.users, fit.items), (check.users, check.items)
    effects = [np.zeros(size) for size in sizes]
    for _ in range(6):
        for side in (1, 0):
            rest = response - mean - effects[1 - side][fit_sides[1 - side]]
            rows = np.bincount(fit_sides[side], minlength=sizes[side])
            effects[side] = np.bincount(fit_sides[side], rest, sizes[side]) / (rows + pulls[side])
    predicted = mean + sum(effects[side][check_sides[side]] for side in (0, 1))
    if ridge is None:
        return predicted
    rest = response - mean - sum(effects[side][fit_sides[side]] for side in (0, 1))
    rank = 8
    factors = [np.zeros((sizes[0], rank)), np.zeros((sizes[1], rank))]
    factors[1] = np.random.default_rng(0).standard_normal((sizes[1], rank)) / np.sqrt(rank)
    for _ in range(6):
        for side in (0, 1):
            others = factors[1 - side][fit_sides[1 - side]]
            gram = np.tile(ridge * np.eye(rank), (sizes[side], 1, 1))
            np.add.at(gram, fit_sides[side], others[:, :, None] * others[:, None, :])
            target = np.zeros((sizes[side], rank))
            np.add.at(target, fit_sides[side], others * rest[:, None])
            factors[side] = np.linalg.solve(gram, target[..., None])[..., 0]
    products = factors[0][check.users] * factors[1][check.items]
    return predicted + products.sum(axis=1)


def test_effects_explain_half_and_factors_add_nothing_at_the_sample_s_density(
    world: Dataset,
) -> None:
    rng = np.random.default_rng(0)
    # As the sample: 1,411 users with 73 rows each.
    users = rng.choice(world.n_users, 1411, replace=False)
    dense = world.log.of_users(users, world.n_users)
    rank = np.empty(len(dense), dtype=int)
    for user in users:
        rows = np.flatnonzero(dense.users == user)
        rank[rows] = rng.permutation(len(rows))
    dense = dense.take(rank < 83)
    held_out = rng.random(len(dense)) < 0.12
    fit, check = dense.take(~held_out), dense.take(held_out)

    def error(ridge: float | None) -> float:
        predicted = predict(fit, check, (world.n_users, world.n_items), ridge)
        return float(np.mean((predicted - check.response) ** 2))

    effects = error(None)
    assert 1 - effects / check.response.var() == pytest.approx(0.51, abs=0.04)
    assert min(error(4.0), error(8.0)) > effects - 0.001


def test_the_log_overstates_popular_items(world: Dataset) -> None:
    """Conformity: logged answers exceed the unbiased ones for popular items, not for the tail."""
    assert world.truth is not None
    counts = np.bincount(world.log.items, minlength=world.n_items)
    logged = np.bincount(world.log.items, world.log.response, world.n_items) / np.maximum(counts, 1)
    everything = np.arange(world.n_items)
    unbiased = world.truth.expected(world.test_users[:, None], everything[None]).mean(axis=0)
    # Exposure favours relevant items, so compare the gap between groups, not with zero.
    gap = logged - unbiased
    popular = counts >= np.quantile(counts, 0.8)
    assert gap[popular].mean() > gap[~popular & (counts > 20)].mean() + 0.02


def test_the_test_table_is_unbiased(world: Dataset) -> None:
    assert world.truth is not None
    test = world.test
    expected = world.truth.expected(test.users, test.items)
    answers = np.bincount(test.items, minlength=world.n_items)
    gap = np.bincount(test.items, test.response - expected, world.n_items) / answers
    np.testing.assert_allclose(gap, 0, atol=0.04)
    assert abs(float(np.mean(test.response - expected))) < 0.001


def test_no_logged_cell_of_a_test_user_stands_in_the_test_table(world: Dataset) -> None:
    def cells(table: Interactions) -> np.ndarray:
        return table.users.astype(np.int64) * world.n_items + table.items

    assert not np.isin(cells(world.log), cells(world.test)).any()
    assert (np.diff(cells(world.test)) > 0).all()  # ascending by user and item


def test_the_expected_response_ascends_with_the_score(small: Dataset) -> None:
    assert small.truth is not None
    assert (np.diff(small.truth.map_scores) > 0).all()
    assert (np.diff(small.truth.map_responses) >= 0).all()
    everyone, everything = np.arange(small.n_users), np.arange(small.n_items)
    expected = small.truth.expected(everyone[:, None], everything[None])
    # The map is wide enough: no pair lies beyond it.
    assert small.truth.map_responses[0] < expected.min()
    assert expected.max() < small.truth.map_responses[-1]


def test_features(world: Dataset) -> None:
    category = world.item_features.codes["category"]
    assert world.item_features.values["category"] == ("", *map(str, range(31)))
    assert category.shape == (world.n_items, 2)
    assert (category[:, 0] > 0).all()
    assert np.mean(category[:, 1] > 0) == pytest.approx(0.25, abs=0.01)
    assert (category[:, 0] != category[:, 1]).all()

    degree = world.user_features.codes["user_active_degree"]
    names = world.user_features.values["user_active_degree"]
    assert names == ("", "UNKNOWN", "full_active", "high_active", "middle_active")
    rows = np.bincount(world.log.users)
    mean = {name: rows[degree[:, 0] == code].mean() for code, name in enumerate(names) if code}
    assert mean["full_active"] > mean["high_active"] > mean["middle_active"]


def test_categories_tell_of_preferences(world: Dataset) -> None:
    assert world.truth is not None
    first = world.item_features.codes["category"][:, 0]
    preferred = world.truth.interest + 1  # code of the category, all of which occur
    users = np.flatnonzero(preferred == preferred[0])[:50]
    expected = world.truth.expected(users[:, None], np.arange(world.n_items)[None])
    level = world.truth.expected(np.arange(world.n_users)[::20, None], np.arange(world.n_items))
    lift = (expected - level.mean(axis=0)).mean(axis=0)
    assert lift[first == preferred[0]].mean() > lift[first != preferred[0]].mean() + 0.02


def test_same_seed_same_world() -> None:
    config = SyntheticConfig(n_users=60, n_test_users=10, n_items=80, events_per_user=10)
    one, two = synthetic_kuairec(5, config), synthetic_kuairec(5, config)
    assert one.fingerprint == two.fingerprint
    assert one.fingerprint != synthetic_kuairec(6, config).fingerprint


def test_users_meet_an_item_once(small: Dataset) -> None:
    pairs = small.log.users.astype(np.int64) * small.n_items + small.log.items
    assert len(np.unique(pairs)) == len(pairs)


@pytest.mark.parametrize(
    "options",
    [{"n_test_users": 0}, {"n_items": 4}, {"events_per_user": 900}, {"quality": 1.2},
     {"n_categories": 0}, {"quality_popularity": -1.5}, {"interests": 0.0}, {"personal": -0.1}],
)  # fmt: skip
def test_impossible_worlds_are_refused(options) -> None:
    with pytest.raises(ConfigError):
        SyntheticConfig(**options)
