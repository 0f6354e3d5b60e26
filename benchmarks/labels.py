"""The ``labels`` command: rankings judged by real labels of exposures that nobody chose.

Sessions of a modelled world may flatter a policy whose model resembles the world's. The labelled
rows of test users cannot: within each user's own rows, does a score put the positive ones first?
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.commands import add_dataset, add_dataset_seed, add_out_or_table
from benchmarks.formatting import markdown_table, mean_and_ci95, section
from benchmarks.origin import env_for
from benchmarks.results import Result, read_results, world_of
from benchmarks.run import Run
from benchmarks.study import run_studies
from benchmarks.world_study import WorldStudy, measurement
from dsrm_agents import make_vec_env
from dsrm_agents.baselines.reference import SCORES
from kuaisim_gym.config import check_choice
from kuaisim_gym.data import Dataset, Interactions
from kuaisim_gym.envs.assembly import SessionBatch
from kuaisim_gym.errors import ConfigError
from kuaisim_gym.simulator.quality import auc

STUDY = "labels"
BASE = "popularity"  # the score that differences refer to
LEAST_ROWS = 10  # of a user who counts
TOGETHER = 200  # users whose scores are computed at once
KEYS = frozenset({"study", "env", "seed", "dataset", "scores", "users", "rows"})

# Scores that know no answer of a test user.
RANKINGS = tuple(name for name, score in SCORES.items() if not score.test_only)


@dataclass(frozen=True)
class LabelStudy(WorldStudy):
    """Rankings of one dataset's labelled rows.

    Attributes:
        scores: Scores of :data:`~dsrm_agents.baselines.reference.SCORES`; empty for all that the
            data allow. The seed is that of the random one.
    """

    study = STUDY

    scores: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in self.scores:
            check_choice("scores", name, RANKINGS)

    def header(self) -> Result:
        return super().header() | {
            "scores": list(self.scores or usual(self.origin.load())),
            "seed": self.seed,
        }

    def make(self, path: Path) -> Result:
        dataset = self.origin.load()
        rows = labelled_rows(dataset)
        names = list(dict.fromkeys([BASE, *(self.scores or usual(dataset))]))
        measured = {name: by_user(rows, self._scores(name, rows)) for name in names}
        return {
            "users": len(measured[BASE]["gauc"]),
            "rate": float(rows.response.mean()),
            "labels": len(rows),
            "rows": {name: summary(values, measured[BASE]) for name, values in measured.items()},
        }

    def _scores(self, name: str, rows: Interactions) -> NDArray[np.float32]:
        """(n,) scores of the rows, at the start of their users' sessions."""
        scores = np.zeros(len(rows), dtype=np.float32)
        users = rows.distinct_users
        for start in range(0, len(users), TOGETHER):
            chunk = users[start : start + TOGETHER]
            batch = self._batch(chunk)
            of_items = SCORES[name].rule(batch)
            slot = np.searchsorted(chunk, rows.users)
            inside = (rows.users >= chunk[0]) & (rows.users <= chunk[-1])
            scores[inside] = of_items[slot[inside], rows.items[inside]]
        return scores

    def _batch(self, users: NDArray[np.int32]) -> SessionBatch:
        """Sessions that these users have just begun."""
        env = make_vec_env(
            self.env, len(users), "test", self.seed, dataset=self.origin.load(),
            action_type="slate",
        )  # fmt: skip
        env.reset()
        env.batch.core.reset(users=users)
        return env.batch

    @staticmethod
    def markdown(results: Sequence[Result]) -> str:
        """A table for each world."""
        return "\n\n".join(_table(result) for result in results)


def usual(dataset: Dataset) -> tuple[str, ...]:
    """Scores that some data allow."""
    has_truth = dataset.truth is not None
    return tuple(name for name in RANKINGS if has_truth or not SCORES[name].synthetic_only)


def labelled_rows(dataset: Dataset) -> Interactions:
    """The test rows, if each is one yes-or-no answer.

    Raises:
        ConfigError: They are not.
    """
    response = dataset.test.response
    if not np.isin(response, (0.0, 1.0)).all():
        raise ConfigError(
            f"labels judges yes-or-no answers, but test rows of {dataset.name} are shares: give "
            "a dataset with labels, such as kuairand-click=DIR or kuairand."
        )
    return dataset.test


def by_user(rows: Interactions, scores: NDArray[np.floating]) -> dict[str, NDArray[np.float64]]:
    """Measures of a ranking within each user's rows.

    Args:
        rows: Labelled rows.
        scores: (n,) their scores.

    Returns:
        ``gauc``, AUC, and ``top_quarter``, rate of positives in the best quarter of the rows: a
        number for each user with at least :data:`LEAST_ROWS` rows, some positive and some negative.
        Equal scores share their places. Users ascend.
    """
    order = np.argsort(rows.users, kind="stable")
    positive, scores = rows.is_positive[order], np.asarray(scores)[order]
    bounds = np.flatnonzero(np.diff(rows.users[order], prepend=-1))
    areas, rates = [], []
    for start, end in zip(bounds, [*bounds[1:], len(order)], strict=True):
        labels, values = positive[start:end], scores[start:end]
        if len(labels) >= LEAST_ROWS and 0 < labels.sum() < len(labels):
            areas.append(auc(values, labels))
            rates.append(_top_rate(values, labels, round(len(labels) / 4)))
    return {"gauc": np.array(areas), "top_quarter": np.array(rates)}


def _top_rate(scores: NDArray[np.floating], labels: NDArray[np.bool_], count: int) -> float:
    """Rate of positives among the ``count`` best rows; rows equal to the last share its places."""
    last = np.partition(scores, len(scores) - count)[len(scores) - count]
    above, equal = scores > last, scores == last
    left = count - above.sum()
    return float((labels[above].sum() + left * labels[equal].mean()) / count)


def summary(
    values: dict[str, NDArray[np.float64]], base: dict[str, NDArray[np.float64]]
) -> dict[str, float]:
    """Means over users, and paired differences to a base, with half-widths of 95 % intervals."""
    numbers = {}
    for name, of_users in values.items():
        for label, sample in ((name, of_users), (f"d_{name}", of_users - base[name])):
            numbers[label], numbers[f"{label}_ci95"] = mean_and_ci95(sample.tolist())
    return numbers


def _table(result: Result) -> str:
    rows = []
    for name, numbers in result["rows"].items():
        cells = [name]
        for label, sign in (("gauc", ""), ("d_gauc", "+"), ("top_quarter", ""),
                            ("d_top_quarter", "+")):  # fmt: skip
            cells.append(f"{numbers[label]:{sign}.4f} ± {numbers[f'{label}_ci95']:.4f}")
        rows.append(cells)
    header = ["score", "GAUC", f"less {BASE}'s", "rate of the top quarter", f"less {BASE}'s"]
    world = world_of(result | {"max_len": 0})
    kind = "SYNTHETIC" if world.answers == "synthetic" else "real"
    note = (
        f"{result['labels']:,} {kind} labels of test users, {result['rate']:.3f} of them positive. "
        f"Of the {result['users']:,} users with at least {LEAST_ROWS} rows, some positive and some "
        "negative: mean AUC within a user, and the rate of positives in the best quarter. "
        "± is a 95 % interval over users, differences are paired."
    )
    title = f"Rankings by {kind} labels: {world.dataset} ({world.fingerprint})"
    return section(title, markdown_table(header, rows), note)


def read_studies(folder: Path) -> list[Result]:
    """Results of this study in a folder."""
    return read_results(folder, STUDY, KEYS, measurement, "world")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    add = parser.add_argument
    add("--env", help="which names the source; default: that of --dataset, or KuaiRand-Fair-v0")
    add_dataset(parser)
    add_dataset_seed(parser)
    add("--scores", nargs="+", default=[], help=f"default: those of {', '.join(RANKINGS)} that fit")
    add("--seed", type=int, default=Run.seed, help="of the random score")
    add_out_or_table(parser)


def main(options: argparse.Namespace) -> None:
    """Judges rankings in one dataset and prints the tables of the folder.

    Raises:
        ConfigError: The data or a score do not exist, or have no labels.
        DataFormatError: The folder holds no results.
    """
    if options.table is None:
        study = LabelStudy(
            options.env or env_for(options.dataset, "KuaiRand-Fair-v0"), options.dataset,
            options.dataset_seed, options.seed, tuple(options.scores),
        )  # fmt: skip
        run_studies([study], options.out)
    print(LabelStudy.markdown(read_studies(options.table or options.out)))
