"""Figure of a test: the difference after every session, within both kinds of bounds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from ..reports.plots import save_small
from ..studies.results import Result, world_of
from .report import STUDY, slug
from .sessions import METRICS


def plot_all(results: Sequence[Result], out: Path) -> list[Path]:
    """Draws a figure for each test, and returns the PNG files."""
    tests = [row for row in results if row["study"] == STUDY]
    return [save_small(draw(row), out / f"{slug(row)}.png") for row in tests]


def draw(row: Result) -> Figure:
    """The difference over sessions, its fixed-horizon and its always-valid interval."""
    figure = Figure(figsize=(7.5, 4.2), layout="constrained")
    axes, path = figure.subplots(), row["path"]
    x = path["sessions"]
    axes.fill_between(x, path["low"], path["high"], alpha=0.2, color="C0", label="always valid")
    axes.fill_between(
        x, path["fixed_low"], path["fixed_high"], alpha=0.4, color="C0",
        label="fixed horizon, for one look",
    )  # fmt: skip
    axes.plot(x, path["effect"], color="C0", label="difference")
    axes.axhline(0.0, color="black", linewidth=1)
    if row["test"]["decided"] is not None:
        axes.axvline(row["test"]["decided"], color="C3", linestyle=":", label="decided")
    axes.set_xlabel("sessions")
    axes.set_ylabel(f"{METRICS[row['metric']].title}, treatment less control")
    axes.set_title(f"{' -> '.join(row['arms'])}\n{world_of(row).title}", fontsize="medium")
    axes.legend(fontsize="small")
    axes.grid(alpha=0.3)
    return figure
