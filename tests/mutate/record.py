"""Pytest plugin that notes which functions of the packages each test calls, and its seconds."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Generator
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import pytest

PACKAGES = ("kuaisim_gym", "dsrm_agents", "benchmarks")
EVERY = 20  # seconds between two states of the record on the disk


class Recorder:
    """Calls, by test and by the fixtures that several tests share.

    Args:
        root: Folder of the packages.
        file: Where to write the tests, by name.
    """

    def __init__(self, root: Path, file: Path) -> None:
        self.root, self.file, self.written = root, file, time.monotonic()
        self.prefixes = tuple(f"{root / package}{os.sep}" for package in PACKAGES)
        self.names: dict[CodeType, str | None] = {}
        self.calls: set[str] = set()
        self.fixtures: dict[Any, set[str]] = {}
        self.tests: dict[str, dict[str, Any]] = {}

    def name(self, code: CodeType) -> str | None:
        """``path:function`` or ``path:Class.method`` of a code object of ours.

        Functions within functions, and comprehensions, count as the outermost one that holds them.
        """
        if not code.co_filename.startswith(self.prefixes):
            return None
        path = Path(code.co_filename).relative_to(self.root).as_posix()
        return f"{path}:{code.co_qualname.partition('.<locals>')[0]}"

    def trace(self, frame: FrameType, event: str, argument: object) -> None:
        """Notes a call; Python calls it at each."""
        code = frame.f_code
        if code not in self.names:
            self.names[code] = self.name(code)
        name = self.names[code]
        if name is not None:
            self.calls.add(name)

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef: Any) -> Generator[None, object, object]:
        outer, self.calls = self.calls, set()
        try:
            return (yield)
        finally:
            self.fixtures[fixturedef] = self.calls
            self.calls = outer | self.calls

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: Any) -> Generator[None, object, object]:
        self.calls = set()
        self.tests[item.nodeid] = {"seconds": 0.0}
        sys.settrace(self.trace)
        try:
            return (yield)
        finally:
            sys.settrace(None)
            for definitions in item._fixtureinfo.name2fixturedefs.values():
                for definition in definitions:
                    self.calls |= self.fixtures.get(definition, set())
            self.tests[item.nodeid]["calls"] = sorted(self.calls)

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.nodeid in self.tests:
            test = self.tests[report.nodeid]
            test["seconds"] = round(test["seconds"] + report.duration, 3)
            test["failed"] = test.get("failed", False) or report.failed

    def pytest_runtest_logfinish(self) -> None:
        if time.monotonic() > self.written + EVERY:
            self.pytest_sessionfinish()

    def pytest_sessionfinish(self) -> None:
        ended = {name: test for name, test in self.tests.items() if "calls" in test}
        self.file.write_text(json.dumps(ended))
        self.written = time.monotonic()
