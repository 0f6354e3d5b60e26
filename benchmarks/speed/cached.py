"""Loads from the cache, whose entries are checked, beside an older build's.

Both builds store the synthetic worlds and a large table each in a cache of its own, and load them
in turns, in new processes: from memory, as after the first time, and from the disk, after the
system was told to forget the files.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from tqdm.auto import tqdm

from .ratios import OLD, ONE_THREAD, ROOT, older
from .timing import Row, add_out, report

_ROWS = 20_000_000  # of the table
_QUICK_ROWS = 2_000
_TABLE = """
COPY (SELECT k // 200 AS user_id, (hash(k) % 20000)::INT AS item_id,
    (hash(k, 1) % 2)::INT AS label, 1600000000 + k % 200 * 100 AS "timestamp"
FROM range({rows}) r(k)) TO '{file}'
"""
_LOAD = """
import gc, json, os, sys, time
from pathlib import Path
from kuaisim_gym import load_dataset

def load():
    started, started_processor = time.perf_counter(), time.process_time()
    load_dataset({arguments})
    taken = time.perf_counter() - started, time.process_time() - started_processor
    gc.collect()
    return taken

def forget():
    for file in Path(os.environ["KUAISIM_CACHE"]).rglob("*.npy"):
        with file.open("rb") as content:
            os.fsync(content.fileno())  # what is not yet on the disk is not forgotten
            os.posix_fadvise(content.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

load()
memory = [min(times) for times in zip(*(load() for _ in range({loads})))]
disk = []
if hasattr(os, "posix_fadvise"):
    for _ in range(3):
        forget()
        disk.append(load()[0])
print(json.dumps([*memory, min(disk, default=float("nan"))]))
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    add_out(parser, repeats=5)
    parser.add_argument("--old", default=OLD, help="older build: a commit, a tag, or a wheel")


def main(options: argparse.Namespace) -> None:
    """Measures, prints a table and writes ``cached.json``."""
    repeats, loads = (1, 1) if options.quick else (options.repeats, 10)
    with older(options.old) as old, tempfile.TemporaryDirectory() as temporary:
        table = Path(temporary) / "log.parquet"
        write_table(table, _QUICK_ROWS if options.quick else _ROWS)
        cases = {"table": f"'table', {str(table)!r}"}
        if not options.quick:
            cases |= {name: repr(name) for name in ("kuairec", "kuairand")}
        rows = [
            measured(name, _LOAD.format(arguments=case, loads=loads), old, repeats)
            for name, case in tqdm(cases.items())
        ]
    report("cached", {"loads from the cache": rows}, options.out, old=options.old, repeats=repeats)


def measured(name: str, code: str, old: Path, repeats: int) -> Row:
    """Medians over processes of both builds, which take turns, each with its own cache."""
    taken: dict[str, list[list[float]]] = {"new": [], "old": []}
    builds = {"new": ROOT, "old": old}
    with tempfile.TemporaryDirectory() as caches:
        for number in range(repeats):
            for label in reversed(builds) if number % 2 else builds:
                taken[label].append(seconds(code, builds[label], Path(caches) / label))
        files = (Path(caches) / "new").rglob("*.npy")
        row: Row = {"entry": name, "MB": sum(file.stat().st_size for file in files) / 1e6}
    medians = {
        label: list(map(statistics.median, zip(*times, strict=True)))
        for label, times in taken.items()
    }
    for place, kind in enumerate(("memory", "processor", "disk")):
        new, before = (medians[label][place] for label in ("new", "old"))
        row |= {
            f"{kind}_ms": 1e3 * new,
            f"old {kind}_ms": 1e3 * before,
            f"{kind} ratio": new / before,
        }
    return row


def seconds(code: str, build: Path, cache: Path) -> list[float]:
    """Seconds of a load from memory, its processor seconds, and seconds of one from the disk."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        cwd=build,
        env={**os.environ, **ONE_THREAD, "PYTHONPATH": str(build), "KUAISIM_CACHE": str(cache)},
    )
    if done.returncode:
        raise RuntimeError(f"A load failed with the packages of {build}:\n{done.stderr[-2000:]}")
    taken: list[float] = json.loads(done.stdout.splitlines()[-1])
    return taken


def write_table(file: Path, rows: int) -> None:
    """Writes a log of labels, 200 rows a user."""
    import duckdb

    with duckdb.connect() as connection:
        connection.execute(_TABLE.format(rows=rows, file=file))
