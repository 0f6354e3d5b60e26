"""The source ``table``: any log of users and items as a dataset."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kuaisim_gym.config import is_number
from kuaisim_gym.data.cache import cached
from kuaisim_gym.data.coding import add_note, note_counts
from kuaisim_gym.data.custom.cells import check_ids, check_numbers, seconds
from kuaisim_gym.data.custom.columns import ANSWERS, Roles, check_columns, find_roles, require
from kuaisim_gym.data.custom.features import Entities, read_exposures
from kuaisim_gym.data.custom.folders import TABLES, find_tables, unread_files
from kuaisim_gym.data.custom.inputs import ENDINGS, Given, Input, digest_of_inputs, make_input
from kuaisim_gym.data.custom.options import TableOptions
from kuaisim_gym.data.custom.rows import (
    Answer,
    Rows,
    Sides,
    by_time,
    log_alone,
    make_answer,
    test_alone,
    without_cells,
)
from kuaisim_gym.data.custom.settings import SETTINGS, read_settings
from kuaisim_gym.data.dataset import POSITIVE_RATE, Dataset, Features, IdArray
from kuaisim_gym.data.feedback import Interactions
from kuaisim_gym.data.files import check_unchanged
from kuaisim_gym.data.source import SOURCES, Source
from kuaisim_gym.data.storage import from_arrays, to_arrays
from kuaisim_gym.data.tables import Table, Tables, literal, open_tables
from kuaisim_gym.errors import ConfigError, DataFormatError

WHOLE_ID = r"-?(0|[1-9]\d{0,18})(\.0*)?"
LONGEST_ID = 256  # characters: ids are stored at the length of the longest
LONGEST_NAME = 100  # characters: files of results are called by it
NOT_READ = f"expected one of {', '.join(ENDINGS)}"
LEAST_ITEMS = 2  # one popular and one in the long tail

SOUGHT: dict[str, tuple[str, ...]] = {  # roles by table
    "log": ("user", "item", *ANSWERS, "time", "exposures", "propensity"),
    "test": ("user", "item", *ANSWERS, "time"),
    "items": ("item", "exposures", "propensity"),
    "users": ("user",),
}
ABSENT = {  # what becomes of a dataset without a table
    "test": "a part of the log becomes the test rows, with the log's bias",
    "items": "items have no features, and popularity is counted in the log",
    "users": "users have no features",
}

logger = logging.getLogger(__name__)


class TableSource(Source):
    """Tables of any origin: data frames, CSV, TSV and Parquet files, RecBole's atomic files.

    Each row of the log is an answer of a user to an item. Its answer is a *response* in [0, 1], a
    *rating*, with ``rating_map`` or ``positive_from``, a *label* of 0 or 1, or, where none of
    these columns is there, the row itself, which is then a positive.

    Rules of reading, each counted in ``Dataset.notes``:

    * Ids are whole numbers where all are, else texts as they are written, without blanks around.
    * A row without a user, an item or an answer is dropped.
    * Of the rows of one (user, item) pair the last by time stays; a row without a time counts as
      earlier than any with one, and of equal times the later row is the last. Dropped rows count
      as *repeated* where they say the same, else as *contradictory*.
    * A row of the log whose pair is also in the given test table is dropped.
    * A user's rows are sorted by time, rows without one first, then by their order in the table.
    * Columns of ``items`` and ``users`` without another role are features: a column of numbers
      with more than 20 values is a number, any other a category of one value; a category with
      more values than half of the rows, such as a title, is left out. RecBole's types count where
      they are there.
    * Exposures of an item are summed, propensities are averaged and multiplied by the number of
      users. They are read from ``items`` if it has them, else from ``log``.

    Args:
        log: A DataFrame, a file or the files of one table, in order: CSV, TSV (both may be
            compressed), Parquet, or RecBole's ``.inter``; or a folder, see
            :func:`~kuaisim_gym.data.custom.folders.find_tables`. As ``path``, also a ``.toml`` file
            of these arguments, see :func:`~kuaisim_gym.data.custom.settings.read_settings`.
        test: Unbiased rows, which only the test simulator sees; ``None`` to split the log.
        items: Features, groups and exposures of items; ``None`` for none.
        users: Features of users; ``None`` for none.
        name: Label of the dataset in results; the file's or folder's name by default.
        columns: The column of a role (``"user"``, ``"item"``, ``"response"``, ``"rating"``,
            ``"label"``, ``"time"``, ``"exposures"``, ``"propensity"``), where its name is not one
            of :data:`~kuaisim_gym.data.custom.columns.RECOGNISED`; ``None`` for no such column.
        rating_map: The ratings that stand for the responses 0 and 1; those between are linear.
        positive_from: The least rating that is positive.
        split: ``"user"``: a stable hash of the id makes ``test_share`` of the users test users;
            the first ``history_share`` of their rows, by time or else by a stable hash, stay in
            the log. ``"time"``: rows from ``split_time`` on, or the last ``test_share`` of rows,
            are test rows. ``"given"``: those of ``test``. By default ``"given"`` with ``test``,
            else ``"user"``.
        test_share: See ``split``.
        split_time: A time as in the table, or a date.
        history_share: See ``split``.
        catalogue: ``"all"``: all items that have a row may be recommended; ``"test"``: those with
            a test row. By default ``"test"`` where ``test`` is given, else ``"all"``.
        popularity: ``"exposures"`` or ``"positives"``, see :class:`Dataset`; by default
            ``"positives"`` where the log holds positives alone and exposures are not known.
        item_features: By column of ``items``: ``"category"``, ``"number"``, or the separator of
            several values, such as ``"|"``; ``None`` for the rules above.
        user_features: The same for ``users``.
        groups: Columns of ``items`` that groups can be made of, such as an author; they are no
            features.
        pools: Whether a session of the test split may show its user only those items that the
            user has a test row of, so that every answer is a recorded one.
        positive_rate: Share of positives among the exposures behind a log of positives alone, which
            the log cannot tell; :class:`Dataset` has the default.
        synthetic: Whether the rows were generated.

    Raises:
        ConfigError: An option is not allowed, or not meant for these tables.
        DatasetNotFoundError: A file is missing.
    """

    name = "table"
    version = 4  # raised when the same tables would give another dataset or other notes
    plays_any = True
    options = (*TABLES, "name", *(column.name for column in fields(TableOptions)))

    def __init__(
        self,
        *,
        log: Given = None,
        test: Given = None,
        items: Given = None,
        users: Given = None,
        name: str | None = None,
        **options: Any,
    ) -> None:
        self._given = {"log": log, "test": test, "items": items, "users": users}
        self._label = name
        given = {**self._given, "name": name, **options}
        self._given_options = [option for option, value in given.items() if value is not None]
        self.choices = TableOptions(**options)

    def load(self, path: str | Path | None, seed: int) -> Dataset:
        if path is not None and Path(path).suffix == SETTINGS:
            return self._described(path).load(None, seed)
        inputs, label = self._inputs(path)
        for file in self._unread(path, inputs):
            logger.warning("%s is not read: %s", file, NOT_READ)
        digest = self._digest(inputs)
        if digest is None:
            return self._read(inputs, label, digest)
        key = f"{self.name}-{digest}-{_file_name(label)}-v{self.version}"
        return from_arrays(cached(key, lambda: to_arrays(self._read(inputs, label, digest))))

    def files(self, path: str | Path) -> list[Path]:
        if Path(path).suffix == SETTINGS:
            return [Path(path)]
        return [file for files in find_tables(Path(path)).values() for file in files]

    def inspect(self, path: str | Path | None) -> list[str]:
        if path is not None and Path(path).suffix == SETTINGS:
            return self._described(path).inspect(None)
        inputs, label = self._inputs(path)
        lines = [f"source:  {self.name}, your own data, called {label!r}"]
        for name, table in inputs.items():
            roles = find_roles(table.label, table.header, SOUGHT[name], self.choices.columns)
            columns = ", ".join(f"{role} = {column}" for role, column in roles.items())
            lines.append(f"{f'{name}:':8} {table.label}; {columns or 'no known column'}")
            unused = [column for column in table.header if column not in roles.values()]
            if name in ("log", "test") and not roles.keys() & set(ANSWERS):
                lines.append("         no column of answers: every row is a positive")
            for use, names in self._uses(name, unused).items():
                if names:
                    lines.append(f"         {use}: {', '.join(names)}")
        for name, purpose in ABSENT.items():
            if name not in inputs:
                lines.append(f"missing: {name}, which is optional; {purpose}")
        lines += [f"unread:  {file.name}; {NOT_READ}" for file in self._unread(path, inputs)]
        return lines

    def _uses(self, name: str, columns: Sequence[str]) -> dict[str, list[str]]:
        """A table's columns without a role, by what they are used for."""
        options = self.choices
        kinds = {"items": options.item_features, "users": options.user_features}.get(name, {})
        groups = options.groups if name == "items" else ()
        uses: dict[str, list[str]] = {"features": [], "groups": [], "not read": []}
        for column in columns:
            is_feature = kinds is None or column in kinds
            use = "groups" if column in groups else "features" if is_feature else "not read"
            uses[use].append(column)
        return uses

    def _described(self, path: str | Path) -> TableSource:
        """The source with the options of a file that describes a dataset.

        Raises:
            ConfigError: There are other options beside it.
        """
        if self._given_options:
            raise ConfigError(
                f"{path} holds all options of the dataset: write {sorted(self._given_options)} "
                "into it, too."
            )
        return TableSource(**read_settings(Path(path), self.options))

    def _inputs(self, path: str | Path | None) -> tuple[dict[str, Input], str]:
        """The tables that there are, and the dataset's label."""
        tables = {name: table for name, table in self._given.items() if table is not None}
        folder = tables.get("log") if path is None else path
        if path is not None and "log" in tables:
            raise ConfigError("Give path or log, not both.")
        if folder is None:
            raise ConfigError(
                "There is no table to read: give the log, load_dataset('table', log=...), a "
                "DataFrame, a file or a folder. An environment of any data takes the result: "
                "gymnasium.make('Recommendation-Fair-v0', dataset=...)."
            )
        label = self._label or "my-table"
        if isinstance(folder, (str, Path)):
            tables = {**find_tables(Path(folder)), **tables}
            tables["log"] = find_tables(Path(folder))["log"]
            label = self._label or Path(folder).resolve().name.partition(".")[0]
        printable = isinstance(label, str) and label.strip() and label.isprintable()
        if not printable or len(label) > LONGEST_NAME or label in SOURCES:
            raise ConfigError(
                f"name must be a text that names your data, of one line and at most {LONGEST_NAME} "
                f"characters, and no name of a source ({sorted(SOURCES)}), got {label!r}."
            )
        if self.choices.split == "given" and "test" not in tables:
            raise ConfigError("split='given' needs the test rows: test=...")
        if self.choices.catalogue == "test" and "test" not in tables:
            raise ConfigError("catalogue='test' needs test rows of their own: test=...")
        if self.choices.split in ("user", "time") and "test" in tables:
            raise ConfigError(
                f"split={self.choices.split!r} divides the log, but test rows are given too: leave "
                "one of the two out."
            )
        return {name: make_input(table, name) for name, table in tables.items()}, label

    def _unread(self, path: str | Path | None, inputs: Mapping[str, Input]) -> list[Path]:
        """Files of a folder that are called as a table, but are of no form that is read."""
        folder = self._given["log"] if path is None else path
        return unread_files(Path(folder), inputs) if isinstance(folder, (str, Path)) else []

    def _digest(self, inputs: Mapping[str, Input]) -> str | None:
        return digest_of_inputs([inputs.get(table) for table in TABLES], self.choices.text)

    def _read(self, inputs: Mapping[str, Input], label: str, digest: str | None) -> Dataset:
        """Reads tables of a digest that was taken before."""
        with open_tables() as tables:
            dataset = _Reader(self.choices, inputs, tables).dataset(label)
        check_unchanged(digest, self._digest(inputs), inputs["log"].label)
        logger.info("Read %s: %s", label, note_counts(dataset.notes))
        return dataset


def _date(seconds_since_1970: float) -> str:
    try:
        return datetime.fromtimestamp(seconds_since_1970, UTC).strftime("%Y-%m-%d %H:%M")
    except (ValueError, OverflowError, OSError):
        return "no date"


def _file_name(label: str) -> str:
    """A label as a part of a file's name."""
    return "".join(letter if letter.isalnum() else "_" for letter in label)[:40]


@dataclass
class _Reader:
    """Reads the tables of one dataset."""

    options: TableOptions
    inputs: Mapping[str, Input]
    tables: Tables
    notes: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_columns(self.options.columns, [table.header for table in self.inputs.values()])
        self.roles = {name: self._roles(name) for name in self.inputs}
        self.answers = {name: self._answer(name) for name in ("log", "test") if name in self.inputs}
        if "test" in self.answers:
            self._check_alike(self.answers["log"], self.answers["test"])
        if not any("rating" in roles for roles in self.roles.values()):
            for option in ("rating_map", "positive_from"):
                if getattr(self.options, option) is not None:
                    raise ConfigError(
                        f"{option} is for ratings, but {self.inputs['log'].label} has no column of "
                        f"ratings; it has {self.inputs['log'].header}."
                    )
        if self.options.positive_rate is not None and self.answers["log"].feedback.has_negatives:
            raise ConfigError(
                f"positive_rate is for a log of positives alone, but {self.inputs['log'].label} "
                "has answers: leave it out."
            )
        if self.options.split == "time" and "time" not in self.roles["log"]:
            require(self.inputs["log"].label, self.inputs["log"].header, self.roles["log"], "time")
        for name in self.options.groups:
            if name in self.roles.get("items", {}).values():
                raise ConfigError(
                    f"groups names the column {name!r}, which holds ids or exposures."
                )
        if self.options.groups and "items" not in self.inputs:
            raise ConfigError(
                f"groups={list(self.options.groups)} are columns of items=, not given."
            )

    def _roles(self, name: str) -> Roles:
        """The roles of a table's columns."""
        table = self.inputs[name]
        roles = find_roles(table.label, table.header, SOUGHT[name], self.options.columns)
        required = {"items": ("item",), "users": ("user",)}.get(name, ("user", "item"))
        require(table.label, table.header, roles, *required)
        return roles

    def _answer(self, name: str) -> Answer:
        options = self.options
        label, roles = self.inputs[name].label, self.roles[name]
        return make_answer(label, roles, options.rating_map, options.positive_from)

    def _check_alike(self, log: Answer, test: Answer) -> None:
        if log.feedback.behaviours != test.feedback.behaviours:
            raise DataFormatError(
                f"The log holds {log.feedback.__name__} rows ({log.column or 'positives alone'}) "
                f"and the test table {test.feedback.__name__} rows "
                f"({test.column or 'positives alone'}): answers must be of one kind. Name the "
                f"columns by columns=, or make ratings yes or no by positive_from=."
            )
        if log.feedback.has_negatives and not test.feedback.has_negatives:
            raise DataFormatError(
                f"The log tells yes from no ({log.column}), but the test table has no column of "
                f"answers: all of its rows would be yes. Give it one, by the name of "
                f"{' or '.join(ANSWERS)}, or by columns=."
            )

    def dataset(self, label: str) -> Dataset:
        """The dataset of a label."""
        stored = {name: self._store(name) for name in self.inputs}
        for name in self.answers:
            self._check_rows(stored[name], name)
        user_ids = self._number("user", stored)
        rows = self._rows(stored, user_ids, self._number("item", stored))
        log, test, rule = self._split(stored, rows)
        if not len(test) or not len(log):
            empty = "test" if not len(test) else "log"
            raise DataFormatError(
                f"The split by {rule} leaves no {empty} rows of {self.inputs['log'].label}"
                f"{self._times(stored['log'])}: choose another split."
            )
        if rows.n_catalogue < LEAST_ITEMS:
            raise DataFormatError(
                f"The catalogue holds {rows.n_catalogue} item(s); at least {LEAST_ITEMS} are "
                "needed, a popular one and another. catalogue='all' takes all that have a row."
            )
        items = self._entities("items", "item", stored, len(rows.item_ids))
        users = self._entities("users", "user", stored, len(user_ids))
        shown = self._exposures(stored, rows, log)
        positives_alone = shown is None and not log.has_negatives
        default = "positives" if positives_alone else "exposures"
        groups = list(self.options.groups)
        add_note(self.notes, "log_rows", len(log))
        add_note(self.notes, "test_rows", len(test))
        dataset = Dataset(
            name=label,
            synthetic=self.options.synthetic,
            user_ids=user_ids,
            item_ids=rows.item_ids,
            n_items=rows.n_catalogue,
            log=log,
            test=test,
            user_features=self._features(users, self.options.user_features),
            item_features=self._features(items, self.options.item_features),
            show_counts=shown,
            item_groups={} if items is None else items.labels(groups, rows.n_catalogue),
            notes=self.notes,
            source=TableSource.name,
            split_rule=rule,
            popularity=self.options.popularity or default,
            pools=self.options.pools,
            positive_rate=self.options.positive_rate or POSITIVE_RATE,
        )
        return replace(dataset, notes=self.notes | self._uncounted(dataset))

    def _uncounted(self, dataset: Dataset) -> dict[str, int]:
        """The number of items of the catalogue whose popularity is not known.

        Raises:
            ConfigError: Positives are to be counted, and there are none.
        """
        counts, kind = dataset.training.popularity_counts, dataset.popularity
        if self.options.popularity == "positives" and not counts.any():
            raise ConfigError(
                "popularity='positives' counts train rows with a response of at least .5, and "
                "there are none: count exposures, or choose another rating_map or positive_from."
            )
        n_without = int(np.count_nonzero(counts[: dataset.n_items] == 0))
        return {f"catalogue.items_without_{kind}": n_without}

    def _store(self, name: str) -> Table:
        """Stores the columns of a table that are needed."""
        table, roles = self.inputs[name], self.roles[name]
        columns = list(roles.values())
        if name in ("items", "users"):
            columns = list(table.header)
        stored = table.load(self.tables, columns, roles.get("time"))
        for role in ("user", "item"):
            if role in roles:
                check_ids(stored, self.tables, roles[role])
        return stored

    def _check_rows(self, table: Table, name: str) -> None:
        """Checks the cells of rows, and counts those that will be dropped."""
        roles, answer = self.roles[name], self.answers[name]
        if answer.column is not None:
            check_numbers(table, self.tables, answer.column, answer.low, answer.high, answer.rule)
        columns = {"user": roles["user"], "item": roles["item"]}
        if answer.column is not None:
            columns["answer"] = answer.column
        missing = {role: f"{table.cell(column)} IS NULL" for role, column in columns.items()}
        for role, condition in missing.items():
            dropped = self.tables.count(f"FROM {table.sql} WHERE {condition}")
            add_note(self.notes, f"{name}.rows_without_{role}", dropped)
        complete = self.tables.count(
            f"FROM {table.sql} WHERE NOT ({' OR '.join(missing.values())})"
        )
        if not complete:
            raise DataFormatError(
                f"{self.inputs[name].label} has no complete row: each lacks one of "
                f"{list(columns.values())}."
            )
        if "time" in roles:
            untimed = self.tables.count(
                f"FROM {table.sql} WHERE {table.cell(roles['time'])} IS NULL"
            )
            add_note(self.notes, f"{name}.rows_without_time", untimed)

    def _number(self, entity: str, stored: Mapping[str, Table]) -> IdArray:
        """Numbers the ids of users or items that have rows; for items, the catalogue first."""
        texts = {
            name: f"SELECT DISTINCT {stored[name].cell(self.roles[name][entity])}::VARCHAR "
            f"AS id_text FROM {stored[name].sql} WHERE {self._complete(name, stored[name])}"
            for name in self.answers
        }
        union = " UNION ".join(texts.values())
        self.tables.execute(f"CREATE TABLE {entity}_texts AS {union}")
        clause = f"FROM {entity}_texts"
        number = "TRY_CAST(regexp_replace(id_text, '\\.0*$', '') AS BIGINT)"
        whole = f"regexp_full_match(id_text, {literal(WHOLE_ID)}) AND {number} IS NOT NULL"
        key = "id_text" if self.tables.count(f"{clause} WHERE NOT ({whole})") else number
        longest = self.tables.column(f"SELECT max(length(id_text)) {clause}")[0]
        if longest > LONGEST_ID:
            raise DataFormatError(
                f"{self.inputs['log'].label}: an id of a {entity} has {longest} characters; at "
                f"most {LONGEST_ID} are allowed. Is {self.roles['log'][entity]!r} the right column?"
            )
        first = "0"
        if entity == "item" and "test" in self.inputs and self.options.catalogue != "all":
            first = f"(id_text NOT IN ({texts['test']}))::INTEGER"
        numbered = f"SELECT id_text, {key} AS id, {first} AS is_last {clause}"
        grouped = (
            f"SELECT id_text, id, min(is_last) OVER (PARTITION BY id) AS behind FROM ({numbered})"
        )
        self.tables.execute(
            f"CREATE TABLE {entity}_positions AS SELECT id_text, id, behind, (dense_rank() "
            f"OVER (ORDER BY behind, id) - 1)::INTEGER AS id_position FROM ({grouped})"
        )
        if key == number:
            self._add_spellings(entity, stored, f"{whole} AND {number} = p.id")
        query = f"SELECT DISTINCT id_position, id FROM {entity}_positions ORDER BY id_position"
        chunks = [chunk["id"] for chunk in self.tables.stream(query)]
        if key == "id_text":
            return np.concatenate([chunk.astype(np.str_) for chunk in chunks])
        return np.concatenate(chunks).astype(np.int64)

    def _add_spellings(self, entity: str, stored: Mapping[str, Table], condition: str) -> None:
        """Gives other spellings of whole numbers, such as 4.0, the positions of their ids.

        Args:
            entity: ``"user"`` or ``"item"``.
            stored: The tables.
            condition: SQL that an ``id_text`` stands for the id of a row ``p``.
        """
        name = f"{entity}s"
        if name not in stored:
            return
        positions, key = f"{entity}_positions", stored[name].cell(self.roles[name][entity])
        self.tables.execute(
            f"INSERT INTO {positions} SELECT x.id_text, p.id, p.behind, p.id_position FROM "
            f"(SELECT DISTINCT {key}::VARCHAR AS id_text FROM {stored[name].sql}) x "
            f"JOIN (SELECT DISTINCT id, behind, id_position FROM {positions}) p ON "
            f"{condition} "
            f"WHERE x.id_text NOT IN (SELECT id_text FROM {positions})"
        )

    def _complete(self, name: str, table: Table) -> str:
        """SQL of the condition that a row is complete."""
        roles, column = self.roles[name], self.answers[name].column
        names = [roles["user"], roles["item"], *([] if column is None else [column])]
        return " AND ".join(f"{table.cell(cell)} IS NOT NULL" for cell in names)

    def _rows(self, stored: Mapping[str, Table], user_ids: IdArray, item_ids: IdArray) -> Rows:
        n = int(
            self.tables.column("SELECT count(DISTINCT id) FROM item_positions WHERE behind = 0")[0]
        )
        return Rows(self.tables, user_ids, item_ids, n, self.notes)

    def _split(
        self, stored: Mapping[str, Table], rows: Rows
    ) -> tuple[Interactions, Interactions, str]:
        """Log, test rows, and the rule that tells them apart, in words."""
        roles, answers = self.roles, self.answers
        if "test" in stored:
            log, _ = rows.read(stored["log"], roles["log"], answers["log"], "log", log_alone)
            _, test = rows.read(stored["test"], roles["test"], answers["test"], "test", test_alone)
            stay = without_cells(log, test, len(rows.item_ids))
            add_note(self.notes, "log.rows_of_test_cells_dropped", int(np.count_nonzero(~stay)))
            return log.take(stay), test, "given test rows"
        sides, rule = self._sides(stored["log"], rows)
        log, test = rows.read(stored["log"], roles["log"], answers["log"], "log", sides)
        return log, test, rule

    def _sides(self, table: Table, rows: Rows) -> tuple[Sides, str]:
        options, roles = self.options, self.roles["log"]
        share = f"{options.test_share:.0%}"
        if options.split != "time":
            timed = "time" in roles
            history = f"{options.history_share:.0%} of their rows"
            stay = f"the first {history}" if timed else f"{history}, chosen by a hash,"
            rule = f"user (a hash of the id makes {share} test users; {stay} stay in the log)"
            return rows.by_user(options.test_share, options.history_share, timed), rule
        time = seconds(table, self.tables, roles["time"])
        moment = options.moment
        if moment is None:
            query = f"SELECT quantile_disc({time}, {1 - options.test_share!r}) AS moment"
            chunk = next(self.tables.stream(f"{query} FROM {table.sql} WHERE {time} IS NOT NULL"))
            return by_time(float(chunk["moment"][0])), f"time (the last {share} of rows)"
        return by_time(moment), f"time (rows from {options.split_time} on)"

    def _times(self, table: Table) -> str:
        """The range of the log's times in words, where they make the split."""
        if self.options.split != "time":
            return ""
        column = self.roles["log"]["time"]
        time = seconds(table, self.tables, column)
        query = f"SELECT min({time})::DOUBLE AS first, max({time})::DOUBLE AS last FROM {table.sql}"
        first, last = (float(value[0]) for value in next(self.tables.stream(query)).values())
        if np.isnan(first):
            return f", whose column {column!r} holds no time"
        text = f", whose times in {column!r} run from {first:.15g} to {last:.15g}"
        if self.options.split_time is None or is_number(self.options.split_time):
            return text
        return f"{text}, as dates from {_date(first)} to {_date(last)}"

    def _exposures(
        self, stored: Mapping[str, Table], rows: Rows, log: Interactions
    ) -> NDArray[np.int64] | None:
        """(n_all_items,) exposures, of the items' table or else of the log."""
        logged = np.bincount(log.items, minlength=len(rows.item_ids))
        for name in ("items", "log"):
            if name in stored:
                roles = self.roles[name]
                shown = read_exposures(
                    self.tables,
                    stored[name],
                    roles["item"],
                    roles,
                    logged,
                    len(rows.user_ids),
                    self.notes,
                )
                if shown is not None:
                    return shown
        return None

    def _entities(
        self, name: str, entity: str, stored: Mapping[str, Table], n: int
    ) -> Entities | None:
        if name not in stored:
            return None
        key = self.roles[name][entity]
        entities = Entities(
            self.tables, self.inputs[name], stored[name], key, entity, n, self.notes
        )
        entities.check_known()
        return entities

    def _features(self, entities: Entities | None, kinds: Mapping[str, str] | None) -> Features:
        if entities is None:
            if kinds:
                raise ConfigError(
                    f"Features {sorted(kinds)} are columns of a table that is not given."
                )
            return Features()
        roles = self.roles["items" if entities.entity == "item" else "users"]
        used = {*roles.values(), *self.options.groups}
        columns = [name for name in entities.source.header if name not in used]
        return entities.features(kinds, columns)
