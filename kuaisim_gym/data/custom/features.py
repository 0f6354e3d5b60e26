"""Features, groups and exposures of a table of users or items."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kuaisim_gym.data.coding import Field, Positions, add_note, read_features, read_labels
from kuaisim_gym.data.custom.columns import Roles
from kuaisim_gym.data.custom.inputs import CATEGORY, NUMBER, SKIPPED, Input
from kuaisim_gym.data.custom.rows import check_numbers, number
from kuaisim_gym.data.dataset import Features, Labels
from kuaisim_gym.data.tables import Table, Tables, quoted
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

    def features(self, kinds: Mapping[str, str] | None, columns: Sequence[str]) -> Features:
        """Features by position.

        Args:
            kinds: By column ``"category"``, ``"number"``, or the separator of several values;
                ``None`` to take all ``columns`` by the rules of :class:`TableSource`.
            columns: The columns without another role.

        Raises:
            ConfigError: A column is not there.
            DataFormatError: A cell that should be a number is none.
        """
        label = f"{self.entity}_features"
        for name in kinds or {}:
            if name not in self.source.header:
                raise ConfigError(
                    f"{label} names the column {name!r}, but {self.source.label} has "
                    f"{self.source.header}."
                )
        if kinds is None:
            chosen = {name: self.source.kind(name) or self._kind(name) for name in columns}
        else:
            chosen = dict(kinds)
        names = {
            name: name.partition(":")[0] if self.source.kind(name) else name for name in chosen
        }
        cells, fields = [], []
        for name, kind in chosen.items():
            cell, title = quoted(name), names[name]
            if kind == SKIPPED or (kinds is None and self._nearly_unique(name, kind)):
                add_note(self.notes, f"{label}.{title}.left_out", 1)
                continue
            if kind == NUMBER:
                check_numbers(
                    self.table, self.tables, name, -np.inf, np.inf, "a finite number or no text"
                )
                cells.append(
                    f"({number(self.table, self.tables, name)})::DOUBLE AS {quoted(title)}"
                )
                continue
            cells.append(f"{cell}::VARCHAR AS {quoted(title)}")
            fields.append(Field(title, None if kind == CATEGORY else Split(kind)))
        if not cells:
            return Features()
        table = self._by_position(cells, [field.name for field in fields], list(names.values()))
        return read_features(
            self.tables, table, Positions(np.arange(self.n)), fields, self.notes, label
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
        cells = [f"{quoted(name)}::VARCHAR AS {quoted(name)}" for name in columns]
        table = self._by_position(cells, columns, columns)
        return read_labels(self.tables, table, np.arange(n_catalogue), columns)

    def _by_position(
        self, cells: Sequence[str], texts: Sequence[str], names: Sequence[str]
    ) -> Table:
        """A copy with positions for ids, without rows of ids that have none."""
        label, sql = f"{self.entity}_features", f"{self.table.sql}_p{len(names)}_{len(cells)}"
        ids = f"{self.entity}_positions"
        clause = (
            f"FROM {self.table.sql} t JOIN {ids} p ON p.id_text = t.{quoted(self.key)}::VARCHAR"
        )
        unknown = self.tables.count(f"FROM {self.table.sql}") - self.tables.count(clause)
        if unknown:
            self.notes[f"{label}.rows_of_unknown_ids_dropped"] = unknown
        self.tables.execute(
            f"CREATE OR REPLACE TABLE {sql} AS SELECT p.id_position, {', '.join(cells)} {clause} "
            "ORDER BY t.rowid"
        )
        columns = ("id_position", *(cell.rpartition(' AS "')[2].rstrip('"') for cell in cells))
        return Table(sql, self.table.files, columns, self.table.starts)

    def _kind(self, name: str) -> str:
        """The kind of a column that nobody declares."""
        cell = f"({number(self.table, self.tables, name)})::DOUBLE"
        numbers = f"count(*) FILTER (isfinite({cell}))"
        query = (
            f"SELECT count({quoted(name)}) AS cells, {numbers} AS numbers, "
            f"count(DISTINCT {quoted(name)}) AS values FROM {self.table.sql}"
        )
        counts = next(self.tables.stream(query))
        sizes = {key: int(column[0]) for key, column in counts.items()}
        is_number = sizes["numbers"] == sizes["cells"] and sizes["values"] > FEW_VALUES
        return NUMBER if is_number else CATEGORY

    def _nearly_unique(self, name: str, kind: str) -> bool:
        """Tells whether a category has more values than half of the rows."""
        if kind == NUMBER:
            return False
        cell = f"{quoted(name)}::VARCHAR"
        values = cell if kind == CATEGORY else f"unnest(string_split({cell}, '{kind}'))"
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
    tables: Tables, table: Table, key: str, roles: Roles, n_items: int, n_users: int
) -> NDArray[np.int64] | None:
    """(n_items,) exposures of a table's items: sums of counts, or mean propensities times users.

    Returns:
        ``None`` where the table has neither.

    Raises:
        DataFormatError: A cell is out of range.
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
            f"SELECT p.id_position AS item, coalesce({function}({cell}), 0) AS amount "
            f"FROM {table.sql} t JOIN item_positions p ON p.id_text = t.{quoted(key)}::VARCHAR "
            "GROUP BY p.id_position"
        )
        counts = np.zeros(n_items, np.int64)
        for chunk in tables.stream(query):
            amount = np.rint(chunk["amount"] * factor)
            if amount.max() > _MOST_SHOWN:
                raise DataFormatError(
                    f"{table.files[0]}: exposures sum to more than {_MOST_SHOWN}."
                )
            counts[chunk["item"]] = amount
        return counts
    return None
