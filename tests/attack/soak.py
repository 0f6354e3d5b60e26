"""Hours in the life of a process: calls on all shells in turn, and its memory."""

from __future__ import annotations

import gc
import time

from benchmarks.speed.timing import process_memory
from tests.attack.calls import random_calls
from tests.attack.counts import Counts

CALLS = 500  # of a tour, on all shells
WARM_UP = 8  # tours at least, and a tenth of the time: what is kept, such as code, is made in them
GROWTH = 0.02


def soak(n: int, seed: int, calls: int = CALLS) -> Counts:
    """Makes calls for some minutes; each tour holds in which memory has not grown.

    Args:
        n: Minutes; with none, a single tour after the warm-up.
        seed: Of the calls.
        calls: Of each tour.
    """
    counts, allowed, tour, start = Counts(), float("inf"), 0, time.monotonic()
    while tour <= WARM_UP or time.monotonic() < start + 60 * n:
        counts += Counts(lost=random_calls(calls, seed * 10**6 + tour).lost)
        gc.collect()
        memory, tour = process_memory()["VmRSS"], tour + 1
        if tour < WARM_UP or time.monotonic() < start + 6 * n:
            continue
        if allowed == float("inf"):
            allowed = memory * (1 + GROWTH)
            continue
        grown = f"tour {tour}: {memory:.1f} MB, allowed are {allowed:.1f} MB"
        counts.note(grown if memory > allowed else None)
    return counts
