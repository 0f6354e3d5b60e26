"""Evaluation where long sessions take longer to finish than short ones."""

from __future__ import annotations

import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3.common.vec_env import DummyVecEnv

from dsrm_agents import evaluate
from dsrm_agents.common.stateless import StatelessAgent
from kuaisim_gym.errors import ConfigError
from kuaisim_gym.metrics import Sessions

SHORT, LONG = 1, 30


class OneOrThirty(DummyVecEnv):
    """Sessions of 1 or 30 steps, in random order; half of the slots' n-th ones are short."""

    def __init__(self, num_envs: int) -> None:
        self.num_envs = num_envs
        rng = np.random.default_rng(1)
        halves = np.tile(np.repeat([SHORT, LONG], num_envs // 2)[:, None], 200)
        self.lengths = rng.permuted(halves, axis=0)
        self.action_space = spaces.Discrete(2)

    def reset(self):
        self.session = np.zeros(self.num_envs, dtype=int)
        self.steps = np.zeros(self.num_envs, dtype=int)
        return np.zeros(self.num_envs)

    def step(self, actions):
        self.steps += 1
        planned = self.lengths[np.arange(self.num_envs), self.session]
        dones = self.steps == planned
        infos = [
            {"record": record(steps)} if done else {}
            for done, steps in zip(dones, self.steps, strict=True)
        ]
        self.session += dones
        self.steps[dones] = 0
        return np.zeros(self.num_envs), np.zeros(self.num_envs), dones, infos


def record(steps: int) -> Sessions:
    empty = np.zeros((1, LONG))
    slates = np.zeros((1, LONG, 1), dtype=np.int32)
    users, answers = np.zeros(1, dtype=np.int32), slates.astype(np.float32)
    return Sessions(np.array([steps]), empty, empty.astype(bool), slates, answers, users)


class Idle(StatelessAgent):
    def slates(self, observation):
        return np.zeros(len(observation), dtype=np.int64)


def first_to_finish(agent, env, sessions: int) -> Sessions:
    """The mistake: the sessions that finish first, whichever slots they are of."""
    records, observation = [], env.reset()
    while len(records) < sessions:
        observation, _, dones, infos = env.step(agent.predict(observation)[0])
        records += [infos[slot]["record"] for slot in np.flatnonzero(dones)]
    return Sessions.concatenate(records[:sessions])


def test_long_sessions_count_as_often_as_short_ones() -> None:
    lengths = evaluate(Idle(), OneOrThirty(100), sessions=200).length
    assert lengths.mean() == pytest.approx((SHORT + LONG) / 2)
    hasty = first_to_finish(Idle(), OneOrThirty(100), sessions=200).length
    assert hasty.mean() == pytest.approx(12, abs=1)


ODD_NUMBERS = [0, -1, -2, 1.5, 2.0, True, "2", None, float("nan"), np.array(2), np.timedelta64(2)]


@pytest.mark.parametrize("sessions", ODD_NUMBERS, ids=repr)
def test_what_is_no_number_of_sessions_is_refused_and_plays_none(sessions, monkeypatch) -> None:
    monkeypatch.setattr(OneOrThirty, "step", None)
    with pytest.raises(ConfigError, match="sessions must be an integer of at least 1, got"):
        evaluate(Idle(), OneOrThirty(2), sessions)


def test_slots_play_equally_many_or_none(monkeypatch) -> None:
    assert evaluate(Idle(), OneOrThirty(2), np.int64(4)).length.shape == (4,)
    monkeypatch.setattr(OneOrThirty, "step", None)
    for sessions in (1, 3):
        with pytest.raises(ConfigError, match="a positive multiple of the 2 slots, got"):
            evaluate(Idle(), OneOrThirty(2), sessions)
