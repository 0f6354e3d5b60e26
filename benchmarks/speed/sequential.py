"""Speed of the sequential response model in simulation, at KuaiRand-Pure's size.

Weights are random, which speed does not depend on. A step answers a slate for every session and
appends its events; a full recompute does the same without keys and values kept: a pass over the
last events of every session.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch

from benchmarks.speed.timing import timed
from kuaisim_gym.data import BehaviourLog, Features
from kuaisim_gym.simulator.sequential import SequentialConfig, SequentialModel
from kuaisim_gym.simulator.sequential.network import FieldEncoder, SequenceNetwork
from kuaisim_gym.simulator.sequential.sequences import Sequences

N_USERS, N_ITEMS, FIELDS = 27_285, 7_583, 10
BEHAVIOURS = BehaviourLog.behaviours


def random_features(n: int, rng: np.random.Generator) -> Features:
    """Ten fields of 20 values, the last one with three values for each user or item."""
    codes = {
        f"field{number}": rng.integers(0, 20, (n, 3 if number == FIELDS - 1 else 1), dtype=np.int32)
        for number in range(FIELDS)
    }
    return Features(codes, {name: tuple(map(str, range(20))) for name in codes})


def random_model(rng: np.random.Generator, events: int) -> SequentialModel:
    """A model without training, ``events`` logged events a user."""
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


def run(options: argparse.Namespace) -> None:
    """Measures and prints steps, full recomputes and resets."""
    torch.set_num_threads(options.threads)
    rng = np.random.default_rng(0)
    model = random_model(rng, options.events)
    n, k = options.sessions, options.slate
    slates = rng.integers(0, N_ITEMS, (n, k))
    users = rng.integers(0, N_USERS, n)
    sessions = model.begin(n)

    def reset() -> int:
        sessions.reset(np.ones(n, dtype=bool), users)
        return n

    def steps() -> int:
        for _ in range(options.steps):
            answered = sessions.feedback(slates)
            sessions.observe(slates, (rng.random(answered.shape) < answered).astype(np.float32))
        return n * options.steps

    @torch.inference_mode()
    def recompute() -> int:
        history = model.histories.padded(users, np.full(n, min(options.events, 100)))
        events = model.network.events(model.items[history.items], history.responses)
        states = model.network(events)[:, -1]
        scores = model.network.scores(states, model.users[torch.from_numpy(users)])
        model.network.logits(scores, model.items[torch.from_numpy(slates)])
        return n

    print(f"{n} sessions, slates of {k}, {options.events} logged events, {options.threads} threads")
    begun = timed(reset, options.repeats)
    step = timed(steps, options.repeats)
    whole = timed(recompute, options.repeats)
    print(
        f"step: {step['per_second']:,.0f} user-steps/s, median of {options.repeats} (least "
        f"{step['least']:,.0f}, most {step['most']:,.0f}); {step['per_processor_second']:,.0f} a "
        "processor second"
    )
    print(
        f"full recompute of {min(options.events, 100)} events: {whole['per_second']:,.0f} "
        f"user-steps/s, {whole['per_processor_second']:,.0f} a processor second: "
        f"{step['per_processor_second'] / whole['per_processor_second']:.1f} times the work"
    )
    print(
        f"reset: {1e3 / begun['per_second']:.2f} ms a session, "
        f"{1e3 / begun['per_processor_second']:.2f} ms of the processor"
    )
