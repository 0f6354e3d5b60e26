"""The ``figures`` command: makes the missing studies and draws the figures."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence

from matplotlib.figure import Figure

from kuaisim_gym.disk import check_writable

from .. import datasets
from ..commands import add_jobs, place
from ..paper import ENVS, SEEDS
from ..reports.plots import save_small
from ..studies.backends import backend_of
from ..studies.results import Result, read_result, read_results
from ..studies.study import Study, run_studies
from . import policies, sensitivity, states, studies


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    add = parser.add_argument
    add(
        "--results", type=place, required=True, metavar="DIR",
        help="folder of run results; studies are saved in its subfolder figures",
    )  # fmt: skip
    add("--out", type=place, metavar="DIR", help="folder of the PNG files; default: the studies'")
    numbers = ", ".join(map(str, FIGURES))
    add(
        "--only", type=int, nargs="+", default=list(FIGURES), choices=FIGURES, metavar="FIGURE",
        help=f"figures of the paper: {numbers}",
    )  # fmt: skip
    add("--episodes", type=int, default=sensitivity.EPISODES, help="training sessions for Figure 6")
    add("--sessions", type=int, default=studies.SESSIONS, help="test sessions")
    add("--seeds", type=int, nargs="+", default=list(SEEDS), help="of agents")
    add(
        "--steps", type=int, nargs="+", default=list(sensitivity.STEPS), metavar="K",
        help="diffusion steps for Figure 6",
    )  # fmt: skip
    add_jobs(parser)


def main(options: argparse.Namespace) -> None:
    """Draws the figures and prints the names of their files.

    Raises:
        ConfigError: Results of PPO are missing, or a study has other settings.
        DataFormatError: The folder of the results holds none, or other files.
    """
    for number in sorted(set(options.only)):
        out = options.out or options.results / "figures"
        check_writable(out)
        print(save_small(FIGURES[number](options), out / f"figure{number}.png"))


def figure2(options: argparse.Namespace) -> Figure:
    """Exposure against total and mean reward, of both synthetic worlds."""
    return datasets.draw([studies.world(name) for name in ENVS])


def figure3(options: argparse.Namespace) -> Figure:
    """Raw and purified states, used by three policies."""
    learned = policies.ppo_results(read_results(options.results), studies.world(), options.seeds)
    results = _results(options, policies.studies(options.seeds, options.sessions))
    return policies.draw(policies.bars(results, learned))


def figure4(options: argparse.Namespace) -> Figure:
    """Positions of users' states, before and after one purifier."""
    (result,) = _results(options, [states.StatesStudy(options.seeds[0])])
    return states.draw(result)


def figure6(options: argparse.Namespace) -> Figure:
    """Sensitivity to the number of diffusion steps."""
    sizes = options.episodes, options.sessions
    return sensitivity.draw(
        _results(options, sensitivity.studies(options.steps, options.seeds, *sizes))
    )


FIGURES: dict[int, Callable[[argparse.Namespace], Figure]] = {
    2: figure2, 3: figure3, 4: figure4, 6: figure6,
}  # fmt: skip

# Names of the studies behind them, in results.
STUDIES = frozenset(
    kind.kind for kind in (policies.PolicyStudy, states.StatesStudy, sensitivity.SensitivityStudy)
)


def _results(options: argparse.Namespace, needed: Sequence[Study]) -> list[Result]:
    """Makes the missing studies, and reads the results of all of them, in their order."""
    paths = run_studies(needed, options.results / "figures", backend_of(options))
    return [read_result(path) for path in paths]
