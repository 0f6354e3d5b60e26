from __future__ import annotations

import json
import re
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import kuaisim_gym
from benchmarks import cost, exposure, halves, labels
from benchmarks.estimates import phase
from benchmarks.estimates import report as estimates_report
from benchmarks.pareto import report as pareto_report
from benchmarks.purify import report as purify_report
from benchmarks.runs import tuning
from benchmarks.studies import results
from benchmarks.studies.processes import Workers
from benchmarks.studies.results import read_result, read_results
from benchmarks.studies.study import InProcess, Study, run_studies, run_study
from kuaisim_gym.errors import BusyError, ConfigError, DataFormatError

ROOT = Path(__file__).parents[2]
BACKENDS = [InProcess, partial(Workers, 2, 1)]


@dataclass(frozen=True)
class Square(Study):
    """A study that notes in a file of its folder that it was made."""

    packages = ("numpy",)

    number: int
    data: str = "first"

    @property
    def name(self) -> str:
        return f"square{self.number}"

    def header(self) -> dict[str, Any]:
        return {"study": "square", "number": self.number, "data": self.data}

    def make(self, path: Path) -> dict[str, Any]:
        path.parent.mkdir(exist_ok=True)
        with (path.parent / "made").open("a") as file:
            file.write(f"{self.number}\n")
        if self.number >= 10:
            time.sleep(0.2)  # longer than it takes to see another study's failure
        if self.number < 0:
            raise ConfigError(f"{self.number} is negative.")
        return {"square": self.number**2, "commits": ["earlier"]}


def made(folder: Path) -> list[str]:
    return (folder / "made").read_text().split()


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_is_missing_is_made_and_the_rest_left_alone(backend, tmp_path: Path) -> None:
    paths = run_studies([Square(3)], tmp_path)
    before = paths[0].stat().st_mtime_ns
    paths = run_studies([Square(2), Square(3), Square(4)], tmp_path, backend)
    assert [path.name for path in paths] == ["square2.json", "square3.json", "square4.json"]
    assert paths[1].stat().st_mtime_ns == before
    assert [json.loads(path.read_text())["square"] for path in paths] == [4, 9, 16]
    assert sorted(made(tmp_path)) == ["2", "3", "4"]


def test_a_result_has_header_versions_and_all_code_that_made_it(tmp_path: Path) -> None:
    result = json.loads(run_study(Square(5), tmp_path).read_text())
    assert list(result) == ["study", "number", "data", "square", "versions", "commit"]
    assert result["versions"].keys() == {"python", "numpy"}
    assert result["commit"].startswith("earlier, ")


def test_other_data_are_refused_before_any_work(tmp_path: Path) -> None:
    run_study(Square(1), tmp_path)
    with pytest.raises(ConfigError, match="wanted {'data': 'second'}, found {'data': 'first'}"):
        run_studies([Square(2), Square(1, "second")], tmp_path)
    assert made(tmp_path) == ["1"]
    with pytest.raises(ConfigError, match="is a file"):
        run_study(Square(1), tmp_path / "made")


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_failure_ends_the_rest_and_keeps_what_was_made(backend, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="-1 is negative"):
        run_studies([Square(1), Square(-1), *map(Square, range(2, 30))], tmp_path, backend)
    assert (tmp_path / "square1.json").exists()
    assert not (tmp_path / "square-1.json").exists()
    # Beside the failing study only those run that had started before its failure was seen.
    assert "29" not in made(tmp_path)


def test_checkpoints_go_when_the_result_is_there(tmp_path: Path) -> None:
    checkpoint = tmp_path / "square7.checkpoint"
    for studies in ([Square(7)], [Square(7)], [Square(8), Square(7)]):
        checkpoint.touch()
        run_studies(studies, tmp_path)
        assert not checkpoint.exists()


@pytest.mark.parametrize("made_before", [False, True])
def test_what_dead_processes_left_goes_when_the_result_is_there(made_before, tmp_path) -> None:
    if made_before:
        run_study(Square(7), tmp_path)
    (tmp_path / "square7").mkdir()  # not theirs
    for name in (
        "lock",
        "checkpoint",
        "checkpoint.lock",
        "json.lock",
        "json.0f.part",
        "agent.part",
    ):
        (tmp_path / f"square7.{name}").touch()
    (tmp_path / "square7.journal.lock").symlink_to("nowhere")
    run_studies([Square(7)], tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"square7", "square7.json", "made"}
    assert made(tmp_path) == ["7"]


STARTED, GO_ON = threading.Event(), threading.Event()


class Slow(Square):
    """A study that goes on when another thread allows it."""

    def make(self, path: Path) -> dict[str, Any]:
        STARTED.set()
        return super().make(path) | {"in_time": GO_ON.wait(20)}


class Last(Square):
    """A study that allows the slow ones to go on."""

    def make(self, path: Path) -> dict[str, Any]:
        GO_ON.set()
        return super().make(path)


@pytest.fixture
def busy(tmp_path: Path) -> Iterator[list[Study]]:
    """Four studies, of which another maker is at the first and the last will let it go on."""
    STARTED.clear()
    GO_ON.clear()
    studies = [Slow(1), Square(2), Square(3), Last(4)]
    other = threading.Thread(target=run_studies, args=(studies[:1], tmp_path))
    other.start()
    assert STARTED.wait(20)
    yield studies
    GO_ON.set()
    other.join()


def test_two_processes_share_the_work(busy, tmp_path: Path) -> None:
    """A study that another process is making comes last; waiting for it first would end badly."""
    paths = run_studies(busy, tmp_path)
    assert sorted(made(tmp_path)) == ["1", "2", "3", "4"]  # each once
    assert json.loads(paths[0].read_text())["in_time"]
    assert [path.exists() for path in paths] == [True] * 4
    limit = time.monotonic() + 20  # the other one may still be tidying up
    while list(tmp_path.glob("*.lock")) and time.monotonic() < limit:
        time.sleep(0.01)
    assert not list(tmp_path.glob("*.lock"))


def test_who_waits_says_for_what(busy, tmp_path: Path, caplog) -> None:
    with pytest.raises(BusyError, match="square1"):
        run_study(busy[0], tmp_path, wait=False)
    caplog.handler.addFilter(lambda _: GO_ON.set() or True)  # told, it waits
    path = run_study(busy[0], tmp_path)
    assert caplog.messages == [f"Another process is making {path}: waiting for it."]
    assert made(tmp_path) == ["1"]


def readers() -> dict[str, Callable[[Path], list[dict[str, Any]]]]:
    """Functions that read the results of one kind of study, by its name."""
    modules = (
        cost, exposure, halves, labels, tuning, phase, estimates_report, pareto_report,
        purify_report,
    )  # fmt: skip
    return {module.STUDY: module.read_studies for module in modules} | {"run": read_results}


def test_a_folder_of_several_kinds_is_read_by_each(tmp_path: Path) -> None:
    """Whatever comes first: each reads its own files and no others."""
    kinds: dict[str, Path] = {}
    for path in sorted((ROOT / "benchmarks" / "results").rglob("*.json")):
        kinds.setdefault(read_result(path).get("study", "run"), path)
    assert readers().keys() <= kinds.keys()
    for order in (1, -1):
        folder = tmp_path / str(order)
        folder.mkdir()
        for number, path in enumerate([*kinds.values()][::order]):
            (folder / f"{number:02}.json").write_bytes(path.read_bytes())
        for kind, read in readers().items():
            assert read(folder) == [read_result(kinds[kind])]
    for kind, read in readers().items():
        for file in tmp_path.rglob("*.json"):
            if read_result(file).get("study", "run") == kind:
                file.unlink()
        with pytest.raises(DataFormatError, match="There are no results"):
            read(tmp_path)


def test_a_repository_that_is_not_the_code_s_own_gives_no_commit(tmp_path, monkeypatch) -> None:
    """As where the package is installed in an environment inside of somebody's project."""
    if (Path(__file__).parents[2] / ".git").exists():  # which an sdist has not
        assert re.fullmatch(r"[0-9a-f]{40}(-dirty)?", results.commit())
    release = f"release {kuaisim_gym.__version__}"
    monkeypatch.setattr(results, "__file__", str(tmp_path / "results.py"))
    assert results.commit() == release
    names = ["-c", "user.name=x", "-c", "user.email=x@example.org"]
    for command in (["init"], [*names, "commit", "--allow-empty", "-m", "theirs"]):
        subprocess.run(["git", *command], cwd=tmp_path, check=True, capture_output=True)
    assert results.commit() == release
