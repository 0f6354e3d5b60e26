"""Tables as users have them: data frames, text files, Parquet files, RecBole's atomic files."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from kuaisim_gym.data.custom.cells import check_no_nul
from kuaisim_gym.data.files import digest_of_file, reading
from kuaisim_gym.data.tables import (
    FORMS,
    Column,
    Table,
    Tables,
    numbered,
    read_header,
    sql_path,
    trimmed,
)
from kuaisim_gym.errors import ConfigError, DataFormatError, DatasetNotFoundError

if TYPE_CHECKING:
    import pandas as pd

Given = Any  # a DataFrame, a path, or the paths of one table's files

CATEGORY, NUMBER, SKIPPED = "category", "number", "skipped"  # kinds of features
_ATOMIC_KINDS = {"token": CATEGORY, "token_seq": " ", "float": NUMBER, "float_seq": SKIPPED}


class Input(ABC):
    """One table as a user gives it.

    Attributes:
        label: Its name in messages.
        header: Its columns.
    """

    label: str
    header: list[str]

    @property
    def digest(self) -> str | None:
        """Text that identifies its content; ``None`` where only reading it all would tell."""
        return None

    def kind(self, column: str) -> str | None:
        """The kind of a feature, where the table itself declares it.

        Returns:
            ``"category"``, ``"number"``, ``"skipped"``, or the separator of several values.
        """
        return None

    @abstractmethod
    def load(self, tables: Tables, columns: Sequence[str], time: str | None = None) -> Table:
        """Stores some columns as texts or numbers; blank cells are missing.

        Args:
            tables: The database.
            columns: The columns.
            time: The column of times, whose dates become seconds since 1970 where they have a
                type; dates of other columns are texts.

        Raises:
            DataFormatError: The table is damaged or has no rows, or a text is no text in UTF-8.
        """


class TextInput(Input):
    """Text files with a header, of commas or tabs by their names; see ``kuaisim_gym.data.tables``.

    Args:
        files: The files of the table, in order.
    """

    endings: ClassVar[tuple[str, ...]] = (".csv", ".tsv")

    def __init__(self, files: Sequence[Path]) -> None:
        self.files = list(files)
        self.label = str(files[0])
        self.header = read_header(files[0])

    @property
    def digest(self) -> str | None:
        return ";".join(f"{file.name}={digest_of_file(file)}" for file in self.files)

    def load(self, tables: Tables, columns: Sequence[str], time: str | None = None) -> Table:
        cells = [
            Column(name, "text", gaps=True, alias=numbered(i)) for i, name in enumerate(columns)
        ]
        blankless = {cell.stored: trimmed(cell.stored) for cell in cells}
        return replace(
            tables.read(self.files, cells, blankless), columns=tuple(columns), numbered=True
        )


class AtomicInput(TextInput):
    """RecBole's atomic files: separated by tabs, with a type behind each column's name."""

    endings = (".inter", ".item", ".user")

    def __init__(self, files: Sequence[Path]) -> None:
        super().__init__(files)
        for name in self.header:
            if name.partition(":")[2] not in _ATOMIC_KINDS:
                raise DataFormatError(
                    f"{self.label}: expected a header such as user_id:token item_id:token "
                    f"rating:float, separated by tabs, with types among {sorted(_ATOMIC_KINDS)}; "
                    f"got {name!r}."
                )
        bare = [name.partition(":")[0] for name in self.header]
        if len(set(bare)) < len(bare):
            raise DataFormatError(f"{self.label} repeats a column; its header is {self.header}.")

    def kind(self, column: str) -> str | None:
        return _ATOMIC_KINDS[column.partition(":")[2]]


class ParquetInput(Input):
    """Parquet files.

    Args:
        files: The files of the table, in order.
    """

    endings: ClassVar[tuple[str, ...]] = (".parquet", ".pq")

    def __init__(self, files: Sequence[Path]) -> None:
        self.files = list(files)
        self.label = str(files[0])
        self._types = _parquet_types(files[0])
        self.header = list(self._types)

    @property
    def digest(self) -> str | None:
        return ";".join(f"{file.name}={digest_of_file(file)}" for file in self.files)

    def load(self, tables: Tables, columns: Sequence[str], time: str | None = None) -> Table:
        for file in self.files:
            types = _parquet_types(file)
            if types != self._types:
                raise DataFormatError(
                    f"{file} and {self.label} are parts of one table, but their columns differ: "
                    f"{types} and {self._types}."
                )
        for name in columns:
            if self._types[name].endswith("]") or self._types[name].startswith(("STRUCT", "MAP")):
                raise DataFormatError(
                    f"{self.label}, column {name!r}: expected one value in a cell, got "
                    f"{self._types[name]}. Join several by a separator, such as '|'."
                )
        sources = [f"read_parquet({sql_path(file)})" for file in self.files]
        table = tables.adopt(sources, self.files, columns, time=time)
        check_no_nul(table, tables)
        return table


def _parquet_types(file: Path) -> dict[str, str]:
    """DuckDB's types of a Parquet file's columns, by name."""
    import duckdb

    try:
        with duckdb.connect() as connection:
            query = f"DESCRIBE SELECT * FROM read_parquet({sql_path(file)})"
            return {row[0]: row[1] for row in connection.execute(query).fetchall()}
    except duckdb.Error as error:
        words = str(error).split("\n")[0]
        raise DataFormatError(f"{file} is not a readable Parquet file: {words}") from error


class FrameInput(Input):
    """A pandas DataFrame; its index is ignored.

    Args:
        frame: The frame.
        label: Its name in messages.
    """

    def __init__(self, frame: pd.DataFrame, label: str) -> None:
        self.frame = frame
        self.label = f"the DataFrame {label}"
        self.header = [str(name) for name in frame.columns]
        if len(set(self.header)) < len(self.header):
            raise DataFormatError(f"{self.label} repeats a column; it has {self.header}.")
        for name in self.header:
            if not is_utf8(name):
                raise DataFormatError(
                    f"{self.label}: the name of the column {name!r} is no text in UTF-8: rename it."
                )

    def load(self, tables: Tables, columns: Sequence[str], time: str | None = None) -> Table:
        import pandas as pd

        cells = {
            numbered(i): _plain_series(
                self.frame.iloc[:, self.header.index(name)], self.label, name == time
            )
            for i, name in enumerate(columns)
        }
        frame = pd.DataFrame(cells).reset_index(drop=True)
        try:
            with tables.registered(frame) as source:
                table = tables.adopt([source], [self.label], columns, list(frame.columns), time)
        except DataFormatError:
            self._check_texts(frame, columns)
            raise
        check_no_nul(table, tables)
        return table

    def _check_texts(self, frame: pd.DataFrame, columns: Sequence[str]) -> None:
        """Refuses the first text that is none in UTF-8, in a frame of the columns' texts.

        Raises:
            DataFormatError: There is one; the message names row, column and value.
        """
        for name, cells in zip(columns, frame, strict=True):
            for row, cell in enumerate(frame[cells]):
                if isinstance(cell, str) and not is_utf8(cell):
                    raise DataFormatError(
                        f"{self.label}, data row {row + 1}, column {name!r}: expected a text in "
                        f"UTF-8, got {cell!r}, which holds half of a surrogate pair. Correct or "
                        "remove it."
                    )


def is_utf8(text: str) -> bool:
    """Tells a text from one with a lone surrogate, which no file can hold."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _plain_series(series: pd.Series, label: str, is_time: bool) -> pd.Series:
    """A column as numbers, or as texts; missing cells as pandas has them."""
    import pandas as pd

    types = pd.api.types
    series = series.reset_index(drop=True)
    # As the values that stand behind codes, or between gaps.
    if isinstance(series.dtype, pd.CategoricalDtype):
        return _plain_series(series.astype(series.cat.categories.dtype), label, is_time)
    if isinstance(series.dtype, pd.SparseDtype):
        return _plain_series(series.astype(series.dtype.subtype), label, is_time)
    if is_time and types.is_datetime64_any_dtype(series.dtype):
        if series.dt.tz is not None:
            series = series.dt.tz_convert("UTC").dt.tz_localize(None)
        return (series - pd.Timestamp(0)) / pd.Timedelta(seconds=1)
    if types.is_bool_dtype(series.dtype) and not series.hasnans:
        return series.astype("uint8")
    if types.is_numeric_dtype(series.dtype) and not types.is_complex_dtype(series.dtype):
        return series
    is_string = types.is_string_dtype(series.dtype) and series.dtype != object
    return series if is_string else _texts(series, label)


def _texts(series: pd.Series, label: str) -> pd.Series:
    """A column of any objects as texts.

    Raises:
        DataFormatError: A cell holds several values.
    """
    import pandas as pd

    lists = series.map(lambda cell: isinstance(cell, (list, tuple, set, dict)))
    if lists.any():
        row = int(lists.argmax())
        raise DataFormatError(
            f"{label}, data row {row + 1}, column {series.name!r}: expected one value in a cell, "
            f"got {series[row]!r}. Join several by a separator, such as '|'."
        )
    # Objects from the start: with PyArrow, pandas would make its own texts of them in between,
    # which fails where one is no UTF-8, before the row can be named.
    cells = [
        cell if missing else str(cell) for cell, missing in zip(series, series.isna(), strict=True)
    ]
    return pd.Series(cells, series.index, object, series.name)


_FORMS: dict[str, type[TextInput | ParquetInput]] = {
    ending: form for form in (TextInput, AtomicInput, ParquetInput) for ending in form.endings
}
ENDINGS = (*_FORMS, *(f"{ending}.gz" for ending in FORMS))


def stem_and_ending(file: Path) -> tuple[str, str]:
    """A file's name before the ending that tells its form, and that ending; ``""`` for no form."""
    bare = Path(file.name.removesuffix(".gz"))
    ending = bare.suffix.lower()
    readable = ending in (FORMS if file.suffix == ".gz" else _FORMS)
    return (bare.stem, ending) if readable else (file.name, "")


def make_input(table: Given, role: str) -> Input:
    """The input of a data frame or of the files of a table.

    Args:
        table: A DataFrame, a path, or the paths of the table's files in order.
        role: The option that it came by, such as ``"log"``.

    Raises:
        ConfigError: It is none of these, or a file's form is unknown.
        DatasetNotFoundError: A file is missing.
        DataFormatError: A header cannot be read.
    """
    import pandas as pd

    if isinstance(table, pd.DataFrame):
        return FrameInput(table, role)
    files = [table] if isinstance(table, (str, Path)) else table
    is_list = isinstance(files, (list, tuple)) and len(files) > 0
    if not is_list or not all(isinstance(file, (str, Path)) for file in files):
        got = type(table).__name__
        if is_list:
            got = f"a {got} of {', '.join(sorted({type(file).__name__ for file in files}))}"
        raise ConfigError(
            f"{role} must be a pandas DataFrame, a file ({', '.join(ENDINGS)}), or a list of the "
            f"files of one table, got {got}."
        )
    paths = [Path(file) for file in files]
    for path in paths:
        with reading(path):
            is_file = path.is_file()
        if not is_file:
            raise DatasetNotFoundError(f"{role}: expected a file, but {path} is not there.")
    ending = stem_and_ending(paths[0])[1]
    if not ending:
        raise ConfigError(
            f"{role}: the form of {paths[0]} is told by its name's ending, one of {list(ENDINGS)}. "
            "Rename it, or read it yourself and give a DataFrame."
        )
    return _FORMS[ending](paths)


def digest_of_inputs(inputs: Sequence[Input | None], options: str) -> str | None:
    """32 hexadecimal digits of all files and options; ``None`` where there is a data frame."""
    digest = hashlib.blake2b(options.encode(), digest_size=16)
    for table in inputs:
        content = "absent" if table is None else table.digest
        if content is None:
            return None
        digest.update(f"|{content}".encode())
    return digest.hexdigest()
