"""Turns ids into positions and feature values into codes, without a Python object per row."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from kuaisim_gym.data.dataset import Features, IdArray, Labels
from kuaisim_gym.data.feedback import IntArray
from kuaisim_gym.data.tables import (
    Column,
    Table,
    Tables,
    allocate,
    literal,
    quoted,
    shown,
    whole_groups,
)
from kuaisim_gym.errors import DataFormatError

# Of the users' file, which both datasets publish alike: columns of numbers, and of categories.
USER_NUMBERS = ("follow_user_num", "fans_user_num", "friend_user_num", "register_days")
USER_FLAGS = ("is_lowactive_period", "is_live_streamer", "is_video_author")
USER_FIELDS = (
    "user_active_degree",
    *USER_FLAGS,
    *(f"{name}_range" for name in USER_NUMBERS),
    *(f"onehot_feat{number}" for number in range(18)),
)

_NUMBER = re.compile(r"[+-]?\d+(\.\d*)?", re.ASCII)
_MOST_VALUES, _ALWAYS_ALLOWED = 1000, 64  # values in a cell, of small and of any tables
_MOST_CODES = 2**28  # 1 GB of codes, for each entity as many as the longest list has values
_SPARSE = 8  # ids whose range is this many times their number are searched, not looked up


class Positions:
    """Positions of ids in an array of distinct ids.

    Attributes:
        ids: (n,) int64 or strings, distinct.
    """

    def __init__(self, ids: IdArray) -> None:
        self.ids = ids
        self._table: IntArray | None = None
        dense = ids.dtype.kind != "U"
        self._low = int(ids.min()) if dense and len(ids) else 0
        span = int(ids.max()) - self._low + 1 if dense and len(ids) else 0
        if dense and span <= _SPARSE * len(ids) + 2**16:
            self._table = np.full(span, -1, np.int32)
            self._table[ids - self._low] = np.arange(len(ids), dtype=np.int32)
        else:
            self._order = np.argsort(ids).astype(np.int32)
            self._sorted = ids[self._order]

    def __len__(self) -> int:
        return len(self.ids)

    def __call__(self, ids: IdArray) -> IntArray:
        """(m,) int32: each id's position, -1 for an unknown one; of the ids' own kind."""
        if not len(self):
            return np.full(len(ids), -1, np.int32)
        if self._table is not None:
            inside = (ids >= self._low) & (ids < self._low + len(self._table))
            positions = self._table[np.where(inside, ids - self._low, 0)]
            return np.where(inside, positions, np.int32(-1))
        rank = np.minimum(np.searchsorted(self._sorted, ids), len(self) - 1)
        return np.where(self._sorted[rank] == ids, self._order[rank], np.int32(-1))


@dataclass(frozen=True)
class Field:
    """A feature, and the way its cells are read.

    Attributes:
        name: The field of :class:`~kuaisim_gym.data.dataset.Features`.
        split: Turns a cell into its values; a ``ValueError`` says what the cell should have been.
            ``None`` where a cell is one value.
        documented: The values that the source's documentation lists, where it lists them.
        source: The column, where it is not called as the field.
    """

    name: str
    split: Callable[[str], Sequence[str]] | None = None
    documented: frozenset[str] | None = None
    source: str | None = None

    @property
    def column(self) -> str:
        """The column of the table."""
        return self.source or self.name


def _as_number(value: str) -> float | None:
    return float(value) if _NUMBER.fullmatch(value) else None


def number_values(values: Iterable[str]) -> tuple[tuple[str, ...], dict[str, int]]:
    """Numbers a field's values from 1 on.

    Values that are numbers throughout are ordered by size, all others as strings. Among numbers,
    two spellings of one, such as ``9`` and ``9.0`` in two parts of a table, are one value, under
    the spelling that sorts first.

    Args:
        values: The values, in any order, repeated or not; ``""`` is a missing one.

    Returns:
        The value that each code stands for, ``""`` first, and the code of each spelling.
    """
    texts = sorted(set(values) - {""})
    sizes = {text: _as_number(text) for text in texts}
    names, codes = [""], {"": 0}
    if None in sizes.values():
        return ("", *texts), codes | {text: code for code, text in enumerate(texts, start=1)}
    last: float | None = None
    for size, text in sorted((size, text) for text, size in sizes.items() if size is not None):
        if size != last:
            names.append(text)
        codes[text] = len(names) - 1
        last = size
    return tuple(names), codes


def most_values(n: int) -> int:
    """The most values that a cell of a feature may have in a table of ``n`` users or items.

    Codes are dense: each entity has room for as many values as the longest list.
    """
    return min(_MOST_VALUES, max(_ALWAYS_ALLOWED, _MOST_CODES // max(n, 1)))


@dataclass
class _Coded:
    """Codes of a field: ``rows[c]`` are those of cell number c."""

    field: Field
    sql: str
    values: tuple[str, ...]
    rows: IntArray
    counts: NDArray[np.int64]


def read_entities(
    tables: Tables,
    files: Sequence[Path] | None,
    key: str,
    fields: Sequence[str],
    numbers: Sequence[str],
) -> Table | None:
    """Reads a file of users or items, as :func:`read_features` takes it.

    Args:
        tables: The database.
        files: The file, or its parts; ``None`` where it was not published.
        key: Its column of ids: ``"user_id"`` or ``"video_id"``.
        fields: Columns of texts; each may be missing, and have missing cells.
        numbers: Columns of numbers; each may be missing, and have missing cells.
    """
    if files is None:
        return None
    columns = [Column(key)]
    columns += [Column(name, "text", gaps=True, required=False) for name in fields]
    columns += [Column(name, "number", gaps=True, required=False) for name in numbers]
    return tables.read(files, columns, rows="users" if key == "user_id" else "videos")


def read_features(
    tables: Tables,
    table: Table | None,
    positions: Positions,
    fields: Sequence[Field],
    notes: MutableMapping[str, int],
    label: str,
    skipped: Sequence[str] = (),
    titles: Mapping[str, str] = MappingProxyType({}),
) -> Features:
    """Turns a table of users or items into features by position.

    Rules, each counted in ``notes`` under ``label``: of several rows of one id the first stays; a
    row of an unknown id is dropped; an id without a row has code 0 and NaN throughout; a column
    without a single value gives no field. Missing cells, undocumented values and negative flags
    (KuaiRand's -124) are kept as they are and counted by field, where there are any.

    Args:
        tables: The database.
        table: The table: its first column holds the ids, the fields are texts; ``None`` for no
            features.
        positions: The position of each id.
        fields: The columns to code; those that the table lacks are skipped, and its other columns
            stay numbers.
        notes: Receives the counts.
        label: Beginning of the counts' names, such as ``"user_features"``.
        skipped: Columns that are no features, see :func:`read_labels`.
        titles: Names of the features of numbers that are not called as their columns.

    Raises:
        DataFormatError: A cell of a field with several values is not as it should be, or has more
            than :func:`most_values`.
    """
    if table is None:
        return Features()
    n = len(positions)
    fields = [field for field in fields if field.column in table.columns]
    most = most_values(n)
    coders = (_code(tables, table, field, most, notes, label) for field in fields)
    coded = list(filter(None, coders))
    names = {*skipped, *(field.column for field in fields)}
    numbers = [name for name in table.columns[1:] if name not in names]
    codes = {
        code.field.name: allocate(
            tables.folder / f"{label}.code{i}.npy", (n, code.rows.shape[1]), np.int32
        )
        for i, code in enumerate(coded)
    }
    columns = {
        name: allocate(tables.folder / f"{label}.number{i}.npy", (n,), np.float64, np.nan)
        for i, name in enumerate(numbers)
    }
    select = [f"{quoted(table.columns[0])} AS id"]
    select += [f"{code.sql} AS f{i}" for i, code in enumerate(coded)]
    select += [f"{quoted(name)} AS n{i}" for i, name in enumerate(numbers)]
    query = f"SELECT {', '.join(select)} FROM {table.sql} ORDER BY id, rowid"
    n_read = n_unknown = n_repeated = 0
    for chunk in whole_groups(tables.stream(query), "id"):
        ids, first = np.unique(chunk["id"], return_index=True)
        targets = positions(ids)
        rows, targets = first[targets >= 0], targets[targets >= 0]
        n_read += len(rows)
        n_unknown += len(ids) - len(rows)
        n_repeated += len(chunk["id"]) - len(ids)
        for i, code in enumerate(coded):
            cells = chunk[f"f{i}"][rows]
            codes[code.field.name][targets] = code.rows[cells]
            code.counts += np.bincount(cells, minlength=len(code.rows))
        for i, name in enumerate(numbers):
            columns[name][targets] = chunk[f"n{i}"][rows]
    columns = {titles.get(name, name): column for name, column in columns.items()}
    columns = _count_gaps(columns, n - n_read, notes, label)
    for code in coded:
        _count_values(code, notes, label)
    add_note(notes, f"{label}.repeated_rows_dropped", n_repeated)
    add_note(notes, f"{label}.rows_of_unknown_ids_dropped", n_unknown)
    add_note(notes, f"{label}.ids_without_a_row", n - n_read)
    values = {code.field.name: code.values for code in coded}
    return Features(codes=codes, values=values, numbers=columns)


def read_labels(
    tables: Tables,
    table: Table | None,
    catalogue: NDArray[np.int64],
    names: Sequence[str],
    among: Table | None = None,
) -> dict[str, Labels]:
    """Turns columns of texts into labels of the catalogue's items.

    As for features, of several rows of one id the first counts, and an id without a row or a cell
    has code 0; a column without a single value gives no labels.

    Args:
        tables: The database.
        table: The table of items: its first column holds the ids; ``None`` for no labels.
        catalogue: (n_items,) ids.
        names: The columns; those that the table lacks are skipped.
        among: A table whose ids of the same column are all of the catalogue; ``None`` to read all
            rows. Tables of millions of items need not be read for a few.
    """
    if table is None:
        return {}
    positions, labels = Positions(catalogue), {}
    key = quoted(table.columns[0])
    source = table.sql if among is None else f"{table.sql} SEMI JOIN {among.sql} USING ({key})"
    for name in (name for name in names if name in table.columns):
        texts = np.full(len(catalogue), "", dtype=object)
        query = f"SELECT {key} AS id, coalesce({quoted(name)}, '') AS label FROM {source}"
        for chunk in tables.stream(f"{query} ORDER BY id, {table.sql}.rowid DESC"):
            targets = positions(chunk["id"])
            texts[targets[targets >= 0]] = chunk["label"][targets >= 0]
        values, codes = number_values(texts)
        if len(values) > 1:
            coded = np.array([codes[text] for text in texts], dtype=np.int32)
            labels[name] = Labels(coded, values)
    return labels


def _code(
    tables: Tables,
    table: Table,
    field: Field,
    most: int,
    notes: MutableMapping[str, int],
    label: str,
) -> _Coded | None:
    """Numbers a field's values, at most ``most`` a cell; ``None`` where it has none."""
    name = quoted(field.column)
    enum = quoted(f"{table.sql}_{field.column}")
    with_value = f"FROM {table.sql} WHERE {name} IS NOT NULL"
    if not tables.count(f"FROM (SELECT 1 {with_value} LIMIT 1)"):
        add_note(notes, f"{label}.columns_without_values", 1)
        return None
    tables.execute(f"CREATE TYPE {enum} AS ENUM (SELECT DISTINCT {name} {with_value})")
    cells = tables.texts(f"SELECT unnest(enum_range(NULL::{enum}))")
    lists: list[Sequence[str]] = []
    for cell in cells:
        try:
            values = [cell] if field.split is None else field.split(cell)
        except ValueError as error:
            location = _cell_location(tables, table, field, cell)
            raise DataFormatError(
                f"{location}: expected {error}, got {shown(cell)}. Correct or remove the row."
            ) from error
        if len(values) > most:
            location = _cell_location(tables, table, field, cell)
            raise DataFormatError(
                f"{location}: expected at most {most} values in a cell, got {len(values)}: "
                f"{shown(cell)}. Keep those that matter, or remove the column."
            )
        lists.append(values)
    names, codes = number_values(value for values in lists for value in values)
    rows = np.zeros((len(cells) + 1, max([1, *map(len, lists)])), np.int32)
    for number, texts in enumerate(lists, start=1):
        rows[number, : len(texts)] = [codes[text] for text in texts]
    sql = f"coalesce(enum_code({name}::{enum})::INTEGER + 1, 0)"
    return _Coded(field, sql, names, rows, np.zeros(len(rows), np.int64))


def _cell_location(tables: Tables, table: Table, field: Field, cell: str) -> str:
    """``"FILE, data row N, column NAME"`` of the first cell with a content, for messages."""
    name = quoted(field.column)
    row = tables.column(f"SELECT min(rowid) FROM {table.sql} WHERE {name} = {literal(cell)}")
    return f"{table.location(int(row[0]))}, column {field.column!r}"


def _count_gaps(
    columns: Mapping[str, NDArray[np.float64]],
    n_absent: int,
    notes: MutableMapping[str, int],
    label: str,
) -> dict[str, NDArray[np.float64]]:
    """Counts the missing cells of numbers, beside those of absent ids; columns with a number."""
    with_numbers = {}
    for name, column in columns.items():
        gaps = int(np.count_nonzero(np.isnan(column)))
        if gaps == len(column):
            add_note(notes, f"{label}.columns_without_values", 1)
        else:
            with_numbers[name] = column
            add_note(notes, f"{label}.{name}.missing", gaps - n_absent)
    return with_numbers


def _count_values(code: _Coded, notes: MutableMapping[str, int], label: str) -> None:
    """Counts a field's missing, undocumented and negative values."""
    name = f"{label}.{code.field.name}"
    add_note(notes, f"{name}.missing", int(code.counts[0]))
    counts = np.zeros(len(code.values), np.int64)
    np.add.at(counts, code.rows, np.broadcast_to(code.counts[:, None], code.rows.shape))
    for value, count in zip(code.values[1:], counts[1:].tolist(), strict=True):
        number = _as_number(value)
        if number is not None and number < 0:
            add_note(notes, f"{name}.negative", count)
        elif code.field.documented is not None and value not in code.field.documented:
            add_note(notes, f"{name}.undocumented", count)


def add_note(notes: MutableMapping[str, int], name: str, count: int) -> None:
    """Adds to a count; one that stays 0 gets no entry."""
    if count:
        notes[name] = notes.get(name, 0) + count


def note_counts(notes: Mapping[str, int]) -> str:
    """The counts as one line for the log."""
    return ", ".join(f"{name} {count:,}" for name, count in notes.items()) or "nothing unusual"
