"""State as named arrays: whoever has some gives a copy of it, and takes it back.

A part's arrays are named by the part and a dot before their own names, as in ``core.temper``. What
they are of lies beside them under ``"settings"``, as text in an array.
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


def under(part: str, arrays: Snapshot) -> Snapshot:
    """A part's arrays, by the names that they have in the whole."""
    return {f"{part}.{name}": array for name, array in arrays.items()}


def within(part: str, snapshot: Snapshot) -> Snapshot:
    """What :func:`under` named, by the part's own names again."""
    prefix = f"{part}."
    return {
        name.removeprefix(prefix): array
        for name, array in snapshot.items()
        if name.startswith(prefix)
    }


def of_settings(settings: Mapping[str, Any]) -> Snapshot:
    """Options, numbers and texts by name, as an array: (n,) uint8, JSON in UTF-8."""
    text = json.dumps(dict(settings), default=_plain)
    return {SETTINGS: np.frombuffer(text.encode(), dtype=np.uint8).copy()}


def check_alike(expected: Snapshot, found: Snapshot) -> None:
    """Refuses a snapshot that cannot be taken up where ``expected`` was given.

    Raises:
        ConfigError: The settings differ, or names, shapes or dtypes of arrays do.
    """
    here, there = _settings(expected), _settings(found)
    different = [name for name in here if there.get(name) != here[name]]
    if different:
        differences = "; ".join(
            f"{name} is {here[name]!r} here and was {there.get(name)!r}" for name in different
        )
        raise ConfigError(
            f"This snapshot is of sessions with other options: {differences}. Restore it where the "
            "options are the same."
        )
    for name in expected.keys() | found.keys():
        wanted, got = _kind(expected.get(name)), _kind(found.get(name))
        if name != SETTINGS and wanted != got:
            raise ConfigError(
                f"This snapshot is of other sessions: {name} must be {wanted}, got {got}. Restore "
                "it where the options are the same."
            )


def _settings(snapshot: Snapshot) -> dict[str, Any]:
    try:
        settings = json.loads(np.asarray(snapshot[SETTINGS], dtype=np.uint8).tobytes())
    except (KeyError, ValueError) as error:
        raise ConfigError(
            f"This is no snapshot of sessions, it does not say of which: {error!r}. Give what "
            "snapshot() gave."
        ) from error
    return settings if isinstance(settings, dict) else {}


def _kind(array: NDArray[Any] | None) -> str:
    return "absent" if array is None else f"{array.dtype} of shape {array.shape}"


def _plain(value: Any) -> Any:
    """What JSON has no word for: other mappings than dicts, and NumPy's numbers."""
    return dict(value) if isinstance(value, Mapping) else value.item()
