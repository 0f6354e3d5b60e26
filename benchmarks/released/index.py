"""Releases: folders or addresses of agents' files, with an index of worlds and checksums.

A release is flat, so that any place for files can hold it: ``index.json``, and for each agent and
world the files that a run keeps (:mod:`benchmarks.runs.kept`) and its card: ``NAME.json``,
``NAME.agent``, ``NAME.fitted`` if anything was fitted, and ``NAME.md``.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self
from urllib.parse import quote, urlsplit

from kuaisim_gym.config import is_whole
from kuaisim_gym.data.cache import scratch_folder
from kuaisim_gym.data.download import fetch_file
from kuaisim_gym.disk import claimed, new_folder, remove, write_atomically
from kuaisim_gym.errors import CheckpointError, ConfigError, DataFormatError

from ..studies.results import Result
from ..studies.study import header_difference

FORMAT = "kuaisim-release-1"
INDEX = "index.json"
CARD = ".md"
RESULT, AGENT, FITTED = ".json", ".agent", ".fitted"
NEEDED = frozenset({RESULT, AGENT, CARD})
LARGEST = 1 << 30  # bytes of a file: agents are far smaller
LARGEST_INDEX = 1 << 26  # an agent takes a thousand
HEADER = ("agent", "env", "max_len", "seed", "dataset")  # of a run's result
LOCAL = frozenset({"localhost", "127.0.0.1", "::1"})
RETRIES, BACKOFF = 2, 0.5  # of small files: a machine without network is to know soon

_LOG = logging.getLogger(__name__)


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

    @property
    def is_fitted(self) -> bool:
        """Tells entries with a purifier or encoder among their files."""
        return f"{self.name}{FITTED}" in self.files


class LackingError(Exception):
    """A release does not have an agent; the message is one line."""


class Release(ABC):
    """A place of released agents."""

    @abstractmethod
    def read_index(self) -> bytes:
        """The content of the index.

        Raises:
            LackingError: There is none.
            DownloadError: It cannot be fetched.
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

    def find(self, name: str, header: Result, is_fitted: bool) -> Entry:
        """The entry of an agent.

        Args:
            name: Name of its files.
            header: Of its result.
            is_fitted: Whether it plays with a purifier or encoder.

        Raises:
            LackingError: The release does not have it, or has it of another world.
            DataFormatError: Its index is damaged, or lists other files than such an agent has.
            DownloadError: Its index cannot be fetched.
        """
        entries = read_entries(self.read_index(), f"{self}/{INDEX}")
        if name not in entries:
            raise LackingError(f"{self} has no {name}")
        if difference := header_difference(header, entries[name].header):
            raise LackingError(f"{self} has {name} of other data: {difference}")
        if entries[name].is_fitted != is_fitted:
            raise DataFormatError(
                f"{self}/{INDEX} lists {'no' if is_fitted else 'a'} {name}{FITTED}, but "
                f"{header['agent']} plays {'with' if is_fitted else 'without'} one: nothing of it "
                "is used. Get the release again."
            )
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
        """Tells whether the index has this very agent; its files are not looked at."""
        try:
            return self.find(entry.name, entry.header, entry.is_fitted) == entry
        except (LackingError, DataFormatError):
            return False

    def fault(self, entry: Entry) -> str:
        """The first fault of an agent's files, in words; empty if there is none."""
        for name, expected in entry.files.items():
            file = self.path / name
            try:
                sums = Checksum.of(file.read_bytes())
            except OSError:
                return f"{file} is not there, or cannot be read, but {INDEX} lists it"
            if sums.size != expected.size:
                return f"{file} has {sums.size:,} bytes, but {INDEX} says {expected.size:,}"
            if sums != expected:
                return f"{file} has sha256 {sums.sha256}, but {INDEX} says {expected.sha256}"
        return ""

    def obtain(self, entry: Entry, cache: Path | None = None) -> Path:
        if fault := self.fault(entry):
            raise CheckpointError(
                f"{fault}: the file is damaged or another one, and is not used. Get the release "
                "again."
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
            return self._fetch(INDEX, folder).read_bytes()

    def obtain(self, entry: Entry, cache: Path) -> Path:
        copy = Folder(cache)
        with claimed(cache.with_name(f"{cache.name}.fetch")):  # others wait, and find it there
            is_there = copy.holds(entry)
            fault = copy.fault(entry) if is_there else ""
            if fault:
                _LOG.warning("%s: fetching it again from %s.", fault, self)
            if fault or not is_there:
                self._copy(entry, cache)
        return copy.obtain(entry)

    def _copy(self, entry: Entry, cache: Path) -> None:
        """Fetches the files of an agent into a folder, all or none."""
        with new_folder(cache) as folder:
            for name, sums in entry.files.items():
                self._fetch(name, folder, sums)
            write_index(folder, [entry])
            remove(cache)  # of another release

    def _fetch(self, name: str, folder: Path, sums: Checksum | None = None) -> Path:
        file = folder / name
        sha256, size = sums or (None, None)
        url = f"{self.url.rstrip('/')}/{quote(name)}"
        fetch_file(
            url, file, sha256, size=size, largest=LARGEST_INDEX, retries=RETRIES, backoff=BACKOFF
        )
        return file


def release_at(place: str) -> Release:
    """The release that a user names.

    Args:
        place: A folder with an index, or an https address.

    Raises:
        ConfigError: It is neither, or an address with more than a host, a port and a path.
    """
    if place and os.path.isfile(Path(place) / INDEX):
        return Folder(Path(place))
    if _is_address(place):
        return Site(place)
    shown = "one with an @, which is not shown: it may hold a password" if "@" in place else place
    raise ConfigError(
        f"A release is a folder with {INDEX}, as `kuaisim release` makes it, or an https address "
        f"of its files, of a host and a path without user, query and fragment; got {shown!r}."
    )


def _is_address(place: str) -> bool:
    """Tells an address to which the names of files can be added."""
    try:
        parts = urlsplit(place)
        port = parts.port
    except ValueError:
        return False
    is_safe = parts.scheme == "https" or (parts.scheme == "http" and parts.hostname in LOCAL)
    is_plain = not re.search(r"[?#\s\\]", place) and "@" not in parts.netloc
    return is_safe and is_plain and bool(parts.hostname) and port != 0


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
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DataFormatError(
            f"{name} is no index of released agents: {error!r}. Get the release again."
        ) from error


def _entry(name: str, block: Mapping[str, Any]) -> Entry:
    """An agent of an index; names of files that lead elsewhere are refused."""
    if not re.fullmatch(r"[\w+-][\w.+-]*", name):
        raise ValueError(f"{name!r} names no agent")
    files = {file: _checksum(file, **sums) for file, sums in block["files"].items()}
    needed = {f"{name}{ending}" for ending in NEEDED}
    if not needed <= files.keys() <= needed | {f"{name}{FITTED}"} or INDEX in files:
        raise ValueError(f"the files of {name} are {sorted(files)}")
    header = {key: block[key] for key in HEADER}
    values = [*(header | {"dataset": None}).values(), *header["dataset"].values()]
    if not all(isinstance(value, str | int | None) for value in values):
        raise ValueError(f"{name} is of no world")
    return Entry(name, header, files)


def _checksum(file: str, sha256: Any, size: Any) -> Checksum:
    """The facts of a file in an index, which are refused if they can be of none."""
    if not isinstance(sha256, str) or not re.fullmatch(r"[0-9a-f]{64}", sha256):
        raise ValueError(f"expected a sha256 of 64 hexadecimal digits of {file}, got {sha256!r}")
    if not is_whole(size) or not 0 <= size <= LARGEST:
        raise ValueError(f"expected a size of {file} of 0 to {LARGEST:,} bytes, got {size!r}")
    return Checksum(sha256, size)


def write_index(folder: Path, entries: Iterable[Entry]) -> None:
    """Writes the index of a folder's agents; equal agents make equal bytes."""
    agents = {entry.name: entry.block() for entry in sorted(entries, key=lambda entry: entry.name)}
    text = json.dumps({"format": FORMAT, "agents": agents}, indent=1)
    write_atomically(folder / INDEX, f"{text}\n".encode())
