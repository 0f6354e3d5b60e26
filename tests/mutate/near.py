"""Which test files are near to a module, by the text of imports."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from tests.mutate.record import PACKAGES

JIT = "kuaisim_gym/engine/jit.py"
MOST = 6  # test files for a module
FAR = 99


def _path(name: str) -> str | None:
    """The path of a module of ours, from its dotted name."""
    base = name.replace(".", "/")
    for path in (f"{base}.py", f"{base}/__init__.py"):
        if name.partition(".")[0] in PACKAGES and Path(path).exists():
            return path
    return None


@cache
def _names(path: str) -> tuple[tuple[str, str], ...]:
    """Modules, and names of theirs, that a file imports, at its top or within functions."""
    names: list[tuple[str, str]] = []
    for node in ast.walk(ast.parse(Path(path).read_bytes())):
        match node:
            case ast.Import(aliases):
                names += [(alias.name, "") for alias in aliases]
            case ast.ImportFrom(module, aliases, level):
                package = Path(path).parts[:-level] if level else ()
                base = ".".join([*package, *([module] if module else [])])
                names += [(base, alias.name) for alias in aliases]
    return tuple(names)


@cache
def imports(path: str) -> frozenset[str]:
    """Paths of our modules that a file imports: those that define a name, and that pass it on."""
    found: set[str] = set()
    for module, name in _names(path):
        whole, inner = _path(module), _path(f"{module}.{name}")
        found |= {path for path in (whole, inner) if path}
        if whole and whole.endswith("__init__.py"):
            found |= {_path(source) or whole for source, one in _names(whole) if one == name}
    return frozenset(found)


@cache
def _modules() -> list[str]:
    files = (file for package in PACKAGES for file in Path(package).rglob("*.py"))
    return [file.as_posix() for file in files if file.name != "__init__.py"]


def importers(path: str) -> Iterator[set[str]]:
    """The module itself, then whoever imports it, then whoever imports these, and so on."""
    paths: set[str] = set()
    wider = {path}
    while wider != paths:
        paths = wider
        yield paths
        wider = paths | {name for name in _modules() if imports(name) & paths}


@cache
def nearest_tests(path: str) -> list[str]:
    """Test files near to a module: of its name, of its folder's, then by imports.

    Those that import least beside it come first; programs of the documentation come last.
    """
    files = [file.as_posix() for file in sorted(Path("tests").rglob("test_*.py"))]
    names = [name.strip("_") for name in (Path(path).stem, Path(path).parent.name)]
    distance: dict[str, int] = {}
    for number, paths in enumerate(importers(path)):
        for file in files:
            if imports(file) & paths:
                distance.setdefault(file, number)

    def remoteness(file: str) -> tuple[Any, ...]:
        about = Path(file).stem.removeprefix("test_")
        page = Path(file).parent.name == "tests" and about.endswith(("page", "pages", "site"))
        named = [not about.startswith(name) for name in names]
        return (page, *named, distance.get(file, FAR), len(imports(file)), file)

    near = [file for file in files if file in distance or not all(remoteness(file)[1:3])]
    mirrored = [file for file in files if file.split("/")[1] in path]
    return sorted(near or mirrored, key=remoteness)[:MOST]


@cache
def _sources_of_machine_code() -> set[str]:
    waiting = [name for name in _modules() if JIT in imports(name)]
    found: set[str] = set()
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting += imports(name)
    return found


def made_into_machine_code(path: str) -> bool:
    """Whether code must be compiled again where a module changes."""
    return path in _sources_of_machine_code()
