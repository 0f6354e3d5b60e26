from __future__ import annotations

import gzip
import os
import tarfile
import tracemalloc
import zipfile
from pathlib import Path

import pytest

from kuaisim_gym.data import files as module
from kuaisim_gym.data.archive import extract
from kuaisim_gym.data.files import Layout, find_files
from kuaisim_gym.data.tables import Column, open_tables, read_header
from kuaisim_gym.errors import DataFormatError, DatasetNotFoundError, KuaiSimError

PURE = Layout("Pure", ("log_pure", "random_pure"), ("users_pure",))
LARGE = Layout("27K", ("log_27k", "random_27k"), (), {"log_27k": 2})


def touch(folder: Path, *names: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_text(f"a\n{len(name)}\n")
    return folder


@pytest.mark.parametrize("inner", ["", "data", "Thing 2.0/data", "a/b/c"])
def test_the_folder_or_one_above_it(tmp_path: Path, inner: str) -> None:
    touch(tmp_path / inner, "log_pure.csv", "random_pure.csv", "other.csv", "users_pure.txt")
    found = find_files(str(tmp_path), [PURE, LARGE])
    assert found.layout is PURE
    assert found.folder == tmp_path / inner
    assert set(found.tables) == {"log_pure", "random_pure"}
    assert found.tables["log_pure"] == (tmp_path / inner / "log_pure.csv",)


def test_parts_come_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    parts = [f"log_27k_part{number}.csv" for number in (10, 9, 8, 7, 6, 5, 4, 3, 2, 1)]
    touch(tmp_path, "random_27k.csv", *parts)
    found = find_files(tmp_path, [PURE, LARGE])
    assert [file.name for file in found.tables["log_27k"]] == parts[::-1]


@pytest.mark.parametrize(
    ("names", "missing"),
    [
        (["log_27k_part1.csv", "log_27k_part3.csv"], "log_27k_part2.csv"),
        (["log_27k_part2.csv"], "log_27k_part1.csv"),
        (["log_27k_part1.csv"], "log_27k_part2.csv"),
        (["users.csv"], "log_27k.csv"),
    ],
)
def test_missing_parts_are_named(tmp_path: Path, names: list[str], missing: str) -> None:
    touch(tmp_path, "random_27k.csv", *names)
    with pytest.raises(DatasetNotFoundError, match=f"{missing} is missing"):
        find_files(tmp_path, [PURE, LARGE])


def test_ambiguity_is_an_error_that_names_both(tmp_path: Path) -> None:
    names = ("log_pure.csv", "random_pure.csv")
    touch(tmp_path / "one", *names)
    touch(tmp_path / "two", *names)
    with pytest.raises(DataFormatError, match="Pure in .*one; Pure in .*two"):
        find_files(tmp_path, [PURE, LARGE])
    assert find_files(tmp_path / "two", [PURE]).folder == tmp_path / "two"
    touch(tmp_path / "two", "log_27k.csv", "random_27k.csv")
    with pytest.raises(DataFormatError, match="Pure in .*two; 27K in .*two"):
        find_files(tmp_path / "two", [PURE, LARGE])
    touch(tmp_path / "one", "log_pure_part1.csv")
    with pytest.raises(DataFormatError, match="both whole and in parts"):
        find_files(tmp_path / "one", [PURE])


def test_the_folder_that_is_given_goes_before_those_in_it(tmp_path: Path) -> None:
    names = ("log_pure.csv", "random_pure.csv")
    touch(touch(tmp_path, *names) / "old", *names)
    assert find_files(tmp_path, [PURE]).folder == tmp_path


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(DatasetNotFoundError, match="nowhere is not there"):
        find_files(tmp_path / "nowhere", [PURE])
    with pytest.raises(DatasetNotFoundError, match="for the files of Pure .log_pure, random_pure"):
        find_files(tmp_path, [PURE])
    file = touch(tmp_path, "x.csv") / "x.csv"
    with pytest.raises(DatasetNotFoundError, match="is a file of another kind"):
        find_files(file, [PURE])


def test_the_digest_follows_contents_and_names(tmp_path: Path) -> None:
    first = touch(tmp_path / "a", "log_pure.csv", "random_pure.csv")
    second = touch(tmp_path / "b", "log_pure.csv", "random_pure.csv")
    digest = find_files(first, [PURE]).digest
    assert find_files(second, [PURE]).digest == digest
    (second / "log_pure.csv").write_text("a\n9\n")
    assert find_files(second, [PURE]).digest != digest


@pytest.mark.parametrize("ending", [".zip", ".tar.gz"])
def test_an_archive_is_unpacked_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
    monkeypatch.setenv("KUAISIM_CACHE", str(tmp_path / "cache"))
    names = ("log_pure.csv", "random_pure.csv", "big_and_unwanted.csv")
    data = touch(tmp_path / "Thing 2.0" / "data", *names)
    archive = tmp_path / f"Thing{ending}"
    if ending == ".zip":
        with zipfile.ZipFile(archive, "w") as content:
            for name in names:
                content.write(data / name, f"Thing 2.0/data/{name}")
    else:
        with tarfile.open(archive, "w:gz") as content:
            content.add(tmp_path / "Thing 2.0", "Thing 2.0")
    calls: list[Path] = []

    def counted(archive: Path, folder: Path, wanted) -> list[Path]:
        calls.append(archive)
        return extract(archive, folder, wanted)

    monkeypatch.setattr(module, "extract", counted)
    first, second = find_files(archive, [PURE]), find_files(archive, [PURE])
    assert calls == [archive]
    assert first == second
    assert first.folder.is_relative_to(tmp_path / "cache")
    assert [file.name for file in first.folder.iterdir()] != []
    assert not (first.folder / "big_and_unwanted.csv").exists()
    assert first.digest == find_files(data, [PURE]).digest


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "log_pure.csv").write_bytes(b"x"),
        lambda folder: (folder / "log_pure.csv").unlink(),
        lambda folder: (folder / "users_pure.csv").write_bytes(b"more"),
        lambda folder: folder.with_name(f"{folder.name}.json").unlink(),
        lambda folder: folder.with_name(f"{folder.name}.json").write_text("{}"),
        lambda folder: [file.unlink() for file in (*folder.iterdir(), folder) if file.is_file()],
    ],
)
def test_an_unpacked_folder_that_is_damaged_is_unpacked_again(
    tmp_path: Path, monkeypatch, caplog, damage
) -> None:
    monkeypatch.setenv("KUAISIM_CACHE", str(tmp_path / "cache"))
    archive = tmp_path / "thing.zip"
    with zipfile.ZipFile(archive, "w") as content:
        for name in ("log_pure.csv", "random_pure.csv"):
            content.writestr(name, f"of {name}")
    folder = find_files(archive, [PURE]).folder
    damage(folder)
    found = find_files(archive, [PURE])
    assert found.folder == folder
    assert {file.name: file.read_text() for file in folder.iterdir()} == {
        name: f"of {name}" for name in ("log_pure.csv", "random_pure.csv")
    }
    assert len(caplog.messages) == 1
    assert "again" in caplog.text


def test_a_damaged_archive_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUAISIM_CACHE", str(tmp_path / "cache"))
    archive = tmp_path / "x.zip"
    archive.write_bytes(b"no archive")
    for _ in range(2):
        with pytest.raises(KuaiSimError, match="x.zip"):
            find_files(archive, [PURE])
    assert not [one for one in (tmp_path / "cache" / "unpacked").iterdir() if one.is_dir()]


def test_a_cache_that_cannot_be_written_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("KUAISIM_CACHE", str(tmp_path / "file" / "cache"))
    archive = tmp_path / "x.zip"
    archive.write_bytes(b"PK")
    with pytest.raises(KuaiSimError, match="Unpack it by hand"):
        find_files(archive, [PURE])


def test_compressed_files_are_files_of_the_table(tmp_path: Path) -> None:
    touch(tmp_path, "log_pure.csv", "random_pure.csv.gz", "users_pure.csv.gz")
    found = find_files(tmp_path, [PURE])
    assert found.tables["users_pure"] == (tmp_path / "users_pure.csv.gz",)
    assert found.tables["random_pure"] == (tmp_path / "random_pure.csv.gz",)


def test_a_table_that_is_there_compressed_and_not_is_ambiguous(tmp_path: Path) -> None:
    touch(tmp_path, "log_pure.csv", "random_pure.csv", "users_pure.csv", "users_pure.csv.gz")
    with pytest.raises(DataFormatError, match=r"users_pure.csv and users_pure.csv.gz. Remove one"):
        find_files(tmp_path, [PURE])


def test_links_that_lead_back_are_not_further_datasets(tmp_path: Path) -> None:
    data = touch(tmp_path / "in", "log_pure.csv", "random_pure.csv")
    (tmp_path / "loop").symlink_to(tmp_path)
    (data / "self").symlink_to(data)
    (tmp_path / "again").symlink_to(data)
    (tmp_path / "one").symlink_to(tmp_path / "two")
    (tmp_path / "two").symlink_to(tmp_path / "one")
    found = find_files(tmp_path, [PURE])
    assert found.folder.resolve() == data
    assert find_files(tmp_path / "loop" / "loop" / "in", [PURE]).digest == found.digest
    with pytest.raises(DatasetNotFoundError, match="one is not there"):
        find_files(tmp_path / "one", [PURE])


@pytest.mark.parametrize("kind", ["a folder", "a dead link", "no regular file"])
@pytest.mark.parametrize("table", ["users_pure", "random_pure"])
def test_what_is_called_as_a_table_but_is_no_file(tmp_path: Path, kind: str, table: str) -> None:
    """Neither an optional table that is left out in silence nor a required one that is missing."""
    touch(tmp_path, "log_pure.csv", "random_pure.csv")
    file = tmp_path / f"{table}.csv"
    file.unlink(missing_ok=True)
    if kind == "a folder":
        file.mkdir()
    elif kind == "a dead link":
        file.symlink_to(tmp_path / "nowhere")
    else:
        os.mkfifo(file)
    with pytest.raises(DataFormatError, match=f"{table}.csv is {kind}; expected a file"):
        find_files(tmp_path, [PURE])


def test_other_tables_may_be_there_twice(tmp_path: Path) -> None:
    touch(tmp_path, "log_pure.csv", "random_pure.csv", "mine.csv", "mine.csv.gz")
    (tmp_path / "folder.csv").mkdir()
    assert set(find_files(tmp_path, [PURE]).tables) == {"log_pure", "random_pure"}


def test_a_pipe_is_no_archive(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "data.zip")
    with pytest.raises(DatasetNotFoundError, match="a file of another kind"):
        find_files(tmp_path / "data.zip", [PURE])


def deny(monkeypatch: pytest.MonkeyPatch, denied: Path, error: type[OSError], name: str) -> None:
    """Lets the system refuse a path, which it would not to its administrator."""
    real = getattr(Path, name)

    def refuse(self: Path, *args: object, **options: object) -> object:
        if self == denied:
            raise error(13, "Permission denied", str(self))
        return real(self, *args, **options)

    monkeypatch.setattr(Path, name, refuse)


def test_a_folder_that_cannot_be_read(tmp_path: Path, monkeypatch, caplog) -> None:
    data = touch(tmp_path / "data", "log_pure.csv", "random_pure.csv")
    touch(tmp_path / "lost+found")
    deny(monkeypatch, tmp_path / "lost+found", PermissionError, "iterdir")
    assert find_files(tmp_path, [PURE]).folder == data
    assert "lost+found is not looked into" in caplog.text
    with pytest.raises(KuaiSimError, match=r"cannot be read .*Permission denied"):
        find_files(tmp_path / "lost+found", [PURE])
    with pytest.raises(KuaiSimError, match=r"cannot be read .*name too long"):
        find_files(tmp_path / ("a" * 300), [PURE])


@pytest.mark.parametrize(
    ("error", "expected", "why"),
    [
        (PermissionError, KuaiSimError, "cannot be read"),
        (FileNotFoundError, DatasetNotFoundError, "was there and is gone"),
    ],
)
def test_a_file_that_cannot_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error, expected, why: str
) -> None:
    touch(tmp_path, "log_pure.csv", "random_pure.csv")
    found = find_files(tmp_path, [PURE])
    deny(monkeypatch, tmp_path / "log_pure.csv", error, "open")
    for read in (lambda: found.digest, lambda: read_header(tmp_path / "log_pure.csv")):
        with pytest.raises(expected, match=f"log_pure.csv {why}"):
            read()


def test_an_endless_line_does_not_fill_the_memory(tmp_path: Path) -> None:
    """Of a file of a few bytes that unpacks to many."""
    file = tmp_path / "log_pure.csv.gz"
    for start in (b"", b"a,b\n1,2\n"):
        file.write_bytes(gzip.compress(start + b"1" * 30_000_000, 1))
        tracemalloc.start()
        with (
            pytest.raises(DataFormatError, match=r"header cannot be read|line 3: .* a longer one"),
            open_tables() as tables,
        ):
            tables.read([file], [Column("a")])
        assert tracemalloc.get_traced_memory()[1] < 25_000_000
        tracemalloc.stop()


def test_lines_may_end_in_carriage_returns(tmp_path: Path) -> None:
    file = tmp_path / "log_pure.csv"
    file.write_bytes(b"a,b\r" + (b"1," + b"\xc3\xa9" * 999 + b"\r") * 1300)
    with open_tables() as tables:
        table = tables.read([file], [Column("a")])
        assert tables.count(f"FROM {table.sql}") == 1300
