"""The ``stability`` command: how steadily agents learn, over seeds and over time."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from itertools import starmap

import numpy as np
from matplotlib.figure import Figure

from kuaisim_gym.envs.assembly import SessionBatch
from kuaisim_gym.errors import ConfigError, DataFormatError

from ..commands import add_folder
from ..formatting import interval, markdown_table, section
from ..studies.results import Result, World, read_results
from .comparisons import metric
from .plots import draw_curves, name_agents, save_figure
from .tables import by_world

AGENTS = (
    "dsrm-hrl", "hrl", "flat", "flat+quota", "a2c", "td3", "mofir", "dorl", "dnair", "sac4ir",
    "ppo", "ppo+quota", "hsrl", "hsrl-no-residual", "hsrl-no-token-credit", "hsrl+quota",
    "hsrl+dsrm",
)  # fmt: skip
TAIL = 5  # the last fifth of a curve counts as settled
REACHED = 0.95  # of the settled session length
SPREADS = {  # titles and digits
    "test_len": ("s.d. of Len over seeds", 3),
    "test_ad": ("s.d. of AD over seeds", 4),
    "curve_len": ("s.d. of Len over time", 3),
    "curve_imbalance": ("s.d. of imbalance over time", 4),
}

Point = dict[str, float]  # of a curve


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    add_folder(parser)
    parser.add_argument(
        "--agents", nargs="+", metavar="AGENT",
        help=f"default: {', '.join(AGENTS)}, where they have results",
    )  # fmt: skip


def main(options: argparse.Namespace) -> None:
    """Prints a table for each world, draws its curves, and prints the names of their files.

    Raises:
        ConfigError: A named agent has no results.
        DataFormatError: The folder holds no results of whole sessions, or other files.
    """
    worlds = select(read_results(options.folder), options.agents)
    print(markdown(worlds))
    for world, agents in worlds.items():
        path = options.folder / f"stability_{world.slug}.png"
        print(save_figure(draw(world, agents), path, dpi=110))


def worlds_of(
    results: list[Result], names: Sequence[str] = AGENTS
) -> dict[World, dict[str, list[Result]]]:
    """Results of whole sessions by world and named agent.

    Agents without training sessions have no curve and are left out, and so are worlds without any.
    """
    curves = by_world([result for result in results if result["train"]["curve"]])
    worlds = {
        world: {name: agents[name] for name in names if name in agents}
        for world, agents in curves.items()
        if world.task is SessionBatch
    }
    return {world: agents for world, agents in worlds.items() if agents}


def select(
    results: list[Result], names: Sequence[str] | None = None
) -> dict[World, dict[str, list[Result]]]:
    """The results that :func:`worlds_of` finds of the named agents, or of :data:`AGENTS`.

    Raises:
        ConfigError: A named agent has no results.
        DataFormatError: There are no results to show.
    """
    worlds = worlds_of(results, names or AGENTS)
    present = {name for agents in worlds.values() for name in agents}
    if missing := [name for name in names or () if name not in present]:
        raise ConfigError(
            f"There are no results of {', '.join(missing)}, but of "
            f"{', '.join(sorted(present)) or 'none that was asked for'}. Make them with `suite`."
        )
    if not present:
        raise DataFormatError(
            f"There are no results of {', '.join(AGENTS)} in whole-session environments; make "
            "some with `suite`, or name others with --agents."
        )
    return worlds


def imbalance(point: Point) -> float:
    """|2p - 1| with p the popular share of a block of training sessions.

    It is AD if all sessions are equally long: a point of a curve is a mean over sessions, and AD
    weighs them by their length.
    """
    return abs(2.0 * point["popular_share"] - 1.0)


def spreads(runs: list[Result]) -> dict[str, float]:
    """Standard deviations of an agent's results (one per seed) and curves; NaN for single values.

    Returns:
        Over seeds: of Len and AD of test sessions (``test_len``, ``test_ad``). Over the last fifth
        of a curve, mean over seeds: of Len and imbalance (``curve_len``, ``curve_imbalance``).
    """
    curves = [run["train"]["curve"] for run in runs]
    return {
        "test_len": _deviation(metric(runs, "len")),
        "test_ad": _deviation(metric(runs, "ad")),
        **{
            name: float(np.mean([_deviation([*map(measure, _tail(curve))]) for curve in curves]))
            for name, measure in (("curve_len", _length), ("curve_imbalance", imbalance))
        },
    }


def settled_length(curve: list[Point]) -> float:
    """Mean length of the training sessions of a curve's last fifth, in steps."""
    return float(np.mean([_length(point) for point in _tail(curve)]))


def sessions_to_settle(curve: list[Point]) -> int:
    """Training sessions after which a curve first has 95 % of its settled session length."""
    enough = REACHED * settled_length(curve)
    return int(next(point["episodes"] for point in curve if _length(point) >= enough))


def markdown(worlds: dict[World, dict[str, list[Result]]]) -> str:
    """Tables of the worlds that :func:`worlds_of` returns."""
    return "\n\n".join(starmap(_table, worlds.items())) + "\n"


def _table(world: World, agents: dict[str, list[Result]]) -> str:
    rows = []
    for agent, runs in agents.items():
        deviations = spreads(runs)
        curves = [run["train"]["curve"] for run in runs]
        settled = [sessions_to_settle(curve) for curve in curves]
        rows.append([
            agent, str(len(runs)),
            *(
                "" if np.isnan(deviations[name]) else f"{deviations[name]:.{digits}f}"
                for name, (_, digits) in SPREADS.items()
            ),
            interval([settled_length(curve) for curve in curves], 2),
            f"{np.mean(settled):,.0f} ({min(settled):,} to {max(settled):,})",
        ])  # fmt: skip
    titles = [title for title, _ in SPREADS.values()]
    header = ["agent", "seeds", *titles, "Len in training", "sessions to 95 % of it"]
    return section(
        world.title,
        markdown_table(header, rows),
        "Over seeds: of the test sessions. Over time: of the last fifth of the training curve, "
        "mean over seeds; imbalance is |2p - 1| with p the popular share of a block of training "
        "sessions. Len in training: of the last fifth, mean and 95 % interval over seeds; after so "
        "many sessions the curve first has 95 % of it, mean and range over seeds.",
    )


def draw(world: World, agents: dict[str, list[Result]]) -> Figure:
    """Learning curves of session length and balance: mean and range over seeds."""
    figure = Figure(figsize=(12, 4.5), layout="constrained")
    length_axes, imbalance_axes = panels = figure.subplots(1, 2)
    draw_curves(length_axes, agents, _length)
    length_axes.set_ylabel("session length (steps), training")
    draw_curves(imbalance_axes, agents, imbalance)
    imbalance_axes.set_ylabel("imbalance |2p - 1|, training (0 is balanced)")
    for axes in panels:
        axes.grid(alpha=0.3)
    name_agents(figure)
    figure.suptitle(f"{world.title}; bands: range over seeds", fontsize="medium")
    return figure


def _length(point: Point) -> float:
    return point["len"]


def _tail(curve: list[Point]) -> list[Point]:
    """The last fifth of a curve, at least one point."""
    return curve[-max(1, len(curve) // TAIL) :]


def _deviation(values: list[float]) -> float:
    """Standard deviation of a sample; NaN for a single value."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else float("nan")
