"""Commands that are interrupted: one line, and the exit status of shells."""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator

import pytest

from kuaisim_gym import console
from kuaisim_gym.console import end_process, run_command_line
from kuaisim_gym.errors import ConfigError

STATUSES = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129}


def run(command: Callable[[], object], **options: object) -> int:
    return run_command_line(lambda: argparse.Namespace(main=lambda _: command(), **options))


@pytest.fixture(autouse=True)
def signals_as_in_a_terminal() -> Iterator[None]:
    """Whoever started the tests may ignore some, as in the background."""
    usual = dict.fromkeys(STATUSES, signal.SIG_DFL)
    usual[signal.SIGINT] = signal.default_int_handler
    before = {number: signal.signal(number, handler) for number, handler in usual.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", STATUSES)
@pytest.mark.parametrize("resumes", [False, True])
def test_a_signal_ends_a_command_with_one_line(number, resumes: bool, capsys) -> None:
    before = [signal.getsignal(one) for one in STATUSES]
    assert run(lambda: signal.raise_signal(number), resumes=resumes) == STATUSES[number]
    advice = "; the same command goes on from what it has saved" if resumes else ""
    assert capsys.readouterr().err == f"interrupted{advice}\n"
    assert [signal.getsignal(one) for one in STATUSES] == before


def test_what_a_library_makes_of_an_interruption_is_one(capsys) -> None:
    def query(error: type[Exception]) -> None:
        try:
            signal.raise_signal(signal.SIGTERM)
        except KeyboardInterrupt as stop:
            raise error("Query interrupted") from stop

    for error in (RuntimeError, ConfigError):
        assert run(lambda error=error: query(error)) == 143
        assert capsys.readouterr().err == "interrupted\n"


def test_a_second_signal_does_not_disturb_the_tidying(capsys) -> None:
    tidied = []

    def command() -> None:
        try:
            signal.raise_signal(signal.SIGINT)
        finally:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGTERM)
            tidied.append(True)

    assert run(command) == 130
    assert tidied == [True]
    assert capsys.readouterr().err == "interrupted\n"


def test_a_command_that_does_not_end_is_ended(monkeypatch, capsys) -> None:
    statuses, ended = [], threading.Event()
    monkeypatch.setattr(console, "_GRACE", 0.01)
    monkeypatch.setattr(console.os, "_exit", lambda status: (statuses.append(status), ended.set()))

    def command() -> None:
        try:
            signal.raise_signal(signal.SIGTERM)
        except KeyboardInterrupt:  # as in a destructor, where exceptions are lost
            assert ended.wait(5)

    run(command)
    assert statuses == [143]
    assert capsys.readouterr().err == "interrupted\n"


def test_ignored_signals_stay_ignored(capsys) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as under nohup
    try:
        assert run(lambda: signal.raise_signal(signal.SIGHUP)) == 0
    finally:
        signal.signal(signal.SIGHUP, before)
    assert capsys.readouterr().err == ""


def test_commands_run_in_other_threads_too() -> None:
    statuses: list[int] = []
    thread = threading.Thread(target=lambda: statuses.append(run(lambda: None)))
    thread.start()
    thread.join()
    assert statuses == [0]


def test_other_errors_are_mistakes_or_defects(capsys) -> None:
    def fail(error: Exception) -> None:
        raise error

    assert run(lambda: fail(ConfigError("It must be two."))) == 2
    assert capsys.readouterr().err == "error: It must be two.\n"
    with pytest.raises(ZeroDivisionError):
        run(lambda: fail(ZeroDivisionError()))


def test_only_an_interrupted_process_ends_at_once(monkeypatch) -> None:
    statuses: list[int] = []
    monkeypatch.setattr(console.os, "_exit", statuses.append)
    for status in (0, 2, 130):
        with pytest.raises(SystemExit) as ended:
            end_process(status)
        assert ended.value.code == status
    assert statuses == [130]


PRINTS = """
from argparse import Namespace
from kuaisim_gym.console import end_process, run_command_line
def main(options):
    for number in range(100_000):
        print(number)
end_process(run_command_line(lambda: Namespace(main=main)))
"""


def test_a_reader_that_has_enough_ends_a_command_without_a_word() -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", PRINTS], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stderr is not None
    assert process.stdout.readline() == "0\n"
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait(timeout=60) == 141


def test_a_pipe_of_a_command_s_own_that_breaks_is_a_defect() -> None:
    def fail() -> None:
        raise BrokenPipeError("a worker's")

    with pytest.raises(BrokenPipeError, match="a worker's"):
        run(fail)
