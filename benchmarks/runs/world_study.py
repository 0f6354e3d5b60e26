"""Studies of the sessions of a world, and the worlds that their commands name."""

from __future__ import annotations

import argparse
from abc import abstractmethod
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, replace
from typing import ClassVar

from kuaisim_gym.errors import ConfigError

from ..commands import add_dataset, add_dataset_seed, add_jobs, add_out_or_table, count, place
from ..origin import env_for
from ..studies.results import Result, check_session_env, world_of
from ..studies.study import Study
from .settings import Run
from .worlds import all_worlds


@dataclass(frozen=True)
class WorldStudy(Study):
    """A study of whole sessions in one world; a subclass adds its settings to the header.

    Attributes:
        study: Name of the command.
        spec: Environment, data, length, seed and number of the sessions; its agent is not used.

    Raises:
        ConfigError: Sessions of the environment have a fixed length.
    """

    study: ClassVar[str]

    spec: Run

    def __post_init__(self) -> None:
        check_session_env(self.spec.env)

    @property
    @abstractmethod
    def subject(self) -> str:
        """Name of the part of the study that differs within a world, as in file names."""

    @property
    def name(self) -> str:
        return f"{self.study}_{self.subject}_{self.spec.world}_seed{self.spec.seed}"

    def header(self) -> Result:
        settings = self.spec.header()
        del settings["agent"]
        return {"study": self.study, **settings, **self.spec.session_options}


def measurement(result: Result, *names: str) -> Hashable:
    """World, seed and further keys: equal for results of the same measurement."""
    return world_of(result), result["seed"], *(result[name] for name in names)


def add_world_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options that say which worlds a study is of, and where its results are."""
    add = parser.add_argument
    add_out_or_table(parser)
    add(
        "--all-worlds", action="store_true",
        help="the worlds and lengths of `suite --table worlds`, in place of the next four options",
    )  # fmt: skip
    add("--env", help=f"of whole sessions; default: {Run.env}, or that of --dataset")
    add_dataset(parser)
    add_dataset_seed(parser)
    add("--slate-size", type=count, metavar="K", help="items in a slate; default: usually 10")
    add(
        "--real", type=place, metavar="DIR",
        help="folder with kuairec_real and kuairand_real, whose worlds --all-worlds includes; "
        "default: synthetic worlds alone",
    )  # fmt: skip
    add(
        "--max-len", type=int, nargs="+",
        help=f"longest sessions; default: {Run.max_len}, or all of --all-worlds",
    )  # fmt: skip
    add("--sessions", type=int, default=Run.sessions, help="test sessions")
    add_jobs(parser)


def worlds_of(options: argparse.Namespace, seeds: Iterable[int]) -> list[Run]:
    """Worlds that the options name, one run for each length and seed.

    Raises:
        ConfigError: Options that exclude each other, or a world that does not exist.
        DatasetNotFoundError: The folder of real data lacks a world's files.
    """
    lengths = options.max_len
    if options.all_worlds:
        for name in ("env", "dataset", "dataset_seed", "slate_size"):
            if getattr(options, name):
                raise ConfigError(
                    f"--all-worlds fixes --{name.replace('_', '-')}: leave one of them out."
                )
        every = [*all_worlds(options.real)]
        possible = sorted({world.max_len for world in every})
        worlds = [world for world in every if world.max_len in (lengths or possible)]
        if not worlds:
            raise ConfigError(
                f"--max-len {' '.join(map(str, lengths))} chooses none of the worlds, "
                f"whose longest sessions are {', '.join(map(str, possible))}."
            )
    elif options.real is not None:
        raise ConfigError("--real names worlds of --all-worlds: leave it out, or add that.")
    else:
        env = options.env or env_for(options.dataset, Run.env)
        worlds = [
            Run(
                "random", env, options.dataset, max_len, dataset_seed=options.dataset_seed,
                slate_size=options.slate_size,
            )
            for max_len in lengths or [Run.max_len]
        ]  # fmt: skip
    return [
        replace(world, seed=seed, sessions=options.sessions) for world in worlds for seed in seeds
    ]
