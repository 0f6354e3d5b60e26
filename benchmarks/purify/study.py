"""The ``purify`` command: purifiers of worlds that nobody tuned them on, measured on test users.

The defaults of the purifiers were chosen on the synthetic worlds of seed 0; here a seed is that of
a world of its own, and of the fits on it. Real data are the same for all seeds, which then vary
the fits alone; where those are split by cell, purifiers were fitted on the test users' logs too.
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

from benchmarks.commands import add_dataset, add_jobs, add_out_or_table, count
from benchmarks.purify.report import ORACLE, STUDY, markdown, read_studies, studied
from benchmarks.results import Result, data_block
from benchmarks.study import Study, run_studies
from dsrm_agents.dsrm.dsrm import DISTILLATION, DSRM, distil
from dsrm_agents.dsrm.fit import fit_purifier
from dsrm_agents.dsrm.probes import ProbeData, probe, probe_data
from dsrm_agents.dsrm.purifier import FittedPurifier, recipe_of
from kuaisim_gym import ENVIRONMENTS, load_dataset
from kuaisim_gym.config import check_choice
from kuaisim_gym.data import Dataset
from kuaisim_gym.data.synthetic import SyntheticConfig, synthetic_kuairec
from kuaisim_gym.errors import ConfigError

KUAIREC = "KuaiRec-Fair-v0"
ENVS = (KUAIREC, "KuaiRand-Fair-v0")
STUDIED_WITH_EVENTS = ("identity", "linear", "ridge", "mlp", "dsrm", ORACLE)


@dataclass(frozen=True)
class World:
    """The data of a study.

    Attributes:
        env: A registered environment id, which names the dataset.
        seed: Of the synthetic world.
        dataset: Folder of real data, or ``None`` for the synthetic world.
        events: Mean logged rows of a user in the synthetic KuaiRec, or ``None`` for the usual.
    """

    env: str
    seed: int
    dataset: str | None = None
    events: int | None = None

    def __post_init__(self) -> None:
        check_choice("env", self.env, ENVS)
        if self.seed < 0:
            raise ConfigError(f"seed must be at least 0, got {self.seed}.")
        if self.events is not None and (self.dataset is not None or self.env != KUAIREC):
            raise ConfigError(
                f"events can be chosen in the synthetic world of {KUAIREC} only, got "
                f"{self.events} events for {self.dataset or self.env}."
            )

    def load(self) -> Dataset:
        """The data, one object for all studies of this world in a row."""
        return _load(self)


@lru_cache(maxsize=1)
def _load(world: World) -> Dataset:
    if world.events is not None:
        return synthetic_kuairec(world.seed, SyntheticConfig(events_per_user=world.events))
    return load_dataset(ENVIRONMENTS[world.env]["name"], world.dataset, world.seed)


@lru_cache(maxsize=1)
def _probe_data(dataset: Dataset) -> ProbeData:
    """The test users and their measures: purifiers of a world are measured in a row."""
    return probe_data(dataset)


@dataclass(frozen=True)
class PurifyStudy(Study):
    """One purifier, fitted and measured in one world.

    Attributes:
        purifier: Name of the purifier.
        world: The data; its seed is the fit's, too.
        updates: Gradient steps of the fit, or ``None`` for the purifier's own.
        propensity: Power of the inverse propensities in targets made of logged rows, or ``None``.
    """

    packages = ("numpy", "scipy", "scikit-learn", "torch")

    purifier: str
    world: World
    updates: int | None = None
    propensity: float | None = None

    markdown = staticmethod(markdown)

    def __post_init__(self) -> None:
        recipe_of(self.purifier)
        if self.world.dataset is not None and self.purifier == ORACLE:
            raise ConfigError(
                f"{ORACLE} regresses on true preferences, which real data do not tell: leave it "
                "out of the purifiers."
            )

    @property
    def name(self) -> str:
        world = self.world
        data = "real" if world.dataset else "synthetic"
        events = "" if world.events is None else f"_events{world.events}"
        purifier = self.purifier.rpartition(":")[2]
        return f"{purifier}_{world.env}_{data}{events}_seed{world.seed}"

    @property
    def options(self) -> dict[str, Any]:
        """Options of the fits that differ from the defaults, of whatever purifier."""
        options = {"updates": self.updates, "propensity_power": self.propensity}
        return {name: value for name, value in options.items() if value is not None}

    @property
    def fit_options(self) -> dict[str, Any]:
        """Those of them that concern this purifier."""
        recipe = recipe_of(self.purifier)
        names = set(recipe.purifier.options())
        if recipe.options.get("source") == "identity":
            names.discard("propensity_power")  # its targets are made of no rows
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
            "dataset": data_block(dataset) | {"split_by": dataset.split_by} | rows,
            "options": self.options,
        }

    def make(self, path: Path) -> Result:
        dataset = self.world.load()
        data = _probe_data(dataset)
        started = time.perf_counter()
        purifier = self._fit(dataset)
        seconds = time.perf_counter() - started
        return {"metrics": probe(purifier.denoise, data), "fit_seconds": seconds}

    def _fit(self, dataset: Dataset) -> FittedPurifier:
        if self.purifier != "student":
            seed = self.world.seed
            return fit_purifier(self.purifier, dataset, seed=seed, **self.fit_options)
        teacher = replace(self, purifier="dsrm")._fit(dataset)
        assert isinstance(teacher, DSRM)
        training = replace(DISTILLATION, updates=self.updates or DISTILLATION.updates)
        return distil(teacher, dataset, training=training, seed=self.world.seed)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    parser.add_argument(
        "--envs", nargs="+", choices=ENVS, help="default: both; KuaiRec for real data or --events"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[11, 15, 19])
    parser.add_argument(
        "--purifiers", nargs="+", help="names, or module:name of your own; default: all that fit"
    )
    add_dataset(parser)
    parser.add_argument(
        "--events", type=count, nargs="+", default=[], metavar="N",
        help="synthetic KuaiRec worlds with N logged rows a user instead of the usual ones",
    )  # fmt: skip
    parser.add_argument("--propensity", type=float, help="power of inverse propensities in targets")
    parser.add_argument("--updates", type=count, help="gradient steps a fit; default: as tuned")
    add_jobs(parser)
    add_out_or_table(parser)


def main(options: argparse.Namespace) -> None:
    """Fits and measures what is missing, and prints the tables.

    Raises:
        ConfigError: The options do not go together, or a result is there with other settings.
        DataFormatError: The folder holds no results, or some that do not compare.
    """
    if options.table is None:
        studies = plan(
            options.envs,
            options.seeds,
            options.purifiers,
            dataset=options.dataset,
            events=options.events,
            updates=options.updates,
            propensity=options.propensity,
        )
        run_studies(studies, options.out, options.jobs)
    print(markdown(read_studies(options.table or options.out)))


def plan(
    envs: Sequence[str] | None,
    seeds: Sequence[int],
    purifiers: Sequence[str] | None = None,
    *,
    dataset: str | None = None,
    events: Sequence[int] = (),
    updates: int | None = None,
    propensity: float | None = None,
) -> list[PurifyStudy]:
    """All studies of some worlds, world by world.

    Args:
        envs: ``None`` for both, or for KuaiRec alone where ``dataset`` or ``events`` is given.
        seeds: Of the worlds and fits.
        purifiers: ``None`` for all that can be fitted, or a selection of them with ``events``.
        dataset: Folder of real data, or ``None`` for the synthetic worlds.
        events: Mean logged rows of a user, a world each; none for the usual world.
        updates: See :class:`PurifyStudy`.
        propensity: See the same class.

    Raises:
        ConfigError: They do not go together.
    """
    # The usual number is no world of its own: its results are the usual world's.
    numbers = [None if n == SyntheticConfig.events_per_user else n for n in events]
    names = tuple(envs or ((KUAIREC,) if dataset is not None or numbers else ENVS))
    if dataset is not None and len(names) > 1:
        raise ConfigError(f"{dataset} holds one dataset: give one environment, got {names}.")
    usual: tuple[str, ...] = STUDIED_WITH_EVENTS if numbers else studied()
    if dataset is not None:
        usual = tuple(name for name in usual if name != ORACLE)
    studies = [
        PurifyStudy(purifier, World(env, seed, dataset, number), updates, propensity)
        for number, env, seed in product(numbers or [None], names, seeds)
        for purifier in purifiers or usual
    ]
    return list(dict.fromkeys(studies))
