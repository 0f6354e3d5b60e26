"""Checks of logged arrays, and of the policies and groups of items that meet them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kuaisim_gym.errors import ConfigError, DataFormatError, KuaiSimError


def whole_numbers(
    name: str,
    value: ArrayLike,
    dtype: type[np.integer],
    error: type[KuaiSimError] = DataFormatError,
) -> NDArray[Any]:
    """Whole numbers as an array of a type.

    Args:
        name: Their name, for the error.
        value: The numbers.
        dtype: The type.
        error: Class of the error.

    Raises:
        KuaiSimError: They are none, or do not fit in.
    """
    array = as_array(name, value, error)
    limits = np.iinfo(dtype)
    if array.dtype.kind not in "iu" or (
        array.size and not limits.min <= array.min() <= array.max() <= limits.max
    ):
        raise error(
            f"{name} must hold whole numbers that fit {limits.dtype}, got {array.dtype}: convert "
            f"them with astype(np.{limits.dtype})."
        )
    return array.astype(dtype, copy=False)


def real_numbers(
    name: str,
    value: ArrayLike,
    dtype: type[np.floating],
    error: type[KuaiSimError] = DataFormatError,
) -> NDArray[Any]:
    """Finite numbers as an array of a type.

    Args:
        name: Their name, for the error.
        value: The numbers.
        dtype: The type.
        error: Class of the error.

    Raises:
        KuaiSimError: They are none, or one is not finite.
    """
    array = as_array(name, value, error)
    if array.dtype.kind not in "biuf":
        raise error(f"{name} must hold numbers, got {array.dtype}.")
    finite = np.isfinite(array)
    if not finite.all():
        raise error(
            f"{name} must be finite, got {array[~finite][0]} at "
            f"{np.argwhere(~finite)[0].tolist()}: leave it out, or say what it is."
        )
    return array.astype(dtype, copy=False)


def as_array(name: str, value: ArrayLike, error: type[KuaiSimError]) -> NDArray[Any]:
    """Anything as an array.

    Raises:
        KuaiSimError: Rows have several lengths.
    """
    try:
        return np.asarray(value)
    except ValueError as cause:
        raise error(f"{name} must be an array: {cause}") from cause


def positions(name: str, value: ArrayLike, count: int, end: int | None = None) -> NDArray[Any]:
    """(count,) int64 positions in [0, end).

    Raises:
        ConfigError: They are none, or others in number.
    """
    array = whole_numbers(name, value, np.int64, ConfigError)
    if array.shape != (count,):
        raise ConfigError(f"{name} must have shape {(count,)}, got {array.shape}.")
    if array.min() < 0 or (end is not None and array.max() >= end):
        limit = "of at least 0" if end is None else f"in 0 to {end - 1}"
        raise ConfigError(
            f"{name} must be whole numbers {limit}, got {array.min()} to {array.max()}."
        )
    return array


def probabilities(name: str, value: ArrayLike) -> NDArray[np.float64]:
    """(m,) float64 probabilities that sum to 1.

    Raises:
        ConfigError: They are none.
    """
    array = real_numbers(name, value, np.float64, ConfigError)
    if array.ndim != 1 or not array.size or array.min() < 0 or abs(array.sum() - 1.0) > 1e-9:
        raise ConfigError(f"{name} must be probabilities that sum to 1, got {value!r}.")
    return array


def check_silent(name: str, array: NDArray[Any], alive: NDArray[np.bool_]) -> None:
    """Checks that an array of steps is zero where a session is over.

    Args:
        name: Its name, for the error.
        array: (n, T) or (n, T, K).
        alive: (n, T) bool, steps that were made.

    Raises:
        DataFormatError: It is not.
    """
    if np.any(array[~alive]):
        raise DataFormatError(f"{name} must be zero from a session's length on.")


def check_items(**counts: int | None) -> None:
    """Checks that all know as many items; ``None`` is one that does not say.

    Args:
        **counts: Number of items by who knows it.

    Raises:
        ConfigError: Two of them differ.
    """
    n_items = {name: count for name, count in counts.items() if count is not None}
    if len(set(n_items.values())) > 1:
        sizes = ", ".join(
            f"{count} of the {name.replace('_', ' ')}" for name, count in n_items.items()
        )
        raise ConfigError(
            f"Items must be as many everywhere, got {sizes}: take policy, log and popular group "
            "from one dataset."
        )


def check_reach(name: str, n_items: int, largest: int) -> None:
    """Checks that items which a log shows are known.

    Args:
        name: Who should know them, for the error.
        n_items: Items that are known.
        largest: The last item's position.

    Raises:
        ConfigError: They are not.
    """
    if largest >= n_items:
        raise ConfigError(
            f"The {name} knows {n_items} items, and the log shows item {largest}: take both from "
            "one dataset."
        )
