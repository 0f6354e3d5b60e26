"""Decorators that compile functions by numba, and keep the code while its sources stay the same."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, NoReturn, TypeVar

import numba
from numba.core.caching import FunctionCache
from tqdm.auto import tqdm

from kuaisim_gym import randomness

_F = TypeVar("_F", bound=Callable[..., Any])


def _digest() -> str:
    """Hexadecimal digits of the sources that compiled code is made of."""
    sources = [Path(__file__).parent / f"{name}.py" for name in ("compiled", "fused", "types")]
    sources.append(Path(randomness.__file__))
    return hashlib.blake2b(b"\0".join(path.read_bytes() for path in sources)).hexdigest()


_SOURCES = _digest()


class _Cache(FunctionCache):
    """Compiled code of a function, which is made anew when any of the sources has changed.

    Numba looks at the function's own file alone: it would not notice a constant or a field of a
    named tuple that changed in another one.
    """

    def _index_key(self, sig: Any, codegen: Any) -> tuple[Any, ...]:
        key: tuple[Any, ...] = super()._index_key(sig, codegen)  # type: ignore[no-untyped-call]
        return (*key, _SOURCES)

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
    compiled._cache = _Cache(function)  # type: ignore[no-untyped-call]
    return compiled  # type: ignore[no-any-return]  # called as the function is


def inlined(function: _F) -> _F:
    """Makes a function a part of the compiled ones that call it."""
    # Without a call, which counts references of arrays, loops over sessions are a third faster.
    compiled: Any = numba.njit(error_model="numpy", inline="always")(function)
    return compiled  # type: ignore[no-any-return]
