"""Nothing of the test source reaches what is learned, observed or called popular.

Two things prove it. What learns is given ``Dataset.training``, which has no test rows to read. And
when the answers of the test source are replaced, and its items where these are no part of the task,
nothing learned changes in a single bit. Real worlds are those of some of their users.
"""

from __future__ import annotations

import dataclasses
import inspect
import typing

import numpy as np
import pandas as pd
import pytest

from dsrm_agents import fit_dsrm, make_vec_env
from dsrm_agents.dsrm.pairs import log_parts, play_sessions
from kuaisim_gym import load_dataset
from kuaisim_gym.data import BehaviourLog, Dataset, LabelLog, TrainingData, WatchLog
from kuaisim_gym.envs.options import preference_encoder
from kuaisim_gym.observation import PreferenceEncoder
from kuaisim_gym.simulator import build_simulator, load_catalogue
from kuaisim_gym.simulator.build import assess
from kuaisim_gym.simulator.catalogue import build_catalogue

REAL = ("like_world", "watch_world", "click_world", "pool_world")
WORLDS = ("small", "small_rand", "small_positive", *REAL, "table")


def env_of(dataset: Dataset) -> str:
    ids = {"kuairec": "KuaiRec-Fair-v0", "kuairand": "KuaiRand-Fair-v0"}
    return ids.get(dataset.source, "Recommendation-Fair-v0")


def of_some_users(dataset: Dataset, n_train: int = 600, n_test: int = 60) -> Dataset:
    """Rows of some users of a large world, whose other users have none."""
    rng = np.random.default_rng(0)
    test_users = np.sort(rng.choice(dataset.test_users, n_test, replace=False))
    users = np.union1d(rng.choice(dataset.train_users, n_train, replace=False), test_users)
    randomised = dataset.randomised
    return dataclasses.replace(
        dataset,
        log=dataset.log.of_users(users, dataset.n_users),
        test=dataset.test.of_users(test_users, dataset.n_users),
        randomised=randomised and randomised.of_users(users, dataset.n_users),
    )


def tables(small: Dataset) -> tuple[Dataset, Dataset]:
    """One's own log, with two tables of answers to the same test pairs."""
    rng = np.random.default_rng(0)
    chosen = small.test.take(rng.random(len(small.test)) < 0.5)
    log, test = (
        pd.DataFrame({"user": rows.users, "item": rows.items, "response": rows.response})
        for rows in (small.log.take(~np.isin(small.log.users, chosen.users)), chosen)
    )
    other = test.assign(response=rng.random(len(test)))
    one, two = (load_dataset("table", log=log, test=answers) for answers in (test, other))
    return one, two


def other_test_source(dataset: Dataset, seed: int) -> Dataset:
    """The dataset with other answers of the same test users, and to other items but for labels.

    Labels are of all pairs, or of pools, which agents know.
    """
    rng = np.random.default_rng(seed)
    test = dataset.test
    if isinstance(test, LabelLog):
        label = rng.permutation(test.label)
        return dataclasses.replace(dataset, test=LabelLog(test.users, test.items, label))
    items = test.items.copy()
    for user in dataset.test_users:
        rows = np.flatnonzero(test.users == user)
        items[rows] = rng.choice(dataset.n_items, len(rows), replace=False)
    changed: WatchLog | BehaviourLog
    if isinstance(test, WatchLog):
        changed = type(test)(test.users, items, rng.random(len(test), dtype=np.float32) * 3)
    else:
        changed = BehaviourLog(test.users, items, rng.integers(0, 128, len(test), np.uint8))
    return dataclasses.replace(dataset, test=changed, truth=None)


@pytest.fixture(scope="module", params=WORLDS)
def pair(request) -> tuple[Dataset, Dataset]:
    if request.param == "table":
        dataset, other = tables(request.getfixturevalue("small"))
    else:
        dataset = request.getfixturevalue(request.param)
        if request.param in REAL:
            dataset = of_some_users(dataset)
        other = other_test_source(dataset, 0)
    assert other.fingerprint != dataset.fingerprint
    return dataset, other


def test_training_data_has_no_test_rows_and_learners_take_nothing_else() -> None:
    names = {column.name for column in dataclasses.fields(TrainingData)}
    assert not names & {"test", "test_users", "truth"}
    for function in (build_catalogue, PreferenceEncoder.__init__):
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
    users = np.concatenate([one.train_users[:300], one.test_users])[:, None]
    items = np.arange(one.n_items)[None, :]
    a, b = (build_simulator(dataset, "train").model.feedback(users, items) for dataset in pair)
    np.testing.assert_array_equal(a, b)
    assert repr(assess(one, "train").metrics) == repr(assess(two, "train").metrics)  # with NaNs


def test_denoiser(pair) -> None:
    users = pair[0].train_users[:500]
    states = log_parts(preference_encoder(pair[0]), pair[0].train_log, users)
    one, two = (play_sessions(dataset, 64, 0) for dataset in pair)
    np.testing.assert_array_equal(one.parts, two.parts)
    np.testing.assert_array_equal(one.mean, two.mean)
    a, b = (fit_dsrm(dataset, updates=20, sessions=64).denoise(states) for dataset in pair)
    np.testing.assert_array_equal(a, b)


def test_train_sessions(pair) -> None:
    """What a policy sees, is paid and is told in training."""
    histories = []
    for dataset in pair:
        env = make_vec_env(
            env_of(dataset), 8, "train", seed=5, dataset=dataset, action_type="slate"
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
        make_vec_env(env_of(dataset), 16, "test", seed=5, dataset=dataset).reset()
        for dataset in pair
    ]
    np.testing.assert_array_equal(*first)


def test_the_change_would_be_seen(pair) -> None:
    """The test simulator, which may learn from the test source, does change."""
    one, _ = pair
    users, items = one.test_users[:, None], np.arange(one.n_items)[None, :]
    a, b = (build_simulator(dataset, "test").model.probability(users, items) for dataset in pair)
    assert np.abs(a - b).max() > 0.1
