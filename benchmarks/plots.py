"""Figures from result files: learning curves, and the plane of an agent's worth against AD."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from cycler import cycler
from matplotlib.colors import TABLEAU_COLORS
from matplotlib.figure import Figure

from benchmarks.registry import task_of
from benchmarks.results import Result
from benchmarks.statistics import mean_and_ci95
from benchmarks.tables import by_world
from kuaisim_gym.envs.tasks import TASKS


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
    for (env, synthetic, fingerprint, max_len), agents in by_world(results).items():
        world = "synthetic" if synthetic else "real"
        title = f"{env}, {world} data, max_len {max_len}"
        for name, draw in (("curves", _curves), ("plane", _plane)):
            figure = Figure(figsize=(9, 5.5), layout="constrained")
            axes = figure.subplots()
            draw(axes, agents, task_of(env))
            name_agents(figure)
            axes.set_title(title)
            axes.grid(alpha=0.3)
            path = out / f"{name}_{env}_{world}-{fingerprint[:8]}_T{max_len}.png"
            figure.savefig(path, dpi=120)
            files.append(path)
    return files


def name_agents(figure: Figure) -> None:
    """Puts one legend beside all panels, where any number of agents has room."""
    handles, labels = figure.axes[0].get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside right center", fontsize="small")


def _curves(axes: Any, agents: dict[str, list[Result]], task: str) -> None:
    """The task's headline metric over training sessions."""
    measure, label = TASKS[task].headline
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
        curves = [one["train"]["curve"] for one in runs if one["train"]["curve"]]
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
    """Where each agent lies; of whole sessions, long and balanced ones are at the upper left."""
    measure, label = TASKS[task].headline
    for place, (agent, runs) in enumerate(agents.items()):
        ad = mean_and_ci95([one["metrics"]["ad"] for one in runs])[0]
        worth = mean_and_ci95([one["metrics"][measure] for one in runs])[0]
        marker = "os^vDP*X"[place % 8]
        axes.scatter([ad], [worth], marker=marker, s=60, color=f"C{place}", label=agent)
    axes.set_xlabel("AD (0 is balanced)")
    axes.set_ylabel(f"{label}, test")
