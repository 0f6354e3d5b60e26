"""Registries of classes that add themselves by being subclassed."""

from __future__ import annotations

import re
from typing import TypeVar

from kuaisim_gym.errors import ConfigError

Class = TypeVar("Class", bound=type)
_NAME = re.compile(r"\w[\w.+-]*")  # of files, of cache entries, and before a = on command lines


def register(registry: dict[str, Class], name: str, member: Class) -> None:
    """Adds a class to a registry; a module that is executed again replaces its own classes.

    Args:
        registry: The classes by name.
        name: Name of the new class in it.
        member: The class.

    Raises:
        ConfigError: It is no name, or another class has it.
    """
    check_name(f"The name of {member.__module__}.{member.__qualname__}", name)
    check_free(name, registry.get(name, member), member)
    registry[name] = member


def check_name(what: str, name: object) -> str:
    """Returns a name that files and commands can be called by.

    Raises:
        ConfigError: It is none.
    """
    if isinstance(name, str) and _NAME.fullmatch(name):
        return name
    raise ConfigError(
        f"{what} must be letters, digits, '_', '-', '.' and '+', the first a letter, a digit or "
        f"'_', got {name!r}."
    )


def check_free(name: str, holder: type, member: type) -> None:
    """Checks that a name's present holder is the class that wants it, perhaps defined again.

    Raises:
        ConfigError: It is another class.
    """
    if (holder.__module__, holder.__qualname__) != (member.__module__, member.__qualname__):
        raise ConfigError(
            f"The name {name!r} of {member.__module__}.{member.__qualname__} belongs to "
            f"{holder.__module__}.{holder.__qualname__}. Choose another one."
        )
