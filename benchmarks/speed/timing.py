"""Clocks, memory, the options of speed commands, and the form of their reports."""

from __future__ import annotations

import argparse
import multiprocessing
import os
import platform
import re
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.formatting import markdown_table, section
from benchmarks.results import PACKAGES, Result
from benchmarks.study import Study, run_study

Row = dict[str, str | int | float]


def add_out(
    parser: argparse.ArgumentParser, repeats: int | None = None, quick: bool = True
) -> None:
    """Adds the folder of a report, and the options of commands with timings or a quick form."""
    if quick:
        parser.add_argument("--quick", action="store_true", help="tiny, just to see that it runs")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder of the JSON; default: none")
    if repeats is not None:
        parser.add_argument(
            "--repeats", type=int, default=repeats, help="timings; the median counts"
        )


def add_sessions(parser: argparse.ArgumentParser) -> None:
    """Adds the options of environments in play."""
    parser.add_argument("--sessions", type=int, default=1024, help="sessions stepped together")
    parser.add_argument("--engine", default="auto", choices=("auto", "numba", "numpy"))


def timed(call: Callable[[], int], repeats: int) -> dict[str, float]:
    """Units a second of a call that returns how many it did: medians, after one to warm up.

    Processor seconds are what a call would take on a machine without other work.
    """
    call()
    wall, processor = [], []
    for _ in range(repeats):
        begun, busy = time.perf_counter(), time.process_time()
        units = call()
        wall.append(units / (time.perf_counter() - begun))
        processor.append(units / (time.process_time() - busy))
    return {
        "per_second": statistics.median(wall),
        "least": min(wall),
        "most": max(wall),
        "per_processor_second": statistics.median(processor),
    }


def process_memory() -> dict[str, float]:
    """This process's memory in MB, by Linux' names."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    fields = dict(line.split(":", 1) for line in lines)
    names = ("VmRSS", "VmHWM", "RssAnon", "RssFile")
    return {name: int(fields[name].split()[0]) * 1.024e-3 for name in names}


def in_fresh_processes(measure: Callable[..., Row], *arguments: Sequence[Any]) -> list[Row]:
    """A row for each case, measured in a process of its own: memory freed would hide the next's."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn, max_tasks_per_child=1) as processes:
        return list(processes.map(measure, *arguments))


@dataclass(frozen=True)
class Timings(Study):
    """Measurements of this machine, made anew whenever they are asked for.

    Attributes:
        command: Name of the command, and of the file.
        settings: The command's options that matter.
        tables: Rows by title.
    """

    command: str
    settings: dict[str, object]
    tables: dict[str, list[Row]]

    @property
    def name(self) -> str:
        return self.command

    @property
    def packages(self) -> tuple[str, ...]:  # type: ignore[override]
        return (*PACKAGES, "numba") if find_spec("numba") else PACKAGES

    def header(self) -> Result:
        return {"study": f"speed: {self.command}", **self.settings}

    def is_complete(self, path: Path, result: Result) -> bool:
        return False

    def make(self, path: Path) -> Result:
        info = Path("/proc/cpuinfo")
        model = re.search(r"model name\s*: (.*)", info.read_text() if info.exists() else "")
        cpu = model[1] if model else platform.processor()
        return {**self.tables, "machine": {"cpu": cpu, "cores": os.cpu_count()}}


def report(name: str, tables: dict[str, list[Row]], out: Path | None, **settings: object) -> None:
    """Prints tables, and writes them as ``name.json`` into a folder, if there is one."""
    for title, rows in tables.items():
        print(markdown(title, rows))
    if out is not None:
        print(run_study(Timings(name, settings, tables), out))


def markdown(title: str, rows: list[Row]) -> str:
    """Rows of the same keys as a table under its title."""
    header = (key.replace("_", " ") for key in rows[0])
    align = "".join("l" if isinstance(value, str) else "r" for value in rows[0].values())
    table = markdown_table(header, (map(_cell, row.values()) for row in rows), align)
    return section(title, table) + "\n"


def _cell(value: str | int | float) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:#.3g}"
    return value if isinstance(value, str) else f"{value:,}"
