"""Features, groups and exposures of a table of users or items."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kuaisim_gym.data.coding import (
    Field,
    Positions,
    add_note,
    most_values,
    read_features,
    read_labels,
)
from kuaisim_gym.data.custom.cells import check_cells, check_numbers, number
from kuaisim_gym.data.custom.columns import Roles, is_named
from kuaisim_gym.data.custom.inputs import CATEGORY, NUMBER, SKIPPED, Input
from kuaisim_gym.data.dataset import Features, Labels
from kuaisim_gym.data.tables import Table, Tables, literal, numbered
from kuaisim_gym.errors import ConfigError, DataFormatError

FEW_VALUES = 20  # numbers of at most so many values are categories
_MOST_SHOWN = 2**62


@dataclass(frozen=True)
class Entities:
    """A table of users or of items by position.

    Attributes:
        tables: The database.
        source: The table as the user gave it.
        table: The table as it was stored.
        key: Its column of ids.
        entity: ``"user"`` or ``"item"``.
        n: Number of positions.
        notes: Receives counts.
    """

    tables: Tables
    source: Input
    table: Table
    key: str
    entity: str
    n: int
    notes: MutableMapping[str, int]

    def check_known(self) -> None:
        """Checks that a row is of a user or an item that has rows in the log or the test table.

        Raises:
            DataFormatError: None is.
        """
        if self.tables.count(self._known_rows):
            return
        key = self.table.cell(self.key)
        rows = self.tables.count(f"FROM {self.table.sql}")
        first = self.tables.texts(f"SELECT {key}::VARCHAR FROM {self.table.sql} LIMIT 1")[0]
        raise DataFormatError(
            f"{self.source.label}: none of its {rows} rows is of {self.entity}s with rows in the "
            f"log or the test table; its first id is {first!r}. Are the ids of one kind, and is "
            f"{self.key!r} their column?"
        )

    @property
    def _known_rows(self) -> str:
        """SQL of the rows whose ids have positions, as a ``FROM`` clause."""
        key = self.table.cell(self.key)
        return (
            f"FROM {self.table.sql} t "
            f"JOIN {self.entity}_positions p ON p.id_text = t.{key}::VARCHAR"
        )

    def features(self, kinds: Mapping[str, str] | None, columns: Sequence[str]) -> Features:
        """Features by position.

        Args:
            kinds: By column ``"category"``, ``"number"``, or the separator of several values;
                ``None`` to take all ``columns`` by the rules of :class:`TableSource`.
            columns: The columns without another role.

        Raises:
            ConfigError: A column is not there.
            DataFormatError: A cell that should be a number is none, or one holds too many values.
        """
        label = f"{self.entity}_features"
        if kinds is None:
            named = [name for name in columns if is_named(name)]
            add_note(self.notes, f"{label}.columns_without_a_name", len(columns) - len(named))
            chosen = {name: self.source.kind(name) or self._kind(name) for name in named}
        else:
            self._check_kinds(kinds, columns)
            chosen = dict(kinds)
        cells: dict[str, str] = {}
        fields: list[Field] = []
        titles: dict[str, str] = {}
        for i, (name, kind) in enumerate(chosen.items()):
            stored, title = numbered(i), name.partition(":")[0] if self.source.kind(name) else name
            if kind == SKIPPED or (kinds is None and self._nearly_unique(name, kind)):
                add_note(self.notes, f"{label}.{title}.left_out", 1)
            elif kind == NUMBER:
                check_numbers(
                    self.table, self.tables, name, -np.inf, np.inf, "a finite number or no text"
                )
                cells[stored] = f"({number(self.table, self.tables, name)})::DOUBLE"
                titles[stored] = title
            else:
                cells[stored] = f"{self.table.cell(name)}::VARCHAR"
                if kind != CATEGORY:
                    most = most_values(self.n)
                    values = f"list_distinct(string_split({cells[stored]}, {literal(kind)}))"
                    rule = f"at most {most} values in a cell, separated by {kind!r}"
                    check_cells(self.table, self.tables, name, f"len({values}) <= {most}", rule)
                split = None if kind == CATEGORY else Split(kind)
                fields.append(Field(title, split, source=stored))
        table = self._by_position("features", cells)
        if not cells:
            return Features()
        positions = Positions(np.arange(self.n))
        return read_features(
            self.tables, table, positions, fields, self.notes, label, titles=titles
        )

    def _check_kinds(self, kinds: Mapping[str, str], columns: Sequence[str]) -> None:
        """Checks the kinds of features that a user declares.

        Raises:
            ConfigError: A column is not there or has another role, or a kind is none.
        """
        label = f"{self.entity}_features"
        for name, kind in kinds.items():
            if name not in self.source.header:
                raise ConfigError(
                    f"{label} names the column {name!r}, but {self.source.label} has "
                    f"{self.source.header}."
                )
            if name not in columns:
                raise ConfigError(
                    f"{label} names the column {name!r}, which is not a feature: it holds ids, "
                    "exposures or groups. Leave it out, or take its other role away by columns= "
                    "or groups=."
                )
            separates = isinstance(kind, str) and kind and not any(map(str.isalnum, kind))
            if not separates and kind not in (CATEGORY, NUMBER):
                raise ConfigError(
                    f"{label}[{name!r}] must be {CATEGORY!r}, {NUMBER!r}, or the separator of "
                    f"several values, such as '|', without letters and digits; got {kind!r}."
                )

    def labels(self, columns: Sequence[str], n_catalogue: int) -> dict[str, Labels]:
        """Labels of the catalogue's items, of which groups are made.

        Raises:
            ConfigError: A column is not there.
        """
        for name in columns:
            if name not in self.source.header:
                raise ConfigError(
                    f"groups names the column {name!r}, but {self.source.label} has "
                    f"{self.source.header}."
                )
        if not columns:
            return {}
        cells = {numbered(i): f"{self.table.cell(name)}::VARCHAR" for i, name in enumerate(columns)}
        table = self._by_position("groups", cells)
        labels = read_labels(self.tables, table, np.arange(n_catalogue), list(cells))
        for stored, name in zip(cells, columns, strict=True):
            if stored not in labels:
                raise DataFormatError(
                    f"groups names the column {name!r} of {self.source.label}, in which no item "
                    "of the catalogue has a value: leave it out."
                )
        return {name: labels[stored] for stored, name in zip(cells, columns, strict=True)}

    def _by_position(self, purpose: str, cells: Mapping[str, str]) -> Table:
        """A copy with positions for ids, without rows of ids that have none.

        Args:
            purpose: Ends the table's name.
            cells: SQL of each column, by the name that it gets.
        """
        sql = f"{self.table.sql}_{purpose}"
        clause = self._known_rows
        dropped = self.tables.count(f"FROM {self.table.sql}") - self.tables.count(clause)
        if dropped:
            self.notes[f"{self.entity}_features.rows_of_unknown_ids_dropped"] = dropped
        selected = "".join(f", {cell} AS {name}" for name, cell in cells.items())
        self.tables.execute(
            f"CREATE TABLE {sql} AS SELECT p.id_position{selected} {clause} ORDER BY t.rowid"
        )
        return Table(sql, self.table.files, ("id_position", *cells), self.table.starts)

    def _kind(self, name: str) -> str:
        """The kind of a column that nobody declares."""
        cell = f"({number(self.table, self.tables, name)})::DOUBLE"
        numbers = f"count(*) FILTER (isfinite({cell}))"
        value = self.table.cell(name)
        query = (
            f"SELECT count({value}) AS cells, {numbers} AS numbers, "
            f"count(DISTINCT {value}) AS values FROM {self.table.sql}"
        )
        counts = next(self.tables.stream(query))
        sizes = {key: int(column[0]) for key, column in counts.items()}
        is_number = sizes["numbers"] == sizes["cells"] and sizes["values"] > FEW_VALUES
        return NUMBER if is_number else CATEGORY

    def _nearly_unique(self, name: str, kind: str) -> bool:
        """Tells whether a category has more values than half of the rows."""
        if kind == NUMBER:
            return False
        cell = f"{self.table.cell(name)}::VARCHAR"
        values = cell if kind == CATEGORY else f"unnest(string_split({cell}, {literal(kind)}))"
        query = f"SELECT count(*) AS n FROM (SELECT DISTINCT {values} FROM {self.table.sql})"
        distinct = int(next(self.tables.stream(query))["n"][0])
        return distinct > max(FEW_VALUES, self.tables.count(f"FROM {self.table.sql}") // 2)


@dataclass(frozen=True)
class Split:
    """Splits a cell of several values.

    Attributes:
        separator: Stands between the values.
    """

    separator: str

    def __call__(self, cell: str) -> list[str]:
        """The distinct values, without blanks around them, in order."""
        values = (value.strip() for value in cell.split(self.separator))
        return list(dict.fromkeys(filter(None, values)))


def read_exposures(
    tables: Tables,
    table: Table,
    key: str,
    roles: Roles,
    logged: NDArray[np.int64],
    n_users: int,
    notes: MutableMapping[str, int],
) -> NDArray[np.int64] | None:
    """(n_items,) exposures of a table's items: sums of counts, or mean propensities times users.

    Args:
        tables: The database.
        table: The table of items, or the log.
        key: Its column of items.
        roles: Its columns by role.
        logged: (n_items,) rows of each item in the log.
        n_users: Number of users.
        notes: Receives counts.

    Returns:
        ``None`` where the table has neither.

    Raises:
        DataFormatError: A cell is out of range, or no item has an exposure.
    """
    rules = {
        "exposures": (_MOST_SHOWN, "a count of at least 0", "sum", 1),
        "propensity": (1.0, "a probability in [0, 1]", "avg", n_users),
    }
    for role, (high, rule, function, factor) in rules.items():
        if role not in roles:
            continue
        column = roles[role]
        check_numbers(table, tables, column, 0.0, float(high), rule)
        cell = f"({number(table, tables, column)})::DOUBLE"
        query = (
            f"SELECT p.id_position AS item, {function}({cell}) AS amount "
            f"FROM {table.sql} t JOIN item_positions p ON p.id_text = t.{table.cell(key)}::VARCHAR "
            "GROUP BY p.id_position"
        )
        amounts = np.full(len(logged), np.nan)
        for chunk in tables.stream(query):
            amounts[chunk["item"]] = chunk["amount"] * factor
        if np.nanmax(amounts, initial=0.0) > _MOST_SHOWN:
            raise DataFormatError(f"{table.files[0]}: exposures sum to more than {_MOST_SHOWN}.")
        has_number = ~np.isnan(amounts)
        counts = np.rint(np.where(has_number, amounts, 0.0)).astype(np.int64)
        if not counts.any():
            raise DataFormatError(
                f"{table.files[0]}, column {column!r}: expected exposures of items, got none: of "
                f"the {int(has_number.sum())} items with a number the largest is "
                f"{np.nanmax(amounts, initial=0.0):g}, which rounds to 0. Leave the column out by "
                f"columns={{{role!r}: None}}."
            )
        add_note(notes, "exposures.items_without_a_number", int((~has_number).sum()))
        lost = has_number & (amounts > 0) & (counts == 0)
        add_note(notes, "exposures.items_rounded_to_0", int(lost.sum()))
        fewer = has_number & (counts < logged)
        add_note(notes, "exposures.items_with_more_log_rows_than_exposures", int(fewer.sum()))
        return counts
    return None
