"""Fits purifiers on worlds that nobody tuned them on, and measures them on test users.

The defaults of the purifiers were chosen on the synthetic worlds of seed 0; here a seed is that of
a world of its own, and of the fits on it. Real data are the same for all seeds, which then vary
the fits alone; where those are split by cell, purifiers were fitted on the test users' logs too.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from benchmarks.processes import side_by_side
from benchmarks.results import Result, already_there, commit, data_block, versions
from dsrm_agents.dsrm.dsrm import DISTILLATION, DSRM, distil
from dsrm_agents.dsrm.fit import fit_purifier
from dsrm_agents.dsrm.probes import probe, probe_data
from dsrm_agents.dsrm.purifier import PURIFIERS, FittedPurifier, recipe_of
from kuaisim_gym import ENVIRONMENTS, load_dataset
from kuaisim_gym.config import check_choice
from kuaisim_gym.data import Dataset
from kuaisim_gym.data.cache import write_atomically
from kuaisim_gym.data.synthetic import SyntheticConfig, synthetic_kuairec
from kuaisim_gym.errors import ConfigError

STUDY = "purify"
KUAIREC = "KuaiRec-Fair-v0"
ENVS = (KUAIREC, "KuaiRand-Fair-v0")
ORACLE = "oracle-regression"
STUDIED_WITH_EVENTS = ("identity", "linear", "ridge", "mlp", "dsrm", ORACLE)


def studied() -> tuple[str, ...]:
    """Names of all registered purifiers that say something of users, the upper bound last."""
    return (*(name for name in PURIFIERS if name not in ("blank", ORACLE)), ORACLE)


@dataclass(frozen=True)
class World:
    """One dataset, and what to fit on it.

    Attributes:
        env: A registered environment id, which names the dataset.
        seed: Of the synthetic world and of the fits.
        purifiers: What to fit, in this order.
        dataset: Folder of real data, or ``None`` for the synthetic world.
        events: Mean logged rows of a user in the synthetic KuaiRec, or ``None`` for the usual.
        updates: Gradient steps of each fit, or ``None`` for the purifier's own.
        propensity: Power of the inverse propensities in targets made of logged rows, or ``None``.
    """

    env: str
    seed: int
    purifiers: tuple[str, ...] = field(default_factory=studied)
    dataset: str | None = None
    events: int | None = None
    updates: int | None = None
    propensity: float | None = None

    def __post_init__(self) -> None:
        check_choice("env", self.env, ENVS)
        if self.seed < 0:
            raise ConfigError(f"seed must be at least 0, got {self.seed}.")
        for purifier in self.purifiers:
            recipe_of(purifier)
        if self.events is not None and (self.dataset is not None or self.env != KUAIREC):
            raise ConfigError(
                f"events can be chosen in the synthetic world of {KUAIREC} only, got "
                f"{self.events} events for {self.dataset or self.env}."
            )
        if self.dataset is not None and ORACLE in self.purifiers:
            raise ConfigError(
                f"{ORACLE} regresses on true preferences, which real data do not tell: leave it "
                "out of the purifiers."
            )

    @property
    def options(self) -> dict[str, Any]:
        """Options of the fits that differ from the defaults."""
        given = {"updates": self.updates, "propensity_power": self.propensity}
        return {name: value for name, value in given.items() if value is not None}

    def options_of(self, purifier: str) -> dict[str, Any]:
        """Those of them that concern a purifier."""
        recipe = recipe_of(purifier)
        names = set(recipe.purifier.options())
        if recipe.options.get("source") == "identity":
            names.discard("propensity_power")  # its targets are made of no rows
        return {name: value for name, value in self.options.items() if name in names}

    def load(self) -> Dataset:
        """Reads or makes the data."""
        if self.events is not None:
            return synthetic_kuairec(self.seed, SyntheticConfig(events_per_user=self.events))
        return load_dataset(ENVIRONMENTS[self.env]["name"], self.dataset, self.seed)

    def header(self, purifier: str, dataset: Dataset) -> Result:
        """The part of a result that is known before the fit and tells it from all others."""
        return {
            "study": STUDY,
            "purifier": purifier.rpartition(":")[2],
            "env": self.env,
            "seed": self.seed,
            "events": self.events,
            "dataset": {
                **data_block(dataset),
                "split_by": dataset.split_by,
                "events_per_user": len(dataset.log) / len(dataset.log.distinct_users),
            },
            "options": self.options,
        }


def plan(
    envs: Sequence[str] | None,
    seeds: Sequence[int],
    purifiers: Sequence[str] | None = None,
    *,
    dataset: str | None = None,
    events: Sequence[int] = (),
    updates: int | None = None,
    propensity: float | None = None,
) -> list[World]:
    """Every world of a study.

    Args:
        envs: ``None`` for both, or for KuaiRec alone where ``dataset`` or ``events`` is given.
        seeds: Of the worlds and fits.
        purifiers: ``None`` for all that can be fitted, or a selection of them with ``events``.
        dataset: Folder of real data, or ``None`` for the synthetic worlds.
        events: Mean logged rows of a user, a world each; none for the usual world.
        updates: See :class:`World`.
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
    wanted = tuple(dict.fromkeys(purifiers or usual))
    worlds = [
        World(env, seed, wanted, dataset, number, updates, propensity)
        for number, env, seed in product(numbers or [None], names, seeds)
    ]
    return list(dict.fromkeys(worlds))


def result_path(out: Path, header: Result) -> Path:
    """Where a result lies: one file for each purifier, environment, kind of data and seed."""
    world = "synthetic" if header["dataset"]["synthetic"] else "real"
    if header["events"] is not None:
        world += f"_events{header['events']}"
    return out / f"{header['purifier']}_{header['env']}_{world}_seed{header['seed']}.json"


def run_world(world: World, out: Path) -> list[Path]:
    """Fits and measures what is missing; writes each result as soon as it is known.

    Args:
        world: The data, and what to fit.
        out: Folder of the result files.

    Returns:
        The result files, those that were there already included.

    Raises:
        ConfigError: ``out`` is a file, or holds a result of other data or settings.
    """
    if out.exists() and not out.is_dir():
        raise ConfigError(f"The results' folder {out} is a file.")
    dataset = world.load()
    headers = {name: world.header(name, dataset) for name in world.purifiers}
    paths = {name: result_path(out, header) for name, header in headers.items()}
    missing = [name for name in paths if not already_there(paths[name], headers[name])]
    if missing:
        data = probe_data(dataset)
        fits = _Fits(world, dataset)
        for name in missing:
            purifier, seconds = fits.get(name)
            result = headers[name] | {
                "metrics": probe(purifier.denoise, data),
                "fit_seconds": seconds,
                "versions": versions(("numpy", "scipy", "scikit-learn", "torch")),
                "commit": commit(),
            }
            text = json.dumps(result, indent=1, allow_nan=False) + "\n"
            write_atomically(paths[name], text.encode())
    return list(paths.values())


def run_all(worlds: list[World], out: Path, jobs: int) -> None:
    """Runs the worlds side by side in processes of one thread each; a failed one ends the rest.

    Args:
        worlds: What to run.
        out: Folder of the result files.
        jobs: Processes at a time.
    """
    done = side_by_side(run_world, worlds, out, jobs=jobs)
    for _ in tqdm(done, "Worlds", len(worlds), unit="world"):
        pass


class _Fits:
    """Purifiers of one world, and how long each took from nothing."""

    def __init__(self, world: World, dataset: Dataset) -> None:
        self.world, self.dataset = world, dataset
        self._fitted: dict[str, tuple[FittedPurifier, float]] = {}

    def get(self, name: str) -> tuple[FittedPurifier, float]:
        """The purifier and its seconds; each is fitted once, for DSRM teaches the student too."""
        if name not in self._fitted:
            before = self.get("dsrm")[1] if name == "student" else 0.0
            started = time.perf_counter()
            purifier = self._fit(name)
            self._fitted[name] = purifier, before + time.perf_counter() - started
        return self._fitted[name]

    def _fit(self, name: str) -> FittedPurifier:
        if name != "student":
            options = self.world.options_of(name)
            return fit_purifier(name, self.dataset, seed=self.world.seed, **options)
        teacher, _ = self.get("dsrm")
        assert isinstance(teacher, DSRM)
        training = replace(DISTILLATION, updates=self.world.updates or DISTILLATION.updates)
        return distil(teacher, self.dataset, training=training, seed=self.world.seed)
