"""Datasets as named arrays, the form in which the cache stores them."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kuaisim_gym.config import check_choice
from kuaisim_gym.data.cache import Arrays
from kuaisim_gym.data.dataset import Dataset, Features, Labels, Truth
from kuaisim_gym.data.feedback import FEEDBACK, Interactions

_PLAIN = (
    "name", "synthetic", "n_items", "notes", "source", "split_rule", "popularity", "pools",
    "positive_rate",
)  # fmt: skip
_ARRAYS = ("user_ids", "item_ids", "show_counts", "friends")
_TABLES = ("log", "test", "randomised")
_FEATURES = ("user_features", "item_features")


def to_arrays(dataset: Dataset) -> Arrays:
    """Turns a dataset into named arrays; ``meta`` holds the rest as JSON."""
    meta: dict[str, Any] = {name: getattr(dataset, name) for name in _PLAIN}
    meta |= {"notes": dict(dataset.notes), "tables": {}, "features": {}}
    arrays: Arrays = {}
    for field in _ARRAYS:
        if (array := getattr(dataset, field)) is not None:
            arrays[field] = array
    for field in _TABLES:
        table: Interactions | None = getattr(dataset, field)
        if table is not None:
            meta["tables"][field] = type(table).__name__
            arrays |= {f"{field}.{name}": column for name, column in table.columns.items()}
    for field in _FEATURES:
        features: Features = getattr(dataset, field)
        # Columns by number: their names need not be fit for files.
        meta["features"][field] = {
            "codes": list(features.codes),
            "values": [features.values[name] for name in features.codes],
            "numbers": list(features.numbers),
        }
        arrays |= {f"{field}.codes.{i}": codes for i, codes in enumerate(features.codes.values())}
        arrays |= {f"{field}.numbers.{i}": x for i, x in enumerate(features.numbers.values())}
    meta["item_groups"] = {name: labels.values for name, labels in dataset.item_groups.items()}
    for i, labels in enumerate(dataset.item_groups.values()):
        arrays[f"item_groups.{i}"] = labels.codes
    if dataset.truth is not None:
        arrays |= {f"truth.{name}": array for name, array in vars(dataset.truth).items()}
    arrays["meta"] = np.frombuffer(json.dumps(meta).encode(), dtype=np.uint8)
    return arrays


def from_arrays(arrays: Arrays) -> Dataset:
    """Inverts :func:`to_arrays`; the arrays are taken over, not copied."""
    meta = json.loads(arrays["meta"].tobytes())

    def under(prefix: str) -> dict[str, NDArray[Any]]:
        start = f"{prefix}."
        names = [name for name in arrays if name.startswith(start)]
        return {name.removeprefix(start): arrays[name] for name in names}

    fields: dict[str, Any] = {name: meta[name] for name in _PLAIN if name in meta}
    fields |= {name: arrays[name] for name in _ARRAYS if name in arrays}
    for field, feedback in meta["tables"].items():
        feedback_type = FEEDBACK[check_choice("feedback type", feedback, FEEDBACK)]
        fields[field] = feedback_type(**under(field))
    for field, names in meta["features"].items():
        codes, numbers = under(f"{field}.codes"), under(f"{field}.numbers")
        fields[field] = Features(
            codes={name: codes[str(i)] for i, name in enumerate(names["codes"])},
            values=dict(zip(names["codes"], map(tuple, names["values"]), strict=True)),
            numbers={name: numbers[str(i)] for i, name in enumerate(names["numbers"])},
        )
    groups = enumerate(meta.get("item_groups", {}).items())
    fields["item_groups"] = {
        name: Labels(arrays[f"item_groups.{i}"], tuple(values))  # type: ignore[arg-type]
        for i, (name, values) in groups
    }
    if truth := under("truth"):
        fields["truth"] = Truth(**truth)
    return Dataset(**fields)
