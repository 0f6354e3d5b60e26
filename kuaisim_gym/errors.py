"""The package's own errors, and the wording they share.

Every message says what was expected, what was received, and how to fix it.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class KuaiSimError(Exception):
    """Base class of every error that this project raises on purpose."""


class DatasetNotFoundError(KuaiSimError, FileNotFoundError):
    """A data file or folder does not exist."""


class DataFormatError(KuaiSimError, ValueError):
    """A data file, table or array does not hold what its format promises."""


class UnknownIdError(KuaiSimError, KeyError):
    """A user or item id is not in the dataset or split."""

    def __str__(self) -> str:
        # KeyError would print the message's repr; ours is a sentence.
        return str(self.args[0]) if self.args else ""


class ConfigError(KuaiSimError, ValueError):
    """An option is unknown or its value is out of range."""


class UnexpectedOptionError(ConfigError, TypeError):
    """A function or an environment knows no option of this name; Python would say so, too."""


class NoPreferenceError(ConfigError, AttributeError):
    """Observations hold no preference state; ``hasattr`` is false for attributes that raise it."""


class InvalidActionError(KuaiSimError, ValueError):
    """An action has the wrong shape, dtype or values."""


class ResetNeededError(KuaiSimError, RuntimeError):
    """A session was stepped before its reset or after its end."""


class CheckpointError(KuaiSimError, ValueError):
    """A file is no checkpoint of this project, or belongs to another dataset."""


class DownloadError(KuaiSimError, OSError):
    """A published archive cannot be fetched, or is not the one that was published."""


class StorageError(KuaiSimError, OSError):
    """A file or folder cannot be written."""


class DiskSpaceError(StorageError):
    """A disk has too little free space."""


class BusyError(KuaiSimError, RuntimeError):
    """Another process is making the same file."""


def unknown_option(name: str, value: object, options: Iterable[str]) -> ConfigError:
    """Builds the error for an option outside a closed set, with the nearest name.

    Args:
        name: The option's name, as the user writes it.
        value: The value received.
        options: The values that are allowed.

    Returns:
        The error, to be raised by the caller.
    """
    allowed = sorted(options)
    nearest = difflib.get_close_matches(str(value), allowed, n=1)
    hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
    return ConfigError(f"{name} must be one of {allowed}, got {value!r}.{hint}")


def unexpected_option(
    name: str, option: str, options: Iterable[str], hint: str = ""
) -> UnexpectedOptionError:
    """Builds the error for a keyword argument that is not known, in Python's words, too.

    TorchRL and others offer environments options of their own, and leave them out when the error
    says that they are unexpected.

    Args:
        name: As for :func:`unknown_option`, of all options.
        option: The argument received.
        options: The arguments that are known.
        hint: A sentence on what to do, beside the nearest name.

    Returns:
        The error, to be raised by the caller.
    """
    python = f"It got an unexpected keyword argument {option!r}."
    sentences = (str(unknown_option(name, option, options)), hint, python)
    return UnexpectedOptionError(" ".join(filter(None, sentences)))
