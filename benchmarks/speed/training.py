"""Division of a training second: environment, purifier, decisions, and steps of an update."""

from __future__ import annotations

import argparse
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.logger import Logger
from tqdm.auto import tqdm

from benchmarks.agents import find_agent
from benchmarks.results import data_block
from benchmarks.speed.play import TINY, world
from benchmarks.speed.timing import Row, add_out, report
from benchmarks.training import TrainingRecord
from dsrm_agents import KuaiVecEnv, Purifier, fit_purifier, make_vec_env
from kuaisim_gym import ENVIRONMENTS
from kuaisim_gym.data import Dataset
from kuaisim_gym.envs.assembly import shared_dataset

AGENTS = ("dsrm-hrl", "hrl", "ppo")
REFERENCE = "ppo"  # what the others' seconds are compared with
MAX_LEN = 30
SEED = 11
FULL = 20_000  # sessions of a full training run
WARM_UP = 2  # sessions a slot: rare cases, such as one session that ends alone, compile as well

ENVIRONMENT, PURIFIER, DECISION = "environment step", "purifier", "policy decision"
FORWARD, BACKWARD, STEP, OTHER = (
    f"update: {stage}" for stage in ("forward", "backward", "optimiser step", "rest")
)
REST = "rest"
STAGES = (ENVIRONMENT, PURIFIER, DECISION, FORWARD, BACKWARD, STEP, OTHER, REST)

# Methods of the policies: those that act or value states in a rollout, and those that judge past
# actions in an update. A policy has either the first or the second of each.
DECISIONS = (("decide", "level_values"), ("forward", "predict_values"))
EVALUATIONS = ("evaluate_decision", "evaluate_actions")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    add_out(parser)
    fair = ("KuaiRec-Fair-v0", "KuaiRand-Fair-v0")
    parser.add_argument("--env", nargs="+", default=fair[:1], choices=fair)
    parser.add_argument(
        "--episodes", type=int, default=1000, help="sessions of full length in steps"
    )


def main(options: argparse.Namespace) -> None:
    """Measures, prints tables and writes ``training.json``."""
    torch.set_num_threads(1)
    tables: dict[str, list[Row]] = {"training": [], "parts": []}
    datasets = []
    for env in dict.fromkeys(options.env):
        dataset = _dataset(ENVIRONMENTS[env]["name"], options.quick)
        datasets.append(data_block(dataset))
        profiles = {
            agent: profile(agent, env, dataset, options.episodes, options.quick)
            for agent in tqdm(AGENTS, env, leave=False)
        }
        tables["training"] += summary(env, profiles)
        tables["parts"] += shares(env, profiles)
    report("training", tables, options.out, episodes=options.episodes, datasets=datasets)


def _dataset(name: str, quick: bool) -> Dataset:
    small = world(name, TINY if quick else None)
    return small or shared_dataset(name, None, 0)


class Clock:
    """Processor seconds of stages; a stage that calls another is not charged for its time.

    Attributes:
        seconds: By stage.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._within = [0.0]  # seconds of clocked calls in each call that is going on

    def around(self, call: Callable[..., Any], stage: str) -> Callable[..., Any]:
        """The same function, with a clock around it."""

        def clocked(*arguments: Any, **named: Any) -> Any:
            self._within.append(0.0)
            begun = time.process_time()
            try:
                return call(*arguments, **named)
            finally:
                took = time.process_time() - begun
                self.seconds[stage] += took - self._within.pop()
                self._within[-1] += took

        return clocked

    def put_on(self, owner: Any, name: str, stage: str) -> None:
        """Puts a clock around something that an object calls by name."""
        setattr(owner, name, self.around(getattr(owner, name), stage))


def profile(agent: str, env: str, dataset: Dataset, episodes: int, quick: bool) -> dict[str, Any]:
    """Trains an agent under the clock, after rollouts and updates that compile and warm up.

    Every agent makes the steps of as many sessions of full length, in whole rollouts.

    Args:
        agent: One of :data:`AGENTS`.
        env: A registered environment id.
        dataset: The data.
        episodes: Sessions of full length.
        quick: Whether to fit the purifier in a few updates.

    Returns:
        ``steps`` made and ``sessions`` finished under the clock, processor seconds ``fit_s`` of
        the purifier and ``s`` of the training, and those of its ``parts``, which add up to ``s``.
    """
    learner = find_agent(agent)
    options = learner.hyperparams
    purifier: Purifier | None = None
    fit_seconds = 0.0
    if learner.purifier is not None:
        brief: dict[str, Any] = {"updates": 5} if quick else {}
        begun = time.process_time()
        purifier = fit_purifier(learner.purifier, dataset, seed=SEED, **brief)
        fit_seconds = time.process_time() - begun
    n_envs = options.pop("n_envs")
    env_options: dict[str, Any] = {"dataset": dataset, "max_len": MAX_LEN, **learner.env_options}
    core = make_vec_env(env, n_envs, **env_options)
    assert learner.build is not None
    model = learner.build(learner.wrap(core, purifier, {}, True), options, SEED)
    model.set_logger(Logger(folder=None, output_formats=[]))
    model.learn(WARM_UP * MAX_LEN * n_envs)
    before = model.num_timesteps
    clock, record = Clock(), TrainingRecord(sys.maxsize, progress=False)
    _put_on(clock, model, core, worn=purifier is not None)
    backward = clock.around(torch.Tensor.backward, BACKWARD)
    rounds = -(-episodes // n_envs)
    with patch.object(torch.Tensor, "backward", backward):
        begun = time.process_time()
        model.learn(rounds * n_envs * MAX_LEN, callback=record, reset_num_timesteps=False)
        seconds = time.process_time() - begun
    seconds_of = {stage: clock.seconds[stage] for stage in STAGES[:-1]}
    return {
        "steps": model.num_timesteps - before,
        "sessions": record.finished,
        "fit_s": fit_seconds,
        "s": seconds,
        "parts": seconds_of | {REST: seconds - sum(seconds_of.values())},
    }


def _put_on(clock: Clock, model: BaseAlgorithm, core: KuaiVecEnv, worn: bool) -> None:
    """Puts clocks around what training calls."""
    policy: Any = model.policy
    for name in ("step_async", "step_wait"):
        clock.put_on(core, name, ENVIRONMENT)
    if worn:
        clock.put_on(model.get_env(), "purifier", PURIFIER)
    two_levels = hasattr(policy, EVALUATIONS[0])
    for name in DECISIONS[0 if two_levels else 1]:
        clock.put_on(policy, name, DECISION)
    clock.put_on(policy, EVALUATIONS[0 if two_levels else 1], FORWARD)
    clock.put_on(policy.optimizer, "step", STEP)
    clock.put_on(model, "train", OTHER)


def summary(env: str, profiles: dict[str, dict[str, Any]]) -> list[Row]:
    """Cost of training, a row an agent; ratios are of seconds a step, without the fit."""
    a_step = {agent: costs["s"] / costs["steps"] for agent, costs in profiles.items()}
    return [
        {
            "env": env,
            "agent": agent,
            "steps": costs["steps"],
            "sessions": costs["sessions"],
            "s": costs["s"],
            "us_a_step": 1e6 * a_step[agent],
            f"times_{REFERENCE}": a_step[agent] / a_step[REFERENCE],
            "fit_s": costs["fit_s"],
            f"s_of_{FULL}": costs["fit_s"] + FULL / costs["sessions"] * costs["s"],
        }
        for agent, costs in profiles.items()
    ]


def shares(env: str, profiles: dict[str, dict[str, Any]]) -> list[Row]:
    """Seconds and shares of the stages, a row each."""
    rows: list[Row] = []
    for stage in STAGES:
        row: Row = {"env": env, "part": stage}
        for agent, costs in profiles.items():
            row[f"{agent}_s"] = costs["parts"][stage]
            row[f"{agent}_share"] = costs["parts"][stage] / costs["s"]
        rows.append(row)
    return rows
