"""Writing on disks: completely or not at all, once at a time, with errors that say what to do.

A file or folder is made under a temporary name next to its own, flushed to the disk and renamed:
whoever reads sees all of it or nothing, after a power cut, too. A lock lets one writer at a time
make it. The system frees the lock of a process that dies, and the next writer removes what that
process left.
"""

from __future__ import annotations

import errno
import glob
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from kuaisim_gym.errors import BusyError, DiskSpaceError, KuaiSimError, StorageError

UNFINISHED = ".part"  # ending of a file or folder that is being written, or is being removed
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NEARLY_FULL = 1 << 16  # free bytes of a disk that is full for a library which does not say so


@contextmanager
def disk_errors(path: Path, needed: int | None = None) -> Iterator[None]:
    """Turns what a disk refuses in this block into errors of this project.

    Args:
        path: What is written, for the message.
        needed: Its bytes, where they are known.

    Raises:
        DiskSpaceError: The disk, or the user's share of it, is full.
        StorageError: The place cannot be written for another reason.
    """
    try:
        yield
    except KuaiSimError:
        raise
    except OSError as error:
        raise storage_error(path, error, needed) from error


def storage_error(path: Path, error: BaseException, needed: int | None = None) -> StorageError:
    """Builds the error for a file or folder that could not be written.

    Args:
        path: What was written.
        error: What the system, or a library, said.
        needed: Its bytes, where they are known.
    """
    reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    free = free_space(path)
    if getattr(error, "errno", None) in _FULL or free < (needed or _NEARLY_FULL):
        size = "" if needed is None else f" of about {readable_size(needed)}"
        return DiskSpaceError(
            f"{path}{size} cannot be written ({reason}); {readable_size(free)} are free. Free the "
            "disk or choose a folder on another one. Nothing of it was left."
        )
    return StorageError(
        f"{path} cannot be written ({reason}). Choose another place, or make this one writable. "
        "Nothing of it was left."
    )


@contextmanager
def claimed(path: Path, *, wait: bool = True) -> Iterator[None]:
    """Lets one process, and one thread of it, at a time do the work of this block for a path.

    What dead holders left of it under temporary names is removed first.

    Args:
        path: What the block makes; its folder must exist.
        wait: Waits for another holder.

    Raises:
        BusyError: There is another holder, and it is not waited for.
        StorageError: The folder cannot be written.
    """
    lock = FileLock(path.with_name(f"{path.name}.lock"))
    with disk_errors(path):
        try:
            lock.acquire(blocking=wait)
        except Timeout as error:
            raise BusyError(f"Another process is making {path}. Wait for it, or end it.") from error
    try:
        for leftover in path.parent.glob(f"{glob.escape(path.name)}.*{UNFINISHED}"):
            remove(leftover)
        yield
    finally:
        with suppress(OSError):  # an open file can be removed on some systems only
            os.unlink(lock.lock_file)  # before the release: whoever waits makes it anew
        lock.release()


@contextmanager
def new_file(path: Path, needed: int | None = None) -> Iterator[Path]:
    """A temporary path for a file's content; it gets the file's name when the block succeeds.

    Args:
        path: The file; its folder is made, and the old file replaced.
        needed: Bytes that will be written, for the message of a full disk.

    Yields:
        The path to write to.

    Raises:
        DiskSpaceError: The disk is full.
        StorageError: It cannot be written for another reason.
    """
    with _unfinished(path, needed) as temporary:
        yield temporary
        flush(temporary)
        os.replace(temporary, path)


@contextmanager
def new_folder(path: Path, needed: int | None = None) -> Iterator[Path]:
    """A temporary folder to fill; it gets its name when the block succeeds.

    Args:
        path: The folder, which must be absent or empty then.
        needed: Bytes that will be written, for the message of a full disk.

    Yields:
        The folder to fill.

    Raises:
        DiskSpaceError: The disk is full.
        StorageError: It cannot be written for another reason.
    """
    with _unfinished(path, needed) as temporary:
        temporary.mkdir()
        yield temporary
        flush(temporary)
        with suppress(OSError):
            path.rmdir()  # not every system renames onto an empty folder
        os.rename(temporary, path)


@contextmanager
def _unfinished(path: Path, needed: int | None) -> Iterator[Path]:
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}{UNFINISHED}")
    with disk_errors(path, needed):
        path.parent.mkdir(parents=True, exist_ok=True)
        with claimed(path):
            try:
                yield temporary
                flush(path.parent, inside=False)
            finally:
                remove(temporary)


def write_atomically(path: Path, content: bytes) -> None:
    """Writes a file under a temporary name and renames it: readers see all of it or nothing.

    Raises:
        DiskSpaceError: The disk is full.
        StorageError: It cannot be written for another reason.
    """
    with new_file(path, len(content)) as temporary:
        temporary.write_bytes(content)


def flush(path: Path, *, inside: bool = True) -> None:
    """Waits until a file, or a folder with all that is in it, is on the disk.

    Args:
        path: The file or folder.
        inside: For a folder, its content, too, and not its list of names alone.
    """
    if path.is_dir():
        for child in path.iterdir() if inside else ():
            flush(child)
        if os.name == "nt":
            return  # Windows opens no folders
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove(path: Path) -> None:
    """Removes a file or folder, if it is there; what cannot be removed is left."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
        return
    with suppress(OSError):
        path.unlink(missing_ok=True)


def check_free_space(folder: Path, needed: int) -> None:
    """Checks that a folder's disk has room.

    Args:
        folder: The folder; may be yet to be made.
        needed: Bytes that are to be written.

    Raises:
        DiskSpaceError: Fewer bytes are free.
    """
    if needed > (free := free_space(folder)):
        raise DiskSpaceError(
            f"About {readable_size(needed)} are needed at {folder}, but only {readable_size(free)} "
            f"are free. Free the disk or choose a folder on another one."
        )


def free_space(path: Path) -> int:
    """Bytes that are free where a path is, or will be."""
    parents = (path, *path.absolute().parents)
    return shutil.disk_usage(next(parent for parent in parents if parent.exists())).free


def readable_size(n_bytes: int) -> str:
    """A number of bytes as people write it, such as 1.7 GB."""
    size, unit = float(n_bytes), "B"
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if size < 999.95 or unit == "TB":
            break
        size /= 1000
    return f"{n_bytes} B" if unit == "B" else f"{size:.1f} {unit}"
