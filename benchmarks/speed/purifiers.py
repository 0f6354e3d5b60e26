"""States per second of purifiers, and the cost of DSRM in the training of an agent."""

from __future__ import annotations

import argparse
from itertools import product
from typing import Any

import numpy as np
import torch

from dsrm_agents import Purifier, fit_purifier
from dsrm_agents.dsrm.purifier import FittedPurifier
from kuaisim_gym.data import Dataset
from kuaisim_gym.envs.options import shared_dataset

from ..runs.settings import Run
from ..runs.training import train_agent
from .timing import Clock, Row, add_out, report, timed

PURIFIERS = ("dsrm", "student", "mlp")
BATCHES = (1024, 64, 1)
STATES = 8192  # smallest number of states in a timing
AGENT = "dsrm-hrl"
FULL = 20_000  # sessions of a full training run


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    add_out(parser, repeats=5)
    parser.add_argument("--episodes", type=int, default=4000, help="timed training sessions")


def main(options: argparse.Namespace) -> None:
    """Measures, prints tables and writes ``purifiers.json``."""
    torch.set_num_threads(1)
    dataset = shared_dataset("kuairec", None, 0)
    sizes: dict[str, Any] = {"updates": 5} if options.quick else {}
    clock = Clock()
    fit = clock.around(fit_purifier, "fit")
    fit_seconds, purifiers = {}, {}
    for name in PURIFIERS:
        purifiers[name] = fit(name, dataset, **sizes)
        fit_seconds[name] = clock.seconds.pop("fit")
    episodes = 8 if options.quick else options.episodes
    tables = {
        "denoising": [
            {"purifier": name, "batch": batch, **_speed(purifiers[name], batch, options.repeats)}
            for name, batch in product(PURIFIERS, BATCHES)
        ],
        "training": [_overhead(dataset, purifiers["dsrm"], fit_seconds["dsrm"], episodes)],
    }
    report("purifiers", tables, options.out, repeats=options.repeats)


def _speed(purifier: FittedPurifier, batch: int, repeats: int) -> Row:
    """States per second, and milliseconds of a call."""
    states = (
        np.random.default_rng(0).standard_normal((batch, purifier.config.width)).astype(np.float32)
    )
    calls = max(1, STATES // batch)

    def call() -> int:
        for _ in range(calls):
            purifier.denoise(states)
        return calls * batch

    speed = timed(call, repeats)
    return {**speed, "ms_a_call": 1e3 * batch / speed["per_second"]}


def _overhead(dataset: Dataset, dsrm: Purifier, fit_seconds: float, episodes: int) -> Row:
    """Processor seconds of DSRM and of everything else, in the same training run."""
    clock = Clock()
    clock.attach(dsrm, "denoise", "denoising")
    train = clock.around(train_agent, "else")
    _, trained = train(Run(AGENT, episodes=episodes, sessions=1), dataset, dsrm, progress=False)
    scale = FULL / trained["episodes"]
    base, denoising = scale * clock.seconds["else"], scale * clock.seconds["denoising"]
    return {
        "agent": AGENT,
        "sessions": trained["episodes"],
        "fit_s": fit_seconds,
        "denoising_s_of_20000": denoising,
        "all_else_s_of_20000": base,
        "overhead": (fit_seconds + denoising) / base,
    }
