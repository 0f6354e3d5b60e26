"""Studies: pieces of work with one result file each; missing results are made in parallel.

A kind of study is a subclass of :class:`Study`.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from functools import partial
from itertools import islice
from pathlib import Path

import torch
from tqdm.auto import tqdm

from kuaisim_gym.disk import write_atomically
from kuaisim_gym.errors import ConfigError

from .results import PACKAGES, Result, commit, read_result, versions


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
    different = [name for name in header if existing.get(name) != header[name]]
    if different:
        raise ConfigError(
            f"{path} holds the result of other data or settings: wanted "
            f"{ {name: header[name] for name in different} }, found "
            f"{ {name: existing.get(name) for name in different} }. "
            "Remove it or choose another folder."
        )


def run_studies(studies: Sequence[Study], out: Path, jobs: int = 1, threads: int = 1) -> list[Path]:
    """Makes the studies whose results are missing, in order, under one progress bar.

    Existing files are checked before any work. After a failure no further study is started;
    running studies are completed.

    Args:
        studies: The studies.
        out: Folder of the result files.
        jobs: Parallel processes; with one, this process does the work.
        threads: Threads of torch per process, and of NumPy's linear algebra in other processes
            unless the environment (``OMP_NUM_THREADS`` and similar variables) sets them.

    Returns:
        All result files, in the order of the studies.

    Raises:
        ConfigError: ``out`` is a file, or holds a result of other data or settings.
    """
    missing = [study for study in studies if not _is_made(study, out)]
    skipped = len(studies) - len(missing)
    if jobs == 1:
        torch.set_num_threads(threads)
    with tqdm(total=len(studies), initial=skipped, desc="Studies", unit="study") as bar:
        serial = map(partial(run_study, out=out), missing)
        for path in serial if jobs == 1 else _in_parallel(missing, out, jobs, threads):
            bar.set_postfix_str(path.stem)
            bar.update()
    return [result_path(study, out) for study in studies]


def results_of(
    options: argparse.Namespace,
    plan: Callable[[], Iterable[Study]],
    read: Callable[[Path], list[Result]],
    markdown: Callable[[list[Result]], str],
) -> list[Result]:
    """Makes the missing studies of a command and prints the tables of their folder.

    Args:
        options: With ``table``, a folder of which only the tables are printed, or else with ``out``
            and ``jobs``.
        plan: Makes the studies, unless only tables are printed.
        read: Reads the results of a folder.
        markdown: Makes their tables.

    Returns:
        The results in the folder.

    Raises:
        ConfigError: Options contradict each other, or a result has other settings.
        DataFormatError: The folder holds no results, or results that cannot be compared.
    """
    if options.table is None:
        run_studies([*plan()], options.out, options.jobs)
    results = read(options.table or options.out)
    print(markdown(results))
    return results


def run_study(study: Study, out: Path) -> Path:
    """Makes a study in this process, if its result is missing, and returns the result file.

    Raises:
        ConfigError: ``out`` is a file, or holds a result of other data or settings.
    """
    path = result_path(study, out)
    if not _is_made(study, out):
        save(study, path, study.make(path))
        path.with_suffix(".checkpoint").unlink(missing_ok=True)
    return path


def save(study: Study, path: Path, body: Result) -> None:
    """Writes a result under its header, with versions and commit, completely or not at all."""
    commits = dict.fromkeys([*body.pop("commits", []), commit()])
    origin = {"versions": versions(study.packages), "commit": ", ".join(commits)}
    write_atomically(path, study.encode(study.header() | body | origin).encode())


def result_path(study: Study, out: Path) -> Path:
    """The result file of a study."""
    return out / f"{study.name}.json"


def _is_made(study: Study, out: Path) -> bool:
    if out.exists() and not out.is_dir():
        raise ConfigError(f"The results' folder {out} is a file.")
    path = result_path(study, out)
    if not path.exists() or not study.is_complete(path, read_result(path)):
        return False
    path.with_suffix(".checkpoint").unlink(missing_ok=True)  # if a killed process has left it
    return True


def _in_parallel(studies: Sequence[Study], out: Path, jobs: int, threads: int) -> Iterator[Path]:
    # NumPy's linear algebra reads these when a process starts. Processes that each use all cores
    # would slow each other down.
    for library in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(library, str(threads))
    # Torch's thread pool does not survive a fork.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(
        jobs, mp_context=context, initializer=torch.set_num_threads, initargs=(threads,)
    ) as pool:
        queue = iter(studies)
        running = {pool.submit(run_study, study, out) for study in islice(queue, jobs)}
        while running:  # a study starts when another has succeeded: none starts after a failure
            completed, running = wait(running, return_when=FIRST_COMPLETED)
            paths = [future.result() for future in completed]
            running |= {pool.submit(run_study, study, out) for study in islice(queue, len(paths))}
            yield from paths
