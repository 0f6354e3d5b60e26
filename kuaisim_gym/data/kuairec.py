"""KuaiRec: ``big_matrix.csv`` is the biased log, ``small_matrix.csv`` the test table.

Source: Gao et al., "KuaiRec: A fully-observed dataset and insights for evaluating recommender
systems", CIKM 2022. Of the matrices, ``user_id, video_id, watch_ratio`` are required and
``timestamp`` is used where it is present. Categories, user features, daily counts and the social
network are used where their files are present.
"""

from __future__ import annotations

import ast
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from kuaisim_gym.data.captions import CaptionedSource, joined, read_captions
from kuaisim_gym.data.coding import (
    USER_FIELDS,
    USER_NUMBERS,
    Field,
    Positions,
    note_counts,
    read_entities,
    read_features,
)
from kuaisim_gym.data.dataset import Dataset, Features
from kuaisim_gym.data.feedback import IntArray, Interactions, WatchLog, are_distinct
from kuaisim_gym.data.files import DataFiles, Layout, find_files
from kuaisim_gym.data.source import PublishedArchive, Writer
from kuaisim_gym.data.tables import (
    Chunk,
    Column,
    ColumnFiles,
    Table,
    Tables,
    open_tables,
    shown,
)
from kuaisim_gym.data.writer import (
    CLOCK_OFFSET,
    Columns,
    joined_values,
    log_writer,
    spread_times,
    table_writer,
    user_writer,
)
from kuaisim_gym.errors import ConfigError, DataFormatError

BIG_MATRIX, SMALL_MATRIX = "big_matrix", "small_matrix"
ITEM_CATEGORIES, ITEM_DAILY = "item_categories", "item_daily_features"
USER_FEATURES, SOCIAL_NETWORK = "user_features", "social_network"
LAYOUT = Layout(
    "KuaiRec",
    required=(BIG_MATRIX, SMALL_MATRIX),
    optional=(ITEM_CATEGORIES, USER_FEATURES, ITEM_DAILY, SOCIAL_NETWORK),
)
_WATCH_MAX = float(np.finfo(np.float32).max)
_ID_LIST = re.compile(r"\[\s*(-?\d+(\s*,\s*-?\d+)*)?\s*,?\s*\]", re.ASCII)
_SPAN = (1593878400.0, 1599321600.0)  # seconds: 2020-07-05 to 2020-09-05

logger = logging.getLogger(__name__)


class KuaiRec(CaptionedSource):
    """KuaiRec as published.

    Rules of reading, each counted in ``Dataset.notes``:

    * Of the rows of one (user, video) pair in a matrix the last by ``timestamp`` stays; a row
      without a time counts as earlier than any with one, and of equal times the later line is the
      last. Without a column ``timestamp``, their mean watch ratio stays, at the first one's place.
    * A logged row whose cell is also in the small matrix is dropped: it would leak test
      answers.
    * A user's rows are sorted by time, rows without one first, then by their order in the file.
    * The catalogue is the videos of the small matrix, ascending; videos of the log alone stand
      behind it, ascending. Users are those of the two matrices, ascending.
    * Features, daily counts and friends of other users or videos are dropped.
    * ``show_counts`` sums ``show_cnt`` over the days; a missing cell counts as 0, and so does a
      video without a row.
    * A friendship that is listed twice is one.
    """

    name = "kuairec"
    archives = (
        PublishedArchive(
            "kuairec", "kuairec", 18164998, "KuaiRec.zip", None, 450_000_000, 1_700_000_000
        ),
    )
    published: ClassVar = {
        "train": ("7,176", "10,728", "12,530.8k"),
        "test": ("1,411", "3,327", "4,676.5k"),
    }

    def find(self, path: str | Path) -> DataFiles:
        return find_files(path, [self.layout(LAYOUT)])

    def read(self, files: DataFiles) -> Dataset:
        with open_tables() as tables:
            big, small = (_read_matrix(tables, files, name) for name in (BIG_MATRIX, SMALL_MATRIX))
            catalogue = tables.distinct("video_id", small)
            logged = tables.distinct("video_id", big)
            log_only = np.setdiff1d(logged, catalogue, assume_unique=True)
            reader = _Reader(
                tables,
                files.tables,
                Positions(tables.distinct("user_id", big, small)),
                Positions(np.concatenate([catalogue, log_only])),
            )
            test = reader.rows(small, SMALL_MATRIX, None)
            answered = np.zeros((len(reader.users), len(catalogue)), dtype=bool)
            answered[test.users, test.items] = True
            log = reader.rows(big, BIG_MATRIX, answered)
            reader.notes["log_only_items"] = len(log_only)
            dataset = Dataset(
                name=self.name,
                synthetic=False,
                user_ids=reader.users.ids,
                item_ids=reader.items.ids,
                n_items=len(catalogue),
                log=log,
                test=test,
                user_features=read_user_features(tables, files, reader.users, reader.notes),
                item_features=joined(
                    read_categories(tables, files, reader.items, reader.notes),
                    read_captions(tables, files, reader.items, reader.notes),
                ),
                show_counts=reader.show_counts(len(catalogue)),
                friends=reader.friends(),
                notes=reader.notes,
            )
        logger.info("Read KuaiRec from %s: %s", files.folder, note_counts(dataset.notes))
        return dataset

    def synthetic(self, seed: int) -> Dataset:
        from kuaisim_gym.data.synthetic import synthetic_kuairec

        return synthetic_kuairec(seed)

    def write(self, dataset: Dataset) -> dict[str, Writer]:
        files = {
            BIG_MATRIX: _matrix_writer(dataset, dataset.log),
            SMALL_MATRIX: _matrix_writer(dataset, dataset.test),
        }
        if "category" in dataset.item_features.codes:
            texts = joined_values(dataset.item_features, "category", "[{}]", ", ")
            feat = {"video_id": dataset.item_ids, "feat": np.where(texts == "", "[]", texts)}
            files[ITEM_CATEGORIES] = table_writer(feat)
        if dataset.user_features.codes or dataset.user_features.numbers:
            files[USER_FEATURES] = user_writer(dataset)
        if dataset.show_counts is not None:
            daily = {
                "video_id": dataset.item_ids,
                "date": np.full(len(dataset.item_ids), 20200705),
                "show_cnt": dataset.show_counts,
            }
            files[ITEM_DAILY] = table_writer(daily)
        if dataset.friends is not None and len(dataset.friends):
            files[SOCIAL_NETWORK] = table_writer(_friend_columns(dataset.user_ids, dataset.friends))
        return files


def read_user_features(
    tables: Tables, files: DataFiles, users: Positions, notes: dict[str, int]
) -> Features:
    """Features of KuaiRec's users by position; no fields without their file."""
    paths = files.tables.get(USER_FEATURES)
    table = read_entities(tables, paths, "user_id", USER_FIELDS, USER_NUMBERS)
    fields = [Field(name) for name in USER_FIELDS]
    return read_features(tables, table, users, fields, notes, USER_FEATURES)


def read_categories(
    tables: Tables, files: DataFiles, items: Positions, notes: dict[str, int]
) -> Features:
    """Categories of KuaiRec's videos by position; no field without their file."""
    if ITEM_CATEGORIES not in files.tables:
        return Features()
    columns = [Column("video_id"), Column("feat", "text", gaps=True)]
    table = tables.read(files.tables[ITEM_CATEGORIES], columns, rows="videos")
    fields = [Field("category", _id_texts, source="feat")]
    return read_features(tables, table, items, fields, notes, ITEM_CATEGORIES)


def _read_matrix(tables: Tables, files: DataFiles, name: str) -> Table:
    columns = [
        Column("user_id"),
        Column("video_id"),
        Column("watch_ratio", "number", low=0, high=_WATCH_MAX),
        Column("timestamp", "number", gaps=True, required=False),
    ]
    return tables.read(files.tables[name], columns, rows="interactions")


@dataclass(frozen=True)
class _Reader:
    """Reads the tables of users and items by position, and counts irregularities in ``notes``."""

    tables: Tables
    files: Mapping[str, tuple[Path, ...]]
    users: Positions
    items: Positions
    notes: dict[str, int] = field(default_factory=dict)

    def rows(self, matrix: Table, name: str, answered: NDArray[np.bool_] | None) -> WatchLog:
        """Rows of a matrix by position, one per cell.

        Rows of (n_users, n_catalogue) ``answered`` cells, those of the test table, are dropped.
        """
        timed = "timestamp" in matrix.columns
        dtypes = {"users": np.int32, "items": np.int32, "watch_ratio": np.float32}
        rows = ColumnFiles(self.tables.folder, matrix.sql, dtypes)
        repeated = leaked = 0
        time = "timestamp" if timed else None
        for chunk in self.tables.in_order(matrix, matrix.columns, "user_id", time):
            cells: Chunk = {
                "users": self.users(chunk["user_id"]),
                "items": self.items(chunk["video_id"]),
                "watch_ratio": chunk["watch_ratio"],
            }
            cells = _one_a_cell(cells, len(self.items), timed)
            repeated += len(chunk["user_id"]) - len(cells["users"])
            if answered is not None:
                n_items = answered.shape[1]
                leaks = cells["items"] < n_items
                leaks &= answered[cells["users"], np.minimum(cells["items"], n_items - 1)]
                leaked += int(np.count_nonzero(leaks))
                cells = {key: column[~leaks] for key, column in cells.items()}
            rows.append(cells)
        self.notes[f"{name}_duplicates"] = repeated
        if timed:
            missing = self.tables.count(f"FROM {matrix.sql} WHERE timestamp IS NULL")
            self.notes[f"{name}_rows_without_time"] = missing
        if repeated:
            rule = "the last by time stays" if timed else "their mean stays"
            message = "%s: %d duplicate (user, video) row(s); %s."
            logger.warning(message, matrix.files[0], repeated, rule)
        log = WatchLog(**rows.finish())
        if answered is not None:
            self.notes["log_rows_dropped_as_test_cells"] = leaked
            if not len(log):
                raise DataFormatError(
                    f"Every row of {BIG_MATRIX}.csv is also in {SMALL_MATRIX}.csv: nothing is left "
                    f"to train on. Were the two files confused?"
                )
            if leaked:
                logger.warning("%s: dropped %d row(s) of test cells.", matrix.files[0], leaked)
        return log

    def show_counts(self, n_catalogue: int) -> NDArray[np.int64] | None:
        """(n_items,) sums over the days of how often each video was shown.

        Raises:
            DataFormatError: A sum is out of range, or no video of the catalogue was shown.
        """
        if ITEM_DAILY not in self.files:
            return None
        columns = [Column("video_id"), Column("show_cnt", low=0, gaps=True)]
        table = self.tables.read(self.files[ITEM_DAILY], columns, rows="videos and days")
        counts = np.zeros(len(self.items), np.int64)
        # DOUBLE sums would round; HUGEINT ones cannot overflow before the check.
        query = (
            f"SELECT video_id AS id, least(coalesce(sum(show_cnt), 0), {2**62})::BIGINT AS shown "
            f"FROM {table.sql} GROUP BY video_id"
        )
        n_listed = n_unknown = 0
        for chunk in self.tables.stream(query):
            positions = self.items(chunk["id"])
            listed = positions >= 0
            counts[positions[listed]] = chunk["shown"][listed]
            n_listed += int(np.count_nonzero(listed))
            n_unknown += int(np.count_nonzero(~listed))
        if counts.max() >= 2**62:
            raise DataFormatError(
                f"{table.files[0]}: a video's show_cnt sums to more than {2**62}."
            )
        if not counts[:n_catalogue].any():
            raise DataFormatError(
                f"{table.files[0]}, column 'show_cnt': expected exposures of videos of "
                f"{SMALL_MATRIX}, got none, so that no video is popular. Are the ids of one kind? "
                "Without this file exposures are counted in the log."
            )
        missing = self.tables.count(f"FROM {table.sql} WHERE show_cnt IS NULL")
        self.notes["show_counts_missing_cells"] = missing
        self.notes["show_counts_videos_without_a_row"] = len(counts) - n_listed
        self.notes["show_counts_unknown_videos_dropped"] = n_unknown
        return counts

    def friends(self) -> IntArray | None:
        """(f, 2) int32 pairs of user positions, ascending."""
        if SOCIAL_NETWORK not in self.files:
            return None
        columns = [Column("user_id"), Column("friend_list", "text")]
        table = self.tables.read(self.files[SOCIAL_NETWORK], columns, rows="users and friends")
        users: list[int] = []
        lists: list[NDArray[np.int64]] = []
        for chunk in self.tables.stream(
            f"SELECT user_id, friend_list FROM {table.sql} ORDER BY rowid"
        ):
            users += chunk["user_id"].tolist()
            for cell in chunk["friend_list"].tolist():
                try:
                    lists.append(np.array(_id_list(cell), np.int64))
                except (ValueError, OverflowError) as error:
                    raise DataFormatError(
                        f"{table.location(len(lists))}, column 'friend_list': expected a list of "
                        f"user ids such as [27, 9], got {shown(cell)}. Correct or remove the "
                        "row."
                    ) from error
        first = self.users(np.repeat(np.array(users, np.int64), list(map(len, lists))))
        second = self.users(np.concatenate(lists))
        inside = (first >= 0) & (second >= 0)
        n_users = len(self.users)
        pairs = np.unique(first[inside].astype(np.int64) * n_users + second[inside])
        self.notes["friendships_of_unknown_users_dropped"] = int(np.count_nonzero(~inside))
        self.notes["friendships_repeated"] = int(np.count_nonzero(inside)) - len(pairs)
        return np.stack([pairs // n_users, pairs % n_users], axis=1).astype(np.int32)


def _one_a_cell(cells: Chunk, n_items: int, timed: bool) -> Chunk:
    """Resolves repeated cells in the rows of complete users, which are in the order of time."""
    users = cells["users"] - cells["users"][0]
    key = users.astype(np.int64) * n_items + cells["items"]
    if are_distinct(key, (int(users[-1]) + 1) * n_items):
        return cells
    if timed:
        last = len(key) - 1 - np.unique(key[::-1], return_index=True)[1]
        stay = np.sort(last)
        return {name: column[stay] for name, column in cells.items()}
    _, first, cell = np.unique(key, return_index=True, return_inverse=True)
    sums = np.bincount(cell, weights=cells["watch_ratio"].astype(np.float64))
    means = np.empty(len(key))
    means[first] = sums / np.bincount(cell)
    stay = np.sort(first)
    return {name: column[stay] for name, column in (cells | {"watch_ratio": means}).items()}


def _id_texts(cell: str) -> list[str]:
    return list(dict.fromkeys(map(str, _id_list(cell))))


def _id_list(cell: str) -> list[int]:
    """The numbers in a list as Python writes it, such as ``[27, 9]``."""
    expected = "a list of whole numbers such as [27, 9]"
    if not _ID_LIST.fullmatch(cell.strip()):
        raise ValueError(expected)
    try:
        return list(map(int, ast.literal_eval(cell.strip())))
    except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
        raise ValueError(expected) from error


def _matrix_writer(dataset: Dataset, table: Interactions) -> Writer:
    """Writes one matrix, with all eight published columns."""
    if "watch_ratio" not in table.columns:
        raise ConfigError(f"Expected the watch ratios of KuaiRec, got a {type(table).__name__}.")
    start, end = _SPAN
    local = f"make_timestamp(CAST(round((stamp + {CLOCK_OFFSET}) * 1e6) AS BIGINT))"
    select = (
        f"SELECT user_id, video_id, "
        f"CAST(round(least(watch * duration, 1e15)) AS BIGINT) AS play_duration, "
        f"duration AS video_duration, strftime({local}, '%Y-%m-%d %H:%M:%S.%g') AS \"time\", "
        f'strftime({local}, \'%Y%m%d\') AS "date", stamp AS "timestamp", watch AS watch_ratio'
    )
    times = spread_times(table.users, start, end - 1)

    def columns(block: slice) -> Columns:
        # As float64 a float32 is written with all the digits that give it back.
        watch = table.columns["watch_ratio"][block].astype(np.float64)
        return {"stamp": np.round(times[block], 3), "watch": watch}

    return log_writer(dataset, table, select, columns)


def _friend_columns(user_ids: NDArray[np.int64], friends: IntArray) -> Columns:
    """One row a user, with the list of that user's friends."""
    pairs = friends[np.argsort(friends[:, 0], kind="stable")]
    users, starts = np.unique(pairs[:, 0], return_index=True)
    lists = np.empty(len(users), dtype=object)
    lists[:] = [str(group.tolist()) for group in np.split(user_ids[pairs[:, 1]], starts[1:])]
    return {"user_id": user_ids[users], "friend_list": lists}
