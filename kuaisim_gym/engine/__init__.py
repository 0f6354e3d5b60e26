"""The arithmetic of sessions on arrays, twice: in NumPy and compiled.

Both modules hold the same functions. :mod:`~kuaisim_gym.engine.reference` reads like the text of
the rules and needs NumPy alone; :mod:`~kuaisim_gym.engine.compiled` runs the same arithmetic, in
the same order, through numba. They agree to the last bit, and tests hold them to it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from typing import Any

from kuaisim_gym.config import ENGINES, check_choice
from kuaisim_gym.engine import reference
from kuaisim_gym.errors import ConfigError


@dataclass(frozen=True)
class Engine:
    """One implementation; each function is documented in the reference module."""

    name: str
    uniform: Callable[..., Any]
    first_fault: Callable[..., Any]
    factor_scores: Callable[..., Any]
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
        ConfigError: Unknown name, or numba is not installed.
    """
    check_choice("engine", name, ENGINES)
    if name == "auto":
        return find_engine("numba" if find_spec("numba") else "numpy")
    if name == "numpy":
        return _engine(name, reference)
    if find_spec("numba") is None:
        raise ConfigError('engine="numba" needs numba: pip install "kuaisim-gym[fast]".')
    from kuaisim_gym.engine import compiled

    return _engine(name, compiled)


def _engine(name: str, module: Any) -> Engine:
    return Engine(
        name,
        module.uniform,
        module.first_fault,
        module.factor_scores,
        module.advance,
        module.follow,
        module.state_vectors,
        module.inner_products,
        module.top_items,
    )
