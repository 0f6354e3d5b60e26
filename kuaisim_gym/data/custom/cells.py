"""Cells of stored tables in SQL, and the rules that they keep."""

from __future__ import annotations

import numpy as np

from kuaisim_gym.data.tables import WHOLE_MAX, Table, Tables, literal, shown
from kuaisim_gym.errors import DataFormatError

# DuckDB reads words such as epoch and infinity as dates, too.
DATE = r"\d{4}-\d\d?-\d\d?([ T]\d.*)?"


def number(table: Table, tables: Tables, column: str) -> str:
    """SQL of a column's cell as a float64; of a text that is no number, NULL."""
    cell = table.cell(column)
    truths = f"WHEN 'true' THEN 1 WHEN 'false' THEN 0 ELSE TRY_CAST({cell} AS DOUBLE) END"
    return f"CASE lower({cell}::VARCHAR) {truths}" if is_text(table, tables, column) else cell


def is_text(table: Table, tables: Tables, column: str) -> bool:
    """Tells whether a column is stored as texts."""
    return stored_type(table, tables, column) == "VARCHAR"


def stored_type(table: Table, tables: Tables, column: str) -> str:
    """DuckDB's type of a column."""
    return tables.texts(f"SELECT typeof({table.cell(column)}) FROM {table.sql} LIMIT 1")[0]


def check_numbers(
    table: Table, tables: Tables, column: str, low: float, high: float, rule: str
) -> None:
    """Refuses the first cell of a column that is no finite number in some range.

    Raises:
        DataFormatError: There is one; the message names file, row, column and value.
    """
    value = number(table, tables, column)
    bounds = [f"{value} >= {low!r}" if low > -np.inf else f"isfinite({value}::DOUBLE)"]
    bounds += [f"{value} <= {high!r}" if high < np.inf else f"isfinite({value}::DOUBLE)"]
    if rule == "0 or 1":
        bounds = [f"{value} IN (0, 1)"]
    check_cells(table, tables, column, f"coalesce({' AND '.join(bounds)}, false)", rule)


def check_ids(table: Table, tables: Tables, column: str) -> None:
    """Refuses ids whose digits a float64 has lost.

    Raises:
        DataFormatError: There is one; the message names file, row, column and value.
    """
    if stored_type(table, tables, column) == "DOUBLE":
        rule = (
            f"an id below 2**53: a column of floats cannot hold others exactly. Read "
            f"{column!r} as integers or as texts"
        )
        check_cells(table, tables, column, f"abs({table.cell(column)}) <= {WHOLE_MAX!r}", rule)


def check_no_nul(table: Table, tables: Tables) -> None:
    """Refuses NUL characters, which NumPy's texts lose at their end.

    Raises:
        DataFormatError: There is one; the message names file, row, column and value.
    """
    for column in table.columns:
        if is_text(table, tables, column):
            condition = f"NOT contains({table.cell(column)}, chr(0))"
            check_cells(table, tables, column, condition, "a text without NUL characters")


def check_cells(table: Table, tables: Tables, column: str, condition: str, rule: str) -> None:
    """Refuses the first cell that is there and does not meet a condition in SQL.

    Raises:
        DataFormatError: There is one; the message names file, row, column and value.
    """
    cell = table.cell(column)
    clause = f"FROM {table.sql} WHERE {cell} IS NOT NULL AND NOT ({condition})"
    invalid = tables.count(clause)
    if invalid:
        row = int(tables.column(f"SELECT min(rowid) {clause}")[0])
        text = tables.texts(f"SELECT {cell}::VARCHAR FROM {table.sql} WHERE rowid = {row}")[0]
        raise DataFormatError(
            f"{table.location(row)}, column {column!r}: expected {rule}, got {shown(text)} "
            f"({invalid} such row(s)). Correct or remove them."
        )


def seconds(table: Table, tables: Tables, column: str) -> str:
    """SQL of a cell of times as a float64: a number as it is, a date as seconds since 1970.

    Raises:
        DataFormatError: A cell is neither, or both are mixed.
    """
    cell = table.cell(column)
    if not is_text(table, tables, column):
        check_numbers(table, tables, column, -np.inf, np.inf, "a finite number or a date")
        return cell
    plain, date = f"TRY_CAST({cell} AS DOUBLE)", f"TRY_CAST({cell} AS TIMESTAMP)"
    is_date = f"(regexp_full_match({cell}, {literal(DATE)}) AND {date} IS NOT NULL)"
    numbers = tables.count(f"FROM {table.sql} WHERE {plain} IS NOT NULL")
    dates = tables.count(f"FROM {table.sql} WHERE {is_date}")
    if dates > numbers:
        check_cells(table, tables, column, is_date, "a date such as 2024-05-31 18:00")
        return f"epoch({date})"
    check_numbers(table, tables, column, -np.inf, np.inf, "a time, as a number or a date")
    return plain
