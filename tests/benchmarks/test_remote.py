"""Studies of workers that share no disk with this process, by workers of this process itself."""

from __future__ import annotations

import json
import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import pytest

from benchmarks import origin
from benchmarks.__main__ import main
from benchmarks.agents import AGENTS
from benchmarks.runs import tuning
from benchmarks.runs.run import RunStudy, run
from benchmarks.runs.settings import Run
from benchmarks.studies import backends, cluster
from benchmarks.studies.processes import WorkerError, Workers
from benchmarks.studies.remote import (
    LOSSES,
    Event,
    LostError,
    Order,
    RemoteStudy,
    SavedFile,
    Send,
    Success,
    fulfil,
)
from benchmarks.studies.study import InProcess, Study, run_studies
from kuaisim_gym.errors import ConfigError
from tests.attack.kills import content

T = TypeVar("T")


@dataclass(frozen=True)
class Counted(Study):
    """A study that counts to a number, and saves how far it is where it may be lost."""

    packages = ("numpy",)

    number: int
    data: str = "first"
    pause: float = 0.0
    fault: str = ""

    @property
    def name(self) -> str:
        return f"counted{self.number}"

    def header(self) -> dict[str, Any]:
        return {"study": "counted", "number": self.number, "data": self.data}

    def make(self, path: Path) -> dict[str, Any]:
        checkpoint = path.with_suffix(".checkpoint")
        first = int(checkpoint.read_text()) if checkpoint.exists() else 0
        path.with_suffix(".agent").write_text("kept")
        (path.parent / "work.lock").touch()
        for step in range(first, self.number):
            checkpoint.write_text(str(step))
            time.sleep(self.pause)
        logging.getLogger("benchmarks.made").warning("counted to %d", self.number)
        if self.fault:
            raise RuntimeError(self.fault)
        return {"first": first, "folder": str(path.parent)}


class Threads:
    """A backend whose workers are threads, which may be lost as those of a cluster are."""

    def __init__(self, send: Send = fulfil, slots: int = 1) -> None:
        self.send, self.slots, self.threads = send, slots, ThreadPoolExecutor(slots)

    def submit(self, task: Callable[[Study], T], study: Study, /) -> Future[T]:
        return self.threads.submit(task, RemoteStudy(study, self.send))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.threads.shutdown()


def read(path: Path) -> dict[str, Any]:
    result: dict[str, Any] = json.loads(path.read_text())
    return result


def test_results_and_files_come_back_and_nothing_else(tmp_path: Path, caplog) -> None:
    paths = run_studies([Counted(2), Counted(3)], tmp_path, Threads)
    assert {path.name for path in tmp_path.iterdir()} == {
        "counted2.agent", "counted2.json", "counted3.agent", "counted3.json",
    }  # fmt: skip
    results = [*map(read, paths)]
    assert [*results[0]] == ["study", "number", "data", "first", "folder", "versions", "commit"]
    folders = {result["folder"] for result in results}
    assert len(folders) == 2 and str(tmp_path) not in folders
    assert not any(Path(folder).exists() for folder in folders)
    sent = {record.getMessage() for record in caplog.records if hasattr(record, "study")}
    assert sent == {"counted2: counted to 2", "counted3: counted to 3"}


class Losing:
    """Workers of which each is lost after some files, the given number of times.

    Attributes:
        orders: What workers were sent.
    """

    def __init__(self, times: int, files: int) -> None:
        self.times, self.files = times, files
        self.orders: list[Order] = []

    def __call__(self, order: Order) -> Iterator[Event]:
        self.orders.append(order)
        left = self.files if len(self.orders) <= self.times else sys.maxsize
        events = fulfil(order)
        while left:
            event = next(events, None)
            if event is None:
                return
            left -= isinstance(event, SavedFile)
            yield event
        list(events)  # unheard
        raise LostError("no more")


def test_the_next_worker_goes_on_from_the_files_of_a_lost_one(tmp_path: Path, caplog) -> None:
    send = Losing(times=1, files=2)
    (path,) = run_studies([Counted(6, pause=0.4)], tmp_path, partial(Threads, send))
    first, second = send.orders
    assert first.files == {}
    assert second.files.keys() == {"counted6.agent", "counted6.checkpoint"}
    assert read(path)["first"] == int(second.files["counted6.checkpoint"]) > 0
    assert "counted6 has lost its worker (no more): another one goes on." in caplog.messages
    assert not path.with_suffix(".checkpoint").exists()


def test_losses_without_progress_end_the_command(tmp_path: Path) -> None:
    send = Losing(times=100, files=0)
    with pytest.raises(WorkerError, match=f"counted1 lost its worker {LOSSES} times"):
        run_studies([Counted(1)], tmp_path, partial(Threads, send))
    assert len(send.orders) == LOSSES
    assert not list(tmp_path.iterdir())


def test_losses_with_progress_do_not(tmp_path: Path) -> None:
    send = Losing(times=LOSSES + 1, files=1)
    (path,) = run_studies([Counted(1)], tmp_path, partial(Threads, send))
    assert path.exists() and len(send.orders) == LOSSES + 2


def test_a_worker_without_an_end_is_lost(tmp_path: Path) -> None:
    def silent(order: Order) -> Iterator[Event]:
        return iter(())

    with pytest.raises(WorkerError, match="it sent no result"):
        run_studies([Counted(1)], tmp_path, partial(Threads, silent))


def test_a_worker_with_other_data_says_so(tmp_path: Path) -> None:
    def elsewhere(order: Order) -> Iterator[Event]:
        return fulfil(order._replace(study=replace(order.study, data="second")))  # type: ignore[type-var]

    with pytest.raises(
        ConfigError,
        match="has other data or code than this machine: wanted {'data': 'first'}, "
        "found {'data': 'second'}",
    ):
        run_studies([Counted(1)], tmp_path, partial(Threads, elsewhere))


def test_an_error_brings_its_traceback(tmp_path: Path, caplog) -> None:
    with pytest.raises(RuntimeError, match="by design") as caught:
        run_studies([Counted(1, fault="by design")], tmp_path, Threads)
    assert "in make\n    raise RuntimeError" in str(caught.value.__cause__)
    assert any(text.startswith("counted1 failed on ") for text in caplog.messages)


def test_a_worker_s_own_versions_stand_in_the_result(tmp_path: Path) -> None:
    def older(order: Order) -> Iterator[Event]:
        for event in fulfil(order):
            if isinstance(event, Success):
                event = Success(event.body | {"versions": {"numpy": "1.0"}, "commit": "theirs"})
            yield event

    (path,) = run_studies([Counted(1)], tmp_path, partial(Threads, older))
    assert (read(path)["versions"], read(path)["commit"]) == ({"numpy": "1.0"}, "theirs")


def test_a_run_and_its_agent_are_those_of_this_process(tmp_path: Path) -> None:
    spec = Run("random", max_len=5, sessions=20)
    here = run(spec, tmp_path / "here", progress=False, keep=True)
    study = RunStudy(spec, progress=False, keep=True)
    (path,) = run_studies([study], tmp_path / "there", Threads)
    assert content(path) == content(here)
    assert {file.name for file in path.parent.iterdir()} == {
        file.name for file in here.parent.iterdir()
    }


def test_a_search_makes_two_trials_at_a_time(small, tmp_path: Path, monkeypatch) -> None:
    pair = threading.Barrier(2)

    def worth(spec, dataset, fitted, users, params) -> float:
        pair.wait(20)
        return float(params["gamma"])

    monkeypatch.setattr(origin, "shared_dataset", lambda *_: small)
    monkeypatch.setattr(tuning, "session_length", worth)
    spec, two = Run("a2c", max_len=6, seed=0, episodes=300, sessions=40), partial(Threads, slots=2)
    first = read(tuning.tune(spec, 2, tmp_path, False, two))["trials"]
    path = tuning.tune(spec, 6, tmp_path, False, two)
    trials = read(path)["trials"]
    assert trials[:2] == first and len(trials) == 6
    present = {name: AGENTS["a2c"].hyperparams[name] for name in AGENTS["a2c"].space}
    assert [trial["params"] == present for trial in trials].count(True) == 1
    assert len({trial["params"]["learning_rate"] for trial in trials}) == 6
    assert {file.name for file in tmp_path.iterdir()} == {path.name, f"{path.stem}.journal"}


def test_options_choose_the_backend(tmp_path: Path, monkeypatch, capsys) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(
        "benchmarks.runs.suite.run_studies", lambda studies, out, backend: asked.append(backend)
    )
    suite = ["suite", "--agents", "random", "--seeds", "1", "--threads", "2", "--out"]
    suite.append(str(tmp_path))
    for options in ([], ["--jobs", "1"], ["--jobs", "3"]):
        assert main([*suite, *options]) == 0
    assert [(start.func, start.args) for start in asked] == [
        (Workers, (2, 2)), (InProcess, (2,)), (Workers, (3, 2)),
    ]  # fmt: skip
    assert main([*suite, "--address", "auto"]) == 2
    assert "--address is of Ray alone" in capsys.readouterr().err
    monkeypatch.setattr(backends, "find_spec", lambda name: None)
    assert main([*suite, "--backend", "ray"]) == 2
    assert 'pip install "kuaisim-gym[bench,ray]"' in capsys.readouterr().err
    monkeypatch.setattr(backends, "find_spec", lambda name: name)
    assert main([*suite, "--backend", "ray", "--address", "a:1", "--cpus-per-run", "4"]) == 0
    assert main([*suite, "--backend", "ray", "--jobs", "9"]) == 0
    assert [(start.func, start.args) for start in asked[3:]] == [
        (cluster.Cluster, ("a:1", None, 4, 2)), (cluster.Cluster, (None, 9, 2, 2)),
    ]  # fmt: skip
