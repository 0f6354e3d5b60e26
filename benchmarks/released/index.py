"""Releases: folders or addresses of agents' files, with an index of worlds and checksums.

A release is flat, so that any place for files can hold it: ``index.json``, and for each agent and
world the files that a run keeps (:mod:`benchmarks.kept`) and its card: ``NAME.json``,
``NAME.agent``, ``NAME.fitted`` if anything was fitted, and ``NAME.md``.
"""

from __future__ import annotations

import hashlib
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self
from urllib.parse import quote, urlsplit

from kuaisim_gym.data.cache import scratch_folder
from kuaisim_gym.data.download import fetch_file
from kuaisim_gym.disk import claimed, new_folder, remove, write_atomically
from kuaisim_gym.errors import CheckpointError, ConfigError, DataFormatError, DownloadError

from ..results import Result
from ..study import header_difference

FORMAT = "kuaisim-release-1"
INDEX = "index.json"
CARD = ".md"
RESULT, AGENT = ".json", ".agent"
ENDINGS = frozenset({RESULT, AGENT, ".fitted", CARD})
HEADER = ("agent", "env", "max_len", "seed", "dataset")  # of a run's result
LOCAL = frozenset({"localhost", "127.0.0.1", "::1"})
RETRIES, BACKOFF = 2, 0.5  # of small files: a machine without network is to know soon


class Checksum(NamedTuple):
    """Facts by which a file is recognised.

    Attributes:
        sha256: 64 hexadecimal digits.
        size: Bytes.
    """

    sha256: str
    size: int

    @classmethod
    def of(cls, content: bytes) -> Self:
        """The facts of some bytes."""
        return cls(hashlib.sha256(content).hexdigest(), len(content))


class Entry(NamedTuple):
    """An agent of one world in a release.

    Attributes:
        name: Name of its files, without ending.
        header: Agent, environment, session length, seed and data, as in results.
        files: Checksums by the files' names.
    """

    name: str
    header: Result
    files: Mapping[str, Checksum]

    def block(self) -> dict[str, Any]:
        """The entry in the index."""
        return {**self.header, "files": {name: sums._asdict() for name, sums in self.files.items()}}


class LackingError(Exception):
    """A release does not have an agent, or is not there; the message is one line."""


class Release(ABC):
    """A place of released agents."""

    @abstractmethod
    def read_index(self) -> bytes:
        """The content of the index.

        Raises:
            LackingError: It cannot be had.
        """

    @abstractmethod
    def obtain(self, entry: Entry, cache: Path) -> Path:
        """Checked files of an agent on this machine.

        Args:
            entry: The agent.
            cache: Folder for files that come from elsewhere.

        Returns:
            The result file; the others lie beside it.

        Raises:
            CheckpointError: A file is missing, or not the one of the index.
            DownloadError: The same, of a file that is fetched.
        """

    def find(self, name: str, header: Result) -> Entry:
        """The entry of an agent.

        Args:
            name: Name of its files.
            header: Of its result.

        Raises:
            LackingError: The release does not have it, or has it of another world.
            DataFormatError: Its index is damaged.
        """
        entries = read_entries(self.read_index(), f"{self}/{INDEX}")
        if name not in entries:
            raise LackingError(f"{self} has no {name}")
        if difference := header_difference(header, entries[name].header):
            raise LackingError(f"{self} has {name} of other data: {difference}")
        return entries[name]


@dataclass(frozen=True)
class Folder(Release):
    """A release in a folder of this machine.

    Attributes:
        path: The folder.
    """

    path: Path

    def __str__(self) -> str:
        return str(self.path)

    def read_index(self) -> bytes:
        try:
            return (self.path / INDEX).read_bytes()
        except OSError as error:
            raise LackingError(f"{self} holds no release") from error

    def holds(self, entry: Entry) -> bool:
        """Tells whether this very agent is there."""
        try:
            return self.find(entry.name, entry.header) == entry
        except (LackingError, DataFormatError):
            return False

    def obtain(self, entry: Entry, cache: Path | None = None) -> Path:
        for name, expected in entry.files.items():
            file = self.path / name
            sums = Checksum.of(file.read_bytes()) if file.is_file() else None
            if sums != expected:
                fault = "is not there" if sums is None else f"has sha256 {sums.sha256}"
                raise CheckpointError(
                    f"{file} {fault}, but {self.path / INDEX} says {expected.sha256}: the file is "
                    "damaged or another one, and is not used. Get the release again, or, if this "
                    "is your cache, remove the folder."
                )
        return self.path / f"{entry.name}{RESULT}"


@dataclass(frozen=True)
class Site(Release):
    """A release at an address.

    Attributes:
        url: The address, to which the names of files are added.
    """

    url: str

    def __str__(self) -> str:
        return self.url

    def read_index(self) -> bytes:
        with scratch_folder() as folder:
            try:
                return self._fetch(INDEX, folder).read_bytes()
            except DownloadError as error:
                sentence, *_ = str(error).split(". ")
                raise LackingError(sentence.rstrip(".")) from error

    def obtain(self, entry: Entry, cache: Path) -> Path:
        with claimed(cache.with_name(f"{cache.name}.fetch")):  # others wait, and find it there
            if not Folder(cache).holds(entry):
                self._copy(entry, cache)
        return Folder(cache).obtain(entry)

    def _copy(self, entry: Entry, cache: Path) -> None:
        """Fetches the files of an agent into a folder, all or none."""
        with new_folder(cache) as folder:
            for name, sums in entry.files.items():
                self._fetch(name, folder, sums)
            write_index(folder, [entry])
            remove(cache)  # of another release

    def _fetch(self, name: str, folder: Path, sums: Checksum | None = None) -> Path:
        file = folder / name
        sha256, size = sums or (None, 0)
        url = f"{self.url.rstrip('/')}/{quote(name)}"
        fetch_file(url, file, sha256, size=size, retries=RETRIES, backoff=BACKOFF)
        return file


def release_at(place: str) -> Release:
    """The release that a user names.

    Args:
        place: A folder with an index, or an https address.

    Raises:
        ConfigError: It is neither.
    """
    parts = urlsplit(place)
    if parts.scheme == "https" or (parts.scheme == "http" and parts.hostname in LOCAL):
        return Site(place)
    if (Path(place) / INDEX).is_file():
        return Folder(Path(place))
    raise ConfigError(
        f"A release is a folder with {INDEX}, as `kuaisim release` makes it, or an https address "
        f"of its files, got {place}."
    )


def read_entries(content: bytes, name: str) -> dict[str, Entry]:
    """The agents of an index.

    Args:
        content: Of its file.
        name: Its name, for errors.

    Raises:
        DataFormatError: It is no index, or names files that are not an agent's.
    """
    try:
        index = json.loads(content)
        if index["format"] != FORMAT:
            raise ValueError(f"expected format {FORMAT!r}, got {index['format']!r}")
        return {stem: _entry(stem, block) for stem, block in index["agents"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataFormatError(
            f"{name} is no index of released agents: {error!r}. Get the release again, or, if this "
            "is your cache, remove the folder."
        ) from error


def _entry(name: str, block: Mapping[str, Any]) -> Entry:
    """An agent of an index; names of files that lead elsewhere are refused."""
    if not re.fullmatch(r"[\w+-][\w.+-]*", name):
        raise ValueError(f"{name!r} names no agent")
    files = {file: Checksum(**sums) for file, sums in block["files"].items()}
    endings = {file.removeprefix(name) for file in files}
    if not {RESULT, AGENT} <= endings <= ENDINGS:
        raise ValueError(f"the files of {name} are {sorted(files)}")
    return Entry(name, {key: block[key] for key in HEADER}, files)


def write_index(folder: Path, entries: Iterable[Entry]) -> None:
    """Writes the index of a folder's agents; equal agents make equal bytes."""
    agents = {entry.name: entry.block() for entry in sorted(entries, key=lambda entry: entry.name)}
    text = json.dumps({"format": FORMAT, "agents": agents}, indent=1)
    write_atomically(folder / INDEX, f"{text}\n".encode())
