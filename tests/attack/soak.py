"""Hours in the life of a process: calls on all shells in turn, and its memory."""

from __future__ import annotations

import gc
import time

from benchmarks.speed.timing import process_memory
from tests.attack.calls import random_calls
from tests.attack.counts import Counts

CALLS = 500  # of a tour, on all shells
WARM_UP = 8  # tours, after which everything that is kept has been made
GROWTH = 0.02


def soak(n: int, seed: int, calls: int = CALLS) -> Counts:
    """Makes calls for some minutes; each tour holds in which memory has not grown.

    Args:
        n: Minutes; with none, a single tour after the warm-up.
        seed: Of the calls.
        calls: Of each tour.
    """
    counts, allowed, tour = Counts(), float("inf"), 0
    end = time.monotonic() + 60 * n
    while tour <= WARM_UP or time.monotonic() < end:
        counts += Counts(lost=random_calls(calls, seed * 10**6 + tour).lost)
        gc.collect()
        memory, tour = process_memory()["VmRSS"], tour + 1
        if tour == WARM_UP:
            allowed = memory * (1 + GROWTH)
        elif tour > WARM_UP:
            grown = f"tour {tour}: {memory:.1f} MB, allowed are {allowed:.1f} MB"
            counts.note(grown if memory > allowed else None)
    return counts
