"""Folders of tables: RecBole's atomic files, or files that are called as what they hold."""

from __future__ import annotations

import os
from collections.abc import Container
from pathlib import Path

from kuaisim_gym.data.custom.inputs import ENDINGS, stem_and_ending
from kuaisim_gym.data.files import only_file, reading
from kuaisim_gym.errors import DataFormatError, DatasetNotFoundError

TABLES = ("log", "test", "items", "users")
_NAMES = {  # by table, the stems of files that hold it
    "log": ("log", "train", "interactions", "ratings", "events"),
    "test": ("test",),
    "items": ("items", "movies", "item_features"),
    "users": ("users", "user_features"),
}
_ATOMIC = (".inter", ".item", ".user")

Tables = dict[str, list[Path]]  # by table, its files in order


def find_tables(path: Path) -> Tables:
    """Finds the tables of a folder, or those beside one of RecBole's files.

    A folder holds ``NAME.inter`` (or ``NAME.train.inter``, ``NAME.valid.inter``, which joins the
    log, and ``NAME.test.inter``) with ``NAME.item`` and ``NAME.user``; or a file called ``log``,
    ``train``, ``interactions``, ``ratings`` or ``events`` with files called ``test``, ``items`` or
    ``movies``, and ``users``. Any other file is a log alone.

    Raises:
        DatasetNotFoundError: There is no log.
        DataFormatError: Several files could be one table, or one is no file.
        KuaiSimError: The path cannot be read.
    """
    with reading(path):
        return _tables_of(path)


def unread_files(folder: Path, tables: Container[str]) -> list[Path]:
    """Files called as tables that were not found, of forms that are not read, such as users.dat."""
    if not folder.is_dir():
        return []
    absent = {stem for table, stems in _NAMES.items() if table not in tables for stem in stems}
    with reading(folder):
        return [
            file
            for file in sorted(folder.iterdir())
            if file.is_file() and file.name.partition(".")[0].lower() in absent
        ]


def _tables_of(path: Path) -> Tables:
    """The tables of a folder, or those beside one of RecBole's files."""
    if path.is_file():
        if stem_and_ending(path)[1] not in _ATOMIC:
            return {"log": [path]}
        name = path.name.removesuffix(".gz").removesuffix(".inter")
        return _atomic(path.parent, name.removesuffix(".train"))
    if not path.is_dir():
        raise DatasetNotFoundError(f"Expected a folder or a file of tables, {path} is not there.")
    names = {
        stem_and_ending(file)[0].removesuffix(".train").removesuffix(".valid").removesuffix(".test")
        for file in path.iterdir()
        if file.is_file() and stem_and_ending(file)[1] == ".inter"
    }
    if len(names) > 1:
        raise DataFormatError(
            f"{path} holds the interactions of several datasets: {sorted(names)}. Give the .inter "
            "file that is meant."
        )
    return _atomic(path, names.pop()) if names else _named(path)


def _atomic(folder: Path, name: str) -> Tables:
    """RecBole's files of one dataset."""
    log = _files(folder, f"{name}.inter")
    split = [*_files(folder, f"{name}.train.inter"), *_files(folder, f"{name}.valid.inter")]
    if log and split:
        only_file([*log, *split])
    log = log or split
    tables = {
        "log": log,
        "test": _files(folder, f"{name}.test.inter"),
        "items": _files(folder, f"{name}.item"),
        "users": _files(folder, f"{name}.user"),
    }
    if not log:
        raise DatasetNotFoundError(f"{folder / name}.inter is missing.")
    return {table: files for table, files in tables.items() if files}


def _files(folder: Path, name: str) -> list[Path]:
    """The file of a name, compressed or not."""
    files = [file for file in (folder / name, folder / f"{name}.gz") if os.path.lexists(file)]
    return [only_file(files)] if files else []


def _holds_log(folder: Path) -> bool:
    """Tells whether a folder itself holds the tables of a dataset, or of several."""
    if not folder.is_dir():
        return False
    stems = [stem_and_ending(file) for file in folder.iterdir() if file.is_file()]
    return any(
        ending == ".inter" or (ending and stem.lower() in _NAMES["log"]) for stem, ending in stems
    )


def _named(folder: Path) -> Tables:
    """Files that are called as the tables that they hold."""
    tables: Tables = {}
    for file in sorted(folder.iterdir()):
        stem, ending = stem_and_ending(file)
        for table, stems in _NAMES.items():
            if ending and stem.lower() in stems:
                tables.setdefault(table, []).append(file)
    for table, files in tables.items():
        if len(files) > 1:
            listed = [file.name for file in files]
            raise DataFormatError(
                f"{folder} holds several files that could be {table}: {listed}. Give the one that "
                f"is meant: {table}=PATH."
            )
        only_file(files)
    if "log" not in tables:
        names = ", ".join(_NAMES["log"])
        inner = [str(inside) for inside in sorted(folder.iterdir()) if _holds_log(inside)]
        if inner:
            raise DatasetNotFoundError(
                f"{folder} holds no log, but folders in it do: {inner[:20]}. Give the one that is "
                "meant."
            )
        raise DatasetNotFoundError(
            f"{folder} holds no log: expected a file called {names} ({', '.join(ENDINGS)}), or "
            f"RecBole's NAME.inter. It holds {sorted(file.name for file in folder.iterdir())[:20]}."
            " Give the file: log=PATH."
        )
    return tables
