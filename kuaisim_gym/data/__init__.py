"""Datasets: real ones from their published files, synthetic ones from a causal model."""

from __future__ import annotations

import logging
from dataclasses import fields
from pathlib import Path

from kuaisim_gym.config import check_choice
from kuaisim_gym.data.cache import Arrays, cached
from kuaisim_gym.data.dataset import Dataset, Interactions, Truth
from kuaisim_gym.errors import ConfigError

__all__ = ["Dataset", "Interactions", "Truth", "load_dataset"]

DATASETS = ("kuairec",)
DATA_VERSION = 1  # raise when the same sources would give other arrays

logger = logging.getLogger(__name__)


def load_dataset(name: str = "kuairec", path: str | Path | None = None, seed: int = 0) -> Dataset:
    """Loads a dataset.

    Args:
        name: ``"kuairec"``.
        path: Folder of the published files; ``None`` for the synthetic world.
        seed: Seed of the synthetic world; without meaning where ``path`` is given.

    Returns:
        The dataset; ``dataset.synthetic`` says which of the two it is.

    Raises:
        ConfigError: Unknown name, or a path or seed of the wrong kind.
        DatasetNotFoundError: A file is missing under ``path``.
        DataFormatError: A file holds something it must not.
    """
    check_choice("dataset", name, DATASETS)
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise ConfigError(f"seed must be an integer of at least 0, got {seed!r}.")
    if path is not None and not isinstance(path, (str, Path)):
        raise ConfigError(f"path must be a folder or None, got {path!r}.")
    if path is not None:
        from kuaisim_gym.data.kuairec import load_kuairec

        return load_kuairec(path)

    def build() -> Arrays:
        from kuaisim_gym.data.synthetic import synthetic_kuairec

        return _to_arrays(synthetic_kuairec(seed))

    arrays = cached(f"{name}-synthetic-v{DATA_VERSION}-seed{seed}", build)
    dataset = _from_arrays(name, arrays)
    logger.info("Loaded %s", dataset.description)
    return dataset


def _to_arrays(dataset: Dataset) -> Arrays:
    """A synthetic dataset as named arrays."""
    if dataset.truth is None:
        raise TypeError("Only a synthetic dataset, which has a truth, is stored as arrays.")
    arrays: Arrays = {"user_ids": dataset.user_ids, "item_ids": dataset.item_ids}
    for part in ("log", "test", "truth"):
        table = getattr(dataset, part)
        arrays |= {f"{part}.{column.name}": getattr(table, column.name) for column in fields(table)}
    return arrays


def _from_arrays(name: str, arrays: Arrays) -> Dataset:
    def part(kind: type, prefix: str) -> object:
        return kind(**{column.name: arrays[f"{prefix}.{column.name}"] for column in fields(kind)})

    return Dataset(
        name=name,
        synthetic=True,
        user_ids=arrays["user_ids"],  # type: ignore[arg-type]
        item_ids=arrays["item_ids"],  # type: ignore[arg-type]
        n_items=len(arrays["item_ids"]),
        log=part(Interactions, "log"),  # type: ignore[arg-type]
        test=part(Interactions, "test"),  # type: ignore[arg-type]
        truth=part(Truth, "truth"),  # type: ignore[arg-type]
    )
