"""Tables of state estimates: differences of session length, paired session by session."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..formatting import interval, markdown_table, mean_and_ci95_by_user, section
from ..runs.world_study import measurement
from ..studies.results import Result, World, in_order, read_results, world_of
from .states import BELIEF, ESTIMATES, RAW

STUDY = "estimates"
BASES = (RAW, BELIEF)
KEYS = frozenset(
    {"study", "subject", "env", "max_len", "seed", "dataset", "sessions", "eval", "metrics",
     "lengths", "users"}
)  # fmt: skip

NOTE = (
    "Steps by which sessions are longer than those of the raw state and of the belief; ± is a 95 % "
    "interval over worlds, or over users where there is one world."
)

Rows = Mapping[str, Mapping[int, Result]]  # of one world, by subject and seed


def read_studies(folder: Path) -> list[Result]:
    """Results of this study in a folder.

    Raises:
        DataFormatError: There are none, or a measurement has two files.
    """
    return read_results(folder, STUDY, KEYS, lambda row: measurement(row, "subject"), "estimate")


def markdown(results: Iterable[Result]) -> str:
    """The means over worlds, and a table for each world."""
    worlds = by_world(results)
    tables = [_table(world, rows) for world, rows in worlds.items()]
    return "\n\n".join([section("What state estimates are worth", summary(worlds), NOTE), *tables])


def by_world(results: Iterable[Result]) -> dict[World, Rows]:
    """Results of each world by subject and seed: estimates in their order, then agents."""
    worlds: dict[World, dict[str, dict[int, Result]]] = defaultdict(lambda: defaultdict(dict))
    order = {name: number for number, name in enumerate(ESTIMATES)}
    for result in in_order(results):
        worlds[world_of(result)][result["subject"]][result["seed"]] = result
    return {
        world: dict(sorted(rows.items(), key=lambda row: order.get(row[0], len(order))))
        for world, rows in worlds.items()
    }


class Differences(NamedTuple):
    """Differences of length of n sessions.

    Attributes:
        steps: (n,) float64.
        users: (n,) int64, whose sessions they are.
    """

    steps: NDArray[np.float64]
    users: NDArray[np.int64]

    def __str__(self) -> str:
        """Mean and 95 % interval over users; empty without sessions."""
        if not self.steps.size:
            return ""
        mean, half = mean_and_ci95_by_user(*self)
        return f"{mean:+.3f} ± {half:.3f}"


def differences(rows: Rows, subject: str, base: str) -> Differences:
    """Lengths of a subject's sessions, less those of a base's same sessions.

    Args:
        rows: Results of one world.
        subject: An estimate or agent.
        base: Another one; only seeds of both count.

    Returns:
        The differences, none of a subject to itself.
    """
    ours, theirs = rows[subject], rows.get(base, {})
    seeds = sorted(ours.keys() & theirs.keys()) if subject != base else []
    steps = [np.subtract(ours[seed]["lengths"], theirs[seed]["lengths"]) for seed in seeds]
    users = [np.asarray(ours[seed]["users"]) for seed in seeds]
    return Differences(
        np.concatenate([np.empty(0), *steps]),
        np.concatenate([np.empty(0, dtype=np.int64), *users]),
    )


def summary(worlds: Mapping[World, Rows]) -> str:
    """A table of both differences: a row per subject, two columns per kind of world and length."""
    kinds: dict[World, list[Rows]] = defaultdict(list)
    for world, rows in worlds.items():
        kinds[world._replace(seed=0, fingerprint="")].append(rows)
    subjects = dict.fromkeys(subject for rows in worlds.values() for subject in rows)
    table = []
    for subject in subjects:
        cells = [
            _over_worlds([differences(rows, subject, base) for rows in group if subject in rows])
            for group in kinds.values()
            for base in BASES
        ]
        table.append([subject, *cells])
    header = [
        f"{world.short_title}, {len(group)} world(s), less {base}"
        for world, group in kinds.items()
        for base in BASES
    ]
    return markdown_table(["estimate", *header], table)


def _over_worlds(samples: Iterable[Differences]) -> str:
    """Mean and interval over worlds, of one over users; empty without any."""
    present = [sample for sample in samples if sample.steps.size]
    if len(present) == 1:
        return str(present[0])
    return interval([float(sample.steps.mean()) for sample in present], 3, "+")


def _table(world: World, rows: Rows) -> str:
    table = []
    for subject, by_seed in rows.items():
        results = list(by_seed.values())
        metrics = [
            f"{np.mean([result['metrics'][name] for result in results]):.{digits}f}"
            for name, digits in (("len", 2), ("r_each", 3), ("q", 3), ("ad", 3))
        ]
        weights = dict.fromkeys(f"{one['weight']:g}" for one in results if "weight" in one)
        paired = [str(differences(rows, subject, base)) for base in BASES]
        table.append([subject, str(len(results)), *metrics, ", ".join(weights), *paired])
    header = ["estimate", "seeds", "Len", "R_each", "q", "AD", "weight",
              *(f"Len less {base}'s" for base in BASES)]  # fmt: skip
    sessions = max(result["sessions"] for by_seed in rows.values() for result in by_seed.values())
    note = (
        f"{sessions:,} sessions a seed, the same users and random numbers in all rows; differences "
        "are paired by session, ± is a 95 % interval over the users of all seeds. Weight: of "
        "similarity, 1 for estimates of the belief, else chosen on train users in their simulator."
    )
    return section(f"State estimates: {world.title}", markdown_table(header, table, "lr"), note)
