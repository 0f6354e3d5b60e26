"""Cost of the factor model of preferences, on the synthetic worlds and on a log of any size."""

from __future__ import annotations

import argparse
import time
from functools import partial

from kuaisim_gym.data import Dataset
from kuaisim_gym.data.synthetic import (
    KuaiRandConfig,
    SyntheticConfig,
    synthetic_kuairand,
    synthetic_kuairec,
)
from kuaisim_gym.simulator.factors import fit_preference_model

from .timing import (
    Row,
    add_out,
    forget_peak,
    in_fresh_processes,
    process_memory,
    report,
)

ROWS = 12_500_000  # of KuaiRec's big matrix: 7,176 users and 10,728 videos
QUICK = 20_000
N_ITEMS = 10_728
WORLDS = ("kuairec", "kuairand", "large")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    parser.add_argument("--rows", type=int, default=ROWS, help="rows of the large log, about")
    add_out(parser)


def main(options: argparse.Namespace) -> None:
    """Measures, prints a table and writes ``factors.json``."""
    rows = QUICK if options.quick else options.rows
    measure = partial(measured, rows=rows, quick=options.quick)
    report("factors", {"factors": in_fresh_processes(measure, WORLDS)}, options.out, rows=rows)


def measured(name: str, rows: int, quick: bool) -> Row:
    """Processor seconds of a fit, and the MB that it needed above the data."""
    data = _world(name, rows, quick).training
    forget_peak()
    before, started = process_memory()["VmRSS"], time.process_time()
    model = fit_preference_model(data)
    seconds = time.process_time() - started
    return {
        "world": name,
        "users": data.n_users,
        "items": data.n_all_items,
        "rows": len(data.log),
        "factors": model.dim - 1,
        "processor_seconds": seconds,
        "MB_added": process_memory()["VmHWM"] - before,
        "MB_peak": process_memory()["VmHWM"],
    }


def _world(name: str, rows: int, quick: bool) -> Dataset:
    """A synthetic world; the large one has KuaiRec's users and videos and few of its test rows."""
    if name == "kuairand":
        return synthetic_kuairand(0, KuaiRandConfig(n_users=400) if quick else KuaiRandConfig())
    config = SyntheticConfig(n_users=400, n_test_users=40) if quick else SyntheticConfig()
    if name == "large":
        config = SyntheticConfig(
            n_users=config.n_users,
            n_items=N_ITEMS,
            n_test_users=20,
            events_per_user=round(rows / config.n_users),
        )
    return synthetic_kuairec(0, config)
