"""A scorer whose slates and rewards know of fairness, beneath agents without a manager."""

from __future__ import annotations

import numpy as np
import pytest
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import VecEnv

from dsrm_agents import PurifyVecEnv, make_vec_env
from dsrm_agents.baselines.scorer import ScorerVecEnv
from dsrm_agents.common.fairness import Fairness
from kuaisim_gym.errors import ConfigError

N = 8


def sessions(small, **options) -> VecEnv:
    given = {"action_type": "slate", "max_len": 5} | options
    return make_vec_env("KuaiRec-Fair-v0", N, seed=3, dataset=small, **given)


def some_actions(steps: int) -> np.ndarray:
    return np.random.default_rng(0).uniform(-1, 1, (steps, N, 10)).astype(np.float32)


def records_of(infos: list[dict]) -> list:
    return [info["record"] for info in infos if "record" in info]


def test_with_the_quota_slates_are_balanced_distinct_and_unexposed(small) -> None:
    env = ScorerVecEnv(sessions(small), quota=True)
    popular, ends = env.batch.catalogue.popular, 0
    env.reset()
    for actions in some_actions(8):
        infos = env.step(actions)[3]
        for record in records_of(infos):
            slates = record.slates[0, : record.length[0]]
            assert (popular[slates].sum(axis=1) == 5).all()
            assert len(np.unique(slates)) == slates.size
            ends += 1
    assert ends >= N


def test_the_quota_keeps_the_best_of_either_group(small) -> None:
    env = ScorerVecEnv(sessions(small), quota=True)
    catalogue, actions = env.batch.catalogue, some_actions(1)[0]
    env.reset()
    env.step(actions)
    scores = actions @ catalogue.known.T
    for group in (catalogue.popular, ~catalogue.popular):
        best = np.argsort(np.where(group, -scores, np.inf), axis=1)[:, :5]
        shown = env.batch.core.state.slates[:, 0]
        found = [sorted(row[group[row]].tolist()) for row in shown]
        assert found == np.sort(best, axis=1).tolist()


@pytest.mark.parametrize("observation", ["state", "dict"])
def test_without_the_quota_sessions_are_those_of_scorers(small, observation) -> None:
    options = {"observation_type": observation}
    scorer = ScorerVecEnv(sessions(small, **options), quota=False)
    plain = sessions(small, **options, action_type="scorer")
    assert scorer.action_space == plain.action_space
    assert scorer.observation_space == plain.observation_space

    def check(seen, expected) -> None:
        assert type(seen) is type(expected)
        seen, expected = ([x] if observation == "state" else x.values() for x in (seen, expected))
        for one, other in zip(seen, expected, strict=True):
            np.testing.assert_array_equal(one, other)

    check(scorer.reset(), plain.reset())
    ends = 0
    for actions in some_actions(8):
        seen, rewards, dones, infos = scorer.step(actions)
        expected, other_rewards, other_dones, other_infos = plain.step(actions)
        check(seen, expected)
        np.testing.assert_array_equal(rewards, other_rewards)
        np.testing.assert_array_equal(dones, other_dones)
        for one, other in zip(records_of(infos), records_of(other_infos), strict=True):
            np.testing.assert_array_equal(one.slates, other.slates)
        ends += dones.sum()
    assert ends >= N


@pytest.mark.parametrize("measure", ["ad", "gini"])
def test_the_fairness_reward_is_added_and_not_recorded(small, measure: str) -> None:
    paid = ScorerVecEnv(sessions(small), quota=False, fairness_coef=1.5, fairness=measure)
    plain = ScorerVecEnv(sessions(small), quota=False)
    fair = Fairness(measure, plain.batch.catalogue)
    state = plain.batch.core.state
    paid.reset()
    plain.reset()
    shown: list[list[int]] = [[] for _ in range(N)]
    room, ends = state.slates[0].size, 0
    for actions in some_actions(8):
        before = np.array([row + [-1] * (room - len(row)) for row in shown])
        _, rewards, dones, infos = paid.step(actions)
        _, engagement, _, other_infos = plain.step(actions)
        slates = state.slates[np.arange(N), state.steps - 1].astype(np.int64)
        for slot in np.flatnonzero(dones):
            record, other = infos[slot]["record"], other_infos[slot]["record"]
            np.testing.assert_array_equal(record.rewards, other.rewards)
            slates[slot] = record.slates[0, record.length[0] - 1]
            ends += 1
        for slot, row in enumerate(shown):
            shown[slot] = [] if dones[slot] else row + slates[slot].tolist()
        added = 1.5 * fair(slates, before)
        assert np.abs(added).max() > 0.01
        np.testing.assert_allclose(rewards, engagement + added, atol=1e-6)
        assert rewards.dtype == np.float32
    assert ends >= N


@pytest.mark.parametrize("action_type", ["scorer", "discrete"])
def test_other_actions_beneath_are_refused(small, action_type: str) -> None:
    with pytest.raises(ConfigError, match=f'needs action_type="slate".*{action_type}'):
        ScorerVecEnv(sessions(small, action_type=action_type), quota=True)


def test_purified_states_come_through(small, dsrm) -> None:
    scorer = ScorerVecEnv(
        PurifyVecEnv(sessions(small, preference="parts"), dsrm), quota=True, fairness_coef=1.0
    )
    plain = PurifyVecEnv(sessions(small, preference="parts"), dsrm)
    np.testing.assert_array_equal(scorer.reset(), plain.reset())
    for actions in some_actions(6):
        seen, _, dones, infos = scorer.step(actions)
        for slot in np.flatnonzero(dones):
            assert infos[slot]["terminal_observation"].shape == (13,)
        raw = scorer.batch.observe()
        np.testing.assert_allclose(seen[:, :9], dsrm.denoise(raw[:, : 4 * 9 + 4]), atol=1e-5)


@pytest.mark.parametrize("quota", [False, True])
def test_stock_ppo_trains_on_it(small, quota: bool) -> None:
    env = ScorerVecEnv(sessions(small), quota, fairness_coef=1.0)
    model = PPO("MlpPolicy", env, n_steps=16, batch_size=64, seed=0, device="cpu")
    before = [one.clone() for one in model.policy.parameters()]
    model.learn(256)
    after = model.policy.parameters()
    assert any((one != other).any() for one, other in zip(before, after, strict=True))
    assert model.predict(env.reset())[0].shape == (N, 10)
