"""Files that describe a dataset of tables: its paths and options in one place."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from kuaisim_gym.config import check_choice
from kuaisim_gym.data.custom.folders import TABLES
from kuaisim_gym.data.files import reading
from kuaisim_gym.errors import DataFormatError, DatasetNotFoundError

SETTINGS = ".toml"


def read_settings(file: Path, options: Iterable[str]) -> dict[str, Any]:
    """Reads the arguments of ``load_dataset("table", ...)`` from a TOML file.

    ::

        log = "ratings.csv"           # paths start at the file's own folder
        items = "movies.csv"
        rating_map = [0.5, 5]
        item_features = {genres = "|"}
        columns = {time = ""}         # no such column
        name = "movies"               # the file's own name by default

    Args:
        file: The file.
        options: The arguments that there are.

    Raises:
        DatasetNotFoundError: The file is missing.
        DataFormatError: It is no TOML, or a path is no text.
        ConfigError: An argument is unknown; the message gives the nearest one.
    """
    if not file.is_file():
        raise DatasetNotFoundError(f"Expected a file that describes a dataset, {file} is missing.")
    try:
        with reading(file):
            settings = tomllib.loads(file.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, RecursionError, tomllib.TOMLDecodeError) as error:
        raise DataFormatError(f"{file} is no well-formed TOML file: {error}.") from error
    options = tuple(options)
    for option in settings:
        check_choice(f"{file}: an option", option, options)
    for table in TABLES:
        if table in settings:
            settings[table] = _paths(file, table, settings[table])
    if isinstance(settings.get("columns"), dict):
        settings["columns"] = {role: name or None for role, name in settings["columns"].items()}
    return {"name": file.stem, **settings}


def _paths(file: Path, table: str, value: object) -> Path | list[Path]:
    """A table's file or files.

    Raises:
        DataFormatError: The value is neither a path nor a list of paths.
    """
    names: list[Any] = value if isinstance(value, list) else [value]
    if not names or not all(isinstance(name, str) and name for name in names):
        raise DataFormatError(
            f"{file}: {table} must be a path, or a list of the files of one table, got {value!r}."
        )
    paths = [file.parent / name for name in names]
    return paths if isinstance(value, list) else paths[0]
