"""Whatever torch's default dtype is: networks are float32, and the same to the last bit."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.noise import NormalActionNoise

import dsrm_agents
from dsrm_agents import (
    DSRM,
    HSRL,
    MOFIR,
    SAC4IR,
    HierarchicalPPO,
    HistoryExtractor,
    PreferenceVecEnv,
    Recommender,
    evaluate,
    fit_encoder,
    fit_purifier,
    load_purifier,
    make_vec_env,
)
from dsrm_agents.baselines.bcq import BCQ
from dsrm_agents.baselines.discrete_bcq import DiscreteBCQ
from dsrm_agents.baselines.dnair import DNaIR
from dsrm_agents.baselines.dorl import fit_dorl
from dsrm_agents.common.fitted import arrays_of
from dsrm_agents.dsrm.purifier import PURIFIERS, recipe_of
from dsrm_agents.encoders.states import StateEncoder
from kuaisim_gym.errors import ConfigError
from kuaisim_gym.precision import single_precision
from kuaisim_gym.tensors import digest_of
from tests.attack.calls import small_world

SLATES = {"action_type": "slate", "observation_type": "dict", "max_len": 3, "slate_size": 4}


@contextmanager
def default(dtype: torch.dtype) -> Iterator[None]:
    """A program that has set another default dtype."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
        assert torch.get_default_dtype() is dtype  # nothing of ours has changed it
    finally:
        torch.set_default_dtype(before)


@pytest.fixture(autouse=True)
def nothing_leaks() -> Iterator[None]:
    yield
    assert torch.get_default_dtype() is torch.float32


def alike(make: Callable[[], list]) -> None:
    """Asserts that a program gives the same arrays, bit for bit, under either default."""
    with default(torch.float32):
        expected = make()
    with default(torch.float64):
        arrays = make()
    assert len(arrays) == len(expected) > 0
    for array, other in zip(arrays, expected, strict=True):
        assert (array.dtype, array.shape) == (other.dtype, other.shape)
        assert digest_of([array]) == digest_of([other])


def weights(module: torch.nn.Module) -> list:
    return [array.copy() for array in arrays_of(module.state_dict()).values()]


def test_the_block_gives_the_default_back() -> None:
    with default(torch.float64):
        with pytest.raises(KeyError), single_precision():
            assert torch.zeros(1).dtype is torch.float32
            raise KeyError
        assert torch.zeros(1).dtype is torch.float64


@pytest.mark.parametrize("name", PURIFIERS)
def test_purifiers_are_fitted_saved_and_asked_alike(tmp_path, name: str) -> None:
    world = small_world(False)
    few = (
        {"updates": 2, "batch_size": 16} if "updates" in recipe_of(name).purifier.options() else {}
    )

    def make() -> list:
        purifier = fit_purifier(name, world, sessions=8, seed=1, progress=False, **few)
        purifier.save(tmp_path / "file")
        loaded = load_purifier(tmp_path / "file")
        states = np.random.default_rng(0).normal(size=(5, purifier.config.width))
        states = states.astype(np.float32)
        drawn = []
        if isinstance(purifier, DSRM):
            drawn = [
                purifier.draw(torch.from_numpy(states), generator=torch.Generator().manual_seed(2))
            ]
        return [
            *weights(purifier),
            *weights(loaded),
            purifier.denoise(states),
            loaded.denoise(states),
            *(one.detach().numpy() for one in drawn),
        ]

    alike(make)


@pytest.mark.parametrize("kind", ["gru", "mean", "attention"])
@pytest.mark.parametrize("loss", ["ce", "bod"])
def test_state_encoders_are_fitted_and_asked_alike(tmp_path, kind: str, loss: str) -> None:
    world = small_world(False)

    def make() -> list:
        encoder = fit_encoder(world, loss, kind, updates=2, batch_size=16, progress=False)
        encoder.save(tmp_path / "file")
        loaded = StateEncoder.load(tmp_path / "file")
        items, responses = np.array([[-1, 3, 5]]), np.array([[0, 1, 0.5]], np.float32)
        return [*weights(loaded), *(one.encode(items, responses) for one in (encoder, loaded))]

    alike(make)


def test_world_models_are_fitted_alike() -> None:
    def make() -> list:
        world = fit_dorl(small_world(False), progress=False).world
        return list(world.predict(np.arange(3), np.arange(3)))

    alike(make)


def small_bcq(env):
    policy = {"n_candidates": 10, "hidden": 8}
    return BCQ("BCQPolicy", env, seed=0, batch_size=16, policy_kwargs=policy)


OFF_POLICY = {"seed": 0, "buffer_size": 40, "learning_starts": 4, "batch_size": 4}
ON_POLICY = {"seed": 0, "n_steps": 4, "batch_size": 4}
AGENTS = {
    "hrl": lambda env: HierarchicalPPO("HierarchicalPolicy", env, **ON_POLICY),
    "hrl every second step": lambda env: HierarchicalPPO(
        "HierarchicalPolicy", env, policy_kwargs={"decision_period": 2}, **ON_POLICY
    ),
    "hsrl": lambda env: HSRL("HSRLPolicy", env, **ON_POLICY),
    "bcq": small_bcq,
    "discrete bcq": lambda env: DiscreteBCQ("DiscreteBCQPolicy", env, seed=0, batch_size=16),
    "sac4ir": lambda env: SAC4IR("SAC4IRPolicy", env, **OFF_POLICY),
    "dnair": lambda env: DNaIR("DNaIRPolicy", env, **OFF_POLICY),
    "mofir": lambda env: MOFIR(
        "MlpPolicy",
        env,
        action_noise=NormalActionNoise(np.zeros(3), np.full(3, 0.1)),
        policy_kwargs={"net_arch": [8]},
        **OFF_POLICY,
    ),
}


def made(seed: int, **options):
    return make_vec_env("KuaiRec-Fair-v0", 2, seed=seed, dataset=small_world(False), **options)


def env_of(name: str, seed: int = 1):
    if name == "mofir":
        options = {"action_type": "scorer", "max_len": 3}
        return PreferenceVecEnv(made(seed, **options))
    return made(seed, **SLATES)


@pytest.mark.parametrize("name", AGENTS)
def test_agents_learn_are_loaded_and_act_alike(tmp_path, name: str) -> None:
    def make() -> list:
        agent = AGENTS[name](env_of(name)).learn(32)
        agent.save(tmp_path / "agent.zip")
        loaded = type(agent).load(tmp_path / "agent.zip", env=env_of(name))
        actions = []
        for one in (agent, loaded):
            one.set_random_seed(3)
            seen = env_of(name, seed=5).reset()
            actions += [one.predict(seen, deterministic=flag)[0] for flag in (True, False)]
        sessions = evaluate(loaded, env_of(name), 4)
        return [*weights(agent.policy), *weights(loaded.policy), *actions, sessions.slates]

    alike(make)


def test_agents_made_before_the_default_changes_go_on_alike() -> None:
    agents = [AGENTS[name](env_of(name)) for name in ("hrl", "hsrl", "sac4ir", "bcq")]
    before = [weights(agent.policy) for agent in agents]
    with default(torch.float64):
        for agent, start in zip(agents, before, strict=True):
            agent.learn(16)
            after = weights(agent.policy)
            assert [one.dtype for one in after] == [one.dtype for one in start]
            assert digest_of(after) != digest_of(start)


def test_recommendations_are_alike() -> None:
    agent = AGENTS["hrl"](env_of("hrl"))
    world = small_world(False)

    def make() -> list:
        recommender = Recommender(agent, None, world)
        pairs = recommender.recommend(world.user_ids[0].item(), longtail_share=0.5)
        return [np.array(pairs)]

    alike(make)


@pytest.mark.parametrize("policy", ["HierarchicalPolicy", "HSRLPolicy"])
def test_networks_in_algorithms_of_others_are_refused_by_name(policy: str) -> None:
    env, kind = env_of("hrl"), getattr(dsrm_agents, policy)
    catalogue = env.batch.catalogue
    with (
        default(torch.float64),
        pytest.raises(ConfigError, match=f"{policy} is a network of float32.*torch.float64"),
    ):
        PPO(kind, env, policy_kwargs={"catalogue": catalogue})
    options = {"observation_type": "history", "action_type": "scorer"}
    histories = made(1, **options)
    extractor = {"features_extractor_class": HistoryExtractor}
    with (
        default(torch.float64),
        pytest.raises(ConfigError, match="HistoryExtractor is a network of float32"),
    ):
        PPO("MultiInputPolicy", histories, policy_kwargs=extractor)


def test_sequential_worlds_answer_alike() -> None:
    from kuaisim_gym.simulator.sequential import SequentialConfig, fit_sequential

    world = small_world(True)
    config = SequentialConfig(epochs=1, batch_events=256)

    def make() -> list:
        model = fit_sequential(
            world.log,
            world.log,
            world.n_users,
            len(world.item_ids),
            world.user_features,
            world.item_features,
            config=config,
            progress=False,
        )
        sessions = model.begin(2)
        sessions.reset(np.ones(2, dtype=bool), np.array([0, 5]))
        slates = np.arange(8).reshape(2, 4)
        first = sessions.feedback(slates)
        sessions.observe(slates, first)
        sessions.reset(np.array([True, False]), np.array([7]))
        return [first, sessions.feedback(slates + 8)]

    alike(make)
