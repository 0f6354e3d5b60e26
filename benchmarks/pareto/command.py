"""The ``pareto`` command: trains what is missing, prints the tables and draws the figures."""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.pareto import study
from benchmarks.pareto.plot import plot_all
from benchmarks.pareto.report import markdown, read_studies
from benchmarks.run import Run


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    usual = Run(study.AGENTS[study.DIAL])
    parser.add_argument("--env", default=usual.env, choices=study.ENVS)
    parser.add_argument("--dataset", metavar="PATH", help="folder of real data; default: synthetic")
    parser.add_argument("--max-len", type=int, default=usual.max_len)
    parser.add_argument("--seeds", type=int, nargs="+", default=[11, 15, 19])
    parser.add_argument(
        "--episodes", type=int, default=usual.episodes, help="training sessions of each agent"
    )
    parser.add_argument(
        "--sessions", type=int, default=usual.sessions, help="test sessions at each setting"
    )
    parser.add_argument(
        "--targets", type=float, nargs="+", default=list(study.TARGETS), metavar="SHARE",
        help="long-tail shares that the dial is set to",
    )  # fmt: skip
    parser.add_argument(
        "--retrained-targets", type=float, nargs="*", metavar="SHARE",
        help="those for which an agent is trained, too; default: all targets",
    )  # fmt: skip
    parser.add_argument(
        "--penalties", type=float, nargs="*", default=list(study.PENALTIES), metavar="WEIGHT",
        help="weights of the flat agents' fairness reward",
    )  # fmt: skip
    parser.add_argument(
        "--preferences", type=float, nargs="*", default=list(study.PREFERENCES), metavar="W",
        help="weights of utility at which MOFIR is played",
    )  # fmt: skip
    parser.add_argument(
        "--jobs", type=int, default=2, choices=range(1, 65), metavar="N",
        help="processes side by side",
    )  # fmt: skip
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--out", type=Path, metavar="DIR", help="folder of the results and figures")
    where.add_argument("--table", type=Path, metavar="DIR", help="only print the tables of DIR")


def main(options: argparse.Namespace) -> None:
    """Trains and plays what is missing, prints the tables, draws the figures.

    Raises:
        ConfigError: A setting makes no sense, or a result is there with other settings.
        DataFormatError: The folder holds no results, or some that do not compare.
    """
    if options.table is not None:
        print(markdown(read_studies(options.table)))
        return
    base = Run(
        study.AGENTS[study.DIAL],
        options.env,
        options.dataset,
        options.max_len,
        episodes=options.episodes,
        sessions=options.sessions,
    )
    retrained = options.targets if options.retrained_targets is None else options.retrained_targets
    settings = (options.targets, retrained, options.penalties, options.preferences)
    parts = study.plan(base, options.seeds, *settings)
    study.run_all(parts, options.out, options.jobs)
    studies = read_studies(options.out)
    print(markdown(studies))
    print(*plot_all(studies, options.out), sep="\n")
