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
import re
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
    system = next((words for words in map(os.strerror, _FULL) if words in reason), None)
    free, number = free_space(path), getattr(error, "errno", None)
    is_untold = number is None and free < (needed or _NEARLY_FULL)
    if system or number in _FULL or is_untold:
        reason = system or reason  # libraries surround the system's words by many others
        size = "" if needed is None else f" of about {readable_size(needed)}"
        return DiskSpaceError(
            f"{path}{size} cannot be written ({reason}); {readable_size(free)} are free. Free the "
            "disk or choose a folder on another one."
        )
    return StorageError(
        f"{path} cannot be written ({reason}). Choose another place, or make this one writable."
    )


@contextmanager
def claimed(path: Path, *, wait: bool = True) -> Iterator[None]:
    """Lets one process, and one thread of it, at a time do the work of this block for a path.

    What dead holders left of it under temporary names is removed first.

    Args:
        path: What the block makes; its folder is made.
        wait: Waits for another holder.

    Raises:
        BusyError: There is another holder, and it is not waited for.
        StorageError: The folder cannot be written.
    """
    lock = FileLock(path.with_name(f"{path.name}.lock"))
    with disk_errors(path):
        with suppress(PermissionError):  # of a file that is there and another user's
            # A place that takes no files, such as /proc, would be waited for, without an end.
            path.parent.mkdir(parents=True, exist_ok=True)  # which somebody may just have removed
            Path(lock.lock_file).touch(0o644)
        try:
            lock.acquire(blocking=wait)
        except Timeout as error:
            raise BusyError(f"Another process is making {path}. Wait for it, or end it.") from error
    try:
        for leftover in unfinished(path):
            remove(leftover)
        yield
    finally:
        with suppress(OSError):  # an open file can be removed on some systems only
            os.unlink(lock.lock_file)  # before the release: whoever waits makes it anew
        lock.release()


def unfinished(path: Path) -> list[Path]:
    """Files and folders under temporary names, of which a path is being made, or was.

    Those of other paths that begin like it, as ``run.json`` begins like ``run``, are not meant.
    """
    name = re.compile(rf"{re.escape(path.name)}\.[^.]+{re.escape(UNFINISHED)}")
    candidates = path.parent.glob(f"{glob.escape(path.name)}.*{UNFINISHED}")
    return [file for file in candidates if name.fullmatch(file.name)]


def sweep(folder: Path, beginning: str) -> None:
    """Removes what dead holders left of paths in a folder whose names have a beginning."""
    for lock in folder.glob(f"{glob.escape(beginning)}*.lock"):
        with suppress(BusyError, StorageError), claimed(lock.with_suffix(""), wait=False):
            pass


@contextmanager
def new_file(path: Path, needed: int | None = None) -> Iterator[Path]:
    """A temporary path for a file's content; it gets the file's name when the block succeeds.

    Args:
        path: The file; its folder is made, and the old file replaced. What a link leads to is
            written, as ``open`` does.
        needed: Bytes that will be written, for the message of a full disk.

    Yields:
        The path to write to.

    Raises:
        DiskSpaceError: The disk is full.
        StorageError: It cannot be written for another reason, or is a device or a pipe, which a
            file must not replace.
    """
    path = Path(os.path.realpath(path))
    if os.path.exists(path) and not (os.path.isfile(path) or os.path.isdir(path)):
        raise storage_error(path, OSError("it is no regular file"))
    with _unfinished(path, needed, path) as temporary:
        yield temporary
        flush(temporary)
        os.replace(temporary, path)


@contextmanager
def new_folder(
    path: Path, needed: int | None = None, *, aside: Path | None = None
) -> Iterator[Path]:
    """A temporary folder to fill; it gets its name when the block succeeds.

    Args:
        path: The folder, which must be absent or empty then.
        needed: Bytes that will be written, for the message of a full disk.
        aside: What its temporary name, and its lock, begin with where they cannot lie next to
            ``path``; of the same disk. The block itself makes the folder of ``path`` then.

    Yields:
        The folder to fill.

    Raises:
        DiskSpaceError: The disk is full.
        StorageError: It cannot be written for another reason.
    """
    with _unfinished(path, needed, aside or path) as temporary:
        temporary.mkdir()
        yield temporary
        flush(temporary)
        with suppress(OSError):
            path.rmdir()  # not every system renames onto an empty folder
        os.rename(temporary, path)


@contextmanager
def _unfinished(path: Path, needed: int | None, aside: Path) -> Iterator[Path]:
    temporary = aside.with_name(f"{aside.name}.{uuid.uuid4().hex}{UNFINISHED}")
    with disk_errors(path, needed):
        aside.parent.mkdir(parents=True, exist_ok=True)
        with claimed(aside):
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


def check_writable(path: Path) -> None:
    """Checks that a place can be written, before the work whose result it is to hold.

    Args:
        path: A folder to write into, or a file to write; it may be there already.

    Raises:
        DiskSpaceError: The disk is full.
        StorageError: The folder, or the next one above it that is there, cannot be written.
    """
    folder = path if os.path.isdir(path) else _nearest(path.absolute().parent)
    reason = None
    if not folder.is_dir():
        reason = errno.ENOTDIR
    elif not os.access(folder, os.W_OK | os.X_OK):
        reason = errno.EACCES
    elif free_space(folder) < _NEARLY_FULL:
        reason = errno.ENOSPC
    if reason is not None:
        raise storage_error(path, OSError(reason, os.strerror(reason)))


def free_space(path: Path) -> int:
    """Bytes that are free where a path is, or will be."""
    return shutil.disk_usage(_nearest(path)).free


def _nearest(path: Path) -> Path:
    """A path, or the next one above it that is there, as far as can be seen."""
    parents = (path, *path.absolute().parents)
    return next(parent for parent in parents if os.path.exists(parent))  # Path's would raise


def readable_size(n_bytes: int) -> str:
    """A number of bytes as people write it, such as 1.7 GB."""
    size, unit = float(n_bytes), "B"
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if size < 999.95 or unit == "TB":
            break
        size /= 1000
    return f"{n_bytes} B" if unit == "B" else f"{size:.1f} {unit}"
