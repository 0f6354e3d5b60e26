"""All worlds of the benchmark, and the rows that are made in each of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import product
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from kuaisim_gym.errors import DatasetNotFoundError

from .. import paper
from ..agents import AGENTS, agents_for
from ..agents.references import ROWS
from ..origin import env_for
from .settings import Run

# Of the learned agents those that matter most; the paper's tables have further ones.
LEARNED = (
    "a2c", "ppo", "ppo+quota", "dnair", "sac4ir", "hrl", "ridge-hrl", "dsrm-hrl", "hsrl+quota",
)  # fmt: skip


class BenchmarkWorld(NamedTuple):
    """A world and its session lengths.

    Attributes:
        source: Name of the source.
        folder: Where the folder of real data has its files; ``None`` for a synthetic world.
        max_lens: Longest sessions.
        slate_size: Items in a slate; ``None`` for the environment's number.
        unsuited: What the data lack for agents that cannot learn from them, by the agents' names.
    """

    source: str
    folder: str | None = None
    max_lens: tuple[int, ...] = paper.MAX_LENS
    slate_size: int | None = None
    unsuited: Mapping[str, str] = MappingProxyType({})


POSITIVES = {"bcq": "positives alone"}
# Ids of real KuaiRand are renamed, so that no file of features fits them.
RENAMED = POSITIVES | {"dorl": "no categories"}
WORLDS = (
    BenchmarkWorld("kuairec"),
    BenchmarkWorld("kuairand"),
    BenchmarkWorld("kuairec-like", "kuairec_real", unsuited=POSITIVES),
    BenchmarkWorld("kuairec-watch", "kuairec_real", unsuited=POSITIVES),
    BenchmarkWorld("kuairand-click", "kuairand_real", unsuited=RENAMED),
    # Slates and sessions as its users' rows allow.
    BenchmarkWorld("kuairand-pool", "kuairand_real", (20,), 2, RENAMED),
)


def all_worlds(real: Path | None) -> Iterator[Run]:
    """The worlds: a run of the random agent for each world and length.

    Args:
        real: Folder of the real data; ``None`` for the synthetic worlds alone.

    Raises:
        DatasetNotFoundError: The folder lacks a world's files.
    """
    for world in WORLDS:
        if world.folder is not None and real is None:
            continue
        dataset = world.source
        if world.folder is not None and real is not None:
            path = real / world.folder
            if not path.is_dir():
                raise DatasetNotFoundError(
                    f"{path} is not there: --real names the folder that holds {world.folder}."
                )
            dataset = f"{world.source}={path}"
        env = env_for(dataset, Run.env)
        for max_len in world.max_lens:
            yield Run("random", env, dataset, max_len, slate_size=world.slate_size)


def runs(
    seeds: Iterable[int],
    real: Path | None,
    episodes: int = Run.episodes,
    sessions: int = Run.sessions,
) -> Iterator[Run]:
    """The runs of the table, world by world; within one, rows without training first.

    Args:
        seeds: Seeds of trainings and of test sessions.
        real: Folder of the real data; ``None`` for the synthetic worlds alone.
        episodes: Training sessions.
        sessions: Test sessions.

    Raises:
        DatasetNotFoundError: The folder lacks a world's files.
    """
    seeds = tuple(seeds)
    for world in all_worlds(real):
        base = replace(world, episodes=episodes, sessions=sessions)
        allowed = agents_for(base.load())
        agents = [name for name in AGENTS if name in (*ROWS, *LEARNED) and name in allowed]
        for agent, seed in product(agents, seeds):
            yield replace(base, agent=agent, seed=seed)
