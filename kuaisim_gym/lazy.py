"""Names that a package imports from its modules when they are first used."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.util import find_spec
from typing import Any


def check_extra(package: str, extra: str, *modules: str) -> None:
    """Checks that the modules of an extra are installed, without importing them.

    Args:
        package: The package that needs them.
        extra: Name of the extra, of the distribution kuaisim-gym.
        *modules: Names of modules.

    Raises:
        ImportError: One is not installed.
    """
    missing = [module for module in modules if find_spec(module) is None]
    if missing:
        raise ImportError(
            f"{package} needs {' and '.join(missing)}, which {'is' if len(missing) == 1 else 'are'}"
            f" not installed: pip install 'kuaisim-gym[{extra}]'.",
            name=missing[0],
        )


def lazy_names(
    package: str, names: Mapping[str, tuple[str, ...]]
) -> tuple[dict[str, str], Callable[[str], Any]]:
    """Places of a package's names, and the ``__getattr__`` that imports them (PEP 562).

    Args:
        package: The package, its ``__name__``.
        names: By module of the package, without the package's name: what it defines.

    Returns:
        The full name of each name's module, and the function.
    """
    modules = {name: f"{package}.{module}" for module, group in names.items() for name in group}

    def find(name: str) -> Any:
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(modules[name]), name)

    return modules, find
