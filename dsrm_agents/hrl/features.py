"""Item features as a matrix, for item towers that do not depend on the log."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kuaisim_gym.data.dataset import Dataset
from kuaisim_gym.errors import ConfigError

MOST_VALUES = 500  # of a field; one with more, such as the author, names an item


def item_features(dataset: Dataset, catalogue_only: bool = True) -> NDArray[np.float32]:
    """Matrix of the items' features, as far as they do not come from interactions.

    Args:
        dataset: Its item features are read, and nothing else.
        catalogue_only: Whether to leave out items that occur in the log alone.

    Returns:
        (n, f): a column for each value of each field, 1 where the item has it, a standardised
        column for each number, 0 where it is missing, and a last column of ones.

    Raises:
        ConfigError: The dataset has no features.
    """
    features = dataset.item_features
    n = dataset.n_items if catalogue_only else len(dataset.item_ids)
    columns: list[NDArray[np.float32]] = []
    for name, codes in sorted(features.codes.items()):
        n_values = len(features.values[name])
        if n_values > MOST_VALUES:
            continue
        has = np.zeros((n, n_values), dtype=np.float32)
        has[np.arange(n)[:, None], codes[:n]] = 1.0
        columns.append(has[:, 1:])  # code 0 stands for a missing value
    for _, numbers in sorted(features.numbers.items()):
        finite = numbers[: dataset.n_items]
        finite = finite[np.isfinite(finite)]
        if len(finite) and finite.std() > 0:
            standard = (numbers[:n] - finite.mean()) / finite.std()
            columns.append(np.nan_to_num(standard, nan=0.0)[:, None].astype(np.float32))
    if not columns:
        raise ConfigError(
            f"{dataset.name} knows no features of its items: leave item_features out, so that the "
            "worker knows them by the catalogue's embedding."
        )
    return np.concatenate([*columns, np.ones((n, 1), dtype=np.float32)], axis=1)
