"""A catalogue that changes: the time of a step beside a fixed one's, and memory over its days."""

from __future__ import annotations

import argparse
from dataclasses import replace
from itertools import product

import numpy as np
from gymnasium.vector.utils import batch_space

from kuaisim_gym.config import SessionConfig
from kuaisim_gym.engine import find_engine
from kuaisim_gym.envs.actions import ACTION_TYPES, ActionKind
from kuaisim_gym.simulator import Simulator
from kuaisim_gym.simulator.catalogue import Catalogue
from kuaisim_gym.simulator.core import SessionCore
from kuaisim_gym.simulator.groups import POPULARITY, Groups
from kuaisim_gym.simulator.lifecycle import Lifecycle, Timetable
from kuaisim_gym.simulator.platform import Platform

from . import timing
from .memory import LARGE, large_model
from .play import LEAST_STEPS, TINY, Case, draw, enough, in_turns, make, player
from .timing import Row, in_fresh_processes, process_memory

FIXED, DYNAMIC = "KuaiRec-Fair-v0", "KuaiRec-Dynamic-v0"
VIEWS = (("slate", "state"), ("scorer", "state"), ("shares", "state"), ("slate", "dict"))
SESSIONS = (64, 1024)
LEAST_SECONDS = 0.3
LARGE_ACTIONS = ("slate", "scorer", "shares")
DAYS = (2, 15, 30)  # after which memory is measured
INITIAL, LIFETIME = 0.06, 2.0  # items come as fast as they leave: as many are there on each day


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    timing.add_out(parser, repeats=9)
    parser.add_argument("--items", type=int, default=LARGE, help="of the catalogue in memory")


def main(options: argparse.Namespace) -> None:
    """Measures, prints tables and writes ``dynamic.json``."""
    seconds, items = (0.0, TINY) if options.quick else (LEAST_SECONDS, None)
    cases = [
        Case(FIXED, actions, sessions=n, observation=observation, items=items)
        for n, (actions, observation) in product(SESSIONS, VIEWS)
    ]
    large = [
        Case(DYNAMIC, actions, sessions=SESSIONS[0], items=items or options.items)
        for actions in LARGE_ACTIONS
    ]
    tables = {
        "steps": [compared(case, options.repeats, seconds) for case in cases],
        "days": in_fresh_processes(lived, large),
    }
    timing.report("dynamic", tables, options.out, repeats=options.repeats)


def compared(case: Case, repeats: int, seconds: float) -> Row:
    """Processor microseconds of a step where the catalogue changes, and where it does not."""
    plays = {}
    for env in (FIXED, DYNAMIC):
        envs = make(replace(case, env=env))
        plays[env] = player(envs, draw(envs, case.sessions))
        plays[env](LEAST_STEPS)
    medians = in_turns(plays, enough(plays[FIXED], seconds), repeats)
    return {
        "actions": case.actions,
        "observation": case.observation,
        "sessions": case.sessions,
        "fixed_us": medians[FIXED],
        "dynamic_us": medians[DYNAMIC],
        "dynamic / fixed": medians[DYNAMIC] / medians[FIXED],
    }


def lived(case: Case) -> Row:
    """MB of a process whose platform lives its days, most of whose items come later.

    The catalogue is made directly, without a fit; nothing is observed. As many sessions begin in a
    day as are played at once, so that every session meets new days.
    """
    before = process_memory()["VmRSS"]
    core, kind = _opened(case)
    platform, space = core.platform, batch_space(kind.space, case.sessions)
    assert platform is not None
    space.seed(0)
    timing.forget_peak()
    core.seed(np.arange(case.sessions, dtype=np.uint64))
    core.reset()
    after: dict[int, float] = {}
    today, steps = platform.day, 0
    while platform.today[0] == 1:  # until it would open anew
        core.reset(core.step(kind.slates(np.asarray(space.sample()))).done)
        steps += 1
        if platform.day != today:
            after[today], today = process_memory()["VmRSS"], platform.day
            kind.follow(platform.catalogue())
    return {
        "actions": case.actions,
        "sessions": case.sessions,
        "items": case.items or LARGE,
        "of_the_last_day": int(platform.timetable.available(DAYS[-1]).sum()),
        "steps": steps,
        "MB_before": before,
        **{f"MB_after_day_{day}": after[day] for day in DAYS},
        "MB_at_the_peak": process_memory()["VmHWM"],
    }


def _opened(case: Case) -> tuple[SessionCore, ActionKind]:
    """Sessions of a platform on its first day, and their actions."""
    rng, n_items = np.random.default_rng(0), case.items or LARGE
    n_later = n_items - round(INITIAL * n_items)
    born = rng.permutation(np.append(np.zeros(n_items - n_later), rng.integers(1, 31, n_later)))
    stays = 1 + rng.exponential(LIFETIME, n_items).astype(np.int64)
    known = Catalogue(
        rng.standard_normal((n_items, 9), dtype=np.float32),
        np.where(born == 0, rng.integers(1, 10_000, n_items), 0),
    )
    timetable = Timetable(born.astype(np.int64), np.maximum(born, 1).astype(np.int64) + stays)
    config, engine = SessionConfig(slate_size=10), find_engine(case.engine)
    lifecycle = Lifecycle(days=(1, DAYS[-1]), sessions_per_day=case.sessions)
    platform = Platform(timetable, lifecycle, known, case.sessions, config, engine)
    groups = Groups(
        POPULARITY, ("long tail", "popular"), known.popular.astype(np.int8), np.full(2, 0.5)
    )
    core = SessionCore(
        large_model(rng, n_items),
        platform.following(groups),
        np.arange(400, dtype=np.int32),
        config,
        case.sessions,
        engine,
        popular=platform.popular,
        platform=platform,
    )
    kind = ACTION_TYPES[case.actions]
    return core, kind(core, platform.catalogue(), Simulator)  # type: ignore[arg-type]
