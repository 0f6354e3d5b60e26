"""The ``evaluate`` command: how an agent plays, one that a run has kept or a named one."""

from __future__ import annotations

import argparse
from dataclasses import fields
from pathlib import Path

from kuaisim_gym.errors import ConfigError

from ..agents import AGENTS
from ..commands import OF_RUN, count
from ..released.library import VARIABLE, load
from ..reports.tables import add_format, tables_of
from ..studies.results import Result, commit, versions
from .judging import judged
from .players import Player, load_player
from .settings import Run, add_agent_arguments, add_session_arguments


def find_player(options: argparse.Namespace) -> Player:
    """The agent that the options name: a run's result file, or an agent's name.

    Options that are ``None`` are the run's, or the defaults.

    Raises:
        ConfigError: No agent is named, it must be trained and must not, or an option is none.
        CheckpointError: The run has not kept its agent, or its files are damaged.
        DownloadError: A file of a release cannot be fetched, or is damaged.
    """
    changes = {
        field.name: getattr(options, field.name)
        for field in fields(Run)
        if getattr(options, field.name, None) is not None
    }
    name = changes.pop("agent", None)
    if name is None:
        raise ConfigError(
            f"Name an agent, such as `{next(iter(AGENTS))}`, or the result file of a run; got none."
        )
    path = Path(name)
    if not path.is_file() and path.suffix != ".json":
        return load(name, release=options.release, train=not options.no_train, **changes)
    if options.release is not None or options.no_train:
        raise ConfigError(
            f"--release and --no-train are for agents that are named, but {name} is a file: leave "
            "them out."
        )
    return load_player(path, **changes)


def add_player_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds agent, environment and world; what is not given is the run's."""
    add_agent_arguments(parser, kept=True)
    add_session_arguments(parser, kept=True)
    add = parser.add_argument
    add("--split", choices=("test", "train"), default="test", help="users and simulator")
    add(
        "--release", metavar="DIR_OR_URL",
        help=f"release that a named agent is taken from, if it is one that learns; default: "
        f"${VARIABLE}, or the agents that came with this package",
    )  # fmt: skip
    add(
        "--no-train", action="store_true",
        help="refuse an agent that is in no release, in place of training it",
    )  # fmt: skip


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
