"""Worker processes that end with the process that started them, whatever ended it.

They hear of that through a pipe whose other end that process alone holds: the system closes it when
the process dies. Nothing heavy is imported here, so that a worker listens from its first moment.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from multiprocessing.connection import Connection
from threading import Thread
from types import TracebackType
from typing import NoReturn, ParamSpec, TypeVar

from kuaisim_gym.errors import KuaiSimError

P = ParamSpec("P")
T = TypeVar("T")


class WorkerError(KuaiSimError, RuntimeError):
    """A worker process has ended before its work was done."""


class Workers(ProcessPoolExecutor):
    """A pool of worker processes.

    Leaving its block waits for running work, after an error, too, but not when interrupted: workers
    then end at once. They themselves hear no Ctrl-C, which a terminal sends to all processes.

    Args:
        jobs: Processes.
        threads: Threads of torch per process, and of NumPy's linear algebra unless the environment
            (``OMP_NUM_THREADS`` and similar variables) sets them; ``None`` for their own numbers.
        tasks: Tasks after which a process is replaced by a new one; ``None`` for no limit.

    Attributes:
        slots: The processes, as of a :class:`~benchmarks.studies.study.Backend`.
    """

    def __init__(self, jobs: int, threads: int | None = None, tasks: int | None = None) -> None:
        if threads is not None:
            # NumPy's linear algebra reads these when a process starts. Processes that each use all
            # cores would slow each other down.
            for library in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
                os.environ.setdefault(library, str(threads))
        # Torch's thread pool does not survive a fork.
        context = multiprocessing.get_context("spawn")
        self._listening, self._lifeline = context.Pipe(duplex=False)
        # Only the main thread is interrupted: another one leaves no process half started.
        self._launcher = ThreadPoolExecutor(1)
        begin = partial(_begin, self._listening, threads)
        make = partial(super().__init__, jobs, context, begin, max_tasks_per_child=tasks)
        self._launch(make)
        self.slots = jobs

    def submit(self, task: Callable[P, T], /, *args: P.args, **options: P.kwargs) -> Future[T]:
        return self._launch(partial(super().submit, task, *args, **options))

    def _launch(self, start: Callable[[], T]) -> T:
        def unheard() -> T:
            # Processes inherit what the thread that starts them blocks: signals that a terminal
            # sends to all of them would end a worker with a traceback while it loads.
            if hasattr(signal, "pthread_sigmask"):
                signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
            return start()

        return self._launcher.submit(unheard).result()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Waits for running work, or ends it.

        Raises:
            WorkerError: A process ended before its work was done.
        """
        try:
            self._launcher.shutdown()
            if error is not None and not isinstance(error, Exception):
                self._lifeline.close()
            super().__exit__(kind, error, traceback)
        finally:
            self._lifeline.close()
            self._listening.close()
        if isinstance(error, BrokenProcessPool):
            raise WorkerError(
                "A worker process was ended from outside, perhaps for want of memory. The same "
                "command goes on from what was saved; fewer --jobs need less memory."
            ) from error


def _begin(listening: Connection, threads: int | None) -> None:
    """Prepares a worker process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    Thread(target=_end_with, args=(listening,), daemon=True).start()
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
    if threads is not None:
        import torch

        torch.set_num_threads(threads)


def _end_with(listening: Connection) -> NoReturn:
    """Ends this process at once when the other end of the pipe is closed."""
    try:
        listening.recv_bytes()
    finally:
        os._exit(1)
