"""Commands for the data: ``python -m kuaisim_gym.data check FOLDER``, ``download``, ``cache``."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from kuaisim_gym.console import end_process, run_command_line
from kuaisim_gym.data import SOURCES
from kuaisim_gym.data.cache import cache_dir, cache_info, clear_cache
from kuaisim_gym.data.custom.options import SPLITS_OF_TABLES
from kuaisim_gym.data.download import archive_md5, archives, download
from kuaisim_gym.data.source import find_source, recognise
from kuaisim_gym.disk import readable_size


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        argv: The command's words; ``None`` for those of the process.

    Returns:
        The exit status, as of :func:`~kuaisim_gym.console.run_command_line`.
    """
    parser = argparse.ArgumentParser(prog="python -m kuaisim_gym.data")
    add_arguments(parser)
    parser.set_defaults(main=run)
    return run_command_line(lambda: parser.parse_args(argv))


def run(options: argparse.Namespace) -> None:
    """Runs the command that the options name.

    Raises:
        KuaiSimError: It fails.
    """
    if options.command == "download":
        _download(options.name, options.to)
    elif options.command == "check":
        _check(options)
    elif options.info:
        _show_cache()
    else:
        sys.stdout.write(f"{readable_size(clear_cache())} freed in {cache_dir()}\n")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the commands and their options."""
    commands = parser.add_subparsers(dest="command", required=True)
    fetch = commands.add_parser("download", help="fetch, check and unpack a published archive")
    fetch.add_argument("name", choices=sorted(archives()))
    fetch.set_defaults(resumes=True)
    fetch.add_argument("--to", type=Path, help="folder for it (default: downloads in the cache)")
    _add_check(commands.add_parser("check", help="read data, and say what they hold"))
    cache = commands.add_parser("cache", help="arrays stored of datasets that were read")
    action = cache.add_mutually_exclusive_group(required=True)
    action.add_argument("--info", action="store_true", help="list it")
    action.add_argument("--clear", action="store_true", help="remove it; downloads stay")


def _add_check(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of ``check``; those beside the path are options of tables."""
    parser.add_argument("path", type=Path, help="a folder, an archive or a file")
    parser.add_argument("--source", choices=sorted(SOURCES), help="default: told by the files")
    parser.add_argument("--name", help="label of your data")
    parser.add_argument("--rating-map", nargs=2, type=float, metavar=("LOW", "HIGH"))
    parser.add_argument("--positive-from", type=float, metavar="RATING")
    parser.add_argument("--split", choices=SPLITS_OF_TABLES)
    parser.add_argument("--columns", nargs="+", metavar="ROLE=COLUMN")


def _check(options: argparse.Namespace) -> None:
    """Says what a path holds, reads it, and says what was read.

    Raises:
        KuaiSimError: It cannot be read.
    """
    choices = {
        "name": options.name,
        "rating_map": options.rating_map and tuple(options.rating_map),
        "positive_from": options.positive_from,
        "split": options.split,
        "columns": options.columns and _mapping(options.columns),
    }
    choices = {name: value for name, value in choices.items() if value is not None}
    source = options.source or recognise(options.path).name
    reader = find_source(source, **choices)
    for line in reader.inspect(options.path):
        sys.stdout.write(f"{line}\n")
    sys.stdout.flush()
    dataset = reader.load(options.path, 0)
    sys.stdout.write(f"read:    {dataset.description}\n")
    is_counted = dataset.popularity == "exposures" and dataset.show_counts is None
    rows = ", the rows of the train log" if is_counted else ""
    sys.stdout.write(f"popular: counted by {dataset.popularity}{rows}\n")
    for name, count in dataset.notes.items():
        sys.stdout.write(f"         {name}: {count:,}\n")
    arguments = "".join(f", {name}={value!r}" for name, value in choices.items())
    sys.stdout.write(f"load it: load_dataset({source!r}, {str(options.path)!r}{arguments})\n")


def _mapping(pairs: Sequence[str]) -> dict[str, str | None]:
    """Columns by role; a role without a column has none."""
    split = [pair.partition("=") for pair in pairs]
    return {role: column or None for role, _, column in split}


def _download(name: str, to: Path | None) -> None:
    folder = download(name, to)
    published = archives()[name]
    md5 = archive_md5(folder)
    if md5 is None:
        check = "unpacked by hand, not checked"
    elif published.md5 is None:
        check = f"md5 {md5}; none is published, so later downloads are held to this one"
    else:
        check = f"md5 {md5}, as published"
    sys.stdout.write(f"folder:  {folder}\n")
    sys.stdout.write(f"archive: {published.file}, {check}\n")
    sys.stdout.write(f"load it: load_dataset({published.dataset!r}, {str(folder)!r})\n")


def _show_cache() -> None:
    entries = cache_info()
    for entry in entries:
        written = time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.modified))
        sys.stdout.write(f"{readable_size(entry.bytes):>10}  {written}  {entry.key}\n")
    total = readable_size(sum(entry.bytes for entry in entries))
    sys.stdout.write(f"{total} in {len(entries)} entries of {cache_dir()}\n")


if __name__ == "__main__":
    end_process(main())
