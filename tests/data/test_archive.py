from __future__ import annotations

import gzip
import io
import random
import shutil
import tarfile
import types
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from kuaisim_gym.data import archive as archives
from kuaisim_gym.data.archive import extract
from kuaisim_gym.disk import check_free_space, readable_size
from kuaisim_gym.errors import DataFormatError, DatasetNotFoundError, DiskSpaceError, KuaiSimError

FILES = {"KuaiRec/data/big_matrix.csv": b"a,b\n1,2\n" * 4000, "KuaiRec/README.md": b"", "x": b"x"}
ENDINGS = (".zip", ".tar", ".tar.gz", ".tgz")
Member = tuple[tarfile.TarInfo, bytes]


def member(name: str, content: bytes = b"bad", kind: bytes = tarfile.REGTYPE, **fields) -> Member:
    info = tarfile.TarInfo(name)
    info.type, info.size = kind, len(content) if kind == tarfile.REGTYPE else 0
    for field, value in fields.items():
        setattr(info, field, value)
    return info, content


def write_tar(path: Path, *members: Member) -> Path:
    """A tar of exactly these headers and contents, whatever they claim."""
    plain = b""
    for info, content in (member("good.csv", b"1,2\n"), *members):
        plain += info.tobuf(tarfile.GNU_FORMAT) + content + b"\0" * (-len(content) % 512)
    plain += b"\0" * 1024
    path.write_bytes(plain if path.suffix == ".tar" else gzip.compress(plain))
    return path


def write_zip(path: Path, *members: tuple[str | zipfile.ZipInfo, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("good.csv", b"1,2\n")
        for name, content in members:
            archive.writestr(name, content)
    return path


def write_good(path: Path) -> Path:
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.mkdir("KuaiRec")
            for name, content in FILES.items():
                archive.writestr(name, content)
        return path
    with tarfile.open(path, "w" if path.suffix == ".tar" else "w:gz") as archive:
        archive.addfile(member("./", kind=tarfile.DIRTYPE)[0])
        archive.addfile(member("KuaiRec", kind=tarfile.DIRTYPE)[0])
        for name, content in FILES.items():
            info, _ = member(f"./{name}", content)
            archive.addfile(info, io.BytesIO(content))
    return path


def damage(path: Path, change: Callable[[bytes], bytes]) -> Path:
    path.write_bytes(change(path.read_bytes()))
    return path


def limit_disk(monkeypatch: pytest.MonkeyPatch, free: int) -> None:
    usage = types.SimpleNamespace(total=10**12, used=10**12 - free, free=free)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)


def refused(archive: Path, kind: type[KuaiSimError] = DataFormatError, match: str = ".") -> None:
    """The archive is refused, and afterwards the folder holds what it held before."""
    inside = archive.parent / "to" / "here"
    inside.parent.mkdir()
    before = sorted(archive.parent.rglob("*"))
    with pytest.raises(kind, match=match) as caught:
        extract(archive, inside)
    assert str(archive) in str(caught.value)
    assert sorted(archive.parent.rglob("*")) == before
    inside.parent.rmdir()


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("exists", [False, True])
def test_unpacks_the_files(tmp_path: Path, ending: str, exists: bool) -> None:
    folder = tmp_path / "deep" / "folder"
    if exists:
        folder.mkdir(parents=True)
    files = extract(write_good(tmp_path / f"KuaiRec{ending}"), folder)
    assert files == [folder / name for name in FILES]
    assert {str(file.relative_to(folder)): file.read_bytes() for file in files} == FILES
    assert [one.name for one in folder.parent.iterdir()] == ["folder"]


@pytest.mark.parametrize("ending", ENDINGS)
def test_unpacks_what_is_wanted(tmp_path: Path, ending: str) -> None:
    asked = []

    def wanted(name: str) -> bool:
        asked.append(name)
        return name.endswith(".csv")

    files = extract(write_good(tmp_path / f"KuaiRec{ending}"), tmp_path / "to", wanted)
    assert asked == list(FILES)
    assert files == [tmp_path / "to" / "KuaiRec/data/big_matrix.csv"]
    assert [one for one in (tmp_path / "to").rglob("*") if one.is_file()] == files


BAD_NAMES = {
    "parent": ("../outside.csv", "'..'"),
    "hidden parent": ("data/../../outside.csv", "'..'"),
    "absolute": ("/tmp/kuaisim-outside.csv", "absolute"),
    "drive": ("C:outside.csv", "for Windows"),
    "inner drive": ("data/c:/outside.csv", "for Windows"),
    "question": ("a?b", "for Windows"),
    "star": ("data*/b", "for Windows"),
    "pipe": ("a|b", "for Windows"),
    "quote": ('a"b', "for Windows"),
    "less": ("a<b", "for Windows"),
    "stream": ("a.csv:b", "for Windows"),
    "final dot": ("data./b.csv", "dot or blank"),
    "final dots": ("...", "dot or blank"),
    "final blank": ("a ", "dot or blank"),
    "device": ("CON", "device"),
    "device with an ending": ("data/Nul.csv", "device"),
    "device before a blank": ("aux .csv/b", "device"),
    "device with a number": ("lpt\u00b9.tar.gz", "device"),
    "backslash": ("..\\outside.csv", "backslash"),
    "control": ("out\nside.csv", "control"),
    "long part": ("a" * 256, "at most 255"),
    "long name": ("/".join(["a" * 99] * 11), "at most 1024"),
    "deep": ("a/" * 40 + "b", "at most 32"),
    "double": ("good.csv", "two members"),
    "double by dot": ("./good.csv", "two members"),
    "double but for case": ("GOOD.csv", "two members"),
    "below a file": ("good.csv/inner.csv", "both a file and a folder"),
    "empty": (".", "file's name"),
}


@pytest.mark.parametrize("name", ["console.csv", "com.csv", "lpt10", "a.con", ".hidden", "a b"])
def test_names_that_only_look_like_devices_are_names(tmp_path: Path, name: str) -> None:
    files = extract(write_zip(tmp_path / "x.zip", (name, b"x")), tmp_path / "to")
    assert files[-1] == tmp_path / "to" / name


@pytest.mark.parametrize("ending", [".zip", ".tar.gz"])
@pytest.mark.parametrize("case", BAD_NAMES)
@pytest.mark.filterwarnings("ignore:Duplicate name:UserWarning")
def test_refuses_bad_names(tmp_path: Path, case: str, ending: str) -> None:
    name, why = BAD_NAMES[case]
    path = tmp_path / f"bad{ending}"
    if ending == ".zip":
        write_zip(path, (zipfile.ZipInfo(name), b"bad"))
    else:
        with tarfile.open(path, "w:gz") as archive:
            for info, content in (member("good.csv"), member(name)):
                archive.addfile(info, io.BytesIO(content))
    refused(path, match=why)
    assert not Path("/tmp/kuaisim-outside.csv").exists()


def test_refuses_a_name_with_a_zero_byte(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "bad.zip", ("data#.csv", b"bad"))
    refused(damage(path, lambda content: content.replace(b"data#", b"data\0")), match="control")


def test_composed_and_decomposed_accents_are_one_name(tmp_path: Path) -> None:
    refused(write_zip(tmp_path / "bad.zip", ("e\u0301", b""), ("\u00e9", b"")), match="two members")


@pytest.mark.parametrize(
    "kind",
    [
        tarfile.SYMTYPE,
        tarfile.LNKTYPE,
        tarfile.FIFOTYPE,
        tarfile.CHRTYPE,
        tarfile.BLKTYPE,
        tarfile.GNUTYPE_SPARSE,
    ],
)
@pytest.mark.parametrize("ending", [".tar", ".tgz"])
def test_refuses_what_is_no_regular_file(tmp_path: Path, kind: bytes, ending: str) -> None:
    bad = member("bad", b"", kind, linkname="../outside")
    refused(write_tar(tmp_path / f"bad{ending}", bad), match="link or a device")


@pytest.mark.parametrize("mode", [0o120777, 0o010644, 0o020644, 0o060644])
def test_refuses_links_and_devices_in_a_zip(tmp_path: Path, mode: int) -> None:
    info = zipfile.ZipInfo("bad")
    info.external_attr = mode << 16
    refused(write_zip(tmp_path / "bad.zip", (info, b"../outside")), match="link or a device")


def test_refuses_encrypted_members(tmp_path: Path) -> None:
    def encrypt(content: bytes) -> bytes:
        local, central = content.rindex(b"PK\3\4"), content.rindex(b"PK\1\2")
        changed = bytearray(content)
        changed[local + 6] |= 1
        changed[central + 8] |= 1
        return bytes(changed)

    refused(damage(write_zip(tmp_path / "bad.zip", ("bad", b"x")), encrypt), match="encrypted")


def test_refuses_other_compressions(tmp_path: Path) -> None:
    path = tmp_path / "bad.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_BZIP2) as archive:
        archive.writestr("bad", b"x")
    refused(path, match="stored or deflated")


@pytest.mark.parametrize("ending", [".zip", ".tgz"])
def test_refuses_more_members_than_any_dataset_has(tmp_path, monkeypatch, ending: str) -> None:
    monkeypatch.setattr(archives, "_MAX_MEMBERS", 2)
    assert len(FILES) > 2
    refused(write_good(tmp_path / f"bad{ending}"), match="at most 2 members")


@pytest.mark.parametrize("ending", [".zip", ".tar.gz"])
def test_refuses_a_bomb_by_its_declared_size(tmp_path: Path, monkeypatch, ending: str) -> None:
    path = tmp_path / f"bomb{ending}"
    limit_disk(monkeypatch, 1_000_000)
    monkeypatch.setattr(archives._Unpacking, "write", lambda *_: pytest.fail("wrote something"))
    zeros = bytes(600_000)
    if ending == ".zip":  # each would fit alone
        write_zip(path, ("a", zeros), ("b", zeros))
    else:
        info, content = member("good.csv", b"bad", size=10**15)
        path.write_bytes(gzip.compress(info.tobuf(tarfile.GNU_FORMAT) + content))
    refused(path, DiskSpaceError, "free")


def test_refuses_a_bomb_by_what_it_holds(tmp_path: Path, monkeypatch) -> None:
    """Files that fit one by one, but not together."""
    limit_disk(monkeypatch, 1_000_000)
    zeros = bytes(600_000)
    refused(
        write_tar(tmp_path / "bomb.tgz", member("a", zeros), member("b", zeros)), DiskSpaceError
    )


def test_bytes_are_counted_where_the_header_lies(tmp_path: Path, monkeypatch) -> None:
    path = write_zip(tmp_path / "bomb.zip")
    limit_disk(monkeypatch, 1_000_000)
    monkeypatch.setattr(archives.zipfile.ZipFile, "open", lambda *_: io.BytesIO(bytes(3_000_000)))
    refused(path, DiskSpaceError)


def test_refuses_a_zip_whose_header_lies(tmp_path: Path) -> None:
    def shrink(content: bytes) -> bytes:
        sizes = (100_000).to_bytes(4, "little")
        assert content.count(sizes) == 2
        return content.replace(sizes, (10).to_bytes(4, "little"))

    path = write_zip(tmp_path / "bomb.zip", ("bad", bytes(100_000)))
    refused(damage(path, shrink), match="damaged")


def test_refuses_a_header_that_fills_the_memory(tmp_path: Path) -> None:
    """A long name of a terabyte, of which the archive holds a little."""
    for kind in (tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE, tarfile.XGLTYPE):
        info = tarfile.TarInfo("long")
        info.type, info.size = kind, 1 << 40
        refused(write_tar(tmp_path / "bad.tgz", (info, b"a" * 4096)), match="header is longer")


def test_refuses_sizes_below_nothing(tmp_path: Path) -> None:
    for kind in (tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.XHDTYPE):
        info = tarfile.TarInfo("bad")
        info.type, info.size = kind, -1024
        refused(write_tar(tmp_path / "bad.tar", (info, b"")))


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.95])
def test_refuses_what_is_cut_short(tmp_path: Path, ending: str, share: float) -> None:
    path = tmp_path / f"short{ending}"
    noise = random.Random(1).randbytes(30_000)
    if ending == ".zip":
        write_zip(path, ("noise", noise))
    else:
        write_tar(path, member("noise", noise))
    refused(damage(path, lambda content: content[: int(len(content) * share)]))


def test_refuses_a_tar_cut_between_members(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "short.tar", member("next.csv"))
    for blocks in (2, 3):  # with the first member whole, and in the next one's header
        cut = tmp_path / "cut.tar"
        cut.write_bytes(path.read_bytes()[: blocks * 512 + (blocks == 3) * -100])
        refused(cut, match="damaged")


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("content", [b"garbage" * 300, b"<html>try later</html>", b""])
def test_refuses_garbage(tmp_path: Path, ending: str, content: bytes) -> None:
    path = tmp_path / f"garbage{ending}"
    path.write_bytes(content)
    refused(path)


@pytest.mark.parametrize("ending", [".zip", ".tgz"])
def test_changed_bytes_give_an_error_or_change_nothing(tmp_path: Path, ending: str) -> None:
    path = write_good(tmp_path / f"KuaiRec{ending}")
    content = path.read_bytes()
    rng = random.Random(2)
    for _ in range(150):
        changed = bytearray(content)
        changed[rng.randrange(len(changed))] = rng.randrange(256)
        path.write_bytes(changed)
        try:
            files = extract(path, tmp_path / "to")
        except KuaiSimError:
            assert list(tmp_path.iterdir()) == [path]
        else:
            assert {file.read_bytes() for file in files} <= set(FILES.values())
            shutil.rmtree(tmp_path / "to")


def test_a_wrong_checksum_at_the_end_is_noticed(tmp_path: Path) -> None:
    path = write_good(tmp_path / "KuaiRec.tar.gz")
    refused(damage(path, lambda content: content[:-8] + bytes(4) + content[-4:]), match="CRC")


def test_refuses_a_long_tail(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "tail.tgz")
    refused(
        damage(path, lambda content: content + gzip.compress(bytes(3_000_000))), match="the end"
    )


@pytest.mark.parametrize("ending", ENDINGS)
def test_refuses_two_archives_in_one_file(tmp_path: Path, ending: str) -> None:
    """Readers of zips take the last one and readers of tars the first, without a word."""
    path, second = write_good(tmp_path / f"two{ending}"), tmp_path / f"second{ending}"
    write_zip(second) if ending == ".zip" else write_tar(second)
    more = second.read_bytes()
    second.unlink()
    refused(damage(path, lambda content: content + more), match="two archives in one file")


def test_refuses_two_tars_in_one_stream(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "two.tgz")
    plain = gzip.decompress(path.read_bytes())
    refused(damage(path, lambda _: gzip.compress(plain * 2)), match="two archives in one file")


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("junk", [b"junk", b"\0" * 30 + b"x", b"PK\5\6"])
def test_refuses_bytes_after_the_end(tmp_path: Path, ending: str, junk: bytes) -> None:
    refused(damage(write_good(tmp_path / f"junk{ending}"), lambda content: content + junk))


def test_refuses_bytes_before_a_zip(tmp_path: Path) -> None:
    path = write_good(tmp_path / "junk.zip")
    refused(damage(path, lambda content: b"#!" + content), match="before the first one")


def test_a_zip_may_have_a_comment_or_no_files(tmp_path: Path) -> None:
    path = write_good(tmp_path / "comment.zip")
    with zipfile.ZipFile(path, "a") as archive:
        archive.comment = b"as published"
    assert len(extract(path, tmp_path / "to")) == len(FILES)
    zipfile.ZipFile(tmp_path / "empty.zip", "w").close()
    assert extract(tmp_path / "empty.zip", tmp_path / "empty") == []


def test_refuses_a_comment_that_is_an_empty_archive(tmp_path: Path) -> None:
    path = write_good(tmp_path / "comment.zip")
    with zipfile.ZipFile(path, "a") as archive:
        archive.comment = b"PK\5\6" + bytes(18)
    refused(path, match="two archives in one file")


def test_one_tar_may_come_in_several_gzip_members(tmp_path: Path) -> None:
    """As parallel compressors write it, and with the padding of a tape."""
    path = write_good(tmp_path / "KuaiRec.tar.gz")
    plain = gzip.decompress(path.read_bytes())
    parts = [plain[start : start + 1000] for start in range(0, len(plain), 1000)]
    path.write_bytes(b"".join(map(gzip.compress, parts)) + bytes(512))
    files = extract(path, tmp_path / "to")
    assert {str(file.relative_to(tmp_path / "to")): file.read_bytes() for file in files} == FILES


def test_refuses_a_full_folder_and_leaves_it(tmp_path: Path) -> None:
    (tmp_path / "to").mkdir()
    (tmp_path / "to" / "mine").write_text("mine")
    with pytest.raises(KuaiSimError, match="absent or empty"):
        extract(write_good(tmp_path / "KuaiRec.zip"), tmp_path / "to")
    assert (tmp_path / "to" / "mine").read_text() == "mine"
    assert len(list(tmp_path.iterdir())) == 2


def test_a_disk_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "to").write_text("a file in the way")
    with pytest.raises(KuaiSimError, match="cannot be written"):
        extract(write_good(tmp_path / "KuaiRec.zip"), tmp_path / "to" / "here")


def test_a_failure_on_the_way_leaves_nothing(tmp_path: Path, monkeypatch) -> None:
    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(archives.os, "rename", fail)
    path = write_good(tmp_path / "KuaiRec.zip")
    with pytest.raises(KeyboardInterrupt):
        extract(path, tmp_path / "to")
    assert list(tmp_path.iterdir()) == [path]


def test_what_is_no_archive(tmp_path: Path) -> None:
    with pytest.raises(DatasetNotFoundError, match="no such file"):
        extract(tmp_path / "absent.zip", tmp_path / "to")
    (tmp_path / "table.csv").write_text("1")
    with pytest.raises(DataFormatError, match=r"table\.csv"):
        extract(tmp_path / "table.csv", tmp_path / "to")


def test_free_space_is_checked(tmp_path: Path, monkeypatch) -> None:
    limit_disk(monkeypatch, 1_500_000_000)
    check_free_space(tmp_path / "yet" / "to be made", 1_500_000_000)
    with pytest.raises(DiskSpaceError, match=r"1\.7 GB are needed .* only 1\.5 GB"):
        check_free_space(tmp_path, 1_700_000_000)


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (999_960, "1.0 MB")]
)
def test_sizes_as_people_write_them(size: int, text: str) -> None:
    assert readable_size(size) == text
