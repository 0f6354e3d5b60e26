"""The ``phase`` command: in which worlds a better state estimate keeps users longer.

Synthetic KuaiRec worlds that differ in two knobs at a time, the others as calibrated. Each cell of
such a plane is one world, in which every estimate stands in front of the same ranking policy.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure

from kuaisim_gym.config import check_choice, check_whole
from kuaisim_gym.data import Dataset
from kuaisim_gym.data.synthetic import SyntheticConfig, synthetic_kuairec

from ..commands import add_jobs, add_out_or_table
from ..formatting import markdown_table, mean_and_ci95_by_user, section
from ..origin import data_block
from ..reports.plots import name_agents, save_small
from ..runs.settings import Run
from ..studies.backends import results_of
from ..studies.results import Result, read_results
from ..studies.study import Study
from .states import RAW, find_estimate, play_estimate

STUDY = "phase"
SEED, SESSIONS = 101, 300
SHOWN = (RAW, "linear", "ridge", "dsrm", "belief")
KEYS = frozenset({"study", "plane", "cell", "world_seed", "seed", "sessions", "dataset", "rows"})


class Knob(NamedTuple):
    """A property of a world.

    Attributes:
        label: Its name in figures.
        values: Its values in a plane.
        digits: Decimal places of its values.
    """

    label: str
    values: tuple[float, ...]
    digits: int = 2


KNOBS = {
    "personal": Knob("personal strength", (0.1, 0.25, 0.4, 0.55)),
    "conformity": Knob("conformity", (0.0, 0.12, 0.24)),
    "events": Knob("logged rows of a user who is played", (0, 5, 20, 80), 0),
    "popularity_spread": Knob("exposure bias", (0.0, 0.65, 1.3)),
}
PLANES = {
    "personal": ("personal", "conformity"),
    "events": ("events", "popularity_spread"),
}  # by name: the knob along the axis, and that of the panels


@dataclass(frozen=True)
class PhaseStudy(Study):
    """Sessions on all estimates in one world, a cell of a plane.

    Attributes:
        plane: A key of :data:`PLANES`.
        cell: The values of its knobs.
        estimates: As for :func:`~benchmarks.estimates.states.find_estimate`; the first is what
            gains refer to.
        sessions: Test sessions of each.
        world_seed: Seed of the world.
        seed: Seed of the sessions and of the fits.

    Raises:
        ConfigError: A name is unknown, or there are fewer sessions than two.
    """

    plane: str
    cell: tuple[float, ...]
    estimates: tuple[str, ...]
    sessions: int = SESSIONS
    world_seed: int = SEED
    seed: int = Run.seed

    def __post_init__(self) -> None:
        check_choice("plane", self.plane, PLANES)
        for name in self.estimates:
            find_estimate(name)
        check_whole("sessions", self.sessions, 2)  # an interval needs two

    @property
    def knobs(self) -> dict[str, float]:
        """The knobs by name."""
        return dict(zip(PLANES[self.plane], self.cell, strict=True))

    @property
    def name(self) -> str:
        cell = "_".join(f"{name}{value:g}" for name, value in self.knobs.items())
        return f"{STUDY}_{cell}_world{self.world_seed}_seed{self.seed}"

    def load(self) -> Dataset:
        """The world, one object for consecutive studies of it in this process."""
        return _load(self.world_seed, tuple(self.knobs.items()))

    def header(self) -> Result:
        return {
            "study": STUDY,
            "plane": self.plane,
            "cell": list(self.cell),
            "world_seed": self.world_seed,
            "seed": self.seed,
            "estimates": list(self.estimates),
            "sessions": self.sessions,
            "dataset": data_block(self.load(), self.world_seed),
        }

    def make(self, path: Path) -> Result:
        spec = Run("random", seed=self.seed, sessions=self.sessions)
        rows: list[dict[str, Any]] = []
        base = None
        for name in self.estimates:
            played, ready = play_estimate(name, spec, self.load())
            length = played.sessions.length.astype(np.float64)
            base = length if base is None else base
            gain, half = mean_and_ci95_by_user(length - base, played.sessions.users)
            row = {"estimate": name.rpartition(":")[2], "weight": ready.weight}
            rows.append(row | {"len": float(length.mean()), "gain": gain, "gain_ci95": half})
        return {"rows": rows}


@lru_cache(maxsize=1)
def _load(seed: int, knobs: tuple[tuple[str, float], ...]) -> Dataset:
    values: dict[str, Any] = dict(knobs)
    events = values.pop("events", None)
    dataset = synthetic_kuairec(seed, SyntheticConfig(**values))
    return dataset if events is None else with_events(dataset, int(events))


def with_events(dataset: Dataset, events: int) -> Dataset:
    """The same data, with at most so many logged rows of each test user, the first ones.

    Everybody else's rows stay: what can be learned of items is the same for all numbers.
    """
    log = dataset.log
    position = np.arange(len(log)) - log.starts(dataset.n_users)[log.users]
    is_kept = (position < events) | ~np.isin(log.users, dataset.test_users)
    return replace(dataset, log=log.take(is_kept))


def read_studies(folder: Path) -> list[Result]:
    """Results of this study in a folder.

    Raises:
        DataFormatError: There are none, or a cell has two files.
    """
    return read_results(
        folder,
        STUDY,
        KEYS,
        lambda row: (row["plane"], *row["cell"], row["world_seed"], row["seed"]),
        "cell",
    )


def markdown(results: Sequence[Result]) -> str:
    """A table for each plane: the gain of each estimate in each cell."""
    return "\n\n".join(_table(plane, cells) for plane, cells in _by_plane(results).items())


def _by_plane(results: Iterable[Result]) -> dict[str, list[Result]]:
    ordered = sorted(results, key=lambda row: (row["cell"][::-1], row["world_seed"], row["seed"]))
    planes = {plane: [row for row in ordered if row["plane"] == plane] for plane in PLANES}
    return {plane: cells for plane, cells in planes.items() if cells}


def _table(plane: str, cells: Sequence[Result]) -> str:
    names, knobs = _estimates(cells), [KNOBS[knob] for knob in PLANES[plane]]
    table = []
    for cell in cells:
        rows = {row["estimate"]: row for row in cell["rows"]}
        values = (f"{v:.{knob.digits}f}" for v, knob in zip(cell["cell"], knobs, strict=True))
        first = cell["rows"][0]
        gains = [_gain(rows.get(name)) for name in names]
        table.append([*values, str(cell["world_seed"]), f"{first['len']:.2f}", *gains])
    base, sessions = cells[0]["rows"][0]["estimate"], cells[0]["sessions"]
    header = [*(knob.label for knob in knobs), "world", f"Len, {base}", *names]
    note = (
        f"Steps by which sessions are longer than those of {base}, paired over {sessions:,} test "
        "sessions; ± is a 95 % interval over users. SYNTHETIC worlds."
    )
    return section(f"Gains by {knobs[0].label} and {knobs[1].label}",
                   markdown_table(header, table, "r"), note)  # fmt: skip


def _estimates(cells: Iterable[Result]) -> list[str]:
    """Names of the estimates in some cells, but for the first, which gains refer to."""
    names = dict.fromkeys(row["estimate"] for cell in cells for row in cell["rows"][1:])
    return list(names)


def _gain(row: Mapping[str, Any] | None) -> str:
    return "" if row is None else f"{row['gain']:+.2f} ± {row['gain_ci95']:.2f}"


def draw(plane: str, cells: Sequence[Result]) -> Figure:
    """Gains along the first knob of a plane, a panel for each value of the second.

    Args:
        plane: A key of :data:`PLANES`.
        cells: Its results, of one world seed.
    """
    along, across = (KNOBS[knob] for knob in PLANES[plane])
    panels = sorted({cell["cell"][1] for cell in cells})
    figure = Figure(figsize=(3.2 * len(panels) + 1.4, 3.4), layout="constrained")
    grid = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
    for axes, value in zip(grid, panels, strict=True):
        column = sorted(
            (cell for cell in cells if cell["cell"][1] == value), key=lambda cell: cell["cell"]
        )
        for number, name in enumerate(_estimates(cells)):
            points = [
                (x + number / 25, row["gain"], row["gain_ci95"])
                for x, cell in enumerate(column)
                for row in cell["rows"]
                if row["estimate"] == name
            ]
            places, gains, halves = np.array(points).T
            axes.errorbar(places, gains, halves, marker="o", markersize=3, capsize=2, label=name)
        axes.axhline(0.0, color="grey", linewidth=0.8)
        axes.set_xticks(
            range(len(column)), [f"{cell['cell'][0]:.{along.digits}f}" for cell in column]
        )
        axes.set_title(f"{across.label} {value:.{across.digits}f}", fontsize="small")
        axes.set_xlabel(along.label, fontsize="small")
        axes.grid(alpha=0.3)
    base = cells[0]["rows"][0]["estimate"]
    grid[0].set_ylabel(f"steps longer than {base}")
    name_agents(figure)
    seed = cells[0]["world_seed"]
    figure.suptitle(
        f"SYNTHETIC worlds {seed}: one ranking policy, several states", fontsize="medium"
    )
    return figure


def plan(
    planes: Iterable[str], estimates: Sequence[str], sessions: int, world_seed: int, seed: int
) -> list[PhaseStudy]:
    """All cells of some planes.

    Args:
        planes: Keys of :data:`PLANES`.
        estimates: Names of estimates, what gains refer to first; empty for :data:`SHOWN`.
        sessions: Test sessions.
        world_seed: Seed of the worlds.
        seed: Seed of the sessions.
    """
    names = tuple(estimates or SHOWN)
    return [
        PhaseStudy(plane, cell, names, sessions, world_seed, seed)
        for plane in planes
        for cell in product(*(KNOBS[knob].values for knob in PLANES[plane]))
    ]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    add = parser.add_argument
    add_out_or_table(parser)
    add("--planes", nargs="+", default=list(PLANES), choices=PLANES, help="planes")
    add(
        "--estimates", nargs="+", default=[],
        help=f"names, what gains refer to first; default: {' '.join(SHOWN)}",
    )  # fmt: skip
    add("--sessions", type=int, default=SESSIONS, help="test sessions")
    add("--dataset-seed", type=int, default=SEED, help="of the worlds")
    add("--seed", type=int, default=Run.seed, help="of the sessions")
    add_jobs(parser)


def main(options: argparse.Namespace) -> None:
    """Makes the missing cells, prints the tables and draws the figures of the folder.

    Raises:
        ConfigError: An estimate is unknown, or a result has other settings.
        DataFormatError: The folder holds no results.
    """
    sizes = (options.sessions, options.dataset_seed, options.seed)
    studies = plan(options.planes, options.estimates, *sizes)
    results = results_of(options, lambda: studies, read_studies, markdown)
    if options.table is None:
        for plane, cells in _by_plane(results).items():
            drawn = [cell for cell in cells if cell["world_seed"] == options.dataset_seed]
            print(save_small(draw(plane, drawn), options.out / f"phase_{plane}.png"))
