"""Agents by name: how each is built, what it observes, and its hyper-parameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from numpy.typing import NDArray
from stable_baselines3 import A2C, PPO, TD3
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.noise import NormalActionNoise
from stable_baselines3.common.vec_env import VecEnv

from dsrm_agents import HierarchicalPPO, PurifyVecEnv, fit_purifier
from dsrm_agents.baselines.bcq import BCQ
from dsrm_agents.baselines.dnair import DNaIR
from dsrm_agents.baselines.dorl import PenalisedVecEnv, category_field, fit_dorl
from dsrm_agents.baselines.mofir import MOFIR, PreferenceVecEnv
from dsrm_agents.baselines.reference import REFERENCES
from dsrm_agents.baselines.sac4ir import SAC4IR
from dsrm_agents.baselines.scorer import ScorerVecEnv
from dsrm_agents.common.quality import unbiased_quality
from dsrm_agents.dsrm.purifier import Purifier
from dsrm_agents.encoders.pretrain import fit_encoder
from dsrm_agents.encoders.states import StateEncoder
from dsrm_agents.encoders.wrapper import EncodedVecEnv
from dsrm_agents.hsrl.codebook import Codebook
from dsrm_agents.hsrl.hsrl import HSRL
from kuaisim_gym import ENVIRONMENTS
from kuaisim_gym.data import Dataset

SCORED = {"action_type": "slate"}  # a ScorerVecEnv makes the slates
SLATES = {"observation_type": "dict", "action_type": "slate"}
FAIRLY = ("fairness_coef",)
ENCODER = "attention"  # of histories; a GRU predicts as well, and takes twice as long

Options = Mapping[str, Any]
Fit = Callable[[Dataset, int, bool], Any]
Wear = Callable[[VecEnv, Any, Options, bool], VecEnv]


def behind(env: VecEnv, purifier: Purifier | None) -> VecEnv:
    """The environment behind a purifier, if there is one."""
    return env if purifier is None else PurifyVecEnv(env, purifier)


def _purified(env: VecEnv, fitted: Any, options: Options, training: bool) -> VecEnv:
    return behind(env, fitted)


@dataclass(frozen=True)
class Learner:
    """An agent that is trained.

    Attributes:
        build: Makes the untrained model of an environment, its hyper-parameters and a seed.
        options: Options of the environment that it needs.
        purify: Name of the purifier that its observations go through, or ``None`` for the raw
            state.
        fit: What it fits to the log before it trains, where that is no purifier, of the data, a
            seed, and whether to show progress.
        wear: The environment as the agent meets it, of the bare one, what was fitted,
            hyper-parameters, and whether it is for training.
        worn: Which hyper-parameters are ``wear``'s; the others are ``build``'s.
        offline: Whether it learns from the log, and plays no training sessions.
    """

    build: Callable[[VecEnv, dict[str, Any], int], BaseAlgorithm]
    options: dict[str, str] = field(default_factory=dict)
    purify: str | None = None
    fit: Fit | None = None
    wear: Wear = _purified
    worn: tuple[str, ...] = ()
    offline: bool = False

    def fitted(self, dataset: Dataset, seed: int, progress: bool) -> Any:
        """Fits what the agent wears: a purifier, an encoder, a world model, or ``None``."""
        if self.fit is not None:
            return self.fit(dataset, seed, progress)
        if self.purify is None:
            return None
        return fit_purifier(self.purify, dataset, seed=seed, progress=progress)

    def play_in(self, env: VecEnv, fitted: Any, options: Options) -> VecEnv:
        """The environment as the trained agent meets it."""
        return self.wear(env, fitted, options, False)


def _scored(quota: bool) -> Wear:
    def wear(env: VecEnv, fitted: Any, options: Options, training: bool) -> VecEnv:
        coef = options["fairness_coef"] if training else 0.0
        return ScorerVecEnv(behind(env, fitted), quota, coef)

    return wear


def _preferring(env: VecEnv, fitted: Any, options: Options, training: bool) -> VecEnv:
    return PreferenceVecEnv(behind(env, fitted), None if training else options["preference"])


def _penalised(env: VecEnv, fitted: Any, options: Options, training: bool) -> VecEnv:
    if not training:
        return env
    return PenalisedVecEnv(env, fitted, options["uncertainty_coef"], options["entropy_coef"])


def _encoder(loss: str) -> Fit:
    def fit(dataset: Dataset, seed: int, progress: bool) -> StateEncoder:
        return fit_encoder(dataset, loss, ENCODER, seed=seed, progress=progress)

    return fit


def _encoded(env: VecEnv, fitted: Any, options: Options, training: bool) -> VecEnv:
    return EncodedVecEnv(env, fitted)


def _sb3(algorithm: type[BaseAlgorithm], policy: str) -> Callable[..., BaseAlgorithm]:
    def build(env: VecEnv, hyperparams: dict[str, Any], seed: int) -> BaseAlgorithm:
        return algorithm(policy, env, seed=seed, device="cpu", **hyperparams)

    return build


def _exploring(algorithm: type[TD3]) -> Callable[..., BaseAlgorithm]:
    """A deterministic policy that explores with Gaussian noise."""

    def build(env: VecEnv, hyperparams: dict[str, Any], seed: int) -> BaseAlgorithm:
        options = dict(hyperparams)
        size = env.action_space.shape
        noise = NormalActionNoise(np.zeros(size), np.full(size, options.pop("noise_std")))
        return algorithm("MlpPolicy", env, seed=seed, device="cpu", action_noise=noise, **options)

    return build


def _dnair(env: VecEnv, hyperparams: dict[str, Any], seed: int) -> DNaIR:
    options = dict(hyperparams)
    generator = {"similar": options.pop("similar")}
    return DNaIR("DNaIRPolicy", env, seed=seed, device="cpu", policy_kwargs=generator, **options)


def _scorer(env: VecEnv, hyperparams: dict[str, Any], seed: int) -> PPO:
    """PPO over scorers that starts at the ranking by quality, where the hierarchical worker starts.

    But for a little similarity: a scorer that answers to the state has none before it has learned.
    """
    options = dict(hyperparams)
    start = {"log_std_init": options.pop("log_std_init")}
    agent = PPO("MlpPolicy", env, seed=seed, device="cpu", policy_kwargs=start, **options)
    with torch.no_grad():
        agent.policy.action_net.bias[0] = 0.5  # of the box: room to grow and to shrink
    return agent


def _quality(env: VecEnv) -> NDArray[np.floating]:
    """(n_items,) item qualities from randomised rows, where the data have them."""
    data, catalogue = env.get_attr("dataset")[0].training, env.get_attr("catalogue")[0]
    return unbiased_quality(data, catalogue.item_embedding[:, 0])


def _hierarchical(env: VecEnv, hyperparams: dict[str, Any], seed: int) -> HierarchicalPPO:
    """The agent whose items are purified as its states are, where the data allow it."""
    return HierarchicalPPO(
        "HierarchicalPolicy",
        env,
        seed=seed,
        device="cpu",
        policy_kwargs={"item_quality": _quality(env)},
        **hyperparams,
    )


def _hsrl(unbiased: bool = False, **changed: Any) -> Callable[..., BaseAlgorithm]:
    """HSRL, its items purified as its states are, or with an option changed."""

    def build(env: VecEnv, hyperparams: dict[str, Any], seed: int) -> HSRL:
        options = hyperparams | changed
        known = {name: options.pop(name) for name in ("fairness", "context")}
        levels, codes = options.pop("levels"), options.pop("codes")
        known["codebook"] = Codebook.fit(env.get_attr("catalogue")[0].known, levels, codes)
        if unbiased:
            known["item_quality"] = _quality(env)
        return HSRL("HSRLPolicy", env, seed=seed, device="cpu", policy_kwargs=known, **options)

    return build


_hrl = _sb3(HierarchicalPPO, "HierarchicalPolicy")

LEARNERS: dict[str, Learner] = {
    "a2c": Learner(_sb3(A2C, "MlpPolicy")),
    "ppo": Learner(_sb3(PPO, "MlpPolicy")),
    "ppo+dsrm": Learner(_sb3(PPO, "MlpPolicy"), purify="dsrm"),
    "ppo+blank": Learner(_sb3(PPO, "MlpPolicy"), purify="blank"),
    "ppo+quota": Learner(_scorer, SCORED, wear=_scored(quota=True), worn=FAIRLY),
    "flat": Learner(_scorer, SCORED, "dsrm", wear=_scored(quota=False), worn=FAIRLY),
    "flat+quota": Learner(_scorer, SCORED, "dsrm", wear=_scored(quota=True), worn=FAIRLY),
    "td3": Learner(_exploring(TD3)),
    "bcq": Learner(_sb3(BCQ, "BCQPolicy"), SLATES, offline=True),
    "mofir": Learner(_exploring(MOFIR), wear=_preferring, worn=("preference",)),
    "dorl": Learner(
        _sb3(A2C, "MlpPolicy"),
        fit=fit_dorl,
        wear=_penalised,
        worn=("uncertainty_coef", "entropy_coef"),
    ),
    "dnair": Learner(_dnair, SLATES),
    "sac4ir": Learner(_sb3(SAC4IR, "SAC4IRPolicy"), SLATES),
    "hrl": Learner(_hrl, SLATES),
    "hrl+ce": Learner(_hrl, SLATES, fit=_encoder("ce"), wear=_encoded),
    "hrl+rce": Learner(_hrl, SLATES, fit=_encoder("rce"), wear=_encoded),
    "hrl+tce": Learner(_hrl, SLATES, fit=_encoder("tce"), wear=_encoded),
    "hrl+bod": Learner(_hrl, SLATES, fit=_encoder("bod"), wear=_encoded),
    "dsrm-hrl": Learner(_hierarchical, SLATES, purify="dsrm"),
    "dsrm-hrl-logged": Learner(_hrl, SLATES, purify="dsrm"),
    "hsrl": Learner(_hsrl(), SLATES),
    "hsrl-no-residual": Learner(_hsrl(context="state"), SLATES),
    "hsrl-no-token-credit": Learner(_hsrl(token_credit=False), SLATES),
    "hsrl+quota": Learner(_hsrl(), SLATES),
    "hsrl+dsrm": Learner(_hsrl(unbiased=True), SLATES, purify="dsrm"),
}
AGENTS: tuple[str, ...] = (*REFERENCES, *LEARNERS)


def agents_for(dataset: Dataset) -> list[str]:
    """The agents that the data have enough for, but for *truth+quota*, which real data never do."""
    without = {"truth+quota"}
    if category_field(dataset.training) is None:
        without.add("dorl")
    return [agent for agent in AGENTS if agent not in without]


def task_of(env: str) -> str:
    """Name of a registered environment's task, a key of ``kuaisim_gym.envs.tasks.TASKS``."""
    return str(ENVIRONMENTS[env]["task"])


@lru_cache(maxsize=1)
def _all_hyperparams() -> dict[str, dict[str, Any]]:
    text = (Path(__file__).parent / "hyperparams.yml").read_text(encoding="utf-8")
    loaded: dict[str, dict[str, Any]] = yaml.safe_load(text)
    return loaded


def hyperparams(agent: str) -> dict[str, Any]:
    """A copy of the agent's block in ``hyperparams.yml``."""
    return dict(_all_hyperparams()[agent])
