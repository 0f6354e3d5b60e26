from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from dsrm_agents import PurifyVecEnv, evaluate, fit_purifier, make_vec_env
from dsrm_agents.baselines.novelty import (
    NoveltyPolicy,
    item_novelty,
    item_quality,
    make_novelty,
)
from kuaisim_gym.data import WatchLog
from kuaisim_gym.errors import ConfigError

SLATES = {"observation_type": "dict", "action_type": "slate"}
# Four items around the compass; the second half of a state is context and does not count.
COMPASS = np.array([[2, 0], [0, 1], [-1, 0], [0, -3]], dtype=np.float32)


def policy(
    quality=(0.5, 0.5, 0.5, 0.5), exposures=(10, 10, 10, 10), beta: float = 0.4, slate: int = 2
) -> NoveltyPolicy:
    return NoveltyPolicy(COMPASS, np.array(quality), np.array(exposures), slate, slice(0, 2), beta)


def seen(*states, exposed=()) -> dict[str, np.ndarray]:
    shown = np.full((len(states), 4), -1, dtype=np.int32)
    shown[:, : len(exposed)] = exposed
    return {"state": np.array(states, dtype=np.float32), "exposed": shown}


def batch(dataset, slots: int = 20, **options):
    given = {**SLATES, "max_len": 5, **options}
    return make_vec_env("KuaiRec-Fair-v0", slots, "test", 5, dataset=dataset, **given)


def test_novelty_has_dnair_s_range() -> None:
    novelty = item_novelty(np.array([5, 105, 55]))
    expected = 1 / np.log10([1.1, 2.1, 1.6])
    np.testing.assert_allclose(novelty, expected)
    np.testing.assert_allclose(novelty[:2], [24.16, 3.10], atol=0.01)
    np.testing.assert_allclose(item_novelty(np.array([3, 3])), 1 / np.log10(1.1))  # all alike


def test_quality_is_the_posterior_mean_of_the_train_users_rows(small) -> None:
    log = WatchLog(
        np.array([0, 0, 0, 1, 2], np.int32),
        np.array([1, 1, 2, 1, 2], np.int32),
        np.array([0.5, 3.0, 0.1, 0.4, 1.0], np.float32),
    )
    test = WatchLog(np.array([2], np.int32), np.array([0], np.int32), np.ones(1, np.float32))
    data = dataclasses.replace(small, log=log, test=test, truth=None).training
    # Item 1: two good of three. Item 2: none of one, for user 2 is a test user.
    np.testing.assert_allclose(item_quality(data)[:4], [1 / 2, 3 / 5, 1 / 3, 1 / 2])
    assert len(item_quality(data)) == small.n_items


def test_scores_by_hand() -> None:
    quality, exposures = (0.9, 0.2, 0.5, 0.5), (10, 0, 10, 5)
    # To the east the cosines are 1, 0, -1, 0: mean 0, standard deviation sqrt(1 / 2).
    relevance = np.array([np.sqrt(2), 0, -np.sqrt(2), 0])
    novelty = 1 / np.log10([2.1, 1.1, 2.1, 1.6])
    expected = relevance + 0.4 * np.array(quality) * novelty
    agent = policy(quality, exposures)
    states = np.array([[3, 0], [0.1, 0]], dtype=np.float32)  # their size does not matter
    np.testing.assert_allclose(agent.scores(states), [expected, expected], rtol=1e-5)
    slates, hidden = agent.predict(seen([3, 0, 9, 9]))
    assert slates.tolist() == [np.argsort(-expected)[:2].tolist()]
    assert hidden is None


def test_without_novelty_the_nearest_items_are_shown() -> None:
    slates, _ = policy(beta=0, slate=1).predict(seen([1, 0, 0], [0, 2, 0], [-1, 0.1, 0]))
    assert slates.ravel().tolist() == [0, 1, 2]


def test_novelty_counts_by_quality() -> None:
    """Of two items equally near, a novel one wins if it is good, and loses if it is not."""
    exposures = (100, 100, 100, 0)  # item 3 is the novel one
    north_and_south = seen([1, 0, 0], exposed=(0, 2))
    good, _ = policy((0.5, 0.7, 0.5, 0.7), exposures, slate=1).predict(north_and_south)
    bad, _ = policy((0.5, 0.7, 0.5, 0.05), exposures, slate=1).predict(north_and_south)
    assert (good.item(), bad.item()) == (3, 1)


def test_a_user_at_the_origin_gets_what_is_good_and_novel() -> None:
    agent = policy((0.5, 0.9, 0.5, 0.5))
    scores = agent.scores(np.zeros((1, 2), np.float32))
    np.testing.assert_allclose(scores, [agent.bonus])
    assert agent.predict(seen([0, 0]))[0][0, 0] == 1


def test_exposed_items_are_not_shown_again() -> None:
    slates, _ = policy(beta=0).predict(seen([1, 0], exposed=(0, 3)))
    assert slates.tolist() == [[1, 2]]


def test_sessions_behind_a_purifier(small) -> None:
    class Backwards:
        fingerprint, reads = small.fingerprint, "pooled"

        def denoise(self, states):
            return -states

    for purifier in (None, fit_purifier("linear", small), Backwards()):
        env = batch(small)
        agent = make_novelty(env.batch)
        worn = env if purifier is None else PurifyVecEnv(env, purifier)
        sessions = evaluate(agent, worn, 20)
        for slates, length in zip(sessions.slates, sessions.length, strict=True):
            shown = slates[:length].ravel()
            assert (shown >= 0).all()
            assert len(np.unique(shown)) == len(shown)
    nearest = make_novelty(env.batch, beta=0)
    raw, _ = nearest.predict(batch(small).reset())
    turned, _ = nearest.predict(PurifyVecEnv(batch(small), Backwards()).reset())
    assert not np.isin(turned[0], raw[0]).any()  # it sees what the purifier shows, and no more


def test_what_cannot_be_is_refused(small) -> None:
    with pytest.raises(ConfigError, match='needs observation_type="dict"'):
        make_novelty(batch(small, observation_type="state").batch)
    with pytest.raises(ConfigError, match="'scorer'"):
        make_novelty(batch(small, action_type="scorer").batch)
    with pytest.raises(ConfigError, match="beta must be at least 0"):
        policy(beta=-1)
