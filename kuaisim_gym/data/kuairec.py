"""KuaiRec as published: ``big_matrix.csv`` is the biased log, ``small_matrix.csv`` the test table.

Source: Gao et al., "KuaiRec: A fully-observed dataset and insights for evaluating recommender
systems", CIKM 2022. Of the matrices, ``user_id, video_id, watch_ratio`` are required and
``timestamp`` is used where it is present. Categories, user features, daily counts and the social
network are used where their files are present.
"""

from __future__ import annotations

import ast
import logging
import re
from collections.abc import Iterator, MutableMapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kuaisim_gym.data.coding import (
    USER_FIELDS,
    USER_NUMBERS,
    Field,
    Positions,
    note_counts,
    read_entities,
    read_features,
)
from kuaisim_gym.data.dataset import Dataset, Features, IntArray, WatchLog
from kuaisim_gym.data.sources import Layout, Sources, find_files
from kuaisim_gym.data.tables import (
    Chunk,
    Column,
    ColumnFiles,
    Table,
    Tables,
    open_tables,
    whole_groups,
)
from kuaisim_gym.errors import DataFormatError

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

logger = logging.getLogger(__name__)


def load_kuairec(path: str | Path) -> Dataset:
    """Reads KuaiRec.

    Rules, each counted in ``Dataset.notes``:

    * Of the rows of one (user, video) pair in a matrix the last by ``timestamp`` stays; a row
      without a time counts as earlier than any with one, and of equal times the later line is the
      last. Without a column ``timestamp``, their mean watch ratio stays, at the first one's place.
    * A logged row whose cell also stands in the small matrix is dropped: it would leak test
      answers.
    * A user's rows are sorted by time, rows without one first, then by their order in the file.
    * The catalogue is the videos of the small matrix, ascending; videos of the log alone stand
      behind it, ascending. Users are those of the two matrices, ascending.
    * Features, daily counts and friends of other users or videos are dropped.
    * ``show_counts`` sums ``show_cnt`` over the days; a missing cell counts as 0, and so does a
      video without a row.
    * A friendship that is listed twice is one.

    Args:
        path: The archive as downloaded, the folder it was unpacked to, or the one with the files.

    Returns:
        The dataset, with KuaiRec's own ids.

    Raises:
        DatasetNotFoundError: The folder or a required file is missing.
        DataFormatError: A file is empty, lacks a column, or holds a bad value; the message
            names file, column, row and value.
    """
    return read_kuairec(find_kuairec(path))


def find_kuairec(path: str | Path) -> Sources:
    """Finds KuaiRec's files; see :func:`~kuaisim_gym.data.sources.find_files`."""
    return find_files(path, [LAYOUT])


def read_kuairec(sources: Sources) -> Dataset:
    """Reads the files that were found; see :func:`load_kuairec`."""
    notes: dict[str, int] = {}
    with open_tables() as tables:
        big = _read_matrix(tables, sources, BIG_MATRIX)
        small = _read_matrix(tables, sources, SMALL_MATRIX)
        user_ids = tables.distinct("user_id", big, small)
        catalogue = tables.distinct("video_id", small)
        videos = tables.distinct("video_id", big)
        log_only = np.setdiff1d(videos, catalogue, assume_unique=True)
        item_ids = np.concatenate([catalogue, log_only])
        users, items = Positions(user_ids), Positions(item_ids)

        test = _read_rows(tables, small, users, items, len(item_ids), None, notes)
        answered = np.zeros((len(user_ids), len(catalogue)), dtype=bool)
        answered[test.users, test.items] = True
        log = _read_rows(tables, big, users, items, len(item_ids), answered, notes)
        notes["log_only_items"] = len(log_only)
        dataset = Dataset(
            name="kuairec",
            synthetic=False,
            user_ids=user_ids,
            item_ids=item_ids,
            n_items=len(catalogue),
            log=log,
            test=test,
            user_features=_user_features(tables, sources, users, len(user_ids), notes),
            item_features=_categories(tables, sources, items, len(item_ids), notes),
            show_counts=_show_counts(tables, sources, items, len(item_ids), notes),
            friends=_friends(tables, sources, users, len(user_ids), notes),
            notes=notes,
        )
    logger.info("Read KuaiRec from %s: %s", sources.folder, note_counts(notes))
    return dataset


def _read_matrix(tables: Tables, sources: Sources, name: str) -> Table:
    columns = [
        Column("user_id"),
        Column("video_id"),
        Column("watch_ratio", "number", low=0, high=_WATCH_MAX),
        Column("timestamp", "number", gaps=True, required=False),
    ]
    return tables.read(sources.tables[name], columns, rows="interactions")


def _read_rows(
    tables: Tables,
    matrix: Table,
    users: Positions,
    items: Positions,
    n_items: int,
    answered: NDArray[np.bool_] | None,
    notes: MutableMapping[str, int],
) -> WatchLog:
    """A matrix's rows by position, one a cell, without the cells that the test table answers."""
    timed = "timestamp" in matrix.columns
    order = "user_id, timestamp NULLS FIRST, rowid" if timed else "user_id, rowid"
    query = f"SELECT user_id, video_id, watch_ratio FROM {matrix.sql} ORDER BY {order}"
    rows = ColumnFiles(
        tables.folder,
        matrix.sql,
        {"users": np.int32, "items": np.int32, "watch_ratio": np.float32},
    )
    repeated = leaked = kept = 0
    for chunk in whole_groups(tables.stream(query), "user_id"):
        cells = {
            "users": users(chunk["user_id"]),  # type: ignore[arg-type]
            "items": items(chunk["video_id"]),  # type: ignore[arg-type]
            "watch_ratio": chunk["watch_ratio"],
        }
        before = len(cells["users"])
        cells = _one_a_cell(cells, n_items, timed)
        repeated += before - len(cells["users"])
        if answered is not None:
            inside = cells["items"] < answered.shape[1]
            free = np.ones(len(inside), dtype=bool)
            free[inside] = ~answered[cells["users"][inside], cells["items"][inside]]
            leaked += int(np.count_nonzero(~free))
            cells = {key: column[free] for key, column in cells.items()}
        kept += len(cells["users"])
        rows.append(cells)
    file = matrix.files[0]
    name = SMALL_MATRIX if answered is None else BIG_MATRIX
    notes[f"{name}_duplicates"] = repeated
    if timed:
        missing = tables.count(f"FROM {matrix.sql} WHERE timestamp IS NULL")
        notes[f"{name}_rows_without_time"] = missing
    if repeated:
        rule = "the last by time stays" if timed else "their mean stays"
        logger.warning("%s: %d duplicate (user, video) row(s); %s.", file, repeated, rule)
    if answered is not None:
        notes["log_rows_dropped_as_test_cells"] = leaked
        if not kept:
            raise DataFormatError(
                f"Every row of {BIG_MATRIX}.csv is also in {SMALL_MATRIX}.csv: nothing is left to "
                f"train on. Were the two files confused?"
            )
        if leaked:
            logger.warning("%s: dropped %d row(s) of test cells.", file, leaked)
    return WatchLog(**rows.finish())  # type: ignore[arg-type]


def _one_a_cell(cells: Chunk, n_items: int, timed: bool) -> Chunk:
    """Resolves the repeated cells of whole users' rows, which are in the order of time."""
    key = cells["users"].astype(np.int64) * n_items + cells["items"].astype(np.int64)
    if timed:
        last = len(key) - 1 - np.unique(key[::-1], return_index=True)[1]
        if len(last) == len(key):
            return cells
        stay = np.sort(last)
        return {name: column[stay] for name, column in cells.items()}
    _, first, cell = np.unique(key, return_index=True, return_inverse=True)
    if len(first) == len(key):
        return cells
    sums = np.bincount(cell, weights=cells["watch_ratio"].astype(np.float64))
    means = np.empty(len(key))
    means[first] = sums / np.bincount(cell)
    stay = np.sort(first)
    return {name: column[stay] for name, column in (cells | {"watch_ratio": means}).items()}


def _user_features(
    tables: Tables,
    sources: Sources,
    users: Positions,
    n_users: int,
    notes: MutableMapping[str, int],
) -> Features:
    if USER_FEATURES not in sources.tables:
        return Features()
    files = sources.tables[USER_FEATURES]
    table = read_entities(tables, files, "user_id", USER_FIELDS, USER_NUMBERS)
    fields = [Field(name) for name in USER_FIELDS]
    return read_features(
        tables, table, "user_id", users, n_users, fields, USER_NUMBERS, notes, USER_FEATURES
    )


def _categories(
    tables: Tables,
    sources: Sources,
    items: Positions,
    n_items: int,
    notes: MutableMapping[str, int],
) -> Features:
    if ITEM_CATEGORIES not in sources.tables:
        return Features()
    columns = [Column("video_id"), Column("feat", "text", gaps=True)]
    table = tables.read(sources.tables[ITEM_CATEGORIES], columns, rows="videos")
    fields = [Field("category", _id_texts, source="feat")]
    return read_features(
        tables, table, "video_id", items, n_items, fields, (), notes, ITEM_CATEGORIES
    )


def _id_texts(cell: str) -> list[str]:
    return list(dict.fromkeys(str(one) for one in _id_list(cell)))


def _id_list(cell: str) -> list[int]:
    """The numbers in a list as Python writes it, such as ``[27, 9]``."""
    wanted = "a list of whole numbers such as [27, 9]"
    if not _ID_LIST.fullmatch(cell.strip()):
        raise ValueError(wanted)
    try:
        found = ast.literal_eval(cell.strip())
    except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
        raise ValueError(wanted) from error
    return [int(one) for one in found]


def _show_counts(
    tables: Tables,
    sources: Sources,
    items: Positions,
    n_items: int,
    notes: MutableMapping[str, int],
) -> NDArray[np.int64] | None:
    """How often each video was shown, over all days."""
    if ITEM_DAILY not in sources.tables:
        return None
    columns = [Column("video_id"), Column("show_cnt", low=0, gaps=True)]
    table = tables.read(sources.tables[ITEM_DAILY], columns, rows="videos and days")
    counts = np.zeros(n_items, np.int64)
    found = np.zeros(n_items, dtype=bool)
    unknown = 0
    # DOUBLE sums would round; HUGEINT ones cannot overflow before the check.
    query = (
        f"SELECT video_id AS id, least(coalesce(sum(show_cnt), 0), {2**62})::BIGINT AS shown "
        f"FROM {table.sql} GROUP BY video_id"
    )
    for chunk in tables.stream(query):
        at = items(chunk["id"])  # type: ignore[arg-type]
        counts[at[at >= 0]] = chunk["shown"][at >= 0]
        found[at[at >= 0]] = True
        unknown += int(np.count_nonzero(at < 0))
    if counts.max() >= 2**62:
        raise DataFormatError(f"{table.files[0]}: a video's show_cnt sums to more than {2**62}.")
    notes["show_counts_missing_cells"] = tables.count(f"FROM {table.sql} WHERE show_cnt IS NULL")
    notes["show_counts_videos_without_a_row"] = int(np.count_nonzero(~found))
    notes["show_counts_unknown_videos_dropped"] = unknown
    return counts


def _friends(
    tables: Tables,
    sources: Sources,
    users: Positions,
    n_users: int,
    notes: MutableMapping[str, int],
) -> IntArray | None:
    """Pairs of positions, ascending."""
    if SOCIAL_NETWORK not in sources.tables:
        return None
    columns = [Column("user_id"), Column("friend_list", "text")]
    table = tables.read(sources.tables[SOCIAL_NETWORK], columns, rows="users and friends")
    keys = [np.empty(0, np.int64)]
    listed = unknown = 0
    for ids, friends in _friend_lists(tables, table):
        first, second = users(ids), users(friends)
        known = (first >= 0) & (second >= 0)
        listed += len(ids)
        unknown += int(np.count_nonzero(~known))
        keys.append(first[known].astype(np.int64) * n_users + second[known])
    pairs = np.unique(np.concatenate(keys))
    notes["friendships_of_unknown_users_dropped"] = unknown
    notes["friendships_repeated"] = listed - unknown - len(pairs)
    return np.stack([pairs // n_users, pairs % n_users], axis=1).astype(np.int32)


def _friend_lists(
    tables: Tables, table: Table
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """(user, friend) ids, a chunk of the file at a time."""
    query = f"SELECT user_id, friend_list FROM {table.sql} ORDER BY rowid"
    row = 0
    for chunk in tables.stream(query):
        lists = []
        for cell in chunk["friend_list"]:
            try:
                lists.append(np.array(_id_list(str(cell)), np.int64))
            except (ValueError, OverflowError) as error:
                raise DataFormatError(
                    f"{table.place(row)}, column 'friend_list': expected a list of user ids such "
                    f"as [27, 9], got {str(cell)!r}. Correct or remove the row."
                ) from error
            row += 1
        owners = np.repeat(chunk["user_id"].astype(np.int64), [len(one) for one in lists])
        yield owners, np.concatenate([np.empty(0, np.int64), *lists])
