"""The package's own errors, and the wording they share.

Every message says what was expected, what came, and what to do about it.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class KuaiSimError(Exception):
    """Base class of every error that this project raises on purpose."""


class DatasetNotFoundError(KuaiSimError, FileNotFoundError):
    """A data file or folder is not where it was looked for."""


class DataFormatError(KuaiSimError, ValueError):
    """A data file, table or array does not hold what its format promises."""


class UnknownIdError(KuaiSimError, KeyError):
    """A user or item id is not part of the dataset or split that was asked."""

    def __str__(self) -> str:
        # KeyError would print the message's repr; ours is a sentence.
        return str(self.args[0]) if self.args else ""


class ConfigError(KuaiSimError, ValueError):
    """An option is unknown or its value is out of range."""


class NoPreferenceError(ConfigError, AttributeError):
    """Observations hold no preference state; also for those who ask whether they do."""


class InvalidActionError(KuaiSimError, ValueError):
    """An action has the wrong shape, dtype or values."""


class ResetNeededError(KuaiSimError, RuntimeError):
    """A session was stepped before its reset or after its end."""


class CheckpointError(KuaiSimError, ValueError):
    """A saved file is not a checkpoint of ours or belongs to another dataset."""


class DownloadError(KuaiSimError, OSError):
    """A published archive cannot be fetched, or is not the one that was published."""


class DiskSpaceError(KuaiSimError, OSError):
    """A disk has too little free space for what is to be written."""


def unknown_option(name: str, value: object, options: Iterable[str]) -> ConfigError:
    """Builds the error for an option outside a closed set, with the nearest name.

    Args:
        name: The option's name, as the user writes it.
        value: What came.
        options: The values that are allowed.

    Returns:
        The error, to be raised by the caller.
    """
    allowed = sorted(options)
    nearest = difflib.get_close_matches(str(value), allowed, n=1)
    hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
    return ConfigError(f"{name} must be one of {allowed}, got {value!r}.{hint}")
