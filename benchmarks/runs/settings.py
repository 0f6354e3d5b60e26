"""Settings of runs, and the options of the command line that name them."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

from kuaisim_gym import ENVIRONMENTS
from kuaisim_gym.config import SessionConfig
from kuaisim_gym.data import Dataset
from kuaisim_gym.envs.options import usual_slate_size
from kuaisim_gym.errors import ConfigError
from kuaisim_gym.registration import registered

from ..agents import AGENTS, Agent, find_agent
from ..commands import OF_RUN, add_dataset, add_dataset_seed, count, place
from ..origin import Origin, check_played, env_for, find_origin
from ..studies.results import Result, task_of

# Session slots of a run are seeded within its seed's range: two seeds share no session, and all
# agents of one seed meet the same users.
SEED_RANGE = 1_000_000
MAX_SEED = 2**32 - 1  # that NumPy and Stable-Baselines3 take
SLOTS = 1000  # evaluation sessions played in parallel
OUT = Path("results")


@dataclass(frozen=True)
class Run:
    """Settings of a run.

    Attributes:
        agent: As :func:`~benchmarks.agents.find_agent` takes it.
        env: A registered environment id, or ``module:id`` of another environment.
        dataset: As :func:`~benchmarks.origin.find_origin` takes it; ``None`` for the synthetic
            world of the environment's source.
        dataset_seed: Seed of the synthetic world.
        max_len: T, the longest session.
        seed: Seed of the training; evaluation sessions are seeded from another part of its range.
        episodes: Training sessions.
        sessions: Evaluation episodes: sessions, or users who make several sessions.
        slate_size: Items in a slate; ``None`` for the environment's number.
    """

    agent: str
    env: str = "KuaiRec-Fair-v0"
    dataset: str | None = None
    max_len: int = 30
    seed: int = 11
    episodes: int = 20_000
    sessions: int = 1000
    dataset_seed: int = 0
    slate_size: int | None = None

    def __post_init__(self) -> None:
        find_agent(self.agent)
        check_played(self.origin, self.env)
        for name, least in (("episodes", 1), ("sessions", 1), ("seed", 0), ("max_len", 2)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name} must be at least {least}, got {getattr(self, name)}.")
        if self.seed > MAX_SEED:
            raise ConfigError(f"seed must be at most {MAX_SEED:,}, got {self.seed:,}.")
        if self.sessions > SLOTS and self.sessions % SLOTS:
            raise ConfigError(
                f"sessions must be at most {SLOTS} or a multiple of it, got {self.sessions}."
            )

    def load(self) -> Dataset:
        """The data, one object for all runs in this process."""
        return self.origin.load()

    @property
    def origin(self) -> Origin:
        """Source, files and seed of the data."""
        return find_origin(self.dataset, self.env, self.dataset_seed)

    def header(self) -> Result:
        """The first keys of results."""
        return {
            "agent": find_agent(self.agent).name,
            "env": self.env.removeprefix("kuaisim_gym:"),  # which registers its own in any case
            "max_len": self.max_len,
            "seed": self.seed,
            "dataset": self.origin.block(),
        }

    @property
    def world(self) -> str:
        """Environment, dataset and session length, as in file names."""
        width = "" if self._is_usually_wide else f"_K{self.slate_size}"
        return f"{self.env.rpartition(':')[2]}_{self.origin.label}_T{self.max_len}{width}"

    @property
    def _is_usually_wide(self) -> bool:
        """Tells slates of the size that they have where nobody chooses one."""
        if self.slate_size != SessionConfig.slate_size:
            return self.slate_size is None
        usual = _defaults(self.env).get("slate_size", usual_slate_size(self.load().n_items))
        return bool(self.slate_size == usual)

    @property
    def session_options(self) -> dict[str, int]:
        """Options of the environment that the settings choose."""
        width = {} if self.slate_size is None else {"slate_size": self.slate_size}
        return {"max_len": self.max_len, **width}


def _defaults(env: str) -> dict[str, Any]:
    """Options that an environment has where nobody chooses: its task's, then its own."""
    return {**task_of(env).defaults, **registered(env)}


def env_options(spec: Run, agent: Agent, fitted: Any) -> dict[str, Any]:
    """Options of the environment in which an agent plays a run's sessions; its own come last.

    Args:
        spec: Settings of the run.
        agent: The agent, which may differ from the run's.
        fitted: Object that was fitted for it, or ``None``.
    """
    return {**weights_of(spec.env), **spec.session_options, **agent.options_for(fitted)}


def weights_of(env: str) -> dict[str, str]:
    """Option of the actions of agents that do not say what theirs are.

    They are scorers where the environment's own are shares, which came after them: agents and
    results keep their names' meaning.
    """
    own = registered(env).get("action_type", task_of(env).usual_actions)
    return {"action_type": "scorer"} if own == "shares" else {}


class _Once(argparse.Action):
    """An argument that stands in two places of the parser, and once on a command line."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        if hasattr(namespace, self.dest):
            first = getattr(namespace, self.dest)
            parser.error(
                f"{self.dest} is named twice, {first} and {values}: leave one out, or name "
                "agent and environment by --agent and --env"
            )
        setattr(namespace, self.dest, values)


def add_agent_arguments(parser: argparse.ArgumentParser, kept: bool = False) -> None:
    """Adds agent and environment, by place or by name.

    Args:
        parser: Parser of the command.
        kept: Whether the agent may be one that a run has kept or that was released.
    """
    agents = f"{', '.join(AGENTS)}; or your own, as mypackage.my:AGENT"
    envs = f"{', '.join(ENVIRONMENTS)}; or your own, as mypackage.my:ID"
    metavar = "AGENT"
    if kept:
        agents, metavar = f"result file of a run; or one of {agents}", "RUN"
        envs += "; default: the run's"
        parser.epilog = (
            "The files of a run name the code that plays it, which is imported: give runs of those "
            "whom you trust. A named agent that must be trained is taken from a release, or from "
            "what was fetched or trained before, or else it is trained, which takes minutes."
        )
    for name, shown, text in (("agent", metavar, agents), ("env", "ENV", envs)):
        once = partial(parser.add_argument, metavar=shown, default=argparse.SUPPRESS, action=_Once)
        once(name, nargs="?", help=text)
        once(f"--{name}", help=f"the same, in place of {shown}")


def add_session_arguments(parser: argparse.ArgumentParser, kept: bool = False) -> None:
    """Adds the options of the sessions of one run.

    Args:
        parser: Parser of the command.
        kept: Whether they change those of a run: what is not given is ``None`` then.
    """
    add, default = parser.add_argument, OF_RUN if kept else "default: the environment's"
    add("--max-len", type=int, metavar="T", help=f"longest session; {default}")
    seed, text = (None, f"of the sessions; {OF_RUN}") if kept else (Run.seed, "of the run")
    add("--seed", type=int, default=seed, metavar="N", help=text)
    add_world_arguments(parser, kept)


def add_world_arguments(parser: argparse.ArgumentParser, kept: bool = False) -> None:
    """Adds the options of the world that all commands with an agent share.

    Args:
        parser: Parser of the command.
        kept: Whether they change those of a run.
    """
    add_dataset(parser, kept)
    add_dataset_seed(parser, kept)
    add, default = parser.add_argument, OF_RUN if kept else "default: usually 10"
    add("--slate-size", type=count, metavar="K", help=f"items in a slate; {default}")


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of training that runs, suites and searches share."""
    add = parser.add_argument
    add("--sessions", type=int, default=Run.sessions, metavar="N", help="test sessions a seed")
    add("--episodes", type=int, default=Run.episodes, metavar="N", help="training sessions")
    add("--threads", type=count, default=1, metavar="N", help="torch threads per process")
    add("--out", type=place, default=OUT, metavar="DIR", help="folder of the result files")
    add("--tensorboard", type=place, metavar="DIR", help="folder of its logs; default: no log")


def spec_of(options: argparse.Namespace, **changes: Any) -> Run:
    """The run that the options describe, or one that differs in some settings.

    Raises:
        ConfigError: They name no agent, or one or the other is unknown.
    """
    names = [field.name for field in fields(Run)]
    given = {name: value for name, value in vars(options).items() if name in names}
    settings: dict[str, Any] = {"agent": None, "env": None, "max_len": None} | given | changes
    if settings["agent"] is None:
        raise ConfigError(f"An agent is needed, such as `{next(iter(AGENTS))}`; got none.")
    settings["env"] = settings["env"] or env_for(settings["dataset"], Run.env)
    if settings["max_len"] is None:
        settings["max_len"] = _defaults(settings["env"]).get("max_len", SessionConfig.max_len)
    return Run(**settings)
