"""Plays one trained agent at every setting of its dial, and agents trained for each setting.

Four kinds of parts, each of which needs one training: ``dial`` trains the hierarchical agent once
and plays it at every target; ``retrained`` trains it from scratch at a target and plays it there;
``flat`` trains the agent without a manager with a weight of its fairness reward; ``sweep`` trains
MOFIR once and plays it at every preference. All parts of a seed play the same test sessions, and
all but the last wear a purifier of the same fit.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from benchmarks.processes import side_by_side
from benchmarks.registry import LEARNERS, task_of
from benchmarks.results import Result, already_there, commit, data_block, versions
from benchmarks.run import Run, evaluation_env, play, train_agent
from kuaisim_gym import ENVIRONMENTS
from kuaisim_gym.config import check_choice
from kuaisim_gym.data import Dataset
from kuaisim_gym.data.cache import write_atomically
from kuaisim_gym.envs.assembly import shared_dataset
from kuaisim_gym.errors import ConfigError

STUDY = "pareto"
DIAL, RETRAINED, FLAT, SWEEP = "dial", "retrained", "flat", "sweep"
# Of the registry, by kind.
AGENTS = {DIAL: "dsrm-hrl", RETRAINED: "dsrm-hrl", FLAT: "flat", SWEEP: "mofir"}
ONCE = (DIAL, SWEEP)  # trained once, played at all settings
NAMES = {DIAL: "target", RETRAINED: "target", FLAT: "penalty", SWEEP: "preference"}  # of settings
ENVS = tuple(env for env in ENVIRONMENTS if task_of(env) == "session")
TARGETS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
PENALTIES = (0.0, 0.5, 1.0, 2.0, 4.0)
PREFERENCES = (0.0, 0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True)
class Part:
    """What one training is good for.

    Attributes:
        kind: A key of :data:`AGENTS`.
        run: What to train and how much to play.
        settings: Long-tail shares, of which only the dial has several; of a flat agent, the weight
            of its fairness reward; of a sweep, MOFIR's weights of utility.
    """

    kind: str
    run: Run
    settings: tuple[float, ...]

    def __post_init__(self) -> None:
        check_choice("env", self.run.env, ENVS)
        most = math.inf if self.kind == FLAT else 1.0
        for setting in self.settings:
            if not 0.0 <= setting <= most or math.isinf(setting):
                raise ConfigError(
                    f"A {NAMES[self.kind]} must be a number of at "
                    f"least 0{'' if self.kind == FLAT else ' and at most 1'}, got {setting}."
                )

    def dataset(self) -> Dataset:
        """The data, one object for all parts in this process."""
        return shared_dataset(ENVIRONMENTS[self.run.env]["name"], self.run.dataset, 0)

    def header(self) -> Result:
        """The part of the result that is known beforehand and tells it from all others."""
        return {
            "study": STUDY,
            "kind": self.kind,
            "settings": list(self.settings),
            "agent": self.run.agent,
            "env": self.run.env,
            "max_len": self.run.max_len,
            "seed": self.run.seed,
            "dataset": data_block(self.dataset()),
            "episodes": self.run.episodes,
            "sessions": self.run.sessions,
        }

    def path(self, out: Path) -> Path:
        """Where the result lies: one file a kind, setting, environment, data, length and seed."""
        world = "synthetic" if self.dataset().synthetic else "real"
        name = self.kind if self.kind in ONCE else f"{self.kind}{self.settings[0]:g}"
        run = self.run
        return out / f"{STUDY}_{name}_{run.env}_{world}_T{run.max_len}_seed{run.seed}.json"

    def finished(self, out: Path) -> bool:
        """Whether the result is there.

        Raises:
            ConfigError: What is there is the result of other data or settings.
        """
        return already_there(self.path(out), self.header())


def plan(
    base: Run,
    seeds: Iterable[int],
    targets: Iterable[float],
    retrained: Iterable[float],
    penalties: Iterable[float],
    preferences: Iterable[float] = (),
) -> list[Part]:
    """Every part of a study, the slow ones first: processes then finish together.

    Args:
        base: What the runs have in common; their agents and seeds are their own.
        seeds: Of trainings, purifiers and test sessions.
        targets: Long-tail shares that the dial is set to.
        retrained: Those for which an agent is trained, too.
        penalties: Weights of the flat agents' fairness reward.
        preferences: Weights of utility that MOFIR is asked to hold; none for no such agent.

    Raises:
        ConfigError: One of them makes no sense.
    """
    once: dict[str, list[tuple[float, ...]]] = {
        DIAL: [tuple(sorted(set(targets)))],
        RETRAINED: [(target,) for target in sorted(set(retrained))],
        FLAT: [(penalty,) for penalty in sorted(set(penalties))],
        SWEEP: [swept] if (swept := tuple(sorted(set(preferences)))) else [],
    }
    numbers = tuple(dict.fromkeys(seeds))
    return [
        Part(kind, replace(base, agent=AGENTS[kind], seed=seed), settings)
        for kind, groups in once.items()
        for settings, seed in product(groups, numbers)
    ]


def run_all(parts: Sequence[Part], out: Path, jobs: int) -> None:
    """Finishes the parts whose files are missing.

    Args:
        parts: What to make.
        out: Folder of the files.
        jobs: Processes side by side; with one, this process works itself.

    Raises:
        ConfigError: ``out`` is a file, or holds a result of other data or settings.
    """
    if out.exists() and not out.is_dir():
        raise ConfigError(f"The results' folder {out} is a file.")
    # All are looked at before any work, which also builds the data before processes need it.
    missing = [part for part in parts if not part.finished(out)]
    with tqdm(total=len(missing), desc="Trainings", unit="training") as bar:
        if jobs == 1:
            torch.set_num_threads(1)
            for part in missing:
                finish(part, out)
                bar.update()
        elif missing:
            for _ in side_by_side(finish, missing, out, jobs=jobs):
                bar.update()


def finish(part: Part, out: Path) -> None:
    """Trains and plays, and writes the result, whole or not at all."""
    dataset, spec = part.dataset(), part.run
    learner = LEARNERS[spec.agent]
    fitted = learner.fitted(dataset, spec.seed, progress=False)
    overrides = {"fairness_coef": part.settings[0]} if part.kind == FLAT else {}
    prepare = _turn(part.settings[0]) if part.kind == RETRAINED else None
    agent, train = train_agent(
        spec, dataset, fitted, progress=False, overrides=overrides, prepare=prepare
    )

    def point(setting: float | None) -> dict[str, Any]:
        world = (spec.env, dataset, spec.max_len, spec.seed, spec.sessions)
        env = evaluation_env(*world, learner.options)
        worn = learner.play_in(env, fitted, {"preference": setting})  # which MOFIR alone asks for
        sessions, _ = play(agent, worn, spec.sessions)
        return {"setting": setting, "metrics": env.batch.summarise(sessions)}

    points = []
    if part.kind == DIAL:
        for target in (None, *part.settings):  # None: the manager's own choice
            _turn(target)(agent)
            points.append(point(target))
    else:
        points += [point(setting) for setting in part.settings]
    result = part.header() | {
        "points": points,
        "train": {name: train[name] for name in ("episodes", "steps", "seconds")},
        "versions": versions(),
        "commit": commit(),
    }
    write_atomically(part.path(out), (json.dumps(result, indent=1) + "\n").encode())


def _turn(target: float | None) -> Callable[[Any], None]:
    """A function that sets an agent's dial."""
    return lambda agent: agent.policy.set_fairness(target)
