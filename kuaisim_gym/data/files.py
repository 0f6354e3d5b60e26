"""Finds the files of a dataset in a downloaded archive, its unpacked folder, or the data folder.

A table ``NAME`` is the file ``NAME.csv``, or its parts ``NAME_part1.csv``, ``NAME_part2.csv``, ...;
any of them may be compressed, as ``NAME.csv.gz``.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePath, PurePosixPath

from kuaisim_gym.data.archive import ENDINGS, extract
from kuaisim_gym.data.cache import Damaged, cache_dir, file_digest, sealed, unsealed
from kuaisim_gym.disk import claimed, remove, write_atomically
from kuaisim_gym.errors import DataFormatError, DatasetNotFoundError, KuaiSimError

_NUMBERED = re.compile(r"(?P<table>.+)_part(?P<number>[1-9][0-9]*)")
_DEPTH = 3  # folders between the path and the files

logger = logging.getLogger(__name__)


class IncompleteFilesError(DatasetNotFoundError):
    """Some required files of a dataset are there, and some are not."""


@dataclass(frozen=True)
class Layout:
    """The files that one variant of a dataset is published in.

    Attributes:
        name: Its name in messages.
        required: Tables that must be there.
        optional: Tables that may be.
        n_files: Number of files of the tables that are published in several.
    """

    name: str
    required: tuple[str, ...]
    optional: tuple[str, ...] = ()
    n_files: Mapping[str, int] = field(default_factory=dict)

    @property
    def tables(self) -> tuple[str, ...]:
        """Required and optional tables."""
        return self.required + self.optional


@dataclass(frozen=True)
class DataFiles:
    """The files of one variant of a dataset.

    Attributes:
        folder: The folder that holds them.
        layout: The variant.
        tables: By table its parts, in order.
    """

    folder: Path
    layout: Layout
    tables: Mapping[str, tuple[Path, ...]]

    @property
    def digest(self) -> str:
        """32 hexadecimal digits that identify the names and contents of all files."""
        digest = hashlib.blake2b(digest_size=16)
        for file in sorted(file for paths in self.tables.values() for file in paths):
            digest.update(f"{file.name}={digest_of_file(file)};".encode())
        return digest.hexdigest()

    @property
    def unread(self) -> list[Path]:
        """Files called as optional tables that are not there, of forms that are not read."""
        absent = {table.casefold() for table in self.layout.optional if table not in self.tables}
        return [
            file
            for file in sorted(self.folder.iterdir())
            if file.name.partition(".")[0].casefold() in absent
        ]


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Names a file or folder that the system does not let read.

    Raises:
        DatasetNotFoundError: It is gone.
        KuaiSimError: It cannot be read.
    """
    try:
        yield
    except KuaiSimError:
        raise
    except FileNotFoundError as error:
        raise DatasetNotFoundError(
            f"{path} was there and is gone ({error}). Load the data when nothing moves them."
        ) from error
    except (OSError, UnicodeEncodeError) as error:  # the latter of names that are no text
        raise KuaiSimError(
            f"{path} cannot be read ({error}). Check its name, its permissions and its disk."
        ) from error


def digest_of_file(file: Path) -> str:
    """32 hexadecimal digits that identify a file's content.

    Raises:
        KuaiSimError: It cannot be read.
    """
    with reading(file):
        return file_digest(file)


def check_unchanged(before: str | None, after: str | None, where: Path | str) -> None:
    """Checks that files are those whose digest was taken before they were read.

    Raises:
        DataFormatError: They are others, and what was read may be of both.
    """
    if before != after:
        raise DataFormatError(
            f"{where} changed while it was read. Load it again when nothing writes to it."
        )


def find_files(path: str | Path, layouts: Sequence[Layout]) -> DataFiles:
    """Finds the files of a dataset.

    Args:
        path: The archive as downloaded, which is unpacked once into the cache; the folder that it
            was unpacked to; or the folder in it that holds the files.
        layouts: The variants to look for.

    Returns:
        The files of the only variant. If ``path`` itself holds one, its subfolders are ignored.

    Raises:
        DatasetNotFoundError: Nothing is there, or a required table or a part of one is missing.
        DataFormatError: Several folders hold the files, one folder holds several variants, a
            table is there twice, whole and in parts or compressed and not, or is no file.
        KuaiSimError: The path cannot be read.
    """
    with reading(Path(path)):
        return _only_variant(Path(path), layouts)


def _only_variant(top: Path, layouts: Sequence[Layout]) -> DataFiles:
    """The files of the only variant."""
    path = top
    expected = " or ".join(f"{layout.name} ({', '.join(layout.required)})" for layout in layouts)
    if not top.exists():
        raise DatasetNotFoundError(
            f"Expected the files of {expected} as .csv, but {top} is not there. Give the archive "
            f"as downloaded, or the folder that it was unpacked to; None is a synthetic world."
        )
    if not top.is_dir():
        if not top.is_file() or not top.name.lower().endswith(ENDINGS):
            raise DatasetNotFoundError(
                f"Expected a folder or an archive ({', '.join(ENDINGS)}) with the files of "
                f"{expected}, but {top} is a file of another kind."
            )
        top = _unpacked(top, layouts)
    candidates: list[DataFiles] = []
    incomplete: list[str] = []
    for folder, entries in _folders(top):
        stems = _stems(entries)
        for layout in layouts:
            absent = [table for table in layout.required if table not in stems]
            present = [table for table in layout.tables if table in stems]
            if present and not absent:
                tables = {table: _paths(folder, table, stems[table], layout) for table in present}
                candidates.append(DataFiles(folder, layout, tables))
            elif len(absent) < len(layout.required):
                incomplete.append(" and ".join(str(folder / f"{table}.csv") for table in absent))
        if candidates and folder == top:
            break
    if len(candidates) > 1:
        listed = "; ".join(f"{files.layout.name} in {files.folder}" for files in candidates)
        raise DataFormatError(
            f"Expected the files of one dataset under {path}, found {listed}. Give the folder that "
            f"holds only those that are meant."
        )
    if incomplete and not candidates:
        raise IncompleteFilesError(
            f"{'; '.join(incomplete)} is missing. Looked for the files of {expected}."
        )
    if not candidates:
        raise DatasetNotFoundError(
            f"Looked in {path}, and {_DEPTH} folders deep, for the files of {expected} as .csv, "
            f"and found none. Give the archive as downloaded, or the folder that it was unpacked "
            f"to."
        )
    return candidates[0]


def _folders(top: Path) -> Iterator[tuple[Path, list[Path]]]:
    """The folder and those in it, by depth and name, each once, with what they hold."""
    level, visited = [top], set()
    for _ in range(_DEPTH + 1):
        inner: list[Path] = []
        for folder in level:
            try:
                target, entries = folder.resolve(), sorted(folder.iterdir())
                folders = [entry for entry in entries if entry.is_dir()]
            except OSError as error:
                if folder == top:
                    raise
                logger.warning("%s is not looked into: %s", folder, error)
                continue
            if target not in visited:  # links may lead here again
                visited.add(target)
                yield folder, entries
                inner += folders
        level = sorted(inner)


def _stems(entries: Sequence[Path]) -> dict[str, dict[int, list[Path]]]:
    """Files by table and part number; number 0 is a complete table."""
    tables: dict[str, dict[int, list[Path]]] = {}
    for file in entries:
        table, number = _table(file)
        if table:
            tables.setdefault(table, {}).setdefault(number, []).append(file)
    return tables


def only_file(files: Sequence[Path]) -> Path:
    """The only one of the files that could be a table, or a part of it.

    Raises:
        DataFormatError: There are several, or it is a folder, a link that leads nowhere or a
            device.
    """
    if len(files) > 1:
        names = " and ".join(file.name for file in files)
        raise DataFormatError(f"{files[0].parent} holds {names}. Remove one of them.")
    file = files[0]
    if not file.is_file():
        kind = (
            "a folder" if file.is_dir() else "no regular file" if file.exists() else "a dead link"
        )
        raise DataFormatError(f"{file} is {kind}; expected a file. Put it there, or remove this.")
    return file


def _table(file: PurePath) -> tuple[str, int]:
    """The table and part number of a file; no name for a file of another kind."""
    stem = PurePath(file.name.removesuffix(".gz"))
    match = _NUMBERED.fullmatch(stem.stem)
    name, number = (match["table"], int(match["number"])) if match else (stem.stem, 0)
    return name if stem.suffix.lower() == ".csv" else "", number


def _paths(
    folder: Path, table: str, parts: Mapping[int, Sequence[Path]], layout: Layout
) -> tuple[Path, ...]:
    files = {number: only_file(paths) for number, paths in parts.items()}
    if 0 in files:
        if len(files) > 1:
            raise DataFormatError(
                f"{folder} holds {table} both whole and in parts: "
                f"{[file.name for file in files.values()]}. Remove the one that is not meant."
            )
        return (files[0],)
    count = max(len(files), *files, layout.n_files.get(table, 1))
    for number in range(1, count + 1):
        if number not in files:
            raise DatasetNotFoundError(
                f"{folder / f'{table}_part{number}.csv'} is missing; found only "
                f"{[file.name for file in files.values()]}."
            )
    return tuple(files[number] for number in range(1, count + 1))


def _unpacked(archive: Path, layouts: Sequence[Layout]) -> Path:
    """The folder in the cache that an archive's tables are unpacked to; done once."""
    tables = sorted({table for layout in layouts for table in layout.tables})
    choice = hashlib.blake2b("|".join(tables).encode(), digest_size=4).hexdigest()
    root = cache_dir() / "unpacked"
    folder = root / f"{file_digest(archive)}-{choice}"
    if _is_proven(folder):
        return folder
    with ExitStack() as stack:
        try:
            root.mkdir(parents=True, exist_ok=True)
            stack.enter_context(claimed(root / f"{folder.name}.build"))
        except OSError as error:
            raise KuaiSimError(
                f"{archive} must be unpacked, but the cache folder {root} cannot be written "
                f"({error}). Unpack it by hand and give the folder, or set KUAISIM_CACHE."
            ) from error
        if not _is_proven(folder):  # another process may have unpacked it meanwhile
            if folder.exists():
                logger.warning("Unpacking %s again: %s is damaged.", archive, folder)
                remove(folder)
            extract(archive, folder, lambda name: _table(PurePosixPath(name))[0] in tables)
            write_atomically(_manifest(folder), sealed(_digests(folder)))
    return folder


def _is_proven(folder: Path) -> bool:
    """Tells whether an unpacked folder holds the files that its manifest names, unchanged."""
    try:
        return unsealed(_manifest(folder).read_bytes()) == _digests(folder)
    except (OSError, Damaged):
        return False


def _manifest(folder: Path) -> Path:
    """Beside a folder that is searched for tables."""
    return folder.with_name(f"{folder.name}.json")


def _digests(folder: Path) -> dict[str, str]:
    """Digests of a folder's files, by their path in it."""
    files = sorted(file for file in folder.rglob("*") if not file.is_dir())
    return {file.relative_to(folder).as_posix(): file_digest(file) for file in files}
