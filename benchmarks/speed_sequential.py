"""Speed of the sequential response model in simulation, at KuaiRand-Pure's size.

Run as ``python -m benchmarks.speed_sequential``. Weights are random, which speed does not depend
on. A step answers a slate for every session and appends its events; a full recompute does the
same without keys and values kept: a pass over the last events of every session.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch

from kuaisim_gym.data.dataset import BehaviourLog, Features
from kuaisim_gym.simulator.sequential import SequentialConfig, SequentialModel
from kuaisim_gym.simulator.sequential.network import FieldEncoder, SequenceNetwork
from kuaisim_gym.simulator.sequential.sequences import Sequences

N_USERS, N_ITEMS, FIELDS = 27_285, 7_583, 10
BEHAVIOURS = BehaviourLog.BEHAVIOURS


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


def timed(call: Callable[[], object], repeats: int) -> tuple[list[float], float]:
    """Seconds of each of ``repeats`` calls, after one for warming up; median processor seconds.

    Processor seconds are what a call would take on a machine without other work.
    """
    call()
    wall, processor = [], []
    for _ in range(repeats):
        begun, busy = time.perf_counter(), time.process_time()
        call()
        wall.append(time.perf_counter() - begun)
        processor.append(time.process_time() - busy)
    return wall, statistics.median(processor)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sessions", type=int, default=256, help="sessions in lockstep")
    parser.add_argument("--slate", type=int, default=10, help="items in a slate")
    parser.add_argument("--events", type=int, default=200, help="logged events of each user")
    parser.add_argument("--steps", type=int, default=10, help="steps in a timing")
    parser.add_argument("--repeats", type=int, default=5, help="timings")
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rng = np.random.default_rng(0)
    model = random_model(rng, options.events)
    n, k = options.sessions, options.slate
    slates = rng.integers(0, N_ITEMS, (n, k))
    users = rng.integers(0, N_USERS, n)
    sessions = model.begin(n)

    def reset() -> None:
        sessions.reset(np.ones(n, dtype=bool), users)

    def steps() -> None:
        for _ in range(options.steps):
            answered = sessions.feedback(slates)
            sessions.observe(slates, (rng.random(answered.shape) < answered).astype(np.float32))

    @torch.inference_mode()
    def recompute() -> None:
        history = model.histories.padded(users, np.full(n, min(options.events, 100)))
        events = model.network.events(model.items[history.items], history.responses)
        states = model.network(events)[:, -1]
        scores = model.network.scores(states, model.users[torch.from_numpy(users)])
        model.network.logits(scores, model.items[torch.from_numpy(slates)])

    print(f"{n} sessions, slates of {k}, {options.events} logged events, {options.threads} threads")
    reset_wall, reset_processor = timed(reset, options.repeats)
    wall, processor = timed(steps, options.repeats)
    rates = [n * options.steps / seconds for seconds in wall]
    whole_wall, whole_processor = timed(recompute, options.repeats)
    print(
        f"step: {statistics.median(rates):,.0f} user-steps/s, median of {options.repeats} (least "
        f"{min(rates):,.0f}, most {max(rates):,.0f}); {n * options.steps / processor:,.0f} a "
        "processor second"
    )
    print(
        f"full recompute of {min(options.events, 100)} events: "
        f"{n / statistics.median(whole_wall):,.0f} user-steps/s, {n / whole_processor:,.0f} a "
        f"processor second: {whole_processor * options.steps / processor:.1f} times the work"
    )
    print(
        f"reset: {1e3 * statistics.median(reset_wall) / n:.2f} ms a session, "
        f"{1e3 * reset_processor / n:.2f} ms of the processor"
    )


if __name__ == "__main__":
    main()
