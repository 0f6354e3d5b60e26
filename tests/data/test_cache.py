from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from kuaisim_gym.data import load_dataset
from kuaisim_gym.data.cache import cached, write_atomically


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KUAISIM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_builds_once_and_reads_back_the_same(folder: Path) -> None:
    calls = []

    def build():
        calls.append(1)
        return {"a": np.arange(6, dtype=np.int32).reshape(2, 3).T, "mean": np.asarray(0.25)}

    first, second = cached("key", build), cached("key", build)
    assert len(calls) == 1
    for name in first:
        np.testing.assert_array_equal(first[name], second[name])
        assert first[name].dtype == second[name].dtype
        assert first[name].shape == second[name].shape


def test_a_damaged_file_is_rebuilt(folder: Path, caplog) -> None:
    cached("key", lambda: {"a": np.ones(3)})
    (folder / "key.safetensors").write_bytes(b"torn")
    np.testing.assert_array_equal(cached("key", lambda: {"a": np.ones(3)})["a"], np.ones(3))
    assert "Rebuilding" in caplog.text
    np.testing.assert_array_equal(cached("key", lambda: {})["a"], np.ones(3))


def test_a_failed_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_atomically(path, b"old")

    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("kuaisim_gym.data.cache.os.replace", fail)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_an_unwritable_cache_is_no_obstacle(tmp_path: Path, monkeypatch, caplog) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("KUAISIM_CACHE", str(tmp_path / "file"))
    assert cached("key", lambda: {"a": np.ones(2)})["a"].tolist() == [1, 1]
    assert "without the cache" in caplog.text


def test_the_cached_world_is_the_built_one(world) -> None:
    again = load_dataset("kuairec")
    assert again is not world
    assert again.fingerprint == world.fingerprint
    np.testing.assert_array_equal(again.truth.expected, world.truth.expected)
