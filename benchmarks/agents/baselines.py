"""Published methods that the paper compares with, as ``dsrm_agents.baselines`` implements them."""

from __future__ import annotations

from typing import Any

from stable_baselines3.common.vec_env import VecEnv

from dsrm_agents.baselines.bcq import BCQ
from dsrm_agents.baselines.dnair import DNaIR
from dsrm_agents.baselines.dorl import PenalisedVecEnv, category_field, fit_dorl
from dsrm_agents.baselines.mofir import MOFIR, PreferenceVecEnv
from dsrm_agents.baselines.sac4ir import SAC4IR

from .agent import (
    SLATES,
    Agent,
    Options,
    constructor,
    log_uniform,
    one_of,
    purified,
    uniform,
)
from .sb3 import a2c


def _prefer(env: VecEnv, fitted: Any, options: Options, training: bool) -> VecEnv:
    return PreferenceVecEnv(purified(env, fitted), None if training else options["preference"])


def _penalise(env: VecEnv, fitted: Any, options: Options, training: bool) -> VecEnv:
    if not training:
        return env
    return PenalisedVecEnv(env, fitted, options["uncertainty_coef"], options["entropy_coef"])


AGENTS = (
    Agent(
        "bcq", label="BCQ", tables=(2,), reference="Fujimoto, Meger & Precup, ICML 2019",
        build=constructor(BCQ, "BCQPolicy"), env_options=SLATES, offline=True,
        settings={
            "n_envs": 1,  # for the spaces: training reads the log
            "learning_rate": log_uniform(1e-4, 3e-3, value=2.7e-3),
            "batch_size": 100,  # the paper's: 6,000 updates at T = 30
            "gamma": one_of(0.5, 0.9, 0.99, value=0.9),
            "divergence_weight": log_uniform(0.1, 1.0, value=0.2),
        },
        # All rewards of a log of positives alone are 1: nothing tells good decisions from others.
        suits=lambda dataset: dataset.log.has_negatives,
    ),
    Agent(
        "mofir", label="MOFIR", tables=(2,), reference="Ge et al., WSDM 2022",
        build=constructor(MOFIR, "MlpPolicy"),
        settings={
            "n_envs": 32, "learning_rate": log_uniform(1e-4, 1e-3, value=9.4e-4),
            "gamma": one_of(0.9, 0.95, 0.99, value=0.95),
            "batch_size": 256, "buffer_size": 100_000, "learning_starts": 2000, "train_freq": 1,
            "gradient_steps": 1,
            "noise_std": log_uniform(0.03, 0.3, value=0.059),
            "action_l2": log_uniform(0.1, 3.0, value=1.0),
            "preference": uniform(0.0, 1.0, value=0.71),  # weight of utility in evaluation
        },
        wrap=_prefer, wrapper_options=("preference",),
    ),
    Agent(
        "dorl", label="DORL", tables=(2,), reference="Gao et al., SIGIR 2023",
        build=a2c.build,
        settings={
            **a2c.at(
                n_envs=64, n_steps=8, learning_rate=1.6e-3, gamma=0.95, gae_lambda=1.0,
                ent_coef=2.8e-4,
            ),
            "uncertainty_coef": log_uniform(0.01, 1.0, value=0.17),
            "entropy_coef": log_uniform(0.01, 10.0, value=4.7),
        },
        fit=fit_dorl, restore=None,
        wrap=_penalise, wrapper_options=("uncertainty_coef", "entropy_coef"),
        suits=lambda dataset: category_field(dataset.training) is not None,
    ),
    Agent(
        "dnair", label="DNaIR", tables=(2,), reference="Shi et al., TOIS 2024",
        build=constructor(DNaIR, "DNaIRPolicy", "similar"), env_options=SLATES,
        settings={
            "n_envs": 32, "batch_size": 128,
            "learning_rate": log_uniform(1e-4, 3e-3, value=5.0e-4),
            "gamma": one_of(0.9, 0.95, 0.99, value=0.9),
            "beta": log_uniform(1e-3, 0.4, value=0.005),
            "similar": one_of(100, 300, 1000, value=1000),
        },
    ),
    Agent(
        "sac4ir", label="SAC4IR", tables=(2,), reference="after Christodoulou, arXiv 1910.07207",
        build=constructor(SAC4IR, "SAC4IRPolicy"), env_options=SLATES,
        settings={
            "n_envs": 32, "batch_size": 64,
            "learning_rate": log_uniform(1e-4, 1e-3, value=9.4e-4),
            "gamma": one_of(0.9, 0.95, 0.99, value=0.95),
            "target_entropy_ratio": uniform(0.2, 0.9, value=0.4),
            "novelty_coef": log_uniform(1e-3, 0.5, value=0.073),
        },
    ),
)  # fmt: skip
