"""The ``demo`` command: small runs of several kinds of agents on the synthetic world."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from dsrm_agents.baselines.reference import CEILING
from kuaisim_gym import load_dataset

from .commands import add_jobs, out_folder
from .reports.plots import plot_all
from .reports.tables import markdown
from .runs.run import RunStudy
from .runs.settings import Run
from .runs.suite import expand
from .studies.backends import backend_of
from .studies.results import read_results
from .studies.study import run_studies

# Slow agents first: two processes then finish together. Of the rows with a band only the ceiling:
# the audit of each row costs seconds.
AGENTS = (
    "dsrm-hrl", "hrl", "td3", "ppo", "a2c", "random", "popularity", "quality+quota",
    "filter+quota", "expected-quality+quota", "train-oracle+quota", "expected-oracle+quota",
    CEILING, "realised-oracle+quota",
)  # fmt: skip
EPISODES, SMOKE_EPISODES = 3000, 64


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, to see that it runs")
    add_jobs(parser)
    parser.add_argument(
        "--out", type=out_folder, default=Path("results/demo"), metavar="DIR",
        help="folder in which a new subfolder is made",
    )  # fmt: skip


def main(options: argparse.Namespace) -> None:
    """Runs the agents, prints their table and draws their figures."""
    load_dataset("kuairec")  # built once, before all processes need it
    episodes, sessions = (SMOKE_EPISODES, 100) if options.smoke else (EPISODES, 1000)
    # A new subfolder: the demo always runs and overwrites nothing.
    out = options.out / time.strftime("%Y-%m-%dT%H-%M-%S")
    base = Run("random", episodes=episodes, sessions=sessions)
    runs = expand(base, AGENTS, [base.max_len], [base.seed])
    run_studies([RunStudy(run, progress=False) for run in runs], out, backend_of(options))
    results = read_results(out)
    print(markdown(results))
    print(*plot_all(results, out), sep="\n")
