"""Stable-Baselines3's A2C, PPO and TD3 over scorers, and PPO over shares and feasible slates.

Settings of all families maximise the session length of held-out users on the train simulator of the
synthetic KuaiRec world, T = 30, in the searches in ``results/tuning``: eight trials for each, of
4,000 sessions; of 20,000 for A2C and DORL, whose means after 4,000 have hardly changed, so that the
choice would be random. The first trial has the settings of a search in an earlier version of that
world, which stay where no other trial is ahead beyond chance.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from sb3_contrib import MaskablePPO
from stable_baselines3 import A2C, PPO, TD3
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import VecEnv

from dsrm_agents.baselines.scorer import ScorerVecEnv

from .agent import (
    SLATE_ACTIONS,
    Agent,
    Options,
    Wrap,
    constructor,
    log_uniform,
    one_of,
    purified,
    uniform,
)


def _scorer(env: VecEnv, hyperparams: dict[str, Any], seed: int) -> BaseAlgorithm:
    """PPO over scorers that start at the ranking by quality, like the hierarchical worker.

    Unlike the worker's ranking, it includes no similarity: the scorer has to learn that first.
    """
    model = constructor(PPO, "MlpPolicy", "log_std_init")(env, hyperparams, seed)
    head: Any = model.policy.action_net
    with torch.no_grad():
        head.bias[0] = 0.5  # of the box: room to grow and to shrink
    return model


def _slates(quota: bool) -> Wrap:
    """A ``wrap`` that turns scorers into slates, with a fairness reward only in training."""

    def wrap(env: VecEnv, fitted: Any, options: Options, training: bool) -> VecEnv:
        coef = options["fairness_coef"] if training else 0.0
        return ScorerVecEnv(purified(env, fitted), quota, coef)

    return wrap


a2c = Agent(
    "a2c", label="A2C", tables=(2,), reference="Mnih et al., ICML 2016",
    build=constructor(A2C, "MlpPolicy"),
    settings={
        "n_envs": 64, "learning_rate": log_uniform(3e-4, 1e-2, value=7.6e-3),
        "n_steps": one_of(8, 16, 32, value=8),
        "gamma": one_of(0.9, 0.95, 0.99, value=0.95),
        "gae_lambda": one_of(0.9, 0.95, 1.0, value=1.0),
        "ent_coef": log_uniform(1e-6, 1e-2, value=2.5e-3),
    },
)  # fmt: skip
ppo = Agent(
    "ppo", reference="Schulman et al., arXiv 1707.06347",
    build=constructor(PPO, "MlpPolicy"),
    settings={
        "n_envs": 64, "n_steps": 32,
        "learning_rate": log_uniform(1e-4, 3e-3, value=6.8e-4),
        "n_epochs": one_of(3, 5, 10, value=5),
        "batch_size": one_of(256, 512, 1024, value=1024),
        "gamma": one_of(0.9, 0.95, 0.99, value=0.99),
        "gae_lambda": 0.95,
        "ent_coef": log_uniform(1e-6, 1e-2, value=7.5e-3),
    },
)  # fmt: skip
scorer = replace(
    ppo, name="ppo+quota", build=_scorer,
    settings={
        **ppo.at(n_epochs=10, learning_rate=3.0e-4, ent_coef=0.0),
        "log_std_init": uniform(-4.0, -1.0, value=-3.0),  # of exploring around quality's ranking
        "fairness_coef": 0.0,
    },
    env_options=SLATE_ACTIONS,  # ScorerVecEnv makes the slates
    wrap=_slates(quota=True), wrapper_options=("fairness_coef",),
)  # fmt: skip

AGENTS = (
    a2c,
    ppo,
    replace(ppo, name="ppo+dsrm", purifier="dsrm"),
    # The environment's usual actions, with the settings that were found over scorers.
    replace(ppo, name="ppo+shares", env_options={"action_type": "shares"}),
    # A policy over the positions of the items: it shows one a step, and knows no item by another.
    replace(
        ppo, name="maskable-ppo", reference="Huang & Ontanon, FLAIRS 2022",
        build=constructor(MaskablePPO, "MlpPolicy"), env_options={"action_type": "discrete"},
    ),
    replace(ppo, name="ppo+blank", purifier="blank"),
    scorer,
    replace(
        scorer, name="flat", label="FLAT", tables=(3,), reference="the paper",
        settings={
            **scorer.at(
                learning_rate=2.7e-3, n_epochs=5, gamma=0.95, ent_coef=2.6e-4, log_std_init=-3.4
            ),
            "fairness_coef": log_uniform(0.3, 5.0, value=2.1),
        },
        purifier="dsrm", wrap=_slates(quota=False),
    ),
    replace(scorer, name="flat+quota", purifier="dsrm"),
    Agent(
        "td3", label="TD3", tables=(2,), reference="Fujimoto, van Hoof & Meger, ICML 2018",
        build=constructor(TD3, "MlpPolicy"),
        settings={
            "n_envs": 32,  # about as many gradient steps in 20,000 sessions as in the tuning runs
            "learning_rate": log_uniform(1e-4, 3e-3, value=5.1e-4),
            "batch_size": one_of(128, 256, 512, value=128),
            "gamma": one_of(0.9, 0.95, 0.99, value=0.95),
            "buffer_size": 200_000, "learning_starts": 2000, "train_freq": 1, "gradient_steps": 1,
            "noise_std": log_uniform(0.03, 0.3, value=0.037),
        },
    ),
)  # fmt: skip
