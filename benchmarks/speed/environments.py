"""User-steps per second of all shells, their growth, and the stages of a step."""

from __future__ import annotations

import argparse
from copy import copy
from dataclasses import replace
from functools import partial
from itertools import product
from operator import attrgetter
from types import SimpleNamespace

from tqdm.auto import tqdm

from kuaisim_gym.engine import find_engine
from kuaisim_gym.observation import PREFERENCES

from .play import LEAST_STEPS, TINY, Case, draw, enough, in_turns, make, player
from .timing import Clock, Row, add_out, add_sessions, report, timed

ENVS = ("KuaiRec-Fair-v0", "KuaiRand-Fair-v0")
ACTIONS = ("discrete", "slate", "scorer")
TASKS = (("KuaiRand-Request-v0", "slate"), ("KuaiRand-Retention-v0", "fusion"))
GROWING_SESSIONS = (1, 4, 16, 64, 256, 1024, 4096)
GROWING_ITEMS = (1000, 3000, 10_000, 30_000)
PREFERENCE_SESSIONS = (64, 1024)
LEAST_SECONDS = 0.3

# Stages of a step by functions of the vector environment, those of parts before that of the whole.
STAGES = {
    "batch.actions.slates": "actions to slates (top k)",
    "batch.core.check": "checks of slates",
    "batch.core.answers.feedback": "model answers",
    "batch.core.engine.advance": "advance: draws, rewards, temper, records",
    "batch.encoder.update": "update: history of the state",
    "batch.encoder.observe": "observations",
    "batch.play": "all of these but slates, in one compiled call",
    "batch.renew": "new sessions",
    "batch.info": "infos, session metrics",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    add_out(parser, repeats=5)
    add_sessions(parser)


def main(options: argparse.Namespace) -> None:
    """Measures, prints tables and writes ``environments.json``."""
    engine = find_engine(options.engine).name
    seconds = 0.0 if options.quick else LEAST_SECONDS
    tables = {
        title: [measure(case, options.repeats, seconds) for case in tqdm(cases, title, leave=False)]
        for title, cases in plan(options.sessions, engine, options.quick).items()
    }
    case = Case(sessions=options.sessions, engine=engine, items=TINY if options.quick else None)
    tables["preferences"] = [
        preferences(replace(case, env=env, actions="slate", sessions=n), options.repeats, seconds)
        for env, n in product(ENVS, PREFERENCE_SESSIONS[: 1 if options.quick else None])
    ]
    columns = {
        f"{env} {actions}": stages(replace(case, env=env, actions=actions))
        for env, actions in product(ENVS, ACTIONS)
    }
    tables["parts"] = [
        {"processor_ns": stage, **{name: column[stage] for name, column in columns.items()}}
        for stage in (*STAGES.values(), "rest")
    ]
    report("environments", tables, options.out, repeats=options.repeats)


def plan(sessions: int, engine: str, quick: bool) -> dict[str, list[Case]]:
    """Cases by table."""
    small_batch, items = max(1, sessions // 16), TINY if quick else None
    shells = dict.fromkeys(  # without duplicates if the engine is NumPy
        [("SameStep", sessions, engine), ("NextStep", sessions, engine),
         ("SameStep", sessions, "numpy"), ("sb3", small_batch, engine), ("sb3", sessions, engine),
         ("single", 1, engine)]
    )  # fmt: skip
    return {
        "environments": [
            *(
                Case(env, actions, shell, n, name, items=items)
                for env, actions in product(ENVS, ACTIONS)
                for shell, n, name in shells
            ),
            *(Case(*task, "SameStep", small_batch, engine, items=items) for task in TASKS),
        ],
        "sessions": [
            Case(ENVS[0], actions, "SameStep", n, engine, items=items)
            for actions in ACTIONS
            for n in GROWING_SESSIONS[: 2 if quick else None]
        ],
        "items": [
            Case(ENVS[0], actions, "SameStep", max(1, sessions // 4), engine, items=n)
            for n in ((TINY // 2, TINY) if quick else GROWING_ITEMS)
            for actions in ("discrete", "scorer")
        ],
    }


def measure(case: Case, repeats: int, seconds: float) -> Row:
    """User-steps per second, resets included; a timing takes at least some seconds."""
    env = make(case)
    play = player(env, draw(env, case.sessions))
    play(LEAST_STEPS)  # compiles, and lets sessions get out of step
    steps = enough(play, seconds)
    batch = env.unwrapped.batch
    return {
        "env": case.env,
        "shell": case.shell,
        "actions": case.actions,
        "engine": batch.core.engine.name,
        "sessions": case.sessions,
        "items": batch.catalogue.n_items,
        "steps": steps,
        **timed(partial(play, steps), repeats),
    }


def preferences(case: Case, repeats: int, seconds: float) -> Row:
    """Processor microseconds of a step by what is shown of the preference, measured in turns.

    Median by median, they are compared with those of the usual state.
    """
    plays = {}
    for kind in PREFERENCES:
        env = make(replace(case, preference=kind))
        plays[kind] = player(env, draw(env, case.sessions))
        plays[kind](LEAST_STEPS)
    medians = in_turns(plays, enough(plays["belief"], seconds), repeats)
    ratios = {f"{kind} / pooled": medians[kind] / medians["pooled"] for kind in PREFERENCES[1:]}
    row: Row = {"env": case.env, "actions": case.actions, "sessions": case.sessions}
    return {**row, **{f"{kind}_us": median for kind, median in medians.items()}, **ratios}


def stages(case: Case) -> dict[str, float]:
    """Processor nanoseconds per user-step of each stage while sessions are played."""
    env, clock = make(case), Clock()
    play = player(env, draw(env, case.sessions))
    play(LEAST_STEPS)
    env.batch.core.engine = copy(env.batch.core.engine)  # the original stays unclocked
    for path, stage in STAGES.items():
        owner, _, name = f"env.{path}".rpartition(".")
        clock.attach(attrgetter(owner)(SimpleNamespace(env=env)), name, stage)
    steps = 4 * LEAST_STEPS
    clock.around(play, "rest")(steps)
    scale = 1e9 / (steps * case.sessions)
    return {stage: scale * clock.seconds[stage] for stage in (*STAGES.values(), "rest")}
