"""Writes datasets as CSV files in the format of their source.

Reading back such files gives the same arrays, under these conditions, which the published data and
the synthetic worlds meet: catalogue and log-only ids ascend, features are numbered as
:func:`~kuaisim_gym.data.coding.number_values` does, KuaiRec's log holds a (user, video) cell once
and no cell of the test table, and KuaiRand's log-only videos have no features. A dataset keeps the
order of a user's rows but not their times: times that ascend in that order are made up, and so are
the other published columns of the logs that a dataset does not hold. In feature files such columns
are empty. KuaiRand's ``show_counts`` are not written, because its source takes none, and KuaiRec's
captions, because they are not kept as texts.

What is odd in the published files is odd here, too: KuaiRand's ``hourmin`` holds whole hours, often
the next one, and three in a thousand standard rows stand there twice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kuaisim_gym.data.coding import USER_NUMBERS
from kuaisim_gym.data.dataset import Dataset, Features
from kuaisim_gym.data.feedback import Interactions
from kuaisim_gym.data.source import Writer, find_source
from kuaisim_gym.data.tables import SETTINGS
from kuaisim_gym.disk import new_folder
from kuaisim_gym.errors import ConfigError

Columns = dict[str, NDArray[Any]]

CLOCK_OFFSET = 8 * 3600  # seconds by which the platform's clock is ahead of UTC
_USER_COLUMNS = (
    "user_active_degree",
    "is_lowactive_period",
    "is_live_streamer",
    "is_video_author",
    *(name for number in USER_NUMBERS for name in (number, f"{number}_range")),
    *(f"onehot_feat{number}" for number in range(18)),
)
_DURATION = 10_000  # milliseconds, for videos whose duration is not known
_BLOCK = 1 << 20  # rows that are written together


def write_csv(dataset: Dataset, folder: str | Path) -> None:
    """Writes a dataset in the format that its source is published in.

    The files appear together when all of them are complete, or not at all: until then they lie in
    a folder next to the one that is named. What a killed call left is removed by the next.

    Args:
        dataset: The dataset, real or synthetic.
        folder: Folder of the files, absent or empty.

    Raises:
        ConfigError: The folder holds something, the source is not registered, or its format
            cannot hold these rows: KuaiRand's test users must be those of
            :func:`~kuaisim_gym.data.split.is_test_user`, so that reading does not swap them.
        DiskSpaceError: The disk is full.
        StorageError: The folder cannot be written for another reason.
    """
    target = Path(folder).resolve()
    files = find_source(dataset.source).write(dataset)
    if target == Path.cwd():  # it will be replaced, and shells would stay in the old one
        raise ConfigError(
            f"Expected another folder than the one of work, {target}: name a new one."
        )
    with new_folder(target) as temporary:  # after what a killed call left beside it is gone
        if target.is_dir() and (present := next(target.iterdir(), None)):
            raise ConfigError(
                f"Expected a folder that is absent or empty, but {target} holds {present.name}. "
                "Name another one, such as a folder inside."
            )
        for name, write in files.items():
            write(temporary / f"{name}.csv")


def spread_times(users: NDArray[np.int32], start: float, end: float) -> NDArray[np.float64]:
    """(n,) made-up times of rows that are grouped by user: each user's are spread over the span."""
    if not len(users):
        return np.empty(0)
    first = np.flatnonzero(np.concatenate([[True], users[1:] != users[:-1]]))
    counts = np.diff(np.concatenate([first, [len(users)]]))
    rank = np.arange(len(users)) - np.repeat(first, counts)
    share = (rank + 0.5) / np.repeat(counts, counts)
    return np.asarray(start + share * (end - start), np.float64)


def feature_columns(features: Features, names: Sequence[str], n: int) -> Columns:
    """Columns of ``n`` cells by name: features as text or numbers, empty cells where missing."""
    columns: Columns = {}
    for name in names:
        if name in features.codes:
            columns[name] = joined_values(features, name, "{}", ",")
        else:
            columns[name] = features.numbers.get(name, np.full(n, "", dtype=object))
    return columns


def joined_values(
    features: Features, name: str, template: str, separator: str
) -> NDArray[np.object_]:
    """Each row's values as one text, ``""`` where there are none."""
    values = features.values[name]
    distinct, rows = np.unique(features.codes[name], axis=0, return_inverse=True)
    texts = np.empty(len(distinct), dtype=object)
    for number, codes in enumerate(distinct.tolist()):
        words = separator.join(values[code] for code in codes if code)
        texts[number] = template.format(words) if words else ""
    return texts[rows.reshape(-1)]


def user_writer(dataset: Dataset) -> Writer:
    """Writes the file of user features, which both published datasets have in the same form."""
    columns = feature_columns(dataset.user_features, _USER_COLUMNS, dataset.n_users)
    return table_writer({"user_id": dataset.user_ids} | columns)


def table_writer(columns: Columns) -> Writer:
    """Writes a table of few rows."""

    def write(file: Path) -> None:
        import pandas as pd

        pd.DataFrame(columns).to_csv(file, index=False, lineterminator="\n")

    return write


def log_writer(
    dataset: Dataset, table: Interactions, select: str, columns: Callable[[slice], Columns]
) -> Writer:
    """Writes a log, computed by DuckDB a block at a time.

    Args:
        dataset: The dataset.
        table: The rows.
        select: The query, up to its ``FROM``; it may use ``user_id``, ``video_id`` and ``duration``
            (milliseconds, a usual value where it is missing).
        columns: Gives further columns for it, of a slice of the rows.
    """
    published = dataset.item_features.numbers.get("video_duration", np.zeros(len(dataset.item_ids)))
    duration = np.where(published >= 1, np.nan_to_num(published), _DURATION).astype(np.int64)

    def rows(block: slice) -> Columns:
        items = table.items[block]
        ids = {"user_id": dataset.user_ids[table.users[block]], "video_id": dataset.item_ids[items]}
        return ids | {"duration": duration[items]} | columns(block)

    def write(file: Path) -> None:
        import duckdb
        import pandas as pd

        buffer = file.with_name(f"{file.name}.block")
        path = str(buffer).replace("'", "''")
        try:
            with duckdb.connect(":memory:", config=SETTINGS) as connection, file.open("wb") as out:
                connection.execute("SET enable_progress_bar = false")
                for start in range(0, max(len(table), 1), _BLOCK):
                    block = pd.DataFrame(rows(slice(start, start + _BLOCK)))
                    connection.register("block", block)
                    connection.execute(
                        f"COPY ({select} FROM block) TO '{path}' "
                        f"(FORMAT csv, HEADER {'true' if start == 0 else 'false'})"
                    )
                    out.write(buffer.read_bytes())
        except duckdb.Error as error:
            raise OSError(str(error)) from error
        finally:
            buffer.unlink(missing_ok=True)

    return write
