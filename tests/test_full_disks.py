"""Whatever is written on a full disk, or where nothing can be written, is told in our words."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from stable_baselines3 import PPO

from benchmarks.__main__ import main
from benchmarks.reports import report
from benchmarks.reports.plots import save_figure, save_small
from benchmarks.runs import play
from benchmarks.runs.play import write_gif
from benchmarks.runs.record import agent_logger
from benchmarks.speed import timing
from benchmarks.studies.study import Study, run_study
from dsrm_agents import export, export_onnx, make_vec_env
from dsrm_agents.hsrl.codebook import Codebook
from kuaisim_gym.data import write_csv
from kuaisim_gym.errors import DiskSpaceError, StorageError
from tests.attack.forks import contents, files_of_at_most

ENV = "KuaiRec-Fair-v0"


def figure() -> Figure:
    drawn = Figure(figsize=(2, 1))
    drawn.subplots().plot([1, 2])
    return drawn


def frames() -> list[np.ndarray]:
    return list(np.random.default_rng(0).integers(0, 255, (3, 40, 40, 3), np.uint8))


WRITERS = {
    "figure": lambda folder, world: save_figure(figure(), folder / "it.png"),
    "small figure": lambda folder, world: save_small(figure(), folder / "it.png"),
    "film": lambda folder, world: write_gif(folder / "it.gif", frames(), 5),
    "csv": lambda folder, world: write_csv(world, folder / "it"),
    "codebook": lambda folder, world: Codebook.fit(np.eye(60)).save(folder / "it.safetensors"),
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_full_disk_is_told_and_nothing_half_is_left(tmp_path: Path, small, name: str) -> None:
    write, whole, full = WRITERS[name], tmp_path / "whole", tmp_path / "full"
    whole.mkdir()
    full.mkdir()
    write(whole, small)
    told = pytest.raises(DiskSpaceError, match="/it.* cannot be written .* are free")
    with files_of_at_most(200), told:
        write(full, small)
    assert list(full.iterdir()) == []
    write(full, small)
    assert contents(full) == contents(whole)


@pytest.mark.parametrize("limit", [200, 100_000])
def test_whatever_file_of_a_dataset_does_not_fit(tmp_path: Path, small, limit: int) -> None:
    """Tables are written by pandas, logs by DuckDB, whose errors are others."""
    told = pytest.raises(DiskSpaceError, match=r"/data cannot be written \(File too large\); ")
    with files_of_at_most(limit), told:
        write_csv(small, tmp_path / "data")
    assert list(tmp_path.iterdir()) == []


def refuse(*_: object, **__: object) -> None:
    raise AssertionError("work began")


@pytest.fixture
def nowhere(tmp_path: Path) -> Path:
    """A path that not even the superuser can write, for its folder is a file."""
    (tmp_path / "file").write_bytes(b"")
    return tmp_path / "file" / "it"


def test_films_and_pages_are_refused_before_they_are_made(nowhere, monkeypatch, capsys) -> None:
    monkeypatch.setattr(play, "find_player", refuse)
    monkeypatch.setattr(report, "page_of", refuse)
    for words in (
        ["play", "popularity", "--out"],
        ["report", str(nowhere.parent.parent), "--html"],
    ):
        assert main([*words, f"{nowhere}.gif"]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"error: {nowhere}.gif cannot be written (Not a directory)")


def test_studies_are_refused_before_they_are_made(nowhere) -> None:
    class Never(Study):
        name = "never"  # type: ignore[assignment]
        header = dict  # type: ignore[assignment]
        make = refuse  # type: ignore[assignment]

    with pytest.raises(StorageError, match="cannot be written"):
        run_study(Never(), nowhere)
    parser = argparse.ArgumentParser()
    timing.add_out(parser)
    with pytest.raises(StorageError, match="cannot be written"):
        parser.parse_args(["--out", str(nowhere)])


def test_graphs_are_refused_before_they_are_made(nowhere, small, monkeypatch) -> None:
    monkeypatch.setattr(export, "_write", refuse)
    model = PPO("MlpPolicy", make_vec_env(ENV, 2, dataset=small), device="cpu")
    with pytest.raises(StorageError, match="policy.onnx cannot be written"):
        export_onnx(model, nowhere)


def test_a_log_ends_the_run_in_our_words(tmp_path: Path, nowhere, monkeypatch) -> None:
    pytest.importorskip("tensorboard")
    with pytest.raises(StorageError, match="cannot be written"):
        agent_logger(nowhere)
    log = agent_logger(tmp_path / "log")
    log.record("reward", 1.0)
    log.dump(1)
    monkeypatch.setattr("kuaisim_gym.disk.free_space", lambda _: 1000)
    log.record("reward", 2.0)
    with pytest.raises(DiskSpaceError, match="needed at .*/log, but only"):
        log.dump(2)
    log.close()
