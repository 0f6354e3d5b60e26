"""The Pareto front: agents of a world that no other beats in session length, reward and balance."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure

from ..formatting import TitledTable, interval, markdown_table
from ..paper import MAX_LENS
from ..pareto import report as pareto
from ..prose import Evidence
from ..studies.results import Result, World, direction
from .plots import save_small
from .standings import is_oracle, is_synthetic
from .tables import CEILINGS, DIGITS

MEASURES = ("len", "r_each", "ad")
NAMES_IN_COLUMN = 25  # of the figure's legend
_TITLES = {"len": "Len", "r_each": "R_each", "ad": "AD"}
NOTE = (
    "Dominated: another one that is told no answers has means as good in Len, R_each and AD, and a "
    "better one; the intervals of the two may meet. Ceilings are told a simulator's answers: they "
    "stand beside the front and dominate nobody. A dial's points are one trained agent at several "
    "long-tail shares."
)


class Point(NamedTuple):
    """An agent, or a setting of its dial, in one world.

    Attributes:
        name: Its name.
        values: Values of each of ``MEASURES``, one a seed.
    """

    name: str
    values: dict[str, list[float]]

    @property
    def is_ceiling(self) -> bool:
        """Tells a reference that is told answers."""
        return is_oracle(self.name)

    @property
    def is_dial(self) -> bool:
        """Tells a setting of a dial."""
        return ", dial at " in self.name

    def mean(self, name: str) -> float:
        """Mean of a measure over seeds."""
        return float(np.mean(self.values[name]))

    def dominates(self, point: Point) -> bool:
        """Tells whether it is nowhere worse than another one and somewhere better."""
        gains = [direction(name) * (self.mean(name) - point.mean(name)) for name in MEASURES]
        return min(gains) >= 0.0 and max(gains) > 0.0


def points_of(
    agents: dict[str, list[Result]], dial: dict[float | None, pareto.Metrics] | None = None
) -> list[Point]:
    """Points of a world.

    Args:
        agents: Runs by agent.
        dial: Metrics of one agent at settings of its dial, by seed.
    """
    points = [
        Point(agent, {name: [run["metrics"][name] for run in runs] for name in MEASURES})
        for agent, runs in agents.items()
    ]
    for setting, seeds in (dial or {}).items():
        if setting is not None:
            values = {name: [metrics[name] for metrics in seeds.values()] for name in MEASURES}
            points.append(Point(f"dsrm-hrl, dial at {setting:g}", values))
    return points


def dominators(points: list[Point]) -> dict[str, list[str]]:
    """Names of those that dominate each point; ceilings take no part."""
    placed = [point for point in points if not point.is_ceiling]
    return {
        point.name: [rival.name for rival in placed if rival.dominates(point)] for point in placed
    }


def front(points: list[Point]) -> list[Point]:
    """Points that nobody dominates, the longest sessions first."""
    beaten = dominators(points)
    members = [point for point in points if not beaten.get(point.name, [""])]
    return sorted(members, key=lambda point: -point.mean("len"))


def worlds(evidence: Evidence) -> Iterator[tuple[World, list[Point]]]:
    """Today's worlds and their points."""
    dials = {
        study.world: study.points[pareto.DIAL]
        for study in pareto.fronts(evidence.studies(pareto.STUDY))
    }
    for world, agents in evidence.worlds.items():
        yield world, points_of(agents, dials.get(world))


def fronts(evidence: Evidence) -> str:
    """Markdown: who is not dominated in each world, and its ceiling."""
    rows = []
    for world, points in worlds(evidence):
        by_name = {point.name: point for point in points}
        ceiling = [by_name[name] for name in CEILINGS if name in by_name][:1]
        members = front(points)
        placed = sum(not point.is_ceiling for point in points)
        for number, point in enumerate([*members, *ceiling]):
            name = f"*{point.name}* (ceiling)" if point.is_ceiling else point.name
            of_all = f"{len(members)} of {placed}"
            cells = [world.short_title, of_all] if number == 0 else ["", ""]
            rows.append([*cells, name, *_cells(point)])
    header = ["world", "not dominated", "who", *_TITLES.values()]
    return f"{markdown_table(header, rows, 'lrlr')}\n\n{NOTE}"


def tables(evidence: Evidence) -> str:
    """Markdown: all agents of each world, and who dominates them."""
    texts = []
    for world, points in worlds(evidence):
        beaten = dominators(points)
        rows = [
            [point.name, *_cells(point), _verdict(beaten, point)]
            for point in sorted(points, key=lambda point: -point.mean("len"))
        ]
        header = ["agent", *_TITLES.values(), "dominated by"]
        texts.append(TitledTable(world.title, header, rows, align="lrrrl").markdown())
    return "\n\n".join([*texts, NOTE]) if texts else ""


def _cells(point: Point) -> list[str]:
    return [interval(point.values[name], DIGITS.get(name, 3)) for name in MEASURES]


def _verdict(beaten: dict[str, list[str]], point: Point) -> str:
    if point.is_ceiling:
        return "ceiling"
    names = beaten[point.name]
    suffix = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return f"{names[0]}{suffix}" if names else "**nobody**"


def draw_all(evidence: Evidence, out: Path) -> list[Path]:
    """Draws the fronts of the synthetic worlds with short sessions, and returns the PNG files."""
    return [
        save_small(draw(world, points), out / f"front_{world.slug}.png")
        for world, points in worlds(evidence)
        if is_synthetic(world) and world.max_len == MAX_LENS[0]
    ]


def draw(world: World, points: list[Point]) -> Figure:
    """Len and R_each over AD: the front is filled, other agents are hollow, ceilings are stars."""
    members = {point.name for point in front(points)}
    ordered = sorted(points, key=lambda point: -point.mean("len"))
    columns = 1 + len(ordered) // NAMES_IN_COLUMN
    figure = Figure(figsize=(9 + 2 * columns, 5), layout="constrained")
    panels = figure.subplots(1, 2)
    for axes, measure in zip(panels, ("len", "r_each"), strict=True):
        for number, point in enumerate(ordered):
            style = _style(point, number, point.name in members)
            axes.plot(point.mean("ad"), point.mean(measure), label=point.name, **style)
        dial = [(point.mean("ad"), point.mean(measure)) for point in points if point.is_dial]
        if dial:
            axes.plot(*zip(*dial, strict=True), color="grey", linewidth=0.8, zorder=0)
        axes.set_xscale("symlog", linthresh=0.01)
        axes.set_xlabel("AD (0 is balanced)")
        axes.set_ylabel(_TITLES[measure])
        axes.grid(alpha=0.3)
    handles, labels = panels[0].get_legend_handles_labels()
    if handles:
        figure.legend(
            handles, labels, loc="outside right center", fontsize="x-small", ncols=columns
        )
    figure.suptitle(world.title, fontsize="medium")
    return figure


def _style(point: Point, number: int, is_member: bool) -> dict[str, Any]:
    """Colour and marker of a point: no two of forty look alike."""
    style: dict[str, Any] = {"linestyle": "none", "color": f"C{number % 10}", "markersize": 7}
    if point.is_ceiling:
        return style | {"marker": "*X"[number // 10 % 2], "markersize": 9}
    style["marker"] = "s" if point.is_dial else "o^vD"[number // 10 % 4]
    return style | ({"markeredgecolor": "black"} if is_member else {"markerfacecolor": "none"})
