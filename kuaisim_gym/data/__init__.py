"""Datasets: real ones from their published files, synthetic ones from a causal model."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from kuaisim_gym.config import check_choice
from kuaisim_gym.data.cache import Arrays, cached
from kuaisim_gym.data.dataset import (
    BehaviourLog,
    Dataset,
    Features,
    Interactions,
    Truth,
    WatchLog,
)
from kuaisim_gym.errors import ConfigError

if TYPE_CHECKING:
    from kuaisim_gym.data.kuairand import FeatureTables
    from kuaisim_gym.data.sources import Sources

__all__ = [
    "BehaviourLog",
    "Dataset",
    "Features",
    "Interactions",
    "Truth",
    "WatchLog",
    "load_dataset",
    "load_features",
]

DATASETS = ("kuairec", "kuairand")
DATA_VERSION = 2  # raise when the same sources would give other arrays

_LOGS: dict[str, type[Interactions]] = {"WatchLog": WatchLog, "BehaviourLog": BehaviourLog}
_TABLES = ("log", "test", "randomised")
_FEATURES = ("user_features", "item_features")
_PLAIN = ("user_ids", "item_ids", "show_counts", "friends")

logger = logging.getLogger(__name__)


def load_dataset(name: str = "kuairec", path: str | Path | None = None, seed: int = 0) -> Dataset:
    """Loads a dataset.

    Real data are read once; what was built from them is kept in the cache, under a digest of the
    files' contents, and mapped from there.

    Args:
        name: ``"kuairec"`` or ``"kuairand"``.
        path: The published archive, the folder it was unpacked to, or the folder of the files;
            ``None`` for the synthetic world.
        seed: Seed of the synthetic world; without meaning where ``path`` is given.

    Returns:
        The dataset; ``dataset.synthetic`` says which of the two it is.

    Raises:
        ConfigError: Unknown name, or a path or seed of the wrong kind.
        DatasetNotFoundError: A file is missing under ``path``.
        DataFormatError: A file holds something it must not.
    """
    _check_source(name, path)
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise ConfigError(f"seed must be an integer of at least 0, got {seed!r}.")
    if path is not None:
        sources, build = _published(name, path)
        key = f"{name}-{sources.digest}-v{DATA_VERSION}"
    else:
        key, build = f"{name}-synthetic-v{DATA_VERSION}-seed{seed}", _synthetic(name, seed)
    dataset = _from_arrays(cached(key, lambda: _to_arrays(build())))
    logger.info(
        "Loaded %s (%s): %d users, %d items, %d logged and %d test rows; notes: %s",
        dataset.name,
        "synthetic" if dataset.synthetic else "real",
        dataset.n_users,
        dataset.n_items,
        len(dataset.log),
        len(dataset.test),
        dict(dataset.notes),
    )
    return dataset


def load_features(
    name: str,
    path: str | Path,
    user_columns: Sequence[str] | None = None,
    item_columns: Sequence[str] | None = None,
) -> FeatureTables:
    """Reads the feature files of a dataset alone, whether or not its logs are there.

    Args:
        name: ``"kuairand"``, the dataset whose features are published apart from its logs.
        path: As for :func:`load_dataset`.
        user_columns: See :func:`~kuaisim_gym.data.kuairand.load_features`.
        item_columns: Likewise.

    Returns:
        The features of every user and video in the files.

    Raises:
        ConfigError: Unknown name or column, or a path of the wrong kind.
        DatasetNotFoundError: There is no feature file under ``path``.
        DataFormatError: A file holds something it must not.
    """
    from kuaisim_gym.data import kuairand

    check_choice("name", name, ("kuairand",))
    _check_source(name, path)
    return kuairand.load_features(path, user_columns, item_columns)


def _check_source(name: str, path: str | Path | None) -> None:
    check_choice("dataset", name, DATASETS)
    if path is not None and not isinstance(path, (str, Path)):
        raise ConfigError(f"path must be a folder, an archive or None, got {path!r}.")


def _published(name: str, path: str | Path) -> tuple[Sources, Callable[[], Dataset]]:
    """A published dataset's files, and what reads them."""
    # Imported here: who wants the synthetic world need not wait for DuckDB.
    if name == "kuairec":
        from kuaisim_gym.data.kuairec import find_kuairec as find
        from kuaisim_gym.data.kuairec import read_kuairec as read
    else:
        from kuaisim_gym.data.kuairand import find_kuairand as find
        from kuaisim_gym.data.kuairand import read_kuairand as read
    sources = find(path)
    return sources, partial(read, sources)


def _synthetic(name: str, seed: int) -> Callable[[], Dataset]:
    def build() -> Dataset:
        from kuaisim_gym.data.synthetic import synthetic_kuairand, synthetic_kuairec

        return (synthetic_kuairec if name == "kuairec" else synthetic_kuairand)(seed)

    return build


def _to_arrays(dataset: Dataset) -> Arrays:
    """A dataset as named arrays; ``meta`` holds what is no array, as JSON."""
    meta: dict[str, Any] = {
        "name": dataset.name,
        "synthetic": dataset.synthetic,
        "n_items": dataset.n_items,
        "notes": dict(dataset.notes),
        "tables": {},
        "features": {},
    }
    arrays: Arrays = {}
    for part in _PLAIN:
        if (array := getattr(dataset, part)) is not None:
            arrays[part] = array
    for part in _TABLES:
        table: Interactions | None = getattr(dataset, part)
        if table is not None:
            meta["tables"][part] = type(table).__name__
            arrays |= {f"{part}.{name}": column for name, column in table.columns.items()}
    for part in _FEATURES:
        features: Features = getattr(dataset, part)
        # Fields by number: their names need not be fit for files.
        meta["features"][part] = {
            "codes": list(features.codes),
            "values": [features.values[name] for name in features.codes],
            "numbers": list(features.numbers),
        }
        for kind, columns in (("codes", features.codes), ("numbers", features.numbers)):
            for i, name in enumerate(columns):
                arrays[f"{part}.{kind}.{i}"] = columns[name]
    if dataset.truth is not None:
        arrays |= {f"truth.{name}": array for name, array in vars(dataset.truth).items()}
    arrays["meta"] = np.frombuffer(json.dumps(meta).encode(), dtype=np.uint8)
    return arrays


def _from_arrays(arrays: Arrays) -> Dataset:
    """The inverse of :func:`_to_arrays`; the arrays are taken over, not copied."""
    meta = json.loads(arrays["meta"].tobytes())

    def under(prefix: str) -> dict[str, NDArray[Any]]:
        start = f"{prefix}."
        return {
            name.removeprefix(start): array
            for name, array in arrays.items()
            if name.startswith(start)
        }

    parts: dict[str, Any] = {part: arrays[part] for part in _PLAIN if part in arrays}
    for part, kind in meta["tables"].items():
        parts[part] = _LOGS[kind](**under(part))
    for part, known in meta["features"].items():
        codes, numbers = under(f"{part}.codes"), under(f"{part}.numbers")
        parts[part] = Features(
            codes={name: codes[str(i)] for i, name in enumerate(known["codes"])},
            values={
                name: tuple(values)
                for name, values in zip(known["codes"], known["values"], strict=True)
            },
            numbers={name: numbers[str(i)] for i, name in enumerate(known["numbers"])},
        )
    if truth := under("truth"):
        parts["truth"] = Truth(**truth)
    plain = {name: meta[name] for name in ("name", "synthetic", "n_items", "notes")}
    return Dataset(**plain, **parts)
