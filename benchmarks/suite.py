"""The ``suite`` command: many runs, side by side in processes; interrupted ones go on."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from dataclasses import replace
from itertools import product

from benchmarks import paper
from benchmarks.agents import agents_for, find_agent
from benchmarks.commands import add_jobs
from benchmarks.results import read_results
from benchmarks.run import Run, RunStudy, add_run_arguments, spec_of
from benchmarks.study import run_studies
from kuaisim_gym.errors import ConfigError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    parser.add_argument(
        "--table", type=int, choices=tuple(paper.TABLES),
        help="all runs of one of the paper's tables, on both synthetic worlds; then the table",
    )  # fmt: skip
    parser.add_argument("--agents", nargs="+", help="see run; default: all that the data allow")
    parser.add_argument("--max-len", type=int, nargs="+", help="default: 30, or the task's own")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(paper.SEEDS))
    add_jobs(parser)
    add_run_arguments(parser)


def main(options: argparse.Namespace) -> None:
    """Makes the runs that are missing, and prints the paper's table where it was asked for."""
    if options.table is None:
        base = spec_of(options, agent="random", max_len=None, seed=options.seeds[0])
        agents = options.agents or agents_for(base.load())
        runs = expand(base, agents, options.max_len or [base.max_len], options.seeds)
    else:
        _refuse_beside_table(options)
        agents = paper.agents_of(options.table)
        runs = []
        for env in paper.ENVS.values():
            base = spec_of(options, agent=agents[0], env=env, seed=options.seeds[0])
            runs += expand(base, agents, paper.MAX_LENS, options.seeds)
    studies = [RunStudy(spec, False, options.tensorboard) for spec in runs]
    run_studies(studies, options.out, options.jobs, options.threads)
    if options.table is not None:
        print(paper.markdown(read_results(options.out), (options.table,)))


def expand(
    base: Run, agents: Iterable[str], max_lens: Iterable[int], seeds: Iterable[int]
) -> list[Run]:
    """All combinations, as runs that differ from ``base`` in agent, length and seed.

    Raises:
        ConfigError: An agent is unknown, or two have one name.
    """
    agents = tuple(agents)
    names = [find_agent(agent).name for agent in agents]
    if len(set(names)) < len(names):
        raise ConfigError(f"Agents must have different names, got {names}: rename or drop one.")
    return [
        replace(base, agent=agent, max_len=max_len, seed=seed)
        for agent, max_len, seed in product(agents, max_lens, seeds)
    ]


def _refuse_beside_table(options: argparse.Namespace) -> None:
    """A table says what runs it consists of; seeds and sizes are anybody's choice."""
    for name in ("agents", "env", "max_len", "dataset"):
        if getattr(options, name) is not None:
            option = f"--{name.replace('_', '-')}"
            raise ConfigError(f"--table {options.table} fixes {option}: leave that out.")
