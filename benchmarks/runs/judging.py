"""Test sessions of an agent, and what they say of it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3.common.base_class import BaseAlgorithm

from dsrm_agents import make_vec_env
from dsrm_agents.common.evaluation import evaluate
from kuaisim_gym.data import Dataset
from kuaisim_gym.envs.assembly import SessionBatch
from kuaisim_gym.metrics import Sessions, bootstrap_ci95

from ..agents import Agent
from ..studies.results import Result, without_nan
from .settings import SEED_RANGE, SLOTS, Run, env_options


def first_test_seed(spec: Run) -> int:
    """Seed of the first slot of a run's test sessions; those of the others follow it."""
    return spec.seed * SEED_RANGE + SEED_RANGE // 2


class Played(NamedTuple):
    """Finished evaluation sessions."""

    sessions: Sessions
    batch: SessionBatch
    block: dict[str, Any]  # ``eval`` in a result

    @property
    def metrics(self) -> dict[str, float]:
        """The ``metrics`` block of a result, without intervals."""
        return self.batch.summarise(self.sessions)


def play(
    agent: Agent,
    spec: Run,
    dataset: Dataset,
    model: BaseAlgorithm | None,
    fitted: Any,
    *,
    overrides: Mapping[str, Any] | None = None,
    split: str = "test",
    users: NDArray[np.int32] | None = None,
) -> Played:
    """Plays the evaluation sessions of a seed, which are the same for all agents.

    Args:
        agent: The agent, which may differ from the run's.
        spec: Settings of the run.
        dataset: The data.
        model: The trained model; ``None`` for an agent with a rule.
        fitted: Fitted object that the environment is wrapped with, as for :func:`train_agent`.
        overrides: Hyper-parameters that replace the agent's.
        split: ``"train"`` or ``"test"``.
        users: Positions of the split's users to play with, all if ``None``.
    """
    slots = min(spec.sessions, SLOTS)
    options = env_options(spec, agent, fitted)
    env = make_vec_env(
        spec.env, slots, split, first_test_seed(spec), users=users, dataset=dataset, **options
    )
    policy: Any = model if agent.rule is None else agent.rule(env.batch)
    wrapped = agent.wrap(env, fitted, agent.hyperparams | dict(overrides or {}), False)
    started = time.perf_counter()
    with torch.no_grad():
        sessions = evaluate(policy, wrapped, spec.sessions)
    block = {"sessions": spec.sessions, "seconds": time.perf_counter() - started}
    return Played(sessions, env.batch, block)


def judged(played: Played, spec: Run) -> Result:
    """The blocks of a result that say how an agent played, with 95 % intervals over sessions."""
    sessions, batch = played.sessions, played.batch
    rng, together = np.random.default_rng(spec.seed), len(sessions) // spec.sessions
    intervals = bootstrap_ci95(sessions, batch.summarise, rng, together=together)
    half_widths = {f"{name}_ci95": half_width for name, half_width in intervals.items()}
    return {
        "eval": played.block,
        "metrics": played.metrics | half_widths,
        "exposure": without_nan(batch.audit(sessions).summarise()),
        "users": without_nan(batch.summarise_users(sessions)),
    }
