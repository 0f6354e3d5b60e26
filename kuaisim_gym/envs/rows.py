"""Rows of a batch: the observations and infos of single sessions, and infos of some slots."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from kuaisim_gym.engine.types import BoolArray

Info = dict[str, Any]  # arrays of all slots by name, and such dictionaries


def row_of(arrays: Any, row: int) -> Any:
    """One row of a batch: of its array, or of each array of its dictionary."""
    if isinstance(arrays, dict):
        return {name: array[row] for name, array in arrays.items()}
    return arrays[row]


def rows_of(observation: Any, rows: NDArray[np.int64]) -> list[Any]:
    """Copies of some sessions' observations from a batch's."""
    if not isinstance(observation, dict):
        return list(observation[rows])
    values = zip(*(array[rows] for array in observation.values()), strict=True)
    return [dict(zip(observation, row, strict=True)) for row in values]


def info_of(info: Info, row: int) -> Info:
    """The info of one session, of Python's numbers and of arrays, from a batch's."""
    return {
        name: info_of(column, row)
        if type(column) is dict
        else column.item(row)
        if column.ndim == 1
        else column[row]
        for name, column in info.items()
    }


def masked(info: Info, rows: NDArray[np.int64] | None, mask: BoolArray) -> dict[str, Any]:
    """Infos in Gymnasium's form: each array with the mask of the slots that it is about.

    Args:
        info: Arrays of all slots.
        rows: (n,) int64, slots whose values stay; the others' become empty, but in an array of one
            row for all slots, which stays. ``None`` for all.
        mask: (N,) bool, to be given to each array.
    """
    infos: dict[str, Any] = {}
    for name, column in info.items():
        if isinstance(column, dict):
            infos[name] = masked(column, rows, mask)
        elif rows is None or _is_shared(column):
            infos[name] = column
        else:
            infos[name] = np.zeros_like(column)
            infos[name][rows] = column[rows]
        infos[f"_{name}"] = mask
    return infos


def merged(rows: NDArray[np.int64], latest: Info, earlier: Info) -> Info:
    """Infos of which the slots in (n,) rows are of one step, and the others of an earlier one."""
    infos: Info = {}
    for name, column in latest.items():
        if isinstance(column, dict):
            infos[name] = merged(rows, column, earlier[name])
        elif _is_shared(column) and (column[0] == earlier[name][0]).all():
            infos[name] = column
        else:
            infos[name] = earlier[name].copy()
            infos[name][rows] = column[rows]
    return infos


def _is_shared(column: NDArray[Any]) -> bool:
    """True of one row that all slots share, such as a day's items: a copy for each is slow."""
    return column.strides[0] == 0
