"""The front: the worth of sessions over their balance."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from benchmarks.figures.drawing import means_and_halves, save
from benchmarks.pareto.report import (
    DIAL,
    FLAT,
    RETRAINED,
    SHARE,
    STUDY,
    SWEEP,
    Front,
    Metrics,
    fronts,
)
from benchmarks.results import Result

ACROSS = {SHARE: "long-tail share", "ad": "AD (0 is balanced)"}
UP = {"r_each": r"$R_{each}$", "len": "Len (steps)"}


def plot_all(results: list[Result], out: Path) -> list[Path]:
    """Draws a figure of every world, and returns the PNG files."""
    return [save(draw(front), out / f"{STUDY}_{front.world.slug}.png") for front in fronts(results)]


def draw(front: Front) -> Figure:
    """Means over seeds, with 95 % intervals of the worth."""
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
    dial, retrained, flat, sweep = (front.points[kind] for kind in (DIAL, RETRAINED, FLAT, SWEEP))
    drawn: list[tuple[str, list[Metrics], dict[str, Any]]] = [
        ("one agent, its dial turned", [dial[target] for target in front.settings(DIAL)],
         {"fmt": "o-", "color": "C0"}),
        ("its manager's own choice", [dial[None]] if None in dial else [],
         {"fmt": "*", "color": "C3", "markersize": 11}),
        ("trained for each target", [retrained[target] for target in front.settings(RETRAINED)],
         {"fmt": "o", "color": "C1", "markerfacecolor": "none", "markersize": 9}),
        ("flat, by penalty", [flat[penalty] for penalty in front.settings(FLAT)],
         {"fmt": "x", "color": "C2"}),
        ("MOFIR, by its weight of utility", [sweep[w] for w in front.settings(SWEEP)],
         {"fmt": "s--", "color": "C4", "markersize": 4}),
    ]  # fmt: skip
    for label, groups, style in drawn:
        if groups:
            x, _ = _means(groups, across)
            y, half = _means(groups, up)
            axes.errorbar(x, y, yerr=half, capsize=2, label=label, **style)
    for penalty in front.settings(FLAT):
        point = [_means([flat[penalty]], name)[0][0] for name in (across, up)]
        axes.annotate(
            f"{penalty:g}", point, xytext=(4, 4), textcoords="offset points", fontsize="small"
        )


def _means(groups: list[Metrics], metric: str) -> Any:
    """(2, n): means over seeds, and half-widths of their intervals."""
    return means_and_halves([values[metric] for values in seeds.values()] for seeds in groups)
