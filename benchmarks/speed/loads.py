"""First loads of published files: beside pandas reading the same columns, and an older build.

Files of the published sizes are made in a temporary folder: all columns, rows ascending by user and
time, about one row in 26 of KuaiRec's small matrix without a time and behind the user's others.
Each load is one of a new process with an empty cache.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from tqdm.auto import tqdm

from .ratios import OLD, ONE_THREAD, ROOT, older
from .timing import Row, add_out, report


@dataclass(frozen=True)
class Size:
    """Numbers of users, of their rows, and of videos, in a log and in a table to test on."""

    users: int
    rows: int  # of a user in the log
    videos: int
    test_users: int
    test_rows: int


SIZES = {
    "kuairec": Size(7_176, 1_860, 10_728, 1_411, 3_327),
    "kuairand": Size(27_285, 53, 7_583, 27_285, 43),
}
QUICK = {
    "kuairec": Size(40, 180, 300, 20, 90),
    "kuairand": Size(40, 53, 300, 40, 43),
}
_EVENTS = """
SELECT u AS user_id, (k * 7919 + hash(u) % {videos}::UBIGINT) % {videos} AS video_id, k,
    hash(u, k, 1) / 1.8446744073709552e19 AS chance, hash(u, k, 2) % 20000 + 3000 AS duration,
    {start} + floor((k + hash(u, k, 3) / 1.8446744073709552e19) * {span} / {rows}) AS time_ms
FROM range({users}) users(u), range({rows}) events(k) ORDER BY u, k
"""
_MATRIX = """
SELECT user_id, video_id, (duration * 3 * chance * chance)::BIGINT AS play_duration,
    duration AS video_duration, strftime(make_timestamp(stamp * 1000), '%Y-%m-%d %H:%M:%S.%g')
    AS "time", strftime(make_timestamp(stamp * 1000), '%Y%m%d') AS "date",
    stamp / 1000 AS "timestamp", 3 * chance * chance AS watch_ratio
FROM (SELECT *, CASE WHEN {timeless} THEN NULL ELSE time_ms::BIGINT END AS stamp FROM ({events}))
WHERE {where} ORDER BY user_id, stamp NULLS LAST
"""
_LOG = """
SELECT user_id, video_id, strftime(make_timestamp(time_ms::BIGINT * 1000), '%Y%m%d') AS "date",
    100 * hour(make_timestamp(time_ms::BIGINT * 1000)) AS hourmin,
    time_ms::BIGINT AS time_ms, (chance < .4)::INT AS is_click, (chance < .02)::INT AS is_like,
    (chance < .01)::INT AS is_follow, (chance > .98)::INT AS is_comment,
    (chance > .99)::INT AS is_forward, 0 AS is_hate, (chance < .3)::INT AS long_view,
    (duration * chance)::BIGINT AS play_time_ms, duration AS duration_ms, 0 AS profile_stay_time,
    0 AS comment_stay_time, 0 AS is_profile_enter, {random} AS is_rand, 1 AS tab
FROM ({events}) WHERE {where} ORDER BY user_id, time_ms
"""
_PANDAS = """
import pandas as pd
for file in {files!r}:
    columns = pd.read_csv(file, nrows=0).columns
    dtypes = {{name: dtype for name, dtype in {dtypes!r}.items() if name in columns}}
    kept = pd.read_csv(file, usecols=list(dtypes), dtype=dtypes)
"""
_LOAD = """
from kuaisim_gym import load_dataset
load_dataset({name!r}, {folder!r})
"""
_COST = """
import time
from pathlib import Path
status = Path("/proc/self/status").read_text(encoding="utf-8")
peak = next(line for line in status.splitlines() if line.startswith("VmHWM"))
print(time.process_time(), int(peak.split()[1]) * 1.024e-3)
"""
_DTYPES = {
    "user_id": "int32", "video_id": "int32", "watch_ratio": "float32", "timestamp": "float64",
    "time_ms": "int64", "is_rand": "uint8",
    **dict.fromkeys(
        ("is_click", "long_view", "is_like", "is_comment", "is_forward", "is_follow", "is_hate"),
        "uint8",
    ),
}  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    add_out(parser, repeats=3)
    parser.add_argument("--old", default=OLD, help="older build: a commit, a tag, or a wheel")
    parser.add_argument("--datasets", nargs="+", default=list(SIZES), choices=list(SIZES))


def main(options: argparse.Namespace) -> None:
    """Measures, prints a table and writes ``loads.json``."""
    sizes, repeats = (QUICK, 1) if options.quick else (SIZES, options.repeats)
    with older(options.old) as folder:
        rows = [measured(name, sizes[name], folder, repeats) for name in tqdm(options.datasets)]
    report("loads", {"first loads": rows}, options.out, old=options.old, repeats=repeats)


def measured(name: str, size: Size, old: Path, repeats: int) -> Row:
    """Medians of processor seconds and peak MB of pandas and both builds, measured in turns."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        files = write_files(name, size, folder)
        load = _LOAD.format(name=name, folder=str(folder))
        cases = {
            "pandas": (_PANDAS.format(files=list(map(str, files)), dtypes=_DTYPES), ROOT),
            "new": (load, ROOT),
            "old": (load, old),
        }
        costs: dict[str, list[tuple[float, float]]] = {case: [] for case in cases}
        for number in range(repeats):
            for case in reversed(cases) if number % 2 else cases:
                costs[case].append(cost(*cases[case]))
        megabytes = sum(file.stat().st_size for file in files) / 1e6
    medians = {case: list(map(statistics.median, zip(*costs[case], strict=True))) for case in cases}
    seconds = {f"{case}_s": taken for case, (taken, _) in medians.items()}
    peaks = {f"{case}_MB": peak for case, (_, peak) in medians.items()}
    return {
        "dataset": name,
        "files_MB": megabytes,
        **seconds,
        "new / pandas": seconds["new_s"] / seconds["pandas_s"],
        "new / old": seconds["new_s"] / seconds["old_s"],
        **peaks,
        "peak new / old": peaks["new_MB"] / peaks["old_MB"],
    }


def cost(code: str, build: Path) -> tuple[float, float]:
    """Processor seconds and peak MB of a new process with an empty cache."""
    with tempfile.TemporaryDirectory() as cache:
        done = subprocess.run(
            [sys.executable, "-c", code + _COST],
            capture_output=True,
            text=True,
            check=False,
            cwd=build,
            env={**os.environ, **ONE_THREAD, "PYTHONPATH": str(build), "KUAISIM_CACHE": cache},
        )
    if done.returncode:
        raise RuntimeError(f"A load failed with the packages of {build}:\n{done.stderr[-2000:]}")
    seconds, peak = map(float, done.stdout.split()[-2:])
    return seconds, peak


def write_files(name: str, size: Size, folder: Path) -> list[Path]:
    """Writes the tables of a dataset that must be there; returns them."""
    import duckdb

    start, span = 1_593_878_400_000, 5_443_200_000  # ms: 2020-07-05, 63 days
    log = _EVENTS.format(
        users=size.users, rows=size.rows, videos=size.videos, start=start, span=span
    )
    test = _EVENTS.format(
        users=size.test_users, rows=size.test_rows, videos=size.videos, start=start + 1, span=span
    )
    if name == "kuairec":
        small = f"user_id < {size.test_users} AND video_id < {size.test_rows}"
        full = test.replace(f"% {size.videos} AS video_id", f"% {size.test_rows} AS video_id")
        queries = {
            "big_matrix": _MATRIX.format(events=log, timeless="false", where=f"NOT ({small})"),
            "small_matrix": _MATRIX.format(
                events=full, timeless="hash(user_id, k, 4) % 26 = 0", where="true"
            ),
        }
    else:
        late = f"time_ms >= {start + span // 2}"
        queries = {
            "log_standard_4_08_to_4_21_pure": _LOG.format(
                events=log, where=f"NOT {late}", random=0
            ),
            "log_standard_4_22_to_5_08_pure": _LOG.format(events=log, where=late, random=0),
            "log_random_4_22_to_5_08_pure": _LOG.format(events=test, where="true", random=1),
        }
    files = []
    with duckdb.connect() as connection:
        for table, query in queries.items():
            files.append(folder / f"{table}.csv")
            connection.execute(f"COPY ({query}) TO '{files[-1]}' (HEADER)")
    return files
