"""Files and folders are written completely or not at all, by one process at a time."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import pytest

from kuaisim_gym.disk import (
    UNFINISHED,
    check_writable,
    claimed,
    disk_errors,
    new_file,
    new_folder,
    storage_error,
    sweep,
    write_atomically,
)
from kuaisim_gym.errors import BusyError, DiskSpaceError, StorageError


def fail(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def test_a_failed_write_leaves_the_old_file_alone(tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "file"
    write_atomically(path, b"old")
    with monkeypatch.context() as patched:
        patched.setattr("kuaisim_gym.disk.os.replace", fail)
        with pytest.raises(KeyboardInterrupt):
            write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
    write_atomically(path, b"new")
    assert path.read_bytes() == b"new"


def test_content_is_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch) -> None:
    events: list[str] = []
    synchronise, rename = os.fsync, os.rename

    def noted_fsync(descriptor: int) -> None:
        events.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name.split(".")[0])
        synchronise(descriptor)

    def noted_rename(*paths: object) -> None:
        events.append("renamed")
        rename(*paths)

    monkeypatch.setattr("kuaisim_gym.disk.os.fsync", noted_fsync)
    monkeypatch.setattr("kuaisim_gym.disk.os.rename", noted_rename)
    with new_folder(tmp_path / "made") as folder:
        (folder / "a").write_bytes(b"1")
        (folder / "b").mkdir()
        (folder / "b" / "c").write_bytes(b"2")
    assert sorted(events[:4]) == ["a", "b", "c", "made"]
    assert events[4:] == ["renamed", tmp_path.name]


def test_what_dead_writers_left_is_removed(tmp_path: Path) -> None:
    (tmp_path / f"file.1{UNFINISHED}").write_bytes(b"half")
    (tmp_path / f"file.2{UNFINISHED}").mkdir()
    (tmp_path / f"file.2{UNFINISHED}" / "half").write_bytes(b"")
    (tmp_path / "file.lock").touch()
    (tmp_path / f"file[.3{UNFINISHED}").write_bytes(b"of another file")
    write_atomically(tmp_path / "file", b"whole")
    assert {path.name for path in tmp_path.iterdir()} == {"file", f"file[.3{UNFINISHED}"}


def test_paths_that_begin_alike_are_others(tmp_path: Path) -> None:
    with new_file(tmp_path / "run.json") as temporary:
        temporary.write_bytes(b"half")
        with claimed(tmp_path / "run"):
            assert temporary.exists()
    assert (tmp_path / "run.json").read_bytes() == b"half"


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="there is no such place")
def test_places_that_take_no_files_are_not_waited_for() -> None:
    nowhere = claimed(Path("/proc/nothing"), wait=False)
    with pytest.raises(StorageError, match="nothing cannot be written"), nowhere:
        raise AssertionError("claimed")


def test_links_are_followed_and_devices_kept(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    link, file = tmp_path / "link", tmp_path / "elsewhere" / "file"
    link.symlink_to(file)
    for content in (b"1", b"2"):
        write_atomically(link, content)
        assert link.is_symlink() and file.read_bytes() == content
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(StorageError, match="pipe cannot be written .it is no regular file"):
            write_atomically(tmp_path / "pipe", b"1")
        assert (tmp_path / "pipe").is_fifo()
    for path in (Path(), tmp_path):
        with pytest.raises(StorageError, match="cannot be written"):
            write_atomically(path, b"1")


def test_folders_are_all_or_nothing(tmp_path: Path) -> None:
    path = tmp_path / "to" / "folder"
    with pytest.raises(ZeroDivisionError), new_folder(path) as folder:
        (folder / "a").write_bytes(b"1")
        raise ZeroDivisionError
    assert list(path.parent.iterdir()) == []
    with new_folder(path) as folder:
        (folder / "a").write_bytes(b"1")
    assert [child.name for child in path.iterdir()] == ["a"]
    with pytest.raises(StorageError, match="folder cannot be written"), new_folder(path):
        pass
    assert [child.name for child in path.parent.iterdir()] == ["folder"]


def test_one_writer_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "file"
    busy = pytest.raises(BusyError, match="Another process is making .*file")
    with claimed(path), busy, claimed(path, wait=False):
        pass
    assert list(tmp_path.iterdir()) == []

    order: list[str] = []
    with claimed(path):
        second = threading.Thread(target=lambda: (write_atomically(path, b"2"), order.append("2")))
        second.start()
        second.join(0.1)
        order.append("1")
    second.join()
    assert order == ["1", "2"]
    assert list(tmp_path.iterdir()) == [path]


def test_a_lock_that_somebody_waited_for_still_excludes(tmp_path: Path) -> None:
    path = tmp_path / "file"
    entered = threading.Event()
    done = threading.Event()

    def wait() -> None:
        with claimed(path):
            entered.set()
            done.wait()

    with claimed(path):
        waiting = threading.Thread(target=wait)
        waiting.start()
        waiting.join(0.1)
    assert entered.wait(5)
    with pytest.raises(BusyError), claimed(path, wait=False):
        pass
    done.set()
    waiting.join()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_full_disks(tmp_path: Path, monkeypatch, number: int) -> None:
    def full(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(DiskSpaceError, match=r"file of about 1\.5 kB .* are free\. Free the disk"):
        write_atomically(tmp_path / "file", b"x" * 1500)
    assert list(tmp_path.iterdir()) == []


def test_a_library_that_does_not_say_so_is_not_asked(tmp_path: Path, monkeypatch) -> None:
    error = RuntimeError("could not write")
    assert type(storage_error(tmp_path, error)) is StorageError
    words = os.strerror(errno.ENOSPC)
    told = storage_error(tmp_path, RuntimeError(f'{{"exception": "{words}", "errno": "28"}}'))
    assert type(told) is DiskSpaceError and f"cannot be written ({words}); " in str(told)
    monkeypatch.setattr("kuaisim_gym.disk.free_space", lambda _: 10_000)
    assert type(storage_error(tmp_path, error)) is DiskSpaceError
    assert type(storage_error(tmp_path, error, 9_000)) is StorageError


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError, match="File exists.*Choose another place"):
        write_atomically(tmp_path / "file" / "inside", b"")
    with pytest.raises(StorageError, match="Is a directory"), new_file(tmp_path / "a") as file:
        (tmp_path / "a").mkdir()
        file.write_bytes(b"")
    with pytest.raises(DiskSpaceError, match="as it was"), disk_errors(tmp_path):
        raise DiskSpaceError("as it was")


def test_folders_can_be_written_elsewhere(tmp_path: Path) -> None:
    path, aside = tmp_path / "under" / "made", tmp_path / ".hidden"
    with new_folder(path, aside=aside) as folder:
        assert folder.name.startswith(".hidden.") and folder.parent == tmp_path
        assert not path.parent.exists()
        path.parent.mkdir()
        (folder / "a").write_bytes(b"1")
    assert [child.name for child in path.iterdir()] == ["a"]
    assert sorted(child.name for child in tmp_path.iterdir()) == ["under"]


def test_what_dead_writers_left_under_other_names_is_swept(tmp_path: Path) -> None:
    for name in ("work-dead", "other-dead"):
        (tmp_path / f"{name}.lock").touch()
        (tmp_path / f"{name}.1{UNFINISHED}").mkdir()
    with new_folder(tmp_path / "work-alive") as alive:
        sweep(tmp_path, "work-")
        names = {path.name for path in tmp_path.iterdir()}
        dead = {"other-dead.lock", f"other-dead.1{UNFINISHED}"}
        assert names == dead | {alive.name, "work-alive.lock"}


def test_places_are_checked_before_the_work(tmp_path: Path, monkeypatch) -> None:
    check_writable(tmp_path)
    check_writable(tmp_path / "to" / "make" / "file")
    check_writable(Path("file"))
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError, match="inside/it cannot be written .Not a directory"):
        check_writable(tmp_path / "file" / "inside" / "it")
    asked: list[object] = []
    with monkeypatch.context() as patched:
        patched.setattr("os.access", lambda path, mode: asked.append(path))
        with pytest.raises(StorageError, match="it cannot be written .Permission denied"):
            check_writable(tmp_path / "folder" / "it")
    assert asked == [tmp_path]
    monkeypatch.setattr("kuaisim_gym.disk.free_space", lambda _: 3000)
    with pytest.raises(
        DiskSpaceError, match=r"it cannot be written \(No space.*; 3\.0 kB are free"
    ):
        check_writable(tmp_path / "it")
