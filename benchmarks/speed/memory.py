"""Resident memory of running sessions, its growth over time, and that of large catalogues."""

from __future__ import annotations

import argparse
import ctypes
import gc
from dataclasses import replace

import numpy as np
from gymnasium.vector.utils import batch_space

from kuaisim_gym.config import SessionConfig
from kuaisim_gym.engine import find_engine
from kuaisim_gym.envs.actions import ACTION_TYPES
from kuaisim_gym.simulator import Simulator
from kuaisim_gym.simulator.catalogue import Catalogue
from kuaisim_gym.simulator.core import SessionCore
from kuaisim_gym.simulator.groups import POPULARITY, Groups
from kuaisim_gym.simulator.response import FactorModel

from . import timing
from .play import TINY, Case, draw, make, player
from .timing import Row, in_fresh_processes, process_memory

ENV = "KuaiRand-Fair-v0"
VIEWS = [("discrete", "state"), ("slate", "state"), ("scorer", "state"), ("slate", "dict"),
         ("slate", "history"), ("fusion", "state")]  # fmt: skip
LARGE_ACTIONS = ("discrete", "slate", "scorer")
STEPS = 60  # at least two sessions of every user
LARGE = 1_000_000  # items
LARGE_STEPS = 20  # of some sessions that end, and of others that begin


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
    large = [replace(case, actions=actions, items=items or LARGE) for actions in LARGE_ACTIONS]
    early = [5_000, 500] if options.quick else [500_000, 50_000]
    tables = {
        "sessions": in_fresh_processes(occupied, views),
        "growth": in_fresh_processes(grown, runs, early),
        "large": in_fresh_processes(of_large_catalogue, large),
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


def of_large_catalogue(case: Case) -> Row:
    """MB of a process that plays sessions of a catalogue which is made directly, without a fit.

    The items are as many as the case says; nothing is observed.
    """
    before = process_memory()["VmRSS"]
    rng, n_items = np.random.default_rng(0), case.items or LARGE
    catalogue = Catalogue(
        rng.standard_normal((n_items, 9), dtype=np.float32), rng.integers(1, 10_000, n_items)
    )
    labels, names = catalogue.popular.astype(np.int8), ("long tail", "popular")
    core = SessionCore(
        large_model(rng, n_items),
        Groups(POPULARITY, names, labels, np.full(2, 0.5)),
        np.arange(400, dtype=np.int32),
        SessionConfig(slate_size=1 if case.actions == "discrete" else 10),
        case.sessions,
        find_engine(case.engine),
    )
    kind = ACTION_TYPES[case.actions](core, catalogue, Simulator)  # type: ignore[arg-type]
    space = batch_space(kind.space, case.sessions)
    space.seed(0)
    of_items = process_memory()["VmRSS"]
    timing.forget_peak()
    core.seed(np.arange(case.sessions, dtype=np.uint64))
    core.reset()
    for _ in range(LARGE_STEPS):
        core.reset(core.step(kind.slates(np.asarray(space.sample()))).done)
    return {
        "actions": case.actions,
        "sessions": case.sessions,
        "items": n_items,
        "MB_before": before,
        "MB_of_the_catalogue": of_items - before,
        "MB_of_the_sessions": process_memory()["VmRSS"] - of_items,
        "MB_in_all_at_the_peak": process_memory()["VmHWM"],
    }


def large_model(rng: np.random.Generator, n_items: int) -> FactorModel:
    """A response model of 400 users and some items, drawn instead of fitted."""
    return FactorModel(
        ("click",),
        True,
        mean=np.zeros(1, dtype=np.float32),
        slope=np.ones(1, dtype=np.float32),
        user_effect=np.zeros((1, 400), dtype=np.float32),
        item_effect=rng.standard_normal((1, n_items), dtype=np.float32),
        user_factors=rng.standard_normal((400, 8), dtype=np.float32),
        item_factors=rng.standard_normal((n_items, 8), dtype=np.float32),
    )
