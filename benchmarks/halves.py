"""The ``halves`` command: rankings on the half of a real world's users on whom nothing was chosen.

Test users are dealt out in turn: the first, third and so on are half A, on whom forms and settings
may be chosen; half B is for reporting. Rows play the same sessions of one half, so that differences
are paired by session, and are judged by that half's own labels where the data have them.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dsrm_agents.baselines.reference import make_reference
from kuaisim_gym.config import check_choice, check_whole
from kuaisim_gym.data import Dataset
from kuaisim_gym.errors import ConfigError

from .agents.agent import SLATE_ACTIONS, Agent
from .commands import add_jobs, add_out_or_table, place
from .formatting import markdown_table, mean_and_ci95, mean_and_ci95_by_user, section
from .labels import has_labels, judge, score_of, usual
from .runs.judging import play
from .runs.settings import Run
from .runs.world_study import WorldStudy, measurement
from .runs.worlds import all_worlds
from .studies.backends import results_of
from .studies.results import Result, in_order, read_results, world_of

STUDY = "halves"
SOURCES = ("kuairec-like", "kuairand-pool")
SESSIONS = 3000  # several a user, so that nearly all are played
HALVES = {"A": 0, "B": 1}
# What counting positives does, what item effects and beliefs do, and what true rates would do.
SCORES = ("popularity", "quality", "filter", "expected-quality", "expected-oracle")
COMPOSITIONS = ("+quota", "+band")
# What differences refer to: a row, or a score in slates of the same composition.
BASES = ("popularity+quota", "popularity", "expected-quality")
LABEL_BASES = ("popularity", "random-rates")
KEYS = frozenset({"study", "half", "env", "max_len", "seed", "sessions", "dataset", "users", "rows",
                  "labels"})  # fmt: skip


@dataclass(frozen=True)
class HalfStudy(WorldStudy):
    """All rows on one half of a world's test users.

    Attributes:
        half: A key of :data:`HALVES`.
    """

    study = STUDY

    half: str = "B"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("half", self.half, HALVES)
        check_whole("sessions", self.spec.sessions, 2)  # an interval needs two

    @property
    def subject(self) -> str:
        return self.half

    def header(self) -> Result:
        return super().header() | {"half": self.half, "sessions": self.spec.sessions}

    def make(self, path: Path) -> Result:
        dataset = self.spec.load()
        users = half_of(dataset, self.half)
        rows: list[dict[str, Any]] = []
        lengths: dict[str, NDArray[np.float64]] = {}
        for score, composition in product(SCORES, COMPOSITIONS):
            name = score + composition
            agent = Agent(name, rule=partial(make_reference, name), env_options=SLATE_ACTIONS)
            played = play(agent, self.spec, dataset, None, None, users=users)
            owners = played.sessions.users  # the same for all rows
            lengths[name] = played.sessions.length.astype(np.float64)
            metrics = {key: played.metrics[key] for key in ("len", "r_each", "q", "ad")}
            rows.append({"row": name, **metrics})
        for row, base in product(rows, BASES):
            composition = "+" + row["row"].rpartition("+")[2]
            other = base if base in lengths else base + composition
            difference = lengths[row["row"]] - lengths[other]
            row[f"less_{base}"] = mean_and_ci95_by_user(difference, owners)
        return {"users": len(users), "rows": rows, "labels": self._judged(dataset, users)}

    def _judged(self, dataset: Dataset, users: NDArray[np.int32]) -> list[dict[str, Any]]:
        """GAUC of each score by the half's labels; empty where answers are no labels."""
        if not has_labels(dataset):
            return []
        table = dataset.test.of_users(users, dataset.n_users)
        judged = {name: judge(table, score_of(name, self.spec)) for name in usual(dataset)}
        rows = []
        for name, ranking in judged.items():
            row: dict[str, Any] = {"score": name, "gauc": mean_and_ci95(ranking.auc.tolist())}
            for base in LABEL_BASES:
                if base in judged:
                    difference = ranking.auc - judged[base].auc
                    row[f"less_{base}"] = mean_and_ci95(difference.tolist())
            rows.append(row)
        return rows

    @staticmethod
    def markdown(results: Sequence[Result]) -> str:
        """Tables of sessions and of labels, for each half of each world."""
        return "\n\n".join(map(_tables, in_order(results)))


def half_of(dataset: Dataset, half: str) -> NDArray[np.int32]:
    """(n,) int32 test users of a half, dealt out in turn.

    Args:
        dataset: The data.
        half: A key of :data:`HALVES`.
    """
    return dataset.test_users[HALVES[half] :: len(HALVES)]


def _tables(result: Result) -> str:
    title = f"Half {result['half']} of {world_of(result).title}"
    bases = [f"less_{base}" for base in BASES]
    rows = []
    for row in result["rows"]:
        metrics = [f"{row['len']:.2f}", *(f"{row[name]:.3f}" for name in ("r_each", "q", "ad"))]
        rows.append([row["row"], *metrics, *(_paired(row[base]) for base in bases)])
    header = ["row", "Len", "R_each", "q", "AD", *(f"Len less {base}'s" for base in BASES)]
    note = (
        f"{result['sessions']:,} sessions of the half's {result['users']:,} users, the same in all "
        "rows; differences are paired by session, to a score's row of the same slates where no "
        "slates are named; ± is a 95 % interval over users. On logs of positives popularity is "
        "the count of positives; expected-quality knows the true item rates."
    )
    return section(title, markdown_table(header, rows, "lr"), note, _label_table(result))


def _label_table(result: Result) -> str:
    """The scores by the half's labels; empty where its answers are no labels."""
    if not result["labels"]:
        return ""
    rows = []
    for row in result["labels"]:
        cells = [_paired(row.get(f"less_{base}"), 4) for base in LABEL_BASES]
        rows.append([row["score"], f"{row['gauc'][0]:.4f} ± {row['gauc'][1]:.4f}", *cells])
    header = ["score", "GAUC of the labels", *(f"less {base}'s" for base in LABEL_BASES)]
    return markdown_table(header, rows, "lr")


def _paired(pair: Sequence[float] | None, digits: int = 3) -> str:
    """A mean difference and the half-width of its interval; empty for none."""
    return "" if pair is None else f"{pair[0]:+.{digits}f} ± {pair[1]:.{digits}f}"


def read_studies(folder: Path) -> list[Result]:
    """Results of this study in a folder.

    Raises:
        DataFormatError: There are none, or a measurement has two files.
    """
    return read_results(folder, STUDY, KEYS, lambda row: measurement(row, "half"), "half")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    add = parser.add_argument
    add_out_or_table(parser)
    add(
        "--real", type=place, metavar="DIR",
        help="folder with kuairec_real and kuairand_real; default: none, and --out needs one",
    )  # fmt: skip
    add("--sources", nargs="+", default=list(SOURCES), help="names of sources")
    add("--max-len", type=int, nargs="+", help="longest sessions; default: all of the benchmark")
    add("--halves", nargs="+", default=["B"], choices=HALVES, help="halves of the users")
    add("--sessions", type=int, default=SESSIONS, help="test sessions")
    add("--seed", type=int, default=Run.seed, help="of the sessions")
    add_jobs(parser)


def main(options: argparse.Namespace) -> None:
    """Makes the missing studies and prints the tables of the folder.

    Raises:
        ConfigError: No folder of real data, or a result has other settings.
        DataFormatError: The folder holds no results.
    """
    results_of(options, lambda: studies_of(options), read_studies, HalfStudy.markdown)


def studies_of(options: argparse.Namespace) -> list[HalfStudy]:
    """Studies that the options name.

    Raises:
        ConfigError: No folder of real data is named, or the options choose no world.
        DatasetNotFoundError: The folder lacks a world's files.
    """
    if options.real is None:
        raise ConfigError("halves is of real worlds: name their folder by --real DIR.")
    worlds = [
        replace(world, seed=options.seed, sessions=options.sessions)
        for world in all_worlds(options.real)
        if world.origin.source in options.sources
        and world.max_len in (options.max_len or [world.max_len])
    ]
    if not worlds:
        raise ConfigError(
            f"--sources {' '.join(options.sources)} and --max-len choose none of the real worlds "
            "of the benchmark."
        )
    return [HalfStudy(world, half) for world, half in product(worlds, options.halves)]
