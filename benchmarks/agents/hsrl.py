"""HSRL: a policy over hierarchical semantic ids of items."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

from stable_baselines3.common.vec_env import VecEnv

from dsrm_agents.hsrl.codebook import Codebook
from dsrm_agents.hsrl.hsrl import HSRL

from .agent import SLATES, Agent, constructor, log_uniform, one_of


def _codebook(env: VecEnv, hyperparams: dict[str, Any]) -> Codebook:
    vectors = env.get_attr("catalogue")[0].known
    return Codebook.fit(vectors, hyperparams.pop("levels"), hyperparams.pop("codes"))


build = partial(constructor, HSRL, "HSRLPolicy", "fairness", "context", codebook=_codebook)
hsrl = Agent(
    "hsrl", reference="Wang et al., arXiv 2510.09167",
    build=build(), env_options=SLATES,
    settings={
        "n_envs": 64, "learning_rate": log_uniform(3e-4, 1e-2, value=1.6e-3),
        "n_epochs": one_of(1, 2, 3, value=3),
        "gamma": one_of(0.5, 0.8, 0.9, 0.95, value=0.8),
        "clip_range": 0.3, "context": "sampled", "fairness": None,
        "levels": one_of(2, 3, value=2), "codes": one_of(16, 32, value=32),
    },
    controls=("ppo", "hsrl-no-residual", "hsrl-no-token-credit"),
)  # fmt: skip
fair = replace(
    hsrl, name="hsrl+quota",
    settings=hsrl.at(
        fairness=1.0, learning_rate=1.3e-3, n_epochs=1, gamma=0.9, levels=3, codes=16
    ),
    controls=("quality+quota", "ppo+quota", "hrl"),
)  # fmt: skip

AGENTS = (
    hsrl,
    replace(hsrl, name="hsrl-no-residual", settings=hsrl.at(context="state"), controls=()),
    replace(hsrl, name="hsrl-no-token-credit", settings=hsrl.at(token_credit=False), controls=()),
    fair,
    replace(fair, name="hsrl+dsrm", purifier="dsrm", controls=("hsrl+quota", "dsrm-hrl")),
)  # fmt: skip
