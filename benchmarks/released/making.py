"""The ``release`` command: agents that runs have kept, as files for others.

kuaisim train dsrm-hrl --out results
kuaisim release results --agents dsrm-hrl --out release
kuaisim play dsrm-hrl --release release
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from kuaisim_gym.disk import new_folder, readable_size, remove, write_atomically
from kuaisim_gym.errors import ConfigError, DataFormatError

from ..agents import find_agent
from ..commands import add_folder, out_folder
from ..origin import source_in
from ..runs.kept import keep
from ..runs.players import load_player
from ..runs.settings import Run
from ..runs.training import untrained
from ..studies.results import RUN, Result, read_folder, read_result, world_of
from .card import BESIDE, card_of
from .index import CARD, HEADER, INDEX, Checksum, Entry, read_entries, write_index


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    add_folder(parser)
    add = parser.add_argument
    add(
        "--agents", nargs="+", required=True, metavar="AGENT",
        help=f"agents to release, in all worlds of their runs of seed {Run.seed}",
    )  # fmt: skip
    add(
        "--out", type=out_folder, required=True, metavar="DIR",
        help="folder of the release; an older release there is replaced, and nothing else",
    )  # fmt: skip


def main(options: argparse.Namespace) -> None:
    """Writes the release, and prints its files and their sizes."""
    out: Path = options.out.resolve()  # what a link leads to is replaced, not the link
    check_folders(options.folder, out)
    runs = {
        path: result
        for path, result in read_folder(options.folder)
        if result.get("study", RUN) == RUN and result["seed"] == Run.seed
    }
    paths = list(chosen(runs, options.agents, options.folder))
    with new_folder(out) as folder:
        write_release(paths, folder, list(runs.values()))
        remove(out)
    entries = read_entries((out / INDEX).read_bytes(), str(out / INDEX))
    for entry in entries.values():
        size = sum(sums.size for sums in entry.files.values())
        print(f"{options.out / entry.name}{CARD}: {readable_size(size)}")


def check_folders(results: Path, out: Path) -> None:
    """Checks that a release can be written without a loss of anything else.

    Args:
        results: Folder of the results.
        out: Folder of the release, which is replaced if it is there.

    Raises:
        ConfigError: There are no results, one folder lies in the other, or ``out`` holds files that
            the index of a release does not list.
    """
    if not results.is_dir():
        raise ConfigError(f"{results} is not there, or no folder: name one of results.")
    source = results.resolve()
    if out.is_relative_to(source):
        raise ConfigError(f"{out} must not lie in {results}, whose JSON files are results.")
    if source.is_relative_to(out):
        raise ConfigError(f"{out} must not hold {results}, which would be removed with it.")
    if not out.exists() or not any(out.iterdir()):
        return
    try:
        entries = read_entries((out / INDEX).read_bytes(), str(out / INDEX))
    except (OSError, DataFormatError):
        entries = {}
    listed = {name for entry in entries.values() for name in entry.files} | {INDEX}
    others = [file.name for file in out.iterdir() if file.name not in listed or file.is_dir()]
    if others or not entries:
        raise ConfigError(
            f"{out} holds other files than a release, such as {min(others, default=INDEX)}: choose "
            "a new folder."
        )


def chosen(runs: Mapping[Path, Result], agents: Sequence[str], folder: Path) -> Iterator[Path]:
    """Result files of agents, in all today's worlds.

    Args:
        runs: Results by file, of one seed.
        agents: Names, as :func:`~benchmarks.agents.find_agent` takes them.
        folder: Folder of the results, for errors.

    Raises:
        ConfigError: An agent needs no training, has no run, or has two of a world.
    """
    for agent in dict.fromkeys(agents):
        row = find_agent(agent)
        if row.rule is not None:
            raise ConfigError(f"{row.name} needs no training: there is nothing to release.")
        files = {
            path: world_of(result)
            for path, result in runs.items()
            if result["agent"] == row.name and not world_of(result).is_older
        }
        if not files:
            raise ConfigError(
                f"{folder} has no run of {row.name} with seed {Run.seed}: `kuaisim train {agent} "
                f"--out {folder}` makes one."
            )
        if len(set(files.values())) < len(files):
            raise ConfigError(
                f"{folder} has several runs of {row.name} in one world: give a folder with one."
            )
        yield from files


def write_release(paths: Iterable[Path], folder: Path, beside: Sequence[Result] = ()) -> None:
    """Writes the files of a release; equal runs make equal bytes.

    Args:
        paths: Result files of runs that have kept their agents.
        folder: An empty folder.
        beside: Results of the same seed: the cards show those of untrained references beside the
            agent's own.

    Raises:
        CheckpointError: A run has not kept its agent, or its files are damaged.
    """
    entries = [_write_agent(path, folder, beside) for path in paths]
    write_index(folder, entries)


def _write_agent(path: Path, folder: Path, beside: Sequence[Result]) -> Entry:
    """Writes the files of one agent, which is loaded to see that it can be."""
    result, player = read_result(path), load_player(path)
    target, spec = folder / path.name, player.spec
    settings = asdict(spec) | {"dataset": source_in(spec.dataset)}  # without the place of the data
    new = untrained(spec, player.dataset, player.fitted, training=False)
    keep(target, settings, player.model, player.fitted, new)
    short = result | {"train": result["train"] | {"curve": []}}
    write_atomically(target, f"{json.dumps(short, indent=1)}\n".encode())
    files = {
        file.name: Checksum.of(file.read_bytes()) for file in sorted(folder.glob(f"{path.stem}.*"))
    }
    references = [
        other
        for name in BESIDE
        for other in beside
        if other["agent"] == name and world_of(other) == world_of(result)
    ]
    card = card_of(short, player, files, references).encode()
    write_atomically(target.with_suffix(CARD), card)
    files[f"{path.stem}{CARD}"] = Checksum.of(card)
    return Entry(path.stem, {key: result[key] for key in HEADER}, files)
