"""The ``labels`` command: rankings judged by real labels of exposures that nobody chose.

Sessions of a modelled world may flatter a policy whose model resembles the world's. The labelled
rows of test users cannot: within each user's own rows, does a score put the positive ones first?
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product, starmap
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from stable_baselines3.common.base_class import BaseAlgorithm

from dsrm_agents import KuaiVecEnv, make_vec_env
from dsrm_agents.baselines.reference import SCORES
from dsrm_agents.common.item_scores import item_scores, scores_items
from kuaisim_gym.config import check_choice
from kuaisim_gym.data import Dataset, Interactions
from kuaisim_gym.envs.assembly import SessionBatch
from kuaisim_gym.errors import ConfigError
from kuaisim_gym.simulator.quality import UserRanking, rank_users

from .agents import find_agent
from .formatting import interval, markdown_table, mean_and_ci95, section
from .paper import SEEDS
from .runs.settings import Run, weights_of
from .runs.training import train_agent
from .runs.world_study import WorldStudy, add_world_arguments, measurement, worlds_of
from .studies.backends import results_of
from .studies.results import Result, World, in_order, read_results, world_of

STUDY = "labels"
BASE = "popularity"  # the score that differences refer to
LEAST_ROWS = 10  # of a user who counts: a quarter of fewer is hardly a row
TOGETHER = 100  # users whose scores are computed at once
MEASURES = {"gauc": "GAUC", "top_quarter": "rate of the top quarter"}
KEYS = frozenset(
    {"study", "ranking", "env", "max_len", "seed", "dataset", "users", "left_out", "rows"}
)

# Scores that know no answer of a test user.
RANKINGS = tuple(name for name, score in SCORES.items() if not score.test_only)
REFERENCES = "references"  # the ranking of a result that holds those scores

Summary = dict[str, float]
UserScores = Callable[[NDArray[np.int32]], NDArray[np.float32]]  # of all items, by user


@dataclass(frozen=True)
class LabelStudy(WorldStudy):
    """Rankings of one dataset's labelled rows: the scores without training, or an agent's.

    Attributes:
        agent: Name of an agent to train, as for :class:`~benchmarks.runs.settings.Run`; empty for
            scores.
        scores: Scores of :data:`~dsrm_agents.baselines.reference.SCORES`; empty for all that the
            data allow. The seed is that of the random one.
    """

    study = STUDY

    agent: str = ""
    scores: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in self.scores:
            check_choice("scores", name, RANKINGS)
        if self.agent and find_agent(self.agent).rule is not None:
            raise ConfigError(
                f"{self.agent} needs no training: --agents names those that do, --scores others."
            )

    @property
    def subject(self) -> str:
        return find_agent(self.agent).name if self.agent else REFERENCES

    def header(self) -> Result:
        header = super().header() | {"ranking": self.subject}
        if self.agent:
            return header | {"episodes": self.spec.episodes}
        return header | {"scores": list(self.scores or usual(self.spec.load()))}

    def make(self, path: Path) -> Result:
        dataset = self.spec.load()
        rows = labelled_rows(dataset)
        base = judge(rows, score_of(BASE, self.spec))
        summaries: dict[str, Summary | None] = {}
        if self.agent:
            summaries[self.subject] = self._train_and_judge(path, rows, base)
        else:
            for name in dict.fromkeys([BASE, *(self.scores or usual(dataset))]):
                summaries[name] = summary(judge(rows, score_of(name, self.spec)), base)
        return {
            "users": len(base.users),
            "left_out": base.left_out,
            "rate": float(rows.response.mean()),
            "labels": len(rows),
            "rows": summaries,
        }

    def _train_and_judge(self, path: Path, rows: Interactions, base: UserRanking) -> Summary | None:
        """Trains the agent as a run does; ``None`` if it scores no items."""
        spec, agent = replace(self.spec, agent=self.agent), find_agent(self.agent)
        dataset = spec.load()
        fitted = agent.prepare(dataset, spec.seed, False)
        checkpoint = path.with_suffix(".checkpoint")
        try:
            model, _ = train_agent(
                spec, dataset, fitted, False, checkpoint=checkpoint, prepare=_check_scores
            )
        except _NoItemScores:
            return None

        def score(users: NDArray[np.int32]) -> NDArray[np.float32]:
            env = _env(spec, users, agent.options_for(fitted))
            wrapped: Any = agent.wrap(env, fitted, agent.hyperparams, False)
            wrapped.reset()
            _arrive(env.batch, users)
            return item_scores(model, wrapped.observe())

        return summary(judge(rows, score), base)

    @staticmethod
    def markdown(results: Sequence[Result]) -> str:
        """A table for each dataset."""
        tables: dict[World, list[Result]] = defaultdict(list)
        for result in in_order(results):
            # Scores at the start of a session depend neither on its length nor on its slates.
            tables[world_of(result)._replace(env="", max_len=0, slate_size=0)].append(result)
        return "\n\n".join(starmap(_table, tables.items()))


def judge(rows: Interactions, score: UserScores) -> UserRanking:
    """Judges a ranking of all items, as sessions start, by some labelled rows.

    Args:
        rows: Rows whose answers are yes or no.
        score: Function from users to their scores of all items.
    """
    scores = np.zeros(len(rows), dtype=np.float32)
    users = rows.distinct_users
    for start in range(0, len(users), TOGETHER):
        chunk = users[start : start + TOGETHER]
        inside = (rows.users >= chunk[0]) & (rows.users <= chunk[-1])
        slot = np.searchsorted(chunk, rows.users[inside])
        scores[inside] = score(chunk)[slot, rows.items[inside]]
    return rank_users(scores, rows.is_positive, rows.users, LEAST_ROWS)


def score_of(name: str, spec: Run) -> UserScores:
    """A score of the references, as a function from users to (n, n_items) float32.

    Args:
        name: A key of :data:`~dsrm_agents.baselines.reference.SCORES`.
        spec: World and seed.
    """

    def score(users: NDArray[np.int32]) -> NDArray[np.float32]:
        env = _env(spec, users, {"action_type": "slate"})
        env.reset()
        _arrive(env.batch, users)
        return SCORES[name].rule(env.batch)

    return score


def _env(spec: Run, users: NDArray[np.int32], options: Mapping[str, str]) -> KuaiVecEnv:
    """An environment with a session for each of some users."""
    chosen: dict[str, Any] = {**weights_of(spec.env), **spec.session_options, **options}
    return make_vec_env(spec.env, len(users), "test", spec.seed, dataset=spec.load(), **chosen)


class _NoItemScores(Exception):
    """The model scores no items."""


def _check_scores(model: BaseAlgorithm) -> None:
    if not scores_items(model):
        raise _NoItemScores


def _arrive(batch: SessionBatch, users: NDArray[np.int32]) -> None:
    """Begins sessions of these users."""
    batch.core.reset(users=users)
    batch.encoder.reset(np.ones(len(users), dtype=bool))


def usual(dataset: Dataset) -> tuple[str, ...]:
    """Scores that some data allow."""
    return tuple(name for name in RANKINGS if SCORES[name].suits(dataset))


def has_labels(dataset: Dataset) -> bool:
    """Tells if each test row is one yes-or-no answer."""
    return bool(np.isin(dataset.test.response, (0.0, 1.0)).all())


def labelled_rows(dataset: Dataset) -> Interactions:
    """The test rows, if each is one yes-or-no answer.

    Raises:
        ConfigError: They are not.
    """
    if not has_labels(dataset):
        raise ConfigError(
            f"labels judges yes-or-no answers, but test rows of {dataset.name} are shares: give "
            "a dataset with labels, such as kuairand-click=DIR or kuairand."
        )
    return dataset.test


def summary(ranking: UserRanking, base: UserRanking) -> Summary:
    """Means over users, and paired differences to a base, with half-widths of 95 % intervals.

    Args:
        ranking: A ranking of some rows.
        base: Another one of the same rows.
    """
    numbers = {}
    for name, of_users, of_base in (
        ("gauc", ranking.auc, base.auc),
        ("top_quarter", ranking.top_quarter, base.top_quarter),
    ):
        for label, sample in ((name, of_users), (f"d_{name}", of_users - of_base)):
            numbers[label], numbers[f"{label}_ci95"] = mean_and_ci95(sample.tolist())
    return numbers


def _table(world: World, results: Sequence[Result]) -> str:
    rows = []
    for key, summaries in _by_ranking(results).items():
        rows.append([*key, *_cells(summaries)])
    header = ["ranking", "T", "seeds"]
    for measure in MEASURES.values():
        header += [measure, f"less {BASE}'s"]
    first = results[0]
    # Labels are rows of the data, even where sessions have modelled answers.
    kind = "REAL" if world.answers != "synthetic" else world.data.replace(" world", "")
    note = (
        f"{first['labels']:,} {kind} labels of test users, {first['rate']:.3f} of them positive. "
        f"Of the {first['users']:,} users with at least {LEAST_ROWS} rows, some positive "
        f"and some negative ({first['left_out']:,} are left out): GAUC, the mean AUC within a "
        "user, and the rate of positives in the best quarter of a user's rows. ± is a 95 % "
        "interval over seeds, or over users where there is one; differences are paired by user."
    )
    title = f"Rankings by {kind} labels: {world.dataset} ({world.fingerprint})"
    return section(title, markdown_table(header, rows, "lr"), note)


def _by_ranking(results: Sequence[Result]) -> dict[tuple[str, str, str], list[Summary | None]]:
    """Summaries of all seeds by ranking, length and number of seeds; references come first."""
    found: dict[tuple[str, str], list[Summary | None]] = defaultdict(list)
    for result in sorted(results, key=lambda row: row["ranking"] != REFERENCES):
        length = "" if result["ranking"] == REFERENCES else str(result["max_len"])
        for name, numbers in result["rows"].items():
            found[name, length].append(numbers)
    return {(*key, str(len(rows)) if key[1] else ""): rows for key, rows in found.items()}


def _cells(summaries: Sequence[Summary | None]) -> list[str]:
    """Cells of both measures and their differences."""
    known = [numbers for numbers in summaries if numbers is not None]
    if not known:
        return ["scores no items", *[""] * (2 * len(MEASURES) - 1)]
    cells = []
    for name, sign in product(MEASURES, ("", "+")):
        label = f"d_{name}" if sign else name
        cell = interval([numbers[label] for numbers in known], 4, sign)
        if len(known) == 1:
            cell += f" ± {known[0][f'{label}_ci95']:.4f}"
        cells.append(cell)
    return cells


def read_studies(folder: Path) -> list[Result]:
    """Results of this study in a folder.

    Raises:
        DataFormatError: There are none, or a measurement has two files.
    """
    return read_results(folder, STUDY, KEYS, lambda row: measurement(row, "ranking"), "ranking")


def studies_of(
    worlds: Sequence[Run], agents: Sequence[str], scores: Sequence[str]
) -> Iterator[LabelStudy]:
    """Studies of the datasets with labels: the scores of each once, and agents in each world.

    Args:
        worlds: Worlds and seeds.
        agents: Agents to train.
        scores: Names of scores; empty for all that the data allow.
    """
    seen = set()
    for world in worlds:
        if world.origin not in seen:
            seen.add(world.origin)
            yield LabelStudy(world, scores=tuple(scores))
        for agent in agents:
            yield LabelStudy(world, agent)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    add = parser.add_argument
    add_world_arguments(parser)
    add("--scores", nargs="+", default=[], help=f"default: those of {', '.join(RANKINGS)} that fit")
    add("--agents", nargs="+", default=[], help="agents to train, as for train; default: none")
    add("--episodes", type=int, default=Run.episodes, help="training sessions")
    add("--seeds", type=int, nargs="+", default=list(SEEDS), help="of agents")


def main(options: argparse.Namespace) -> None:
    """Judges rankings in the worlds that have labels and prints the tables of the folder.

    Raises:
        ConfigError: The data, a score or an agent do not exist, or no world has labels.
        DataFormatError: The folder holds no results.
    """

    def plan() -> Iterable[LabelStudy]:
        worlds = worlds_of(options, options.seeds)
        worlds = [replace(world, episodes=options.episodes) for world in worlds]
        if options.all_worlds:  # of which some have labels
            worlds = [world for world in worlds if has_labels(world.load())]
        return studies_of(worlds, options.agents, options.scores)

    results_of(options, plan, read_studies, LabelStudy.markdown)
