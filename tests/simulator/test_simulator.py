from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd
import pytest

from kuaisim_gym import build_simulator, load_dataset
from kuaisim_gym.data import Dataset, Features, WatchLog
from kuaisim_gym.errors import ConfigError, UnknownIdError
from kuaisim_gym.simulator import load_catalogue
from kuaisim_gym.simulator.fit import fit_factor_model
from kuaisim_gym.simulator.response import FactorModel


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_train_simulator_predicts_held_out_real_rows(real_folder, tmp_path, seed) -> None:
    """At most .0495, where the constant has .098, and never worse than effects alone."""
    table = pd.read_csv(real_folder / "big_matrix.csv")
    held_out = np.random.default_rng(seed).random(len(table)) < 0.1
    table[~held_out].to_csv(tmp_path / "big_matrix.csv", index=False)
    (tmp_path / "small_matrix.csv").write_bytes((real_folder / "small_matrix.csv").read_bytes())
    dataset = load_dataset("kuairec", tmp_path)
    check = table[held_out]
    check = check[check.video_id.isin(dataset.item_ids) & check.user_id.isin(dataset.user_ids)]
    users, items = check.user_id.to_numpy(), check.video_id.to_numpy()
    truth = np.minimum(check.watch_ratio.to_numpy(), 1)
    simulator = build_simulator(dataset, "train")
    error = np.mean((simulator.probability(users, items) - truth) ** 2)
    assert error <= 0.0495
    assert isinstance(simulator.model, FactorModel)
    alone = dataclasses.replace(simulator, model=without_factors(simulator.model))
    assert error <= np.mean((alone.probability(users, items) - truth) ** 2)


def test_the_test_simulator_looks_up_and_completes(real) -> None:
    simulator = build_simulator(real, "test")
    test = real.test
    looked_up = simulator.probability(real.user_ids[test.users], real.item_ids[test.items])
    np.testing.assert_array_equal(looked_up, test.response)
    assert simulator.observed_share == pytest.approx(len(test) / (1411 * real.n_items))
    everything = simulator.probability(
        real.user_ids[real.test_users][:, None], real.item_ids[None, : real.n_items]
    )
    assert everything.shape == (1411, real.n_items)
    assert everything.min() >= 0
    assert everything.max() <= 1


def test_the_synthetic_test_simulator_is_the_table_and_its_expectation_is_known(world) -> None:
    simulator = build_simulator(world, "test")
    test = world.test
    looked_up = simulator.probability(test.users, test.items)
    np.testing.assert_array_equal(looked_up, test.response)
    assert simulator.observed_share == len(test) / (1411 * 3327)
    users, items = world.test_users[:, None], np.arange(3327)[None, :]
    expected = world.truth.expected(users, items)
    np.testing.assert_array_equal(simulator.expected.probability(users, items), expected)
    # Cells that stand in the test users' logs have no recorded answer; the world answers them.
    empty = np.ones((1411, 3327), dtype=bool)
    empty[test.users, test.items] = False
    answers = simulator.probability(users, items)
    np.testing.assert_allclose(answers[empty], expected[empty], rtol=1e-5)


def without_factors(model: FactorModel) -> FactorModel:
    none = {name: getattr(model, name)[:, :0] for name in ("user_factors", "item_factors")}
    return dataclasses.replace(model, **none)


def test_factors_are_taken_where_they_help(world) -> None:
    model = build_simulator(world, "train").model
    assert isinstance(model, FactorModel)
    assert model.item_factors.shape[1] == 8
    # Against the noise-free truth of the test users, whose rows placed them and nothing else.
    users, items = np.arange(1411)[:, None], np.arange(3327)[None, :]
    truth = world.truth.expected(users, items)
    effects = without_factors(model)
    error = np.mean((model.probability(users, items) - truth) ** 2)
    assert error < np.mean((effects.probability(users, items) - truth) ** 2)


def test_a_fit_without_enough_rows_is_the_mean() -> None:
    row = WatchLog(np.array([0], np.int32), np.array([1], np.int32), np.array([0.4], np.float32))
    model = fit_factor_model(row, row, Features(), Features(), (3, 4))
    np.testing.assert_allclose(model.probability(np.array([2]), np.array([3])), [0.4])


@pytest.mark.parametrize(
    ("split", "user", "item", "message"),
    [
        ("train", 7176, 0, "user id 7176 is not in the dataset, which holds 7176 users"),
        ("train", 0, -1, "item id -1"),
        ("test", 2000, 0, "not a test user"),
    ],
)
def test_unknown_ids_are_refused(world, split, user, item, message) -> None:
    with pytest.raises(UnknownIdError, match=message):
        build_simulator(world, split).probability([user], [item])


def test_ids_are_integers_and_splits_are_known(world) -> None:
    with pytest.raises(UnknownIdError, match="integer"):
        build_simulator(world, "train").probability([0.5], [1])
    with pytest.raises(ConfigError, match=r"\(2,\) and item_ids of shape \(3,\)"):
        build_simulator(world, "train").probability([1, 2], [1, 2, 3])
    with pytest.raises(ConfigError, match="Did you mean 'test'"):
        build_simulator(world, "tests")


def test_items_of_the_log_alone_are_not_the_test_simulator_s(real) -> None:
    user, item = real.user_ids[0], real.item_ids[-1]
    assert 0 <= build_simulator(real, "train").probability(user, item) <= 1
    with pytest.raises(UnknownIdError, match="catalogue items"):
        build_simulator(real, "test").probability(user, item)


def test_nothing_learned_depends_on_test_answers(small: Dataset, with_watch_ratios) -> None:
    other = with_watch_ratios(small, test=5.0 - small.test.watch_ratio.clip(0, 5))
    assert other.fingerprint != small.fingerprint
    one, two = load_catalogue(small), load_catalogue(other)
    np.testing.assert_array_equal(one.embedding, two.embedding)
    np.testing.assert_array_equal(one.popular, two.popular)
    users, items = np.arange(small.n_users)[:, None], np.arange(small.n_items)[None, :]
    a = build_simulator(small, "train").model.probability(users, items)
    b = build_simulator(other, "train").model.probability(users, items)
    np.testing.assert_array_equal(a, b)


def test_a_test_user_s_log_moves_no_item(small: Dataset, with_watch_ratios) -> None:
    """Changing what test users logged places those users elsewhere, and nothing else."""
    watch = small.log.watch_ratio.copy()
    watch[np.isin(small.log.users, small.test_users)] = 0.0
    other = with_watch_ratios(small, log=watch)
    np.testing.assert_array_equal(load_catalogue(small).embedding, load_catalogue(other).embedding)
    one, two = build_simulator(small, "train").model, build_simulator(other, "train").model
    np.testing.assert_array_equal(one.item_effect[0], two.item_effect[0])
    np.testing.assert_array_equal(
        one.user_effect[0, small.train_users], two.user_effect[0, small.train_users]
    )
    assert (two.user_effect[0, small.test_users] < one.user_effect[0, small.test_users]).all()


def test_the_popular_group_is_the_most_exposed_fifth(world) -> None:
    catalogue = load_catalogue(world)
    assert catalogue.popular.sum() == round(0.2 * 3327)
    assert (
        catalogue.exposures[catalogue.popular].min()
        >= catalogue.exposures[~catalogue.popular].max()
    )
    np.testing.assert_array_equal(
        catalogue.exposures, np.bincount(world.train_log.items, minlength=3327)
    )
    assert catalogue.log_popularity.std() == pytest.approx(1, abs=1e-5)
    np.testing.assert_allclose(catalogue.known.std(axis=0), 1, atol=1e-4)
