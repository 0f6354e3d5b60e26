"""The command line: one parser for a table of commands, and the options that they share.

A command is a module with ``add_arguments(parser)`` and ``main(options)``, which is imported only
when it is called. Every ``--help`` shows defaults, which nobody writes by hand: a text has its own
``default:`` only where the default is worked out later.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from kuaisim_gym.console import run_command_line
from kuaisim_gym.disk import check_writable
from kuaisim_gym.errors import ConfigError, unknown_option
from kuaisim_gym.version import __version__


class Command(NamedTuple):
    """A row of a table of commands.

    Attributes:
        module: Name of its module; with a leading dot, of a module of this package.
        help: One line on what it does.
        aliases: Further names.
        resumes: Whether it goes on from what it has saved when it was interrupted.
    """

    module: str
    help: str
    aliases: tuple[str, ...] = ()
    resumes: bool = False

    def load(self) -> Any:
        """Imports the module.

        Raises:
            ConfigError: It needs a package that is not installed.
        """
        try:
            return import_module(self.module, __package__)
        except ModuleNotFoundError as error:
            raise ConfigError(
                f"This command needs {error.name}, which is not installed: "
                'pip install "kuaisim-gym[bench]".'
            ) from error


class DefaultsHelp(argparse.HelpFormatter):
    """Help in which every option with a default shows it."""

    def _get_help_string(self, action: argparse.Action) -> str:
        text, default = action.help or "", action.default
        values = default if isinstance(default, list | tuple) else [default]
        is_silent = any(value is None or value is False for value in values) or not values
        if "default:" in text or is_silent or default == argparse.SUPPRESS:
            return text
        shown = " ".join(map(str, values)).replace("%", "%%")
        return f"{text}; default: {shown}"


def make_parser(
    prog: str, description: str | None, commands: Mapping[str, Command], called: str | None
) -> argparse.ArgumentParser:
    """A parser of all commands, with the options of the one that is called.

    Args:
        prog: Name of the program in ``--help``.
        description: Description in ``--help``.
        commands: Rows by name.
        called: Name or alias of a command; others are known by name alone.
    """
    parser = argparse.ArgumentParser(prog=prog, description=description)
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    parsers = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, row in commands.items():
        command = parsers.add_parser(
            name, aliases=row.aliases, help=row.help, formatter_class=DefaultsHelp,
            description=f"{row.help[0].upper()}{row.help[1:]}.",
        )  # fmt: skip
        if called in (name, *row.aliases):
            module = row.load()
            module.add_arguments(command)
            command.set_defaults(main=module.main)
            if row.resumes:
                command.set_defaults(resumes=True)
    return parser


def run_command(
    prog: str,
    description: str | None,
    commands: Mapping[str, Command],
    arguments: list[str] | None,
) -> int:
    """Runs one command.

    Args:
        prog: Name of the program in ``--help``.
        description: Description in ``--help``.
        commands: Rows by name.
        arguments: Arguments of the command line; ``None`` for those of this process.

    Returns:
        The exit status, as of :func:`~kuaisim_gym.console.run_command_line`.
    """
    words = sys.argv[1:] if arguments is None else arguments

    def parse() -> argparse.Namespace:
        called = next(iter(words), None)
        names = {name for key, row in commands.items() for name in (key, *row.aliases)}
        if called is not None and not called.startswith("-") and called not in names:
            raise unknown_option("command", called, commands)
        return make_parser(prog, description, commands, called).parse_args(words)

    return run_command_line(parse)


OF_RUN = "default: the run's"  # of options that change what a run has kept


def count(text: str) -> int:
    """Reads an integer of at least one."""
    if not re.fullmatch(r"0*[1-9]\d*", text):
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number of at least 1")
    return int(text)


def place(text: str) -> Path:
    """Reads the path of a file or folder; an empty one is mostly a variable that is not set."""
    if not text:
        raise argparse.ArgumentTypeError("the path is empty: name a file or folder")
    return Path(text)


def out_folder(text: str) -> Path:
    """Reads a folder that can be written into, before the work whose results go there."""
    if (path := place(text)).exists() and not path.is_dir():
        raise argparse.ArgumentTypeError(f"{text} is a file: name a folder")
    check_writable(path)
    return path


def add_jobs(parser: argparse.ArgumentParser, usual: int = 2) -> None:
    """Adds where studies are made, and how many at a time, ``usual`` where nobody says."""
    parser.set_defaults(usual_jobs=usual)
    add = parser.add_argument
    add(
        "--jobs", type=count, metavar="N",
        help=f"parallel processes; default: {usual}, or as many as the cluster at --address has "
        "room for",
    )  # fmt: skip
    add(
        "--backend", choices=("local", "ray"), default="local",
        help="processes of this machine, or workers of Ray",
    )  # fmt: skip
    add(
        "--address", metavar="ADDRESS",
        help="a running Ray cluster, as HOST:PORT, or auto for this machine's; default: one on "
        "this machine that ends with the command",
    )  # fmt: skip
    add(
        "--cpus-per-run", type=count, metavar="N",
        help="processors that Ray reserves for each; default: its threads",
    )  # fmt: skip


def add_dataset(parser: argparse.ArgumentParser, kept: bool = False) -> None:
    """Adds the origin of the data; that of a run is the default if ``kept``."""
    default = OF_RUN if kept else "default: the synthetic world of that source"
    parser.add_argument(
        "--dataset", metavar="NAME[=PATH]",
        help="kuairec=DIR for files, kuairec for its synthetic world, mypackage.my:NAME for a "
        "source of yours, table=FILE for tables of yours (a .toml file holds their options, such "
        f"as rating_map), DIR alone for files of the environment's own source; {default}",
    )  # fmt: skip


def add_dataset_seed(parser: argparse.ArgumentParser, kept: bool = False) -> None:
    """Adds the seed of synthetic worlds; that of a run is the default if ``kept``."""
    parser.add_argument(
        "--dataset-seed", type=int, default=None if kept else 0, metavar="N",
        help=f"seed of the synthetic world{f'; {OF_RUN}' if kept else ': agents were tuned on 0'}",
    )  # fmt: skip


def add_folder(parser: argparse.ArgumentParser) -> None:
    """Adds the folder of results that a command reads."""
    parser.add_argument("folder", type=place, metavar="DIR", help="folder of the results")


def add_out_or_table(parser: argparse.ArgumentParser) -> None:
    """Adds the folder of a study's results, either to write or to read."""
    folder = parser.add_mutually_exclusive_group(required=True)
    folder.add_argument("--out", type=place, metavar="DIR", help="folder of results and figures")
    folder.add_argument("--table", type=place, metavar="DIR", help="only print the tables of DIR")
