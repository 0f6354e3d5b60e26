"""Item scores of trained agents: the order that their slates have when nothing else decides."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from stable_baselines3 import A2C, SAC

from dsrm_agents import HSRL, HierarchicalPPO, ScorerVecEnv, make_vec_env
from dsrm_agents.common.item_scores import item_scores, scores_items
from kuaisim_gym.errors import ConfigError

ENV = "KuaiRec-Fair-v0"
DICT = {"observation_type": "dict", "action_type": "slate"}


def best(scores: np.ndarray, count: int) -> np.ndarray:
    return np.argsort(-scores, axis=1, kind="stable")[:, :count]


def disturbed(model, spread: float = 0.1):
    """The model with other weights, so that it ranks by more than its start."""
    torch.manual_seed(2)
    with torch.no_grad():
        for parameter in model.policy.parameters():
            parameter += spread * torch.randn_like(parameter)
    return model


def test_a_worker_without_bounds_shows_the_best_by_its_scores(small) -> None:
    env = make_vec_env(ENV, 6, "train", 3, dataset=small, **DICT)
    options = {"worker": "unconstrained"}
    model = disturbed(HierarchicalPPO("HierarchicalPolicy", env, policy_kwargs=options, seed=1))
    observation = env.reset()
    scores = item_scores(model, observation)
    assert scores.shape == (6, small.n_items)
    slates, _ = model.predict(observation, deterministic=True)
    np.testing.assert_array_equal(best(scores, 10), slates)
    # The same scores as of items that the policy is told about from outside.
    obs, _ = model.policy.obs_to_tensor(observation)
    described = torch.as_tensor(env.catalogue.item_embedding)
    with torch.no_grad():
        told = model.policy.score_items(obs, described, env.catalogue.exposures)
    np.testing.assert_allclose(scores, told.numpy(), rtol=1e-4, atol=1e-5)


def test_paths_of_semantic_ids_are_a_distribution_over_the_items(small) -> None:
    env = make_vec_env(ENV, 5, "train", 3, dataset=small, slate_size=1, window=10, **DICT)
    model = disturbed(HSRL("HSRLPolicy", env, seed=1))
    observation = env.reset()
    scores = item_scores(model, observation)
    np.testing.assert_allclose(np.exp(scores).sum(axis=1), 1.0, rtol=1e-4)
    obs, _ = model.policy.obs_to_tensor(observation)
    items = torch.tensor([[3], [50], [0], [120], [239]])
    with torch.no_grad():  # a slate of one item has the item's probability
        log_prob = model.policy.evaluate_actions(obs, items)[1]
    of_items = scores[np.arange(5), items[:, 0].numpy()]
    np.testing.assert_allclose(of_items, log_prob.numpy(), rtol=1e-4)


@pytest.mark.parametrize("quota", [None, False])
def test_a_linear_scorer_shows_the_best_by_its_scores(small, quota: bool | None) -> None:
    kind = "scorer" if quota is None else "slate"
    env = make_vec_env(ENV, 6, "train", 3, dataset=small, action_type=kind)
    wrapped = env if quota is None else ScorerVecEnv(env, quota)
    model = disturbed(A2C("MlpPolicy", wrapped, seed=1))
    observation = wrapped.reset()
    scores = item_scores(model, observation)
    wrapped.step(model.predict(observation, deterministic=True)[0])
    np.testing.assert_array_equal(best(scores, 10), env.batch.core.state.slates[:, 0])


def test_what_scores_no_items_says_so(small_rand) -> None:
    env = make_vec_env("KuaiRand-Fair-v0", 2, "train", 3, dataset=small_rand, action_type="fusion")
    model = SAC("MlpPolicy", env, buffer_size=10, seed=1)  # its actions weigh behaviours
    assert not scores_items(model)
    with pytest.raises(ConfigError, match="SAC with SACPolicy scores no items"):
        item_scores(model, env.reset())
