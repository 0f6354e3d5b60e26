"""Engines: the arithmetic of sessions on arrays, in NumPy and compiled by numba.

:mod:`~kuaisim_gym.engine.reference` is written like the rules and needs NumPy alone;
:mod:`~kuaisim_gym.engine.compiled` runs the same arithmetic, in the same order, through numba. Both
give equal numbers, to the last bit.
"""

from __future__ import annotations

import logging
from functools import cache
from importlib.util import find_spec

from kuaisim_gym.config import ENGINES, check_choice
from kuaisim_gym.engine.reference import NumpyEngine
from kuaisim_gym.engine.types import Engine
from kuaisim_gym.errors import ConfigError

__all__ = ["Engine", "find_engine"]

logger = logging.getLogger(__name__)


@cache
def find_engine(name: str = "auto") -> Engine:
    """Returns the engine of a name.

    Args:
        name: ``"numpy"``, ``"numba"``, or ``"auto"``: numba where it is installed.

    Raises:
        ConfigError: Unknown name, or numba is wanted and cannot be used.
    """
    check_choice("engine", name, ENGINES)
    if name == "numpy":
        return NumpyEngine()
    if name == "numba":
        try:
            from kuaisim_gym.engine.compiled import NumbaEngine
        except ImportError as error:
            raise ConfigError(
                f'engine="numba" needs numba, pip install "kuaisim-gym[fast]": {error}'
            ) from error
        return NumbaEngine()
    try:
        return find_engine("numba")
    except ConfigError as error:
        if find_spec("numba") is not None:
            logger.warning("Sessions are computed by NumPy: %s", error)
        return find_engine("numpy")
