"""Datasets: real data from published files, synthetic data from a causal model."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from kuaisim_gym.config import check_whole

# Each import registers sources.
from kuaisim_gym.data import custom, kuairand, kuairec, real  # noqa: F401
from kuaisim_gym.data.dataset import (
    Dataset,
    Features,
    Labels,
    TrainingData,
    Truth,
    check_dataset,
)
from kuaisim_gym.data.feedback import (
    BehaviourLog,
    Interactions,
    LabelLog,
    PositiveLog,
    ResponseLog,
    WatchLog,
    WatchSample,
)
from kuaisim_gym.data.source import SOURCES, Source, find_source
from kuaisim_gym.data.writer import write_csv
from kuaisim_gym.errors import ConfigError

__all__ = [
    "SOURCES",
    "BehaviourLog",
    "Dataset",
    "Features",
    "Interactions",
    "LabelLog",
    "Labels",
    "PositiveLog",
    "ResponseLog",
    "Source",
    "TrainingData",
    "Truth",
    "WatchLog",
    "WatchSample",
    "check_dataset",
    "load_dataset",
    "write_csv",
]

logger = logging.getLogger(__name__)


def load_dataset(
    source: str | None = None, path: str | Path | None = None, seed: int = 0, **options: Any
) -> Dataset:
    """Loads a dataset.

    Real data are read once; the arrays built from them are stored in the cache, under a digest of
    the files' contents, and mapped from there.

    Args:
        source: Name of a source: ``"kuairec"``, ``"kuairand"``, ``"table"`` for tables of your own,
            or that of a :class:`~kuaisim_gym.data.source.Source` whose module has been imported;
            ``None`` for the one that ``name`` says, or ``"kuairec"``.
        path: The published archive, the folder it was unpacked to, or the folder of the files;
            ``None`` for the synthetic world.
        seed: Seed of the synthetic world; without meaning where ``path`` is given.
        **options: Of the source. ``"table"`` takes those of
            :class:`~kuaisim_gym.data.custom.source.TableSource`.

    Returns:
        The dataset; ``dataset.synthetic`` tells a synthetic world from real data.

    Raises:
        ConfigError: Unknown name, or a path or seed of the wrong type.
        DatasetNotFoundError: A file is missing under ``path``.
        DataFormatError: A file holds a value that is not allowed.
    """
    if source is None:
        source = options.pop("name", "kuairec")
    reader = find_source(source, **options)
    if not isinstance(path, str | Path | None):
        raise ConfigError(f"path must be a folder, an archive or None, got {path!r}.")
    dataset = reader.load(path, check_whole("seed", seed, 0))
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
