"""Stages of training: environment, purifier, decisions, and the steps of an update."""

from __future__ import annotations

import argparse
import sys
import time
from itertools import product
from typing import Any
from unittest.mock import patch

import torch
from stable_baselines3.common.logger import Logger
from tqdm.auto import tqdm

from benchmarks.agents import find_agent
from benchmarks.origin import data_block
from benchmarks.run import weights_of
from benchmarks.speed.play import TINY, world
from benchmarks.speed.timing import Clock, Row, add_out, report
from benchmarks.training import TrainingRecord
from dsrm_agents import fit_purifier, make_vec_env
from kuaisim_gym import ENVIRONMENTS
from kuaisim_gym.data import Dataset

AGENTS = ("dsrm-hrl", "hrl", "ppo")
REFERENCE = "ppo"  # denominator of time ratios
MAX_LEN = 30
SEED = 11
FULL = 20_000  # sessions of a full training run
WARM_UP = 2  # sessions per slot: rare cases, such as a session that ends alone, compile too

ENVIRONMENT, PURIFIER, DECISION = "environment step", "purifier", "policy decision"
FORWARD, BACKWARD, STEP, UPDATE = (
    f"update: {stage}" for stage in ("forward", "backward", "optimiser step", "rest")
)
REMAINDER = "rest"
STAGES = (ENVIRONMENT, PURIFIER, DECISION, FORWARD, BACKWARD, STEP, UPDATE, REMAINDER)
# Methods of policies by stage: of those with two levels, and of all others.
TWO_LEVELS = {"decide": DECISION, "level_values": DECISION, "evaluate_decision": FORWARD}
ONE_LEVEL = {"forward": DECISION, "predict_values": DECISION, "evaluate_actions": FORWARD}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    add_out(parser)
    fair = ("KuaiRec-Fair-v0", "KuaiRand-Fair-v0")
    parser.add_argument("--env", nargs="+", default=fair[:1], choices=fair)
    parser.add_argument("--episodes", type=int, default=1000, help="sessions of full length")


def main(options: argparse.Namespace) -> None:
    """Measures, prints tables and writes ``training.json``."""
    torch.set_num_threads(1)
    tables: dict[str, list[Row]] = {"training": [], "parts": []}
    datasets = []
    for env in dict.fromkeys(options.env):
        dataset = world(ENVIRONMENTS[env]["name"], TINY if options.quick else None)
        datasets.append(data_block(dataset))
        profiles = {
            agent: profile(agent, env, dataset, options.episodes, options.quick)
            for agent in tqdm(AGENTS, env, leave=False)
        }
        tables["training"] += summary(env, profiles)
        tables["parts"] += shares(env, profiles)
    report("training", tables, options.out, episodes=options.episodes, datasets=datasets)


def profile(agent: str, env: str, dataset: Dataset, episodes: int, quick: bool) -> dict[str, Any]:
    """Measures the training of an agent, after rollouts and updates that compile and warm up.

    All agents make the steps of as many sessions of full length, in whole rollouts; with ``quick``,
    the purifier is fitted in a few updates.

    Returns:
        ``steps`` and finished ``sessions``, processor seconds ``fit_s`` of the purifier's fit and
        ``s`` of the training, and those of the stages as ``parts``, which add up to ``s``.
    """
    learner, clock = find_agent(agent), Clock()
    options, purifier = learner.hyperparams, None
    if learner.purifier is not None:
        sizes: dict[str, Any] = {"updates": 5} if quick else {}
        fit = clock.around(fit_purifier, "fit")
        purifier = fit(learner.purifier, dataset, seed=SEED, **sizes)
    n_envs = options.pop("n_envs")
    shown: dict[str, Any] = {**weights_of(env), **learner.options_for(purifier)}
    core = make_vec_env(env, n_envs, dataset=dataset, max_len=MAX_LEN, **shown)
    assert learner.build is not None
    model = learner.build(learner.wrap(core, purifier, {}, True), options, SEED)
    model.set_logger(Logger(folder=None, output_formats=[]))
    model.learn(WARM_UP * MAX_LEN * n_envs)
    warm_up, record = model.num_timesteps, TrainingRecord(sys.maxsize, progress=False)
    for name in ("step_async", "step_wait"):
        clock.attach(core, name, ENVIRONMENT)
    if purifier is not None:
        clock.attach(model.get_env(), "purifier", PURIFIER)
    methods = TWO_LEVELS if hasattr(model.policy, "evaluate_decision") else ONE_LEVEL
    for name, stage in methods.items():
        clock.attach(model.policy, name, stage)
    clock.attach(model.policy.optimizer, "step", STEP)
    clock.attach(model, "train", UPDATE)
    backward = clock.around(torch.Tensor.backward, BACKWARD)
    rounds = -(-episodes // n_envs)
    with patch.object(torch.Tensor, "backward", backward):
        started = time.process_time()
        model.learn(rounds * n_envs * MAX_LEN, callback=record, reset_num_timesteps=False)
        seconds = time.process_time() - started
    seconds_of = {stage: clock.seconds[stage] for stage in STAGES[:-1]}
    return {
        "steps": model.num_timesteps - warm_up,
        "sessions": record.finished,
        "fit_s": clock.seconds["fit"],
        "s": seconds,
        "parts": seconds_of | {REMAINDER: seconds - sum(seconds_of.values())},
    }


def summary(env: str, profiles: dict[str, dict[str, Any]]) -> list[Row]:
    """Cost of training, a row per agent; ratios are of seconds per step, without the fit."""
    per_step = {agent: costs["s"] / costs["steps"] for agent, costs in profiles.items()}
    return [
        {
            "env": env,
            "agent": agent,
            "steps": costs["steps"],
            "sessions": costs["sessions"],
            "s": costs["s"],
            "us_a_step": 1e6 * per_step[agent],
            f"times_{REFERENCE}": per_step[agent] / per_step[REFERENCE],
            "fit_s": costs["fit_s"],
            f"s_of_{FULL}": costs["fit_s"] + FULL / costs["sessions"] * costs["s"],
        }
        for agent, costs in profiles.items()
    ]


def shares(env: str, profiles: dict[str, dict[str, Any]]) -> list[Row]:
    """Seconds and shares of training time, a row per stage."""
    rows: list[Row] = [{"env": env, "part": stage} for stage in STAGES]
    for row, (agent, costs) in product(rows, profiles.items()):
        seconds = costs["parts"][row["part"]]
        row |= {f"{agent}_s": seconds, f"{agent}_share": seconds / costs["s"]}
    return rows
