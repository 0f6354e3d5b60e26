"""The published archives: fetched once, checked, and unpacked.

Everything lies in one folder, by default ``downloads`` in the cache: the archive, which is kept so
that it need not be fetched again; the folder it was unpacked to, which alone is needed from then
on; and, where no checksum is published, ``<archive>.md5`` with the one of the first download.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import pooch  # type: ignore[import-untyped]
import requests
from filelock import FileLock, Timeout
from tqdm import tqdm

from kuaisim_gym.config import check_choice
from kuaisim_gym.data.archive import extract, free_space_check, readable_size
from kuaisim_gym.data.cache import cache_dir, write_atomically
from kuaisim_gym.errors import ConfigError, DataFormatError, DownloadError, KuaiSimError

ZENODO = "https://zenodo.org/records"

_MARKER = ".archive.md5"  # in an unpacked folder: which archive it came from
_MD5 = re.compile(r"[0-9a-f]{32}")
_RANGE = re.compile(r"bytes (?P<first>[0-9]+)-[0-9]+/(?P<total>[0-9]+|\*)")
_CHUNK = 1 << 16
_PROGRESS = 1 << 20  # bytes that prove a connection to be worth more attempts
_LONGEST_WAIT = 30.0  # seconds between attempts
_BUSY = frozenset({408, 425, 429, 500, 502, 503, 504})  # answers that may be others a little later

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PublishedArchive:
    """One archive as its authors publish it.

    Attributes:
        name: What to ask for.
        dataset: Which dataset it holds, as ``load_dataset`` calls it.
        record: Number of its Zenodo record.
        file: Its name there.
        md5: Its published checksum; ``None`` where there is none.
        archive_bytes: Its size, approximately.
        unpacked_bytes: The size of its files, approximately.
    """

    name: str
    dataset: str
    record: int
    file: str
    md5: str | None
    archive_bytes: int
    unpacked_bytes: int

    @property
    def folder(self) -> str:
        """Name of the folder that it is unpacked to."""
        return self.file.removesuffix(".zip").removesuffix(".tar.gz")

    def url(self, base_url: str = ZENODO) -> str:
        """Where it is, on Zenodo or on a mirror with the same paths."""
        return f"{base_url}/{self.record}/files/{self.file}?download=1"


# The sizes are approximate: they only serve to refuse a disk that is too small.
ARCHIVES: dict[str, PublishedArchive] = {
    archive.name: archive
    for archive in (
        PublishedArchive(
            name="kuairec",
            dataset="kuairec",
            record=18164998,
            file="KuaiRec.zip",
            md5=None,
            archive_bytes=450_000_000,
            unpacked_bytes=1_700_000_000,
        ),
        PublishedArchive(
            name="kuairand-pure",
            dataset="kuairand",
            record=10439422,
            file="KuaiRand-Pure.tar.gz",
            md5="0820331067a3784d9691136f772b35a7",
            archive_bytes=50_000_000,
            unpacked_bytes=300_000_000,
        ),
        PublishedArchive(
            name="kuairand-1k",
            dataset="kuairand",
            record=10439422,
            file="KuaiRand-1K.tar.gz",
            md5="6b0b9c8222d67fcd4c676218edca3f1f",
            archive_bytes=900_000_000,
            unpacked_bytes=4_000_000_000,
        ),
        PublishedArchive(
            name="kuairand-27k",
            dataset="kuairand",
            record=10439422,
            file="KuaiRand-27K.tar.gz",
            md5="3e3c799a24e2d23a4d2c757fbf9adf59",
            archive_bytes=9_500_000_000,
            unpacked_bytes=25_000_000_000,
        ),
    )
}


def download(
    name: str,
    to: str | Path | None = None,
    *,
    base_url: str = ZENODO,
    timeout: float = 30.0,
    retries: int = 3,
    backoff: float = 1.0,
    progress: bool = True,
) -> Path:
    """Fetches a published archive, checks it and unpacks it; does only what is left to do.

    * What an earlier call fetched, until it was broken off, is not fetched again, provided that the
      file has not changed on the server since.
    * The archive stays where it is after it was unpacked. It may be removed: the unpacked folder
      alone is enough for later calls.
    * The archive must have the published md5. Where none is published, the md5 of the first
      download is logged and kept in ``<archive>.md5``, and later downloads must have it; remove
      that file to accept another archive.
    * An archive that was put there by hand is taken, after the same check; one with another md5
      than the published one is fetched again. A folder that was unpacked there by hand is taken as
      it is.
    * Of several processes one works while the others wait.

    Args:
        name: One of :data:`ARCHIVES`: ``"kuairec"``, ``"kuairand-pure"``, ``"kuairand-1k"`` or
            ``"kuairand-27k"``.
        to: Folder for the archive and the unpacked folder; ``None`` for ``downloads`` in the cache.
        base_url: Where the records are: Zenodo, or a mirror with the same paths below it.
        timeout: Seconds without a byte after which a connection counts as lost.
        retries: How many lost connections in a row, without progress between them, are tried again.
        backoff: Seconds before the first of these attempts; doubled before each further one.
        progress: Whether to show a progress bar, on terminals.

    Returns:
        The unpacked folder, which ``load_dataset`` takes as its path.

    Raises:
        ConfigError: Unknown name, or an option out of range.
        DownloadError: The archive cannot be fetched or is another one than expected. The message
            says how to get it by hand.
        DiskSpaceError: The disk has too little room for it.
        DataFormatError: The archive was as expected, but must not or cannot be unpacked.
    """
    check_choice("name", name, ARCHIVES)
    if timeout <= 0 or retries < 0 or backoff < 0:
        raise ConfigError(
            f"Expected timeout > 0, retries >= 0 and backoff >= 0, got {timeout}, {retries} and "
            f"{backoff}."
        )
    published = ARCHIVES[name]
    root = cache_dir() / "downloads" if to is None else Path(to).expanduser()
    place = _Place(published, root)
    if place.is_unpacked():
        return place.folder
    client = _ResumingDownloader(place, timeout, retries, backoff, progress)
    try:
        root.mkdir(parents=True, exist_ok=True)
        with _lock(root / f"{published.file}.lock"):
            if not place.is_unpacked():  # another process may have been first
                _fetch_and_unpack(place, published.url(base_url.rstrip("/")), client)
    except KuaiSimError:
        raise
    except OSError as error:
        raise DownloadError(
            f"{published.file} cannot be kept in {root} ({error}). Choose a folder that can be "
            f"written."
        ) from error
    return place.folder


def archive_md5(folder: Path) -> str | None:
    """The md5 of the archive that :func:`download` unpacked there; ``None`` for other folders."""
    return _read_md5(folder / _MARKER)


@dataclass(frozen=True)
class _Place:
    """Where one archive, and what belongs to it, lies."""

    published: PublishedArchive
    root: Path

    @property
    def archive(self) -> Path:
        return self.root / self.published.file

    @property
    def folder(self) -> Path:
        return self.root / self.published.folder

    @property
    def part(self) -> Path:
        """What was fetched so far."""
        return self.root / f"{self.published.file}.part"

    @property
    def pin(self) -> Path:
        return self.root / f"{self.published.file}.md5"

    def expected_md5(self) -> str | None:
        """The published md5, or that of the first download."""
        if self.published.md5 is not None:
            return self.published.md5
        if not self.pin.exists():
            return None
        pinned = _read_md5(self.pin)
        if pinned is None:
            raise DownloadError(
                f"Expected an md5 of 32 hexadecimal digits in {self.pin}, found something else. "
                f"Remove that file to accept whatever {self.published.file} is downloaded next."
            )
        return pinned

    def is_unpacked(self) -> bool:
        """Whether the folder holds the archive that is expected, or was filled by hand."""
        if not self.folder.is_dir() or not any(self.folder.iterdir()):
            return False
        if not (self.folder / _MARKER).exists():
            logger.info("%s was not unpacked here and is taken as it is.", self.folder)
            return True
        md5 = archive_md5(self.folder)
        return md5 is not None and md5 == self.expected_md5()

    def by_hand(self) -> str:
        """What to do without a connection."""
        return (
            f"To do it by hand:\n"
            f"  1. Open {self.published.url()} in a browser.\n"
            f"  2. Put the file at {self.archive}\n"
            f'  3. Call load_dataset("{self.published.dataset}", "{self.archive}"). It takes the '
            f"archive itself, the folder that it was unpacked to, or the data folder in that."
        )


def _fetch_and_unpack(place: _Place, url: str, client: _ResumingDownloader) -> None:
    md5, is_fresh = _fetch(place, url, client)
    if archive_md5(place.folder) != md5:
        try:
            _unpack(place, md5)
        except DataFormatError as error:
            if place.expected_md5() is None and is_fresh:
                place.archive.unlink(missing_ok=True)
                raise DownloadError(
                    f"What {url} sent is not the archive that was expected, and was removed: "
                    f"{error}\n{place.by_hand()}"
                ) from error
            raise DataFormatError(
                f"{error} Remove {place.archive} to download it again."
            ) from error
    if place.expected_md5() is None:
        write_atomically(place.pin, f"{md5}  {place.published.file}\n".encode())
        logger.info(
            "No md5 of %s is published; this one has %s, which later downloads must have too (%s).",
            place.archive,
            md5,
            place.pin,
        )


def _fetch(place: _Place, url: str, client: _ResumingDownloader) -> tuple[str, bool]:
    """Makes sure that the archive is there; returns its md5, and whether it was downloaded."""
    expected = place.expected_md5()
    if place.archive.is_file():
        found = _file_md5(place.archive)
        if expected in (None, found):
            return found, False
        if place.published.md5 is None:
            raise DownloadError(
                f"{place.archive} has md5 {found}, but {place.pin} says {expected}. Remove the "
                f"archive to download it again, or remove {place.pin.name} to accept it."
            )
        logger.warning(
            "%s has md5 %s, the published one is %s: downloading it again.",
            place.archive,
            found,
            expected,
        )
    try:
        with _quiet_pooch():
            pooch.retrieve(
                url,
                known_hash=None if expected is None else f"md5:{expected}",
                fname=place.archive.name,
                path=place.root,
                downloader=client,
            )
    except ValueError as error:  # pooch's word for another checksum; it names both
        hint = (
            f"If its authors have published a new version, remove {place.pin} to accept it. "
            if place.published.md5 is None
            else "It was damaged on the way, or is another file; try again later. "
        )
        raise DownloadError(f"{url}: {error} {hint}\n{place.by_hand()}") from error
    return _file_md5(place.archive) if expected is None else expected, True


def _unpack(place: _Place, md5: str) -> None:
    """Puts the archive's files in its folder, in place of those of another archive."""
    for rest in place.root.glob(f"{place.folder.name}.*.part"):  # a killed process left them
        if rest.is_dir():
            shutil.rmtree(rest, ignore_errors=True)
    fresh = place.folder.with_name(f"{place.folder.name}.{uuid.uuid4().hex}.part")
    old = fresh.with_name(f"{fresh.name}.old.part")
    logger.info("Unpacking %s to %s.", place.archive, place.folder)
    try:
        extract(place.archive, fresh)
        (fresh / _MARKER).write_text(f"{md5}  {place.archive.name}\n", encoding="utf-8")
        if place.folder.exists():
            os.rename(place.folder, old)
        try:
            os.rename(fresh, place.folder)
        except OSError:
            if old.exists():
                os.rename(old, place.folder)
            raise
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)


def _file_md5(file: Path) -> str:
    return str(pooch.file_hash(str(file), alg="md5"))


def _read_md5(file: Path) -> str | None:
    """The md5 in a file as md5sum writes it; ``None`` where it is absent or says something else."""
    try:
        words = file.read_text(encoding="utf-8").split()
    except (OSError, UnicodeDecodeError):
        return None
    md5 = words[0].lower() if words else ""
    return md5 if _MD5.fullmatch(md5) else None


@contextmanager
def _lock(file: Path) -> Iterator[None]:
    lock = FileLock(file)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        logger.warning("Waiting for another process that holds %s.", file)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _quiet_pooch() -> Iterator[None]:
    """Keeps pooch from advising our users on how to call pooch."""
    log = pooch.get_logger()
    level = log.level
    log.setLevel(logging.WARNING)
    try:
        yield
    finally:
        log.setLevel(level)


class _LostConnectionError(Exception):
    """An attempt failed in a way that the next one may not."""


class _ChangedFileError(Exception):
    """What was fetched so far is not the beginning of what the server has now."""


@dataclass(frozen=True)
class _Source:
    """What the bytes fetched so far are the beginning of; kept beside them.

    Attributes:
        url: Where they came from.
        validator: The server's mark of this version of the file, where it gave one.
        total: Size of the whole, where it gave one.
    """

    url: str
    validator: str | None
    total: int | None


class _ResumingDownloader:
    """What pooch fetches files with: goes on where an earlier attempt or call stopped."""

    def __init__(
        self, place: _Place, timeout: float, retries: int, backoff: float, progress: bool
    ) -> None:
        self._place = place
        self._part = place.part
        self._notes = place.part.with_name(f"{place.part.name}.json")
        self._timeout = timeout
        self._retries = retries
        self._backoff = backoff
        self._progress = progress

    def __call__(
        self, url: str, output_file: str, pooch: object, *, check_only: bool | None = None
    ) -> None:
        """Fetches ``url`` to ``output_file``, as pooch's downloaders do."""
        furthest, failures = self._have(), 0
        while True:
            try:
                self._attempt(url)
                break
            except _ChangedFileError as error:
                logger.warning("Starting %s over: %s.", self._place.published.file, error)
                self._discard()
            except _LostConnectionError as error:
                if self._have() >= furthest + _PROGRESS:
                    furthest, failures = self._have(), 0
                failures += 1
                if failures > self._retries:
                    raise DownloadError(
                        f"{url} cannot be fetched: {error}. What has come so far "
                        f"({readable_size(self._have())}) is kept, and the next call goes on from "
                        f"there.\n{self._place.by_hand()}"
                    ) from error
                wait = min(self._backoff * 2 ** (failures - 1), _LONGEST_WAIT)
                logger.warning("%s: %s; trying again in %.0f s.", url, error, wait)
                time.sleep(wait)
        os.replace(self._part, output_file)
        self._discard()

    def _attempt(self, url: str) -> None:
        """Fetches what is missing, over one connection."""
        source = self._source(url)
        have = self._have() if source is not None else 0
        headers = {"Accept-Encoding": "identity"}  # so that lengths count the file's own bytes
        if source is not None and have:
            headers["Range"] = f"bytes={have}-"
            if source.validator is not None and source.validator.startswith('"'):
                headers["If-Range"] = source.validator
        try:
            response = requests.get(url, headers=headers, stream=True, timeout=self._timeout)
        except requests.RequestException as error:
            if isinstance(error, ValueError):  # there is no such address, today or tomorrow
                raise DownloadError(f"Expected the address of an archive, got {url!r}.") from error
            raise _LostConnectionError(_cause(error)) from error
        with response:
            if url.startswith("https:") and not response.url.startswith("https:"):
                raise DownloadError(
                    f"{url} leads to {response.url}, which is not encrypted, and was not followed."
                    f"\n{self._place.by_hand()}"
                )
            found, start = self._check_answer(url, response, source, have)
            self._receive(response, found, start)

    def _check_answer(
        self, url: str, response: requests.Response, source: _Source | None, have: int
    ) -> tuple[_Source, int]:
        """What the answer's bytes belong to, and at which byte of it they start."""
        status, length = response.status_code, _number(response.headers.get("Content-Length"))
        if status in _BUSY:
            raise _LostConnectionError(f"the server answered {status} {response.reason}")
        if status == 200:  # the whole, whatever was asked for
            return _Source(url, _validator(response), length), 0
        if not have or source is None or status not in (206, 416):  # 416: there is no such byte
            raise DownloadError(
                f"Expected the file at {url}, but the server answered {status} {response.reason}."
                f"\n{self._place.by_hand()}"
            )
        span = _RANGE.fullmatch(response.headers.get("Content-Range", ""))
        if span is None or int(span["first"]) != have:
            raise _ChangedFileError(f"the server does not go on from byte {have}")
        total = _number(span["total"])
        for before, now in ((source.validator, _validator(response)), (source.total, total)):
            if before is not None and now is not None and before != now:
                raise _ChangedFileError("the file has changed on the server")
        return _Source(url, source.validator, source.total or total), have

    def _receive(self, response: requests.Response, source: _Source, start: int) -> None:
        size = source.total or self._place.published.archive_bytes
        free_space_check(
            self._place.root, max(size - start, 0) + self._place.published.unpacked_bytes
        )
        if not start:
            self._discard()  # first, so that the notes never speak of another file's bytes
            write_atomically(self._notes, json.dumps(vars(source)).encode())
        bar: tqdm[NoReturn] = tqdm(
            total=source.total,
            initial=start,
            desc=self._place.published.file,
            unit="B",
            unit_scale=True,
            disable=None if self._progress else True,
        )
        with bar, self._part.open("ab") as file:
            for chunk in _chunks(response):
                file.write(chunk)
                bar.update(len(chunk))
        if source.total is not None and self._have() > source.total:
            self._discard()
            raise _LostConnectionError(
                f"more came than the {source.total} bytes that were announced"
            )
        if source.total is not None and self._have() < source.total:
            raise _LostConnectionError(
                f"the connection ended after {self._have()} of {source.total} bytes"
            )

    def _have(self) -> int:
        return self._part.stat().st_size if self._part.is_file() else 0

    def _source(self, url: str) -> _Source | None:
        """What is known of the bytes fetched so far; ``None`` where they cannot be gone on from."""
        try:
            noted = json.loads(self._notes.read_text(encoding="utf-8"))
            source = _Source(noted["url"], noted["validator"], noted["total"])
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return source if source.url == url else None

    def _discard(self) -> None:
        self._part.unlink(missing_ok=True)
        self._notes.unlink(missing_ok=True)


def _chunks(response: requests.Response) -> Iterator[bytes]:
    """The answer's bytes; failures of the connection, and no others, are lost connections."""
    chunks = response.iter_content(_CHUNK)
    while True:
        try:
            chunk = next(chunks, b"")
        except requests.RequestException as error:
            raise _LostConnectionError(f"the connection broke, {_cause(error)}") from error
        if not chunk:
            return
        yield chunk


def _validator(response: requests.Response) -> str | None:
    """The server's mark of a file's version: its entity tag, or else its time of change."""
    return response.headers.get("ETag") or response.headers.get("Last-Modified")


def _number(text: str | None) -> int | None:
    return int(text) if text is not None and text.isdecimal() else None


def _cause(error: BaseException) -> str:
    """What went wrong, in the words of the innermost error."""
    if isinstance(error, requests.ConnectTimeout | requests.ReadTimeout):
        return "the server did not answer in time"
    while (inner := error.__cause__ or error.__context__) is not None:
        error = inner
    return str(error) or type(error).__name__
