"""Full and read-only disks under everything that writes.

A try holds if the work is whole, or ends with an error of ours (a command: with one line of it)
that names the place, leaves what was there as it was and nothing half, and is done when it is
repeated on a disk with room.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import stat
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from tests.attack.counts import Counts
from tests.attack.forks import Ending, contents, in_child
from tests.attack.writers import (
    WRITERS,
    Writer,
    control,
    difference,
    home,
    repeated,
    timeless,
)

SIZE = 1 << 27  # bytes of the disk
NEARLY_FULL = 1 << 16  # bytes from which on work begins
FILLER = "filler"
OURS = re.compile(r"^(?:kuaisim_gym\.errors\.(?:DiskSpaceError|StorageError)|error): .*/", re.M)


class Disk:
    """A place that can be filled up and made read-only.

    Attributes:
        root: Its folder.
        mounted: Whether it is a disk of its own; otherwise its files are limited in size instead.
    """

    def __init__(self, root: Path, mounted: bool) -> None:
        self.root, self.mounted = root, mounted

    def fill(self, room: int) -> None:
        """Leaves some bytes free."""
        with contextlib.suppress(OSError), (self.root / FILLER).open("wb", buffering=0) as file:
            while True:
                file.write(bytes(1 << 20))
        if room:
            os.truncate(self.root / FILLER, max(0, (self.root / FILLER).stat().st_size - room))

    @contextlib.contextmanager
    def read_only(self) -> Iterator[None]:
        """Refuses all writing in the block."""
        if self.mounted:
            _mount("-o", "remount,ro", str(self.root))
        folders = [path for path in (self.root, *self.root.rglob("*")) if path.is_dir()]
        modes = {path: stat.S_IMODE(path.stat().st_mode) for path in folders}
        if not self.mounted:
            for path in folders:
                path.chmod(0o555)
        try:
            yield
        finally:
            if self.mounted:
                _mount("-o", "remount,rw", str(self.root))
            else:
                for path, mode in modes.items():
                    path.chmod(mode)


def _mount(*words: str) -> bool:
    if shutil.which("mount") is None:
        return False
    return subprocess.run(["mount", *words], capture_output=True, check=False).returncode == 0


@contextlib.contextmanager
def disk() -> Iterator[Disk]:
    """A small disk of its own where one may be mounted, or else a folder."""
    with TemporaryDirectory(dir=home()) as folder:
        mounted = _mount("-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", folder)
        try:
            yield Disk(Path(folder), mounted)
        finally:
            if mounted:
                subprocess.run(["umount", "--lazy", folder], check=True)


def full_disks(n: int, seed: int, names: Sequence[str] = tuple(WRITERS)) -> Counts:
    """Writes n times on a disk with no room, or with less than is needed.

    Args:
        n: Number of tries, each writer in turn.
        seed: Of the room that is left; an even one begins with none.
        names: The writers.
    """
    rng, counts = np.random.default_rng(seed), Counts()
    for number in range(n):
        name = names[number % len(names)]
        before, after = control(WRITERS[name])
        largest = max(len(content) for file, content in after.items() if file not in before)
        # Every other has no room at all, and is told so before any work.
        room = int(rng.integers(NEARLY_FULL, NEARLY_FULL + largest))
        room *= (seed + number // len(names)) % 2
        with disk() as place:
            if not place.mounted and not WRITERS[name].limited:
                continue
            fault = _on_full_disk(WRITERS[name], place, room, largest)
        counts.note(fault and f"{name}, full disk with {room} bytes free: {fault}")
    return counts


def _on_full_disk(writer: Writer, place: Disk, room: int, largest: int) -> str | None:
    """What is wrong with work on a full disk and its repetition, if anything is."""
    folder = place.root / "work"
    writer.prepare(folder)
    if place.mounted:
        place.fill(room)
    limit = None if place.mounted else min(room, largest - 1)
    ending = in_child(lambda: writer.write(folder), file_size=limit)
    fault = _fault(writer, ending, folder)
    (place.root / FILLER).unlink(missing_ok=True)
    return fault or repeated(writer, folder)


def read_only(n: int, seed: int, names: Sequence[str] = tuple(WRITERS)) -> Counts:
    """Writes n times where nothing can be written; none where the superuser has no disk for it.

    Args:
        n: Number of tries, each writer in turn.
        seed: Chance has no part in it.
        names: The writers.
    """
    counts = Counts()
    for number in range(n):
        name = names[number % len(names)]
        control(WRITERS[name])
        with disk() as place:
            if not place.mounted and os.geteuid() == 0:
                print("read-only: skipped, for nothing is read-only for the superuser.")
                return counts
            fault = _on_read_only_disk(WRITERS[name], place)
        counts.note(fault and f"{name}, read-only: {fault}")
    return counts


def _on_read_only_disk(writer: Writer, place: Disk) -> str | None:
    """What is wrong with work on a read-only disk and its repetition, if anything is."""
    folder = place.root / "work"
    writer.prepare(folder)
    with place.read_only():
        ending = in_child(lambda: writer.write(folder))
        fault = _fault(writer, ending, folder)
    if ending.status == 0 and not writer.optional:
        fault = "it says that it has written"
    return fault or repeated(writer, folder)


def _fault(writer: Writer, ending: Ending, folder: Path) -> str | None:
    """What is wrong with the end of work on a disk without room."""
    if ending.status == 0 and not writer.optional:
        return difference(writer, folder)
    if ending.status != 0:
        if not OURS.search(ending.text):
            return f"status {ending.status}, and no error of ours: {ending.text[-1500:]}"
        last = ending.text.splitlines()[-1]
        if "error: " in last and ("Traceback" in ending.text or ending.status != 2):
            return f"status {ending.status}, and more than a line: {ending.text[-1500:]}"
    before, after = control(writer)
    left = contents(folder)
    strange = {timeless(file) for file in left} - {timeless(file) for file in after}
    if strange:
        return f"{sorted(strange)} is left, after: {ending.text[-300:]}"
    changed = [file for file in before if left.get(file) not in (before[file], after[file])]
    return f"{changed} changed" if changed else None
