"""The ``figures`` command: makes the studies that are missing and draws the figures."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

from PIL import Image

from benchmarks import datasets
from benchmarks.figures import policies, sensitivity, states, studies
from benchmarks.figures.drawing import save, save_small
from benchmarks.figures.studies import finish_all
from benchmarks.paper import ENVS
from benchmarks.results import read_results


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
    parser.add_argument(
        "--jobs",
        type=int,
        default=2,
        choices=range(1, 65),
        metavar="N",
        help="processes side by side",
    )


def main(options: argparse.Namespace) -> None:
    """Draws the figures and prints the names of their files.

    Raises:
        ConfigError: Results of PPO are missing, or a study is there with other settings.
        DataFormatError: The folder of the results holds none, or something else.
    """
    for figure in sorted(set(options.only)):
        print(FIGURES[figure](options))


def figure2(options: argparse.Namespace) -> Path:
    """Exposure against total and mean reward, of both synthetic worlds."""
    out = _out(options)
    out.mkdir(parents=True, exist_ok=True)
    # Drawn apart: the folder may hold a figure of the other command's name.
    with TemporaryDirectory(dir=out) as folder:
        drawn = datasets.plot([studies.world(name) for name in ENVS], Path(folder))
        return save_small(Image.open(drawn), out / "figure2.png")


def figure3(options: argparse.Namespace) -> Path:
    """Raw beside purified states, of three policies."""
    learned = policies.ppo_results(read_results(options.results), studies.world(), options.seeds)
    wanted = policies.studies(options.seeds, options.sessions)
    made = finish_all(wanted, _folder(options), options.jobs)
    return save(policies.draw(policies.bars(made, learned)), _out(options) / "figure3.png")


def figure4(options: argparse.Namespace) -> Path:
    """Where users' states lie, of one purifier."""
    wanted = [states.StatesStudy(options.seeds[0])]
    (made,) = finish_all(wanted, _folder(options), jobs=1)
    return save(states.draw(made), _out(options) / "figure4.png")


def figure6(options: argparse.Namespace) -> Path:
    """Sensitivity to the number of diffusion steps."""
    wanted = sensitivity.studies(options.steps, options.seeds, options.episodes, options.sessions)
    made = finish_all(wanted, _folder(options), options.jobs)
    return save(sensitivity.draw(made), _out(options) / "figure6.png")


FIGURES: dict[int, Callable[[argparse.Namespace], Path]] = {
    2: figure2,
    3: figure3,
    4: figure4,
    6: figure6,
}


def _folder(options: argparse.Namespace) -> Path:
    """Where the studies are kept."""
    folder: Path = options.results / "figures"
    return folder


def _out(options: argparse.Namespace) -> Path:
    return options.out or _folder(options)
