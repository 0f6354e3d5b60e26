"""Work done side by side in processes."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import Any, TypeVar

import torch

Task = TypeVar("Task")


def side_by_side(
    function: Callable[..., Any], tasks: Sequence[Task], *rest: Any, jobs: int, threads: int = 1
) -> Iterator[Task]:
    """Calls a function on every task, and yields each task when it is done.

    After a failure no further task is begun; those that run are waited for.

    Args:
        function: Called as ``function(task, *rest)``; all of it must survive pickling.
        tasks: In the order in which they are begun.
        *rest: Further arguments.
        jobs: Processes at a time.
        threads: Threads of torch in each, and of NumPy's linear algebra where the environment
            (``OMP_NUM_THREADS`` and its like) does not say otherwise.

    Yields:
        The tasks, as they end.
    """
    # NumPy's linear algebra reads these when a process starts; two processes that each use every
    # core spin against each other.
    for library in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(library, str(threads))
    # Spawned, not forked: torch's thread pool does not survive a fork.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(
        jobs, mp_context=context, initializer=torch.set_num_threads, initargs=(threads,)
    ) as pool:
        pending = {pool.submit(function, task, *rest): task for task in tasks}
        try:
            for future in as_completed(pending):
                future.result()
                yield pending[future]
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
