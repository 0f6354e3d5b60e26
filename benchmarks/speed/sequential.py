"""Speed of the sequential response model in simulation, at KuaiRand-Pure's size.

Weights are random: speed does not depend on them. A step answers a slate in every session and
appends its events; a full recompute does the same without cached keys and values, by a pass over
the last events of every session.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch

from kuaisim_gym.data import BehaviourLog, Features
from kuaisim_gym.simulator.sequential import SequentialConfig, SequentialModel
from kuaisim_gym.simulator.sequential.network import FieldEncoder, SequenceNetwork
from kuaisim_gym.simulator.sequential.sequences import Sequences

from .timing import Row, add_out, report, timed

N_USERS, N_ITEMS, FIELDS = 27_285, 7_583, 10
BEHAVIOURS = BehaviourLog.behaviours


def random_features(n: int, rng: np.random.Generator) -> Features:
    """Ten fields of 20 values, the last with three values for each user or item."""
    codes = {
        f"field{number}": rng.integers(0, 20, (n, 3 if number == FIELDS - 1 else 1), dtype=np.int32)
        for number in range(FIELDS)
    }
    return Features(codes, {name: tuple(map(str, range(20))) for name in codes})


def random_model(rng: np.random.Generator, events: int) -> SequentialModel:
    """An untrained model, with ``events`` logged events per user."""
    config = SequentialConfig()
    with torch.random.fork_rng(devices=[]), torch.inference_mode():
        torch.default_generator.manual_seed(0)
        network = SequenceNetwork(len(BEHAVIOURS), config)
        users = FieldEncoder(N_USERS, random_features(N_USERS, rng), config)
        items = FieldEncoder(N_ITEMS, random_features(N_ITEMS, rng), config)
        encoded_users, encoded_items = users(torch.arange(N_USERS)), items(torch.arange(N_ITEMS))
    n = N_USERS * events
    histories = Sequences(
        np.arange(N_USERS + 1) * events,
        rng.integers(0, N_ITEMS, n, dtype=np.int32),
        (rng.random((n, len(BEHAVIOURS)), dtype=np.float32) < 0.3).astype(np.uint8),
    )
    return SequentialModel(BEHAVIOURS, network, encoded_users, encoded_items, histories)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    add_out(parser, repeats=5, quick=False)
    for name, default, text in (
        ("sessions", 256, "sessions in lockstep"),
        ("slate", 10, "items in a slate"),
        ("events", 200, "logged events of each user"),
        ("steps", 10, "steps in a timing"),
        ("threads", 1, "torch threads"),
    ):
        parser.add_argument(f"--{name}", type=int, default=default, help=text)


def main(options: argparse.Namespace) -> None:
    """Measures steps, full recomputes and resets, prints a table and writes ``sequential.json``."""
    torch.set_num_threads(options.threads)
    rng = np.random.default_rng(0)
    model = random_model(rng, options.events)
    n, k = int(options.sessions), options.slate
    slates = rng.integers(0, N_ITEMS, (n, k))
    users = rng.integers(0, N_USERS, n)
    sessions = model.begin(n)

    def reset() -> int:
        sessions.reset(np.ones(n, dtype=bool), users)
        return n

    def steps() -> int:
        for _ in range(options.steps):
            probability = sessions.feedback(slates)
            drawn = rng.random(probability.shape) < probability
            sessions.observe(slates, drawn.astype(np.float32))
        return n * int(options.steps)

    @torch.inference_mode()
    def recompute() -> int:
        history = model.histories.padded(users, np.full(n, min(options.events, 100)))
        events = model.network.events(model.items[history.items], history.responses)
        states = model.network(events)[:, -1]
        scores = model.network.scores(states, model.users[torch.from_numpy(users)])
        model.network.logits(scores, model.items[torch.from_numpy(slates)])
        return n

    rows: list[Row] = []
    for work, call in (("reset", reset), ("step", steps), ("full recompute", recompute)):
        speed = timed(call, options.repeats)
        rows.append({"work": work, **speed, "processor_ms": 1e3 / speed["per_processor_second"]})
    names = ("sessions", "slate", "events", "threads", "repeats")
    settings = {name: getattr(options, name) for name in names}
    report("sequential", {"user-steps or sessions": rows}, options.out, **settings)
