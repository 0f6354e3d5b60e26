"""Semantic ids as actions: what a choice of tokens shows, in all shells."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.env_checker import check_env
from stable_baselines3.common.vec_env import DummyVecEnv

import kuaisim_gym  # noqa: F401  registers the environments
from dsrm_agents import (
    Codebook,
    SemanticActionWrapper,
    SemanticVecEnv,
    TrainingCheckpoint,
    evaluate,
    make_vec_env,
    resume,
)
from kuaisim_gym.errors import CheckpointError, ConfigError, InvalidActionError
from kuaisim_gym.metrics import summarise

N = 6


def sessions(small, n: int = N, **options):
    given = {"action_type": "slate", "max_len": 8} | options
    return make_vec_env("KuaiRec-Fair-v0", n, seed=3, dataset=small, **given)


@pytest.fixture(scope="module")
def codebook(small) -> Codebook:
    return Codebook.fit(sessions(small, 1).catalogue.known, levels=2, codes=5)


def some_tokens(steps: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(5, size=(steps, N, 2))


def by_sorting(codebook: Codebook, tokens, ranking, hidden, size: int = 10) -> list[int]:
    shared = (codebook.tokens == tokens).cumprod(axis=1).sum(axis=1)
    order = np.lexsort((-ranking, -shared))
    return [item for item in order if not hidden[item]][:size]


@pytest.mark.parametrize("ranked", [False, True])
def test_those_that_share_most_tokens_are_shown_best_first(small, codebook, ranked: bool) -> None:
    random = np.random.default_rng(1).standard_normal(240)
    env = SemanticVecEnv(sessions(small), codebook, random if ranked else None)
    ranking = random if ranked else env.get_attr("catalogue")[0].item_embedding[:, 0]
    env.reset()
    core = env.semantic.batch.core
    for tokens in some_tokens(12):
        hidden = ~core.unexposed()
        slates = env.semantic.slates(tokens)
        for row in range(N):
            assert slates[row].tolist() == by_sorting(codebook, tokens[row], ranking, hidden[row])
        env.step(tokens)


@pytest.mark.parametrize("kind", [np.uint32, bool])
def test_items_may_be_ranked_by_counts_and_flags(small, codebook, kind: type) -> None:
    counts = np.random.default_rng(1).integers(4, size=240).astype(kind)
    counted = SemanticVecEnv(sessions(small), codebook, counts)
    expected = SemanticVecEnv(sessions(small), codebook, counts.astype(float))
    for env in (counted, expected):
        env.reset()
    for tokens in some_tokens(3):
        assert np.array_equal(counted.semantic.slates(tokens), expected.semantic.slates(tokens))


def test_shown_items_may_come_again_where_repeats_are_allowed(small, codebook) -> None:
    env = SemanticVecEnv(sessions(small, allow_repeats=True), codebook)
    env.reset()
    tokens = some_tokens(1)[0]
    first = env.semantic.slates(tokens)
    env.step(tokens)
    assert np.array_equal(env.semantic.slates(tokens), first)


def test_the_shells_show_the_same_slates(small, codebook) -> None:
    env = SemanticVecEnv(sessions(small), codebook)
    single = SemanticActionWrapper(
        gym.make("KuaiRec-Fair-v0", dataset=small, action_type="slate", max_len=8), codebook
    )
    assert single.action_space == env.action_space
    observation, _ = single.reset(seed=3)
    np.testing.assert_array_equal(env.reset()[0], observation)
    for tokens in some_tokens(8):
        batch, rewards, dones, _ = env.step(tokens)
        observation, reward, terminated, truncated, _ = single.step(tokens[0])
        assert rewards[0] == pytest.approx(reward, abs=1e-6)
        assert dones[0] == (terminated or truncated)
        if dones[0]:
            break
        np.testing.assert_array_equal(batch[0], observation)
    else:
        pytest.fail("The session did not end.")


def test_it_is_an_environment_as_sb3_wants_it(small, codebook) -> None:
    env = gym.make("KuaiRec-Fair-v0", dataset=small, action_type="slate")
    check_env(SemanticActionWrapper(env, codebook), warn=True)


@pytest.mark.parametrize("algorithm", [PPO, A2C])
def test_algorithms_for_multidiscrete_actions_learn_with_it(small, codebook, algorithm) -> None:
    def world(n: int, seed: int) -> SemanticVecEnv:
        options = {"dataset": small, "action_type": "slate", "max_len": 9}
        return SemanticVecEnv(make_vec_env("KuaiRec-Fair-v0", n, seed=seed, **options), codebook)

    def played(model) -> float:
        test = world(100, 77)
        popular = test.get_attr("catalogue")[0].popular
        return summarise(evaluate(model, test, 100), popular)["len"]

    size = {"batch_size": 128, "n_steps": 16} if algorithm is PPO else {"n_steps": 16}
    model = algorithm("MlpPolicy", world(16, 0), seed=0, learning_rate=3e-3, gamma=0.9, **size)
    before = played(model)
    model.learn(10_240)
    assert played(model) > before + 0.5


def test_training_that_was_stopped_goes_on_to_the_same_weights(small, codebook, tmp_path) -> None:
    def model(ids: Codebook = codebook) -> PPO:
        env = SemanticVecEnv(sessions(small), ids)
        return PPO("MlpPolicy", env, n_steps=8, batch_size=16, n_epochs=1, seed=0, device="cpu")

    whole = model().learn(6 * 8 * N)
    path = tmp_path / "checkpoint"
    model().learn(4 * 8 * N, callback=TrainingCheckpoint(path, every=3 * 8 * N))
    again = model()
    resume(path, again)
    again.learn(6 * 8 * N - again.num_timesteps, reset_num_timesteps=False)
    for one, two in zip(whole.policy.parameters(), again.policy.parameters(), strict=True):
        assert torch.equal(one, two)
    other = Codebook.fit(sessions(small, 1).catalogue.known, levels=2, codes=5, seed=1)
    with pytest.raises(CheckpointError, match="SemanticVecEnv"):
        resume(path, model(other))


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (np.zeros((N, 3), dtype=int), r"must have shape \(6, 2\), got \(6, 3\)"),
        (np.zeros((N, 2)), "must be integers"),
        (np.full((N, 2), 5), r"must lie in \[0, 5\), got 5"),
        (np.full((N, 2), -1), r"got -1"),
    ],
)
def test_other_actions_are_refused(small, codebook, tokens, message: str) -> None:
    env = SemanticVecEnv(sessions(small), codebook)
    env.reset()
    with pytest.raises(InvalidActionError, match=message):
        env.step(tokens)


def test_what_does_not_fit_is_refused(small, codebook) -> None:
    with pytest.raises(ConfigError, match='action_type="slate" beneath'):
        SemanticVecEnv(sessions(small, action_type="scorer"), codebook)
    with pytest.raises(ConfigError, match="ids of 4 items"):
        SemanticVecEnv(sessions(small), Codebook.fit(np.eye(4)))
    with pytest.raises(ConfigError, match="ranking must be"):
        SemanticVecEnv(sessions(small), codebook, np.zeros(3))
    for env_id, options in (
        ("CartPole-v1", {}),
        ("KuaiRec-Fair-v0", {"dataset": small, "action_type": "slate"}),
    ):
        venv = DummyVecEnv([lambda i=env_id, o=options: gym.make(i, **o)] * 2)
        with pytest.raises(ConfigError, match="environments of dsrm_agents.make_vec_env"):
            SemanticVecEnv(venv, codebook)
    env = SemanticVecEnv(sessions(small), codebook)
    env.reset()
    env.semantic.batch.core.state.exposed[:, 1:] = 255  # all but the first eight items
    with pytest.raises(ConfigError, match="Fewer than 10 items are left"):
        env.step(some_tokens(1)[0])
    with pytest.raises(ConfigError, match="environments of kuaisim_gym"):
        SemanticActionWrapper(gym.make("CartPole-v1"), codebook)
