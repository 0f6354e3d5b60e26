from __future__ import annotations

import multiprocessing
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from kuaisim_gym.data import load_dataset
from kuaisim_gym.data.cache import (
    cache_info,
    cached,
    clear_cache,
    file_digest,
    scratch_folder,
)
from kuaisim_gym.disk import write_atomically

SPAWN = multiprocessing.get_context("spawn")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KUAISIM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_builds_once_and_reads_back_the_same(folder: Path) -> None:
    calls = []

    def build():
        calls.append(1)
        return {
            "a": np.arange(6, dtype=np.int32).reshape(2, 3).T,
            "mean": np.asarray(0.25),
            "none": np.zeros((0, 2), np.uint8),
        }

    first, second = cached("key", build), cached("key", build)
    assert len(calls) == 1
    for name, wanted in build().items():
        for arrays in (first, second):
            np.testing.assert_array_equal(arrays[name], wanted)
            assert arrays[name].dtype == wanted.dtype
            assert arrays[name].shape == wanted.shape
    assert not second["a"].flags.writeable


def _build_and_count(calls: Path) -> float:
    def build():
        with calls.open("a") as file:
            file.write("x")
        time.sleep(0.3)
        return {"a": np.arange(100_000, dtype=np.float64)}

    return float(cached("key", build)["a"].sum())


def test_of_many_processes_one_builds(folder: Path, tmp_path: Path) -> None:
    calls = tmp_path / "calls"
    with SPAWN.Pool(4) as pool:
        sums = pool.map(_build_and_count, [calls] * 4)
    assert calls.read_text() == "x"
    assert sums == [float(np.arange(100_000).sum())] * 4


def _build_and_hang(started: Path) -> None:
    import kuaisim_gym.data.cache as cache

    def hang(*_: object) -> None:
        started.write_text("half of the files are written")
        time.sleep(60)

    cache.os.rename = hang  # type: ignore[assignment]
    cached("key", lambda: {"a": np.zeros(10), "b": np.zeros(10)})


def test_a_killed_writer_leaves_no_entry_and_no_lock(folder: Path, tmp_path: Path) -> None:
    started = tmp_path / "started"
    writer = SPAWN.Process(target=_build_and_hang, args=(started,))
    writer.start()
    while not started.exists():
        time.sleep(0.02)
    os.kill(writer.pid, signal.SIGKILL)
    writer.join()
    assert list(folder.glob("key.arrays.*.part"))  # what it leaves behind
    assert cache_info() == []
    assert cached("key", lambda: {"a": np.ones(3)})["a"].tolist() == [1, 1, 1]
    assert not list(folder.glob("*.part"))


@pytest.mark.parametrize("damage", ["truncated", "garbage"])
def test_a_damaged_entry_is_rebuilt(folder: Path, caplog, damage: str) -> None:
    cached("key", lambda: {"a": np.zeros(300)})
    file = folder / "key.arrays" / "a.npy"
    file.write_bytes(file.read_bytes()[:-100] if damage == "truncated" else b"torn")
    np.testing.assert_array_equal(cached("key", lambda: {"a": np.ones(3)})["a"], np.ones(3))
    assert "Rebuilding" in caplog.text
    np.testing.assert_array_equal(cached("key", dict)["a"], np.ones(3))


def test_a_failed_build_leaves_nothing(folder: Path) -> None:
    def fail():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cached("key", fail)
    assert cache_info() == []
    assert cached("key", lambda: {"a": np.ones(1)})["a"].tolist() == [1]


def test_an_unwritable_cache_is_no_obstacle(tmp_path: Path, monkeypatch, caplog) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("KUAISIM_CACHE", str(tmp_path / "file"))
    assert cached("key", lambda: {"a": np.ones(2)})["a"].tolist() == [1, 1]
    assert "without the cache" in caplog.text


def test_info_and_clear(folder: Path) -> None:
    assert cache_info() == []
    assert clear_cache() == 0
    cached("one", lambda: {"a": np.zeros(1000)})
    cached("two", lambda: {"a": np.zeros(10)})
    (folder / "downloads").mkdir()
    (folder / "downloads" / "KuaiRec.zip").write_bytes(b"kept")
    write_atomically(folder / "model.safetensors", b"x" * 300)
    (folder / "unpacked" / "archive").mkdir(parents=True)
    (folder / "unpacked" / "archive" / "big_matrix.csv").write_bytes(b"x" * 500)
    entries = cache_info()
    assert [entry.key for entry in entries] == ["model.safetensors", "one", "two"]
    assert entries[0].bytes == 300
    assert entries[1].bytes >= 8000 > entries[2].bytes >= 80
    assert clear_cache() == sum(entry.bytes for entry in entries) + 500
    assert not (folder / "unpacked").exists()
    assert cache_info() == []
    assert (folder / "downloads" / "KuaiRec.zip").read_bytes() == b"kept"


def test_a_scratch_folder_goes(folder: Path) -> None:
    with pytest.raises(RuntimeError), scratch_folder() as scratch:
        (scratch / "file").write_text("x")
        raise RuntimeError
    assert list(folder.iterdir()) == []


def test_a_digest_is_remembered_and_follows_the_content(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"one")
    first = file_digest(file)
    assert not list((folder / "digests").glob("*"))  # it has just changed: not yet remembered
    long_ago = time.time_ns() - 10**10
    os.utime(file, ns=(long_ago, long_ago))
    assert file_digest(file) == first
    (memo,) = (folder / "digests").glob("*.json")
    memo.write_text(memo.read_text().replace(first, "0" * 32))
    assert file_digest(file) == "0" * 32  # not read again
    memo.write_text("{")
    assert file_digest(file) == first
    file.write_bytes(b"two")  # same size, other time
    assert file_digest(file) != first


def test_the_cached_world_is_the_built_one(world) -> None:
    again = load_dataset("kuairec")
    assert again is not world
    assert again.fingerprint == world.fingerprint
    np.testing.assert_array_equal(again.truth.preference, world.truth.preference)
