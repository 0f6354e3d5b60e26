"""Runs, searches and studies of agents and purifiers, with their tables and figures."""

from __future__ import annotations

import sys

from benchmarks.commands import run_command

COMMANDS = {
    "run": ("benchmarks.run", "train and evaluate one agent, one seed"),
    "suite": (
        "benchmarks.suite",
        "run agents x lengths x seeds, or a table of the paper",
    ),
    "tune": ("benchmarks.tuning", "search an agent's hyper-parameters on the train simulator"),
    "demo": (
        "benchmarks.demo",
        "run several kinds of agents in a small setting",
    ),
    "datasets": ("benchmarks.datasets", "describe the data, with Table 1 and Figure 2"),
    "purify": ("benchmarks.purify.study", "measure what purifiers remove and retain"),
    "estimates": ("benchmarks.estimates.study", "measure what state estimates are worth"),
    "phase": ("benchmarks.estimates.phase", "measure in which worlds purification matters"),
    "halves": ("benchmarks.halves", "compare rankings on users of whom nothing was chosen"),
    "figures": ("benchmarks.figures.command", "draw the paper's figures about purification"),
    "pareto": ("benchmarks.pareto.study", "compare a fairness dial with retrained agents"),
    "cost": ("benchmarks.cost", "measure what balance costs, by what policies know"),
    "labels": ("benchmarks.labels", "judge rankings by labels of random exposures"),
    "exposure": ("benchmarks.exposure", "audit the exposure of simple policies by ten metrics"),
    "stability": ("benchmarks.stability", "measure how steadily agents learn, from run results"),
    "film": ("benchmarks.film", "show a session of each environment as a GIF"),
    "table": ("benchmarks.tables", "print the tables of run results"),
    "plot": ("benchmarks.plots", "draw the figures of run results as PNG"),
    "report": ("benchmarks.report", "write all tables into DIR/README.md"),
}


def main(arguments: list[str] | None = None) -> int:
    """Runs one command; returns the exit status."""
    return run_command("python -m benchmarks", __doc__, COMMANDS, arguments)


if __name__ == "__main__":
    sys.exit(main())
