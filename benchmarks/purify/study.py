"""The ``purify`` command: purifiers measured on test users of worlds that they were not tuned on.

The defaults of the purifiers were chosen on the synthetic worlds of seed 0; here each seed makes a
new world, and seeds the fits on it. Real data are the same for all seeds, which then vary only the
fits; if real data are split by cell, purifiers are fitted on the test users' logs as well.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import Any

from dsrm_agents.dsrm.fit import fit_purifier
from dsrm_agents.dsrm.pairs import Examples
from dsrm_agents.dsrm.probes import ProbeData, probe, probe_data
from dsrm_agents.dsrm.purifier import recipe_of
from kuaisim_gym.config import check_choice
from kuaisim_gym.data import Dataset
from kuaisim_gym.data.synthetic import SyntheticConfig, synthetic_kuairec
from kuaisim_gym.errors import ConfigError
from kuaisim_gym.registration import registered

from ..commands import add_dataset, add_jobs, add_out_or_table, count
from ..origin import Origin, data_block, data_label, env_for, find_origin
from ..paper import ENVS as PAPER_ENVS
from ..paper import SEEDS
from ..studies.backends import results_of
from ..studies.results import Result
from ..studies.study import Study
from .report import ORACLE, STUDY, WITH_EVENTS, markdown, read_studies, studied

ENVS = tuple(PAPER_ENVS.values())
KUAIREC = ENVS[0]


@dataclass(frozen=True)
class World:
    """The data of a study.

    Attributes:
        env: A registered environment id, or ``module:id``, which names the dataset.
        seed: Seed of the synthetic world.
        dataset: As :func:`~benchmarks.origin.find_origin` takes it; ``None`` for the synthetic
            world of the environment's source.
        events: Mean logged rows per user in the synthetic KuaiRec; ``None`` for the default.
    """

    env: str
    seed: int
    dataset: str | None = None
    events: int | None = None

    def __post_init__(self) -> None:
        if registered(self.env)["name"] in PAPER_ENVS:  # whose sessions do not matter
            check_choice("env", self.env, ENVS)
        if self.seed < 0:
            raise ConfigError(f"seed must be at least 0, got {self.seed}.")
        if self.events is not None and (self.dataset is not None or self.env != KUAIREC):
            raise ConfigError(
                f"events can be chosen in the synthetic world of {KUAIREC} only, got "
                f"{self.events} events for {self.dataset or self.env}."
            )

    def load(self) -> Dataset:
        """The data, one object for consecutive studies of this world."""
        return _load(self)

    @property
    def origin(self) -> Origin:
        """Source, files and seed of the data; files are the same for all seeds."""
        origin = find_origin(self.dataset, self.env)
        return origin if origin.path else replace(origin, seed=self.seed)


@lru_cache(maxsize=1)
def _load(world: World) -> Dataset:
    if world.events is not None:
        return synthetic_kuairec(world.seed, SyntheticConfig(events_per_user=world.events))
    return world.origin.load()


@lru_cache(maxsize=1)
def _probe_data(dataset: Dataset) -> ProbeData:
    """Test users and their measures, one object for consecutive studies of a world."""
    return probe_data(dataset)


@dataclass(frozen=True)
class PurifyStudy(Study):
    """One purifier, fitted and measured in one world.

    Attributes:
        purifier: Name of the purifier.
        world: The data; its seed is also that of the fit.
        updates: Gradient steps of the fit; ``None`` for the purifier's default.
    """

    packages = ("numpy", "scipy", "scikit-learn", "torch")

    purifier: str
    world: World
    updates: int | None = None

    markdown = staticmethod(markdown)

    def __post_init__(self) -> None:
        recipe_of(self.purifier)
        if self.world.origin.path is not None and self.purifier == ORACLE:
            raise ConfigError(
                f"{ORACLE} regresses on true preferences, which real data do not have: leave it "
                "out of the purifiers."
            )

    @property
    def name(self) -> str:
        world = self.world
        data = data_label(data_block(world.load()))  # the seed ends the name
        events = "" if world.events is None else f"_events{world.events}"
        purifier, env = (name.rpartition(":")[2] for name in (self.purifier, world.env))
        return f"{purifier}_{env}_{data}{events}_seed{world.seed}"

    @property
    def options(self) -> dict[str, Any]:
        """Options of the study's fits that differ from the defaults."""
        return {} if self.updates is None else {"updates": self.updates}

    @property
    def fit_options(self) -> dict[str, Any]:
        """Options that this purifier has."""
        names = recipe_of(self.purifier).purifier.options()
        return {name: value for name, value in self.options.items() if name in names}

    def header(self) -> Result:
        dataset = self.world.load()
        rows = {"events_per_user": len(dataset.log) / len(dataset.log.distinct_users)}
        return {
            "study": STUDY,
            "purifier": self.purifier.rpartition(":")[2],
            "env": self.world.env,
            "seed": self.world.seed,
            "events": self.world.events,
            "dataset": data_block(dataset, self.world.seed) | {"split_by": dataset.split_by} | rows,
            "options": self.options,
        }

    def make(self, path: Path) -> Result:
        dataset = self.world.load()
        data = _probe_data(dataset)
        _ = Examples(dataset, seed=self.world.seed).evidence  # all purifiers share it
        started = time.perf_counter()
        purifier = fit_purifier(self.purifier, dataset, seed=self.world.seed, **self.fit_options)
        seconds = time.perf_counter() - started
        metrics = probe(purifier.denoise, data, purifier.reads)
        return {"metrics": metrics, "fit_seconds": seconds}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    add = parser.add_argument
    add(
        "--envs", nargs="+",
        help=f"default: {' '.join(ENVS)}, or the first with --dataset or --events; your own as "
        "mypackage.my:ID",
    )  # fmt: skip
    add("--seeds", type=int, nargs="+", default=list(SEEDS), help="of the fits")
    add("--purifiers", nargs="+", help="names, or your own as module:name; default: all that fit")
    add_dataset(parser)
    add(
        "--events", type=count, nargs="+", default=[], metavar="N",
        help="study synthetic KuaiRec worlds with N logged rows per user; default: usual worlds",
    )  # fmt: skip
    add("--updates", type=count, help="gradient steps of a fit; default: as tuned")
    add_jobs(parser)
    add_out_or_table(parser)


def main(options: argparse.Namespace) -> None:
    """Makes the missing studies and prints the tables.

    Raises:
        ConfigError: Options contradict each other, or a result has other settings.
        DataFormatError: The folder holds no results, or results that cannot be compared.
    """
    names = "envs", "seeds", "purifiers", "dataset", "events", "updates"
    settings = {name: getattr(options, name) for name in names}
    results_of(options, lambda: plan(**settings), read_studies, markdown)


def plan(
    envs: Sequence[str] | None,
    seeds: Sequence[int],
    purifiers: Sequence[str] | None = None,
    *,
    dataset: str | None = None,
    events: Sequence[int] = (),
    updates: int | None = None,
) -> list[PurifyStudy]:
    """All studies of some worlds, world by world.

    Args:
        envs: ``None`` for both, or for KuaiRec alone with ``dataset`` or ``events``.
        seeds: Seeds of the worlds and fits.
        purifiers: ``None`` for all that can be fitted, or a selection of them with ``events``.
        dataset: As for :class:`World`; ``None`` for the synthetic worlds.
        events: Mean logged rows per user, one world for each; empty for the default world.
        updates: As for :class:`PurifyStudy`.

    Raises:
        ConfigError: Arguments contradict each other.
    """
    # The default number makes the default world: its results are the same.
    numbers = [None if n == SyntheticConfig.events_per_user else n for n in events]
    names = tuple(envs or ((env_for(dataset, KUAIREC),) if dataset or numbers else ENVS))
    if dataset is not None and len(names) > 1:
        raise ConfigError(f"{dataset} holds one dataset: give one environment, got {names}.")
    usual: tuple[str, ...] = WITH_EVENTS if numbers else studied()
    if dataset is not None and find_origin(dataset, names[0]).path is not None:
        usual = tuple(name for name in usual if name != ORACLE)
    studies = [
        PurifyStudy(purifier, World(env, seed, dataset, number), updates)
        for number, env, seed in product(numbers or [None], names, seeds)
        for purifier in purifiers or usual
    ]
    return list(dict.fromkeys(studies))
