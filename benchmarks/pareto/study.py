"""The ``pareto`` command: one agent at all settings of its fairness dial, and retrained agents.

Each study needs one training. Its kind is one of four: ``dial`` trains the hierarchical agent once
and plays it at all targets; ``retrained`` trains it from scratch for one target; ``flat`` trains
the agent without a manager, with one weight of its fairness reward; ``sweep`` trains MOFIR once and
plays it at all preferences. All studies of a seed play the same test sessions, and all but the last
have the same purifier.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

from kuaisim_gym.errors import ConfigError

from ..agents import find_agent
from ..commands import add_dataset, add_dataset_seed, add_jobs, add_out_or_table
from ..paper import SEEDS
from ..runs.judging import play
from ..runs.settings import Run, spec_of
from ..runs.training import train_agent
from ..studies.backends import results_of
from ..studies.results import Result, check_session_env
from ..studies.study import Study
from .plot import plot_all
from .report import DIAL, FLAT, RETRAINED, STUDY, SWEEP, markdown, read_studies

# Agent and name of the setting, by kind.
KINDS = {
    DIAL: ("dsrm-hrl", "target"),
    RETRAINED: ("dsrm-hrl", "target"),
    FLAT: ("flat", "penalty"),
    SWEEP: ("mofir", "preference"),
}
TARGETS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
PENALTIES = (0.0, 0.5, 1.0, 2.0, 4.0)
PREFERENCES = (0.0, 0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True)
class ParetoStudy(Study):
    """One training, and the settings at which the agent is played.

    Attributes:
        kind: A key of :data:`KINDS`.
        run: Settings of the training and of the test sessions.
        settings: Targets for the long-tail share (several for a dial, one for a retrained agent),
            the weight of the fairness reward (flat), or MOFIR's weights of utility (sweep).
    """

    kind: str
    run: Run
    settings: tuple[float, ...]

    markdown = staticmethod(markdown)

    def __post_init__(self) -> None:
        check_session_env(self.run.env)
        name, most = KINDS[self.kind][1], math.inf if self.kind == FLAT else 1.0
        for setting in self.settings:
            if not 0.0 <= setting <= most or math.isinf(setting):
                raise ConfigError(
                    f"A {name} must be a finite number from 0 to {most:g}, got {setting}."
                )

    @property
    def name(self) -> str:
        trained_for_one = self.kind in (RETRAINED, FLAT)
        label = f"{self.kind}{self.settings[0]:g}" if trained_for_one else self.kind
        return f"{STUDY}_{label}_{self.run.world}_seed{self.run.seed}"

    def header(self) -> Result:
        return {
            "study": STUDY,
            "kind": self.kind,
            "settings": list(self.settings),
            **self.run.header(),
            "episodes": self.run.episodes,
            "sessions": self.run.sessions,
        }

    def make(self, path: Path) -> Result:
        spec, agent, dataset = self.run, find_agent(self.run.agent), self.run.load()
        fitted = agent.prepare(dataset, spec.seed, progress=False)
        overrides = {"fairness_coef": self.settings[0]} if self.kind == FLAT else {}
        prepare = _turn(self.settings[0]) if self.kind == RETRAINED else None
        model, train = train_agent(
            spec, dataset, fitted, progress=False, overrides=overrides, prepare=prepare
        )
        points = []
        # The first setting of a dial is the manager's own choice.
        for setting in (None, *self.settings) if self.kind == DIAL else self.settings:
            if self.kind == DIAL:
                _turn(setting)(model)
            preference = {"preference": setting} if self.kind == SWEEP else {}
            played = play(agent, spec, dataset, model, fitted, overrides=preference)
            points.append({"setting": setting, "metrics": played.metrics})
        return {
            "points": points,
            "train": {name: train[name] for name in ("episodes", "steps", "seconds")},
        }


def _turn(target: float | None) -> Callable[[Any], None]:
    """A function that sets the dial of a model."""
    return lambda model: model.policy.set_fairness(target)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    add = parser.add_argument
    add("--env", help=f"of whole sessions; default: {Run.env}, or that of --dataset")
    add_dataset(parser)
    add_dataset_seed(parser)
    add("--max-len", type=int, default=Run.max_len, help="longest session")
    add("--seeds", type=int, nargs="+", default=list(SEEDS), help="of agents")
    add("--episodes", type=int, default=Run.episodes, help="training sessions of each agent")
    add("--sessions", type=int, default=Run.sessions, help="test sessions at each setting")
    for name, metavar, default, text in (
        ("targets", "SHARE", list(TARGETS), "long-tail shares that the dial is set to"),
        ("retrained-targets", "SHARE", None, "targets to retrain agents for; default: all"),
        ("penalties", "WEIGHT", list(PENALTIES), "weights of the flat agents' fairness reward"),
        ("preferences", "W", list(PREFERENCES), "weights of utility at which MOFIR is played"),
    ):
        nargs = "+" if name == "targets" else "*"
        add(f"--{name}", type=float, nargs=nargs, default=default, metavar=metavar, help=text)
    add_jobs(parser)
    add_out_or_table(parser)


def main(options: argparse.Namespace) -> None:
    """Makes the missing studies, prints the tables and draws the figures.

    Raises:
        ConfigError: A setting is out of range, or a result has other settings.
        DataFormatError: The folder holds no results, or results that cannot be compared.
    """

    def planned() -> Iterable[Study]:
        base = spec_of(options, agent=KINDS[DIAL][0], seed=options.seeds[0])
        targets, retrained = options.targets, options.retrained_targets
        retrained = targets if retrained is None else retrained
        settings = (targets, retrained, options.penalties, options.preferences)
        return plan(base, options.seeds, *settings)

    results = results_of(options, planned, read_studies, markdown)
    if options.table is None:
        print(*plot_all(results, options.out), sep="\n")


def plan(
    base: Run,
    seeds: Iterable[int],
    targets: Iterable[float],
    retrained: Iterable[float],
    penalties: Iterable[float],
    preferences: Iterable[float] = (),
) -> list[ParetoStudy]:
    """All studies with the settings of four kinds, slow ones first, to keep all processes busy.

    Args:
        base: Settings of the runs, except for agents and seeds.
        seeds: Seeds of trainings, purifiers and test sessions.
        targets: Settings of the dial.
        retrained: Targets of retrained agents.
        penalties: Settings of flat agents.
        preferences: Settings of MOFIR; empty to leave it out.

    Raises:
        ConfigError: A setting is out of range.
    """
    groups: dict[str, list[tuple[float, ...]]] = {
        DIAL: [_ascending(targets)],
        RETRAINED: [(target,) for target in _ascending(retrained)],
        FLAT: [(penalty,) for penalty in _ascending(penalties)],
        SWEEP: [swept] if (swept := _ascending(preferences)) else [],
    }
    return [
        ParetoStudy(kind, replace(base, agent=KINDS[kind][0], seed=seed), settings)
        for kind, group in groups.items()
        for settings, seed in product(group, dict.fromkeys(seeds))
    ]


def _ascending(settings: Iterable[float]) -> tuple[float, ...]:
    return tuple(sorted(set(settings)))
