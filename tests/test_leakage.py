"""Nothing of the test source reaches what is learned, observed or called popular.

Two things prove it. What learns is given ``Dataset.training``, which has no test rows to read. And
when every row and answer of the test source is replaced, nothing learned changes in a single bit.
"""

from __future__ import annotations

import dataclasses
import inspect
import typing

import numpy as np
import pytest

from dsrm_agents import fit_dsrm, make_vec_env
from dsrm_agents.dsrm.targets import build_pairs
from kuaisim_gym.data import BehaviourLog, Dataset, TrainingData, WatchLog
from kuaisim_gym.envs.assembly import preference_encoder
from kuaisim_gym.observation import PreferenceEncoder
from kuaisim_gym.simulator import build_simulator, load_catalogue
from kuaisim_gym.simulator.build import assess
from kuaisim_gym.simulator.catalogue import build_catalogue

ENVS = {"kuairec": "KuaiRec-Fair-v0", "kuairand": "KuaiRand-Fair-v0"}


def other_test_source(dataset: Dataset, seed: int) -> Dataset:
    """The dataset with other items and other answers for the same test users."""
    rng = np.random.default_rng(seed)
    test = dataset.test
    items = test.items.copy()
    for user in dataset.test_users:
        rows = np.flatnonzero(test.users == user)
        items[rows] = rng.choice(dataset.n_items, len(rows), replace=False)
    changed: WatchLog | BehaviourLog
    if isinstance(test, WatchLog):
        changed = WatchLog(test.users, items, rng.random(len(test), dtype=np.float32) * 3)
    else:
        changed = BehaviourLog(test.users, items, rng.integers(0, 128, len(test), np.uint8))
    return dataclasses.replace(dataset, test=changed, truth=None)


@pytest.fixture(params=["small", "small_rand"])
def pair(request) -> tuple[Dataset, Dataset]:
    dataset = request.getfixturevalue(request.param)
    other = other_test_source(dataset, 0)
    assert other.fingerprint != dataset.fingerprint
    return dataset, other


def test_training_data_has_no_test_rows_and_learners_take_nothing_else() -> None:
    names = {column.name for column in dataclasses.fields(TrainingData)}
    assert not names & {"test", "test_users", "truth"}
    for function in (build_catalogue, PreferenceEncoder.__init__, build_pairs):
        kinds = typing.get_type_hints(function).values()
        assert TrainingData in kinds
        assert Dataset not in kinds, inspect.signature(function)


def test_no_table_of_the_training_data_holds_a_test_row(small_rand: Dataset) -> None:
    data = small_rand.training
    assert not np.isin(data.train_log.users, small_rand.test_users).any()
    assert data.randomised is not None
    assert not np.isin(data.randomised.users, small_rand.test_users).any()


def test_catalogue_popular_group_and_encoder(pair) -> None:
    one, two = pair
    a, b = load_catalogue(one), load_catalogue(two)
    for name in ("embedding", "exposures", "popular", "log_popularity"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
    c, d = preference_encoder(one), preference_encoder(two)
    for name in ("history_sum", "history_weight", "mean", "scale"):
        np.testing.assert_array_equal(getattr(c, name), getattr(d, name))


def test_train_simulator_and_its_calibration(pair) -> None:
    one, two = pair
    users, items = np.arange(one.n_users)[:, None], np.arange(one.n_items)[None, :]
    a, b = (build_simulator(dataset, "train").model.feedback(users, items) for dataset in pair)
    np.testing.assert_array_equal(a, b)
    assert repr(assess(one, "train").metrics) == repr(assess(two, "train").metrics)  # with NaNs


def test_denoiser(pair) -> None:
    encoder = preference_encoder(pair[0])
    states = encoder.encode(encoder.history_sum, encoder.history_weight)
    a, b = (fit_dsrm(dataset, updates=20, seed=1).denoise(states) for dataset in pair)
    np.testing.assert_array_equal(a, b)


def test_train_sessions(pair) -> None:
    """What a policy sees, is paid and is told in training."""
    histories = []
    for dataset in pair:
        env = make_vec_env(
            ENVS[dataset.name], 8, "train", seed=5, dataset=dataset, action_type="slate"
        )
        trace = [env.reset()]
        rng = np.random.default_rng(0)
        for _ in range(12):
            slates = np.stack([rng.choice(dataset.n_items, 10, replace=False) for _ in range(8)])
            observation, reward, done, _ = env.step(slates)
            trace += [observation, reward, done]
        histories.append(trace)
    for a, b in zip(*histories, strict=True):
        np.testing.assert_array_equal(a, b)


def test_what_a_test_session_starts_from_is_the_log_alone(pair) -> None:
    first = [
        make_vec_env(ENVS[dataset.name], 16, "test", seed=5, dataset=dataset).reset()
        for dataset in pair
    ]
    np.testing.assert_array_equal(*first)


def test_the_change_would_be_seen(pair) -> None:
    """The test simulator, which may learn from the test source, does change."""
    one, _ = pair
    users, items = one.test_users[:, None], np.arange(one.n_items)[None, :]
    a, b = (build_simulator(dataset, "test").model.probability(users, items) for dataset in pair)
    assert np.abs(a - b).max() > 0.1
