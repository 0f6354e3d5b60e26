"""Snapshots: state as a flat dict of named arrays, which objects can export and restore.

The arrays of a component are named by the component and a dot before their own names, as in
``core.temper``. The options of the sessions stand under ``"settings"``, as text in an array.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kuaisim_gym.errors import ConfigError

SETTINGS = "settings"

Snapshot = dict[str, NDArray[Any]]


def under(component: str, arrays: Snapshot) -> Snapshot:
    """Arrays of a component, by their names in the whole snapshot."""
    return {f"{component}.{name}": array for name, array in arrays.items()}


def within(component: str, snapshot: Snapshot) -> Snapshot:
    """Arrays of a component, by its names: the inverse of :func:`under`."""
    prefix = f"{component}."
    return {
        name.removeprefix(prefix): array
        for name, array in snapshot.items()
        if name.startswith(prefix)
    }


def of_settings(settings: Mapping[str, Any]) -> Snapshot:
    """Options, numbers and texts by name, as an array: (n,) uint8, JSON in UTF-8."""
    text = json.dumps(dict(settings), default=_plain)
    return {SETTINGS: np.frombuffer(text.encode(), dtype=np.uint8).copy()}


def taken_apart(snapshot: Snapshot, name: str, shell: str) -> tuple[Snapshot, NDArray[Any]]:
    """Takes the array that a shell has added from a snapshot.

    Args:
        snapshot: Of the shell.
        name: Name of the array.
        shell: The shell in words.

    Returns:
        The snapshot of the sessions, and the array.

    Raises:
        ConfigError: There is none of that name.
    """
    sessions = dict(snapshot)
    added = sessions.pop(name, None)
    if added is None:
        raise ConfigError(f"This is no snapshot of {shell}: give a result of its snapshot().")
    return sessions, added


def check_alike(expected: Snapshot, snapshot: Snapshot) -> None:
    """Refuses a snapshot that sessions with the snapshot ``expected`` cannot restore.

    Raises:
        ConfigError: The settings differ, or names, shapes or dtypes of arrays do.
    """
    settings, recorded = _settings(expected), _settings(snapshot)
    differences = "; ".join(
        f"{name} is {settings.get(name)!r} here and was {recorded.get(name)!r}"
        for name in {**settings, **recorded}
        if recorded.get(name) != settings.get(name)
    )
    if differences:
        raise ConfigError(
            f"This snapshot is of sessions with other options: {differences}. Restore it where the "
            "options are the same."
        )
    for name in expected.keys() | snapshot.keys():
        kind, actual = _kind(expected.get(name)), _kind(snapshot.get(name))
        if name != SETTINGS and kind != actual:
            raise ConfigError(
                f"This snapshot is of other sessions: {name} must be {kind}, got {actual}. Restore "
                "it where the options are the same."
            )


def _settings(snapshot: Snapshot) -> dict[str, Any]:
    try:
        settings = json.loads(np.asarray(snapshot[SETTINGS], dtype=np.uint8).tobytes())
    except (KeyError, ValueError) as error:
        raise ConfigError(
            f"This is no snapshot of sessions, it does not say of which: {error!r}. Give a result "
            "of snapshot()."
        ) from error
    return settings if isinstance(settings, dict) else {}


def _kind(array: NDArray[Any] | None) -> str:
    return "absent" if array is None else f"{array.dtype} of shape {array.shape}"


def _plain(value: Any) -> Any:
    """Turns mappings and NumPy's numbers into values that JSON knows."""
    return dict(value) if isinstance(value, Mapping) else value.item()
