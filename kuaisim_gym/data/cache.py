"""Built arrays on disk: written once, whole or not at all, and read back in milliseconds.

The folder is ``$KUAISIM_CACHE`` or the platform's cache folder for this package.
"""

from __future__ import annotations

import logging
import os
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from platformdirs import user_cache_dir
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

Arrays = dict[str, NDArray[np.generic]]

logger = logging.getLogger(__name__)


def cache_dir() -> Path:
    """Where built arrays are kept."""
    return Path(os.environ.get("KUAISIM_CACHE") or user_cache_dir("kuaisim_gym", appauthor=False))


def write_atomically(path: Path, content: bytes) -> None:
    """Writes a file under a temporary name and renames it: readers see all of it or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}.part")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def cached(key: str, build: Callable[[], Mapping[str, NDArray[np.generic]]]) -> Arrays:
    """Returns the arrays stored under ``key``, building and storing them the first time.

    Args:
        key: Name that changes whenever the content would: sources, options and code version.
        build: Makes the arrays.

    Returns:
        The arrays by name.
    """
    path = cache_dir() / f"{key}.safetensors"
    if path.exists():
        try:
            return dict(load_file(path))
        except (SafetensorError, OSError) as error:
            logger.warning("Rebuilding %s, which cannot be read: %s", path, error)
    arrays = {name: np.asarray(array, order="C") for name, array in build().items()}
    try:
        write_atomically(path, save(arrays))
    except OSError as error:
        logger.warning("Going on without the cache: %s cannot be written (%s).", path, error)
    return arrays
