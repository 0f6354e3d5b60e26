"""Datasets as CSV files in the format that their source is published in.

Reading back what was written gives the same arrays, under these conditions, which the published
data and the synthetic worlds meet: catalogue and log-only ids ascend, features are numbered as
:func:`~kuaisim_gym.data.coding.number_values` does, KuaiRec's log holds a (user, video) cell once
and no cell of the test table, and KuaiRand's log-only videos have no features. A dataset keeps the
order of a user's rows but not their times: times that ascend in that order are made up, and so are
the other published columns of the logs that a dataset does not hold. In feature files such columns
are empty. KuaiRand's ``show_counts`` are not written, because its loader takes none.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from kuaisim_gym.data import kuairand, kuairec
from kuaisim_gym.data.coding import USER_NUMBERS
from kuaisim_gym.data.dataset import BehaviourLog, Dataset, Features, Interactions, WatchLog
from kuaisim_gym.data.kuairand import is_test_user
from kuaisim_gym.errors import ConfigError, KuaiSimError

USER_COLUMNS = (
    "user_active_degree",
    "is_lowactive_period",
    "is_live_streamer",
    "is_video_author",
    *(name for number in USER_NUMBERS for name in (number, f"{number}_range")),
    *(f"onehot_feat{number}" for number in range(18)),
)
VIDEO_COLUMNS = (
    "author_id",
    "video_type",
    "upload_dt",
    "upload_type",
    "visible_status",
    "video_duration",
    "server_width",
    "server_height",
    "music_id",
    "music_type",
    "tag",
)

_DURATION = 10_000  # milliseconds, for videos whose duration is not known
_ZONE = 8 * 3600  # seconds by which the platform's clock is ahead of UTC
_KUAIREC_SPAN = (1593878400.0, 1599321600.0)  # seconds: 2020-07-05 to 2020-09-05
_KUAIRAND_SPAN = (1649347200_000, 1652025600_000)  # milliseconds: 2022-04-08 to 2022-05-08, ends
_KUAIRAND_CUT = 1650556800_000  # 2022-04-22, where the second standard file begins

_Write = Callable[[Path], None]


def write_csv(dataset: Dataset, folder: str | Path) -> None:
    """Writes a dataset in its source's published format; see the module for what is kept.

    Each file is written under a temporary name and renamed when it is whole.

    Args:
        dataset: KuaiRec or KuaiRand, real or synthetic.
        folder: Where the files go; it is created, and must hold none of them.

    Raises:
        ConfigError: One of the files is already there, or KuaiRand's test users are not those of
            :func:`~kuaisim_gym.data.kuairand.is_test_user`, so that reading would swap them.
    """
    target = Path(folder)
    files = _kuairec(dataset) if isinstance(dataset.log, WatchLog) else _kuairand(dataset)
    present = [name for name in files if (target / f"{name}.csv").exists()]
    if present:
        raise ConfigError(
            f"Expected a folder without files of this dataset, but {target} holds "
            f"{present[0]}.csv. Choose another folder or remove the file."
        )
    target.mkdir(parents=True, exist_ok=True)
    for name, write in files.items():
        temporary = target / f"{name}.{uuid.uuid4().hex}.part"
        try:
            write(temporary)
            os.replace(temporary, target / f"{name}.csv")
        finally:
            temporary.unlink(missing_ok=True)


def _kuairec(dataset: Dataset) -> dict[str, _Write]:
    files: dict[str, _Write] = {}
    durations = _durations(dataset)
    for name, table in ((kuairec.BIG_MATRIX, dataset.log), (kuairec.SMALL_MATRIX, dataset.test)):
        files[name] = _matrix(dataset, table, durations)
    categories = dataset.item_features.codes.get("category")
    if categories is not None:
        texts = _joined(dataset.item_features, "category", "[{}]", ", ")
        feat = {"video_id": dataset.item_ids, "feat": np.where(texts == "", "[]", texts)}
        files[kuairec.ITEM_CATEGORIES] = _frame(feat)
    if dataset.user_features.codes or dataset.user_features.numbers:
        files[kuairec.USER_FEATURES] = _users(dataset)
    if dataset.show_counts is not None:
        daily = {
            "video_id": dataset.item_ids,
            "date": np.full(len(dataset.item_ids), 20200705),
            "show_cnt": dataset.show_counts,
        }
        files[kuairec.ITEM_DAILY] = _frame(daily)
    if dataset.friends is not None and len(dataset.friends):
        files[kuairec.SOCIAL_NETWORK] = _frame(_friend_lists(dataset))
    return files


def _matrix(dataset: Dataset, table: Interactions, durations: NDArray[np.int64]) -> _Write:
    """One matrix, with all eight published columns."""
    start, end = _KUAIREC_SPAN
    local = f"make_timestamp(CAST(round((stamp + {_ZONE}) * 1e6) AS BIGINT))"
    select = (
        f"SELECT user_id, video_id, "
        f"CAST(round(least(watch * duration, 1e15)) AS BIGINT) AS play_duration, "
        f"duration AS video_duration, strftime({local}, '%Y-%m-%d %H:%M:%S.%g') AS \"time\", "
        f'strftime({local}, \'%Y%m%d\') AS "date", stamp AS "timestamp", watch AS watch_ratio'
    )

    def rows(part: slice) -> Mapping[str, NDArray[Any]]:
        return {
            "user_id": dataset.user_ids[table.users[part]],
            "video_id": dataset.item_ids[table.items[part]],
            "duration": durations[table.items[part]],
            "stamp": np.round(times[part], 3),
            # As float64 a float32 is written with all the digits that give it back.
            "watch": table.columns["watch_ratio"][part].astype(np.float64),
        }

    times = _times(table.users, start, end - 1)
    return _query(select, rows, len(table))


def _kuairand(dataset: Dataset) -> dict[str, _Write]:
    if not isinstance(dataset.log, BehaviourLog):
        raise ConfigError(f"Expected KuaiRec or KuaiRand, got {type(dataset.log).__name__}.")
    random: list[Interactions] = [dataset.test]
    random += [dataset.randomised] if dataset.randomised is not None else []
    for table, test in zip(random, (True, False), strict=False):
        wrong = is_test_user(dataset.user_ids[table.distinct_users]) != test
        if wrong.any():
            raise ConfigError(
                f"Who is a test user follows from the id, see is_test_user, but "
                f"{np.count_nonzero(wrong)} of the users with "
                f"{'test' if test else 'randomised'} rows would be on the other side when read."
            )
    durations = _durations(dataset)
    start, end = _KUAIRAND_SPAN
    # Even milliseconds here and odd ones there: no row seems to stand in both logs.
    times = 2 * np.floor(_times(dataset.log.users, start, end - 1) / 2)
    late = times >= _KUAIRAND_CUT
    files: dict[str, _Write] = {}
    for name, chosen in zip(kuairand.STANDARD, (~late, late), strict=True):
        files[f"{name}_pure"] = _log(dataset, dataset.log.take(chosen), times[chosen], durations, 0)
    users = np.concatenate([table.users for table in random])
    order = np.argsort(users, kind="stable")
    rows = BehaviourLog(
        users=users[order],
        items=np.concatenate([table.items for table in random])[order],
        flags=np.concatenate([table.columns["flags"] for table in random])[order],
    )
    times = 2 * np.floor(_times(rows.users, _KUAIRAND_CUT, end - 1) / 2) + 1
    files[f"{kuairand.RANDOM}_pure"] = _log(dataset, rows, times, durations, 1)
    # Without a row, a user who occurs in no log would be lost.
    files[f"{kuairand.USER_FEATURES}_pure"] = _users(dataset)
    catalogue = slice(0, dataset.n_items)
    features = dataset.item_features
    columns: dict[str, NDArray[Any]] = {"video_id": dataset.item_ids[catalogue]}
    for name in VIDEO_COLUMNS:
        columns[name] = _column(features, name, len(dataset.item_ids))[catalogue]
    files[f"{kuairand.VIDEO_BASIC}_pure"] = _frame(columns)
    return files


def _log(
    dataset: Dataset,
    table: Interactions,
    times: NDArray[np.float64],
    durations: NDArray[np.int64],
    is_rand: int,
) -> _Write:
    """One log, with all published columns."""
    bits = {name: bit for bit, name in enumerate(BehaviourLog.BEHAVIOURS)}
    names = ("is_click", "is_like", "is_follow", "is_comment", "is_forward", "is_hate", "long_view")
    flags = ", ".join(f"(flags >> {bits[name]}) & 1 AS {name}" for name in names)
    local = f"make_timestamp((time_ms + {_ZONE * 1000}) * 1000)"
    select = (
        f"SELECT user_id, video_id, strftime({local}, '%Y%m%d') AS \"date\", "
        f"CAST(strftime({local}, '%H%M') AS INTEGER) AS hourmin, time_ms, {flags}, "
        f"CASE WHEN (flags >> {bits['long_view']}) & 1 = 1 THEN duration ELSE 0 END "
        f"AS play_time_ms, duration AS duration_ms, 0 AS profile_stay_time, "
        f"0 AS comment_stay_time, 0 AS is_profile_enter, {is_rand} AS is_rand, 1 AS tab"
    )

    def rows(part: slice) -> Mapping[str, NDArray[Any]]:
        return {
            "user_id": dataset.user_ids[table.users[part]],
            "video_id": dataset.item_ids[table.items[part]],
            "time_ms": times[part].astype(np.int64),
            "flags": table.columns["flags"][part].astype(np.int32),
            "duration": durations[table.items[part]],
        }

    return _query(select, rows, len(table))


def _times(users: NDArray[np.int32], start: float, end: float) -> NDArray[np.float64]:
    """Made-up times of rows that are grouped by user: each user's are spread over the span."""
    if not len(users):
        return np.empty(0)
    first = np.flatnonzero(np.concatenate([[True], users[1:] != users[:-1]]))
    counts = np.diff(np.concatenate([first, [len(users)]]))
    rank = np.arange(len(users)) - np.repeat(first, counts)
    share = (rank + 0.5) / np.repeat(counts, counts)
    return np.asarray(start + share * (end - start), np.float64)


def _durations(dataset: Dataset) -> NDArray[np.int64]:
    """Milliseconds of each video."""
    known = dataset.item_features.numbers.get("video_duration")
    if known is None:
        return np.full(len(dataset.item_ids), _DURATION)
    return np.where(known >= 1, np.nan_to_num(known), _DURATION).astype(np.int64)


def _users(dataset: Dataset) -> _Write:
    n = dataset.n_users
    columns: dict[str, NDArray[Any]] = {"user_id": dataset.user_ids}
    columns |= {name: _column(dataset.user_features, name, n) for name in USER_COLUMNS}
    return _frame(columns)


def _column(features: Features, name: str, n: int) -> NDArray[Any]:
    """A feature as the cells of a column, empty ones where it is missing."""
    if name in features.codes:
        return _joined(features, name, "{}", ",")
    if name in features.numbers:
        return features.numbers[name]
    return np.full(n, "", dtype=object)


def _joined(features: Features, name: str, frame: str, separator: str) -> NDArray[np.object_]:
    """Each row's values as one text, ``""`` where there are none."""
    values = features.values[name]
    kinds, rows = np.unique(features.codes[name], axis=0, return_inverse=True)
    texts = np.empty(len(kinds), dtype=object)
    for number, codes in enumerate(kinds.tolist()):
        words = separator.join(values[code] for code in codes if code)
        texts[number] = frame.format(words) if words else ""
    return texts[rows.reshape(-1)]


def _friend_lists(dataset: Dataset) -> dict[str, NDArray[Any]]:
    if dataset.friends is None:
        raise TypeError("There are no friends to write.")
    pairs = dataset.friends[np.argsort(dataset.friends[:, 0], kind="stable")]
    users, starts = np.unique(pairs[:, 0], return_index=True)
    groups = np.split(dataset.user_ids[pairs[:, 1]], starts[1:])
    lists = np.empty(len(users), dtype=object)
    lists[:] = [str(group.tolist()) for group in groups]
    return {"user_id": dataset.user_ids[users], "friend_list": lists}


def _frame(columns: Mapping[str, NDArray[Any]]) -> _Write:
    """A table of few rows."""

    def write(file: Path) -> None:
        pd.DataFrame(dict(columns)).to_csv(file, index=False, lineterminator="\n")

    return write


def _query(
    select: str, rows: Callable[[slice], Mapping[str, NDArray[Any]]], n: int, block: int = 1 << 20
) -> _Write:
    """A table of many rows, computed by DuckDB a block at a time."""

    def write(file: Path) -> None:
        settings: dict[str, str | bool | int | float | list[str]] = {
            "threads": 2,
            "preserve_insertion_order": True,
            "autoinstall_known_extensions": False,
            "autoload_known_extensions": False,
        }
        piece = file.with_name(f"{file.name}.block")
        path = str(piece).replace("'", "''")
        try:
            with duckdb.connect(":memory:", config=settings) as connection, file.open("wb") as out:
                connection.execute("SET enable_progress_bar = false")
                for start in range(0, max(n, 1), block):
                    part = pd.DataFrame(dict(rows(slice(start, start + block))))
                    connection.register("part", part)
                    connection.execute(
                        f"COPY ({select} FROM part) TO '{path}' "
                        f"(FORMAT csv, HEADER {'true' if start == 0 else 'false'})"
                    )
                    out.write(piece.read_bytes())
        except duckdb.Error as error:
            raise KuaiSimError(f"{file} could not be written: {error}") from error
        finally:
            piece.unlink(missing_ok=True)

    return write
