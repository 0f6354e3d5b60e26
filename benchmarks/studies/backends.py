"""Workers that the command line asks for: this process, a local pool, or a Ray cluster."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from kuaisim_gym.errors import ConfigError

from .cluster import Cluster
from .processes import Workers
from .results import Result
from .study import Backend, InProcess, Study, run_studies


def backend_of(options: argparse.Namespace) -> Callable[[], Backend]:
    """Starts the workers that the options of :func:`~benchmarks.commands.add_jobs` describe.

    Args:
        options: These, and ``threads`` of torch per study, one if absent.

    Returns:
        A function that starts them.

    Raises:
        ConfigError: Options contradict each other, or Ray is not installed.
    """
    threads = getattr(options, "threads", 1)
    if options.backend == "ray":
        if find_spec("ray") is None:
            raise ConfigError('--backend ray needs Ray: pip install "kuaisim-gym[bench,ray]".')
        cpus = options.cpus_per_run or threads
        # A cluster of many machines says itself how many it has room for.
        jobs = options.jobs or (None if options.address else options.usual_jobs)
        return partial(Cluster, options.address, jobs, cpus, threads)
    for name in ("address", "cpus_per_run"):
        if getattr(options, name) is not None:
            option = f"--{name.replace('_', '-')}"
            raise ConfigError(f"{option} is of Ray alone: add --backend ray, or leave it out.")
    jobs = options.jobs or options.usual_jobs
    return partial(InProcess, threads) if jobs == 1 else partial(Workers, jobs, threads)


def results_of(
    options: argparse.Namespace,
    plan: Callable[[], Iterable[Study]],
    read: Callable[[Path], list[Result]],
    markdown: Callable[[list[Result]], str],
) -> list[Result]:
    """Makes the missing studies of a command and prints the tables of their folder.

    Args:
        options: With ``table``, a folder of which only the tables are printed, or else with ``out``
            and those of :func:`backend_of`.
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
        run_studies([*plan()], options.out, backend_of(options))
    results = read(options.table or options.out)
    print(markdown(results))
    return results
