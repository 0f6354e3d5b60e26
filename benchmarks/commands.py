"""The command line: a table of commands, and shared options.

A command is a module with ``add_arguments(parser)`` and ``main(options)``, which is imported only
when it is called.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path

from kuaisim_gym.errors import KuaiSimError


def run_command(
    prog: str,
    description: str | None,
    commands: Mapping[str, tuple[str, str]],
    arguments: list[str] | None,
) -> int:
    """Runs one command.

    Args:
        prog: Name of the program in ``--help``.
        description: Description in ``--help``.
        commands: Module and help text by command.
        arguments: Arguments of the command line; ``None`` for those of this process.

    Returns:
        The exit status: 0, or 2 after a user's mistake, which is printed as one sentence.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = argparse.ArgumentParser(prog=prog, description=description)
    parsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (module, text) in commands.items():
        command = parsers.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
        if name in arguments[:1]:
            import_module(module).add_arguments(command)
    options = parser.parse_args(arguments)
    try:
        import_module(commands[options.command][0]).main(options)
    except KuaiSimError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def count(text: str) -> int:
    """Reads an integer of at least one."""
    value = int(text)
    if value < 1:
        raise ValueError(text)
    return value


def add_jobs(parser: argparse.ArgumentParser) -> None:
    """Adds the number of parallel processes."""
    parser.add_argument(
        "--jobs", type=count, default=2, metavar="N", help="parallel processes; default: 2"
    )


def add_dataset(parser: argparse.ArgumentParser) -> None:
    """Adds the origin of the data."""
    parser.add_argument(
        "--dataset", metavar="NAME[=PATH]",
        help="kuairec=DIR for files, kuairec for its synthetic world, mypackage.my:NAME for a "
        "source of yours, table=FILE for tables of yours (a .toml file holds their options, such "
        "as rating_map), DIR alone for files of the environment's own source; default: the "
        "synthetic world of that source",
    )  # fmt: skip


def add_dataset_seed(parser: argparse.ArgumentParser) -> None:
    """Adds the seed of synthetic worlds."""
    parser.add_argument(
        "--dataset-seed", type=int, default=0, metavar="N",
        help="seed of the synthetic world: agents were tuned on 0; default: 0",
    )  # fmt: skip


def add_folder(parser: argparse.ArgumentParser) -> None:
    """Adds the folder of results that a command reads."""
    parser.add_argument("folder", type=Path, metavar="DIR", help="folder of the results")


def add_out_or_table(parser: argparse.ArgumentParser) -> None:
    """Adds the folder of a study's results, either to write or to read."""
    folder = parser.add_mutually_exclusive_group(required=True)
    folder.add_argument("--out", type=Path, metavar="DIR", help="folder of results and figures")
    folder.add_argument("--table", type=Path, metavar="DIR", help="only print the tables of DIR")
