"""Resident memory of running sessions, and its growth over time."""

from __future__ import annotations

import argparse
import ctypes
import gc
from dataclasses import replace

from benchmarks.speed import timing
from benchmarks.speed.play import TINY, Case, draw, make, player
from benchmarks.speed.timing import Row, in_fresh_processes, process_memory

ENV = "KuaiRand-Fair-v0"
VIEWS = [("discrete", "state"), ("slate", "state"), ("scorer", "state"), ("slate", "dict"),
         ("slate", "history"), ("fusion", "state")]  # fmt: skip
STEPS = 60  # at least two sessions of every user


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    timing.add_out(parser)
    timing.add_sessions(parser)


def main(options: argparse.Namespace) -> None:
    """Measures, prints tables and writes ``memory.json``."""
    items = TINY if options.quick else None
    case = Case(ENV, sessions=options.sessions, engine=options.engine, items=items)
    views = [replace(case, actions=actions, observation=kind) for actions, kind in VIEWS]
    runs = [case, replace(case, shell="single", sessions=1)]
    early = [5_000, 500] if options.quick else [500_000, 50_000]
    tables = {
        "sessions": in_fresh_processes(occupied, views),
        "growth": in_fresh_processes(grown, runs, early),
    }
    timing.report("memory", tables, options.out)


def occupied(case: Case) -> Row:
    """MB that sessions add to a process with dataset and models that has played one session."""
    single = make(replace(case, sessions=1))
    actions = draw(single, case.sessions)
    player(single, draw(single, 1))(STEPS)
    del single
    gc.collect()
    if hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)  # or sessions would reuse freed memory
    timing.forget_peak()
    before = process_memory()
    env = make(case)
    player(env, actions)(STEPS)
    after = process_memory()
    return {
        "env": case.env,
        "actions": case.actions,
        "observation": case.observation,
        "sessions": case.sessions,
        "MB_before": before["VmRSS"],
        "MB_added": after["VmRSS"] - before["VmRSS"],
        "of_which_anonymous": after["RssAnon"] - before["RssAnon"],
        "MB_added_at_the_peak": after["VmHWM"] - before["VmRSS"],
    }


def grown(case: Case, early: int) -> Row:
    """MB of a process after some user-steps of an environment, and after ten times as many."""
    env = make(case)
    play = player(env, draw(env, case.sessions))
    steps = early // case.sessions
    play(steps)
    first = process_memory()["VmRSS"]
    play(9 * steps)
    last = process_memory()["VmRSS"]
    return {
        "env": case.env,
        "shell": case.shell,
        "sessions": case.sessions,
        "user_steps": steps * case.sessions,
        "MB": first,
        "MB_after_ten_times_as_many": last,
        "ratio": last / first,
    }
