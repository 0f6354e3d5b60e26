"""Sessions in other processes beside those of one: the figures, and the verdict on them."""

from __future__ import annotations

import os
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks.speed import vectors
from benchmarks.speed.play import TINY, Case, draw, make

CASE = Case(actions="slate", items=TINY, sessions=4, engine="numpy")


def row(way: str, sessions: int, rate: float) -> dict:
    return {"way": way, "sessions": sessions, "user_steps_a_second": rate}


def test_the_verdict_names_where_a_way_pays_and_where_it_never_does(tmp_path: Path) -> None:
    rows = [row(vectors.IN_PROCESS, n, rate) for n, rate in ((1, 9.0), (4, 30.0), (64, 50.0))]
    rows += [row("pipes", n, rate) for n, rate in ((1, 1.0), (4, 31.0), (64, 70.0))]
    rows += [row("actors", 64, 49.0)]
    words = vectors.verdict(rows)
    assert "pipes: from 4 sessions on" in words
    assert "actors: never, up to 64 sessions" in words
    image = vectors.draw(rows, tmp_path / "vectors.png")
    assert image.read_bytes().startswith(b"\x89PNG")


def test_the_step_from_which_actors_would_pay_by_hand() -> None:
    # Three steps of 100 in one process; with actors one, and messages of 900 - 100.
    rows = [row(vectors.IN_PROCESS, 64, 1.0) | {"asking_us": 100.0}]
    actors = {"processes": 3, "asking_us": 600.0, "answering_us": 300.0}
    rows += [row(vectors.IN_PROCESS, 192, 1.0), row(vectors.ACTORS, 192, 0.5) | actors]
    assert vectors.paying_step(vectors.of_a_batch(rows), actors) == 400.0
    assert "3 actors would pay where a step of 64 sessions took 400" in vectors.verdict(rows)


def test_one_process_asks_nobody() -> None:
    found = vectors.measured(vectors.IN_PROCESS, 3, CASE)
    assert found["processes"] == 0 and found["answering_us"] == 0.0
    assert found["user_steps_a_second"] == pytest.approx(4e6 / found["asking_us"])


def test_an_actor_steps_as_its_environment_does() -> None:
    batch, env = vectors.Batch(CASE, seed=64), make(CASE)
    env.reset(seed=64)
    for actions in draw(env, 4)[:5]:
        for ours, theirs in zip(batch.step(actions), env.step(actions), strict=False):
            np.testing.assert_array_equal(ours, theirs)
    assert batch.worked() > 0.0


def test_work_of_a_process_is_its_processor_time() -> None:
    before = vectors._worked([SimpleNamespace(pid=os.getpid())])[0]
    started = time.thread_time()
    while time.thread_time() - started < 0.05:
        pass
    assert vectors._worked([SimpleNamespace(pid=os.getpid())])[0] - before > 0.03


def test_actors_of_ray_hold_batches() -> None:
    pytest.importorskip("ray")
    vector = vectors._actors(CASE)
    try:
        assert vector.processes == 1
        observation, reward, *_ = vector.step(draw(make(CASE), 4)[0])
        assert reward.shape == (4,) and len(observation) == 4
    finally:
        vector.close()
