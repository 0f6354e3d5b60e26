"""Imports between the modules of the packages, by their text."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from tests.mutate.record import PACKAGES

JIT = "kuaisim_gym/engine/jit.py"


def _path(name: str) -> str | None:
    """The path of a module of ours, from its dotted name."""
    base = name.replace(".", "/")
    for path in (f"{base}.py", f"{base}/__init__.py"):
        if name.partition(".")[0] in PACKAGES and Path(path).exists():
            return path
    return None


@cache
def imports() -> dict[str, set[str]]:
    """Paths that each module imports, at its top or within functions."""
    graph: dict[str, set[str]] = {}
    for package in PACKAGES:
        for file in Path(package).rglob("*.py"):
            names: set[str] = set()
            for node in ast.walk(ast.parse(file.read_bytes())):
                match node:
                    case ast.Import(aliases):
                        names |= {alias.name for alias in aliases}
                    case ast.ImportFrom(str(module), aliases):
                        names |= {module, *(f"{module}.{alias.name}" for alias in aliases)}
            graph[file.as_posix()] = {path for path in map(_path, names) if path}
    return graph


def importers(path: str) -> Iterator[set[str]]:
    """The module itself, then whoever imports it, then whoever imports these, and so on."""
    paths = {path}
    while True:
        yield paths
        wider = paths | {name for name, used in imports().items() if used & paths}
        if wider == paths:
            return
        paths = wider


@cache
def _sources_of_machine_code() -> set[str]:
    waiting = [name for name, used in imports().items() if JIT in used]
    found: set[str] = set()
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting += imports()[name]
    return found


def made_into_machine_code(path: str) -> bool:
    """Whether code must be compiled again where a module changes."""
    return path in _sources_of_machine_code()
