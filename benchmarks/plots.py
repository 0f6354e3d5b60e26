"""The ``plot`` command: learning curves, and the plane of an agent's worth against AD."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from cycler import cycler
from matplotlib.colors import TABLEAU_COLORS
from matplotlib.figure import Figure

from benchmarks.commands import add_folder
from benchmarks.results import Result, read_results, task_of
from benchmarks.tables import by_world, metric

add_arguments = add_folder


def main(options: argparse.Namespace) -> None:
    """Draws the figures beside the results and prints the names of their files."""
    print(*plot_all(read_results(options.folder), options.folder), sep="\n")


def plot_all(results: list[Result], out: Path) -> list[Path]:
    """Draws both figures of every world in the results.

    Args:
        results: As read from a folder.
        out: Where the PNG files go.

    Returns:
        The files.
    """
    out.mkdir(parents=True, exist_ok=True)
    files = []
    for world, agents in by_world(results).items():
        data = "synthetic" if world.synthetic else "real"
        for name, draw in (("curves", _curves), ("plane", _plane)):
            figure = Figure(figsize=(9, 5.5), layout="constrained")
            axes = figure.subplots()
            draw(axes, agents, task_of(world.env))
            name_agents(figure)
            axes.set_title(f"{world.env}, {data} data, max_len {world.max_len}")
            axes.grid(alpha=0.3)
            path = out / f"{name}_{world.slug}.png"
            figure.savefig(path, dpi=120)
            files.append(path)
    return files


def name_agents(figure: Figure) -> None:
    """Puts one legend beside all panels, where any number of agents has room."""
    handles, labels = figure.axes[0].get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside right center", fontsize="small")


# What tells how good an agent is in each task: its name among the metrics, and in words.
_WORTH = {
    "session": ("len", "session length (steps)"),
    "request": ("r_each", "list reward"),
    "retention": ("return_time", "return time (days)"),
}


def _curves(axes: Any, agents: dict[str, list[Result]], task: str) -> None:
    """Worth over training sessions."""
    measure, label = _WORTH[task]
    draw_curves(axes, agents, lambda point: point[measure])
    axes.set_ylabel(f"{label}, training")


def draw_curves(
    axes: Any, agents: dict[str, list[Result]], measure: Callable[[dict[str, float]], float]
) -> None:
    """Learning curves: mean and range over seeds; agents that were not trained have none.

    Args:
        axes: Of Matplotlib.
        agents: Results by agent.
        measure: What is drawn of a point of a result's curve.
    """
    axes.set_prop_cycle(_styles())
    for agent, runs in agents.items():
        curves = [run["train"]["curve"] for run in runs if run["train"]["curve"]]
        if not curves:
            continue
        points = min(len(curve) for curve in curves)
        episodes = [point["episodes"] for point in curves[0][:points]]
        values = np.array([[measure(point) for point in curve[:points]] for curve in curves])
        (line,) = axes.plot(episodes, values.mean(axis=0), label=agent)
        axes.fill_between(
            episodes, values.min(axis=0), values.max(axis=0), color=line.get_color(), alpha=0.2
        )
    axes.set_xlabel("training sessions")


def _styles() -> Any:
    """Ten colours, in one style of line after the other: forty agents look like no other."""
    return cycler(linestyle=["-", "--", ":", "-."]) * cycler(color=TABLEAU_COLORS.values())


def _plane(axes: Any, agents: dict[str, list[Result]], task: str) -> None:
    """Positions of the agents; of whole sessions, long and balanced ones are at the upper left."""
    measure, label = _WORTH[task]
    for number, (agent, runs) in enumerate(agents.items()):
        ad, worth = np.mean(metric(runs, "ad")), np.mean(metric(runs, measure))
        style = {"marker": "os^vDP*X"[number % 8], "color": f"C{number}"}
        axes.scatter([ad], [worth], s=60, label=agent, **style)
    axes.set_xlabel("AD (0 is balanced)")
    axes.set_ylabel(f"{label}, test")
