"""Draws categorical features, and codes them as a loader would."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from kuaisim_gym.data.coding import number_values
from kuaisim_gym.data.dataset import Features
from kuaisim_gym.data.synthetic.causal import Causes

Strings = NDArray[np.str_]


def coded(columns: Mapping[str, Strings]) -> Features:
    """Numbers the values that occur, as a loader does.

    Args:
        columns: By field, (n,) or (n, width) strings, ``""`` where there is no value.

    Returns:
        The fields as features.
    """
    codes, values = {}, {}
    for field, column in columns.items():
        rows = column.reshape(len(column), -1)
        distinct, positions = np.unique(rows, return_inverse=True)
        values[field], numbers = number_values(distinct.tolist())
        number_of = np.array([numbers[value] for value in distinct.tolist()], dtype=np.int32)
        codes[field] = number_of[positions].reshape(rows.shape)
    return Features(codes, values)


def drawn(shares: Mapping[str, float], n: int, rng: np.random.Generator) -> Strings:
    """(n,) values, each with probability proportional to its share."""
    weights = np.fromiter(shares.values(), dtype=np.float64)
    return rng.choice(np.array(list(shares)), n, p=weights / weights.sum())


def by_rank(values: NDArray[np.float64], shares: Mapping[str, float]) -> Strings:
    """(n,) labels: the largest values get the first label, and so on down in the given shares."""
    weights = np.fromiter(shares.values(), dtype=np.float64)
    last = np.rint(len(values) * np.cumsum(weights) / weights.sum())
    rank = np.empty(len(values), dtype=np.int64)
    rank[np.argsort(-values, kind="stable")] = np.arange(len(values))
    return np.array(list(shares))[np.searchsorted(last, rank, side="right")]


def category_lists(causes: Causes, sizes: NDArray[np.integer], names: Sequence[str]) -> Strings:
    """Lists the category of each item, then the categories nearest to it.

    Args:
        causes: The items' positions.
        sizes: (n_items,) number of categories of each item; 0 where it is unknown.
        names: Names of the categories.

    Returns:
        (n_items, width) strings, ``""`` from an item's size on.
    """
    sizes = np.minimum(sizes, len(causes.category_centres))
    nearness = causes.item_vectors @ causes.category_centres.T
    nearness[np.arange(len(nearness)), causes.category] = np.inf
    order = np.argsort(-nearness, axis=1, kind="stable")[:, : sizes.max()]
    return np.where(np.arange(order.shape[1]) < sizes[:, None], np.array(names)[order], "")
