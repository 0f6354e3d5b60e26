"""Figures of the pareto study: reward and session length over balance."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from ..reports.plots import means_and_halves, save_small
from ..studies.results import Result
from .report import DIAL, FLAT, RETRAINED, SHARE, STUDY, SWEEP, Front, fronts

ACROSS = {SHARE: "long-tail share", "ad": "AD (0 is balanced)"}
UP = {"r_each": r"$R_{each}$", "len": "Len (steps)"}


def plot_all(results: list[Result], out: Path) -> list[Path]:
    """Draws a figure for each world, and returns the PNG files."""
    return [
        save_small(draw(front), out / f"{STUDY}_{front.world.slug}.png")
        for front in fronts(results)
    ]


def draw(front: Front) -> Figure:
    """Means over seeds, with 95 % intervals on the vertical axes."""
    figure = Figure(figsize=(10, 7), layout="constrained")
    grid = figure.subplots(len(UP), len(ACROSS), sharex="col", sharey="row")
    for row, (up, up_label) in zip(grid, UP.items(), strict=True):
        for axes, across in zip(row, ACROSS, strict=True):
            _front(axes, front, across, up)
            axes.grid(alpha=0.3)
        row[0].set_ylabel(up_label)
    for axes, label in zip(grid[-1], ACROSS.values(), strict=True):
        axes.set_xlabel(label)
    if grid[0, 0].get_legend_handles_labels()[0]:
        grid[0, 0].legend(fontsize="small")
    figure.suptitle(f"{front.world.title}: {front.note}", fontsize="medium")
    return figure


def _front(axes: Any, front: Front, across: str, up: str) -> None:
    def means(kind: str, settings: Sequence[float | None], metric: str) -> Any:
        """(2, n): means over seeds, and half-widths of their intervals."""
        groups = (front.points[kind][setting].values() for setting in settings)
        return means_and_halves([values[metric] for values in seeds] for seeds in groups)

    manager = [None] if None in front.points[DIAL] else []
    series: list[tuple[str, str, Sequence[float | None], dict[str, Any]]] = [
        ("one agent, its dial turned", DIAL, front.settings(DIAL), {"fmt": "o-", "color": "C0"}),
        ("its manager's own choice", DIAL, manager, {"fmt": "*", "color": "C3", "markersize": 11}),
        ("trained for each target", RETRAINED, front.settings(RETRAINED),
         {"fmt": "o", "color": "C1", "markerfacecolor": "none", "markersize": 9}),
        ("flat, by penalty", FLAT, front.settings(FLAT), {"fmt": "x", "color": "C2"}),
        ("MOFIR, by its weight of utility", SWEEP, front.settings(SWEEP),
         {"fmt": "s--", "color": "C4", "markersize": 4}),
    ]  # fmt: skip
    for label, kind, settings, style in series:
        if settings:
            (x, _), (y, half) = means(kind, settings, across), means(kind, settings, up)
            axes.errorbar(x, y, yerr=half, capsize=2, label=label, **style)
            for *point, penalty in zip(x, y, settings, strict=True) if kind == FLAT else ():
                axes.annotate(
                    f"{penalty:g}", point, xytext=(4, 4), textcoords="offset points",
                    fontsize="small",
                )  # fmt: skip
