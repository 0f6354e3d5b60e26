"""Worker processes, and the process that started them."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import pytest

from benchmarks.studies.processes import WorkerError, Workers
from tests.attack.kills import Kill, started

PARENT = """
import argparse, sys, time
from pathlib import Path
from benchmarks.studies.processes import Workers
from kuaisim_gym.console import end_process, run_command_line

def main(options):
    with Workers(2) as workers:
        workers.submit(time.sleep, 60)
        workers.submit(abs, 1).result()  # its worker is idle from now on
        Path(sys.argv[1], "ready").touch()
        time.sleep(60)

if __name__ == "__main__":
    end_process(run_command_line(lambda: argparse.Namespace(main=main, resumes=True)))
"""
linux = pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="reads /proc")


def wait_until(condition, seconds: float = 30.0) -> bool:
    limit = time.monotonic() + seconds
    while not condition() and time.monotonic() < limit:
        time.sleep(0.01)
    return bool(condition())


@linux
@pytest.mark.parametrize(
    ("number", "group"),
    [
        (signal.SIGKILL, False),
        (signal.SIGTERM, False),
        (signal.SIGINT, True),
        (signal.SIGHUP, True),
    ],
)
def test_no_worker_outlives_its_parent(number: signal.Signals, group: bool, tmp_path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    with started([sys.executable, str(script), "{out}"], tmp_path) as process:
        assert wait_until((tmp_path / "ready").exists)
        assert len(process.workers()) == 2
        (os.killpg if group else os.kill)(process.pid, number)
        status = process.wait(30)
        assert wait_until(lambda: not process.alive(), 5)
        kill = Kill(number, 0.0, status=status, text=process.text.read_text())
    assert list(kill.faults) == []


@linux
def test_a_parent_that_is_killed_while_workers_load_leaves_none(tmp_path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    with started([sys.executable, str(script), "{out}"], tmp_path) as process:
        assert wait_until(process.workers)
        process.kill()
        process.wait()
        assert wait_until(lambda: not process.alive(), 5)


def test_an_interrupted_block_does_not_wait_for_its_workers() -> None:
    begun = time.monotonic()
    with pytest.raises(KeyboardInterrupt), Workers(1) as workers:
        running = workers.submit(time.sleep, 60)
        raise KeyboardInterrupt
    assert running.exception() is not None
    assert time.monotonic() - begun < 30


def test_a_worker_that_is_killed_is_an_error_that_says_what_to_do() -> None:
    with pytest.raises(WorkerError, match="fewer --jobs"), Workers(1) as workers:
        workers.submit(os._exit, 1).result()
