"""Sessions of one training run in other processes, beside those of one process.

Gymnasium's and Stable-Baselines3's vector environments give each session a process of its own; Ray
actors hold batches of sessions. What a step takes is the processor time of the process that asks,
plus that of the slowest of those that answer: as on a machine where each has a processor for itself
and messages take no time but that of their making. Wall time is there, too; where other programs
run, it says little.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium.vector import AsyncVectorEnv, AutoresetMode
from gymnasium.vector.utils import batch_space
from matplotlib.figure import Figure

from ..reports.plots import save_figure
from .play import TINY, Case, make
from .timing import Row, add_out, in_fresh_processes, report

BATCH = 64  # sessions of an actor
IN_PROCESS, ACTORS = "one process", f"Ray actors of {BATCH} sessions"
WAYS = {
    IN_PROCESS: (1, 2, 4, 16, 64, 128, 256, 1024),
    "Gymnasium AsyncVectorEnv, a process a session": (1, 2, 4),
    "SB3 SubprocVecEnv, a process a session": (1, 2, 4),
    ACTORS: (64, 256),
}
STEPS, WARM_UP = 300, 20
STORE = 256 << 20  # bytes of Ray's shared memory


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    add_out(parser)
    parser.add_argument("--steps", type=int, default=STEPS, help="timed steps of each row")


def main(options: argparse.Namespace) -> None:
    """Measures, prints a table and writes ``vectors.json`` and ``vectors.png``."""
    case = Case(actions="slate", items=TINY if options.quick else None)
    steps = 5 if options.quick else options.steps
    rows: list[Row] = []
    for way, numbers in WAYS.items():
        if way.startswith("Ray") and find_spec("ray") is None:
            print("Ray is not installed (extra `ray`): its rows are left out.")
            continue
        sizes = numbers[:1] if options.quick else numbers
        cases = [replace(case, sessions=n) for n in sizes]
        rows += in_fresh_processes(partial(of_way, way, steps), [cases])[0]
    report("vectors", {"vectors": rows}, options.out, steps=steps)
    print(verdict(rows))
    if options.out is not None:
        print(draw(rows, options.out / "vectors.png"))


@dataclass(frozen=True)
class Vector:
    """Sessions somewhere.

    Attributes:
        step: Steps all of them with a batch of actions.
        processes: Processes that step them, this one apart.
        worked: Gives the processor seconds of each so far.
        close: Ends them.
    """

    step: Callable[[Any], Any]
    processes: int
    worked: Callable[[], list[float]]
    close: Callable[[], Any]


def of_way(way: str, steps: int, cases: list[Case]) -> list[Row]:
    """The rows of one way, all measured in this process."""
    return [measured(way, steps, case) for case in cases]


def measured(way: str, steps: int, case: Case) -> Row:
    """Microseconds of a step, and user-steps a second, of sessions that are stepped one way."""
    open_vector, space = _openers()[way], make(replace(case, sessions=1)).unwrapped
    actions = batch_space(space.batch.action_space, case.sessions)
    actions.seed(0)
    drawn = [actions.sample() for _ in range(16)]
    vector = open_vector(case)
    for number in range(WARM_UP):
        vector.step(drawn[number % 16])
    before, started, asking = vector.worked(), time.perf_counter(), time.process_time()
    for number in range(steps):
        vector.step(drawn[number % 16])
    asking, wall = time.process_time() - asking, time.perf_counter() - started
    worked = max(np.subtract(vector.worked(), before), default=0.0)
    vector.close()
    seconds = asking + float(worked)
    return {
        "way": way,
        "sessions": case.sessions,
        "processes": vector.processes,
        "asking_us": 1e6 * asking / steps,
        "answering_us": 1e6 * float(worked) / steps,
        "user_steps_a_second": case.sessions * steps / seconds,
        "by_the_wall": case.sessions * steps / wall,
    }


def _openers() -> dict[str, Callable[[Case], Vector]]:
    return dict(zip(WAYS, (_in_one, _asynchronous, _subprocesses, _actors), strict=True))


def _in_one(case: Case) -> Vector:
    env = make(case)
    env.reset(seed=0)
    return Vector(env.step, 0, list, env.close)


def _asynchronous(case: Case) -> Vector:
    single = partial(make, replace(case, shell="single", sessions=1))
    env = AsyncVectorEnv([single] * case.sessions, autoreset_mode=AutoresetMode.SAME_STEP)
    env.reset(seed=0)
    return Vector(env.step, case.sessions, partial(_worked, env.processes), env.close)


def _subprocesses(case: Case) -> Vector:
    from stable_baselines3.common.vec_env import SubprocVecEnv  # loads torch, as actors need not

    single = partial(make, replace(case, shell="single", sessions=1))
    env = SubprocVecEnv([single] * case.sessions, start_method="fork")
    env.reset()
    return Vector(env.step, case.sessions, partial(_worked, env.processes), env.close)


def _worked(processes: list[Any]) -> list[float]:
    """Processor seconds of processes, as Linux counts them for their main threads."""
    files = [Path(f"/proc/{process.pid}/schedstat") for process in processes]
    return [1e-9 * int(file.read_text(encoding="ascii").split()[0]) for file in files]


class Batch:
    """A batch of sessions, as an actor holds it."""

    def __init__(self, case: Case, seed: int) -> None:
        self._env = make(case)
        self._env.reset(seed=seed)

    def step(self, actions: Any) -> Any:
        """As the environment's, without its infos."""
        return self._env.step(actions)[:4]

    def worked(self) -> float:
        """Processor seconds of the process so far."""
        return time.process_time()


def _actors(case: Case) -> Vector:
    ray = import_module("ray")
    n = -(-case.sessions // BATCH)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    ray.init(
        address="local", num_cpus=n, include_dashboard=False, log_to_driver=False,
        object_store_memory=STORE,
    )  # fmt: skip
    remote = ray.remote(Batch)
    case_of_actor = replace(case, sessions=min(BATCH, case.sessions))
    actors = [remote.remote(case_of_actor, BATCH * number) for number in range(n)]

    def step(actions: Any) -> list[Any]:
        batches = np.array_split(actions, n)
        answers = ray.get(
            [actor.step.remote(batch) for actor, batch in zip(actors, batches, strict=True)]
        )
        return [np.concatenate(arrays) for arrays in zip(*answers, strict=True)]

    def worked() -> list[float]:
        return list(ray.get([actor.worked.remote() for actor in actors]))

    return Vector(step, n, worked, ray.shutdown)


def verdict(rows: list[Row]) -> str:
    """The number of sessions from which each way is faster than one process, in words."""
    rates = {
        row["sessions"]: float(row["user_steps_a_second"])
        for row in rows
        if row["way"] == IN_PROCESS
    }
    sentences = []
    for way in dict.fromkeys(str(row["way"]) for row in rows if row["way"] != IN_PROCESS):
        line = [row for row in rows if row["way"] == way and row["sessions"] in rates]
        paying = [
            int(row["sessions"])
            for row in line
            if float(row["user_steps_a_second"]) > rates[row["sessions"]]
        ]
        most = max(int(row["sessions"]) for row in line)
        words = f"from {min(paying)} sessions on" if paying else f"never, up to {most} sessions"
        sentences.append(f"{way}: {words}")
    words = "Pays beside one process. " + "; ".join(sentences) + "."
    for row in rows:
        if row["way"] == ACTORS and int(row.get("processes", 1)) > 1:
            batch, least = of_a_batch(rows), paying_step(of_a_batch(rows), row)
            words += (
                f" {row['processes']} actors would pay where a step of {BATCH} sessions took "
                f"{least:,.0f} microseconds; it takes {batch:,.0f}."
            )
    return words


def of_a_batch(rows: list[Row]) -> float:
    """Microseconds of a step of one batch in one process."""
    return next(
        float(row["asking_us"])
        for row in rows
        if (row["way"], row["sessions"]) == (IN_PROCESS, BATCH)
    )


def paying_step(batch: float, row: Row) -> float:
    """Microseconds of a batch's step from which on its actors would pay.

    One process takes as many such steps as there are actors; actors take one, and their messages.

    Args:
        batch: Microseconds of the step as measured in one process.
        row: The row of several actors.
    """
    messages = float(row["asking_us"]) + float(row["answering_us"]) - batch
    return messages / (int(row["processes"]) - 1)


def draw(rows: list[Row], path: Path) -> Path:
    """Draws user-steps a second over sessions, with the verdict as the title."""
    figure = Figure(figsize=(7.5, 4.5), layout="constrained")
    axes = figure.subplots()
    for number, way in enumerate(dict.fromkeys(str(row["way"]) for row in rows)):
        line = [row for row in rows if row["way"] == way]
        line_rates = [float(row["user_steps_a_second"]) for row in line]
        axes.loglog([float(row["sessions"]) for row in line], line_rates, f"C{number}o-", label=way)
    axes.set_xlabel("sessions, in all")
    axes.set_ylabel("user-steps a second, processors idle")
    axes.set_title(verdict(rows).replace("; ", ";\n").replace(". ", ".\n"), fontsize=8)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    return save_figure(figure, path, dpi=120)
