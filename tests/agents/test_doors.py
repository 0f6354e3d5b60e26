"""Wrong objects at the doors: errors say what was expected, what came, and what to do."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import gymnasium as gym
import numpy as np
import pytest
from stable_baselines3 import PPO

from dsrm_agents import (
    EncodedVecEnv,
    HierarchicalPPO,
    PurifyObservation,
    PurifyVecEnv,
    PurifyVectorObservation,
    distil,
    evaluate,
    fit_dorl,
    fit_dsrm,
    fit_encoder,
    fit_purifier,
    load_purifier,
    make_vec_env,
)
from kuaisim_gym import load_dataset
from kuaisim_gym.data import write_csv
from kuaisim_gym.errors import (
    CheckpointError,
    ConfigError,
    DatasetNotFoundError,
    UnexpectedOptionError,
)

ENV = "KuaiRec-Fair-v0"
PARTS = {"preference": "parts"}


@pytest.fixture(scope="module")
def other(small):
    """A dataset of the same users and items, and other rows."""
    return dataclasses.replace(small, log=small.log.take(np.arange(len(small.log)) % 9 > 0))


@pytest.mark.parametrize("module", ["torch", "stable_baselines3"])
def test_the_agents_without_their_extra_name_it(module: str) -> None:
    code = f"import sys\nsys.modules[{module!r}] = None\nimport dsrm_agents"
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last == (
        f"ImportError: dsrm_agents needs {module}, which is not installed: "
        "pip install 'kuaisim-gym[agents]'."
    )


@pytest.mark.parametrize(
    "make", [gym.make, gym.make_vec, make_vec_env], ids=["make", "make_vec", "make_vec_env"]
)
def test_an_unknown_option_is_unexpected_in_pythons_words(small, make) -> None:
    with pytest.raises(
        TypeError, match="got an unexpected keyword argument 'frameskip'"
    ) as refused:
        make(ENV, dataset=small, frameskip=1)
    assert isinstance(refused.value, UnexpectedOptionError) and isinstance(
        refused.value, ConfigError
    )
    assert "An environment option must be one of" in str(refused.value)
    with pytest.raises(ConfigError, match="got 'maxlen'. Did you mean 'max_len'?"):
        make(ENV, dataset=small, maxlen=3)
    with pytest.raises(ConfigError) as refused:  # a value, not a name
        make(ENV, dataset=small, max_len="long")
    assert not isinstance(refused.value, TypeError)


def test_the_number_of_sessions_by_the_other_name(small) -> None:
    for make, wrong in ((make_vec_env, "num_envs"), (gym.make_vec, "n_envs"), (gym.make, "n_envs")):
        with pytest.raises(ConfigError, match=r"n_envs= of make_vec_env, and num_envs= of gym"):
            make(ENV, dataset=small, **{wrong: 4})


def test_fits_need_a_dataset(small, dsrm) -> None:
    for fit in (
        fit_dsrm,
        fit_encoder,
        fit_dorl,
        lambda dataset: fit_purifier("mlp", dataset),
        lambda dataset: distil(dsrm, dataset),
    ):
        with pytest.raises(ConfigError, match=r"needs a Dataset, got 'kuairec': give what .*load_"):
            fit("kuairec")
        with pytest.raises(ConfigError, match="needs a Dataset, got a KuaiVecEnv"):
            fit(make_vec_env(ENV, dataset=small))
    with pytest.raises(ConfigError, match="the name of a purifier first, got a Dataset: one of"):
        fit_purifier(small, "mlp")


def test_evaluate_needs_an_agent_and_a_vec_env(small) -> None:
    env = make_vec_env(ENV, 2, dataset=small)
    agent = PPO("MlpPolicy", env)
    for wrong in (gym.make(ENV, dataset=small), gym.make_vec(ENV, num_envs=2, dataset=small)):
        with pytest.raises(ConfigError, match=r"needs a Stable-Baselines3 VecEnv, got .*make_vec_"):
            evaluate(agent, wrong, 2)
    with pytest.raises(ConfigError, match=r"an agent with a method predict\(\), .* got KuaiVecEnv"):
        evaluate(env, agent, 2)


def test_files_of_another_dataset_are_named(small, small_rand, tmp_path) -> None:
    rec, rand = tmp_path / "rec", tmp_path / "rand"
    write_csv(small, rec)
    write_csv(small_rand, rand)
    with pytest.raises(DatasetNotFoundError, match=r"holds the files of kuairand, not of kuairec"):
        load_dataset("kuairec", rand)
    with pytest.raises(DatasetNotFoundError, match=r"load them with load_dataset\('kuairec', path"):
        gym.make("KuaiRand-Fair-v0", dataset=rec)
    (tmp_path / "nothing").mkdir()
    with pytest.raises(DatasetNotFoundError, match="^Looked in"):
        load_dataset("kuairec", tmp_path / "nothing")


def test_a_purifier_of_another_dataset_is_refused_by_names(small, other, dsrm, tmp_path) -> None:
    def wrapped(**options):
        return PurifyVecEnv(make_vec_env(ENV, 2, dataset=other, **PARTS), dsrm, **options)

    with pytest.raises(CheckpointError) as refused:
        wrapped()
    assert small.description in str(refused.value) and other.description in str(refused.value)
    assert small.fingerprint not in str(refused.value)
    assert wrapped(strict=False).reset().shape == (2, dsrm.config.dim + 4)
    dsrm.save(tmp_path / "dsrm.safetensors")
    assert load_purifier(tmp_path / "dsrm.safetensors").dataset == small.description
    with pytest.raises(ConfigError, match="fitted on kuairec .*; this is kuairec"):
        distil(dsrm, other)


def test_an_agent_of_another_dataset_is_refused_unless_one_insists(small, other, tmp_path) -> None:
    agent = PPO("MlpPolicy", make_vec_env(ENV, 2, dataset=small))
    agent.save(tmp_path / "agent.zip")
    env = make_vec_env(ENV, 2, "test", dataset=other, max_len=5)
    for one in (agent, PPO.load(tmp_path / "agent.zip")):
        with pytest.raises(CheckpointError, match=r"PPO was trained on kuairec .*strict=False"):
            evaluate(one, env, 2)
        assert len(evaluate(one, env, 2, strict=False).length) == 2
        own = make_vec_env(ENV, 2, "test", dataset=small, max_len=5)
        assert len(evaluate(one, own, 2).length) == 2
    options = {"observation_type": "dict", "action_type": "slate"}
    hierarchical = HierarchicalPPO(
        "HierarchicalPolicy", make_vec_env(ENV, 2, dataset=small, **options)
    )
    with pytest.raises(CheckpointError, match="was built for other items, .* of kuairec"):
        hierarchical.set_env(make_vec_env(ENV, 2, dataset=other, **options))


def test_an_agent_without_its_purifier_is_refused_unless_one_insists(
    small, dsrm, quick_fit, tmp_path
) -> None:
    """Identity gives the very shape of the bare observations."""
    bare = make_vec_env(ENV, 2, dataset=small, max_len=5)
    first, second = quick_fit("identity", small), quick_fit("vae", small, reads="pooled")
    agent = PPO("MlpPolicy", PurifyVecEnv(bare, first))
    agent.save(tmp_path / "agent.zip")
    for one in (agent, PPO.load(tmp_path / "agent.zip")):
        assert len(evaluate(one, PurifyVecEnv(bare, first), 2).length) == 2
        with pytest.raises(ConfigError, match=r"behind the purifier 'identity', .* without purif"):
            evaluate(one, bare, 2)
        with pytest.raises(ConfigError, match="these observations are behind the purifier 'vae'"):
            evaluate(one, PurifyVecEnv(bare, second), 2)
        assert len(evaluate(one, bare, 2, strict=False).length) == 2
    with pytest.raises(
        ConfigError, match="trained without purifier, .* behind the purifier 'ident"
    ):
        evaluate(PPO("MlpPolicy", bare), PurifyVecEnv(bare, first), 2)


def test_an_agent_without_its_encoder_is_refused(small) -> None:
    options = {"observation_type": "dict", "action_type": "slate"}
    bare = make_vec_env(ENV, 2, dataset=small, max_len=5, **options)
    encoded = EncodedVecEnv(bare, fit_encoder(small, "ce", updates=1, batch_size=8))
    agent = HierarchicalPPO("HierarchicalPolicy", encoded)
    assert len(evaluate(agent, encoded, 2).length) == 2
    with pytest.raises(ConfigError, match="behind the encoder 'StateEncoder', .* without encoder"):
        evaluate(agent, bare, 2)


def test_observations_of_another_shape_are_refused(small) -> None:
    agent = PPO("MlpPolicy", make_vec_env(ENV, 2, dataset=small))
    with pytest.raises(ConfigError, match=r"trained on observations Box\(13,\), .* shows Box\(44,"):
        evaluate(agent, make_vec_env(ENV, 2, dataset=small, **PARTS), 2)


def test_a_purifier_that_leaves_the_space_is_cut_where_one_insists(small) -> None:
    class Wild:
        reads, fingerprint = "pooled", small.fingerprint

        def denoise(self, states):
            return np.full(states.shape, -99.0, dtype=np.float32)

    single = gym.make(ENV, dataset=small)
    several = gym.make_vec(ENV, num_envs=2, dataset=small)
    sb3 = make_vec_env(ENV, 2, dataset=small)
    for wrapper, env in (
        (PurifyObservation, single), (PurifyVectorObservation, several), (PurifyVecEnv, sb3)
    ):  # fmt: skip
        with pytest.raises(ConfigError, match="got -99.0: clip them, or .* strict=False"):
            wrapper(env, Wild()).reset()
        shown = wrapper(env, Wild(), strict=False).reset()
        observation = shown[0] if isinstance(shown, tuple) else shown
        assert (observation[..., :-4] == -10.0).all()
        assert wrapper(env, Wild(), strict=False).observation_space.contains(observation) or (
            wrapper is PurifyVecEnv
        )


def test_evaluate_refuses_what_it_cannot_play(small) -> None:
    from stable_baselines3.common.vec_env import DummyVecEnv

    env = make_vec_env(ENV, 2, seed=1, dataset=small)
    agent = PPO("MlpPolicy", env, n_steps=32, batch_size=64, seed=1)
    foreign = DummyVecEnv([lambda: gym.make(ENV, dataset=small)])
    for arguments, message in (
        ((PPO, env, 2), "got the class PPO"),
        ((agent, foreign, 1), "records its sessions, got DummyVecEnv"),
        ((agent, env, "2"), "sessions must be an integer"),
        ((agent, env, 2.0), "sessions must be an integer"),
        ((agent, make_vec_env(ENV, 2, dataset=small, action_type="scorer"), 2), "to act in Box"),
    ):
        with pytest.raises(ConfigError, match=message):
            evaluate(*arguments)
