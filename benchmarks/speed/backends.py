"""Suites of short runs on Ray and in a local pool, in turns, each in a process of its own.

The time of a suite is that of the whole command; what Ray takes to start and to end is measured by
itself, too.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tqdm.auto import tqdm

from ..commands import count
from .timing import Row, add_out, report

AGENTS = ("a2c", "ppo", "random", "popularity")
JOBS = 2
BACKENDS = ("local", "ray")
START = "from kuaisim_benchmarks.studies.cluster import Cluster\nwith Cluster(None, 2): pass"
PROGRAM = __package__.partition(".")[0]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    add = parser.add_argument
    add("--seeds", type=count, default=6, help="runs of each of the four agents")
    add("--episodes", type=count, default=500, help="training sessions of a run")
    add("--rounds", type=count, default=3, help="suites of each backend; medians count")
    add_out(parser)


def main(options: argparse.Namespace) -> None:
    """Prints the times and their ratio."""
    start = START.replace("kuaisim_benchmarks", PROGRAM)
    words = ["suite", "--agents", *AGENTS, "--seeds", *map(str, range(options.seeds))]
    words += ["--episodes", str(options.episodes), "--sessions", "50", "--jobs", str(JOBS)]
    seconds: dict[str, list[float]] = {name: [] for name in (*BACKENDS, "start")}
    for _ in tqdm(range(options.rounds), desc="Rounds", unit="round"):
        for name in BACKENDS:
            with tempfile.TemporaryDirectory() as out:
                command = ["-m", PROGRAM, *words, "--backend", name, "--out", out]
                seconds[name].append(_seconds(command, len(AGENTS) * options.seeds, Path(out)))
        seconds["start"].append(_seconds(["-c", start]))
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    rows: list[Row] = [
        {
            "backend": name,
            "seconds": medians[name],
            "of the local pool's": medians[name] / medians["local"],
        }
        for name in BACKENDS
    ]
    rows.append({"backend": "ray, start and end alone", "seconds": medians["start"],
                 "of the local pool's": medians["start"] / medians["local"]})  # fmt: skip
    title = f"Suites of {len(AGENTS) * options.seeds} runs by {JOBS} workers"
    sizes = {name: getattr(options, name) for name in ("seeds", "episodes", "rounds")}
    report("speed_backends", {title: rows}, options.out, all_seconds=seconds, **sizes)


def _seconds(command: list[str], results: int = 0, out: Path | None = None) -> float:
    """Wall time of a Python process, which must leave so many results."""
    started = time.perf_counter()
    subprocess.run([sys.executable, *command], check=True, capture_output=True)
    seconds = time.perf_counter() - started
    if out is not None and len(list(out.glob("*.json"))) != results:
        raise RuntimeError(f"{command} left other than {results} results.")
    return seconds
