"""Stages of training: environment, purifier, decisions, and the steps of an update.

Agents train in turns, so that a machine that is busy for a while slows all of them.
"""

from __future__ import annotations

import argparse
import sys
import time
from itertools import product
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from stable_baselines3.common.logger import Logger
from tqdm.auto import tqdm

from dsrm_agents import fit_purifier, make_vec_env
from kuaisim_gym import ENVIRONMENTS
from kuaisim_gym.data import Dataset

from ..agents import find_agent
from ..origin import data_block
from ..runs.record import TrainingRecord
from ..runs.settings import weights_of
from .play import TINY, world
from .timing import Clock, Row, add_out, report

AGENTS = ("dsrm-hrl", "hrl", "ppo")
REFERENCE = "ppo"  # denominator of time ratios
MAX_LEN = 30
SLOTS = 64
SEED = 11
FULL = 20_000  # sessions of a full training run
TURNS = 5
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
    parser.add_argument("--env", nargs="+", default=fair[:1], choices=fair, help="environments")
    parser.add_argument("--episodes", type=int, default=1000, help="sessions of full length")


def main(options: argparse.Namespace) -> None:
    """Measures, prints tables and writes ``training.json``."""
    torch.set_num_threads(1)
    tables: dict[str, list[Row]] = {"training": [], "parts": []}
    datasets = []
    for env in dict.fromkeys(options.env):
        dataset = world(ENVIRONMENTS[env]["name"], TINY if options.quick else None)
        datasets.append(data_block(dataset))
        rounds = -(-options.episodes // SLOTS)
        trainings = {agent: Training(agent, env, dataset, options.quick) for agent in AGENTS}
        for turn in tqdm(np.array_split(range(rounds), min(TURNS, rounds)), env, leave=False):
            for training in trainings.values():
                training.go_on(len(turn))
        profiles = {agent: training.costs() for agent, training in trainings.items()}
        tables["training"] += summary(env, profiles)
        tables["parts"] += shares(env, profiles)
    report("training", tables, options.out, episodes=options.episodes, datasets=datasets)


class Training:
    """An agent in training, clocked after rollouts and updates that compile and warm up.

    Args:
        agent: Name of an agent with ``SLOTS`` session slots.
        env: Id of the environment.
        dataset: Its data.
        quick: Whether the purifier is fitted in a few updates.
    """

    def __init__(self, agent: str, env: str, dataset: Dataset, quick: bool) -> None:
        learner, clock = find_agent(agent), Clock()
        options, purifier = learner.hyperparams, None
        if learner.purifier is not None:
            sizes: dict[str, Any] = {"updates": 5} if quick else {}
            fit = clock.around(fit_purifier, "fit")
            purifier = fit(learner.purifier, dataset, seed=SEED, **sizes)
        assert options.pop("n_envs") == SLOTS
        shown: dict[str, Any] = {**weights_of(env), **learner.options_for(purifier)}
        core = make_vec_env(env, SLOTS, dataset=dataset, max_len=MAX_LEN, **shown)
        assert learner.build is not None
        model = learner.build(learner.wrap(core, purifier, {}, True), options, SEED)
        model.set_logger(Logger(folder=None, output_formats=[]))
        model.learn(WARM_UP * MAX_LEN * SLOTS)
        for name in ("step_async", "step_wait"):
            clock.attach(core, name, ENVIRONMENT)
        if purifier is not None:
            clock.attach(model.get_env(), "purifier", PURIFIER)
        methods = TWO_LEVELS if hasattr(model.policy, "evaluate_decision") else ONE_LEVEL
        for name, stage in methods.items():
            clock.attach(model.policy, name, stage)
        clock.attach(model.policy.optimizer, "step", STEP)
        clock.attach(model, "train", UPDATE)
        self.model, self.clock = model, clock
        self.warm_up, self.sessions, self.seconds = model.num_timesteps, 0, 0.0

    def go_on(self, rounds: int) -> None:
        """Trains for the steps of as many sessions of full length in each slot."""
        record = TrainingRecord(sys.maxsize, progress=False)
        backward = self.clock.around(torch.Tensor.backward, BACKWARD)
        with patch.object(torch.Tensor, "backward", backward):
            started = time.process_time()
            steps = rounds * SLOTS * MAX_LEN
            self.model.learn(steps, callback=record, reset_num_timesteps=False)
            self.seconds += time.process_time() - started
        self.sessions += record.finished

    def costs(self) -> dict[str, Any]:
        """Costs of the turns.

        Returns:
            ``steps`` and finished ``sessions``, processor seconds ``fit_s`` of the purifier's fit
            and ``s`` of the training, and those of the stages as ``parts``, which add up to ``s``.
        """
        seconds_of = {stage: self.clock.seconds[stage] for stage in STAGES[:-1]}
        return {
            "steps": self.model.num_timesteps - self.warm_up,
            "sessions": self.sessions,
            "fit_s": self.clock.seconds["fit"],
            "s": self.seconds,
            "parts": seconds_of | {REMAINDER: self.seconds - sum(seconds_of.values())},
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
