"""The synthetic KuaiRec; what it shares with real rows is tested in ``test_synthetic_facts``."""

from __future__ import annotations

import numpy as np
import pytest

from kuaisim_gym.data import Dataset, Interactions, WatchLog
from kuaisim_gym.data.synthetic import SyntheticConfig, synthetic_kuairec
from kuaisim_gym.errors import ConfigError


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


def test_the_log_is_more_positive_than_the_full_matrix(world: Dataset) -> None:
    """The real big matrix has 915,673 positives among 12,530,806 rows, the small one 4.7 %."""
    assert np.mean(world.log.watch_ratio >= 2) == pytest.approx(0.073, abs=0.008)
    assert np.mean(world.test.watch_ratio >= 2) == pytest.approx(0.047, abs=0.003)
    assert world.log.response.mean() > world.test.response.mean() + 0.03


def test_watching_again_leaves_responses_alone(world: Dataset) -> None:
    """Users with many positives respond like others: what goes beyond 1 has causes of its own."""
    assert isinstance(world.test, WatchLog)
    answers = np.bincount(world.test.users)
    mean = np.bincount(world.test.users, world.test.response) / answers
    expected = (
        np.bincount(world.test.users, world.truth.expected(world.test.users, world.test.items))
        / answers
    )
    positives = np.bincount(world.test.users, world.test.watch_ratio >= 2)
    order = np.argsort(positives)
    few, many = order[: len(order) // 5], order[-len(order) // 5 :]
    assert positives[many].mean() > 10 * positives[few].mean()
    for users in (few, many):
        assert mean[users].mean() == pytest.approx(expected[users].mean(), abs=0.003)


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
     {"n_categories": 0}, {"quality_popularity": -1.5}, {"interests": 0.0}, {"personal": -0.1},
     {"rewatch_user": -1.0}, {"rewatch_item": float("nan")}],
)  # fmt: skip
def test_impossible_worlds_are_refused(options) -> None:
    with pytest.raises(ConfigError):
        SyntheticConfig(**options)
