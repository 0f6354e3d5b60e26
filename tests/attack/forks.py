"""Work in a forked child: killed, limited or refused, it leaves this process as it was."""

from __future__ import annotations

import os
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from io import FileIO
from pathlib import Path
from typing import NamedTuple

PATIENCE = 120.0  # seconds after which a child counts as hanging


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """Plays a full disk: no file grows beyond some bytes in the block."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


class Ending(NamedTuple):
    """How a child ended.

    Attributes:
        status: Its exit status, or the negative number of the signal that ended it.
        text: What it wrote to both outputs.
        seconds: How long it took.
    """

    status: int
    text: str
    seconds: float


def in_child(
    work: Callable[[], object], *, kill_after: float | None = None, file_size: int | None = None
) -> Ending:
    """Runs work in a forked child and waits for its end.

    Args:
        work: Ends with status 0, by an exception (printed as Python does) with 1, or with the
            status that it returns.
        kill_after: Seconds after which SIGKILL ends it, if it still runs.
        file_size: Bytes that its files may have, where a full disk is to be played.
    """
    started = time.monotonic()
    reading, writing = os.pipe()  # a limit of files' sizes does not concern it
    child = os.fork()
    if child == 0:
        os._exit(_work(work, writing, file_size))
    os.close(writing)
    os.set_blocking(reading, False)
    with open(reading, "rb", buffering=0) as output:
        status, text = _wait(child, output, started + (kill_after or PATIENCE))
    return Ending(status, text.decode(errors="replace"), time.monotonic() - started)


def _work(work: Callable[[], object], output: int, file_size: int | None) -> int:
    """The child's part."""
    try:
        os.setsid()
        os.dup2(output, 1)
        os.dup2(output, 2)
        sys.stdout, sys.stderr = (open(n, "w", closefd=False) for n in (1, 2))  # noqa: SIM115
        with nullcontext() if file_size is None else files_of_at_most(file_size):
            status = work()
        return status if isinstance(status, int) else 0
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


def _wait(child: int, output: FileIO, end: float) -> tuple[int, bytes]:
    """The child's status and text; it and its own children are killed when their time is over."""
    text = b""
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        text += output.read() or b""
        if ended:
            return os.waitstatus_to_exitcode(status), text
        left = end - time.monotonic()
        if left <= 0:
            break
        time.sleep(min(left, 0.002))
    # The group alone may be missing yet: the child makes it first of all.
    for kill, target in ((os.killpg, child), (os.kill, child)):
        with suppress(ProcessLookupError):
            kill(target, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), text


def contents(folder: Path) -> dict[str, bytes]:
    """Bytes of all files below a folder, by name."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}
