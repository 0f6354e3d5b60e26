"""Studies: pieces of work with one result file each; missing results are made in parallel.

A kind of study is a subclass of :class:`Study`.
"""

from __future__ import annotations

import glob
import json
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent import futures
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self, TypeVar

import torch
from tqdm.auto import tqdm

from kuaisim_gym.disk import (
    UNFINISHED,
    check_writable,
    claimed,
    disk_errors,
    remove,
    write_atomically,
)
from kuaisim_gym.errors import BusyError, ConfigError, StorageError

from .results import PACKAGES, Result, commit, read_result, versions

T = TypeVar("T")

_LOG = logging.getLogger(__name__)


class Study(ABC):
    """A piece of work with one result file, which can be pickled for another process.

    Attributes:
        packages: Packages whose versions affect the result.
    """

    packages: tuple[str, ...] = PACKAGES

    @property
    @abstractmethod
    def name(self) -> str:
        """Name of the result file, without extension."""

    @abstractmethod
    def header(self) -> Result:
        """Data and settings, which are the first keys of the result."""

    @abstractmethod
    def make(self, path: Path) -> Result:
        """Does the work.

        Args:
            path: The future result file. Intermediate files may be saved next to it, for a later
                process to continue; ``path.with_suffix(".checkpoint")`` is removed when the result
                is written.

        Returns:
            The result without header and versions; ``"commits"``, if present, is the code of
            earlier processes.
        """

    @staticmethod
    def markdown(results: list[Result]) -> str:
        """Tables of results of this kind; empty if there are none to show."""
        return ""

    def is_complete(self, path: Path, result: Result) -> bool:
        """Checks whether an existing file holds the complete result.

        Raises:
            ConfigError: It holds the result of other data or settings.
        """
        check_same(path, self.header(), result)
        return True

    def encode(self, result: Result) -> str:
        """The text of the result file."""
        return json.dumps(result, indent=1, allow_nan=False) + "\n"


def check_same(path: Path, header: Result, existing: Mapping[str, object]) -> None:
    """Compares the content of a file with the header of a study.

    Raises:
        ConfigError: The file holds the result of other data or settings.
    """
    if difference := header_difference(header, existing):
        raise ConfigError(
            f"{path} holds the result of other data or settings: {difference}. Remove it or choose "
            "another folder."
        )


def header_difference(header: Result, existing: Mapping[str, object]) -> str:
    """The keys of a header that differ from existing ones, in words; empty if none does."""
    different = [name for name in header if existing.get(name) != header[name]]
    if not different:
        return ""
    return (
        f"wanted { {name: header[name] for name in different} }, found "
        f"{ {name: existing.get(name) for name in different} }"
    )


class Backend(Protocol):
    """Workers that make studies, several at a time, until its block ends.

    A block that ends with an error waits for the studies that are being made; one that is
    interrupted ends them.

    Attributes:
        slots: Studies that are made at a time.
    """

    slots: int

    def submit(self, task: Callable[[Study], T], study: Study, /) -> Future[T]:
        """Calls a function of a study whose ``make`` is the work of a worker."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool | None: ...


class InProcess:
    """The backend without workers: this process makes one study after the other.

    Args:
        threads: Threads of torch.
    """

    slots = 1

    def __init__(self, threads: int = 1) -> None:
        torch.set_num_threads(threads)

    def submit(self, task: Callable[[Study], T], study: Study, /) -> Future[T]:
        """Calls a function of a study at once."""
        future: Future[T] = Future()
        future.set_result(task(study))
        return future

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        """Ends nothing."""


def run_studies(
    studies: Sequence[Study], out: Path, backend: Callable[[], Backend] = InProcess
) -> list[Path]:
    """Makes the studies whose results are missing, in order, under one progress bar.

    Existing files are checked before any work. After a failure no further study is started;
    running studies are completed. Processes over one folder share the work: a study that another
    one is making comes last, and is waited for, or made if the other one has died.

    Args:
        studies: The studies.
        out: Folder of the result files.
        backend: Starts the workers, if anything is missing.

    Returns:
        All result files, in the order of the studies.

    Raises:
        ConfigError: ``out`` is a file, or holds a result of other data or settings.
        StorageError: ``out`` cannot be written.
        WorkerError: A worker was ended from outside.
    """
    missing = [study for study in studies if not _is_made(study, out)]
    skipped = len(studies) - len(missing)
    with tqdm(total=len(studies), initial=skipped, desc="Studies", unit="study") as bar:
        for wait in (False, True):
            busy = []
            attempt = partial(_attempt, out=out, wait=wait)
            for study, path in _attempts(missing, attempt, backend):
                if path is None:
                    busy.append(study)
                else:
                    bar.set_postfix_str(path.stem)
                    bar.update()
            missing = busy
    return [result_path(study, out) for study in studies]


def run_study(study: Study, out: Path, *, wait: bool = True) -> Path:
    """Makes a study in this process, if its result is missing, and returns the result file.

    Args:
        study: The study.
        out: Folder of the result files.
        wait: Waits for another process that is making it.

    Raises:
        BusyError: Another process is making it, and is not waited for.
        ConfigError: ``out`` is a file, or holds a result of other data or settings.
        StorageError: ``out`` cannot be written.
    """
    path = result_path(study, out)
    if _is_made(study, out):
        return path
    with disk_errors(out):
        out.mkdir(parents=True, exist_ok=True)
    with ExitStack() as turn:
        try:
            turn.enter_context(_claimed(study, out, wait=False))
        except BusyError:
            if not wait:
                raise
            _LOG.warning("Another process is making %s: waiting for it.", path)
            turn.enter_context(_claimed(study, out, wait=True))
        if not _is_complete(study, path):  # else the other process has made it
            save(study, path, study.make(path))
    return path


@contextmanager
def _claimed(study: Study, out: Path, wait: bool) -> Iterator[None]:
    """Lets one process at a time make a study, and leaves nothing beside a complete result.

    Raises:
        BusyError: Another process is making it, and is not waited for.
        StorageError: The folder cannot be written.
    """
    path = result_path(study, out)
    with claimed(out / study.name, wait=wait):
        yield
        path.with_suffix(".checkpoint").unlink(missing_ok=True)
        # Of dead writers: all files of the study are claimed here.
        for end in ("lock", UNFINISHED.removeprefix(".")):
            for leftover in path.parent.glob(f"{glob.escape(path.stem)}.*.{end}"):
                remove(leftover)


def save(study: Study, path: Path, body: Result) -> None:
    """Writes a result under its header, with versions and commit, completely or not at all."""
    write_atomically(path, study.encode(study.header() | signed(study, body)).encode())


def signed(study: Study, body: Result) -> Result:
    """A result without header, with the versions and the code that made it at its end.

    A worker of another machine signs its own; nothing is added to that.
    """
    if "versions" in body:
        return body
    commits = dict.fromkeys([*body.get("commits", []), commit()])
    rest = {name: value for name, value in body.items() if name != "commits"}
    return rest | {"versions": versions(study.packages), "commit": ", ".join(commits)}


def result_path(study: Study, out: Path) -> Path:
    """The result file of a study."""
    return out / f"{study.name}.json"


def _is_made(study: Study, out: Path) -> bool:
    """Checks whether a result is complete, and removes what a killed process has left beside it."""
    if out.exists() and not out.is_dir():
        raise ConfigError(f"The results' folder {out} is a file.")
    path = result_path(study, out)
    if not _is_complete(study, path):
        check_writable(out)  # before the work
        return False
    ends = ("checkpoint", "lock", "*.lock", f"*{UNFINISHED}")
    if any(any(out.glob(f"{glob.escape(path.stem)}.{end}")) for end in ends):
        # Nothing to do if another process is making more of it, or the folder cannot be written.
        with suppress(BusyError, StorageError), _claimed(study, out, wait=False):
            pass
    return True


def _is_complete(study: Study, path: Path) -> bool:
    return path.exists() and study.is_complete(path, read_result(path))


def _attempt(study: Study, out: Path, wait: bool) -> Path | None:
    """Makes a study; ``None`` if another process is making it and is not waited for."""
    try:
        return run_study(study, out, wait=wait)
    except BusyError:
        if wait:
            raise
        return None


def _attempts(
    studies: Sequence[Study],
    attempt: Callable[[Study], Path | None],
    start: Callable[[], Backend],
) -> Iterator[tuple[Study, Path | None]]:
    """Studies and their result files as they are made, by the workers or by other processes."""
    if not studies:
        return
    with start() as backend:
        queue = iter(studies)
        running = {backend.submit(attempt, study): study for study in islice(queue, backend.slots)}
        while running:  # a study starts when another has succeeded: none starts after a failure
            completed, _ = futures.wait(running, return_when=futures.FIRST_COMPLETED)
            for future in completed:
                yield running.pop(future), future.result()
            following = islice(queue, len(completed))
            running |= {backend.submit(attempt, study): study for study in following}
