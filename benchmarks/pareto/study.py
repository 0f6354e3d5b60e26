"""The ``pareto`` command: one trained agent at every setting of its dial, beside retrained ones.

Four kinds of studies, each of which needs one training: ``dial`` trains the hierarchical agent once
and plays it at every target; ``retrained`` trains it from scratch at a target and plays it there;
``flat`` trains the agent without a manager with a weight of its fairness reward; ``sweep`` trains
MOFIR once and plays it at every preference. All studies of a seed play the same test sessions, and
all but the last wear a purifier of the same fit.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

from benchmarks.agents import find_agent
from benchmarks.commands import add_dataset, add_jobs, add_out_or_table
from benchmarks.pareto.plot import plot_all
from benchmarks.pareto.report import DIAL, FLAT, RETRAINED, STUDY, SWEEP, markdown, read_studies
from benchmarks.results import Result, data_block, task_of
from benchmarks.run import Run, evaluation_env, play, train_agent
from benchmarks.study import Study, run_studies
from kuaisim_gym import ENVIRONMENTS
from kuaisim_gym.config import check_choice
from kuaisim_gym.errors import ConfigError

# By kind.
AGENTS = {DIAL: "dsrm-hrl", RETRAINED: "dsrm-hrl", FLAT: "flat", SWEEP: "mofir"}
ONCE = (DIAL, SWEEP)  # trained once, played at all settings
NAMES = {DIAL: "target", RETRAINED: "target", FLAT: "penalty", SWEEP: "preference"}  # of settings
ENVS = tuple(env for env in ENVIRONMENTS if task_of(env) == "session")
TARGETS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
PENALTIES = (0.0, 0.5, 1.0, 2.0, 4.0)
PREFERENCES = (0.0, 0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True)
class ParetoStudy(Study):
    """One training, and the settings at which the agent is played.

    Attributes:
        kind: A key of :data:`AGENTS`.
        run: The training, and how much is played.
        settings: Long-tail shares, of which only the dial has several; of a flat agent, the weight
            of its fairness reward; of a sweep, MOFIR's weights of utility.
    """

    kind: str
    run: Run
    settings: tuple[float, ...]

    markdown = staticmethod(markdown)

    def __post_init__(self) -> None:
        check_choice("env", self.run.env, ENVS)
        most = math.inf if self.kind == FLAT else 1.0
        for setting in self.settings:
            if not 0.0 <= setting <= most or math.isinf(setting):
                raise ConfigError(
                    f"A {NAMES[self.kind]} must be a number of at "
                    f"least 0{'' if self.kind == FLAT else ' and at most 1'}, got {setting}."
                )

    @property
    def name(self) -> str:
        label = self.kind if self.kind in ONCE else f"{self.kind}{self.settings[0]:g}"
        return f"{STUDY}_{label}_{self.run.world}_seed{self.run.seed}"

    def header(self) -> Result:
        return {
            "study": STUDY,
            "kind": self.kind,
            "settings": list(self.settings),
            "agent": self.run.agent,
            "env": self.run.env,
            "max_len": self.run.max_len,
            "seed": self.run.seed,
            "dataset": data_block(self.run.load()),
            "episodes": self.run.episodes,
            "sessions": self.run.sessions,
        }

    def make(self, path: Path) -> Result:
        spec = self.run
        dataset, learner = spec.load(), find_agent(spec.agent)
        fitted = learner.prepare(dataset, spec.seed, progress=False)
        overrides = {"fairness_coef": self.settings[0]} if self.kind == FLAT else {}
        prepare = _turn(self.settings[0]) if self.kind == RETRAINED else None
        agent, train = train_agent(
            spec, dataset, fitted, progress=False, overrides=overrides, prepare=prepare
        )

        def point(setting: float | None) -> dict[str, Any]:
            world = (spec.env, dataset, spec.max_len, spec.seed, spec.sessions)
            env = evaluation_env(*world, learner.env_options)
            wrapped = learner.wrap(env, fitted, {"preference": setting}, False)  # only MOFIR's
            sessions, _ = play(agent, wrapped, spec.sessions)
            return {"setting": setting, "metrics": env.batch.summarise(sessions)}

        points = []
        if self.kind == DIAL:
            for target in (None, *self.settings):  # None: the manager's own choice
                _turn(target)(agent)
                points.append(point(target))
        else:
            points += [point(setting) for setting in self.settings]
        return {
            "points": points,
            "train": {name: train[name] for name in ("episodes", "steps", "seconds")},
        }


def _turn(target: float | None) -> Callable[[Any], None]:
    """A function that sets an agent's dial."""
    return lambda agent: agent.policy.set_fairness(target)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    usual = Run(AGENTS[DIAL])
    parser.add_argument("--env", default=usual.env, choices=ENVS)
    add_dataset(parser)
    parser.add_argument("--max-len", type=int, default=usual.max_len)
    parser.add_argument("--seeds", type=int, nargs="+", default=[11, 15, 19])
    parser.add_argument(
        "--episodes", type=int, default=usual.episodes, help="training sessions of each agent"
    )
    parser.add_argument(
        "--sessions", type=int, default=usual.sessions, help="test sessions at each setting"
    )
    parser.add_argument(
        "--targets", type=float, nargs="+", default=list(TARGETS), metavar="SHARE",
        help="long-tail shares that the dial is set to",
    )  # fmt: skip
    parser.add_argument(
        "--retrained-targets", type=float, nargs="*", metavar="SHARE",
        help="those for which an agent is trained, too; default: all targets",
    )  # fmt: skip
    parser.add_argument(
        "--penalties", type=float, nargs="*", default=list(PENALTIES), metavar="WEIGHT",
        help="weights of the flat agents' fairness reward",
    )  # fmt: skip
    parser.add_argument(
        "--preferences", type=float, nargs="*", default=list(PREFERENCES), metavar="W",
        help="weights of utility at which MOFIR is played",
    )  # fmt: skip
    add_jobs(parser)
    add_out_or_table(parser)


def main(options: argparse.Namespace) -> None:
    """Trains and plays what is missing, prints the tables, draws the figures.

    Raises:
        ConfigError: A setting makes no sense, or a result is there with other settings.
        DataFormatError: The folder holds no results, or some that do not compare.
    """
    if options.table is None:
        base = Run(
            AGENTS[DIAL],
            options.env,
            options.dataset,
            options.max_len,
            episodes=options.episodes,
            sessions=options.sessions,
        )
        targets, retrained = options.targets, options.retrained_targets
        retrained = targets if retrained is None else retrained
        settings = (targets, retrained, options.penalties, options.preferences)
        run_studies(plan(base, options.seeds, *settings), options.out, options.jobs)
    results = read_studies(options.table or options.out)
    print(markdown(results))
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
    """All studies, the slow ones first: processes then finish together.

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
        ParetoStudy(kind, replace(base, agent=AGENTS[kind], seed=seed), settings)
        for kind, groups in once.items()
        for settings, seed in product(groups, numbers)
    ]
