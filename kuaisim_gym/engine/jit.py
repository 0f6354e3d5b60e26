"""Decorators that compile functions by numba, and keep the code while its sources stay the same.

Code that cannot be kept is compiled by every process, with one warning; kept code that is damaged
is compiled anew.
"""

from __future__ import annotations

import hashlib
import logging
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import IO, Any, ClassVar, NoReturn, TypeVar

import numba
from numba.core.caching import FunctionCache, IndexDataCacheFile, NullCache
from tqdm.auto import tqdm

_F = TypeVar("_F", bound=Callable[..., Any])
_DIGEST = 32  # bytes of a digest
_IMPORT = re.compile(r"^(?:from +([\w.]+) +)?import +(\([^)]*\)|.+)", re.MULTILINE)

logger = logging.getLogger(__name__)


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


class _Files(IndexDataCacheFile):
    """Index and code of a function in files that end with a digest of name and content.

    Numba would unpickle what is damaged, and run it. A file without its digest is as good as none.
    """

    @contextmanager
    def _open_for_write(self, filepath: str) -> Iterator[IO[bytes]]:
        opened: Any = super()._open_for_write(filepath)
        with opened as file:
            yield file
            file.flush()
            file.write(_seal(filepath, Path(file.name).read_bytes()))

    def _load_index(self) -> dict[Any, str]:
        if not _is_whole(self._index_path):
            return {}
        index: dict[Any, str] = super()._load_index()  # type: ignore[no-untyped-call]
        return index

    def _load_data(self, name: str) -> Any:
        path: str = self._data_path(name)  # type: ignore[no-untyped-call]
        if not _is_whole(path):
            raise OSError(f"{path} is damaged.")  # as if it were not there
        return super()._load_data(name)  # type: ignore[no-untyped-call]


def _seal(path: str, content: bytes) -> bytes:
    return hashlib.blake2b(Path(path).name.encode() + content, digest_size=_DIGEST).digest()


def _is_whole(path: str) -> bool:
    """Tells whether a file of :class:`_Files` is there, and as it was written."""
    try:
        content = Path(path).read_bytes()
    except OSError:
        return False
    return content[-_DIGEST:] == _seal(path, content[:-_DIGEST])


class _Shown:
    """A bar for what is compiled: functions within functions, the outermost of which ends it."""

    _bar: ClassVar[tqdm[NoReturn] | None] = None
    _unfinished: ClassVar[int] = 0

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        loaded = super().load_overload(sig, target_context)  # type: ignore[misc]
        if loaded is None:
            if _Shown._bar is None:
                _Shown._bar = tqdm(desc="Compiling, once", unit=" functions", leave=False)
            _Shown._unfinished += 1
        return loaded

    def save_overload(self, sig: Any, data: Any) -> None:
        super().save_overload(sig, data)  # type: ignore[misc]
        _Shown._unfinished -= 1
        if _Shown._bar is not None:
            _Shown._bar.update()
            if not _Shown._unfinished:
                _Shown._bar.close()
                _Shown._bar = None


class _NoCache(_Shown, NullCache):
    """No code is kept."""


class _Cache(_Shown, FunctionCache):
    """Compiled code of a function, which is made anew when any of its sources has changed.

    Numba looks at the function's own file alone: it would not notice a constant or a field of a
    named tuple that changed in another one.

    Raises:
        RuntimeError: There is no folder to keep it in.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__(function)  # type: ignore[no-untyped-call]
        self._cache_file = _Files(  # type: ignore[no-untyped-call]
            self._cache_path, self._impl.filename_base, self._impl.locator.get_source_stamp()
        )
        self._sources = digest(function.__module__)

    def _index_key(self, sig: Any, codegen: Any) -> tuple[Any, ...]:
        key: tuple[Any, ...] = super()._index_key(sig, codegen)  # type: ignore[no-untyped-call]
        return (*key, self._sources)

    def _save_overload(self, sig: Any, data: Any) -> None:
        try:
            super()._save_overload(sig, data)  # type: ignore[no-untyped-call]
        except OSError as error:
            _warn_once(self._cache_path, error)


_unkept: set[str] = set()  # folders whose failure a warning told


def _warn_once(folder: str, error: Exception) -> None:
    if folder not in _unkept:
        _unkept.add(folder)
        logger.warning(
            "Compiled code cannot be kept, so that every process compiles it: %s. Let "
            "NUMBA_CACHE_DIR be a folder that can be written.",
            error,
        )


def jit(function: _F) -> _F:
    """Compiles a function at its first call, or takes it from the cache where there is one."""
    # NumPy's division: a check for zero in each would keep loops from being vectorised.
    compiled: Any = numba.njit(error_model="numpy")(function)
    try:
        compiled._cache = _Cache(function)
    except RuntimeError as error:
        _warn_once("", error)
        compiled._cache = _NoCache()
    return compiled  # type: ignore[no-any-return]  # called as the function is


def inlined(function: _F) -> _F:
    """Makes a function a part of the compiled ones that call it."""
    # Without a call, which counts references of arrays, loops over sessions are a third faster.
    compiled: Any = numba.njit(error_model="numpy", inline="always")(function)
    return compiled  # type: ignore[no-any-return]
