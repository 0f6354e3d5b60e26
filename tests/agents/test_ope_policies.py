"""Probabilities of slates: they sum to one, they are what is drawn, and logs keep them exactly."""

from __future__ import annotations

import itertools
from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest

from dsrm_agents.ope.logged import Context, LoggedSessions
from dsrm_agents.ope.propensities import (
    Actor,
    Mixture,
    SoftmaxPolicy,
    epsilon_random,
    uniform_policy,
)
from dsrm_agents.ope.recording import random_log
from kuaisim_gym import collect_episodes, write_minari
from kuaisim_gym.errors import ConfigError, DataFormatError

N_ITEMS, SIZE = 6, 3
LABELS = np.array([0, 1, 0, 1, 0, 1])
SCORES = np.array([[0.0, 1.0, -0.5, 2.0, 0.3, 0.1], [1.0, 0.0, 0.0, 0.0, 3.0, -1.0]])
POLICIES = {
    "uniform": uniform_policy(N_ITEMS),
    "softmax": SoftmaxPolicy(SCORES, 0.7),
    "shares": SoftmaxPolicy(SCORES, 1.3, (0.4, 0.6), LABELS),
    "epsilon": epsilon_random(SoftmaxPolicy(SCORES, 0.3), 0.2, N_ITEMS),
    "mixture": Mixture([SoftmaxPolicy(SCORES, 0.5), SoftmaxPolicy(-SCORES[0])], [0.7, 0.3]),
}
SLATES = np.array([*itertools.permutations(range(N_ITEMS), SIZE)])


def context(user: int, shown: list[int], n: int) -> Context:
    return Context(np.full(n, user, np.int32), np.tile(np.array(shown, np.int64), (n, 1)))


@pytest.mark.parametrize("name", POLICIES)
def test_probabilities_of_all_slates_sum_to_one_and_are_those_of_draws(name) -> None:
    policy = POLICIES[name]
    for user, shown in ((0, []), (1, [4, -1])):
        chance = np.exp(policy.log_prob(context(user, shown, len(SLATES)), SLATES).sum(axis=1))
        allowed = ~np.isin(SLATES, shown).any(axis=1)
        if name == "shares" and shown:  # three places of the group with two items left: no slate
            allowed &= (LABELS[SLATES] == 0).sum(axis=1) <= 2
        else:
            assert chance.sum() == pytest.approx(1.0, abs=1e-9)
        assert (chance[allowed] > 0).all() and not chance[~allowed].any()
    n = 40_000
    drawn, log_prob = policy.act(context(0, [], n), SIZE, np.random.default_rng(1))
    again = policy.log_prob(context(0, [], n), drawn)
    assert (log_prob == again).all()
    code = drawn @ [36, 6, 1]
    frequency = np.bincount(code, minlength=216)[SLATES @ [36, 6, 1]] / n
    chance = np.exp(policy.log_prob(context(0, [], len(SLATES)), SLATES).sum(axis=1))
    error = np.sqrt(chance * (1 - chance) / n)
    assert (np.abs(frequency - chance) < 4.5 * error + 1e-12).all()


def test_softmax_by_hand() -> None:
    policy = SoftmaxPolicy(np.log([1.0, 2.0, 3.0, 4.0]), 1.0, (0.25, 0.75), np.array([0, 0, 1, 1]))
    found = policy.log_prob(context(0, [2], 1), np.array([[3, 0, 1]]))
    # All of group 1 that is left; then group 0: 1 of 1 + 2; then the other one of it.
    assert np.exp(found) == pytest.approx(np.array([[0.75, 0.25 / 3, 0.25]]))
    assert np.isneginf(policy.log_prob(context(0, [2], 1), np.array([[2, 0, 1]]))[0, 0])
    assert np.isneginf(policy.log_prob(context(0, [], 1), np.array([[0, 0, 1]]))[0, 1])


def test_a_sharp_policy_draws_what_is_left_and_tells_its_chance() -> None:
    policy = SoftmaxPolicy(np.array([80.0, 40.0, 0.0, -1.0]))
    shown = context(0, [0, 1], 4000)
    drawn, log_prob = policy.act(shown, 1, np.random.default_rng(2))
    assert set(drawn[:, 0]) == {2, 3}
    share = np.exp(0.0) / (np.exp(0.0) + np.exp(-1.0))
    assert np.exp(log_prob[drawn[:, 0] == 2]) == pytest.approx(share)
    assert (drawn[:, 0] == 2).mean() == pytest.approx(share, abs=0.03)


def test_policies_refuse_what_they_cannot_know() -> None:
    for arguments in ({"temperature": 0.0}, {"shares": (0.5, 0.5)},
                      {"shares": (0.5, 0.6), "labels": LABELS},
                      {"shares": (0.5, 0.5), "labels": 0 * LABELS}):  # fmt: skip
        with pytest.raises(ConfigError):
            SoftmaxPolicy(SCORES, **arguments)
    with pytest.raises(ConfigError, match="User 7 has no row"):
        SoftmaxPolicy(SCORES).log_prob(context(7, [], 1), SLATES[:1])
    with pytest.raises(ConfigError, match="no item of a group"):
        POLICIES["shares"].act(context(0, [0, 2, 4], 9), 3, np.random.default_rng(0))
    with pytest.raises(ConfigError, match="weights"):
        Mixture([uniform_policy(3)], [0.5])


# Logs


def test_logs_are_checked() -> None:
    good = {
        "users": np.zeros(2, np.int32),
        "length": np.array([1, 2]),
        "slates": np.array([[[3], [-1]], [[1], [2]]], np.int32),
        "rewards": np.zeros((2, 2)),
        "log_probs": np.array([[[-1.0], [0.0]], [[-2.0], [-0.5]]]),
    }
    logged = LoggedSessions(**good)
    assert logged.done.tolist() == [[True, False], [False, True]]
    assert logged.slate_log_probs.tolist() == [[-1.0, 0.0], [-2.0, -0.5]]
    assert len(logged.take(np.array([1, 1, 0]))) == 3
    for name, value in (
        ("users", np.zeros(3, np.int32)),
        ("length", np.array([0, 2])),
        ("length", np.array([2, 2])),
        ("log_probs", np.array([[[-np.inf], [0.0]], [[-2.0], [-0.5]]])),
        ("log_probs", np.array([[[0.1], [0.0]], [[-2.0], [-0.5]]])),
    ):
        with pytest.raises(DataFormatError):
            LoggedSessions(**good | {name: value})


def test_collected_episodes_keep_the_probabilities_of_their_slates(small) -> None:
    envs = gym.make_vec(
        "KuaiRec-Fair-v0", num_envs=5, dataset=small, action_type="slate", max_len=6, slate_size=3
    )
    batch = envs.unwrapped.batch
    policy = epsilon_random(SoftmaxPolicy(batch.catalogue.item_embedding[:, 0]), 0.3, small.n_items)
    actor = Actor(policy, batch, seed=4)
    episodes = [*collect_episodes(envs, actor, 12, seed=2, deterministic=False)]
    logged = LoggedSessions.of_episodes(episodes)
    assert len(logged) == 12 and logged.length.max() > 1
    # A policy of the same scores for all users needs no more than the slates.
    np.testing.assert_array_equal(logged.log_probs_of(policy), logged.log_probs)
    for episode, length in zip(episodes, logged.length, strict=True):
        assert episode.log_probs.shape == (length, 3) and len(episode) == length
    with pytest.raises(ConfigError, match="deterministic=False"):
        next(iter(collect_episodes(envs, actor, 1)))
    silent = [*collect_episodes(envs, Silent(actor), 2, seed=2, deterministic=False)]
    assert silent[0].log_probs is None
    with pytest.raises(DataFormatError, match="log_probs"):
        LoggedSessions.of_episodes(silent)


class Silent:
    """An agent that does not tell its probabilities."""

    def __init__(self, actor: Actor) -> None:
        self.actor = actor

    def predict(self, observation, state=None, episode_start=None, deterministic=False):
        return self.actor.predict(observation, state, episode_start, deterministic)


def test_a_random_log_has_the_propensities_of_chance(small, small_positive) -> None:
    with pytest.raises(ConfigError, match="no published random log"):
        random_log(small)
    published = replace(small_positive, synthetic=False, randomised=small_positive.test)
    logged, rows = random_log(published), published.test
    assert len(logged) == len(rows) and (logged.length == 1).all()
    assert np.exp(logged.log_probs).ravel() == pytest.approx(1.0 / small.n_items)
    assert (logged.rewards[:, 0] == rows.response).all()
    assert (logged.slates[:, 0, 0] == rows.items).all()
    uniform = uniform_policy(small.n_items)
    assert logged.log_probs_of(uniform) == pytest.approx(logged.log_probs)


def test_minari_stores_the_probabilities(small, monkeypatch, tmp_path) -> None:
    pytest.importorskip("minari")
    pytest.importorskip("h5py")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    options = {"action_type": "slate", "max_len": 5, "slate_size": 2}
    envs = gym.make_vec("KuaiRec-Fair-v0", num_envs=3, dataset=small, **options)
    actor = Actor(uniform_policy(small.n_items), envs.unwrapped.batch, seed=1)
    episodes = [*collect_episodes(envs, actor, 3, seed=2, deterministic=False)]
    stored = write_minari(
        "test/logged-v0",
        episodes,
        dataset=small,
        observation_space=envs.single_observation_space,
        action_space=envs.single_action_space,
    )
    for number, episode in enumerate(episodes):
        kept = stored[number].infos["log_probs"]
        np.testing.assert_array_equal(kept, episode.log_probs)
        assert kept[0, 0] == -np.log(small.n_items)
