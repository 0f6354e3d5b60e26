"""Clocks, memory, and the form in which both are reported."""

from __future__ import annotations

import json
import os
import platform
import re
import statistics
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

from benchmarks.results import commit, versions
from kuaisim_gym.data.cache import write_atomically

Row = dict[str, str | int | float]


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


def report(name: str, tables: dict[str, list[Row]], out: Path | None, **options: object) -> None:
    """Prints tables, and writes them as ``name.json`` into a folder, whole or not at all."""
    for title, rows in tables.items():
        print(markdown(title, rows))
    if out is None:
        return
    info = Path("/proc/cpuinfo")
    told = re.search(r"model name\s*: (.*)", info.read_text() if info.exists() else "")
    study = {
        "study": f"speed: {name}",
        **options,
        **tables,
        "machine": {"cpu": told[1] if told else platform.processor(), "cores": os.cpu_count()},
        "versions": versions() | (versions(["numba"]) if find_spec("numba") else {}),
        "commit": commit(),
    }
    path = out / f"{name}.json"
    write_atomically(path, (json.dumps(study, indent=1) + "\n").encode())
    print(path)


def markdown(title: str, rows: list[Row]) -> str:
    """Rows of the same keys as a table under its title."""
    rules = ("---" if isinstance(value, str) else "--:" for value in rows[0].values())
    lines = [[key.replace("_", " ") for key in rows[0]], rules]
    lines += [map(_cell, row.values()) for row in rows]
    return "\n".join([f"### {title}", "", *(f"| {' | '.join(line)} |" for line in lines), ""])


def _cell(value: str | int | float) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:#.3g}"
    return value if isinstance(value, str) else f"{value:,}"
