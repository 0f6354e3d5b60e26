"""Memory and time of a log as long as KuaiRand-27K's, at sizes that grow to a tenth of it.

For each size, files of that shape are written to a temporary folder, see
:mod:`~benchmarks.speed.large_files`. A new process with an empty cache then loads them, leaves out
rare log-only videos, fits the factor model to all rows that are left, describes the catalogue, and
plays the first session of it. All rows are synthetic.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import gymnasium as gym
import numpy as np

from kuaisim_gym.data import load_dataset
from kuaisim_gym.data.dataset import Dataset
from kuaisim_gym.disk import remove
from kuaisim_gym.simulator.build import load_catalogue, load_preferences

from ..commands import count, place
from ..studies.processes import Workers
from .large_files import PUBLISHED, Shape, write_large_files
from .timing import Row, add_out, forget_peak, in_fresh_processes, process_memory, report

ENV = "KuaiRand-Fair-v0"
ROWS = (10_000_000, 20_000_000, 30_000_000)
QUICK = (Shape(12, 60, 300, 40, 40), Shape(24, 60, 450, 40, 40))
LEAST_ROWS = 10  # of a log-only video that stays
STAGES = ("load", "thin", "fit", "catalogue", "session")

T = TypeVar("T")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    add = parser.add_argument
    add("--rows", type=count, nargs="+", default=ROWS, help="rows of each standard log, about")
    add("--folder", type=place, help="where the files are written for a while; by default the "
        "system's folder of temporary files")  # fmt: skip
    add("--jobs", type=count, default=1, help="sizes measured side by side, by processor time")
    add_out(parser)


def main(options: argparse.Namespace) -> None:
    """Measures, prints tables and writes ``large.json``, after each size."""
    shapes = QUICK if options.quick else [Shape.of_rows(rows) for rows in options.rows]
    sizes: list[Row] = []
    with (
        tempfile.TemporaryDirectory(dir=options.folder) as top,
        Workers(options.jobs, tasks=1) as workers,
    ):
        folders = [Path(top) / str(number) for number in range(len(shapes))]
        for row in workers.map(measured, shapes, folders):
            sizes.append(row)
            tables = {"sizes": sizes, "growth": growth(sizes)}
            report("large", tables, options.out, least_rows=LEAST_ROWS, published=PUBLISHED["27k"])


def measured(shape: Shape, folder: Path) -> Row:
    """Writes the files and measures what they cost, each in a process of its own."""
    folder.mkdir()
    try:
        written = in_fresh_processes(write, [shape], [folder])
        return written[0] | in_fresh_processes(measure, [shape], [folder])[0]
    finally:
        remove(folder)


def write(shape: Shape, folder: Path) -> Row:
    """Writes the files; their size, and the cost of writing them."""
    started = time.process_time()
    files = write_large_files(shape, folder)
    return {
        "rows": shape.users * shape.rows,
        "users": shape.users,
        "videos": shape.videos,
        "files_MB": sum(file.stat().st_size for file in files) / 1e6,
        "write_s": time.process_time() - started,
        "write_MB_peak": process_memory()["VmHWM"],
    }


def measure(shape: Shape, folder: Path) -> Row:
    """Processor and wall seconds of each stage, and the peak MB of the process in it."""
    os.environ["KUAISIM_CACHE"] = str(folder / "cache")
    row: Row = {}
    loaded = [_stage("load", row, lambda: load_dataset("kuairand", folder))]
    dataset = _stage("thin", row, lambda: loaded.pop().without_rare(LEAST_ROWS))
    row |= {"videos_kept": dataset.n_all_items, "rows_kept": len(dataset.log)}
    model = _stage("fit", row, lambda: load_preferences(dataset))
    row["factors"] = model.dim - 1
    catalogue = _stage("catalogue", row, lambda: load_catalogue(dataset))
    row["catalogue"] = catalogue.n_items
    row["steps"] = _stage("session", row, lambda: _first_session(dataset.catalogue_only()))
    row["MB_peak"] = max(float(row[f"{stage}_MB"]) for stage in STAGES)
    return row


def _stage(name: str, row: Row, call: Callable[[], T]) -> T:
    forget_peak()
    started, started_processor = time.perf_counter(), time.process_time()
    result = call()
    row[f"{name}_s"] = time.process_time() - started_processor
    row[f"{name}_wall_s"] = time.perf_counter() - started
    row[f"{name}_MB"] = process_memory()["VmHWM"]
    return result


def _first_session(dataset: Dataset) -> int:
    """Steps of a session of random slates."""
    env = gym.make(ENV, dataset=dataset, split="train", action_type="slate", engine="numpy")
    env.reset(seed=1)
    env.action_space.seed(1)
    steps, over = 0, False
    while not over:
        _, _, terminated, truncated, _ = env.step(env.action_space.sample())
        steps, over = steps + 1, terminated or truncated
    return steps


def growth(sizes: list[Row]) -> list[Row]:
    """Load and fit a million rows, beside those of the smallest size; and what 27K would need.

    The last row lies on the straight line through the sizes measured; there is none of a single
    size.
    """
    rows = np.array([float(size["rows"]) for size in sizes])
    seconds = np.array([float(size["load_s"]) + float(size["fit_s"]) for size in sizes])
    peaks = np.array([float(size["MB_peak"]) for size in sizes])
    table = [
        (f"{n / 1e6:.0f} M", *figures) for n, *figures in zip(rows, seconds, peaks, strict=True)
    ]
    if len(sizes) > 1:
        total = PUBLISHED["27k"][2]
        lines = [np.polyval(np.polyfit(rows, ys, 1), total) for ys in (seconds, peaks)]
        table.append((f"{total / 1e6:.0f} M, extrapolated", *lines))
        rows = np.append(rows, total)
    first = seconds[0] / rows[0]
    return [
        {
            "rows": label,
            "load_and_fit_s": float(spent),
            "s_a_million_rows": float(spent / n * 1e6),
            "of_the_first": float(spent / n / first),
            "MB_peak": float(peak),
        }
        for n, (label, spent, peak) in zip(rows, table, strict=True)
    ]
