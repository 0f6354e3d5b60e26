"""Clocks, memory, shared options and reports of the speed commands."""

from __future__ import annotations

import argparse
import os
import platform
import re
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

from ..commands import out_folder
from ..formatting import markdown_table, section
from ..studies.processes import Workers
from ..studies.results import PACKAGES, Result
from ..studies.study import Study, run_study

Row = dict[str, str | int | float]
T = TypeVar("T")


def add_out(
    parser: argparse.ArgumentParser, repeats: int | None = None, quick: bool = True
) -> None:
    """Adds the options of reports, and those of commands with timings or a quick mode."""
    add = parser.add_argument
    if quick:
        add("--quick", action="store_true", help="tiny sizes, to see that the command runs")
    text = "folder of the JSON file; default: only print"
    add("--out", type=out_folder, metavar="DIR", help=text)
    if repeats is not None:
        add("--repeats", type=int, default=repeats, help="timings, of which the median counts")


def add_sessions(parser: argparse.ArgumentParser) -> None:
    """Adds the options of timed environments."""
    parser.add_argument("--sessions", type=int, default=1024, help="sessions stepped together")
    parser.add_argument(
        "--engine", default="auto", choices=("auto", "numba", "numpy"), help="of the steps"
    )


def timed(call: Callable[[], int], repeats: int) -> dict[str, float]:
    """Medians of units per second of a call that returns its units, after a warm-up call.

    Processor seconds are those of an otherwise idle machine.
    """
    call()
    wall, processor = [], []
    for _ in range(repeats):
        started, started_processor = time.perf_counter(), time.process_time()
        units = call()
        wall.append(units / (time.perf_counter() - started))
        processor.append(units / (time.process_time() - started_processor))
    return {
        "per_second": statistics.median(wall),
        "least": min(wall),
        "most": max(wall),
        "per_processor_second": statistics.median(processor),
    }


class Clock:
    """Processor seconds by stage; a stage is not charged for clocked calls that it makes.

    Attributes:
        seconds: Seconds by stage.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._nested = [0.0]  # seconds of clocked calls within each running call

    def around(self, call: Callable[..., Any], stage: str) -> Callable[..., Any]:
        """The same function, clocked."""

        def clocked(*arguments: Any, **named: Any) -> Any:
            self._nested.append(0.0)
            started = time.process_time()
            try:
                return call(*arguments, **named)
            finally:
                duration = time.process_time() - started
                self.seconds[stage] += duration - self._nested.pop()
                self._nested[-1] += duration

        return clocked

    def attach(self, owner: Any, name: str, stage: str) -> None:
        """Clocks a method of an object, which may be frozen."""
        object.__setattr__(owner, name, self.around(getattr(owner, name), stage))


def forget_peak() -> None:
    """Resets the peak that :func:`process_memory` reports."""
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")


def process_memory() -> dict[str, float]:
    """Memory of this process in MB, by Linux's names."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    fields = dict(line.split(":", 1) for line in lines)
    names = ("VmRSS", "VmHWM", "RssAnon", "RssFile")
    return {name: int(fields[name].split()[0]) * 1.024e-3 for name in names}


def in_fresh_processes(measure: Callable[..., T], *arguments: Sequence[Any]) -> list[T]:
    """Results, each measured in a new process: freed memory would distort later measurements."""
    with Workers(1, tasks=1) as workers:
        return list(workers.map(measure, *arguments))


@dataclass(frozen=True)
class Timings(Study):
    """Measurements of this machine, as tables by title, which are always made again."""

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
    """Prints tables, and writes them as ``name.json`` into a folder unless it is ``None``."""
    for title, rows in tables.items():
        print(markdown(title, rows))
    if out is not None:
        print(run_study(Timings(name, settings, tables), out))


def markdown(title: str, rows: list[Row]) -> str:
    """A titled table of rows with the same keys."""
    header = (key.replace("_", " ") for key in rows[0])
    align = "".join("l" if isinstance(value, str) else "r" for value in rows[0].values())
    table = markdown_table(header, (map(_cell, row.values()) for row in rows), align)
    return section(title, table) + "\n"


def _cell(value: str | int | float) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:#.3g}"
    return value if isinstance(value, str) else f"{value:,}"
