"""KuaiRand: standard logs are the biased log, the random log is free of exposure bias.

Source: Gao et al., "KuaiRand: An unbiased sequential recommendation dataset with randomly exposed
videos", CIKM 2022, in its variants Pure, 1K and 27K, which differ in their files' names only. The
files are sorted and written out of core: memory holds DuckDB's share, a chunk of rows and, where
there are many items, a few arrays over them.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, MutableMapping, Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from kuaisim_gym.data.coding import (
    USER_FIELDS,
    USER_FLAGS,
    USER_NUMBERS,
    Field,
    Positions,
    note_counts,
    read_entities,
    read_features,
    read_labels,
)
from kuaisim_gym.data.dataset import Dataset
from kuaisim_gym.data.feedback import BehaviourLog, Interactions
from kuaisim_gym.data.files import DataFiles, Layout, find_files
from kuaisim_gym.data.source import PublishedArchive, Source, Writer
from kuaisim_gym.data.split import is_test_user
from kuaisim_gym.data.tables import (
    Chunk,
    Column,
    ColumnFiles,
    Table,
    Tables,
    open_tables,
    read_header,
)
from kuaisim_gym.data.writer import (
    CLOCK_OFFSET,
    Columns,
    feature_columns,
    log_writer,
    spread_times,
    table_writer,
    user_writer,
)
from kuaisim_gym.errors import ConfigError, DataFormatError

VARIANTS = {"pure": "KuaiRand-Pure", "1k": "KuaiRand-1K", "27k": "KuaiRand-27K"}
STANDARD = ("log_standard_4_08_to_4_21", "log_standard_4_22_to_5_08")
RANDOM = "log_random_4_22_to_5_08"
USER_FEATURES, VIDEO_BASIC = "user_features", "video_features_basic"
LAYOUTS = [
    Layout(
        title,
        tuple(f"{name}_{variant}" for name in (*STANDARD, RANDOM)),
        tuple(f"{name}_{variant}" for name in (USER_FEATURES, VIDEO_BASIC)),
        {f"{name}_27k": 2 for name in STANDARD},
    )
    for variant, title in VARIANTS.items()
]

ITEM_NUMBERS = ("video_duration",)
ITEM_FIELDS = ("video_type", "upload_type", "music_type", "tag")
ITEM_LABELS = ("author_id", "upload_dt")  # thousands of authors: an item's name, not its feature

_DOCUMENTED = {
    "user_active_degree": frozenset({"full_active", "high_active", "middle_active", "UNKNOWN"}),
    "video_type": frozenset({"NORMAL", "AD"}),
    **{name: frozenset({"0", "1"}) for name in USER_FLAGS},
}
_VIDEO_COLUMNS = (
    "author_id", "video_type", "upload_dt", "upload_type", "visible_status", "video_duration",
    "server_width", "server_height", "music_id", "music_type", "tag",
)  # fmt: skip
_ARCHIVES = (  # of each variant: md5, bytes of the archive and of its files
    ("0820331067a3784d9691136f772b35a7", 50_000_000, 300_000_000),
    ("6b0b9c8222d67fcd4c676218edca3f1f", 900_000_000, 4_000_000_000),
    ("3e3c799a24e2d23a4d2c757fbf9adf59", 9_500_000_000, 25_000_000_000),
)
_START, _CUT, _END = 1649347200_000, 1650556800_000, 1652025600_000  # ms: 2022-04-08, -22, 05-08
# Measured on 41,828 rows of KuaiRand-27K's standard log, 8 to 21 April: `hourmin` is the hour of a
# moment some minutes after `time_ms`, so that 17.8 % of rows name the next hour, those from minute
# 53 on always, and around midnight `date` is the next day's. 161 rows of the random log have none.
_LAG_LEVELS, _LAGS = (0, 0.6, 0.7, 0.77, 0.95, 0.97, 1), (7.4, 8.2, 12, 15.5, 16.2, 20, 40)
_REPEATED = 124 / 41828  # of the same rows, those whose user, video and time stand there already

logger = logging.getLogger(__name__)


class KuaiRand(Source):
    """KuaiRand-Pure, -1K and -27K as published.

    Rules of reading, each counted in ``Dataset.notes``:

    * The two standard files are one log. A standard row that says ``is_rand`` = 1 is dropped, and
      so is a random row that says 0.
    * Rows of one log with the same user, video and ``time_ms`` are one exposure: the first stays,
      and shows every behaviour that one of them shows. Other repeats of a (user, video) pair are
      repeated exposures and stay.
    * A standard row that also occurs in the random log, by user, video and ``time_ms``, is
      dropped: it would leak test answers.
    * A user's rows are sorted by ``time_ms``, equal times by their order in the files. ``date`` and
      ``hourmin``, whole hours, are not read: one standard row in six names the next hour.
    * ``test`` is the random log of the users that :func:`is_test_user` chooses, ``randomised``
      that of the other users, ``log`` the standard log of everybody.
    * The catalogue is the videos of the random log and, in KuaiRand-Pure, those of its basic
      feature file, ascending; other logged videos follow it, ascending. Users are those
      of the logs and of the user feature file, ascending.
    * Feature files are optional; :func:`~kuaisim_gym.data.coding.read_features` has their rules.

    ``show_counts`` stays ``None``: the platform's statistics cover the weeks of the random log too,
    from which the test table comes, so that popularity is counted in the train log.
    """

    name = "kuairand"
    archives = tuple(
        PublishedArchive(f"kuairand-{variant}", "kuairand", 10439422, f"{title}.tar.gz", *facts)
        for (variant, title), facts in zip(VARIANTS.items(), _ARCHIVES, strict=True)
    )
    published: ClassVar = {
        "train": ("26,285", "7,551", "1,436.6k"),
        "test": ("27,285", "7,583", "1,186.1k"),
    }

    def find(self, path: str | Path) -> DataFiles:
        return find_files(path, LAYOUTS)

    def read(self, files: DataFiles) -> Dataset:
        notes: dict[str, int] = {}
        paths = {table.rsplit("_", 1)[0]: group for table, group in files.tables.items()}
        with open_tables() as tables:
            random = _read_log(tables, paths[RANDOM])
            notes["random_rows_marked_standard_dropped"] = _delete(tables, random, "is_rand = 0")
            standard = _read_log(tables, paths[STANDARD[0]] + paths[STANDARD[1]])
            notes["standard_rows_marked_random_dropped"] = _delete(tables, standard, "is_rand = 1")
            leaks = (
                f"rowid IN (SELECT s.rowid FROM {standard.sql} s SEMI JOIN {random.sql} r "
                f"USING (user_id, video_id, time_ms))"
            )
            notes["standard_rows_dropped_as_random_rows"] = _delete(tables, standard, leaks)
            user_table = read_entities(
                tables, paths.get(USER_FEATURES), "user_id", USER_FIELDS, USER_NUMBERS
            )
            item_table = read_entities(
                tables, paths.get(VIDEO_BASIC), "video_id", ITEM_FIELDS + ITEM_LABELS, ITEM_NUMBERS
            )
            is_pure = files.layout.name == VARIANTS["pure"]
            catalogue = tables.distinct("video_id", random, item_table if is_pure else None)
            logged = tables.distinct("video_id", standard)
            log_only = np.setdiff1d(logged, catalogue, assume_unique=True)
            notes["log_only_items"] = len(log_only)
            n_items = len(catalogue)
            users = Positions(tables.distinct("user_id", standard, random, user_table))
            items = Positions(np.concatenate([catalogue, log_only]))
            among = None if is_pure else random
            labels = read_labels(tables, item_table, catalogue, ITEM_LABELS, among)
            del catalogue, logged, log_only

            log = _read_rows(tables, standard, users, items, "standard", notes)
            shown_at_random = _read_rows(tables, random, users, items, "random", notes)
            is_test = is_test_user(users.ids)[shown_at_random.users]
            if not is_test.any():
                raise DataFormatError(
                    f"{random.files[0]}: none of its users is a test user, which half of all users "
                    f"are by a hash of their ids; expected rows to test on."
                )
            if not len(log):
                raise DataFormatError(
                    f"{standard.files[0]}: no standard row is left; expected some to train on."
                )
            dataset = Dataset(
                name=self.name,
                synthetic=False,
                user_ids=users.ids,
                item_ids=items.ids,
                n_items=n_items,
                log=log,
                test=shown_at_random.take(is_test),
                randomised=None if is_test.all() else shown_at_random.take(~is_test),
                user_features=read_features(
                    tables, user_table, users, _fields(USER_FIELDS), notes, USER_FEATURES
                ),
                item_features=read_features(
                    tables, item_table, items, _fields(ITEM_FIELDS), notes, VIDEO_BASIC, ITEM_LABELS
                ),
                item_groups=labels,
                notes=notes,
            )
        logger.info("Read %s from %s: %s", files.layout.name, files.folder, note_counts(notes))
        return dataset

    def synthetic(self, seed: int) -> Dataset:
        from kuaisim_gym.data.synthetic import synthetic_kuairand

        return synthetic_kuairand(seed)

    def write(self, dataset: Dataset) -> dict[str, Writer]:
        random, log, rng = _random_rows(dataset), dataset.log, np.random.default_rng(0)
        # Even milliseconds, odd ones in the random log: no row seems to be in both.
        times = 2 * np.floor(spread_times(log.users, _START, _END - float(_lags(1.0)) - 1) / 2)
        written = np.repeat(np.arange(len(log)), 1 + (rng.random(len(log)) < _REPEATED))
        times = times[written]
        clock = times + _lags(rng.random(len(written)))
        files: dict[str, Writer] = {}
        for name, chosen in zip(STANDARD, (clock < _CUT, clock >= _CUT), strict=True):
            rows = log.take(written[chosen])
            files[name] = _log_writer(dataset, rows, times[chosen], clock[chosen], 0)
        times = 2 * np.floor(spread_times(random.users, _CUT, _END - 1) / 2) + 1
        files[RANDOM] = _log_writer(dataset, random, times, times, 1)
        # Without a row, a user who occurs in no log would be lost.
        files[USER_FEATURES] = user_writer(dataset)
        catalogue = dataset.item_features.head(dataset.n_items)
        columns = feature_columns(catalogue, _VIDEO_COLUMNS, dataset.n_items)
        for name, labels in dataset.item_groups.items():
            columns[name] = np.array(labels.values, dtype=object)[labels.codes]
        ids = {"video_id": dataset.item_ids[: dataset.n_items]}
        files[VIDEO_BASIC] = table_writer(ids | columns)
        return {f"{name}_pure": writer for name, writer in files.items()}


def _read_log(tables: Tables, files: Sequence[Path]) -> Table:
    """A log with its behaviours packed to ``flags``; ``is_rand`` is NULL without such a column."""
    keys = ("user_id", "video_id", "time_ms")
    columns = [Column(name) for name in keys]
    columns += [Column(name, low=0, high=1) for name in BehaviourLog.behaviours]
    columns += [Column("is_rand", low=0, high=1, required=False)]
    flags = " + ".join(f"({name} << {bit})" for bit, name in enumerate(BehaviourLog.behaviours))
    mark = "is_rand" if "is_rand" in read_header(files[0]) else "NULL"
    keep = dict(zip(keys, keys, strict=True))
    keep |= {"flags": f"({flags})::UTINYINT", "is_rand": f"{mark}::UTINYINT"}
    return tables.read(files, columns, keep, rows="interactions")


def _delete(tables: Tables, log: Table, condition: str) -> int:
    """Drops the rows that meet a condition; returns how many."""
    clause = f"FROM {log.sql} WHERE {condition}"
    count = tables.count(clause)
    if count:
        tables.execute(f"DELETE {clause}")
    return count


def _read_rows(
    tables: Tables,
    log: Table,
    users: Positions,
    items: Positions,
    label: str,
    notes: MutableMapping[str, int],
) -> BehaviourLog:
    """A log's rows by position."""
    dtypes = {"users": np.int32, "items": np.int32, "flags": np.uint8}
    rows = ColumnFiles(tables.folder, label, dtypes)
    columns = ("user_id", "video_id", "time_ms", "flags")
    repeated = 0
    for chunk in tables.in_order(log, columns, "user_id", "time_ms"):
        exposures = _one_an_exposure(chunk)
        repeated += len(chunk["user_id"]) - len(exposures["user_id"])
        rows.append(
            {
                "users": users(exposures["user_id"]),
                "items": items(exposures["video_id"]),
                "flags": exposures["flags"],
            }
        )
    notes[f"{label}_rows_repeated"] = repeated
    if repeated:
        logger.warning("%s: %d repeated row(s) merged.", log.files[0], repeated)
    return BehaviourLog(**rows.finish())


def _one_an_exposure(chunk: Chunk) -> Chunk:
    """Merges rows of equal user, video and time; the rows are sorted by user and time."""
    tied = (chunk["user_id"][1:] == chunk["user_id"][:-1]) & (
        chunk["time_ms"][1:] == chunk["time_ms"][:-1]
    )
    if not tied.any():
        return chunk
    moment = np.concatenate([[0], np.cumsum(~tied)])  # rows of one user and time share a number
    in_tie = np.concatenate([tied, [False]]) | np.concatenate([[False], tied])
    rows = np.flatnonzero(in_tie)
    rows = rows[np.lexsort((rows, chunk["video_id"][rows], moment[rows]))]
    first = np.ones(len(rows), dtype=bool)
    first[1:] = moment[rows][1:] != moment[rows][:-1]
    first[1:] |= chunk["video_id"][rows][1:] != chunk["video_id"][rows][:-1]
    starts = np.flatnonzero(first)
    flags = np.array(chunk["flags"])
    flags[rows[starts]] = np.bitwise_or.reduceat(flags[rows], starts)
    stay = np.ones(len(flags), dtype=bool)
    stay[rows[~first]] = False
    return {name: column[stay] for name, column in (chunk | {"flags": flags}).items()}


def _fields(names: Iterable[str]) -> list[Field]:
    return [Field(name, _tags if name == "tag" else None, _DOCUMENTED.get(name)) for name in names]


def _tags(cell: str) -> list[str]:
    """The tags of a cell such as ``12,65``."""
    tags = [tag.strip() for tag in cell.split(",")]
    if not all(tags):
        raise ValueError("tags such as 12,65")
    return list(dict.fromkeys(tags))


def _random_rows(dataset: Dataset) -> Interactions:
    """The rows of the random log, users ascending.

    Raises:
        ConfigError: Reading would swap some of the test and train users.
    """
    random = [dataset.test] if dataset.randomised is None else [dataset.test, dataset.randomised]
    for table, label in zip(random, ("test", "randomised"), strict=False):
        wrong = is_test_user(dataset.user_ids[table.distinct_users]) != (label == "test")
        if wrong.any():
            raise ConfigError(
                f"Test users follow from their ids, see is_test_user, but "
                f"{np.count_nonzero(wrong)} of the users with {label} rows would be on the other "
                f"side when read."
            )
    return dataset.test.merged(*random[1:])


def _lags(level: NDArray[np.float64] | float) -> NDArray[np.float64]:
    """Milliseconds from a row's time to the one whose hour it names, at levels in [0, 1]."""
    return np.asarray(np.floor(np.interp(level, _LAG_LEVELS, _LAGS) * 60_000))


def _log_writer(
    dataset: Dataset,
    table: Interactions,
    times: NDArray[np.float64],
    clock: NDArray[np.float64],
    is_rand: int,
) -> Writer:
    """Writes one log, with all published columns; ``clock`` is the time that names the hour."""
    if "flags" not in table.columns:
        raise ConfigError(f"Expected the behaviours of KuaiRand, got a {type(table).__name__}.")
    bits = {name: bit for bit, name in enumerate(BehaviourLog.behaviours)}
    names = ("is_click", "is_like", "is_follow", "is_comment", "is_forward", "is_hate", "long_view")
    flags = ", ".join(f"(flags >> {bits[name]}) & 1 AS {name}" for name in names)
    local = f"make_timestamp((clock + {CLOCK_OFFSET * 1000}) * 1000)"
    select = (
        f"SELECT user_id, video_id, strftime({local}, '%Y%m%d') AS \"date\", "
        f"100 * hour({local}) AS hourmin, time_ms, {flags}, "
        f"CASE WHEN (flags >> {bits['long_view']}) & 1 = 1 THEN duration ELSE 0 END "
        f"AS play_time_ms, duration AS duration_ms, 0 AS profile_stay_time, "
        f"0 AS comment_stay_time, 0 AS is_profile_enter, {is_rand} AS is_rand, 1 AS tab"
    )

    def columns(block: slice) -> Columns:
        flags = table.columns["flags"][block].astype(np.int32)
        moments = {"time_ms": times[block], "clock": clock[block]}
        return {"flags": flags, **{name: ms.astype(np.int64) for name, ms in moments.items()}}

    return log_writer(dataset, table, select, columns)
