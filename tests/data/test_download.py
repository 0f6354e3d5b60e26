from __future__ import annotations

import dataclasses
import hashlib
import io
import logging
import multiprocessing
import random
import re
import shutil
import socket
import tarfile
import threading
import time
import types
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import requests

from kuaisim_gym.data import download as downloads
from kuaisim_gym.data.__main__ import main
from kuaisim_gym.data.cache import cached
from kuaisim_gym.data.download import archive_md5, archives, download, fetch_file
from kuaisim_gym.data.source import SOURCES
from kuaisim_gym.errors import ConfigError, DataFormatError, DiskSpaceError, DownloadError

CSV = random.Random(3).randbytes(300_000).hex().encode()  # compresses by half, to 300 kB
RECORD = "/18164998/files/KuaiRec.zip?download=1"


def zipped(
    name: str = "KuaiRec/data/big_matrix.csv",
    content: bytes = CSV,
    kind: int = zipfile.ZIP_DEFLATED,
) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(zipfile.ZipInfo(name), content, kind)
    return file.getvalue()


def tarred(*members: tarfile.TarInfo) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as archive:
        good = tarfile.TarInfo("KuaiRand-Pure/data/log.csv")
        good.size = len(CSV)
        for member in (good, *members):
            archive.addfile(member, io.BytesIO(CSV))
    return file.getvalue()


def md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


ZIP, TAR = zipped(), tarred()


class Server(ThreadingHTTPServer):
    """Sends one body, in the ways that servers and networks have."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.body = ZIP
        self.etag: str | None = '"one"'
        self.modified: str | None = None
        self.ranges = True  # whether Range is understood
        self.believes_if_range = True  # whether If-Range is
        self.shift = 0  # how many bytes too early the answers to Range start
        self.cuts: list[int] = []  # after how many bytes the next answers end
        self.stalls: list[int] = []  # after how many bytes the next answers stop, but do not end
        self.statuses: list[int] = []  # what the next answers are instead
        self.redirects: list[str] = []  # where the next answers lead
        self.says_length = True
        self.delay = 0.0
        self.requests: list[tuple[str, dict[str, str]]] = []

    @property
    def asked_from(self) -> list[int]:
        """The first byte that each request asked for."""
        found = [
            re.fullmatch(r"bytes=(\d+)-", headers.get("Range", "")) for _, headers in self.requests
        ]
        return [int(one[1]) if one else 0 for one in found]

    def handle_error(self, *_: object) -> None:
        """Clients that go away are part of the tests."""


class _Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        server = self.server
        server.requests.append((self.path, dict(self.headers)))
        time.sleep(server.delay)
        if server.redirects:
            self.send_response(302)
            self.send_header("Location", server.redirects.pop(0))
            self.send_header("Content-Length", str(10**12))  # which never comes
            self.end_headers()
            return
        if server.statuses:
            self.send_response(server.statuses.pop(0))
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        body, start = server.body, server.asked_from[-1]
        fits = self.headers.get("If-Range") in (None, server.etag) or not server.believes_if_range
        if start and server.ranges and fits:
            if start >= len(body):
                self.send_response(416)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            start -= server.shift
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
            body = body[start:]
        else:
            self.send_response(200)
        if server.says_length:
            self.send_header("Content-Length", str(len(body)))
        if server.etag is not None:
            self.send_header("ETag", server.etag)
        if server.modified is not None:
            self.send_header("Last-Modified", server.modified)
        self.end_headers()
        if server.stalls:
            self.wfile.write(body[: server.stalls.pop(0)])
            self.wfile.flush()
            time.sleep(0.8)
            return
        self.wfile.write(body[: server.cuts.pop(0)] if server.cuts else body)

    def log_message(self, *_: object) -> None:
        """Quiet."""


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.02,))
        thread.start()
        yield running
        running.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No proxy, a cache of the test's own, and archives that any disk can hold."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("KUAISIM_CACHE", str(tmp_path / "cache"))
    for name in archives():
        change(monkeypatch, name, archive_bytes=1000, unpacked_bytes=1000)


def change(monkeypatch: pytest.MonkeyPatch, name: str, **fields: object) -> None:
    """Gives one published archive other fields."""
    source = SOURCES[archives()[name].dataset]
    changed = [
        dataclasses.replace(archive, **fields) if archive.name == name else archive
        for archive in source.archives
    ]
    monkeypatch.setattr(source, "archives", tuple(changed))


def publish(monkeypatch: pytest.MonkeyPatch, name: str, checksum: str | None) -> None:
    change(monkeypatch, name, md5=checksum)


def fetch(server: Server, to: Path, name: str = "kuairec", **options) -> Path:
    defaults = {"timeout": 5, "backoff": 0.01, "progress": False}
    return download(name, to, base_url=server.url, **(defaults | options))


def names(folder: Path) -> list[str]:
    """What is in a folder; lock files apart, which some systems keep."""
    return sorted(one.name for one in folder.iterdir() if one.suffix != ".lock")


def content(folder: Path) -> bytes:
    return (folder / "KuaiRec" / "data" / "big_matrix.csv").read_bytes()


def offline() -> str:
    """An address where nobody listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}"


def test_the_published_archives() -> None:
    wanted = {
        "kuairec": "18164998/files/KuaiRec.zip",
        "kuairand-pure": "10439422/files/KuaiRand-Pure.tar.gz",
        "kuairand-1k": "10439422/files/KuaiRand-1K.tar.gz",
        "kuairand-27k": "10439422/files/KuaiRand-27K.tar.gz",
    }
    assert sorted(archives()) == sorted(wanted)
    for name, path in wanted.items():
        assert archives()[name].name == name
        assert archives()[name].url() == f"https://zenodo.org/records/{path}?download=1"
        assert (archives()[name].md5 is None) == (name == "kuairec")


@pytest.mark.parametrize("says_length", [True, False])
def test_fetches_checks_and_unpacks(tmp_path, server, caplog, says_length: bool) -> None:
    server.says_length = says_length
    with caplog.at_level(logging.INFO, "kuaisim_gym"):
        folder = fetch(server, tmp_path / "new" / "data")
    assert folder == tmp_path / "new" / "data" / "KuaiRec"
    assert content(folder) == CSV
    assert [path for path, _ in server.requests] == [RECORD]
    assert names(folder.parent) == ["KuaiRec", "KuaiRec.zip", "KuaiRec.zip.md5"]
    assert (folder.parent / "KuaiRec.zip").read_bytes() == ZIP
    assert (folder.parent / "KuaiRec.zip.md5").read_text() == f"{md5(ZIP)}  KuaiRec.zip\n"
    assert archive_md5(folder) == md5(ZIP)
    assert md5(ZIP) in caplog.text


def test_the_default_folder_is_in_the_cache(tmp_path: Path, server: Server) -> None:
    folder = download("kuairec", base_url=f"{server.url}/", progress=False)
    assert folder == tmp_path / "cache" / "downloads" / "KuaiRec"


def test_does_only_what_is_left_to_do(tmp_path: Path, server: Server, monkeypatch) -> None:
    folder = fetch(server, tmp_path)
    extracted = []
    real = downloads.extract
    monkeypatch.setattr(downloads, "extract", lambda *args: extracted.append(args) or real(*args))
    with monkeypatch.context() as read_only:
        read_only.setattr(
            downloads, "_acquired", lambda _: pytest.fail("a lock needs a folder to write")
        )
        assert fetch(server, tmp_path) == folder
    (tmp_path / "KuaiRec.zip.md5").unlink()
    assert fetch(server, tmp_path) == folder
    assert (tmp_path / "KuaiRec.zip.md5").exists()
    assert not extracted
    shutil.rmtree(folder)
    assert content(fetch(server, tmp_path)) == CSV
    assert len(extracted) == 1
    (tmp_path / "KuaiRec.zip").unlink()
    assert fetch(server, tmp_path) == folder
    assert len(server.requests) == 1


def test_the_progress_bar_can_be_had(tmp_path: Path, server: Server, monkeypatch) -> None:
    shown = []
    real = downloads.tqdm
    monkeypatch.setattr(
        downloads, "tqdm", lambda **options: shown.append(options) or real(**options)
    )
    server.cuts = [200_000]
    fetch(server, tmp_path, progress=True)
    assert [one["total"] for one in shown] == [len(ZIP)] * 2
    assert [one["initial"] for one in shown] == server.asked_from
    assert shown[0]["disable"] is None


@pytest.mark.parametrize("published", [True, False])
def test_goes_on_where_the_connection_broke(tmp_path, server, monkeypatch, published) -> None:
    publish(monkeypatch, "kuairec", md5(ZIP) if published else None)
    server.cuts = [200_000, 100_000]
    assert content(fetch(server, tmp_path)) == CSV
    first, second, third = server.asked_from
    assert first == 0 < second <= 200_000
    assert second < third <= second + 100_000
    assert server.requests[1][1]["If-Range"] == '"one"'
    assert (tmp_path / "KuaiRec.zip").read_bytes() == ZIP
    assert not list(tmp_path.glob("*.part*"))


def test_goes_on_in_a_later_call(tmp_path: Path, server: Server) -> None:
    server.cuts = [200_000]
    with pytest.raises(DownloadError, match=r"connection broke(.|\n)*goes on from there"):
        fetch(server, tmp_path, retries=0)
    size = (tmp_path / "KuaiRec.zip.part").stat().st_size
    assert 0 < size <= 200_000
    assert names(tmp_path) == ["KuaiRec.zip.part", "KuaiRec.zip.part.json"]
    assert content(fetch(server, tmp_path)) == CSV
    assert server.asked_from == [0, size]


@pytest.mark.parametrize(
    "trouble", ["no ranges", "no notes", "torn notes", "too long", "other range", "other address"]
)
def test_starts_over_where_it_cannot_go_on(tmp_path, server, caplog, trouble: str) -> None:
    server.cuts = [200_000]
    with pytest.raises(DownloadError):
        fetch(server, tmp_path, retries=0)
    server.ranges = trouble != "no ranges"
    notes, part = tmp_path / "KuaiRec.zip.part.json", tmp_path / "KuaiRec.zip.part"
    if trouble == "no notes":
        notes.unlink()
    elif trouble == "torn notes":
        notes.write_text('{"url": ')
    elif trouble == "too long":
        part.write_bytes(bytes(len(ZIP)))
    elif trouble == "other range":
        server.shift = 10
    elif trouble == "other address":
        server.url += "/mirror"
    assert content(fetch(server, tmp_path, retries=0)) == CSV
    assert ("does not go on" in caplog.text) == (trouble in ("too long", "other range"))
    knows_nothing = trouble in ("no notes", "torn notes", "other address")
    assert (server.asked_from[1] == 0) == knows_nothing
    assert (tmp_path / "KuaiRec.zip").read_bytes() == ZIP


@pytest.mark.parametrize("mark", ["etag", "weak etag", "time", "size"])
@pytest.mark.parametrize("believes_if_range", [True, False])
def test_never_splices_two_versions(
    tmp_path, server, caplog, mark: str, believes_if_range: bool
) -> None:
    stored = zipfile.ZIP_STORED  # so that the versions have the same size
    server.body = zipped(kind=stored)
    server.believes_if_range = believes_if_range
    marks = {"etag": ('"one"', '"two"'), "weak etag": ('W/"one"', 'W/"two"')}
    server.etag, etag = marks.get(mark, (None, None))
    server.modified = "Mon, 01 Jan 2024 00:00:00 GMT" if mark == "time" else None
    server.cuts = [200_000]
    with pytest.raises(DownloadError):
        fetch(server, tmp_path, retries=0)
    assert (tmp_path / "KuaiRec.zip.part").stat().st_size > 0
    other = CSV[::-1] + (b"longer" if mark == "size" else b"")
    server.body, server.etag = zipped(content=other, kind=stored), etag
    server.modified = "Tue, 02 Jan 2024 00:00:00 GMT" if mark == "time" else None
    assert content(fetch(server, tmp_path)) == other
    assert (tmp_path / "KuaiRec.zip").read_bytes() == server.body
    assert ("If-Range" in server.requests[1][1]) == (mark == "etag")
    if mark != "etag" or not believes_if_range:
        assert "changed on the server" in caplog.text


def test_a_server_that_always_breaks_off_is_given_up(tmp_path: Path, server: Server) -> None:
    server.ranges = False
    server.cuts = [200_000] * 10
    with pytest.raises(DownloadError, match="by hand"):
        fetch(server, tmp_path, retries=2)
    assert len(server.requests) == 3


def test_an_answer_that_ends_early_is_noticed(tmp_path, server, monkeypatch) -> None:
    """Also where the HTTP library does not count."""
    monkeypatch.setattr(downloads, "_chunks", lambda _: iter([ZIP[:1000]]))
    with pytest.raises(DownloadError, match=f"ended after 1000 of {len(ZIP)} bytes"):
        fetch(server, tmp_path, retries=0)


def test_an_answer_that_does_not_end_is_noticed(tmp_path, server, monkeypatch) -> None:
    monkeypatch.setattr(downloads, "_chunks", lambda _: iter([ZIP, b"more"]))
    with pytest.raises(DownloadError, match="more came"):
        fetch(server, tmp_path, retries=1)
    assert names(tmp_path) == []


def test_progress_earns_more_attempts(tmp_path: Path, server: Server, monkeypatch) -> None:
    monkeypatch.setattr(downloads, "_PROGRESS", 10_000)
    server.cuts = [70_000] * 4
    assert content(fetch(server, tmp_path, retries=1)) == CSV
    assert len(server.requests) == 5


def test_a_stalled_server_is_an_error(tmp_path: Path, server: Server) -> None:
    server.stalls = [0, 100_000]
    with pytest.raises(DownloadError, match="timed out"):
        fetch(server, tmp_path, timeout=0.1, retries=1)
    assert content(fetch(server, tmp_path)) == CSV
    assert server.asked_from[-1] > 0


def test_a_server_that_does_not_answer_is_an_error(tmp_path: Path, server: Server) -> None:
    server.delay = 0.5
    with pytest.raises(DownloadError, match="in time"):
        fetch(server, tmp_path, timeout=0.1, retries=0)


def test_waits_longer_before_each_attempt(tmp_path: Path, server: Server, monkeypatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr(downloads.time, "sleep", waits.append)
    server.statuses = [503, 500, 429]
    assert content(fetch(server, tmp_path, backoff=1.0)) == CSV
    assert [one for one in waits if one] == [1.0, 2.0, 4.0]  # the server's own are 0


def test_an_answer_that_will_not_change_is_not_tried_again(tmp_path, server) -> None:
    server.statuses = [404]
    with pytest.raises(DownloadError, match="answered 404(.|\n)*by hand"):
        fetch(server, tmp_path)
    assert len(server.requests) == 1


def test_offline_says_how_to_do_it_by_hand(tmp_path: Path) -> None:
    with pytest.raises(DownloadError) as caught:
        download("kuairand-1k", tmp_path, base_url=offline(), retries=1, backoff=0.01)
    message = str(caught.value)
    archive = tmp_path / "KuaiRand-1K.tar.gz"
    assert "refused" in message
    assert archives()["kuairand-1k"].url() in message
    assert f"Put the file at {archive}\n" in message
    assert f'load_dataset("kuairand", "{archive}")' in message
    assert names(tmp_path) == []


def test_what_is_no_address(tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match="Expected the address"):
        download("kuairec", tmp_path, base_url="nowhere")


def test_an_archive_put_there_by_hand_is_taken(tmp_path: Path) -> None:
    (tmp_path / "KuaiRec.zip").write_bytes(ZIP)
    assert content(download("kuairec", tmp_path, base_url=offline())) == CSV
    assert (tmp_path / "KuaiRec.zip.md5").read_text().split() == [md5(ZIP), "KuaiRec.zip"]


def test_a_folder_unpacked_by_hand_is_taken(tmp_path: Path) -> None:
    (tmp_path / "KuaiRec" / "data").mkdir(parents=True)
    assert download("kuairec", tmp_path, base_url=offline()) == tmp_path / "KuaiRec"
    assert archive_md5(tmp_path / "KuaiRec") is None


def test_corrupt_bytes_are_refused_and_removed(tmp_path, server, monkeypatch) -> None:
    publish(monkeypatch, "kuairand-pure", md5(TAR))
    server.body = TAR[:-1] + b"!"
    with pytest.raises(DownloadError) as caught:
        fetch(server, tmp_path, "kuairand-pure")
    assert md5(TAR) in str(caught.value)
    assert md5(server.body) in str(caught.value)
    assert names(tmp_path) == []
    server.body = TAR
    folder = fetch(server, tmp_path, "kuairand-pure")
    assert (folder / "KuaiRand-Pure" / "data" / "log.csv").read_bytes() == CSV
    assert names(tmp_path) == ["KuaiRand-Pure", "KuaiRand-Pure.tar.gz"]


def test_corrupt_bytes_do_not_touch_what_was_there(tmp_path, server, monkeypatch) -> None:
    publish(monkeypatch, "kuairec", md5(ZIP))
    folder = fetch(server, tmp_path)
    publish(monkeypatch, "kuairec", md5(b"a new version"))
    server.body = b"not the new version"
    with pytest.raises(DownloadError, match=md5(b"a new version")):
        fetch(server, tmp_path)
    assert content(folder) == CSV
    assert (tmp_path / "KuaiRec.zip").read_bytes() == ZIP
    assert names(tmp_path) == ["KuaiRec", "KuaiRec.zip"]


def test_a_new_version_replaces_the_old_one(tmp_path, server, monkeypatch) -> None:
    publish(monkeypatch, "kuairec", md5(ZIP))
    fetch(server, tmp_path)
    server.body = zipped("KuaiRec/data/other.csv")
    publish(monkeypatch, "kuairec", md5(server.body))
    folder = fetch(server, tmp_path)
    assert [one.name for one in (folder / "KuaiRec" / "data").iterdir()] == ["other.csv"]
    assert names(tmp_path) == ["KuaiRec", "KuaiRec.zip"]


def test_a_later_download_must_match_the_first(tmp_path: Path, server: Server) -> None:
    folder = fetch(server, tmp_path)
    (tmp_path / "KuaiRec.zip").unlink()
    shutil.rmtree(folder)
    server.body = zipped(content=CSV[::-1])
    with pytest.raises(DownloadError) as caught:
        fetch(server, tmp_path)
    pin = tmp_path / "KuaiRec.zip.md5"
    for part in (md5(ZIP), md5(server.body), "KuaiRec.zip", f"remove {pin}"):
        assert part in str(caught.value)
    assert names(tmp_path) == [pin.name]
    pin.unlink()
    assert content(fetch(server, tmp_path)) == CSV[::-1]
    assert pin.read_text().split()[0] == md5(server.body)


def test_an_archive_that_differs_from_the_pin(tmp_path: Path, server: Server) -> None:
    fetch(server, tmp_path)
    shutil.rmtree(tmp_path / "KuaiRec")
    (tmp_path / "KuaiRec.zip").write_bytes(zipped(content=CSV[::-1]))
    with pytest.raises(
        DownloadError, match=r"KuaiRec\.zip has md5 (.|\n)*remove KuaiRec\.zip\.md5"
    ):
        fetch(server, tmp_path)
    (tmp_path / "KuaiRec.zip.md5").write_text("torn")
    with pytest.raises(DownloadError, match="32 hexadecimal"):
        fetch(server, tmp_path)
    (tmp_path / "KuaiRec.zip.md5").unlink()
    assert content(fetch(server, tmp_path)) == CSV[::-1]


def make_hostile() -> dict[str, tuple[str, bytes]]:
    def link(kind: bytes) -> tarfile.TarInfo:
        member = tarfile.TarInfo("bad")
        member.type, member.linkname = kind, "../../outside.csv"
        return member

    return {
        "parent": ("kuairec", zipped("../../outside.csv")),
        "absolute": ("kuairec", zipped("/tmp/kuaisim-outside.csv")),
        "garbage": ("kuairec", b"<html>down for maintenance</html>"),
        "short zip": ("kuairec", ZIP[:100_000]),
        "symbolic link": ("kuairand-pure", tarred(link(tarfile.SYMTYPE))),
        "hard link": ("kuairand-pure", tarred(link(tarfile.LNKTYPE))),
        "fifo": ("kuairand-pure", tarred(link(tarfile.FIFOTYPE))),
        "device": ("kuairand-pure", tarred(link(tarfile.CHRTYPE))),
        "twice": ("kuairand-pure", tarred(tarfile.TarInfo("a"), tarfile.TarInfo("A"))),
        "short tar": ("kuairand-pure", TAR[:100_000]),
    }


HOSTILE = make_hostile()


@pytest.mark.parametrize("case", HOSTILE)
@pytest.mark.parametrize("published", [True, False])
def test_hostile_archives(tmp_path, server, monkeypatch, case: str, published: bool) -> None:
    name, server.body = HOSTILE[case]
    publish(monkeypatch, name, md5(server.body) if published else None)
    to = tmp_path / "deep" / "to"
    with pytest.raises(DataFormatError if published else DownloadError) as caught:
        fetch(server, to, name)
    assert archives()[name].file in str(caught.value)
    # An archive that is as published stays, since nothing better would come.
    assert names(to) == ([archives()[name].file] if published else [])
    assert names(tmp_path) == ["deep"]
    assert names(tmp_path / "deep") == ["to"]
    assert not Path("/tmp/kuaisim-outside.csv").exists()


def test_a_damaged_archive_put_there_by_hand_stays(tmp_path: Path) -> None:
    archive = tmp_path / "KuaiRec.zip"
    archive.write_bytes(ZIP[:1000])
    with pytest.raises(DataFormatError, match=f"Remove {archive}"):
        download("kuairec", tmp_path, base_url=offline())
    assert names(tmp_path) == ["KuaiRec.zip"]


@pytest.mark.parametrize("says_length", [True, False])
def test_a_full_disk_is_noticed_at_the_start(tmp_path, server, monkeypatch, says_length) -> None:
    server.says_length = says_length
    size = len(ZIP) if says_length else archives()["kuairec"].archive_bytes
    needed = size + archives()["kuairec"].unpacked_bytes
    usage = types.SimpleNamespace(total=0, used=0, free=needed - 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(DiskSpaceError, match="are needed"):
        fetch(server, tmp_path)
    assert names(tmp_path) == []
    usage.free = needed
    monkeypatch.setattr(downloads, "extract", lambda _, folder: folder.mkdir())
    fetch(server, tmp_path)


def test_a_bomb_does_not_fill_the_disk(tmp_path: Path, server: Server, monkeypatch) -> None:
    usage = types.SimpleNamespace(total=0, used=0, free=3_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    server.body = zipped(content=bytes(5_000_000))
    with pytest.raises(DiskSpaceError):
        fetch(server, tmp_path)
    assert names(tmp_path) == ["KuaiRec.zip"]  # it may be a good one, for a larger disk


def test_a_folder_that_cannot_be_written(tmp_path: Path, server: Server) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DownloadError, match="cannot be kept"):
        fetch(server, tmp_path / "file")


def test_what_killed_processes_left_is_removed(tmp_path: Path, server: Server) -> None:
    (tmp_path / "KuaiRec.0123.part" / "data").mkdir(parents=True)
    fetch(server, tmp_path)
    assert names(tmp_path) == ["KuaiRec", "KuaiRec.zip", "KuaiRec.zip.md5"]


def test_of_many_threads_one_downloads(tmp_path: Path, server: Server, monkeypatch) -> None:
    server.delay = 0.3
    hashed = []
    real = downloads._file_md5
    monkeypatch.setattr(downloads, "_file_md5", lambda file: hashed.append(file) or real(file))
    folders: list[Path] = []
    threads = [
        threading.Thread(target=lambda: folders.append(fetch(server, tmp_path))) for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert folders == [tmp_path / "KuaiRec"] * 3
    assert len(hashed) == 1
    assert len(server.requests) == 1


def _download(url: str, to: Path) -> None:
    download("kuairec", to, base_url=url, progress=False)


def test_of_two_processes_one_downloads(tmp_path: Path, server: Server) -> None:
    server.delay = 0.5
    process = multiprocessing.get_context("spawn").Process(
        target=_download, args=(server.url, tmp_path)
    )
    process.start()
    while not server.requests and process.is_alive():
        time.sleep(0.01)
    assert content(fetch(server, tmp_path)) == CSV  # while the other one waits for its answer
    process.join()
    assert process.exitcode == 0
    assert len(server.requests) == 1


def test_options_are_checked(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Did you mean 'kuairec'"):
        download("kuairek", tmp_path)
    for options in ({"timeout": 0}, {"retries": -1}, {"backoff": -1}):
        with pytest.raises(ConfigError, match="timeout > 0"):
            download("kuairec", tmp_path, **options)


def test_the_download_command(tmp_path, server, monkeypatch, capsys) -> None:
    real = downloads.download
    monkeypatch.setattr(
        "kuaisim_gym.data.__main__.download",
        lambda name, to: real(name, to, base_url=server.url, retries=0),
    )
    assert main(["download", "kuairec", "--to", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert f"folder:  {tmp_path / 'KuaiRec'}\n" in out
    assert f"md5 {md5(ZIP)}; none is published" in out
    assert f"load_dataset('kuairec', '{tmp_path / 'KuaiRec'}')" in out
    publish(monkeypatch, "kuairec", md5(ZIP))
    assert main(["download", "kuairec", "--to", str(tmp_path)]) == 0
    assert f"md5 {md5(ZIP)}, as published" in capsys.readouterr().out
    server.statuses = [404]
    assert main(["download", "kuairand-1k", "--to", str(tmp_path)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert "404" in captured.err


def test_the_download_command_when_interrupted(tmp_path, monkeypatch, capsys) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("kuaisim_gym.data.__main__.download", interrupt)
    assert main(["download", "kuairec"]) == 130
    assert "same command" in capsys.readouterr().err


def test_the_cache_commands(tmp_path: Path, capsys) -> None:
    import numpy as np

    cached("kuairec-key", lambda: {"a": np.zeros(1000)})
    assert main(["cache", "--info"]) == 0
    out = capsys.readouterr().out
    assert "8.3 kB" in out
    assert "kuairec-key" in out
    assert "1 entries" in out
    assert main(["cache", "--clear"]) == 0
    assert "8.3 kB freed" in capsys.readouterr().out
    assert main(["cache", "--info"]) == 0
    assert capsys.readouterr().out.startswith("0 B in 0 entries")


@pytest.mark.parametrize(
    "argv", [[], ["download"], ["download", "movielens"], ["cache"], ["cache", "--info", "--clear"]]
)
def test_words_that_are_no_command(argv: list[str], capsys) -> None:
    with pytest.raises(SystemExit) as caught:
        main(argv)
    assert caught.value.code == 2
    assert "usage" in capsys.readouterr().err


def test_follows_redirects(tmp_path: Path, server: Server) -> None:
    server.redirects = [f"{server.url}/elsewhere", "/further?token=1"]
    assert content(fetch(server, tmp_path)) == CSV
    assert [path for path, _ in server.requests] == [RECORD, "/elsewhere", "/further?token=1"]


@pytest.mark.parametrize(
    ("target", "why"),
    [
        ("file:///etc/passwd", "not of http or https"),
        ("ftp://127.0.0.1/x.zip", "not of http or https"),
        ("http://[::bad", "no address"),
        ("http://:80/", "no address"),
        ("http://127.0.0.1:port/", "no address"),
        (f"http://{'a' * 70}.example/", "no address"),
        ("http://x\xe9\xff/", "no address"),
    ],
)
def test_names_the_address_that_is_not_followed(tmp_path, server, target: str, why: str) -> None:
    server.redirects = [target]
    with pytest.raises(DownloadError) as caught:
        fetch(server, tmp_path)
    message = str(caught.value)
    assert f"{server.url}{RECORD} leads to {target!r}, which is {why}" in message
    assert "To do it by hand" in message
    assert "version" not in message
    assert len(server.requests) == 1


def test_an_encrypted_address_leads_to_no_plain_one() -> None:
    answer = requests.Response()
    answer.status_code, answer.url = 302, "https://zenodo.org/records/1"
    answer.raw = io.BytesIO()
    for target, is_plain in (("http://zenodo.org/2", True), ("/2", False), ("//x.org/", False)):
        answer.headers["Location"] = target
        with downloads._Session(answer.url) as session:
            if is_plain:
                with pytest.raises(downloads._RefusedRedirectError, match="not encrypted"):
                    session.get_redirect_target(answer)
            else:
                assert session.get_redirect_target(answer) == target


def test_failures_behind_a_redirect_name_both_addresses(tmp_path: Path, server: Server) -> None:
    first, other = f"{server.url}{RECORD}", offline()
    server.redirects = [f"{other}/x.zip"]
    with pytest.raises(DownloadError, match=f"{re.escape(first)}.* at {other}/x.zip, to which"):
        fetch(server, tmp_path, retries=0)
    for status, retries in ((404, 3), (503, 0)):
        server.redirects, server.statuses = ["/x.zip"], [status]
        with pytest.raises(DownloadError, match=f"{status} .* at {server.url}/x.zip") as caught:
            fetch(server, tmp_path, retries=retries)
        assert first in str(caught.value)
    server.redirects = [f"/{turn}" for turn in range(40)]
    with pytest.raises(DownloadError, match=f"more than 30 times, and at last to {server.url}/30"):
        fetch(server, tmp_path)
    assert len(server.redirects) == 9


def test_one_file_is_fetched_and_checked(server: Server, tmp_path: Path) -> None:
    file, sha256 = tmp_path / "file", hashlib.sha256(ZIP).hexdigest()
    options = {"timeout": 5, "backoff": 0.01, "progress": False}
    server.cuts = [100_000]
    fetch_file(f"{server.url}/x%2By", file, sha256, **options)
    assert file.read_bytes() == ZIP
    assert server.asked_from == [0, 65_536]  # the whole chunks that came
    assert server.requests[0][0] == "/x%2By"
    server.body = ZIP[:-1] + bytes([ZIP[-1] ^ 1])
    with pytest.raises(DownloadError, match=f"Expected a file of sha256 {sha256} at"):
        fetch_file(f"{server.url}/x", file, sha256, **options)
    assert file.read_bytes() == ZIP  # as it was
    assert names(tmp_path) == ["file"]
    fetch_file(f"{server.url}/x", file, **options)
    assert file.read_bytes() == server.body


@pytest.mark.parametrize("says_length", [True, False])
@pytest.mark.parametrize("limit", ["size", "largest"])
def test_no_more_is_fetched_than_a_file_may_have(server, tmp_path, limit, says_length) -> None:
    """Neither what a server announces nor what it sends without end fills the disk."""
    server.says_length = says_length
    options = {"timeout": 5, "retries": 0, "progress": False}
    fetch_file(f"{server.url}/x", tmp_path / "file", **{limit: len(ZIP)}, **options)
    with pytest.raises(DownloadError, match=f"of at most {len(ZIP) - 1} at .* of at least"):
        fetch_file(f"{server.url}/x", tmp_path / "more", **{limit: len(ZIP) - 1}, **options)
    assert names(tmp_path) == ["file"]
