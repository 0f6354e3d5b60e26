"""Sources of datasets, one class for each dataset.

A class with a ``name`` registers itself when its module is imported, and ``load_dataset``, the
environments, ``write_csv`` and the commands then know it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from kuaisim_gym.config import check_choice, check_whole
from kuaisim_gym.data.cache import cached
from kuaisim_gym.data.dataset import Dataset
from kuaisim_gym.data.files import DataFiles, IncompleteFilesError, check_unchanged
from kuaisim_gym.data.storage import from_arrays, to_arrays
from kuaisim_gym.errors import ConfigError, DatasetNotFoundError, KuaiSimError
from kuaisim_gym.registry import register

ZENODO = "https://zenodo.org/records"
DATA_VERSION = 3  # raise when the same files or seeds would give other arrays

NOT_READ = "only .csv and .csv.gz are read"

logger = logging.getLogger(__name__)

Writer = Callable[[Path], None]  # writes one file


@dataclass(frozen=True)
class PublishedArchive:
    """One archive as its authors publish it on Zenodo.

    Attributes:
        name: Its name for ``download``.
        dataset: Name of its source.
        record: Number of its Zenodo record.
        file: Its file's name there.
        md5: Its published checksum; ``None`` where there is none.
        archive_bytes: Its size, approximately: it serves to refuse a disk that is too small.
        unpacked_bytes: The size of its files, approximately.
    """

    name: str
    dataset: str
    record: int
    file: str
    md5: str | None
    archive_bytes: int
    unpacked_bytes: int

    @property
    def folder(self) -> str:
        """Name of the folder that it is unpacked to."""
        return self.file.removesuffix(".zip").removesuffix(".tar.gz")

    def url(self, base_url: str = ZENODO) -> str:
        """Its address, on Zenodo or on a mirror with the same paths."""
        return f"{base_url}/{self.record}/files/{self.file}?download=1"


class Source:
    """A dataset's published files and its synthetic world.

    A subclass sets ``name`` and overrides the methods that apply to its dataset; the rest refuse,
    and name the sources that have them. Heavy libraries are imported where they are used, so
    that importing a source is cheap.

    Attributes:
        name: The name that ``load_dataset`` takes.
        version: Number in the names of cache entries. Raise it when the same files or seeds would
            give other arrays.
        archives: The archives that the dataset is published in.
        published: Users, items and interactions as the paper's Table 1 prints them, by split.
        options: Names of the arguments that ``load_dataset`` passes to it.
        plays_any: Whether environments of it play the datasets of all sources.
    """

    name: ClassVar[str]
    version: ClassVar[int] = DATA_VERSION
    archives: ClassVar[tuple[PublishedArchive, ...]] = ()
    published: ClassVar[Mapping[str, tuple[str, str, str]]] = {}
    options: ClassVar[tuple[str, ...]] = ()
    plays_any: ClassVar[bool] = False

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "name" in vars(cls):
            check_whole(f"{cls.__qualname__}.version", cls.version, 1)
            register(SOURCES, cls.name, cls)

    def find(self, path: str | Path) -> DataFiles:
        """Finds the dataset's files; :func:`~kuaisim_gym.data.files.find_files` does the work.

        Args:
            path: The archive as downloaded, the folder it was unpacked to, or the folder with the
                files.

        Raises:
            DatasetNotFoundError: The folder or a required file is missing.
            ConfigError: This dataset has no files.
        """
        raise self._refusal("find", "no files to read; leave out path")

    def files(self, path: str | Path) -> list[Path]:
        """The files that it would read, of a path as for :meth:`find`.

        Raises:
            DatasetNotFoundError: As of :meth:`find`.
        """
        return [file for files in self.find(path).tables.values() for file in files]

    def read(self, files: DataFiles) -> Dataset:
        """Reads files that :meth:`find` found, with the published ids.

        Raises:
            DataFormatError: A file is empty, lacks a column, or holds a bad value; the message
                names file, column, row and value.
            ConfigError: This dataset has no files.
        """
        raise self._refusal("read", "no files to read; leave out path")

    def synthetic(self, seed: int) -> Dataset:
        """Generates the synthetic world of a seed.

        Raises:
            ConfigError: This dataset has no synthetic world.
        """
        raise self._refusal("synthetic", "no synthetic world; give the path of its files")

    def write(self, dataset: Dataset) -> dict[str, Writer]:
        """Prepares files in the published format: by name, without ``.csv``, the file's writer.

        Raises:
            ConfigError: This dataset has no published format, or the format cannot hold its rows.
        """
        raise self._refusal("write", "no published format to write")

    def load(self, path: str | Path | None, seed: int) -> Dataset:
        """Loads the dataset from the cache, or builds it and stores it there.

        Args:
            path: As for :meth:`find`; ``None`` for the synthetic world.
            seed: Seed of the synthetic world.
        """
        if path is None:
            key, build = f"synthetic-v{self.version}-seed{seed}", partial(self.synthetic, seed)
        else:
            try:
                files = self.find(path)
            except DatasetNotFoundError as error:
                raise _with_owner(error, self.name, path) from error
            for file in files.unread:
                logger.warning("%s is not read: %s", file, NOT_READ)
            digest = files.digest
            build = partial(self._read_unchanged, files, digest)
            key = f"{digest}-v{self.version}"
        return from_arrays(cached(f"{self.name}-{key}", lambda: to_arrays(build())))

    def _read_unchanged(self, files: DataFiles, digest: str) -> Dataset:
        """Reads files of a digest that was taken before."""
        dataset = self.read(files)
        check_unchanged(digest, files.digest, files.folder)
        return dataset

    def inspect(self, path: str | Path) -> list[str]:
        """Lines that say which files are there and which optional ones are not; no row is read.

        Args:
            path: As for :meth:`find`.

        Raises:
            KuaiSimError: As of :meth:`find`.
        """
        files = self.find(path)
        lines = [f"source:  {self.name}, the files of {files.layout.name} in {files.folder}"]
        for table in files.layout.tables:
            if table in files.tables:
                names = ", ".join(file.name for file in files.tables[table])
                lines.append(f"found:   {names}")
            else:
                lines.append(f"missing: {table}.csv, which is optional; what it says stays unknown")
        lines += [f"unread:  {file.name}; {NOT_READ}" for file in files.unread]
        return lines

    def _refusal(self, method: str, problem: str) -> ConfigError:
        able = [
            name
            for name, source in SOURCES.items()
            if getattr(source, method) is not getattr(Source, method)
        ]
        return ConfigError(f"{self.name} has {problem}. Datasets that do: {sorted(able)}.")


def _with_owner(error: DatasetNotFoundError, name: str, path: str | Path) -> DatasetNotFoundError:
    """The error that a source finds no files, with the names of sources that would find theirs."""
    owners = []
    for source in SOURCES.values():
        if source.name != name and source.find is not Source.find and not source.plays_any:
            try:
                source().find(path)
                owners.append(source.name)
            except KuaiSimError:
                continue
    if not owners:
        return error
    return type(error)(
        f"{path} holds the files of {' and '.join(owners)}, not of {name}: load them with "
        f"load_dataset({owners[0]!r}, path), or with --dataset {owners[0]}={path}, and play an "
        f"environment of that dataset. {error}"
    )


SOURCES: dict[str, type[Source]] = {}  # by name; subclasses add themselves


def recognise(path: str | Path) -> Source:
    """The source whose published files are at a path, else the one of tables of any origin.

    Raises:
        DatasetNotFoundError: Required files of a published dataset are missing.
        DataFormatError: Files are there twice.
        ConfigError: The files are of several datasets.
    """
    files_by_source: dict[str, list[Path]] = {}  # by source, its files
    missing: list[IncompleteFilesError] = []
    tables_source = next(source() for source in SOURCES.values() if source.plays_any)
    for source in (source() for source in SOURCES.values() if source.find is not Source.find):
        try:
            files_by_source[source.name] = source.files(path)
        except IncompleteFilesError as error:
            missing.append(error)
        except DatasetNotFoundError:
            continue  # files of another kind
    try:
        files_of_tables = set(tables_source.files(path)).difference(*files_by_source.values())
        if files_of_tables:
            files_by_source[tables_source.name] = sorted(files_of_tables)
    except KuaiSimError:
        pass  # it is asked again, and refuses, where nothing else is there
    if len(files_by_source) > 1:
        listing = "; ".join(f"{name}: {files[0]}, ..." for name, files in files_by_source.items())
        raise ConfigError(
            f"{path} holds the files of several datasets ({listing}). Say which one is meant, by "
            f"--source {' or '.join(files_by_source)}, or give the folder or the file that holds "
            "it alone."
        )
    if missing and not files_by_source:
        raise missing[0]
    return SOURCES[next(iter(files_by_source))]() if files_by_source else tables_source


def find_source(name: str, /, **options: Any) -> Source:
    """Returns the source of a dataset.

    Args:
        name: Its name.
        **options: Arguments of the source, where it has some.

    Raises:
        ConfigError: No source has this name, or the source has no such option; the message gives
            the nearest one. A source outside this package is known once its module has been
            imported.
    """
    source = SOURCES[check_choice("dataset", name, SOURCES)]
    for option in options:
        if not source.options:
            raise ConfigError(f"{name} takes no options beside path and seed, got {option}=.")
        check_choice(f"An option of {name}", option, source.options)
    return source(**options)
