"""Registries of classes that add themselves by being subclassed."""

from __future__ import annotations

from typing import TypeVar

from kuaisim_gym.errors import ConfigError

Class = TypeVar("Class", bound=type)


def register(registry: dict[str, Class], name: str, member: Class) -> None:
    """Adds a class to a registry; a module that is executed again replaces its own classes.

    Args:
        registry: The classes by name.
        name: Name of the new class in it.
        member: The class.

    Raises:
        ConfigError: Another class has this name.
    """
    check_free(name, registry.get(name, member), member)
    registry[name] = member


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
