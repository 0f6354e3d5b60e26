"""Observations that Stable-Baselines3's VecNormalize standardises, item ids among them."""

from __future__ import annotations

import numpy as np
import pytest
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import VecNormalize

from dsrm_agents import (
    BCQ,
    HSRL,
    SAC4IR,
    DiscreteBCQ,
    DNaIR,
    EncodedVecEnv,
    HierarchicalPPO,
    evaluate,
    fit_encoder,
    make_vec_env,
)
from dsrm_agents.common.catalogue import CatalogueAlgorithm
from kuaisim_gym.errors import ConfigError

SLATES = {"observation_type": "dict", "action_type": "slate", "max_len": 5, "slate_size": 4}
CURE = r"norm_obs_keys=\['state'\], norm_reward=False"
KEPT = {"norm_obs_keys": ["state"], "norm_reward": False}
AGENTS = {
    "hierarchical": lambda env: HierarchicalPPO("HierarchicalPolicy", env, n_steps=8, batch_size=8),
    "semantic ids": lambda env: HSRL("HSRLPolicy", env, n_steps=8, batch_size=8),
    "dnair": lambda env: DNaIR("DNaIRPolicy", env, learning_starts=8, batch_size=8),
    "sac4ir": lambda env: SAC4IR("SAC4IRPolicy", env, learning_starts=8, batch_size=8),
}


def made(small, n: int = 3, **options):
    return make_vec_env("KuaiRec-Fair-v0", n, seed=1, dataset=small, **(SLATES | options))


def test_vec_normalize_changes_ids_unless_it_is_told(small) -> None:
    """Stable-Baselines3 2.9.2, common/vec_env/vec_normalize.py: by default all boxes of a dict."""
    changed = VecNormalize(made(small))
    changed.reset()
    observation, *_ = changed.step(np.tile(np.arange(4), (3, 1)))
    assert observation["exposed"].dtype == np.float32
    kept = VecNormalize(made(small), **KEPT)
    kept.reset()
    observation, *_ = kept.step(np.tile(np.arange(4), (3, 1)))
    assert observation["exposed"][:, :4].tolist() == [[0, 1, 2, 3]] * 3


@pytest.mark.parametrize("name", AGENTS)
def test_agents_that_read_ids_say_the_cure_and_it_works(small, name: str) -> None:
    """When they are made, when they get another environment, and when they are only asked."""
    make = AGENTS[name]
    message = rf"reads item ids and answers, but VecNormalize changes exposed, responses\. .*{CURE}"
    with pytest.raises(ConfigError, match=message):
        make(VecNormalize(made(small)))
    with pytest.raises(ConfigError, match=CURE):
        make(VecNormalize(made(small), norm_obs_keys=["state", "exposed"]))
    agent = make(VecNormalize(made(small), **KEPT))
    agent.learn(24)
    with pytest.raises(ConfigError, match=message):
        agent.set_env(VecNormalize(made(small)))
    with pytest.raises(ConfigError, match=f"'exposed' must be whole numbers.*{CURE}"):
        agent.predict(VecNormalize(made(small)).reset())
    with pytest.raises(ConfigError, match=CURE):
        evaluate(agent, VecNormalize(made(small), training=False), sessions=3, strict=False)
    evaluate(agent, VecNormalize(made(small), training=False, **KEPT), sessions=3, strict=False)


def test_all_algorithms_of_catalogues_are_tried() -> None:
    """Those for slates; offline ones read states alone."""

    def below(cls: type) -> set[type]:
        return {cls}.union(*map(below, cls.__subclasses__()))

    assert BCQ and DiscreteBCQ  # imported: classes are known from then on
    online = {"HierarchicalPPO", "HSRL", "DNaIR", "SAC4IR"}
    bases = {"CatalogueAlgorithm", "SlatePPO", "SlateOffPolicyAlgorithm"}
    offline = {"OfflineAlgorithm", "BCQ", "DiscreteBCQ"}
    ours = {c.__name__ for c in below(CatalogueAlgorithm) if c.__module__.startswith("dsrm")}
    assert ours == online | bases | offline
    assert len(AGENTS) == len(online)


def test_rewards_that_are_changed_are_told_the_cure(small) -> None:
    agent = AGENTS["semantic ids"](VecNormalize(made(small), norm_obs_keys=["state"]))
    with pytest.raises(ConfigError, match=f"a reward that is their mean.*{CURE}"):
        agent.learn(24)


def test_encoders_and_histories_say_theirs(small) -> None:
    encoder = fit_encoder(small, updates=1, batch_size=8, progress=False)
    with pytest.raises(ConfigError, match=f"A state encoder reads item ids.*{CURE}"):
        EncodedVecEnv(VecNormalize(made(small)), encoder)
    VecNormalize(EncodedVecEnv(made(small), encoder), **KEPT).reset()


def test_plain_agents_take_normalised_states(small) -> None:
    env = VecNormalize(made(small, observation_type="state", action_type="shares"))
    PPO("MlpPolicy", env, n_steps=8, batch_size=8).learn(24)
