"""Decorators that compile functions by numba, and keep the code while its sources stay the same."""

from __future__ import annotations

import hashlib
import re
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, NoReturn, TypeVar

import numba
from numba.core.caching import FunctionCache
from tqdm.auto import tqdm

_F = TypeVar("_F", bound=Callable[..., Any])
_IMPORT = re.compile(r"^(?:from +([\w.]+) +)?import +(\([^)]*\)|.+)", re.MULTILINE)


@cache
def digest(module: str) -> str:
    """Hexadecimal digits of the sources that a module's compiled code is made of.

    They are its own, those of the modules of its package and of ours that it imports at its top,
    those that these import, and so on.

    Args:
        module: Name of a module that is loaded, or being loaded behind its imports.
    """
    ours = {__name__.partition(".")[0], module.partition(".")[0]}
    texts: dict[str, bytes] = {}
    waiting = [module]
    while waiting:
        name = waiting.pop()
        path = getattr(sys.modules.get(name), "__file__", None)
        if name in texts or path is None or name.partition(".")[0] not in ours:
            continue
        texts[name] = Path(path).read_bytes()
        for package, names in _IMPORT.findall(texts[name].decode("utf-8")):
            inside = f"{package}." if package else ""
            waiting += [package, *(inside + one for one in re.findall(r"[\w.]+", names))]
    named = (name.encode() + b"\0" + texts[name] for name in sorted(texts))
    return hashlib.blake2b(b"\0".join(named)).hexdigest()


class _Cache(FunctionCache):
    """Compiled code of a function, which is made anew when any of its sources has changed.

    Numba looks at the function's own file alone: it would not notice a constant or a field of a
    named tuple that changed in another one.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__(function)  # type: ignore[no-untyped-call]
        self._sources = digest(function.__module__)

    def _index_key(self, sig: Any, codegen: Any) -> tuple[Any, ...]:
        key: tuple[Any, ...] = super()._index_key(sig, codegen)  # type: ignore[no-untyped-call]
        return (*key, self._sources)

    # A bar for what is compiled: functions within functions, the outermost of which ends it.
    _bar: ClassVar[tqdm[NoReturn] | None] = None
    _unfinished: ClassVar[int] = 0

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        loaded = super().load_overload(sig, target_context)  # type: ignore[no-untyped-call]
        if loaded is None:
            if _Cache._bar is None:
                _Cache._bar = tqdm(desc="Compiling, once", unit=" functions", leave=False)
            _Cache._unfinished += 1
        return loaded

    def save_overload(self, sig: Any, data: Any) -> None:
        super().save_overload(sig, data)  # type: ignore[no-untyped-call]
        _Cache._unfinished -= 1
        if _Cache._bar is not None:
            _Cache._bar.update()
            if not _Cache._unfinished:
                _Cache._bar.close()
                _Cache._bar = None


def jit(function: _F) -> _F:
    """Compiles a function at its first call, or takes it from the cache."""
    # NumPy's division: a check for zero in each would keep loops from being vectorised.
    compiled: Any = numba.njit(error_model="numpy")(function)
    compiled._cache = _Cache(function)
    return compiled  # type: ignore[no-any-return]  # called as the function is


def inlined(function: _F) -> _F:
    """Makes a function a part of the compiled ones that call it."""
    # Without a call, which counts references of arrays, loops over sessions are a third faster.
    compiled: Any = numba.njit(error_model="numpy", inline="always")(function)
    return compiled  # type: ignore[no-any-return]
