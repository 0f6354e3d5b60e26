"""Pytest plugin that writes which functions of the packages each test calls, and how long it takes.

``python -m pytest -p tests.mutate.record`` with the name of a folder in ``MUTATE_RECORD``.
"""

from __future__ import annotations

import json
import os
import sys
import time
import uuid
from collections.abc import Generator
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import pytest

PACKAGES = ("kuaisim_gym", "dsrm_agents", "benchmarks")
EVERY = 60  # seconds between two states of the record on the disk
ROOT = Path.cwd()
PREFIXES = tuple(f"{ROOT / package}{os.sep}" for package in PACKAGES)


def function_name(code: CodeType) -> str | None:
    """``path:function`` or ``path:Class.method`` of a code object of ours, of the outermost one.

    Functions within functions, and comprehensions, count as those that hold them.
    """
    if not code.co_filename.startswith(PREFIXES):
        return None
    path = Path(code.co_filename).relative_to(ROOT).as_posix()
    return f"{path}:{code.co_qualname.partition('.<locals>')[0]}"


class Recorder:
    """Calls, by test and by the fixtures that several tests share."""

    def __init__(self) -> None:
        self.names: dict[CodeType, str | None] = {}
        self.calls: set[str] = set()
        self.fixtures: dict[Any, set[str]] = {}
        self.tests: dict[str, dict[str, Any]] = {}
        self.file = Path(os.environ["MUTATE_RECORD"], f"{uuid.uuid4().hex}.json")
        self.written = time.monotonic()

    def trace(self, frame: FrameType, event: str, argument: object) -> None:
        """Notes a call; Python calls it at each."""
        code = frame.f_code
        if code not in self.names:
            self.names[code] = function_name(code)
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
        if self.tests:  # not so in the process that only hands tests out
            self.file.parent.mkdir(parents=True, exist_ok=True)
            part = self.file.with_suffix(".part")
            whole = {name: test for name, test in self.tests.items() if "calls" in test}
            part.write_text(json.dumps(whole))
            part.replace(self.file)
            self.written = time.monotonic()


def pytest_configure(config: pytest.Config) -> None:
    """Registers a recorder."""
    config.pluginmanager.register(Recorder())
