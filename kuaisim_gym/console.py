"""The end of a command: its exit status, and one line in the place of a traceback."""

from __future__ import annotations

import argparse
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from types import FrameType, TracebackType
from typing import NoReturn

from kuaisim_gym.errors import KuaiSimError

# Ctrl-C, `kill`, and a terminal that is closed.
_SIGNALS = [
    signal.Signals[name] for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
]
_UNREAD = 141  # as shells have it for SIGPIPE, which not every system knows
_GRACE = 1.2  # seconds in which an interrupted command may tidy up


def run_command_line(parse: Callable[[], argparse.Namespace]) -> int:
    """Runs one command of a command line.

    Args:
        parse: Reads the options; their ``main`` is the command, which takes them, and ``resumes``,
            if present and true, says that the same command goes on from what it has saved.

    Returns:
        The exit status: 0; 2 after a user's mistake, which is printed as one sentence; 128 plus
        the number of the signal that ended it, as shells have it: 130 after Ctrl-C, 143 after
        ``kill``, 141 where nobody reads on, as after ``| head``.
    """
    stop = _Stop()
    try:
        with stop:
            options = parse()
            stop.resumes = getattr(options, "resumes", False)
            options.main(options)
            sys.stdout.flush()
            return 0
    except KeyboardInterrupt:
        stop.number = stop.number or signal.SIGINT
    except Exception as error:  # libraries turn interruptions into errors of their own
        if stop.number is None:
            if isinstance(error, BrokenPipeError) and _is_unread():
                return _UNREAD
            if not isinstance(error, KuaiSimError):
                raise
            sys.stderr.write(f"error: {error}\n")
            return 2
    stop.say()  # after the block above, whose end lets go of progress bars, which close their lines
    return 128 + stop.number


def _is_unread() -> bool:
    """Tells whether nobody reads what is printed, by one more line; output goes nowhere then."""
    try:
        sys.stdout.write("\n")
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return True
    return False


def end_process(status: int) -> NoReturn:
    """Ends this process with an exit status.

    It ends at once if a signal has ended the command: tearing down libraries takes seconds.
    """
    if status > 128:
        with suppress(OSError):  # as when nobody reads what is printed
            sys.stdout.flush()
        os._exit(status)
    sys.exit(status)


class _Interrupt(KeyboardInterrupt):
    """A signal. Python itself ends with another status where a plain one once left an ``exec``."""


class _Stop:
    """Signals that end a command: they interrupt the main thread, which may tidy up for a moment.

    A thread ends the process if the main thread does not end in time, such as in a long call of a
    library. What is written is written completely or not at all, so no moment is a wrong one.

    Attributes:
        number: The first signal, ``None`` before.
        resumes: Whether the same command goes on from what it has saved.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        self.resumes = False
        self._ended = threading.Event()

    def say(self) -> None:
        """Prints the one line."""
        advice = "; the same command goes on from what it has saved" if self.resumes else ""
        sys.stderr.write(f"interrupted{advice}\n")
        sys.stderr.flush()

    def __enter__(self) -> None:
        self._handlers = {}
        if threading.current_thread() is not threading.main_thread():
            return  # only the main thread gets signals
        for number in _SIGNALS:
            # One that is ignored stays ignored, as under nohup, and so does a caller's own handler.
            if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
                self._handlers[number] = signal.signal(number, self._interrupt)
        self._watched, self._woken = socket.socketpair()
        self._woken.setblocking(False)
        self._waker = signal.set_wakeup_fd(self._woken.fileno(), warn_on_full_buffer=False)
        threading.Thread(target=self._watch, daemon=True).start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if threading.current_thread() is not threading.main_thread():
            return
        self._ended.set()
        signal.set_wakeup_fd(self._waker)
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._woken.close()

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        if self.number is None:  # a second one would interrupt the tidying
            self.number = number
            raise _Interrupt

    def _watch(self) -> None:
        with self._watched, suppress(OSError):
            while numbers := self._watched.recv(1):
                if numbers[0] in self._handlers and not self._ended.wait(_GRACE):
                    self.say()
                    os._exit(128 + numbers[0])
