"""Text files read strictly into DuckDB tables that are sorted and streamed out of core.

Rules that hold for every file:

* Columns are separated by commas, or by tabs where the file's name says so, see :data:`FORMS`; a
  name that ends in ``.gz`` is that of a compressed file.
* UTF-8, with or without a byte-order mark; no NUL bytes. The first line is the header; a column
  may be anywhere in it, but only once. Blank lines are skipped.
* Every line has as many fields as the header.
* A cell that must be a number is one that ``float`` accepts, in ASCII and finite, inside its
  column's bounds, and whole where its column must be. Whole numbers are exact up to 2**53.
* A missing (empty) cell is refused unless its column says that it may have gaps.

Nothing is corrected: a broken rule is a :class:`~kuaisim_gym.errors.DataFormatError` that
names file, line or data row, column and value. DuckDB reads and checks at its own speed; only when
it refuses does :func:`_explain` read the file again, plainly, to say where and why.
"""

from __future__ import annotations

import csv
import gzip
import io
import math
import os
import re
import sys
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from kuaisim_gym.data.cache import scratch_folder
from kuaisim_gym.data.files import reading
from kuaisim_gym.disk import disk_errors, free_space, readable_size, storage_error
from kuaisim_gym.errors import DataFormatError, DiskSpaceError, KuaiSimError

if TYPE_CHECKING:
    import duckdb
    import pandas as pd

Chunk = dict[str, NDArray[Any]]

SETTINGS: dict[str, str | bool | int | float | list[str]] = {  # of every DuckDB database
    "threads": 2,
    "preserve_insertion_order": True,
    "autoinstall_known_extensions": False,
    "autoload_known_extensions": False,
}
WHOLE_MAX = float(2**53 - 1)  # above it, a DOUBLE no longer tells neighbouring whole numbers apart
_MEMORY = "1GB"  # DuckDB spills beyond it
_VECTORS = 100  # DuckDB vectors of 2,048 rows in a chunk: about 200,000 rows
_BLOCK = 1 << 17  # bytes of text looked at together: more of them would be fresh memory each time
_LONGEST_LINE = 1 << 21  # bytes; DuckDB reads no longer one
_SHOWN = 200  # characters of a cell that messages quote
_IN_MEMORY = 1 << 24  # bytes up to which an array stays in memory
_NO_ROOM = re.compile("no space left|could not write|failed to offload|temp_directory", re.I)


@dataclass(frozen=True)
class Form:
    """The way in which a text file separates and quotes its cells.

    Attributes:
        delimiter: Between cells, one ASCII character.
        quote: Around cells that hold a delimiter; ``""`` where a quote is a character as any other.
    """

    delimiter: str
    quote: str

    @property
    def options(self) -> dict[str, Any]:
        """Arguments of ``csv.reader``."""
        quoting = {"quotechar": self.quote} if self.quote else {"quoting": csv.QUOTE_NONE}
        return {"delimiter": self.delimiter, "strict": True, **quoting}

    @property
    def stray_quote(self) -> re.Pattern[bytes]:
        """Blanks before a quote: DuckDB takes it as one that opens a field, csv as a character."""
        blanks = b" " if self.delimiter == "\t" else b" \t"
        return re.compile(
            rb'(?:^|[%b\n\r])[%b]+"' % (self.delimiter.encode(), blanks), re.MULTILINE
        )


FORMS = {  # by the ending of a file's name, without .gz
    ".csv": Form(",", '"'),
    ".tsv": Form("\t", '"'),
    ".inter": Form("\t", ""),
    ".item": Form("\t", ""),
    ".user": Form("\t", ""),
}


def form_of(file: Path) -> Form:
    """The form of a text file, by its name; commas where the name does not tell."""
    return FORMS.get(Path(file.name.removesuffix(".gz")).suffix.lower(), FORMS[".csv"])


@contextmanager
def opened(file: Path) -> Iterator[io.BufferedReader]:
    """The bytes of a file, unpacked where it is compressed.

    Raises:
        DataFormatError: It is compressed and damaged.
        KuaiSimError: It cannot be read.
    """
    with reading(file):
        try:
            with gzip.open(file) if file.suffix == ".gz" else file.open("rb") as content:
                yield content  # type: ignore[misc]  # gzip's reader has the same methods
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise DataFormatError(
                f"{file} cannot be unpacked: {error}. Is it damaged, or no gzip file?"
            ) from error


@contextmanager
def _cells(file: Path) -> Iterator[Any]:
    """A ``csv.reader`` of a file."""
    with opened(file) as content:
        lines = io.TextIOWrapper(content, encoding="utf-8-sig", newline="")
        yield csv.reader(lines, **form_of(file).options)


@dataclass(frozen=True)
class Column:
    """A column of a file, and the values that are allowed in it.

    Attributes:
        name: Its name in the header.
        kind: ``"whole"`` (int64), ``"number"`` (float64) or ``"text"``.
        low: Least number allowed.
        high: Greatest number allowed.
        gaps: Whether cells may be missing.
        required: Whether the file must have the column.
        alias: Its name in the stored table, where that is another one.
    """

    name: str
    kind: str = "whole"
    low: float = -math.inf
    high: float = math.inf
    gaps: bool = False
    required: bool = True
    alias: str | None = None

    @property
    def stored(self) -> str:
        """Its name in the stored table."""
        return self.name if self.alias is None else self.alias

    @property
    def rule(self) -> str:
        """The form of a cell, in words."""
        if self.kind == "text":
            return "a text"
        if self.kind == "whole" and (self.low, self.high) == (0, 1):
            return "0 or 1"
        words = "a whole number" if self.kind == "whole" else "a finite number"
        return f"{words} of at least {self.low:g}" if self.low > -math.inf else words

    @property
    def bounds(self) -> tuple[float, float]:
        """Least and greatest number that can be held exactly and is allowed."""
        limit = WHOLE_MAX if self.kind == "whole" else sys.float_info.max
        return max(self.low, -limit), min(self.high, limit)

    def accepts(self, cell: str) -> bool:
        """Tells whether the text of a cell keeps the rules."""
        if not cell:
            return self.gaps
        if self.kind == "text":
            return True
        try:
            value = float(cell) if cell.isascii() else math.nan
        except ValueError:
            return False
        low, high = self.bounds
        return low <= value <= high and (self.kind == "number" or value == math.floor(value))

    def checked(self, cell: str) -> str:
        """SQL for the cell that fails where :meth:`accepts` says no."""
        missing = "NULL" if self.gaps else "error('missing')"
        if self.kind == "text":
            return f"coalesce({cell}, {missing})"
        # NaN is above every number in DuckDB, so that BETWEEN refuses it.
        low, high = self.bounds
        test = f"{cell} BETWEEN {low!r}::DOUBLE AND {high!r}::DOUBLE"
        kind = "DOUBLE"
        if self.kind == "whole":
            test += f" AND {cell} = floor({cell})"
            kind = "BIGINT"
        return (
            f"CASE WHEN {cell} IS NULL THEN {missing} WHEN {test} THEN {cell}::{kind} "
            f"ELSE error('out of range') END"
        )


@dataclass(frozen=True)
class Table:
    """A table that was read.

    Attributes:
        sql: Its name in queries; ``rowid`` is the order of the files' rows.
        files: The files that it was read from, in order, or names of what it was read from.
        columns: Names of the columns that it holds.
        starts: For each file the ``rowid`` of its first row.
        numbered: Whether the columns are stored under :func:`numbered` names, which no name that
            a user chose can be mistaken for.
    """

    sql: str
    files: tuple[Path | str, ...]
    columns: tuple[str, ...]
    starts: tuple[int, ...]
    numbered: bool = False

    def cell(self, column: str) -> str:
        """SQL of a column's cell."""
        return quoted(numbered(self.columns.index(column)) if self.numbered else column)

    def location(self, row_id: int) -> str:
        """``"FILE, data row N"`` of a row, for messages."""
        number = int(np.searchsorted(self.starts, row_id, side="right")) - 1
        return f"{self.files[number]}, data row {row_id - self.starts[number] + 1}"


class Tables:
    """A DuckDB database in a scratch folder; see :func:`open_tables`.

    Attributes:
        folder: The scratch folder; it is gone when the database is closed, but arrays that are
            mapped from files in it stay usable where the system keeps removed files while they
            are in use.
    """

    def __init__(self, connection: duckdb.DuckDBPyConnection, folder: Path) -> None:
        self._connection = connection
        self._count = 0
        self.folder = folder

    def read(
        self,
        files: Sequence[Path],
        columns: Sequence[Column],
        keep: Mapping[str, str] | None = None,
        *,
        rows: str = "rows",
    ) -> Table:
        """Reads the parts of one table.

        Args:
            files: The parts, in order; the order of their columns may differ.
            columns: The columns to read; others are skipped.
            keep: What to store, as SQL expressions over the columns by name, where that is not
                the columns themselves.
            rows: What the rows are, for the message when there are none.

        Returns:
            The table.

        Raises:
            DataFormatError: A part breaks one of this module's rules, lacks a required column, or
                differs from the first in its columns; or there are no rows.
        """
        headers = [read_header(file) for file in files]
        for file, header in zip(files, headers, strict=True):
            _check_header(file, header, columns)
            if set(header) != set(headers[0]):
                raise DataFormatError(
                    f"{file} and {files[0]} are parts of one table, but {file.name} has the "
                    f"columns {header} and {files[0].name} has {headers[0]}."
                )
        present = [column for column in columns if column.name in headers[0]]
        self._count += 1
        name = f"t{self._count}"
        starts = [0]
        for file, header in zip(files, headers, strict=True):
            if _check_text(file, len(header)):
                _explain(file, header, present)
            start = f"CREATE TEMP TABLE {name} AS" if len(starts) == 1 else f"INSERT INTO {name}"
            self._load(f"{start} {_select(file, header, present, keep)}", file, header, present)
            starts.append(self.count(f"FROM {name}"))
        if starts[-1] == 0:
            raise DataFormatError(f"{files[0]} has a header but no rows; expected {rows}.")
        names = [column.stored for column in present] if keep is None else keep
        return Table(name, tuple(files), tuple(names), tuple(starts[:-1]))

    def adopt(
        self,
        sources: Sequence[str],
        files: Sequence[Path | str],
        columns: Sequence[str],
        names: Sequence[str] | None = None,
        time: str | None = None,
    ) -> Table:
        """Stores columns that have types already: as texts, int64 or float64, under numbered names.

        Args:
            sources: SQL of each part, such as a call of ``read_parquet``.
            files: Their names in messages.
            columns: The columns.
            names: Their names in the sources, where they differ.
            time: The column whose dates are stored as seconds; dates of others become texts.

        Raises:
            DataFormatError: A part is damaged, or there are no rows.
        """
        import duckdb

        self._count += 1
        table = f"t{self._count}"
        starts = [0]
        for source, file in zip(sources, files, strict=True):
            try:
                described = self._connection.execute(f"DESCRIBE FROM {source}").fetchall()
                types = {row[0]: row[1] for row in described}
                cells = ", ".join(
                    f"{_plain_cell(quoted(name), types[name], column == time)} AS {numbered(i)}"
                    for i, (name, column) in enumerate(zip(names or columns, columns, strict=True))
                )
                start = (
                    f"CREATE TEMP TABLE {table} AS" if len(starts) == 1 else f"INSERT INTO {table}"
                )
                self._connection.execute(f"{start} SELECT {cells} FROM {source}")
            except duckdb.Error as error:
                if _is_of_resources(error):
                    raise _resources(error, self.folder) from error
                words = str(error).split("\n")[0]
                raise DataFormatError(f"{file} cannot be read: {words}") from error
            starts.append(self.count(f"FROM {table}"))
        if starts[-1] == 0:
            raise DataFormatError(f"{files[0]} has no rows; expected some.")
        return Table(table, tuple(files), tuple(columns), tuple(starts[:-1]), numbered=True)

    @contextmanager
    def registered(self, frame: pd.DataFrame) -> Iterator[str]:
        """Makes a data frame known to queries until the block ends; its name in them."""
        self._connection.register("frame", frame)
        try:
            yield "frame"
        finally:
            self._connection.unregister("frame")

    def _load(
        self, statement: str, file: Path, header: list[str], columns: Sequence[Column]
    ) -> None:
        """Runs a statement that reads a file, and explains why DuckDB refuses it."""
        import duckdb

        try:
            self._connection.execute(statement)
        except duckdb.Error as error:
            if "GZIP" in str(error):  # zeros behind the end, which Python skips
                raise DataFormatError(
                    f"{file} has bytes behind its end, as of a damaged file. Unpack it by hand."
                ) from error
            if _is_of_resources(error):
                raise _resources(error, self.folder) from error
            _explain(file, header, columns)
            words = " ".join(str(error).split("\n")[:3])
            raise DataFormatError(
                f"{file} is not a well-formed CSV file; are its line endings and quotes "
                f"all of one kind? {words}"
            ) from error

    def execute(self, statement: str) -> None:
        """Runs a statement that returns nothing."""
        with _processing(self.folder):
            self._connection.execute(statement)

    def count(self, clause: str) -> int:
        """Number of rows of a ``FROM`` clause."""
        return int(next(self.stream(f"SELECT count(*) AS n {clause}"))["n"][0])

    def texts(self, query: str) -> list[str]:
        """A query's only column, of few rows, as strings."""
        with _processing(self.folder):
            return [row[0] for row in self._connection.execute(query).fetchall()]

    def stream(self, query: str) -> Iterator[Chunk]:
        """A query's rows as NumPy columns, about 200,000 rows at a time.

        A missing number is NaN; other columns must not have gaps. One stream at a time: the next
        query ends it.
        """
        with _processing(self.folder):
            result = self._connection.execute(query)
            while len(frame := result.fetch_df_chunk(_VECTORS)):
                yield {str(name): frame[name].to_numpy() for name in frame}

    def in_order(
        self, table: Table, columns: Sequence[str], key: str, time: str | None = None
    ) -> Iterator[Chunk]:
        """Some columns as whole groups of a key, ascending, each in the order of time.

        Missing times stand first; rows of one time, or all where there is none, are in the order of
        the files. Groups that ascend already, as those of published files do, are not sorted.

        Args:
            table: The table.
            columns: The columns, with ``key`` and ``time``.
            key: The column of groups.
            time: The column of times, if there is one.
        """
        query = f"SELECT {', '.join(map(quoted, columns))} FROM {table.sql}"
        falls = f"(SELECT {quoted(key)} AS here, lag(here) OVER () AS before FROM {table.sql})"
        if self.count(f"FROM {falls} WHERE here < before"):
            query += f" ORDER BY {quoted(key)}, rowid"
        for chunk in whole_groups(self.stream(query), key):
            yield chunk if time is None else _by_time(chunk, key, time)

    def column(self, query: str) -> NDArray[np.int64]:
        """A query's only column, of whole numbers."""
        chunks = [next(iter(chunk.values())) for chunk in self.stream(query)]
        return np.concatenate([np.empty(0, np.int64), *chunks]).astype(np.int64, copy=False)

    def distinct(self, column: str, *tables: Table | None) -> NDArray[np.int64]:
        """The distinct ids in a column of some tables, ascending."""
        union = " UNION ALL ".join(f"SELECT {column} FROM {table.sql}" for table in tables if table)
        return self.column(f"SELECT DISTINCT {column} FROM ({union}) ORDER BY 1")


@contextmanager
def open_tables() -> Iterator[Tables]:
    """An empty database that lives on the cache's disk until the block ends."""
    import duckdb

    with scratch_folder() as folder, _processing(folder):
        spilling = {"memory_limit": _MEMORY, "temp_directory": str(folder / "spill")}
        with duckdb.connect(str(folder / "tables.db"), config=SETTINGS | spilling) as connection:
            # A database that is thrown away in a minute needs no log to recover it from.
            connection.execute("SET checkpoint_threshold = '1TB'")
            connection.execute("SET enable_progress_bar = false")
            yield Tables(connection, folder)


def quoted(name: str) -> str:
    """A name as SQL writes it."""
    return '"' + name.replace('"', '""') + '"'


def numbered(index: int) -> str:
    """Name of a column by its position, as stored tables of any origin have it."""
    return f"c{index}"


def literal(text: str) -> str:
    """A text as SQL writes it."""
    return "'" + text.replace("'", "''") + "'"


def sql_path(file: Path) -> str:
    """A file's path as SQL writes it; brackets take a pattern's characters for themselves."""
    return literal(re.sub(r"[\[*?]", r"[\g<0>]", str(file)))


def shown(cell: str) -> str:
    """A cell as messages quote it: of a long one the beginning."""
    return repr(cell) if len(cell) <= _SHOWN else f"{cell[:_SHOWN]!r}..."


def trimmed(name: str) -> str:
    """SQL for a text column without blanks around it; missing where nothing is left."""
    return f"nullif(trim({quoted(name)}, ' \t'), '')"


def _plain_cell(cell: str, kind: str, is_time: bool) -> str:
    """SQL that turns a cell of one of DuckDB's types into a text, an int64 or a float64."""
    if kind in ("TINYINT", "SMALLINT", "INTEGER", "BIGINT", "UTINYINT", "USMALLINT", "UINTEGER"):
        return f"{cell}::BIGINT"
    if kind == "BOOLEAN":
        return f"{cell}::TINYINT::BIGINT"
    if kind in ("FLOAT", "DOUBLE") or kind.startswith("DECIMAL"):
        return f"CASE WHEN isnan({cell}::DOUBLE) THEN NULL ELSE {cell}::DOUBLE END"
    if is_time and (kind == "DATE" or kind.startswith("TIMESTAMP")):
        return f"epoch({cell})::DOUBLE"
    return f"nullif(trim({cell}::VARCHAR, ' \t'), '')"


def read_header(file: Path) -> list[str]:
    """The names in a file's first line.

    Raises:
        DataFormatError: The file is empty, its header repeats a column or is not one line of text.
    """
    try:
        with opened(file) as content:
            start = content.read(_LONGEST_LINE)
        # Bad bytes behind the header are left to the check that can tell their line.
        lines = io.StringIO(start.decode("utf-8-sig", errors="surrogateescape"), newline="")
        reader = csv.reader(lines, **form_of(file).options)
        names: list[str] = next(reader, [])
        height = reader.line_num
        "".join(names).encode("utf-8")
    except (UnicodeError, csv.Error) as error:
        raise DataFormatError(
            f"{file} is not a well-formed CSV file in UTF-8; its header cannot be read: {error}."
        ) from error
    if not names:
        raise DataFormatError(f"{file} is empty; expected a header and rows.")
    if len(set(names)) < len(names):
        raise DataFormatError(f"{file} repeats a column; its header is {names}.")
    if height > 1:
        raise DataFormatError(f"{file}: expected a header of one line, got {names}.")
    return names


def _check_header(file: Path, header: list[str], columns: Sequence[Column]) -> None:
    required = [column.name for column in columns if column.required]
    missing = [name for name in required if name not in header]
    if missing:
        raise DataFormatError(
            f"{file} lacks the column(s) {missing}; it has {header}. Required: {required}."
        )


def _select(
    file: Path, header: list[str], columns: Sequence[Column], keep: Mapping[str, str] | None
) -> str:
    """SQL that reads and checks a file."""
    # Other names: DuckDB's ignore case, a header's need not.
    kinds = {column.name: "VARCHAR" if column.kind == "text" else "DOUBLE" for column in columns}
    spec = ", ".join(f"'c{i}': '{kinds.get(name, 'VARCHAR')}'" for i, name in enumerate(header))
    form, compression = form_of(file), "gzip" if file.suffix == ".gz" else "none"
    source = (
        f"read_csv({sql_path(file)}, auto_detect=false, header=true, delim='{form.delimiter}', "
        f"quote='{form.quote}', escape='{form.quote}', strict_mode=true, null_padding=false, "
        f"compression='{compression}', columns={{{spec}}})"
    )
    cells = ", ".join(
        f"{column.checked(f'c{header.index(column.name)}')} AS {quoted(column.stored)}"
        for column in columns
    )
    if keep is None:
        return f"SELECT {cells} FROM {source}"
    outputs = ", ".join(f"{expression} AS {quoted(name)}" for name, expression in keep.items())
    return f"SELECT {outputs} FROM (SELECT {cells} FROM {source})"


@contextmanager
def _processing(folder: Path) -> Iterator[None]:
    """Explains DuckDB's errors over rows that were checked when they were read, and a disk's."""
    import duckdb

    try:
        yield
    except duckdb.Error as error:
        raise _resources(error, folder) from error
    except OSError as error:
        if isinstance(error, KuaiSimError) or not _is_of_space(error, folder):
            raise
        raise _resources(error, folder) from error


def _is_of_resources(error: duckdb.Error) -> bool:
    """Tells whether DuckDB lacked memory or a disk, and not well-formed rows."""
    import duckdb

    resources = (duckdb.OutOfMemoryException, duckdb.IOException)
    return isinstance(error, resources) or bool(_NO_ROOM.search(str(error)))


def _is_of_space(error: Exception, folder: Path) -> bool:
    """Tells whether the disk of the scratch folder was full."""
    refusal = isinstance(error, OSError) and storage_error(folder, error)
    return isinstance(refusal, DiskSpaceError) or bool(_NO_ROOM.search(str(error)))


def _resources(error: Exception, folder: Path) -> KuaiSimError:
    return (DiskSpaceError if _is_of_space(error, folder) else KuaiSimError)(
        f"The tables could not be processed; is there memory, and disk space in {folder} "
        f"({readable_size(free_space(folder))} are free)? KUAISIM_CACHE can name a folder on "
        f"another disk. {error}"
    )


def _check_text(file: Path, width: int) -> bool:
    """Looks at the bytes for faults that DuckDB lets pass.

    Returns:
        Whether there is something that only a plain reading can judge.

    Raises:
        DataFormatError: The file holds a NUL byte, an endless line, or is not UTF-8.
    """
    suspect = False
    position = 0
    form = form_of(file)
    with opened(file) as content:
        while text := content.read(_BLOCK) + _end_of_line(file, content, position + _BLOCK):
            _check_characters(file, text, position)
            suspect = suspect or _suspicious(text, width, form)
            position += len(text)
    return suspect


def _check_characters(file: Path, text: bytes, position: int) -> None:
    """Refuses NUL bytes and bytes that are not UTF-8 in the text from a position on."""
    try:
        if not text.isascii():
            text.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataFormatError(
            f"{file}, line {_line(file, position + error.start)}: expected text in UTF-8, got the "
            f"byte 0x{text[error.start]:02x}. Convert the file to UTF-8."
        ) from error
    if (nul := text.find(b"\0")) >= 0:
        raise DataFormatError(
            f"{file}, line {_line(file, position + nul)}: expected text, got a NUL byte. Is the "
            "file damaged?"
        )


def _end_of_line(file: Path, content: io.BufferedReader, position: int) -> bytes:
    """The bytes from a position to the end of its line, where lines end in line feeds.

    Raises:
        DataFormatError: No line ends for too long: a small compressed file can hold gigabytes.
    """
    pieces = []
    while piece := content.readline(_LONGEST_LINE):
        pieces.append(piece)
        if piece.endswith(b"\n"):
            break
        if len(piece) == _LONGEST_LINE and b"\r" not in piece:
            raise DataFormatError(
                f"{file}, line {_line(file, position)}: expected lines of at most {_LONGEST_LINE} "
                "bytes, got a longer one. Is it a table?"
            )
    return b"".join(pieces)


def _line(file: Path, position: int) -> int:
    """Number of the line that holds the byte at a position."""
    number = 1
    with opened(file) as content:
        while block := content.read(min(_BLOCK, position)):
            number += block.count(b"\n")
            position -= len(block)
    return number


def _suspicious(text: bytes, width: int, form: Form) -> bool:
    """Tells whether a line may end in a surplus empty field, or a blank stands before a quote."""
    # The pattern is slow, and two bytes are slower to find than one.
    if form.quote and b'"' in text and form.stray_quote.search(text):
        return True
    delimiter = form.delimiter.encode()
    text = text if text.endswith(b"\n") else text + b"\n"
    ends = (b"\n", b"\r") if b"\r" in text else (b"\n",)
    if not any(_holds_pair(text, delimiter + end) for end in ends):
        return False
    for end in ends:
        last = text.find(delimiter + end)
        while last >= 0:
            start = max(text.rfind(b"\n", 0, last), text.rfind(b"\r", 0, last)) + 1
            if text.count(delimiter, start, last + 1) >= width:
                return True
            last = text.find(delimiter + end, last + 1)
    return False


def _holds_pair(text: bytes, pair: bytes) -> bool:
    """Tells whether two bytes follow each other: as a number among those at even and odd places."""
    wanted = int.from_bytes(pair, "little")
    return any(
        bool((np.frombuffer(text, "<u2", (len(text) - offset) // 2, offset) == wanted).any())
        for offset in (0, 1)
    )


def _explain(file: Path, header: list[str], columns: Sequence[Column]) -> None:
    """Raises for the first cell or line that breaks a rule; returns where none does."""
    checks = [(column, header.index(column.name)) for column in columns]
    first_invalid = ""
    quoting = bool(form_of(file).quote)
    number = n_invalid = 0
    try:
        with _cells(file) as reader:
            next(reader)
            for row in filter(None, reader):  # without blank lines
                number += 1
                if not first_invalid and len(row) != len(header):
                    raise DataFormatError(
                        f"{file}, line {reader.line_num}: expected {len(header)} fields, as in "
                        f"the header, got {len(row)}. Correct or remove the line."
                    )
                for column, index in checks:
                    if index < len(row) and not column.accepts(row[index]):
                        n_invalid += 1
                        first_invalid = first_invalid or (
                            f"{file}, data row {number}, column {column.name!r}: expected "
                            f"{column.rule}, got {shown(row[index])}"
                        )
                        checks = [(column, index)]  # from now on, this column's are counted
                        break
                if quoting and any(
                    cell[:1] in (" ", "\t") and cell.lstrip(" \t")[:1] == '"' for cell in row
                ):
                    raise DataFormatError(
                        f"{file}, line {reader.line_num}: a blank stands before a quote; a quoted "
                        f"field must begin with its quote. Correct or remove the line."
                    )
    except csv.Error as error:
        if not first_invalid:
            raise DataFormatError(
                f"{file}, data row {number + 1}: not well-formed CSV: {error}."
            ) from error
    if first_invalid:
        raise DataFormatError(f"{first_invalid} ({n_invalid} such row(s)). Correct or remove them.")


def whole_groups(chunks: Iterable[Chunk], key: str) -> Iterator[Chunk]:
    """Regroups a sorted stream so that the rows of a key are in one chunk."""
    carried: Chunk | None = None
    for chunk in chunks:
        if carried is not None:
            chunk = {name: np.concatenate([carried[name], chunk[name]]) for name in chunk}
        start = int(np.searchsorted(chunk[key], chunk[key][-1]))
        if start:
            yield {name: column[:start] for name, column in chunk.items()}
        carried = {name: column[start:] for name, column in chunk.items()}
    if carried is not None:
        yield carried


def _by_time(chunk: Chunk, key: str, time: str) -> Chunk:
    """Sorts the rows of whole groups, which stand in the order of the key, by time."""
    groups, times = chunk[key], chunk[time]
    rises = times[1:] >= times[:-1]  # not where one of them is missing
    if (rises | (groups[1:] != groups[:-1])).all():
        return chunk
    order = np.lexsort((np.nan_to_num(times, nan=-np.inf), groups))
    return {name: column[order] for name, column in chunk.items()}


class ColumnFiles:
    """Columns of unknown length, appended to files: memory holds one chunk of them.

    Args:
        folder: Where the files go.
        label: Beginning of their names.
        dtypes: The columns' types by name.
    """

    def __init__(self, folder: Path, label: str, dtypes: Mapping[str, DTypeLike]) -> None:
        self._dtypes = {name: np.dtype(dtype) for name, dtype in dtypes.items()}
        self._paths = {name: folder / f"{label}.{name}.column" for name in dtypes}
        self._files = {name: path.open("wb") for name, path in self._paths.items()}

    def append(self, chunk: Mapping[str, NDArray[np.generic]]) -> None:
        """Adds rows; the chunk's columns are cast to the files' types."""
        for name, file in self._files.items():
            file.write(np.ascontiguousarray(chunk[name], self._dtypes[name]).data)

    def finish(self) -> Chunk:
        """The columns: small ones in memory, large ones mapped from their files."""
        columns: Chunk = {}
        for name, file in self._files.items():
            file.close()
            path, dtype = self._paths[name], self._dtypes[name]
            if path.stat().st_size <= _IN_MEMORY:
                columns[name] = np.fromfile(path, dtype)
            else:  # a plain view: the mapped subclass makes every operation slower
                columns[name] = np.asarray(np.memmap(path, dtype, mode="r"))
        return columns


def allocate(file: Path, shape: tuple[int, ...], dtype: DTypeLike, fill: float = 0) -> NDArray[Any]:
    """A filled array: in memory where it is small, mapped from a new file where it is not.

    Raises:
        DiskSpaceError: There is no room for the file.
    """
    size = math.prod(shape) * np.dtype(dtype).itemsize
    if size <= _IN_MEMORY:
        return np.full(shape, fill, dtype)
    with disk_errors(file, size):
        array: NDArray[Any] = np.lib.format.open_memmap(file, "w+", dtype, shape)
        if hasattr(os, "posix_fallocate"):  # no room later would end the process
            with file.open("rb+") as content:
                os.posix_fallocate(content.fileno(), 0, file.stat().st_size)
    if fill != 0:  # a new file is zero
        array[:] = fill
    return np.asarray(array)
