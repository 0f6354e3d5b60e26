"""The ``figures`` command: makes the studies that are missing and draws the figures."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from matplotlib.figure import Figure

from benchmarks import datasets
from benchmarks.commands import add_jobs
from benchmarks.figures import policies, sensitivity, states, studies
from benchmarks.figures.drawing import save
from benchmarks.figures.studies import results_of
from benchmarks.results import read_results
from kuaisim_gym.data import DATASETS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    parser.add_argument(
        "--results", type=Path, required=True, metavar="DIR",
        help="folder of the run results; studies are kept in its subfolder figures",
    )  # fmt: skip
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="folder of the PNG files; default: the studies'"
    )
    parser.add_argument(
        "--only", type=int, nargs="+", default=list(FIGURES), choices=FIGURES, metavar="FIGURE",
        help=f"which figures of the paper: {', '.join(map(str, FIGURES))}; default: all",
    )  # fmt: skip
    parser.add_argument(
        "--episodes", type=int, default=sensitivity.EPISODES, help="training sessions, Figure 6"
    )
    parser.add_argument("--sessions", type=int, default=studies.SESSIONS, help="test sessions")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(studies.SEEDS))
    parser.add_argument(
        "--steps", type=int, nargs="+", default=list(sensitivity.STEPS), metavar="K",
        help="diffusion steps, Figure 6",
    )  # fmt: skip
    add_jobs(parser)


def main(options: argparse.Namespace) -> None:
    """Draws the figures and prints the names of their files.

    Raises:
        ConfigError: Results of PPO are missing, or a study is there with other settings.
        DataFormatError: The folder of the results holds none, or something else.
    """
    for number in sorted(set(options.only)):
        out = options.out or _folder(options)
        print(save(FIGURES[number](options), out / f"figure{number}.png"))


def figure2(options: argparse.Namespace) -> Figure:
    """Exposure against total and mean reward, of both synthetic worlds."""
    return datasets.draw([studies.world(name) for name in DATASETS])


def figure3(options: argparse.Namespace) -> Figure:
    """Raw beside purified states, of three policies."""
    learned = policies.ppo_results(read_results(options.results), studies.world(), options.seeds)
    needed = policies.studies(options.seeds, options.sessions)
    results = results_of(needed, _folder(options), options.jobs)
    return policies.draw(policies.bars(results, learned))


def figure4(options: argparse.Namespace) -> Figure:
    """Positions of users' states, of one purifier."""
    (result,) = results_of([states.StatesStudy(options.seeds[0])], _folder(options), jobs=1)
    return states.draw(result)


def figure6(options: argparse.Namespace) -> Figure:
    """Sensitivity to the number of diffusion steps."""
    needed = sensitivity.studies(options.steps, options.seeds, options.episodes, options.sessions)
    return sensitivity.draw(results_of(needed, _folder(options), options.jobs))


FIGURES: dict[int, Callable[[argparse.Namespace], Figure]] = {
    2: figure2,
    3: figure3,
    4: figure4,
    6: figure6,
}


def _folder(options: argparse.Namespace) -> Path:
    """Folder of the studies."""
    folder: Path = options.results / "figures"
    return folder
