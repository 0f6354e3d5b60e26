"""Cache on disk of what takes long to build: entries are whole and prove it, or are built again.

An entry is a folder of files, most of them ``.npy``, with a manifest of their names and checksums.
It is written under a temporary name, flushed and renamed, so that readers see all of it or nothing;
a lock lets one process build while others wait. Each load checks every byte: an entry that is
damaged, incomplete or of another format is built again, with a warning. Arrays are mapped from the
files, read-only; who has them mapped keeps them when an entry is built again. The folder of entries
is ``$KUAISIM_CACHE`` or the platform's cache folder for this package. Where it cannot be written,
work goes on without it.

The check reads about 8 GB/s from memory, which makes loads of the synthetic worlds 1.1 to 1.25
times as long as they were unchecked (``python -m benchmarks.speed cached``).
"""

from __future__ import annotations

import hashlib
import json
import logging
import mmap
import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from platformdirs import user_cache_dir

from kuaisim_gym.disk import (
    UNFINISHED,
    claimed,
    disk_errors,
    free_space,
    new_folder,
    remove,
    sweep,
    unfinished,
    write_atomically,
)
from kuaisim_gym.errors import BusyError, CheckpointError, StorageError

Arrays = dict[str, NDArray[np.generic]]
Bytes = NDArray[np.uint8]
T = TypeVar("T")

_FORMAT = 1  # of entries; raised when older ones could not be read
_ENTRY = ".arrays"  # ending of an entry's folder
_MANIFEST = "manifest.json"
_HEADER = 1 << 12  # bytes that hold the header of an ``.npy`` file
_ROW = 1 << 12  # words of 8 bytes that are summed up together
_ROWS = 32  # rows taken at once: they stay in the processor's cache
_ROOMY = 1 << 32  # free bytes with which the published data can be read
_SETTLED = 2.0  # seconds after which a file's time of change tells a further change
_SCRATCH = "scratch-"  # beginning of a scratch folder's name

_unused: set[Path] = set()  # folders that could not be written, of which a warning told

logger = logging.getLogger(__name__)


class Damaged(Exception):
    """An entry or a manifest is not what was written."""


@dataclass(frozen=True)
class CacheEntry:
    """An entry of the cache.

    Attributes:
        key: Its name.
        bytes: Its size on disk.
        modified: When it was written, seconds since the epoch.
    """

    key: str
    bytes: int
    modified: float


def cache_dir() -> Path:
    """The folder of the cache."""
    return Path(os.environ.get("KUAISIM_CACHE") or user_cache_dir("kuaisim_gym", appauthor=False))


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """An empty folder until the block ends, in the cache or else in the system's folder.

    The latter is taken where the cache cannot be written, or has little space and the other more.
    """
    with ExitStack() as stack:
        folder = _scratch(stack)
        stack.callback(remove, folder)
        yield folder


def _scratch(stack: ExitStack) -> Path:
    """Makes the folder, whose lock tells from those of killed processes, which are removed."""
    path = cache_dir() / f"{_SCRATCH}{uuid.uuid4().hex}"
    with suppress(OSError):
        if free_space(path) >= min(_ROOMY, free_space(Path(tempfile.gettempdir()))):
            path.parent.mkdir(parents=True, exist_ok=True)
            sweep(path.parent, _SCRATCH)
            stack.enter_context(claimed(path))
            folder = path.with_name(f"{path.name}.{os.getpid()}{UNFINISHED}")
            folder.mkdir()
            return folder
    with disk_errors(path):
        return Path(tempfile.mkdtemp(prefix="kuaisim-"))


def cached(key: str, build: Callable[[], Mapping[str, NDArray[np.generic]]]) -> Arrays:
    """Returns the arrays stored under ``key``, building and storing them the first time.

    Args:
        key: Name that changes whenever the content would: sources, options and code version.
        build: Builds the arrays.

    Returns:
        The arrays by name, mapped from disk and read-only where the cache can be written.
    """

    def write(arrays: Arrays, folder: Path) -> None:
        for name, array in arrays.items():
            rows = np.asarray(array, order="C")
            # Not by np.save, which does not say that a disk is full.
            with (folder / f"{name}.npy").open("wb") as file:
                header = np.lib.format.header_data_from_array_1_0(rows)
                np.lib.format.write_array_header_1_0(file, header)
                file.write(rows.reshape(-1).view(np.uint8).data)

    def read(folder: Path, files: Mapping[str, Bytes]) -> Arrays:
        return {name.removesuffix(".npy"): _array(content) for name, content in files.items()}

    return kept(key, lambda: dict(build()), write, read)


def kept(
    key: str,
    build: Callable[[], T],
    write: Callable[[T, Path], None],
    read: Callable[[Path, Mapping[str, Bytes]], T],
) -> T:
    """Returns what is stored under ``key``, building and storing it the first time.

    Args:
        key: As for :func:`cached`.
        build: Builds it.
        write: Writes it as files into an empty folder.
        read: Makes it of the folder, whose files have been checked, and their content by name,
            mapped from the files.

    Returns:
        It, as read, or as built where the cache cannot be written.
    """
    folder = cache_dir() / f"{key}{_ENTRY}"

    def stored() -> T:
        files = _proven(folder)
        try:
            return read(folder, files)
        except CheckpointError as error:
            raise Damaged(str(error)) from error

    with suppress(Damaged, FileNotFoundError):
        return stored()
    with _building(key) as writable:
        try:
            return stored()  # another process may have built it meanwhile
        except FileNotFoundError:
            pass
        except Damaged as error:
            logger.warning("Rebuilding %s, which is damaged: %s", folder, error)
            if writable:
                _remove(folder)
        built = build()
        if not writable:
            return built
        try:
            with new_folder(folder) as temporary:
                write(built, temporary)
                _write_manifest(temporary)
        except StorageError as error:
            _go_without(error)
            return built
        with suppress(Damaged, FileNotFoundError):
            return stored()
        return built


@contextmanager
def _building(key: str) -> Iterator[bool]:
    """Lets one process at a time build the entry of a key; the next ones wait.

    Yields:
        Whether the cache can be written; if not, nobody waits.
    """
    with ExitStack() as stack:
        try:
            cache_dir().mkdir(parents=True, exist_ok=True)
            # Not the entry's own lock, which is held while it is written.
            stack.enter_context(claimed(cache_dir() / f"{key}.build"))
            writable = True
        except OSError as error:
            _go_without(error)
            writable = False
        yield writable


def _go_without(error: OSError) -> None:
    """Warns, once for a folder, that it is not used."""
    if cache_dir() not in _unused:
        _unused.add(cache_dir())
        logger.warning("Going on without the cache, which KUAISIM_CACHE can place: %s", error)


def _write_manifest(folder: Path) -> None:
    """Writes down what a folder's files are."""
    files = {file.name: checksum(_mapped(file)) for file in sorted(folder.iterdir())}
    (folder / _MANIFEST).write_bytes(sealed({"format": _FORMAT, "files": files}))


def _proven(folder: Path) -> dict[str, Bytes]:
    """The content of an entry's files by name, mapped from them, after a check of all of it.

    Raises:
        FileNotFoundError: There is no such entry.
        Damaged: It is not what was written, or of another format.
    """
    if not os.path.lexists(folder):  # where no folder above may be searched, too
        raise FileNotFoundError(folder)
    try:
        manifest = unsealed((folder / _MANIFEST).read_bytes())
        if manifest["format"] != _FORMAT:
            raise Damaged(f"its format is {manifest['format']!r}, not {_FORMAT}")
        expected: dict[str, str] = manifest["files"]
        present = {file.name for file in folder.iterdir()} - {_MANIFEST}
        if different := present.symmetric_difference(expected):
            raise Damaged(f"its files and its manifest differ in {sorted(different)}")
        files = {name: _mapped(folder / name) for name in expected}
    except (OSError, ValueError, KeyError) as error:
        raise Damaged(f"{type(error).__name__}: {error}") from error
    for name, content in files.items():
        if checksum(content) != expected[name]:
            raise Damaged(f"{name} is not what was written")
    return files


def _mapped(file: Path) -> Bytes:
    """A file's bytes, mapped and read-only."""
    with file.open("rb") as content:
        mapped = mmap.mmap(content.fileno(), 0, access=mmap.ACCESS_READ)
    if hasattr(mmap, "MADV_WILLNEED"):
        mapped.madvise(mmap.MADV_WILLNEED)  # all of it is read: from a disk, ahead and in one go
    return np.frombuffer(mapped, np.uint8)  # numpy's mapped arrays make every operation slower


def _array(content: Bytes) -> NDArray[np.generic]:
    """The array in the bytes of an ``.npy`` file."""
    header = BytesIO(content[:_HEADER].tobytes())
    np.lib.format.read_magic(header)
    shape, _, dtype = np.lib.format.read_array_header_1_0(header)
    return content[header.tell() :].view(dtype).reshape(shape)


def checksum(content: Bytes) -> str:
    """32 hexadecimal digits that tell whether bytes have changed by accident.

    Rows of words are summed up with odd weights, and the sums hashed: a change within one word is
    always noticed, any other, such as a page of zeros, but for a chance of one in 10**9. That
    takes half the time of CRC-32 and a quarter of that of SHA-256; it withstands no forger.
    """
    n_rows = len(content) // (8 * _ROW)
    words = content[: 8 * n_rows * _ROW].view(np.uint64).reshape(n_rows, _ROW)
    digest = hashlib.sha256(content[8 * n_rows * _ROW :].data)
    digest.update(str(len(content)).encode())
    space = np.empty((_ROWS, _ROW), np.uint64)
    for first in range(0, n_rows, _ROWS):
        rows = words[first : first + _ROWS]
        # High bits get a say in low ones: the sum of products would forget pairs of them.
        mixed = np.right_shift(rows, np.uint64(29), out=space[: len(rows)])
        mixed ^= rows
        digest.update(np.einsum("ij,j->i", mixed, _weights()).tobytes())
    return digest.hexdigest()[:32]


@cache
def _weights() -> NDArray[np.uint64]:
    """Odd numbers without a pattern, one for each word of a row."""
    noise = hashlib.shake_256(b"weights").digest(8 * _ROW)
    return np.frombuffer(noise, "<u8").astype(np.uint64) | np.uint64(1)


def sealed(content: Mapping[str, Any]) -> bytes:
    """JSON that tells whether it has changed."""
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    return json.dumps({"content": content, "sha256": digest}).encode()


def unsealed(text: bytes) -> dict[str, Any]:
    """Reads what :func:`sealed` wrote.

    Raises:
        Damaged: The text has changed, or is another one.
    """
    try:
        content: dict[str, Any] = json.loads(text)["content"]
        if sealed(content) == text:
            return content
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise Damaged("its manifest cannot be read") from error
    raise Damaged("its manifest is not what was written")


def _remove(entry: Path) -> int:
    """Renames an entry, which hides it at once, and deletes it; returns its bytes."""
    size = _size(entry)
    doomed = entry.with_name(f"{entry.name}.{uuid.uuid4().hex}{UNFINISHED}")
    try:
        os.rename(entry, doomed)
    except OSError:
        return 0  # another process was first, or has it open where that keeps it
    if doomed.is_dir():
        shutil.rmtree(doomed, ignore_errors=True)
    else:
        doomed.unlink(missing_ok=True)
    return size


def _size(entry: Path) -> int:
    files = entry.rglob("*") if entry.is_dir() else [entry]
    return sum(file.stat().st_size for file in files if file.is_file())


def cache_info() -> list[CacheEntry]:
    """The entries of the cache, by name."""
    return [
        CacheEntry(entry.name.removesuffix(_ENTRY), _size(entry), entry.stat().st_mtime)
        for entry in _entries(cache_dir())
    ]


def _entries(root: Path) -> list[Path]:
    """The folders of entries.

    Raises:
        StorageError: The folder of the cache may not be listed.
    """
    with disk_errors(root), suppress(FileNotFoundError, NotADirectoryError):
        return sorted(root / name for name in os.listdir(root) if name.endswith(_ENTRY))
    return []


def clear_cache() -> int:
    """Removes all entries, the files of unpacked archives, and the leftovers of killed writers.

    Downloads stay. What a process is building or unpacking is left to that process.

    Returns:
        Bytes freed.
    """
    root = cache_dir()
    entries, unpacked = _entries(root), root / "unpacked"
    at_work = (".lock", UNFINISHED)
    complete = [path for path in unpacked.glob("*") if path.suffix not in at_work]
    freed = sum(map(_remove, [*entries, *complete]))
    for folder in (root, unpacked):
        locks = {lock.with_suffix("") for lock in folder.glob("*.lock")}
        begun = {file.with_suffix("").with_suffix("") for file in folder.glob(f"*.*{UNFINISHED}")}
        for path in locks | begun:
            size = sum(map(_size, unfinished(path)))
            with suppress(BusyError, StorageError), claimed(path, wait=False):  # removes these
                freed += size
    with suppress(OSError):
        unpacked.rmdir()  # unless somebody is unpacking
    for memo in (root / "digests").glob("*.json"):
        memo.unlink(missing_ok=True)
    return freed


def file_digest(file: Path) -> str:
    """32 hexadecimal digits that identify a file's content.

    The digest is stored with the file's size and time of change, so that gigabytes are read
    once only; a file that has just changed is always read.
    """
    status = file.stat()
    address = hashlib.blake2b(str(file.resolve()).encode(), digest_size=16).hexdigest()
    memo = cache_dir() / "digests" / f"{address}.json"
    version = {"size": status.st_size, "mtime_ns": status.st_mtime_ns, "inode": status.st_ino}
    with suppress(OSError, Damaged):  # not remembered, or not legibly
        remembered = unsealed(memo.read_bytes())
        digest = str(remembered.pop("digest", ""))
        if remembered == version:
            return digest
    with file.open("rb") as content:
        # Processors have instructions for it: twice as fast as any other that cannot be forged.
        digest = hashlib.file_digest(content, "sha256").hexdigest()[:32]
    if time.time() - status.st_mtime > _SETTLED:
        try:
            write_atomically(memo, sealed(version | {"digest": digest}))
        except OSError as error:
            _go_without(error)
    return digest
