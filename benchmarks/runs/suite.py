"""The ``suite`` command: many runs in parallel; an interrupted suite continues."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from dataclasses import replace
from itertools import product

from kuaisim_gym import ENVIRONMENTS
from kuaisim_gym.errors import ConfigError

from .. import paper
from ..agents import agents_for, find_agent
from ..commands import add_jobs, place
from ..reports.tables import markdown
from ..studies.backends import backend_of
from ..studies.results import read_results
from ..studies.study import run_studies
from . import worlds
from .run import RunStudy
from .settings import Run, add_run_arguments, add_world_arguments, spec_of

WORLDS = "worlds"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    parser.add_argument(
        "--table", choices=(*map(str, paper.TABLES), WORLDS),
        help="make all runs of one of the paper's tables, on both synthetic worlds; or of the "
        "rows that matter most, on all worlds; and print it; default: runs of the other options",
    )  # fmt: skip
    parser.add_argument(
        "--real", type=place, metavar="DIR",
        help="folder with kuairec_real and kuairand_real, whose worlds --table worlds includes; "
        "default: synthetic worlds alone",
    )  # fmt: skip
    add = parser.add_argument
    add("--agents", nargs="+", help="names, as for train; default: all that the data allow")
    add("--max-len", type=int, nargs="+", help="longest sessions; default: the environment's")
    add("--seeds", type=int, nargs="+", default=list(paper.SEEDS), help="of agents")
    add_jobs(parser)
    add("--env", help=f"{', '.join(ENVIRONMENTS)}; or your own; default: that of the dataset")
    add_world_arguments(parser)
    add_run_arguments(parser)


def main(options: argparse.Namespace) -> None:
    """Makes the missing runs, and prints a table of the paper with ``--table``."""
    if options.real is not None and options.table != WORLDS:
        raise ConfigError("--real names the worlds of --table worlds: leave it out.")
    if options.table is None:
        base = spec_of(options, agent="random", max_len=None, seed=options.seeds[0])
        agents = options.agents or agents_for(base.load())
        runs = expand(base, agents, options.max_len or [base.max_len], options.seeds)
    else:
        for name in ("agents", "env", "max_len", "dataset", "dataset_seed", "slate_size"):
            if getattr(options, name):
                option = f"--{name.replace('_', '-')}"
                raise ConfigError(f"--table {options.table} fixes {option}: leave that out.")
        if options.table == WORLDS:
            sizes = (options.episodes, options.sessions)
            runs = list(worlds.runs(options.seeds, options.real, *sizes))
        else:
            runs = _paper_runs(options)
    studies = [RunStudy(spec, False, options.tensorboard) for spec in runs]
    run_studies(studies, options.out, backend_of(options))
    if options.table == WORLDS:
        print(markdown(read_results(options.out)))
    elif options.table is not None:
        print(paper.markdown(read_results(options.out), (int(options.table),)))


def _paper_runs(options: argparse.Namespace) -> list[Run]:
    """The runs of a table of the paper."""
    agents, runs = paper.agents_of(int(options.table)), []
    for env in paper.ENVS.values():
        base = spec_of(options, agent=agents[0], env=env, seed=options.seeds[0])
        runs += expand(base, agents, paper.MAX_LENS, options.seeds)
    return runs


def expand(
    base: Run, agents: Iterable[str], max_lens: Iterable[int], seeds: Iterable[int]
) -> list[Run]:
    """Runs for all combinations of agents, lengths and seeds, otherwise like ``base``.

    Raises:
        ConfigError: An agent is unknown, or two have the same name.
    """
    agents = tuple(agents)
    names = [find_agent(agent).name for agent in agents]
    if len(set(names)) < len(names):
        raise ConfigError(f"Agents must have different names, got {names}: rename or drop one.")
    return [
        replace(base, agent=agent, max_len=max_len, seed=seed)
        for agent, max_len, seed in product(agents, max_lens, seeds)
    ]
