"""The ``estimates`` command: what a state estimate is worth, session by session.

Every estimate stands in front of the same ranking policy with a quota, which learns nothing, and
plays the same sessions. Trained agents may play them, too, each on the state that it observes.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

from kuaisim_gym.config import check_whole
from kuaisim_gym.errors import ConfigError

from ..agents import find_agent
from ..commands import add_dataset, add_jobs, add_out_or_table, count
from ..origin import env_for, find_origin
from ..paper import ENVS, MAX_LENS, SEEDS
from ..runs.judging import Played, play
from ..runs.settings import Run
from ..runs.training import train_agent
from ..runs.world_study import WorldStudy
from ..studies.backends import results_of
from ..studies.results import Result
from .report import STUDY, markdown, read_studies
from .states import ESTIMATES, find_estimate, play_estimate

FRESH = (101, 102, 103)  # seeds of worlds on which nothing was chosen


@dataclass(frozen=True)
class EstimateStudy(WorldStudy):
    """Sessions of a policy on one state estimate, in one world.

    Attributes:
        estimate: As for :func:`~benchmarks.estimates.states.find_estimate`; empty for an agent.
        agent: Name of a benchmark's agent to train in place of the ranking policy.

    Raises:
        ConfigError: A name is unknown, there are both or neither, or fewer sessions than two.
    """

    study = STUDY

    estimate: str = ""
    agent: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        if bool(self.estimate) == bool(self.agent):
            raise ConfigError(
                f"A study is of an estimate or of an agent, got estimate={self.estimate!r} and "
                f"agent={self.agent!r}: leave one of them empty."
            )
        if self.estimate:
            find_estimate(self.estimate)
        else:
            find_agent(self.agent)
        check_whole("sessions", self.spec.sessions, 2)  # an interval needs two

    @property
    def subject(self) -> str:
        if self.agent:
            return find_agent(self.agent).name
        return self.estimate.rpartition(":")[2]

    def header(self) -> Result:
        header = super().header() | {"subject": self.subject, "sessions": self.spec.sessions}
        trained = self.agent and find_agent(self.agent).rule is None
        return header | ({"episodes": self.spec.episodes} if trained else {})

    def make(self, path: Path) -> Result:
        dataset = self.spec.load()
        if self.agent:
            played, choice = self._play_agent(path), {}
        else:
            played, ready = play_estimate(self.estimate, self.spec, dataset)
            lengths = {f"{weight:g}": length for weight, length in ready.lengths.items()}
            choice = {"weight": ready.weight, "train_len_by_weight": lengths}
        sessions = {
            "lengths": played.sessions.length.tolist(),
            "users": played.sessions.users.tolist(),
        }
        return {**choice, "eval": played.block, "metrics": played.metrics, **sessions}

    def _play_agent(self, path: Path) -> Played:
        """Trains the agent as a run does, and plays its test sessions."""
        spec, agent = replace(self.spec, agent=self.agent), find_agent(self.agent)
        dataset, fitted, model = spec.load(), None, None
        if agent.rule is None:
            fitted = agent.prepare(dataset, spec.seed, False)
            checkpoint = path.with_suffix(".checkpoint")
            model, _ = train_agent(spec, dataset, fitted, False, checkpoint=checkpoint)
        return play(agent, spec, dataset, model, fitted)

    def encode(self, result: Result) -> str:
        """One line per key: a thousand sessions need no line each."""
        lines = (f" {json.dumps(name)}: {json.dumps(value)}" for name, value in result.items())
        return "{\n" + ",\n".join(lines) + "\n}\n"

    @staticmethod
    def markdown(results: list[Result]) -> str:
        """Tables of all worlds, and their means."""
        return markdown(results)


def plan(
    worlds: Iterable[Run], estimates: Sequence[str] = (), agents: Sequence[str] = ()
) -> list[EstimateStudy]:
    """All studies of some worlds, world by world.

    Args:
        worlds: Worlds, lengths and seeds.
        estimates: Names of estimates; empty for all.
        agents: Names of agents to play, too.

    Raises:
        ConfigError: A name is unknown.
    """
    studies = []
    for world in worlds:
        studies += [EstimateStudy(world, name) for name in estimates or ESTIMATES]
        studies += [EstimateStudy(world, agent=name) for name in agents]
    return list(dict.fromkeys(studies))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    add = parser.add_argument
    add_out_or_table(parser)
    add("--envs", nargs="+", help="default: both of the paper's, or that of --dataset")
    add_dataset(parser)
    add(
        "--dataset-seeds", type=int, nargs="+", metavar="N",
        help="of synthetic worlds; default: 101 102 103, on which nothing was chosen",
    )  # fmt: skip
    add("--slate-size", type=count, metavar="K", help="items in a slate; default: usually 10")
    add("--max-len", type=int, nargs="+", default=list(MAX_LENS), help="longest sessions")
    add("--seeds", type=int, nargs="+", default=list(SEEDS), help="of sessions")
    add("--sessions", type=int, default=Run.sessions, help="test sessions a seed")
    add(
        "--estimates", nargs="+", default=[],
        help="names, or purifiers of yours as module:name; default: all",
    )  # fmt: skip
    add("--agents", nargs="+", default=[], help="agents to play, as for train; default: none")
    add("--episodes", type=int, default=Run.episodes, help="training sessions of agents")
    add_jobs(parser)


def main(options: argparse.Namespace) -> None:
    """Makes the missing studies and prints the tables of the folder.

    Raises:
        ConfigError: Options contradict each other, or a result has other settings.
        DataFormatError: The folder holds no results.
    """

    def planned() -> list[EstimateStudy]:
        return plan(worlds_of(options), options.estimates, options.agents)

    results_of(options, planned, read_studies, markdown)


def worlds_of(options: argparse.Namespace) -> list[Run]:
    """Worlds, lengths and seeds that the options name; all lengths of a seed are together.

    Raises:
        ConfigError: Options contradict each other.
    """
    envs = options.envs or (
        list(ENVS.values()) if options.dataset is None else [env_for(options.dataset, Run.env)]
    )
    worlds = []
    for env in envs:
        is_real = find_origin(options.dataset, env).path is not None
        seeds = options.dataset_seeds or ([0] if is_real else FRESH)
        for dataset_seed, seed, max_len in product(seeds, options.seeds, options.max_len):
            worlds.append(
                Run(
                    "random", env, options.dataset, max_len, seed, options.episodes,
                    options.sessions, dataset_seed, options.slate_size,
                )
            )  # fmt: skip
    return worlds
