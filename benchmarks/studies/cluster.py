"""Workers of a Ray cluster.

Each study is a task that streams what it tells of to this process, which owns the task: the cluster
ends both together. Ray is imported when a cluster is used, and not before.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import suppress
from importlib import import_module
from threading import Lock
from types import TracebackType
from typing import Any, Self, TypeVar

from kuaisim_gym.errors import ConfigError

from .processes import WorkerError
from .remote import Event, LostError, Order, RemoteStudy, fulfil
from .study import Study

T = TypeVar("T")

STARTS = 3  # of a cluster of ours, until it is given up
STORE = 256 << 20  # bytes of shared memory of a cluster of ours: checkpoints pass through it

_LOG = logging.getLogger(__name__)


class Cluster:
    """Workers of a Ray cluster, as a :class:`~benchmarks.studies.study.Backend`.

    Args:
        address: ``HOST:PORT`` of a running cluster of which this machine is a node, or ``"auto"``;
            ``None`` for one on this machine, which ends with the block.
        jobs: Studies at a time; ``None`` for as many as the cluster has room for at the start.
        cpus: Processors that are reserved for a study.
        threads: Threads of torch per study.

    Raises:
        ConfigError: There is no such cluster, or it has another version of Ray or of Python.
    """

    def __init__(
        self, address: str | None, jobs: int | None = None, cpus: int = 1, threads: int = 1
    ) -> None:
        self._ray: Any = import_module("ray")
        self._launcher = self._connected(address, (jobs or 1) * cpus)
        self.slots = jobs or max(1, int(self._ray.cluster_resources().get("CPU", 0)) // cpus)
        if all(node["Resources"].get("CPU", 0) < cpus for node in self._ray.nodes()):
            _LOG.warning("No node of the cluster has %d CPUs: waiting for one that has.", cpus)
        self._task = self._ray.remote(fulfil).options(
            num_returns="streaming", num_cpus=cpus, max_retries=0, scheduling_strategy="SPREAD"
        )
        self._makers = ThreadPoolExecutor(self.slots)
        self._threads = threads
        self._lock, self._is_open, self._streams = Lock(), True, set[Any]()

    def _connected(self, address: str | None, cpus: int) -> ThreadPoolExecutor:
        """The thread that has connected this process with a cluster; its end ends one of ours."""
        options: dict[str, Any] = {"address": address}
        if address is None:
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
            # An address of None would mean RAY_ADDRESS, or any cluster of this machine.
            options = {"address": "local", "num_cpus": cpus, "object_store_memory": STORE}
            options["include_dashboard"] = False
        elif address.startswith("ray://"):
            raise ConfigError(
                f"--address must be HOST:PORT of a cluster of which this machine is a node, got "
                f"{address}: start the command on a node, as by `ray job submit`."
            )
        # Records of workers come with the study's name, by another way.
        options |= {"log_to_driver": False, "logging_level": logging.ERROR}
        starts = 0
        while True:
            # The kernel ends what a thread has started with that thread, and Ray takes over signals
            # if the main thread starts it: another thread does.
            launcher = ThreadPoolExecutor(1)
            try:
                launcher.submit(self._ray.init, **options).result()
                return launcher
            except Exception as error:  # which Ray raises itself
                launcher.shutdown()
                starts += 1  # a busy machine may not start a node in Ray's time
                if starts == STARTS or address is not None:
                    raise ConfigError(
                        f"No work can be given to Ray at {address or 'this machine'}: {error}"
                    ) from error
                _LOG.warning("Ray has not started in time (%s): trying again.", error)

    def submit(self, task: Callable[[Study], T], study: Study, /) -> Future[T]:
        """Calls a function here, in a thread, with a study that a worker of the cluster makes."""
        return self._makers.submit(task, RemoteStudy(study, self._send, self._threads))

    def _send(self, order: Order) -> Iterator[Event]:
        ray = self._ray
        with self._lock:
            if not self._is_open:
                raise CancelledError
            stream = self._task.remote(order)
            self._streams.add(stream)
        errors = ray.exceptions
        try:
            for reference in stream:
                yield ray.get(reference)
        except (
            errors.WorkerCrashedError,
            errors.NodeDiedError,
            errors.ObjectLostError,
            errors.OutOfMemoryError,
        ) as error:
            raise LostError(str(error).partition("\n")[0]) from error
        except errors.LocalRayletDiedError as error:
            raise WorkerError(
                "The node of the cluster on this machine has ended. The same command goes on from "
                "what was saved, on another one."
            ) from error
        finally:
            self._streams.discard(stream)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Waits for running studies, or ends them after an interruption; leaves the cluster."""
        try:
            if error is None or isinstance(error, Exception):
                self._makers.shutdown()
        finally:
            with self._lock:
                self._is_open = False
            for stream in list(self._streams):
                with suppress(Exception):  # it has just ended, or its node has
                    self._ray.cancel(stream, force=True)
            self._launcher.submit(self._ray.shutdown).result()
            self._launcher.shutdown()
