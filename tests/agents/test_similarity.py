from __future__ import annotations

import numpy as np
import pytest

from dsrm_agents import PurifyVecEnv, evaluate, fit_purifier, make_vec_env
from dsrm_agents.baselines.bands import InBand
from dsrm_agents.baselines.reference import make_reference
from dsrm_agents.baselines.similarity import SimilarityPolicy
from kuaisim_gym.errors import ConfigError, NoPreferenceError

OPTIONS = {"observation_type": "dict", "action_type": "slate", "split": "test", "seed": 3}


def make(small, n: int = 4, **options):
    return make_vec_env("KuaiRec-Fair-v0", n, dataset=small, **{**OPTIONS, **options})


def test_without_similarity_it_is_quality_with_a_quota(small) -> None:
    slates = []
    for policy in (
        lambda batch: SimilarityPolicy(batch, 0.0),
        lambda batch: make_reference("quality+quota", batch),
    ):
        env = make(small, 20)
        slates.append(evaluate(policy(env.batch), env, 20).slates)
    np.testing.assert_array_equal(*slates)


@pytest.mark.parametrize("observation_type", ["state", "dict"])
@pytest.mark.parametrize(("suffix", "options"), [("+quota", ()), ("+band", (InBand,))])
def test_with_beliefs_and_a_weight_of_one_it_is_the_filter(
    small, observation_type: str, suffix: str, options
) -> None:
    env = make(small, 20, observation_type=observation_type, preference="belief")
    belief = evaluate(SimilarityPolicy(env.batch, 1.0, *options), env, 20)
    env = make(small, 20)
    row = evaluate(make_reference("filter" + suffix, env.batch), env, 20)
    # Near-ties may fall the other way: the scores are rounded after another sum.
    assert (np.sort(belief.slates[:, 0]) == np.sort(row.slates[:, 0])).mean() > 0.99
    np.testing.assert_allclose(belief.length, row.length, atol=1)
    assert belief.length.mean() == pytest.approx(row.length.mean(), abs=0.06)


def test_scores_by_hand(small) -> None:
    env = make(small)
    observation, weight = env.reset(), 0.7
    slates, _ = SimilarityPolicy(env.batch, weight).predict(observation)
    embedding, popular = env.batch.catalogue.item_embedding, env.batch.catalogue.popular
    d = embedding.shape[1]
    for state, slate in zip(observation["state"], slates, strict=True):
        score = embedding[:, 0] + weight * embedding[:, 1:] @ state[1:d]
        for group in (popular, ~popular):
            best = np.flatnonzero(group)[np.argsort(-score[group])[:5]]
            assert set(best) <= set(slate)
    env.step(slates)
    again, _ = SimilarityPolicy(env.batch, weight).predict(observation)
    assert not any(set(one) & set(two) for one, two in zip(slates, again, strict=True))


def test_it_sees_what_the_purifier_shows(small) -> None:
    env = make(small)
    policy = SimilarityPolicy(env.batch, 5.0)
    blank = PurifyVecEnv(env, fit_purifier("blank", small)).reset()
    quality = SimilarityPolicy(env.batch, 0.0)
    np.testing.assert_array_equal(policy.predict(blank)[0], quality.predict(blank)[0])


def test_other_sessions_and_weights_are_refused(small) -> None:
    env = make_vec_env("KuaiRec-Fair-v0", 2, dataset=small)
    with pytest.raises(ConfigError, match="needs action_type=\"slate\", got 'shares'"):
        SimilarityPolicy(env.batch, 0.1)
    with pytest.raises(NoPreferenceError, match="history"):
        SimilarityPolicy(make(small, observation_type="history").batch, 0.1)
    for weight in (-0.1, float("nan"), float("inf")):
        with pytest.raises(ConfigError, match="weight must be"):
            SimilarityPolicy(make(small).batch, weight)
