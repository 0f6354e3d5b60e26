"""Rows of a table by position: answers, duplicates, and the split into log and test."""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from kuaisim_gym.data.coding import add_note
from kuaisim_gym.data.custom.cells import number, seconds
from kuaisim_gym.data.custom.columns import Roles
from kuaisim_gym.data.dataset import IdArray
from kuaisim_gym.data.feedback import Interactions, LabelLog, PositiveLog, ResponseLog
from kuaisim_gym.data.split import id_bits, mixed, uniform
from kuaisim_gym.data.tables import Chunk, ColumnFiles, Table, Tables, whole_groups
from kuaisim_gym.errors import ConfigError, DataFormatError

Sides = Callable[[Chunk], NDArray[np.bool_]]  # which rows of whole users are test rows


@dataclass(frozen=True)
class Answer:
    """The way in which a table's rows say how an item was liked.

    Attributes:
        feedback: The feedback type.
        column: The column; ``None`` where every row is a positive.
        low: Least number allowed in it.
        high: Greatest number allowed.
        rule: The allowed numbers, in words.
        convert: Turns (n,) float64 numbers of the column into the feedback's.
        dtypes: Type of the feedback's column, by its name.
    """

    feedback: type[Interactions]
    column: str | None = None
    low: float = 0.0
    high: float = 1.0
    rule: str = "a number in [0, 1]"
    convert: Callable[[NDArray[np.float64]], NDArray[Any]] = np.asarray
    dtypes: Mapping[str, DTypeLike] = field(default_factory=dict)


_VALUE, _LABEL = {"value": np.float32}, {"label": np.uint8}


def make_answer(
    label: str, roles: Roles, rating_map: tuple[float, float] | None, positive_from: float | None
) -> Answer:
    """The answers of a table, by the role of their column.

    Args:
        label: Names the table in messages.
        roles: Columns by role, of which at most one holds answers.
        rating_map: The ratings that stand for the responses 0 and 1.
        positive_from: The least rating that is positive.

    Raises:
        DataFormatError: Several columns could hold the answers.
        ConfigError: Ratings come without a map, or a map without ratings.
    """
    answers = {role: column for role, column in roles.items() if role in _ANSWERS}
    if len(answers) > 1:
        column = next(iter(answers.values()))
        unused = dict.fromkeys(list(answers)[1:])
        raise DataFormatError(
            f"{label} has several columns of answers: {list(answers.values())}. Leave all but one "
            f"out, for {column!r} by columns={unused}."
        )
    for role, column in answers.items():
        return _ANSWERS[role](label, column, rating_map, positive_from)
    return Answer(PositiveLog)


def _response(label: str, column: str, *_: object) -> Answer:
    return Answer(ResponseLog, column, dtypes=_VALUE)


def _label(label: str, column: str, *_: object) -> Answer:
    return Answer(LabelLog, column, rule="0 or 1", dtypes=_LABEL)


def _rating(
    label: str, column: str, rating_map: tuple[float, float] | None, positive_from: float | None
) -> Answer:
    if positive_from is not None:
        return Answer(
            LabelLog,
            column,
            -np.inf,
            np.inf,
            "a finite number",
            lambda ratings: ratings >= positive_from,
            _LABEL,
        )
    if rating_map is None:
        raise ConfigError(
            f"{label} has ratings in the column {column!r}; say what they mean: "
            f"rating_map=(LOW, HIGH) spreads them evenly over responses in [0, 1], "
            f"positive_from=X makes those of at least X positive, and "
            f"columns={{'rating': None}} takes every row for a positive. Commands read these "
            f"options from a .toml file that names the log: table=FILE.toml."
        )
    low, high = rating_map
    return Answer(
        ResponseLog,
        column,
        low,
        high,
        f"a rating in [{low:g}, {high:g}], as rating_map={rating_map} says",
        lambda ratings: (ratings - low) / (high - low),
        _VALUE,
    )


_ANSWERS: dict[str, Callable[..., Answer]] = {
    "response": _response,
    "rating": _rating,
    "label": _label,
}


@dataclass
class Rows:
    """Reads tables of rows into positions.

    Attributes:
        tables: The database, with tables ``user_positions`` and ``item_positions`` of the columns
            ``id_text`` and ``id_position``.
        user_ids: Ids by position.
        item_ids: Ids by position.
        n_catalogue: Items of the catalogue, which stand first.
        notes: Receives counts.
    """

    tables: Tables
    user_ids: IdArray
    item_ids: IdArray
    n_catalogue: int
    notes: MutableMapping[str, int]

    def read(
        self, table: Table, roles: Roles, answer: Answer, label: str, sides: Sides
    ) -> tuple[Interactions, Interactions]:
        """Log rows and test rows of a table, one a (user, item) pair.

        Args:
            table: The table, whose cells were checked.
            roles: Its columns by role.
            answer: Its answers.
            label: Beginning of the notes' names.
            sides: Which rows are test rows.
        """
        stores = [self._store(f"{label}{side}", answer) for side in range(2)]
        repeated = contradictory = 0
        for chunk in whole_groups(self.tables.stream(self._query(table, roles, answer)), "user"):
            cells, dropped, differing = _last_of_cells(chunk, len(self.item_ids))
            repeated += dropped - differing
            contradictory += differing
            feedback = {name: answer.convert(cells["answer"]) for name in answer.dtypes}
            rows = {"users": cells["user"], "items": cells["item"], **feedback}
            is_test = sides(cells)
            for side, store in enumerate(stores):
                store.append({key: column[is_test == side] for key, column in rows.items()})
        add_note(self.notes, f"{label}.repeated_rows_dropped", repeated)
        add_note(self.notes, f"{label}.contradictory_rows_dropped", contradictory)
        log, test = (answer.feedback(**store.finish()) for store in stores)
        return log, test

    def _store(self, label: str, answer: Answer) -> ColumnFiles:
        dtypes = {"users": np.int32, "items": np.int32, **answer.dtypes}
        return ColumnFiles(self.tables.folder, label, dtypes)

    def _query(self, table: Table, roles: Roles, answer: Answer) -> str:
        """SQL of complete rows by position, users ascending and each user's rows by time."""
        user, item = table.cell(roles["user"]), table.cell(roles["item"])
        cell = "1::DOUBLE"
        if answer.column is not None:
            cell = f"({number(table, self.tables, answer.column)})::DOUBLE"
        time = "NULL::DOUBLE"
        if "time" in roles:
            time = f"({seconds(table, self.tables, roles['time'])})::DOUBLE"
        return (
            f"SELECT u.id_position AS user, i.id_position AS item, {cell} AS answer, "
            f"{time} AS time FROM {table.sql} t "
            f"JOIN user_positions u ON u.id_text = t.{user}::VARCHAR "
            f"JOIN item_positions i ON i.id_text = t.{item}::VARCHAR "
            f"WHERE {cell} IS NOT NULL ORDER BY u.id_position, 4 NULLS FIRST, t.rowid"
        )

    def by_user(self, share: float, history: float, timed: bool) -> Sides:
        """Test users by a hash of their ids; of their rows, the later ones or a hash's choice."""
        n_users = len(self.user_ids)
        if n_users < 2:
            raise ConfigError(
                "One user alone cannot be split by user: use split='time', or give test=."
            )
        bits, item_bits = id_bits(self.user_ids), id_bits(self.item_ids)
        draw = uniform(mixed(bits))
        tested = draw < share
        tested[draw.argmin()], tested[draw.argmax()] = True, False

        def sides(cells: Chunk) -> NDArray[np.bool_]:
            users = cells["user"]
            rank = np.arange(len(users))
            if not timed:
                order = np.lexsort([mixed(bits[users] ^ mixed(item_bits[cells["item"]])), users])
                rank[order] = np.arange(len(users))
            _, first, number_of = np.unique(users, return_index=True, return_inverse=True)
            sizes = np.diff(np.append(first, len(users)))
            n_history = np.floor(history * sizes)
            return np.asarray(tested[users] & (rank - first[number_of] >= n_history[number_of]))

        return sides


def by_time(moment: float) -> Sides:
    """Rows from a moment on are test rows; those without a time are not."""
    return lambda cells: cells["time"] >= moment


def log_alone(cells: Chunk) -> NDArray[np.bool_]:
    """No row is a test row."""
    return np.zeros(len(cells["user"]), dtype=bool)


def test_alone(cells: Chunk) -> NDArray[np.bool_]:
    """Every row is a test row."""
    return ~log_alone(cells)


def without_cells(log: Interactions, test: Interactions, n_items: int) -> NDArray[np.bool_]:
    """(n,) bool: the log rows whose (user, item) pair has no test row."""
    answered = np.sort(test.users.astype(np.int64) * n_items + test.items)
    keys = log.users.astype(np.int64) * n_items + log.items
    rank = np.minimum(np.searchsorted(answered, keys), len(answered) - 1)
    return np.asarray(answered[rank] != keys)


def _last_of_cells(chunk: Chunk, n_items: int) -> tuple[Chunk, int, int]:
    """The last row of each cell, rows in order of time; rows dropped, and those that differ."""
    key = chunk["user"].astype(np.int64) * n_items + chunk["item"]
    _, last, cell = np.unique(key[::-1], return_index=True, return_inverse=True)
    if len(last) == len(key):
        return chunk, 0, 0
    answer = chunk["answer"]
    differing = int(np.count_nonzero(answer[::-1] != answer[::-1][last][cell]))
    stay = np.sort(len(key) - 1 - last)
    rows = {name: column[stay] for name, column in chunk.items()}
    return rows, len(key) - len(last), differing
