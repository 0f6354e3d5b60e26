"""States a second of purifiers, and what DSRM adds to the training of the hierarchical agent."""

from __future__ import annotations

import argparse
import time
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.run import Run, train_agent
from benchmarks.speed.timing import Row, add_out, report, timed
from dsrm_agents import DSRM, Purifier, distil, fit_dsrm, fit_purifier
from dsrm_agents.dsrm.student import DISTILLATION
from dsrm_agents.dsrm.training import TrainConfig
from kuaisim_gym.data import Dataset
from kuaisim_gym.envs.assembly import shared_dataset

BATCHES = (1024, 64, 1)
STATES = 8192  # in a timing, at least
AGENT = "dsrm-hrl"
FULL = 20_000  # sessions of a full training run


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    add_out(parser, repeats=5)
    parser.add_argument("--episodes", type=int, default=4000, help="training sessions clocked")


def main(options: argparse.Namespace) -> None:
    """Measures, prints tables and writes ``purifiers.json``."""
    torch.set_num_threads(1)
    dataset = shared_dataset("kuairec", None, 0)
    brief: dict[str, Any] = {"updates": 5} if options.quick else {}
    begun = time.process_time()
    dsrm = fit_dsrm(dataset, **brief)
    fit_seconds = time.process_time() - begun
    training = TrainConfig(updates=5) if options.quick else DISTILLATION
    purifiers: dict[str, Purifier] = {
        "dsrm": dsrm,
        "student": distil(dsrm, dataset, training=training),
        "mlp": fit_purifier("mlp", dataset, **brief),
    }
    tables = {
        "denoising": [
            {"purifier": name, "batch": batch, **_speed(purifier, batch, options.repeats)}
            for name, purifier in purifiers.items()
            for batch in BATCHES
        ],
        "training": [
            _overhead(dataset, dsrm, fit_seconds, 8 if options.quick else options.episodes)
        ],
    }
    report("purifiers", tables, options.out, repeats=options.repeats)


def _speed(purifier: Purifier, batch: int, repeats: int) -> Row:
    """States a second, and milliseconds of a call."""
    states = np.random.default_rng(0).standard_normal((batch, 32)).astype(np.float32)
    calls = max(1, STATES // batch)

    def call() -> int:
        for _ in range(calls):
            purifier.denoise(states)
        return calls * batch

    speed = timed(call, repeats)
    return {**speed, "ms_a_call": 1e3 * batch / speed["per_second"]}


class _Clocked:
    """A purifier that measures its processor seconds.

    Args:
        dsrm: The purifier.
    """

    def __init__(self, dsrm: DSRM) -> None:
        self.dsrm, self.seconds = dsrm, 0.0

    @property
    def fingerprint(self) -> str:
        return self.dsrm.fingerprint

    def denoise(self, states: NDArray[np.float32]) -> NDArray[np.float32]:
        begun = time.process_time()
        purified = self.dsrm.denoise(states)
        self.seconds += time.process_time() - begun
        return purified


def _overhead(dataset: Dataset, dsrm: DSRM, fit_seconds: float, sessions: int) -> Row:
    """Processor seconds of a training run, with and without what DSRM takes.

    Both are of one run, so that a busy machine slows them alike.
    """
    clocked = _Clocked(dsrm)
    spec = Run(AGENT, "KuaiRec-Fair-v0", episodes=sessions, sessions=1)
    begun = time.process_time()
    _, trained = train_agent(spec, dataset, clocked, progress=False)
    total = time.process_time() - begun
    scale = FULL / trained["episodes"]
    base, added = scale * (total - clocked.seconds), fit_seconds + scale * clocked.seconds
    return {
        "agent": AGENT,
        "sessions": trained["episodes"],
        "fit_s": fit_seconds,
        "denoising_s_of_20000": scale * clocked.seconds,
        "all_else_s_of_20000": base,
        "overhead": added / base,
    }
