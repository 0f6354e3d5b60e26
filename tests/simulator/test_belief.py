"""Beliefs in sessions: equal to plain Gaussian conditioning, in every shell and engine."""

from __future__ import annotations

import dataclasses
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from dsrm_agents import evaluate, make_vec_env
from dsrm_agents.baselines.reference import make_reference
from kuaisim_gym import SessionBatch
from kuaisim_gym.errors import ConfigError, NoPreferenceError
from kuaisim_gym.simulator.build import load_preferences
from kuaisim_gym.simulator.factors import LINK_BOUND

ENVS = {"small": "KuaiRec-Fair-v0", "small_rand": "KuaiRand-Fair-v0"}


@pytest.fixture(params=["small", "small_rand"])
def dataset(request):
    return request.getfixturevalue(request.param)


def batch_of(dataset, n: int = 6, **options: Any) -> SessionBatch:
    options = {"observation_type": "belief", "action_type": "slate", "split": "test"} | options
    batch = SessionBatch(n, dataset.name, dataset=dataset, **options)
    batch.seed(list(range(n)))
    batch.reset()
    return batch


def slates_of(batch: SessionBatch, rng: np.random.Generator) -> np.ndarray:
    """Random slates, in which items occur again within a slate and within a session."""
    return rng.integers(0, 60, (batch.n_sessions, batch.config.slate_size))


def conditioned(batch: SessionBatch, session: int, answers: list[list[float]]) -> np.ndarray:
    """The belief by solving all answers at once, each as the Gaussian that it counts as.

    An answer's Gaussian depends on the belief before it: the system is solved anew for each.
    """
    model, state = batch.belief().model, batch.core.state
    user = state.users[session]
    precision = np.linalg.inv(model.covariance[user])
    pulled = precision @ model.mean[user]
    grid = np.linspace(-LINK_BOUND, LINK_BOUND, len(model.link))
    seen: set[int] = set()
    for step, given in enumerate(answers):
        for item, answer in zip(state.slates[session, step].tolist(), given, strict=True):
            if item in seen:
                continue
            seen.add(item)
            vector = np.r_[1.0, model.vectors[item]]
            mean = np.linalg.solve(precision, pulled)
            score = model.quality[item] + vector @ mean
            expected, slope = (np.interp(score, grid, column) for column in model.link.T)
            noise = expected * (1 - expected) / slope**2 + model.variance[item]
            target = vector @ mean + (answer - expected) / slope
            precision = precision + np.outer(vector, vector) / noise
            pulled = pulled + vector * target / noise
    covariance = np.linalg.inv(precision)
    return np.r_[covariance @ pulled, np.diag(covariance)]


@pytest.mark.parametrize("engine", ["numpy", "numba"])
def test_the_belief_is_plain_gaussian_conditioning(dataset, engine: str) -> None:
    batch, rng = batch_of(dataset, engine=engine), np.random.default_rng(1)
    answers: list[list[list[float]]] = [[] for _ in range(batch.n_sessions)]
    for _ in range(5):
        result = batch.step(slates_of(batch, rng))
        for session, given in enumerate(result.feedback[:, :, 0].tolist()):
            answers[session].append(given)
    observed = batch.observe()
    assert isinstance(observed, np.ndarray)
    d = batch.belief().dim
    for session in range(batch.n_sessions):
        np.testing.assert_allclose(
            observed[session, : 2 * d], conditioned(batch, session, answers[session]), atol=1e-5
        )


def test_engines_agree_to_the_last_bit(dataset) -> None:
    histories = []
    for engine in ("numpy", "numba"):
        batch, rng = batch_of(dataset, 20, engine=engine), np.random.default_rng(1)
        trace = [batch.observe()]
        for _ in range(6):
            batch.step(slates_of(batch, rng))
            trace += [batch.observe(), batch.belief().covariance.copy(), batch.belief().scores()]
        histories.append(trace)
    for one, two in zip(*histories, strict=True):
        np.testing.assert_array_equal(one, two)


def test_shells_agree(small) -> None:
    options = {"dataset": small, "observation_type": "belief", "action_type": "slate"}
    name, seed = ENVS["small"], 11
    single = gym.make(name, **options)
    several = gym.make_vec(name, num_envs=3, **options)
    sb3 = make_vec_env(name, 3, seed=seed, **options)
    first = [single.reset(seed=seed)[0], several.reset(seed=seed)[0][0], sb3.reset()[0]]
    rng = np.random.default_rng(2)
    for _ in range(4):
        slates = np.stack([rng.choice(240, 10, replace=False) for _ in range(3)])
        for other in first[1:]:
            np.testing.assert_array_equal(first[0], other)
        assert single.observation_space.contains(first[0])
        first = [single.step(slates[0])[0], several.step(slates)[0][0], sb3.step(slates)[0][0]]


def test_a_session_does_not_depend_on_its_neighbours(small) -> None:
    alone, together = batch_of(small, 1), batch_of(small, 5)
    rng = np.random.default_rng(3)
    for _ in range(3):
        slates = slates_of(together, rng)
        alone.step(slates[:1])
        together.step(slates)
    np.testing.assert_array_equal(alone.observe()[0], together.observe()[0])


def test_evidence_can_be_had_apart(small) -> None:
    both, log, session = (batch_of(small, evidence=e) for e in ("both", "log", "session"))
    model, users = load_preferences(small), both.core.state.users
    d = model.dim
    np.testing.assert_allclose(both.observe()[:, :d], model.mean[users], atol=1e-6)
    np.testing.assert_allclose(session.observe()[:, :d], model.population_mean[users], atol=1e-6)
    before = log.observe()[:, : 2 * d]
    slates = slates_of(both, np.random.default_rng(0))
    for batch in (both, log, session):
        batch.step(slates)
    np.testing.assert_array_equal(log.observe()[:, : 2 * d], before)
    for batch in (both, session):
        variance = batch.observe()[:, batch.encoder.variance_slice]
        assert (variance < batch.belief().model.population_covariance.diagonal() + 1e-6).all()
    assert batch_of(small).observe().shape == (6, 2 * d + 4)


def test_repeated_items_tell_nothing(small) -> None:
    batch = batch_of(small)
    slates = np.tile(np.arange(10), (6, 1))
    batch.step(slates)
    before = batch.belief().snapshot()
    result = batch.step(slates)
    assert not result.answered.any()
    for name, array in batch.belief().snapshot().items():
        np.testing.assert_array_equal(array, before[name])


def test_good_answers_raise_the_belief_and_every_answer_makes_it_surer(small) -> None:
    batch = batch_of(small, 80)
    before = batch.belief().snapshot()
    result = batch.step(np.tile(np.arange(10), (80, 1)))
    after = batch.belief().snapshot()
    level = (after["mean"] - before["mean"])[:, 0]
    assert np.corrcoef(level, result.responses.mean(axis=1))[0, 1] > 0.8
    shrunk = np.linalg.eigvalsh(before["covariance"] - after["covariance"])
    assert shrunk.min() > -1e-12


def test_a_snapshot_holds_the_belief(small) -> None:
    batch, rng = batch_of(small), np.random.default_rng(4)
    batch.step(slates_of(batch, rng))
    snapshot, slates = batch.snapshot(), slates_of(batch, rng)
    batch.step(slates)
    expected = batch.observe()
    other = batch_of(small)
    other.restore(snapshot)
    other.step(slates)
    np.testing.assert_array_equal(other.observe(), expected)


def test_of_users_without_log_the_session_tells_everything(dataset) -> None:
    strangers = dataset.test_users[:4]
    log = dataset.log.take(~np.isin(dataset.log.users, strangers))
    masked = dataclasses.replace(dataset, log=log)
    users = dataset.user_ids[strangers]
    both, session = (batch_of(masked, evidence=name, users=users) for name in ("both", "session"))
    rng = np.random.default_rng(0)
    for _ in range(4):
        np.testing.assert_allclose(both.observe(), session.observe(), rtol=1e-4, atol=1e-5)
        slates = slates_of(both, rng)
        both.step(slates)
        session.step(slates)


def test_options_that_do_not_go_together_are_refused(small) -> None:
    with pytest.raises(ConfigError, match="Did you mean 'session'"):
        batch_of(small, evidence="sessions")
    with pytest.raises(ConfigError, match='evidence is for .* or preference="belief"'):
        batch_of(small, evidence="log", observation_type="state")
    with pytest.raises(NoPreferenceError, match='use preference="belief"'):
        _ = batch_of(small, observation_type="state").encoder.variance_slice
    batch = batch_of(small, observation_type="state")
    batch.step(slates_of(batch, np.random.default_rng(0)))
    with pytest.raises(ConfigError, match="before the first step"):
        batch.belief()


def test_the_filter_needs_no_observation_of_the_belief_and_plays_above_quality(world) -> None:
    rewards = {}
    for name, kind in (("quality+quota", "state"), ("filter+quota", "state")):
        env = make_vec_env(
            "KuaiRec-Fair-v0", 300, "test", 5, dataset=world, action_type="slate",
            observation_type=kind,
        )  # fmt: skip
        rewards[name] = evaluate(make_reference(name, env.batch), env, 300).length.mean()
    assert rewards["filter+quota"] > rewards["quality+quota"] + 0.2
