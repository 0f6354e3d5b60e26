"""The ``plot`` command: learning curves, and a plane of headline metric against AD."""

from __future__ import annotations

import argparse
import io
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from cycler import cycler
from matplotlib.colors import TABLEAU_COLORS
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from kuaisim_gym.disk import write_atomically
from kuaisim_gym.envs.assembly import SessionBatch

from ..commands import add_folder
from ..formatting import mean_and_ci95
from ..studies.results import Result, World, read_results
from .tables import by_world, mean_and_half

DPI = 110  # of small files, unless a figure has more
COLOURS = 256

add_arguments = add_folder


def main(options: argparse.Namespace) -> None:
    """Draws the figures into the folder of the results and prints the names of their files."""
    print(*plot_all(read_results(options.folder), options.folder), sep="\n")


def plot_all(results: list[Result], out: Path) -> list[Path]:
    """Draws both figures of every world into a folder, and returns the PNG files."""
    return [
        save_figure(figure, out / f"{name}_{world.slug}.png", dpi=120)
        for world, agents in by_world(results).items()
        for name, figure in figures_of(world, agents)
    ]


def figures_of(world: World, agents: dict[str, list[Result]]) -> Iterator[tuple[str, Figure]]:
    """Names and figures of a world: learning curves, and the plane of balance."""
    for name, draw in (("curves", _curves), ("plane", _plane)):
        figure = Figure(figsize=(9, 5.5), layout="constrained")
        axes = figure.subplots()
        draw(axes, agents, world.task)
        name_agents(figure)
        axes.set_title(world.title, fontsize="medium")
        axes.grid(alpha=0.3)
        yield name, figure


def name_agents(figure: Figure) -> None:
    """Adds one legend to the right of all panels."""
    handles, labels = figure.axes[0].get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside right center", fontsize="small")


def _curves(axes: Any, agents: dict[str, list[Result]], task: type[SessionBatch]) -> None:
    """The task's headline metric over training sessions."""
    measure, label = task.headline
    draw_curves(axes, agents, lambda point: point[measure])
    axes.set_ylabel(f"{label}, training")


def draw_curves(
    axes: Any, agents: dict[str, list[Result]], measure: Callable[[dict[str, float]], float]
) -> None:
    """Draws mean and range of learning curves over seeds; untrained agents have no curve.

    Args:
        axes: Axes of Matplotlib.
        agents: Results by agent.
        measure: The drawn value of a curve's point.
    """
    # Ten colours in each of four line styles: no two of forty agents look alike.
    styles = cycler(linestyle=["-", "--", ":", "-."]) * cycler(color=TABLEAU_COLORS.values())
    axes.set_prop_cycle(styles)
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


def _plane(axes: Any, agents: dict[str, list[Result]], task: type[SessionBatch]) -> None:
    """Positions of the agents: long and balanced is at the upper left.

    Bars are 95 % intervals over seeds, or over the sessions of a single seed.
    """
    measure, label = task.headline
    for number, (agent, runs) in enumerate(agents.items()):
        (ad, ad_half), (headline, half) = (mean_and_half(runs, name) for name in ("ad", measure))
        style = {"marker": "os^vDP*X"[number % 8], "color": f"C{number}", "capsize": 2}
        axes.errorbar([ad], [headline], [half], [ad_half], label=agent, linestyle="none", **style)
    axes.set_xlabel("AD (0 is balanced)")
    axes.set_ylabel(f"{label}, test")


def save_figure(figure: Figure, path: Path, dpi: float | None = None) -> Path:
    """Writes a PNG file of all colours and returns its path; ``dpi`` is the figure's by default."""
    write_atomically(path, _drawn(figure, figure.dpi if dpi is None else dpi).getvalue())
    return path


def save_small(figure: Figure, path: Path) -> Path:
    """Writes a PNG file with a colour palette, a third of the usual size, and returns its path."""
    write_atomically(path, png_of(figure))
    return path


def png_of(figure: Figure) -> bytes:
    """A figure as a PNG file with a colour palette."""
    return as_png(Image.open(_drawn(figure, max(DPI, figure.dpi))).convert("RGB"))


def _drawn(figure: Figure, dpi: float) -> io.BytesIO:
    content = io.BytesIO()
    figure.savefig(content, dpi=dpi, format="png")
    return content


def as_png(image: Image.Image) -> bytes:
    """A picture in RGB as a PNG file with a colour palette."""
    method, dither = Image.Quantize.MAXCOVERAGE, Image.Dither.NONE  # keep colour maps smooth
    content = io.BytesIO()
    palette_image = image.quantize(COLOURS, method, kmeans=4, dither=dither)
    palette_image.save(content, format="PNG", optimize=True)
    return content.getvalue()


def means_and_halves(groups: Iterable[list[float]]) -> NDArray[np.float64]:
    """(2, n) float64: mean and half-width of the 95 % interval of each group.

    A single value has no interval: its half-width is NaN, which is not drawn.
    """
    return np.array([mean_and_ci95(values) for values in groups]).T
