"""Sessions over the items that a user has real answers of."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from dsrm_agents import evaluate, make_vec_env
from dsrm_agents.baselines.reference import make_reference
from dsrm_agents.common.catalogue import outside_pool, state_and_unavailable
from kuaisim_gym.data import Dataset
from kuaisim_gym.envs.tasks import make_batch
from kuaisim_gym.errors import ConfigError
from kuaisim_gym.simulator import build_simulator
from kuaisim_gym.simulator.pools import find_pools

ENV = "KuaiRec-Fair-v0"


@pytest.fixture(scope="module")
def pooled(small_positive) -> Dataset:
    """The small world, whose test users have answers of 12 to 40 items."""
    rng = np.random.default_rng(0)
    test = small_positive.test
    size = rng.integers(12, 41, small_positive.n_users)
    starts = test.starts(small_positive.n_users)
    rank = np.empty(len(test), dtype=np.int64)
    for user in small_positive.test_users:
        rows = slice(starts[user], starts[user + 1])
        rank[rows] = rng.permutation(starts[user + 1] - starts[user])
    return dataclasses.replace(small_positive, test=test.take(rank < size[test.users]), pools=True)


def pool_of(dataset: Dataset, user: int) -> set[int]:
    return set(dataset.test.items[dataset.test.users == user].tolist())


def batch_of(dataset: Dataset, split: str = "test", **options):
    options = {"slate_size": 3, "max_len": 30, "observation_type": "dict"} | options
    return make_batch(16, "kuairec", dataset=dataset, split=split, **options)


def test_pools_are_the_users_test_rows(pooled) -> None:
    pools = find_pools(pooled, "test")
    users = pooled.test_users[:5]
    padded, outside, sizes = pools.padded(users), pools.outside(users), pools.sizes(users)
    for row, user in enumerate(users):
        pool = pool_of(pooled, user)
        assert set(padded[row][padded[row] >= 0].tolist()) == pool
        assert set(np.flatnonzero(~outside[row]).tolist()) == pool
        assert sizes[row] == len(pool)
    assert pools.room == max(len(pool_of(pooled, user)) for user in pooled.test_users)
    train = find_pools(pooled, "train")
    assert (train.padded(pooled.train_users) == -1).all()
    assert not train.outside(pooled.train_users).any()
    assert (train.sizes(pooled.train_users) == pooled.n_items).all()
    assert find_pools(dataclasses.replace(pooled, pools=False), "test") is None


@pytest.mark.parametrize("action_type", ["shares", "scorer", "discrete"])
def test_sessions_show_pools_alone_and_end_when_they_are_empty(pooled, action_type: str) -> None:
    options = {"slate_size": 1} if action_type == "discrete" else {"slate_size": 3}
    batch = batch_of(pooled, action_type=action_type, **options)
    batch.seed(range(16))
    batch.reset()
    users = batch.core.state.users.copy()
    rng, k = np.random.default_rng(0), options["slate_size"]
    active, exhausted = np.ones(16, dtype=bool), 0
    while active.any():
        if action_type == "discrete":
            masks = batch.actions.masks()[:, 0]
            masks[~active, 0] = True  # sessions that are over have nothing left
            actions = np.array([rng.choice(np.flatnonzero(row)) for row in masks])
        else:
            actions = rng.uniform(-1, 1, (16, batch.action_space.shape[0])).astype(np.float32)
        result = batch.step(actions, active)
        for slot in np.flatnonzero(active):
            steps = batch.core.state.steps[slot]
            shown = batch.core.state.slates[slot, :steps].ravel().tolist()
            pool = pool_of(pooled, users[slot])
            assert len(set(shown)) == len(shown)
            assert set(shown) <= pool
            assert result.truncated[slot] == (
                not result.terminated[slot] and len(pool) - len(shown) < k
            )
            exhausted += bool(result.truncated[slot])
        active &= ~(result.terminated | result.truncated)
    assert exhausted


def test_every_answer_is_a_recorded_one_and_others_are_zero(pooled) -> None:
    batch = batch_of(pooled, action_type="slate", stochastic_response=False)
    assert batch.simulator.observed_share == 1.0
    batch.seed(range(16))
    batch.reset()
    observation = batch.observe()
    slates = np.zeros((16, 3), dtype=np.int64)
    for slot, pool in enumerate(observation["pool"]):
        outside = np.setdiff1d(np.arange(pooled.n_items), pool[pool >= 0])
        slates[slot] = *pool[:2], outside[slot]
    result = batch.step(slates)
    table = {
        (user, item): label for user, item, label in zip(*pooled.test.columns.values(), strict=True)
    }
    users = batch.core.state.users
    for slot in range(16):
        expected = [table[users[slot], item] for item in slates[slot, :2]]
        assert result.responses[slot].tolist() == [*expected, 0.0]


def test_observations_tell_the_pool_and_both_splits_have_one_space(pooled) -> None:
    test, train = batch_of(pooled), batch_of(pooled, "train")
    assert test.observation_space == train.observation_space
    for batch, split in ((test, "test"), (train, "train")):
        batch.seed(range(16))
        batch.reset()
        observation = batch.observe()
        assert batch.observation_space.contains(
            {name: part[0] for name, part in observation.items()}
        )
        for slot, user in enumerate(batch.core.state.users):
            pool = observation["pool"][slot]
            expected = pool_of(pooled, user) if split == "test" else set()
            assert set(pool[pool >= 0].tolist()) == expected
    assert "pool" not in batch_of(dataclasses.replace(pooled, pools=False)).observe()


def test_items_outside_a_pool_are_unavailable_to_agents(pooled) -> None:
    batch = batch_of(pooled, action_type="slate")
    batch.seed(range(16))
    batch.reset()
    observation = {name: torch.as_tensor(part) for name, part in batch.observe().items()}
    observation["exposed"][0, :3] = torch.tensor([1, 2, 3])
    _, unavailable = state_and_unavailable(observation, pooled.n_items)
    for slot, user in enumerate(batch.core.state.users):
        items = set(unavailable[slot][unavailable[slot] >= 0].tolist())
        expected = set(range(pooled.n_items)) - pool_of(pooled, user)
        assert items == expected | ({1, 2, 3} if slot == 0 else set())
    observation["pool"][5] = -1
    assert not outside_pool(observation, pooled.n_items)[5].any()
    del observation["pool"]
    assert outside_pool(observation, pooled.n_items).shape == (16, 0)


@pytest.mark.parametrize("name", ["random", "popularity", "quality+quota", "train-oracle+quota"])
def test_reference_rows_play_pools_and_obey_the_law(pooled, name: str) -> None:
    options = {"dataset": pooled, "action_type": "slate", "slate_size": 2, "max_len": 6}
    env = make_vec_env(ENV, 40, "test", seed=1, **options)
    sessions = evaluate(make_reference(name, env.batch), env, sessions=400)
    users_items = env.batch.summarise(sessions)
    expected = (6 - 1) / (2 - users_items["r_each"] + users_items["q"]) + 0.5
    assert float(sessions.length.mean()) == pytest.approx(expected, abs=0.4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"slate_size": 13}, "slate_size must be at most 12"),
        ({"allow_repeats": True}, "would answer items outside a user's pool"),
    ],
)
def test_options_that_pools_cannot_serve_are_refused(pooled, options, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        batch_of(pooled, **options)


def test_training_is_over_all_items(pooled) -> None:
    whole = dataclasses.replace(pooled, pools=False)
    one, two = (batch_of(data, "train") for data in (pooled, whole))
    for batch in (one, two):
        batch.seed(range(16))
        batch.reset()
        actions = np.random.default_rng(0).uniform(-1, 1, (16, 11)).astype(np.float32)
        batch.step(actions)
    np.testing.assert_array_equal(one.core.state.slates, two.core.state.slates)
    assert build_simulator(pooled, "train").observed_share == 0.0
