"""KuaiRec as published: ``big_matrix.csv`` is the biased log, ``small_matrix.csv`` the test table.

Source: Gao et al., "KuaiRec: A fully-observed dataset and insights for evaluating recommender
systems", CIKM 2022. Only ``user_id, video_id, watch_ratio`` are required; ``timestamp`` decides
between duplicate rows where it is present.
"""

from __future__ import annotations

import csv
import logging
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from kuaisim_gym.data.dataset import Dataset, Interactions
from kuaisim_gym.errors import DataFormatError, DatasetNotFoundError

BIG_MATRIX = "big_matrix.csv"
SMALL_MATRIX = "small_matrix.csv"
REQUIRED_COLUMNS = ("user_id", "video_id", "watch_ratio")
TIME_COLUMN = "timestamp"

logger = logging.getLogger(__name__)


def load_kuairec(path: str | Path) -> Dataset:
    """Reads a folder that holds the two matrices.

    Rules, each counted in ``Dataset.notes``: of duplicate (user, video) rows the last by
    ``timestamp`` stays, or their mean watch ratio where there is no such column; a logged row
    whose cell also stands in the small matrix is dropped, because it would leak test answers.
    The catalogue is the videos of the small matrix.

    Args:
        path: The folder.

    Returns:
        The dataset, with KuaiRec's own ids.

    Raises:
        DatasetNotFoundError: The folder or a file is missing.
        DataFormatError: A file is empty, lacks a column, or holds a bad value; the message
            names file, column, row and value.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise DatasetNotFoundError(
            f"Expected a folder with {BIG_MATRIX} and {SMALL_MATRIX}, but {folder} is "
            f"{'a file' if folder.exists() else 'not there'}. Give the folder that holds the two."
        )
    notes: dict[str, int] = {}
    big = _read_matrix(folder / BIG_MATRIX, notes)
    small = _read_matrix(folder / SMALL_MATRIX, notes)
    big = _drop_test_cells(big, small, notes)

    catalogue = np.unique(small["video_id"])
    log_only = np.setdiff1d(big["video_id"], catalogue)
    user_ids = np.union1d(big["user_id"], small["user_id"])
    item_ids = np.concatenate([catalogue, log_only])
    notes["log_only_items"] = len(log_only)
    dataset = Dataset(
        name="kuairec",
        synthetic=False,
        user_ids=user_ids,
        item_ids=item_ids,
        n_items=len(catalogue),
        log=_by_position(big, user_ids, item_ids),
        test=_by_position(small, user_ids, item_ids),
        notes=notes,
    )
    logger.info("Loaded %s; notes: %s", dataset.description, dict(notes))
    return dataset


def _read_matrix(file: Path, notes: dict[str, int]) -> pd.DataFrame:
    """Reads and checks one matrix, and resolves its duplicate rows."""
    if not file.is_file():
        raise DatasetNotFoundError(
            f"{file} is missing. KuaiRec's folder must hold {BIG_MATRIX} and {SMALL_MATRIX}."
        )
    try:
        columns = _check_width(file)
        if not columns:
            raise DataFormatError(f"{file} is empty; expected a header and rows.")
        missing = [name for name in REQUIRED_COLUMNS if name not in columns]
        if missing:
            raise DataFormatError(
                f"{file} lacks the column(s) {missing}; it has {columns}. "
                f"Required: {list(REQUIRED_COLUMNS)}."
            )
        wanted = [*REQUIRED_COLUMNS, *([TIME_COLUMN] if TIME_COLUMN in columns else [])]
        table = pd.read_csv(file, usecols=wanted, index_col=False, low_memory=False)
    except (pd.errors.ParserError, UnicodeDecodeError, csv.Error) as error:
        raise DataFormatError(f"{file} is not a well-formed CSV file: {error}") from error
    if table.empty:
        raise DataFormatError(f"{file} has a header but no rows; expected interactions.")
    table["user_id"] = _whole_numbers(table["user_id"], file)
    table["video_id"] = _whole_numbers(table["video_id"], file)
    table["watch_ratio"] = _watch_ratios(table["watch_ratio"], file)
    return _resolve_duplicates(table, file, notes)


def _check_width(file: Path) -> list[str]:
    """Refuses what pandas would cut or rename without a word: surplus fields, repeated columns.

    Returns:
        The names in the header.
    """
    with file.open("rb") as lines:
        names = _fields(next(lines, b""))
        if len(set(names)) < len(names):
            raise DataFormatError(f"{file} repeats a column; its header is {names}.")
        for number, line in enumerate(lines, start=2):
            # Counting commas bounds the number of fields from above, and is fast.
            if line.count(b",") >= len(names) and len(_fields(line)) > len(names):
                raise DataFormatError(
                    f"{file}, line {number}: expected {len(names)} fields, as in the header, got "
                    f"{len(_fields(line))}. Correct or remove the line."
                )
    return names


def _fields(line: bytes) -> list[str]:
    """The fields of one line of CSV."""
    return next(csv.reader([line.decode("utf-8-sig")]), [])


def _numbers(column: pd.Series, file: Path, wanted: str) -> NDArray[np.float64]:
    """The column as finite numbers, or an error that names the first bad cell."""
    if column.dtype.kind == "b":
        column = column.astype(str)  # a column of True and False would pass for ones and zeros
    values = pd.to_numeric(column, errors="coerce").to_numpy(dtype=np.float64, na_value=np.nan)
    _raise_at_first(~np.isfinite(values), column, file, wanted)
    return values


def _raise_at_first(bad: NDArray[np.bool_], column: pd.Series, file: Path, wanted: str) -> None:
    if bad.any():
        row = int(np.flatnonzero(bad)[0])
        raise DataFormatError(
            f"{file}, data row {row + 1}, column {column.name!r}: expected {wanted}, "
            f"got {str(column.iloc[row])!r} ({int(bad.sum())} such row(s)). Correct or remove them."
        )


def _whole_numbers(column: pd.Series, file: Path) -> NDArray[np.int64]:
    if column.dtype.kind == "i":
        return column.to_numpy(dtype=np.int64)
    wanted = "a whole number"
    values = _numbers(column, file, wanted)
    _raise_at_first((values != np.floor(values)) | (np.abs(values) > 2**53), column, file, wanted)
    return values.astype(np.int64)


def _watch_ratios(column: pd.Series, file: Path) -> NDArray[np.float32]:
    wanted = "a finite number of at least 0"
    values = _numbers(column, file, wanted)
    _raise_at_first((values < 0) | (values > np.finfo(np.float32).max), column, file, wanted)
    return values.astype(np.float32)


def _resolve_duplicates(table: pd.DataFrame, file: Path, notes: dict[str, int]) -> pd.DataFrame:
    """Keeps one row a (user, video) pair: the last by time, else the mean."""
    pair = ["user_id", "video_id"]
    duplicates = int(table.duplicated(pair).sum())
    notes[f"{file.stem}_duplicates"] = duplicates
    if not duplicates:
        return table
    if TIME_COLUMN in table:
        times = _numbers(table[TIME_COLUMN], file, "a time in seconds")
        by_time = table.iloc[np.argsort(times, kind="stable")]
        kept = by_time.drop_duplicates(pair, keep="last").sort_index()
        rule = "the last by time stays"
    else:
        kept = table.groupby(pair, sort=False)["watch_ratio"].mean().reset_index()
        rule = "their mean stays"
    logger.warning("%s: %d duplicate (user, video) row(s); %s.", file, duplicates, rule)
    return kept


def _drop_test_cells(big: pd.DataFrame, small: pd.DataFrame, notes: dict[str, int]) -> pd.DataFrame:
    """Removes from the log every cell that the test table answers."""
    pair = ["user_id", "video_id"]
    leaked = pd.MultiIndex.from_frame(big[pair]).isin(pd.MultiIndex.from_frame(small[pair]))
    notes["log_rows_dropped_as_test_cells"] = int(leaked.sum())
    if leaked.all():
        raise DataFormatError(
            f"Every row of {BIG_MATRIX} is also in {SMALL_MATRIX}: nothing is left to train on. "
            f"Were the two files confused?"
        )
    if leaked.any():
        logger.warning(
            "%d row(s) of %s stand in %s too and were dropped.",
            leaked.sum(),
            BIG_MATRIX,
            SMALL_MATRIX,
        )
        return big[~leaked]
    return big


def _by_position(
    table: pd.DataFrame, user_ids: NDArray[np.int64], item_ids: NDArray[np.int64]
) -> Interactions:
    return Interactions(
        users=pd.Index(user_ids).get_indexer(pd.Index(table["user_id"])).astype(np.int32),
        items=pd.Index(item_ids).get_indexer(pd.Index(table["video_id"])).astype(np.int32),
        watch_ratio=table["watch_ratio"].to_numpy(dtype=np.float32),
    )
