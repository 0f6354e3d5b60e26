"""The arithmetic of sessions on arrays, twice: in NumPy and compiled.

Both modules hold the same functions. :mod:`~kuaisim_gym.engine.reference` reads like the text of
the rules and needs NumPy alone; :mod:`~kuaisim_gym.engine.compiled` runs the same arithmetic, in
the same order, through numba. They agree to the last bit, and tests hold them to it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import cache
from importlib.util import find_spec
from typing import Any

from kuaisim_gym.config import ENGINES, check_choice
from kuaisim_gym.engine import reference
from kuaisim_gym.errors import ConfigError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Engine:
    """One implementation; each function is documented in the reference module."""

    name: str
    uniform: Callable[..., Any]
    first_fault: Callable[..., Any]
    factor_scores: Callable[..., Any]
    begin: Callable[..., Any]
    advance: Callable[..., Any]
    follow: Callable[..., Any]
    state_vectors: Callable[..., Any]
    inner_products: Callable[..., Any]
    top_items: Callable[..., Any]

    def __reduce__(self) -> tuple[Callable[[str], Engine], tuple[str]]:
        return find_engine, (self.name,)


@cache
def find_engine(name: str = "auto") -> Engine:
    """The engine of that name.

    Args:
        name: ``"numpy"``, ``"numba"``, or ``"auto"``: numba where it is installed.

    Raises:
        ConfigError: Unknown name, or numba is wanted and cannot be used.
    """
    check_choice("engine", name, ENGINES)
    if name == "numpy":
        return _engine(name, reference)
    if name == "numba":
        try:
            from kuaisim_gym.engine import compiled
        except ImportError as error:
            raise ConfigError(
                f'engine="numba" needs numba, pip install "kuaisim-gym[fast]": {error}'
            ) from error
        return _engine(name, compiled)
    try:
        return find_engine("numba")
    except ConfigError as error:
        if find_spec("numba") is not None:
            logger.warning("Sessions are computed by NumPy: %s", error)
        return find_engine("numpy")


def _engine(name: str, module: Any) -> Engine:
    functions = [field.name for field in fields(Engine) if field.name != "name"]
    return Engine(name, **{function: getattr(module, function) for function in functions})
