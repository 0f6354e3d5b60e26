"""Figure of the ope study: error by divergence, coverage, ranking by log size, and the dial."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from ..reports.plots import save_small
from ..studies.results import Result, World, world_of
from .report import SHOWN, STUDY, TITLES, error, tau

_COLOURS = {name: f"C{number}" for number, name in enumerate(SHOWN)}
_MARKS = {2: "s", 5: "o", 10: "^"}  # by slate size


def plot_all(results: list[Result], out: Path) -> list[Path]:
    """Draws a figure for each data set with sessions, and returns the PNG files."""
    worlds: dict[World, list[Result]] = defaultdict(list)
    for result in results:
        if result["part"] != "replay":
            worlds[world_of(result)._replace(slate_size=0, max_len=0)].append(result)
    return [
        save_small(draw(of_world), out / f"{STUDY}_{world.dataset}-{world.fingerprint[:8]}.png")
        for world, of_world in worlds.items()
    ]


def draw(results: list[Result]) -> Figure:
    """Four panels; those of parts that are missing stay empty."""
    figure = Figure(figsize=(11, 7.5), layout="constrained")
    grid = figure.subplots(2, 2)
    ordered = sorted(results, key=lambda result: result["slate_size"])
    of_part = {
        part: [result for result in ordered if result["part"] == part]
        for part in ("pairs", "coverage", "dial")
    }
    for result in of_part["pairs"]:
        _errors(grid[0, 0], result)
        _ranks(grid[1, 0], result)
    if of_part["coverage"]:
        _coverage(grid[0, 1], of_part["coverage"])
    for result in of_part["dial"]:
        _dial(grid[1, 1], result)
    for axes in grid.flat:
        axes.grid(alpha=0.3)
        if axes.get_legend_handles_labels()[0] and axes is not grid[1, 0]:  # as above it
            axes.legend(fontsize="x-small", framealpha=0.6)
    block = results[0]["dataset"]
    kind = "SYNTHETIC" if block["synthetic"] else "real"
    figure.suptitle(f"Off-policy estimates and the truth: {block['name']} ({kind})")
    return figure


def _errors(axes: Any, result: Result) -> None:
    """Error of Len over what the log is worth."""
    mark = _MARKS.get(result["slate_size"], "x")
    for name in SHOWN:
        points = [
            (log["worth"]["sessions"] / int(size), abs(error(row, size, name, "len")))
            for row in result["rows"]
            for size, log in row["logs"].items()
            if size == max(row["logs"], key=int)
        ]
        x, y = zip(*sorted(points), strict=True)
        label = f"{name}, K = {result['slate_size']}"
        axes.plot(x, y, mark, color=_COLOURS[name], label=label, alpha=0.8)
    axes.set(xscale="log", yscale="log", xlabel="effective share of the log, whole sessions")
    axes.set_ylabel("|error| of Len (steps), largest log")


def _coverage(axes: Any, results: list[Result]) -> None:
    """Coverage of Len's and R_each's intervals over what the log is worth."""
    order = sorted(results, key=lambda result: result["worth"])
    for name in SHOWN:
        for metric, style in (("len", "-"), ("r_each", "--")):
            points = [
                (result["worth"], 100.0 * row["coverage"])
                for result in order
                for row in result["rows"]
                if (row["intervals"], row["metric"]) == (name, metric)
            ]
            x, y = zip(*points, strict=True)
            axes.plot(
                x, y, style, marker="o", color=_COLOURS[name], label=f"{name}, {TITLES[metric]}"
            )
    axes.axhspan(93.0, 97.0, color="grey", alpha=0.2)
    axes.set(xscale="log", xlabel="effective sessions of a log of 1,000")
    axes.set_ylabel("intervals that hold the truth (%)")


def _ranks(axes: Any, result: Result) -> None:
    """Mean tau over metrics, by log size."""
    sizes = list(result["rows"][0]["logs"])
    mark = _MARKS.get(result["slate_size"], "x")
    for name in SHOWN:
        y = [np.mean([tau(result, size, name, metric) for metric in TITLES]) for size in sizes]
        label = f"{name}, K = {result['slate_size']}"
        axes.plot([*map(int, sizes)], y, marker=mark, color=_COLOURS[name], label=label)
    axes.axhline(0.8, color="grey", linestyle=":")
    axes.set(xscale="log", xlabel="logged sessions", ylabel="Kendall's tau of six, mean of metrics")


def _dial(axes: Any, result: Result) -> None:
    """R_cum by long-tail share, from logs and in truth."""
    rows = [row for row in result["rows"] if row["estimate"]]
    ends = np.array([row["estimate"]["r_cum"] for row in rows])
    x = [row["share"] for row in rows]
    off = np.abs(ends[:, 1:] - ends[:, :1]).T
    axes.errorbar(x, ends[:, 0], yerr=off, fmt="o", capsize=2, label="from logs alone")
    truths = [(row["share"], row["truth"]["r_cum"][0]) for row in result["rows"]]
    axes.plot(*zip(*truths, strict=True), "-", color="black", label="simulated")
    axes.set(xlabel="long-tail share", ylabel="R_cum")
