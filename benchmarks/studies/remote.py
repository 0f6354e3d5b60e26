"""Studies that a worker makes which shares no disk with this process, and may be lost.

The worker makes a study in a scratch folder and sends every file that it writes there, as soon as
it is written: checkpoints, and what is kept beside the result. This process writes the files to the
folder of the results, so that they are where a study of this process would have left them. After a
loss, the next worker is sent those files, and goes on from them.
"""

from __future__ import annotations

import glob
import logging
import os
import platform
import traceback
from collections.abc import Callable, Iterator, Mapping
from concurrent import futures
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from logging.handlers import QueueHandler
from pathlib import Path
from queue import SimpleQueue
from typing import NamedTuple

import torch

from kuaisim_gym.data.cache import scratch_folder
from kuaisim_gym.disk import UNFINISHED, write_atomically
from kuaisim_gym.errors import ConfigError, KuaiSimError

from .processes import WorkerError
from .results import Result
from .study import Study, header_difference, signed

LOSSES = 3  # of one study in a row, without a new file between them, that end the command
INTERVAL = 0.5  # seconds between two looks for new files
_OF_THE_FOLDER = (".lock", UNFINISHED)  # endings of files that mean nothing elsewhere

_LOG = logging.getLogger(__name__)


class Order(NamedTuple):
    """A study for a worker.

    Attributes:
        study: The study.
        header: Its header here: that of the worker's data must be the same.
        name: Name of the result file.
        files: Content of the files that earlier workers have left, by name.
        folder: Working directory, which paths in the settings refer to.
        threads: Threads of torch.
        level: Least level of log records that are sent.
    """

    study: Study
    header: Result
    name: str
    files: Mapping[str, bytes]
    folder: Path
    threads: int
    level: int


class SavedFile(NamedTuple):
    """A file that the study has written."""

    name: str
    content: bytes


class Success(NamedTuple):
    """The signed result."""

    body: Result


class Failure(NamedTuple):
    """The error of a study, the traceback, and the worker's machine."""

    error: Exception
    text: str
    host: str


Event = SavedFile | logging.LogRecord | Success | Failure
Send = Callable[[Order], Iterator[Event]]


class LostError(Exception):
    """A worker, or its machine, has ended before the study was made."""


class RemoteTraceback(Exception):
    """The traceback of an error in a worker, as text."""

    def __str__(self) -> str:
        return f"\n{self.args[0]}"


class RemoteStudy(Study):
    """A study that a worker makes; all else about it is done here.

    Args:
        study: The study.
        send: Has a worker :func:`fulfil` an order.
        threads: Threads of torch.
    """

    def __init__(self, study: Study, send: Send, threads: int = 1) -> None:
        self.study, self._send, self._threads = study, send, threads
        self._name, self._header = study.name, study.header()

    @property
    def name(self) -> str:
        return self._name

    def header(self) -> Result:
        return self._header

    def is_complete(self, path: Path, result: Result) -> bool:
        return self.study.is_complete(path, result)

    def encode(self, result: Result) -> str:
        return self.study.encode(result)

    def make(self, path: Path) -> Result:
        """Has workers make the study, one after the other until one is not lost.

        Raises:
            WorkerError: Workers were lost again and again.
        """
        losses = 0
        while True:
            try:
                for event in self._send(self._order(path)):
                    if isinstance(event, Success):
                        return event.body
                    losses = 0 if isinstance(event, SavedFile) else losses
                    self._note(event, path)
                raise LostError("it sent no result")
            except LostError as error:
                losses += 1
                if losses == LOSSES:
                    raise WorkerError(
                        f"{self.name} lost its worker {losses} times without progress between "
                        f"them ({error}). The same command goes on from what was saved; more "
                        "--cpus-per-run leave each run more memory."
                    ) from error
                _LOG.warning("%s has lost its worker (%s): another one goes on.", self.name, error)

    def _order(self, path: Path) -> Order:
        saved = path.parent.glob(f"{glob.escape(self.name)}.*")
        files = {
            file.name: file.read_bytes() for file in saved if file.suffix not in _OF_THE_FOLDER
        }
        level = logging.getLogger().getEffectiveLevel()
        return Order(
            self.study, self._header, self.name, files, Path.cwd(), self._threads, level
        )  # fmt: skip

    def _note(self, event: Event, path: Path) -> None:
        """Does here what a worker tells of."""
        match event:
            case SavedFile(name, content):
                write_atomically(path.with_name(name), content)
                _LOG.info("%s: got %s, %d bytes.", self.name, name, len(content))
            case Failure(error, text, host):
                if not isinstance(error, KuaiSimError):
                    _LOG.error("%s failed on %s: %s", self.name, host, error)
                raise error from RemoteTraceback(f"{self.name}, on {host}:\n{text}")
            case logging.LogRecord():
                event.msg, event.study = f"{self.name}: {event.msg}", self.name
                logging.getLogger(event.name).handle(event)


def fulfil(order: Order) -> Iterator[Event]:
    """Makes a study in a worker, and tells of all that comes of it; the last event is its end."""
    records: SimpleQueue[logging.LogRecord] = SimpleQueue()
    with _collected(records, order.level), scratch_folder() as folder:
        with ThreadPoolExecutor(1) as thread:
            for name, content in order.files.items():
                (folder / name).write_bytes(content)
            before = _states(folder)
            work = thread.submit(_make, order, folder / f"{order.name}.json")
            ended = False
            while not ended:
                ended = bool(futures.wait([work], INTERVAL).done)
                while not records.empty():
                    yield records.get()
                states = _states(folder)
                yield from _read(
                    folder, [name for name in states if states[name] != before.get(name)]
                )
                before = states
        try:
            yield Success(work.result())
        except Exception as error:
            yield Failure(error, traceback.format_exc(), platform.node())


def _make(order: Order, path: Path) -> Result:
    torch.set_num_threads(order.threads)
    with suppress(OSError):  # paths in the settings may all be absolute
        os.chdir(order.folder)
    study = order.study
    if difference := header_difference(order.header, study.header()):
        raise ConfigError(
            f"{order.name}: the worker on {platform.node()} has other data or code than this "
            f"machine: {difference}. Give both the same files and versions."
        )
    return signed(study, study.make(path))


def _states(folder: Path) -> dict[str, tuple[int, ...]]:
    """Files of a folder, by name, and what changes when one is written."""
    states: dict[str, tuple[int, ...]] = {}
    for file in folder.iterdir():
        with suppress(FileNotFoundError):
            status = file.stat()
            if file.is_file() and file.suffix not in _OF_THE_FOLDER:
                states[file.name] = (status.st_mtime_ns, status.st_size, status.st_ino)
    return states


def _read(folder: Path, names: list[str]) -> Iterator[SavedFile]:
    for name in names:
        with suppress(FileNotFoundError):
            yield SavedFile(name, (folder / name).read_bytes())


@contextmanager
def _collected(records: SimpleQueue[logging.LogRecord], level: int) -> Iterator[None]:
    """Collects the log records, and warnings, of this process."""
    root, handler = logging.getLogger(), QueueHandler(records)
    handler.addFilter(lambda record: not hasattr(record, "study"))  # of another process
    before = root.level
    root.addHandler(handler)
    root.setLevel(level)
    logging.captureWarnings(True)
    try:
        yield
    finally:
        logging.captureWarnings(False)
        root.setLevel(before)
        root.removeHandler(handler)
