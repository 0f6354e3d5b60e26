"""Trains, judges, plays and compares agents and purifiers; makes the tables and figures."""

from __future__ import annotations

import os
import sys
from functools import partial
from typing import NoReturn

from kuaisim_gym.console import end_process

from .commands import Command, run_command

resumed = partial(Command, resumes=True)
COMMANDS = {
    "data": Command(".data", "check, download and cache datasets"),
    "train": resumed(".runs.run", "train and judge one agent, one seed", aliases=("run",)),
    "evaluate": Command(
        ".runs.evaluate", "judge an agent: by its name, or one that a run has kept"
    ),
    "play": Command(".runs.play", "show sessions of an agent, as text or as pictures"),
    "release": Command(".released.making", "make files for others of agents that runs have kept"),
    "suite": resumed(".runs.suite", "train agents x lengths x seeds, or a table of the paper"),
    "leaderboard": resumed(
        ".reports.leaderboard", "enter an agent: where it stands among all others"
    ),
    "tune": resumed(".runs.tuning", "search an agent's hyper-parameters on the train simulator"),
    "table": Command(".reports.tables", "print the tables of results"),
    "plot": Command(".reports.plots", "draw the figures of results as PNG"),
    "report": Command(
        ".reports.report", "write the tables of a folder, or one page on some results"
    ),
    "demo": Command(".demo", "run several kinds of agents in a small setting"),
    "datasets": resumed(".datasets", "describe the data, with Table 1 and Figure 2"),
    "captions": resumed(".captions", "measure what captions and categories say of answers"),
    "purify": resumed(".purify.study", "measure what purifiers remove and retain"),
    "estimates": resumed(".estimates.study", "measure what state estimates are worth"),
    "phase": resumed(".estimates.phase", "measure in which worlds purification matters"),
    "halves": resumed(".halves", "compare rankings on users of whom nothing was chosen"),
    "figures": resumed(".figures.command", "draw the paper's figures about purification"),
    "pareto": resumed(".pareto.study", "compare a fairness dial with retrained agents"),
    "cost": resumed(".cost", "measure what balance costs, by what policies know"),
    "labels": resumed(".labels", "judge rankings by labels of random exposures"),
    "exposure": resumed(".exposure", "audit the exposure of simple policies by ten metrics"),
    "ope": resumed(".ope.study", "score off-policy estimates by the simulator's truth"),
    "ab": resumed(".ab.study", "test policies against each other on simulated users"),
    "days": resumed(".days.study", "play agents on a platform whose items come and go"),
    "stability": Command(".reports.stability", "measure how steadily agents learn, from results"),
}


def main(arguments: list[str] | None = None, prog: str = "kuaisim") -> int:
    """Runs one command; returns the exit status."""
    return run_command(prog, __doc__, COMMANDS, arguments)


def console() -> NoReturn:
    """Runs one command of ``kuaisim``, which finds modules of this folder as ``python -m`` does."""
    sys.path.append(os.getcwd())
    end_process(main())


if __name__ == "__main__":
    end_process(main(prog=f"python -m {__package__}"))
