"""The ``evaluate`` command: how an agent plays, one that a run has kept or one with a rule."""

from __future__ import annotations

import argparse
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from stable_baselines3.common.base_class import BaseAlgorithm

from kuaisim_gym.data import Dataset
from kuaisim_gym.errors import CheckpointError, ConfigError

from .agents import AGENTS, Agent, find_agent
from .commands import OF_RUN, count
from .kept import agent_file, fitted_file, read_kept
from .results import Result, commit, versions
from .run import (
    Played,
    Run,
    add_agent_arguments,
    add_session_arguments,
    judged,
    play,
    spec_of,
    untrained,
)
from .tables import add_format, tables_of


class Player(NamedTuple):
    """An agent that is ready to play.

    Attributes:
        spec: Settings of the sessions.
        agent: The row of the agent.
        dataset: The data.
        model: The trained model; ``None`` for an agent with a rule.
        fitted: A purifier or encoder that the environment is wrapped with, if any.
    """

    spec: Run
    agent: Agent
    dataset: Dataset
    model: BaseAlgorithm | None
    fitted: Any

    def play(self, split: str = "test") -> Played:
        """Plays the sessions of a split."""
        torch.set_num_threads(1)  # as runs do by default: other orders of sums round otherwise
        model, fitted = self.model, self.fitted
        return play(self.agent, self.spec, self.dataset, model, fitted, split=split)


def find_player(options: argparse.Namespace) -> Player:
    """The agent that the options name: a run's result file, or an agent that needs no training.

    Options that are ``None`` are the run's, or the defaults.

    Raises:
        ConfigError: The agent must be trained first, or an option is none.
        CheckpointError: The run has not kept its agent, or its files are damaged.
    """
    given = {
        field.name: getattr(options, field.name)
        for field in fields(Run)
        if getattr(options, field.name, None) is not None
    }
    name = given.pop("agent", None)
    if name is None:
        raise ConfigError(
            "Name the result file of a run, or an agent that needs no training, such as "
            f"`{next(iter(AGENTS))}`; got none."
        )
    path = Path(name)
    if path.is_file() or path.suffix == ".json":
        return load_player(path, **given)
    agent = find_agent(name)
    if agent.rule is None:
        raise ConfigError(
            f"{agent.name} must be trained first: `kuaisim train {name}`, and name the result file "
            "that it prints."
        )
    spec = spec_of(argparse.Namespace(**vars(Run(name)) | {"env": None, "max_len": None} | given))
    return Player(spec, agent, spec.load(), None, None)


def load_player(result: Path, **changes: Any) -> Player:
    """The agent that a run has kept.

    Args:
        result: The run's result file.
        **changes: Settings that differ from the run's.

    Raises:
        ConfigError: A setting is none.
        CheckpointError: The run has not kept its agent, its files are damaged, or the world is
            another than the weights are for.
    """
    content = read_kept(result)
    try:
        spec = replace(Run(**content.settings), **changes)
    except TypeError as error:
        raise CheckpointError(
            f"{agent_file(result)} is not of this version: {error}. Train the agent again."
        ) from error
    agent, dataset = find_agent(spec.agent), spec.load()
    if agent.rule is not None:
        return Player(spec, agent, dataset, None, None)
    file = fitted_file(result)
    fitted = agent.restore(file) if file.exists() else None
    model = untrained(spec, dataset, fitted, training=False)
    content.restore(model)
    return Player(spec, agent, dataset, model, fitted)


def add_player_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds agent, environment and world; what is not given is the run's."""
    add_agent_arguments(parser, kept=True)
    add_session_arguments(parser, kept=True)
    parser.add_argument(
        "--split", choices=("test", "train"), default="test", help="users and simulator"
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    add_player_arguments(parser)
    text = f"sessions to judge by; {OF_RUN}"
    parser.add_argument("--sessions", type=count, metavar="N", help=text)
    add_format(parser)


def main(options: argparse.Namespace) -> None:
    """Plays the sessions, and prints a table of them."""
    print(tables_of([evaluated(find_player(options), options.split)], options.format))


def evaluated(player: Player, split: str = "test") -> Result:
    """A result of the sessions of an agent, which was not trained for it."""
    played = player.play(split)
    return {
        **player.spec.header(),
        "slate_size": played.sessions.slates.shape[2],
        "train": {"episodes": 0, "steps": 0, "seconds": 0.0, "curve": []},
        **judged(played, player.spec),
        "versions": versions(),
        "commit": commit(),
    }
