from __future__ import annotations

import numpy as np
import pytest

from dsrm_agents import PurifyVecEnv, evaluate, fit_purifier, make_vec_env
from dsrm_agents.baselines.reference import make_reference
from dsrm_agents.baselines.similarity import SimilarityPolicy
from kuaisim_gym.errors import ConfigError

OPTIONS = {"observation_type": "dict", "action_type": "slate", "split": "test", "seed": 3}


def test_without_similarity_it_is_quality_with_a_quota(small) -> None:
    slates = []
    for make in (
        lambda batch: SimilarityPolicy(batch, 0.0),
        lambda batch: make_reference("quality+quota", batch),
    ):
        env = make_vec_env("KuaiRec-Fair-v0", 20, dataset=small, **OPTIONS)
        slates.append(evaluate(make(env.batch), env, 20).slates)
    np.testing.assert_array_equal(*slates)


def test_scores_by_hand(small) -> None:
    env = make_vec_env("KuaiRec-Fair-v0", 4, dataset=small, **OPTIONS)
    observation, alpha = env.reset(), 0.7
    slates, _ = SimilarityPolicy(env.batch, alpha).predict(observation)
    embedding, popular = env.batch.catalogue.item_embedding, env.batch.catalogue.popular
    for state, slate in zip(observation["state"], slates, strict=True):
        score = embedding[:, 0] + alpha * embedding[:, 1:] @ state[1:9] / np.sqrt(8)
        for group in (popular, ~popular):
            best = np.flatnonzero(group)[np.argsort(-score[group])[:5]]
            assert set(best) <= set(slate)
    env.step(slates)
    again, _ = SimilarityPolicy(env.batch, alpha).predict(observation)
    assert not any(set(one) & set(two) for one, two in zip(slates, again, strict=True))


def test_it_sees_what_the_purifier_shows(small) -> None:
    env = make_vec_env("KuaiRec-Fair-v0", 4, dataset=small, **OPTIONS)
    policy = SimilarityPolicy(env.batch, 5.0)
    blank = PurifyVecEnv(env, fit_purifier("blank", small)).reset()
    quality = SimilarityPolicy(env.batch, 0.0)
    np.testing.assert_array_equal(policy.predict(blank)[0], quality.predict(blank)[0])


def test_other_sessions_and_weights_are_refused(small) -> None:
    env = make_vec_env("KuaiRec-Fair-v0", 2, dataset=small)
    with pytest.raises(ConfigError, match="'state' and 'continuous'"):
        SimilarityPolicy(env.batch, 0.1)
    env = make_vec_env("KuaiRec-Fair-v0", 2, dataset=small, **OPTIONS)
    with pytest.raises(ConfigError, match="alpha"):
        SimilarityPolicy(env.batch, -0.1)
