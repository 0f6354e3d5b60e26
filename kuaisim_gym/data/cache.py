"""Cache of arrays on disk: entries are written completely or not at all, and memory-mapped.

An entry is a folder of ``.npy`` files, filled under a temporary name and renamed, so that readers
see all of it or nothing; a lock lets one process build while others wait. The folder of entries is
``$KUAISIM_CACHE`` or the platform's cache folder for this package.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray
from platformdirs import user_cache_dir

from kuaisim_gym.disk import UNFINISHED, write_atomically

Arrays = dict[str, NDArray[np.generic]]

_ENTRY = ".arrays"  # ending of an entry's folder
_SETTLED = 2.0  # seconds after which a file's time of change tells a further change
_ABANDONED = 86_400.0  # seconds after which nobody works in a scratch folder any more

logger = logging.getLogger(__name__)


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
    """An empty folder until the block ends, in the cache or else in the system's folder."""
    folder = cache_dir() / f"scratch-{os.getpid()}-{uuid.uuid4().hex}{UNFINISHED}"
    try:
        folder.mkdir(parents=True)
    except OSError:
        folder = Path(tempfile.mkdtemp(prefix="kuaisim-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def cached(key: str, build: Callable[[], Mapping[str, NDArray[np.generic]]]) -> Arrays:
    """Returns the arrays stored under ``key``, building and storing them the first time.

    Args:
        key: Name that changes whenever the content would: sources, options and code version.
        build: Builds the arrays.

    Returns:
        The arrays by name, mapped from disk and read-only where the cache can be written.
    """
    folder = cache_dir() / f"{key}{_ENTRY}"
    arrays = _read(folder)
    if arrays is not None:
        return arrays
    with locked(key) as writable:
        arrays = _read(folder)  # another process may have built it meanwhile
        if arrays is not None:
            return arrays
        built = dict(build())
        if not writable:
            return built
        try:
            _write(folder, built)
        except OSError as error:
            logger.warning("Going on without the cache: %s cannot be written: %s", folder, error)
            return built
        return _read(folder) or built


@contextmanager
def locked(key: str) -> Iterator[bool]:
    """Lets one process at a time build the entry of a key; the next ones wait.

    Yields:
        Whether the cache can be written; if not, nobody waits.
    """
    lock = FileLock(cache_dir() / f"{key}.lock")
    try:
        cache_dir().mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except OSError as error:
        logger.warning("Going on without the cache: %s cannot be written: %s", cache_dir(), error)
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


def _write(folder: Path, arrays: Arrays) -> None:
    """Writes one entry.

    The caller must hold the lock; a leftover temporary folder belongs to a process that died.
    """
    for leftover in folder.parent.glob(f"{folder.name}.*{UNFINISHED}"):
        shutil.rmtree(leftover, ignore_errors=True)
    temporary = folder.with_name(f"{folder.name}.{uuid.uuid4().hex}{UNFINISHED}")
    temporary.mkdir()
    try:
        for name, array in arrays.items():
            np.save(temporary / f"{name}.npy", np.asarray(array, order="C"), allow_pickle=False)
        os.rename(temporary, folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _read(folder: Path) -> Arrays | None:
    """The entry's arrays; ``None`` if it is absent or damaged, in which case it is removed."""
    if not folder.is_dir():
        return None
    try:
        return {file.stem: _map(file) for file in sorted(folder.glob("*.npy"))}
    except (OSError, ValueError) as error:
        logger.warning("Rebuilding %s, which cannot be read: %s", folder, error)
        _remove(folder)
        return None


def _map(file: Path) -> NDArray[np.generic]:
    """One array; numbers and empty arrays cannot be mapped and are read."""
    array: NDArray[np.generic] = np.load(file, mmap_mode="r", allow_pickle=False)
    if array.ndim and array.size:
        return np.asarray(array)  # a plain view: the mapped subclass makes every operation slower
    return np.array(array)


def _remove(entry: Path) -> int:
    """Renames an entry, which hides it at once, and deletes it; returns its bytes."""
    size = _size(entry)
    doomed = entry.with_name(f"{entry.name}.{uuid.uuid4().hex}{UNFINISHED}")
    try:
        os.rename(entry, doomed)
    except FileNotFoundError:
        return 0  # another process was first
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
    """Folders of arrays, and files of models in other formats."""
    return sorted([*root.glob(f"*{_ENTRY}"), *root.glob("*.safetensors")])


def clear_cache() -> int:
    """Removes all entries, the files of unpacked archives, and the leftovers of killed writers.

    Downloads stay. An entry that a process is building is left to that process.

    Returns:
        Bytes freed.
    """
    root = cache_dir()
    doomed = [*_entries(root), *root.glob("unpacked")]
    doomed += [
        folder
        for folder in root.glob(f"scratch-*{UNFINISHED}")
        if time.time() - folder.stat().st_mtime > _ABANDONED
    ]
    freed = sum(map(_remove, doomed))
    for lock_file in root.glob("*.lock"):
        try:
            with FileLock(lock_file).acquire(timeout=0):
                key = lock_file.name.removesuffix(".lock")
                freed += sum(map(_remove, sorted(root.glob(f"{key}{_ENTRY}.*{UNFINISHED}"))))
        except Timeout:
            continue
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
    try:
        remembered = json.loads(memo.read_text(encoding="utf-8"))
        if {name: remembered[name] for name in version} == version:
            return str(remembered["digest"])
    except (OSError, ValueError, KeyError, TypeError):
        pass  # not remembered, or not legibly
    with file.open("rb") as content:
        # Processors have instructions for it: twice as fast as any other that cannot be forged.
        digest = hashlib.file_digest(content, "sha256").hexdigest()[:32]
    if time.time() - status.st_mtime > _SETTLED:
        try:
            write_atomically(memo, json.dumps(version | {"digest": digest}).encode())
        except OSError as error:
            logger.warning("The digest of %s is not remembered: %s", file, error)
    return digest
