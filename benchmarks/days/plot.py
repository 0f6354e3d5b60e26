"""Figure of the days study: what a policy's own exposures make of popularity."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from ..reports.plots import name_agents, save_small
from ..studies.results import Result
from .report import MODES, STUDY, Days, worlds

PANELS = {
    "concentration": "Gini of popularity",
    "gini": "Gini of the day's exposures",
    "new_share": "share of exposures, new items",
    "reward": "mean response",
}
_CONTRASTS = ("-", "--", ":", "-.")


def plot_all(results: list[Result], out: Path) -> list[Path]:
    """Draws a figure for each world, and returns the PNG files."""
    return [save_small(draw(days), out / f"{STUDY}_{days.slug}.png") for days in worlds(results)]


def draw(days: Days) -> Figure:
    """Means over seeds by platform day, with their range."""
    figure = Figure(figsize=(11, 7), layout="constrained")
    grid = figure.subplots(2, 2, sharex=True)
    for axes, (measure, label) in zip(grid.flat, PANELS.items(), strict=True):
        for number, agent in enumerate(days.agents):
            series = [played["daily"][measure] for played in days.played(agent, MODES[0]).values()]
            values = np.array(series, dtype=np.float64)
            x = np.arange(1, values.shape[1] + 1)
            style = {"color": f"C{number % 10}", "linestyle": _CONTRASTS[number // 10]}
            axes.plot(x, values.mean(axis=0), label=agent, **style)
            axes.fill_between(x, values.min(axis=0), values.max(axis=0), alpha=0.15, **style)
        axes.set_ylabel(label)
        axes.grid(alpha=0.3)
    for axes in grid[-1]:
        axes.set_xlabel("day of the platform")
    name_agents(figure)
    figure.suptitle(f"{days.title}\n{days.note}, frozen", fontsize="medium")
    return figure
