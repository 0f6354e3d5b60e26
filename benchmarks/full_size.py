"""Seconds and memory at the published sizes, on generated files and rows.

    python -m benchmarks.full_size generate kuairec DIR
    python -m benchmarks.full_size generate kuairand DIR --rows 30_000_000
    python -m benchmarks.full_size load kuairec DIR     # twice: the first builds the cache
    python -m benchmarks.full_size fit --rows 12_500_000 [--behaviours]

The files have the published columns and shapes; what stands in them is pseudo-random.
"""

from __future__ import annotations

import argparse
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import duckdb
import numpy as np
from scipy.special import expit

from benchmarks.speed.timing import process_memory
from kuaisim_gym.data import BehaviourLog, Features, Interactions, WatchLog, load_dataset
from kuaisim_gym.simulator.fit import fit_factor_model

USERS, ITEMS = 7176, 10728  # of KuaiRec's big matrix
_START, _CUT, _END = 1649347200000, 1650556800000, 1652025600000  # of KuaiRand's two periods, ms


def generate_kuairec(folder: Path, rows: int) -> None:
    """A big matrix of ``rows`` rows, and a small one that is fully observed."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, users, items, table in (
        ("big_matrix", "hash(i) % 7176", "hash(i, 1) % 10728", f"range({rows}) r(i)"),
        ("small_matrix", "u * 5", "v * 3", "range(1411) a(u), range(3327) b(v)"),
    ):
        seed = "i" if name == "big_matrix" else "u * 3327 + v"
        duckdb.sql(
            f"""COPY (SELECT {users} AS user_id, {items} AS video_id,
            hash({seed}, 2) % 60000 AS play_duration, 1000 + hash({seed}, 3) % 60000
            AS video_duration, '2020-07-05 05:27:23.386' AS "time", 20200705 AS "date",
            1593898043.386 + hash({seed}, 4) % 5000000 AS "timestamp",
            (hash({seed}, 5) % 100000) / 50000 AS watch_ratio FROM {table})
            TO '{folder}/{name}.csv' (HEADER)"""
        )


def generate_kuairand(folder: Path, rows: int, videos: int = 1_000_000) -> None:
    """KuaiRand-27K's files: ``rows`` standard rows in four parts, and the random log."""
    folder.mkdir(parents=True, exist_ok=True)

    def log(name: str, count: int, seed: int, first: int, end: int, items: int) -> None:
        flags = ", ".join(
            f"(hash(i, {seed + bit}) % 3 = 0)::INT AS {behaviour}"
            for bit, behaviour in enumerate(BehaviourLog.behaviours)
        )
        duckdb.sql(
            f"""COPY (SELECT hash(i, {seed + 10}) % 27285 AS user_id,
            hash(i, {seed + 11}) % {items} AS video_id, 20220408 AS "date", 1200 AS hourmin,
            {first} + hash(i, {seed + 12}) % {end - first} AS time_ms, {flags},
            1234 AS play_time_ms, 5678 AS duration_ms, 0 AS profile_stay_time,
            0 AS comment_stay_time, 0 AS is_profile_enter, {int(items < videos)} AS is_rand,
            1 AS tab FROM range({count}) r(i)) TO '{folder}/{name}.csv' (HEADER)"""
        )

    for part in (1, 2):
        log(
            f"log_standard_4_08_to_4_21_27k_part{part}", rows // 4, 100 * part, _START, _CUT, videos
        )
        log(f"log_standard_4_22_to_5_08_27k_part{part}", rows // 4, 500 * part, _CUT, _END, videos)
    log("log_random_4_22_to_5_08_27k", 1_186_059, 2000, _CUT, _END, 7583)


def load(name: str, folder: Path) -> None:
    """Loads once, and prints seconds and peak memory of this process."""
    with _measured() as report:
        dataset = load_dataset(name, folder)
    tables = [table for table in (dataset.log, dataset.test, dataset.randomised) if table]
    arrays = sum(column.nbytes for table in tables for column in table.columns.values())
    print(f"{name}: {sum(map(len, tables)):,} rows in {arrays / 1e9:.2f} GB of arrays; {report()}")


def fit(rows: int, behaviours: bool) -> None:
    """Fits the factor model to rows of KuaiRec's big matrix' shape, with features."""
    rng = np.random.default_rng(0)
    users = np.sort(rng.integers(0, USERS, rows)).astype(np.int32)
    items = (ITEMS * rng.random(rows) ** 2).astype(np.int32)
    taste = (rng.standard_normal((USERS, 6)), rng.standard_normal((6, ITEMS)))
    score = 0.125 * (taste[0] @ taste[1])[users, items].astype(np.float32)
    score += 0.5 * rng.standard_normal(USERS)[users] + 0.7 * rng.standard_normal(ITEMS)[items]
    log: Interactions
    if behaviours:
        flags = np.zeros(rows, dtype=np.uint8)
        for bit, constant in enumerate((0.0, -0.6, -4.0, -6.0, -7.0, -7.0, -8.0)):
            flags |= (rng.random(rows) < expit(score + constant)).astype(np.uint8) << bit
        log = BehaviourLog(users, items, flags)
    else:
        watched = 0.7 + 0.25 * score + 0.2 * rng.standard_normal(rows)
        log = WatchLog(users, items, np.maximum(watched, 0.0).astype(np.float32))
    del score
    features = [_features(rng, n) for n in (USERS, ITEMS)]
    with _measured() as report:
        model = fit_factor_model(log, log, features[0], features[1], (USERS, ITEMS))
    shape = f"{len(log.behaviours)} behaviour(s), rank {model.user_factors.shape[1]}"
    print(f"{rows:,} rows, {shape}: {report()}")


def _features(rng: np.random.Generator, n: int) -> Features:
    sizes = {f"field{number}": size for number, size in enumerate((9, 30, 8, 8, 1000, 15, 31))}
    codes = {name: rng.integers(0, size, (n, 1), dtype=np.int32) for name, size in sizes.items()}
    return Features(codes, {name: tuple(map(str, range(size))) for name, size in sizes.items()})


@contextmanager
def _measured() -> Iterator[Callable[[], str]]:
    """Watches time and memory; what it yields tells of them afterwards."""
    peak = dict.fromkeys(("RssAnon", "RssFile"), 0.0)
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.02):
            now = process_memory()
            for name in peak:
                peak[name] = max(peak[name], now[name])

    watcher = threading.Thread(target=watch)
    watcher.start()
    begin = time.perf_counter()
    seconds = [0.0]
    try:
        yield (
            lambda: (
                f"{seconds[0]:.2f} s, peak RSS {process_memory()['VmHWM'] / 1e3:.2f} GB "
                f"(anonymous {peak['RssAnon'] / 1e3:.2f}, mapped {peak['RssFile'] / 1e3:.2f})"
            )
        )
    finally:
        seconds[0] = time.perf_counter() - begin
        done.set()
        watcher.join()


def main() -> int:
    """Runs one command; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.full_size")
    commands = parser.add_subparsers(dest="command", required=True)
    generate = commands.add_parser("generate", help="write files of the published shape")
    read = commands.add_parser("load", help="load them")
    for command in (generate, read):
        command.add_argument("name", choices=("kuairec", "kuairand"))
        command.add_argument("folder", type=Path)
    fitting = commands.add_parser("fit", help="fit the factor model to generated rows")
    for command in (generate, fitting):
        command.add_argument("--rows", type=int, default=12_500_000)
    fitting.add_argument("--behaviours", action="store_true", help="seven of them, yes or no")
    options = parser.parse_args()
    if options.command == "generate":
        write = generate_kuairec if options.name == "kuairec" else generate_kuairand
        write(options.folder, options.rows)
    elif options.command == "load":
        load(options.name, options.folder)
    else:
        fit(options.rows, options.behaviours)
    return 0


if __name__ == "__main__":
    sys.exit(main())
