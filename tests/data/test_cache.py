from __future__ import annotations

import errno
import hashlib
import multiprocessing
import os
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock

from kuaisim_gym.data import load_dataset
from kuaisim_gym.data.cache import (
    cache_info,
    cached,
    checksum,
    clear_cache,
    file_digest,
    kept,
    scratch_folder,
    sealed,
    unsealed,
)
from kuaisim_gym.data.tables import allocate
from kuaisim_gym.disk import UNFINISHED, new_folder
from kuaisim_gym.errors import CheckpointError, DiskSpaceError, StorageError
from tests.attack.entries import attempt, damages, same

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
    import kuaisim_gym.disk as disk

    def hang(*_: object) -> None:
        started.write_text("half of the files are written")
        time.sleep(60)

    disk.os.rename = hang  # type: ignore[assignment]
    cached("key", lambda: {"a": np.zeros(10), "b": np.zeros(10)})


def test_who_waits_for_a_killed_writer_builds_once(folder: Path, tmp_path: Path) -> None:
    started = tmp_path / "started"
    writer = SPAWN.Process(target=_build_and_hang, args=(started,))
    writer.start()
    while not started.exists():
        time.sleep(0.02)
    calls = []

    def build():
        calls.append(1)
        return {"a": np.ones(3)}

    with ThreadPoolExecutor(2) as waiting:
        found = [waiting.submit(cached, "key", build) for _ in range(2)]
        assert not calls
        assert list(folder.glob("key.arrays.*.part"))  # what it leaves behind
        os.kill(writer.pid, signal.SIGKILL)
        writer.join()
        assert [one.result()["a"].tolist() for one in found] == [[1, 1, 1]] * 2
    assert len(calls) == 1
    assert [path.name for path in folder.iterdir()] == ["key.arrays"]


def test_clearing_removes_what_a_killed_writer_left_and_not_what_another_builds(
    folder: Path,
) -> None:
    for name in ("old.arrays", "new.arrays"):
        (folder / f"{name}.0123.part").mkdir(parents=True)
        (folder / f"{name}.0123.part" / "a.npy").write_bytes(b"x" * 100)
        (folder / f"{name}.lock").touch()
    with FileLock(folder / "new.arrays.lock"), ThreadPoolExecutor(1) as other:
        assert other.submit(clear_cache).result() == 100
    assert sorted(path.name for path in folder.glob("*.part")) == ["new.arrays.0123.part"]


def stored() -> dict[str, np.ndarray]:
    """Arrays of every form."""
    return cached(
        "key",
        lambda: {
            "flags": np.arange(7, dtype=np.uint8),
            "table": np.arange(12, dtype=np.int32).reshape(3, 4),
            "numbers": np.linspace(0, 1, 6_000),  # longer than a row of the checksum
            "mean": np.asarray(0.25),
            "none": np.zeros((0, 2), np.float32),
            "ids": np.array(["a", "item", "ünï"]),
        },
    )


def test_every_damage_to_every_file_of_an_entry_is_mended(folder: Path, monkeypatch) -> None:
    monkeypatch.setattr("kuaisim_gym.disk.flush", lambda *_, **__: None)  # no power is cut here
    rng = np.random.default_rng(1)
    stored()
    tries = damages(folder / "key.arrays")
    assert len(tries) == 6 * 12 + 9
    stories = [attempt(stored, file, damage, rng) for file, damage in tries]
    assert not list(filter(None, stories))


def test_an_entry_that_is_a_dead_link_is_built_once(folder: Path) -> None:
    folder.mkdir()
    (folder / "key.arrays").symlink_to(folder / "nowhere")
    for _ in range(2):
        assert cached("key", lambda: {"a": np.ones(2)})["a"].tolist() == [1, 1]
        assert (folder / "key.arrays" / "a.npy").is_file()


def test_an_entry_without_a_manifest_is_built_again(folder: Path, caplog) -> None:
    (folder / "key.arrays").mkdir(parents=True)
    np.save(folder / "key.arrays" / "a.npy", np.zeros(3))
    assert cached("key", lambda: {"a": np.ones(3)})["a"].tolist() == [1, 1, 1]
    assert len(caplog.messages) == 1
    assert "Rebuilding" in caplog.text


def test_who_has_an_entry_mapped_keeps_it_when_it_is_built_again(folder: Path) -> None:
    before = stored()
    (folder / "key.arrays" / "flags.npy").unlink()
    after = stored()
    assert same(before, after)
    assert not np.shares_memory(before["numbers"], after["numbers"])


def test_a_damaged_entry_in_a_folder_that_cannot_be_written_is_done_without(
    folder: Path, monkeypatch, caplog
) -> None:
    wanted = stored()
    (folder / "key.arrays" / "flags.npy").unlink()

    @contextmanager
    def refuse(path: Path, **_: object) -> Iterator[None]:
        raise StorageError(f"{path} cannot be written.")
        yield

    monkeypatch.setattr("kuaisim_gym.data.cache.claimed", refuse)
    assert same(wanted, stored())
    assert same(wanted, stored())
    assert sum("without the cache" in message for message in caplog.messages) == 1


@pytest.mark.parametrize("kind", ["flipped", "empty", "missing", "of another version"])
def test_files_of_other_formats_prove_themselves(folder: Path, caplog, kind: str) -> None:
    def read(folder: Path, _: object) -> str:
        if (folder / "model").read_text() == "old":
            raise CheckpointError("This is an old one.")
        return (folder / "model").read_text()

    def load(content: str = "model") -> str:
        def write(built: str, folder: Path) -> None:
            (folder / "model").write_text(built)

        return kept("key", lambda: content, write, read)

    assert load("old") == "old"  # as built: what cannot be read is not kept
    assert load() == load() == "model"
    file = folder / "key.arrays" / "model"
    if kind == "missing":
        file.unlink()
    else:
        file.write_text({"flipped": "modem", "empty": "", "of another version": "old"}[kind])
    caplog.clear()
    assert load() == load() == "model"
    assert len(caplog.messages) == 1


def test_the_checksum_is_the_one_that_its_docstring_says() -> None:
    rng = np.random.default_rng(3)
    content = rng.integers(0, 256, 2 * 32_768 + 5, dtype=np.uint8)
    words = np.frombuffer(content[:65_536].tobytes(), "<u8").reshape(2, 4_096).tolist()
    noise = hashlib.shake_256(b"weights").digest(32_768)
    weights = [int.from_bytes(noise[i : i + 8], "little") | 1 for i in range(0, 32_768, 8)]
    digest = hashlib.sha256(content[65_536:].tobytes() + b"65541")
    for row in words:
        total = sum((word ^ word >> 29) * weight for word, weight in zip(row, weights, strict=True))
        digest.update((total % 2**64).to_bytes(8, "little"))
    assert checksum(content) == digest.hexdigest()[:32]


@pytest.mark.parametrize(
    "change",
    [
        lambda x: x[40_000:40_002].__imul__(-1),  # pairs of highest bits, which sums would forget
        lambda x: x[20_000:24_096].fill(0),
        lambda x: x.__setitem__(slice(0, 2), x[[1, 0]]),
        lambda x: x.__setitem__(slice(0, 8_192), np.roll(x[:8_192], 4_096)),  # rows in other places
    ],
)
@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.int32])
@pytest.mark.parametrize("kind", ["ones", "ascending"])
def test_the_checksum_notices(change, dtype, kind: str) -> None:
    values = np.ones(50_000, dtype) if kind == "ones" else np.arange(1, 50_001).astype(dtype)
    changed = values.copy()
    change(changed)
    is_other = not np.array_equal(values, changed)
    assert (checksum(values.view(np.uint8)) != checksum(changed.view(np.uint8))) == is_other


def test_a_longer_file_of_zeros_is_another_one() -> None:
    assert checksum(np.zeros(32_768, np.uint8)) != checksum(np.zeros(65_536, np.uint8))
    assert checksum(np.zeros(3, np.uint8)) != checksum(np.zeros(4, np.uint8))


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


@pytest.fixture
def short_files() -> Callable[[int], AbstractContextManager[None]]:
    """Blocks in which disks refuse files of more than some bytes."""
    pytest.importorskip("resource")  # Windows has none
    from tests.attack.forks import files_of_at_most

    return files_of_at_most


def test_a_full_disk_is_no_obstacle_to_who_builds(folder: Path, short_files, caplog) -> None:
    for name in ("one", "two"):
        with short_files(10_000):
            built = cached(name, lambda: {"a": np.ones(9), "b": np.ones(10_000)})
        assert built["b"].sum() == 10_000
    (warning,) = caplog.messages
    assert "without the cache" in warning
    assert os.strerror(errno.EFBIG) in warning
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("size", [1_000, 13_000])  # of the database; of a column
def test_a_full_disk_is_told_when_files_are_read(folder, tmp_path, short_files, size: int) -> None:
    rows = "".join(f"{user},{item},0.5\n" for user in range(60) for item in range(60))
    for table in ("big_matrix", "small_matrix"):
        (tmp_path / f"{table}.csv").write_text(f"user_id,video_id,watch_ratio\n{rows}")
    with short_files(size), pytest.raises(DiskSpaceError, match="KUAISIM_CACHE"):
        load_dataset("kuairec", tmp_path)
    assert [path.name for path in folder.glob("[!d]*")] == []


def test_a_large_array_needs_room(tmp_path: Path, short_files) -> None:
    with short_files(1 << 20), pytest.raises(DiskSpaceError, match=r"of about 24.0 MB"):
        allocate(tmp_path / "a.npy", (3_000_000,), np.float64, np.nan)


def test_scratch_goes_where_there_is_room(folder: Path, tmp_path, monkeypatch) -> None:
    def free(path: Path) -> int:
        return 10 if folder in (path, *path.parents) else 20

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr("kuaisim_gym.data.cache.free_space", free)
    with scratch_folder() as scratch:
        assert scratch.parent == tmp_path
    assert not folder.exists()


def test_info_and_clear(folder: Path) -> None:
    assert cache_info() == []
    assert clear_cache() == 0
    cached("one", lambda: {"a": np.zeros(1000)})
    cached("two", lambda: {"a": np.zeros(10)})
    (folder / "downloads").mkdir()
    (folder / "downloads" / "KuaiRec.zip").write_bytes(b"kept")
    (folder / "unpacked" / "archive").mkdir(parents=True)
    (folder / "unpacked" / "archive" / "big_matrix.csv").write_bytes(b"x" * 500)
    entries = cache_info()
    assert [entry.key for entry in entries] == ["one", "two"]
    assert entries[0].bytes >= 8000 > entries[1].bytes >= 80
    assert clear_cache() == sum(entry.bytes for entry in entries) + 500
    assert not (folder / "unpacked").exists()
    assert cache_info() == []
    assert (folder / "downloads" / "KuaiRec.zip").read_bytes() == b"kept"


def test_clearing_leaves_archives_to_who_unpacks_them(folder: Path) -> None:
    unpacked = folder / "unpacked"
    with new_folder(unpacked / "busy") as busy:
        (busy / "a.csv").write_bytes(b"half")
        for name in ("done", f"busy2.1{UNFINISHED}"):  # the latter of a killed process
            (unpacked / name).mkdir()
            (unpacked / name / "b.csv").write_bytes(b"x" * 500)
        (unpacked / "done.json").write_bytes(b"x" * 50)
        assert clear_cache() == 1050
        (busy / "c.csv").write_bytes(b"more")
    assert {path.name for path in unpacked.iterdir()} == {"busy"}
    assert {path.name for path in (unpacked / "busy").iterdir()} == {"a.csv", "c.csv"}


@pytest.mark.skipif(not hasattr(os, "seteuid"), reason="permissions are of another kind")
@pytest.mark.parametrize("closed", ["home", "home/cache"])
def test_a_home_that_may_not_be_searched_is_no_obstacle(tmp_path, monkeypatch, closed: str) -> None:
    (tmp_path / "home" / "cache").mkdir(parents=True)
    monkeypatch.setenv("KUAISIM_CACHE", str(tmp_path / "home" / "cache"))
    (tmp_path / closed).chmod(0)
    user = os.geteuid()
    if user == 0:  # who may search everything
        os.seteuid(65534)
    try:
        assert cached("key", lambda: {"a": np.ones(2)})["a"].tolist() == [1, 1]
        with scratch_folder() as scratch:
            assert tmp_path not in scratch.parents
        with pytest.raises(StorageError, match="cache cannot be written .Permission denied"):
            clear_cache()
    finally:
        os.seteuid(user)
        (tmp_path / closed).chmod(0o700)


def test_scratch_folders_of_killed_processes_go_with_the_next(folder: Path) -> None:
    folder.mkdir()
    (folder / "scratch-dead.lock").touch()
    (folder / "scratch-dead.7.part").mkdir()
    with scratch_folder() as first, scratch_folder() as second:
        found = {path.name for path in folder.glob("scratch-*.part")}
        assert found == {first.name, second.name}
    assert list(folder.glob("scratch-*")) == []


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
    remembered = memo.read_bytes()
    memo.write_bytes(sealed(unsealed(remembered) | {"digest": "0" * 32}))
    assert file_digest(file) == "0" * 32  # not read again
    for damaged in (b"{", b"", remembered.replace(first.encode(), b"0" * 32)):
        memo.write_bytes(damaged)
        assert file_digest(file) == first
    file.write_bytes(b"two")  # same size, other time
    assert file_digest(file) != first


def test_the_cached_world_is_the_built_one(world) -> None:
    again = load_dataset("kuairec")
    assert again is not world
    assert again.fingerprint == world.fingerprint
    np.testing.assert_array_equal(again.truth.preference, world.truth.preference)
