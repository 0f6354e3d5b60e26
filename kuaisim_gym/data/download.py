"""Downloads published archives: each is fetched once, checked and unpacked.

Everything lies in one folder, by default ``downloads`` in the cache: the archive, which is kept so
that it need not be fetched again; the folder it was unpacked to, which alone is needed from then
on; and, where no checksum is published, ``<archive>.md5`` with the one of the first download.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn
from urllib.parse import urljoin, urlsplit

import requests
from filelock import FileLock, Timeout
from tqdm import tqdm

from kuaisim_gym.config import check_choice
from kuaisim_gym.data.archive import extract
from kuaisim_gym.data.cache import cache_dir
from kuaisim_gym.data.source import SOURCES, ZENODO, PublishedArchive
from kuaisim_gym.disk import check_free_space, readable_size, write_atomically
from kuaisim_gym.errors import ConfigError, DataFormatError, DownloadError, KuaiSimError

_MARKER = ".archive.md5"  # in an unpacked folder: the md5 of the archive it came from
_MD5 = re.compile(r"[0-9a-f]{32}")
_RANGE = re.compile(r"bytes (?P<first>[0-9]+)-[0-9]+/(?P<total>[0-9]+|\*)")
_CHUNK = 1 << 16
_PROGRESS = 1 << 20  # bytes that prove a connection to be worth more attempts
_LONGEST_WAIT = 30.0  # seconds between attempts
_BUSY = frozenset({408, 425, 429, 500, 502, 503, 504})  # answers that may be others a little later

logger = logging.getLogger(__name__)


def archives() -> dict[str, PublishedArchive]:
    """Returns the archives of all sources, by name."""
    return {archive.name: archive for source in SOURCES.values() for archive in source.archives}


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
    """Fetches a published archive, checks it and unpacks it, and skips steps already done.

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
    * One process works while others wait.

    Args:
        name: ``"kuairec"``, ``"kuairand-pure"``, ``"kuairand-1k"``, ``"kuairand-27k"``, or another
            one of :func:`archives`.
        to: Folder for the archive and the unpacked folder; ``None`` for ``downloads`` in the cache.
        base_url: Where the records are: Zenodo, or a mirror with the same paths below it.
        timeout: Seconds without a byte after which a connection counts as lost.
        retries: Number of retries after successive lost connections without progress.
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
    published = archives()[check_choice("name", name, archives())]
    if timeout <= 0 or retries < 0 or backoff < 0:
        raise ConfigError(
            f"Expected timeout > 0, retries >= 0 and backoff >= 0, got {timeout}, {retries} and "
            f"{backoff}."
        )
    root = cache_dir() / "downloads" if to is None else Path(to).expanduser()
    url = published.url(base_url.rstrip("/"))
    fetched = _Download(published, root, url, timeout, retries, backoff, progress)
    try:
        if not fetched.is_unpacked():
            root.mkdir(parents=True, exist_ok=True)
            with _acquired(root / f"{published.file}.lock"):
                if not fetched.is_unpacked():  # another process may have been first
                    fetched.fetch_and_unpack()
    except KuaiSimError:
        raise
    except OSError as error:
        raise DownloadError(
            f"{published.file} cannot be kept in {root} ({error}). Choose a folder that can be "
            f"written."
        ) from error
    return fetched.folder


def fetch_file(
    url: str,
    file: Path,
    sha256: str | None = None,
    *,
    size: int | None = None,
    largest: int | None = None,
    timeout: float = 30.0,
    retries: int = 3,
    backoff: float = 1.0,
    progress: bool = True,
) -> None:
    """Fetches one file, as :func:`download` fetches archives, and checks it.

    What has come of it when it fails is not kept.

    Args:
        url: Its address.
        file: Its place, whose folder is there.
        sha256: Its checksum; ``None`` to take whatever comes.
        size: Its bytes; ``None`` to take however many come.
        largest: The most bytes that are taken where ``size`` is ``None``; ``None`` for any number.
        timeout: As for :func:`download`, as the rest.
        retries: Number of retries.
        backoff: Seconds.
        progress: Whether to show a progress bar.

    Raises:
        DownloadError: It cannot be fetched, or has another size or checksum.
        DiskSpaceError: The disk has too little room for it.
    """
    transfer = _Transfer(
        url, file, size or 0, 0, "", timeout, retries, backoff, progress,
        resumes=False, largest=largest if size is None else size,
    )  # fmt: skip
    try:
        transfer.fetch()
        content = transfer.unfinished.read_bytes()
        digest = hashlib.sha256(content).hexdigest()
        for fact, expected, actual in (
            ("of sha256", sha256, digest),
            ("with a size in bytes of", size, len(content)),
        ):
            if expected not in (None, actual):
                raise DownloadError(
                    f"Expected a file {fact} {expected} at {url}, got one of {actual}: it was "
                    "damaged on the way, or is another file. Nothing of it was kept; try again "
                    "later."
                )
        transfer.finish()
    finally:
        transfer.discard()


def archive_md5(folder: Path) -> str | None:
    """The md5 of the archive that :func:`download` unpacked there; ``None`` for other folders."""
    return _read_md5(folder / _MARKER)


class _LostConnectionError(Exception):
    """An attempt failed, and the next one may succeed."""


class _ChangedFileError(Exception):
    """The bytes fetched so far are not the beginning of the server's present file."""


class _RefusedRedirectError(Exception):
    """An answer leads to an address that is not followed; the message names it and says why."""


class _Session(requests.Session):
    """Follows redirects, but not from https to a plain address, nor to what is no address.

    Attributes:
        address: The address that was asked last.
    """

    def __init__(self, address: str) -> None:
        super().__init__()
        self.address = address

    def get_redirect_target(self, resp: requests.Response) -> str | None:
        if not resp.is_redirect:
            return None
        resp.close()  # its body, of any length, is not read
        location = resp.headers["location"]
        try:
            target = super().get_redirect_target(resp)
            address = urljoin(resp.url, target or "")
            scheme = urlsplit(address).scheme
        except ValueError as error:
            raise _RefusedRedirectError(f"{location!r}, which is no address ({error})") from error
        if scheme not in ("http", "https"):
            raise _RefusedRedirectError(f"{location!r}, which is not of http or https")
        if scheme == "http" and resp.url.startswith("https:"):
            raise _RefusedRedirectError(f"{location!r}, which is not encrypted")
        self.address = address
        return target


@dataclass(frozen=True)
class _Origin:
    """The remote file that the bytes fetched so far belong to; stored next to them."""

    url: str
    validator: str | None  # the server's mark of this version
    total: int | None  # its size, if the server told it


@dataclass(frozen=True)
class _Transfer:
    """The way of a remote file's bytes to this machine, which goes on where it was broken off.

    Attributes:
        url: The file's address.
        file: The file's place when all of it has come; its bytes come next to that.
        size: Its bytes, approximately: they serve to refuse a disk that is too small.
        further: Bytes of what is made of it.
        by_hand: End of the messages of errors: how to go on without this package.
        timeout: As for :func:`download`, as the rest.
        retries: Number of retries.
        backoff: Seconds.
        progress: Whether to show a progress bar.
        resumes: Whether the next call finds what has come before this one failed.
        largest: The most bytes that are taken; ``None`` for any number.
    """

    url: str
    file: Path
    size: int
    further: int
    by_hand: str
    timeout: float
    retries: int
    backoff: float
    progress: bool
    resumes: bool = True
    largest: int | None = None

    @property
    def unfinished(self) -> Path:
        """The bytes fetched so far."""
        return self.file.with_name(f"{self.file.name}.part")

    @property
    def notes(self) -> Path:
        """The origin of these bytes."""
        return self.file.with_name(f"{self.file.name}.part.json")

    def error(self, problem: str) -> DownloadError:
        """Builds an error that says how to go on."""
        return DownloadError(f"{problem}{self.by_hand}")

    def finish(self) -> None:
        """Gives the bytes that have come their file's name."""
        os.replace(self.unfinished, self.file)
        self.discard()

    def fetch(self) -> None:
        """Fetches all bytes, and resumes earlier attempts and calls."""
        furthest, failures = self._have(), 0
        while True:
            try:
                return self._attempt()
            except _ChangedFileError as error:
                logger.warning("Starting %s over: %s.", self.file.name, error)
                self.discard()
            except _LostConnectionError as error:
                if self._have() >= furthest + _PROGRESS:
                    furthest, failures = self._have(), 0
                failures += 1
                if failures > self.retries:
                    raise self.error(
                        f"{self.url} cannot be fetched: {error}.{self._kept()}"
                    ) from error
                wait = min(self.backoff * 2 ** (failures - 1), _LONGEST_WAIT)
                logger.warning("%s: %s; trying again in %.0f s.", self.url, error, wait)
                time.sleep(wait)

    def _kept(self) -> str:
        """A sentence on the bytes that the next call finds, if it does."""
        size = readable_size(self._have())
        told = f" The {size} that have come are kept, and the next call goes on from there."
        return told if self.resumes else ""

    def _attempt(self) -> None:
        """Fetches the missing bytes over one connection."""
        origin = self._origin()
        have = self._have() if origin is not None else 0
        headers = {"Accept-Encoding": "identity"}  # so that lengths count the file's own bytes
        if origin is not None and have:
            headers["Range"] = f"bytes={have}-"
            if origin.validator is not None and origin.validator.startswith('"'):
                headers["If-Range"] = origin.validator
        with _Session(self.url) as session, self._answer(session, headers) as response:
            self._receive(response, *self._check_answer(response, origin, have))

    def _answer(self, session: _Session, headers: Mapping[str, str]) -> requests.Response:
        """The server's answer, or that of the server to which it redirects."""
        try:
            return session.get(self.url, headers=headers, stream=True, timeout=self.timeout)
        except _RefusedRedirectError as error:
            raise self.error(f"{self.url} leads to {error}, and was not followed.") from error
        except requests.TooManyRedirects as error:
            raise self.error(
                f"{self.url} leads from one address to the next, more than "
                f"{session.max_redirects} times, and at last to {session.address}."
            ) from error
        except ValueError as error:  # there is no such address, today or tomorrow
            if session.address != self.url:
                raise self.error(
                    f"{self.url} leads to {session.address!r}, which is no address ({error})."
                ) from error
            raise DownloadError(f"Expected the address of a file, got {self.url!r}.") from error
        except requests.RequestException as error:
            raise _LostConnectionError(_cause(error) + self._led_to(session.address)) from error

    def _led_to(self, address: str) -> str:
        """A remark on the address that redirects led to; nothing where there were none."""
        return "" if address == self.url else f" at {address}, to which it leads"

    def _check_answer(
        self, response: requests.Response, origin: _Origin | None, have: int
    ) -> tuple[_Origin, int]:
        """Returns the file that the answer's bytes belong to, and the first one's offset in it."""
        status, length = response.status_code, _number(response.headers.get("Content-Length"))
        # A mark of the file's version: its entity tag, or else its time of change.
        validator = response.headers.get("ETag") or response.headers.get("Last-Modified")
        if status in _BUSY:
            raise _LostConnectionError(
                f"the server answered {status} {response.reason}{self._led_to(response.url)}"
            )
        if status == 200:  # all bytes, even where some were asked for
            return _Origin(self.url, validator, length), 0
        if not have or origin is None or status not in (206, 416):  # 416: there is no such byte
            raise self.error(
                f"Expected the file at {self.url}, but the server answered {status} "
                f"{response.reason}{self._led_to(response.url)}."
            )
        span = _RANGE.fullmatch(response.headers.get("Content-Range", ""))
        if span is None or int(span["first"]) != have:
            raise _ChangedFileError(f"the server does not go on from byte {have}")
        total = _number(span["total"])
        for before, after in ((origin.validator, validator), (origin.total, total)):
            if before is not None and after is not None and before != after:
                raise _ChangedFileError("the file has changed on the server")
        return _Origin(self.url, origin.validator, origin.total or total), have

    def _receive(self, response: requests.Response, origin: _Origin, start: int) -> None:
        self._check_size(origin.total or 0)
        size = origin.total or self.size
        check_free_space(self.file.parent, max(size - start, 0) + self.further)
        if not start:
            self.discard()  # first, so that the notes never speak of another file's bytes
            write_atomically(self.notes, json.dumps(vars(origin)).encode())
        bar: tqdm[NoReturn] = tqdm(
            total=origin.total,
            initial=start,
            desc=self.file.name,
            unit="B",
            unit_scale=True,
            disable=None if self.progress else True,
        )
        with bar, self.unfinished.open("ab") as file:
            for chunk in _chunks(response):
                self._check_size(file.tell() + len(chunk))  # some answers have no end
                file.write(chunk)
                bar.update(len(chunk))
        have, total = self._have(), origin.total
        if total is not None and have > total:
            self.discard()
            raise _LostConnectionError(f"more came than the {total} bytes that were announced")
        if total is not None and have < total:
            raise _LostConnectionError(f"the connection ended after {have} of {total} bytes")

    def _check_size(self, size: int) -> None:
        """Refuses a file of more bytes than are taken."""
        if self.largest is not None and size > self.largest:
            raise self.error(
                f"Expected a file with a size in bytes of at most {self.largest} at {self.url}, "
                f"got one of at least {size}: it is another file. Nothing of it was kept."
            )

    def _have(self) -> int:
        return self.unfinished.stat().st_size if self.unfinished.is_file() else 0

    def _origin(self) -> _Origin | None:
        """The file that the bytes fetched so far belong to; ``None`` if that is not certain."""
        try:
            origin = _Origin(**json.loads(self.notes.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None
        return origin if origin.url == self.url else None

    def discard(self) -> None:
        """Forgets the bytes that have come."""
        self.unfinished.unlink(missing_ok=True)
        self.notes.unlink(missing_ok=True)


@dataclass(frozen=True)
class _Download:
    """Download of one archive; the options are those of :func:`download`."""

    published: PublishedArchive
    root: Path
    url: str
    timeout: float
    retries: int
    backoff: float
    progress: bool

    @property
    def archive(self) -> Path:
        return self.root / self.published.file

    @property
    def folder(self) -> Path:
        return self.root / self.published.folder

    @property
    def pin(self) -> Path:
        """The md5 of the first download, where none is published."""
        return self.root / f"{self.published.file}.md5"

    @property
    def transfer(self) -> _Transfer:
        """The way of the archive's bytes; errors say how to go on without this package."""
        by_hand = (
            f"\nTo do it by hand:\n"
            f"  1. Open {self.published.url()} in a browser.\n"
            f"  2. Put the file at {self.archive}\n"
            f'  3. Call load_dataset("{self.published.dataset}", "{self.archive}"). It takes the '
            f"archive itself, the folder that it was unpacked to, or the data folder in that."
        )
        return _Transfer(
            self.url,
            self.archive,
            self.published.archive_bytes,
            self.published.unpacked_bytes,
            by_hand,
            self.timeout,
            self.retries,
            self.backoff,
            self.progress,
        )

    def expected_md5(self) -> str | None:
        """The published md5, or that of the first download."""
        if self.published.md5 is not None or not self.pin.exists():
            return self.published.md5
        md5 = _read_md5(self.pin)
        if md5 is None:
            raise DownloadError(
                f"Expected an md5 of 32 hexadecimal digits in {self.pin}, found something else. "
                f"Remove that file to accept the next {self.published.file} that is downloaded."
            )
        return md5

    def is_unpacked(self) -> bool:
        """Tells whether the folder holds the expected archive, or was filled by hand."""
        if not self.folder.is_dir() or not any(self.folder.iterdir()):
            return False
        if not (self.folder / _MARKER).exists():
            logger.info("%s was not unpacked here and is taken as it is.", self.folder)
            return True
        return archive_md5(self.folder) in {self.expected_md5()} - {None}

    def fetch_and_unpack(self) -> None:
        """Fetches and unpacks the archive, as far as needed."""
        md5, is_fresh = self._obtain()
        if archive_md5(self.folder) != md5:
            try:
                self._unpack(md5)
            except DataFormatError as error:
                if self.expected_md5() is None and is_fresh:
                    self.archive.unlink(missing_ok=True)
                    raise self.transfer.error(
                        f"The file at {self.url} is not the archive that was expected, and was "
                        f"removed: {error}"
                    ) from error
                raise DataFormatError(
                    f"{error} Remove {self.archive} to download it again."
                ) from error
        if self.expected_md5() is None:
            write_atomically(self.pin, f"{md5}  {self.published.file}\n".encode())
            message = "No md5 of %s is published; later downloads must have this one's, %s (%s)."
            logger.info(message, self.archive, md5, self.pin)

    def _obtain(self) -> tuple[str, bool]:
        """Returns the archive's md5, and whether it had to be downloaded."""
        expected = self.expected_md5()
        is_published = self.published.md5 is not None
        if self.archive.is_file():
            md5 = _file_md5(self.archive)
            if expected in (None, md5):
                return md5, False
            if not is_published:
                raise DownloadError(
                    f"{self.archive} has md5 {md5}, but {self.pin} says {expected}. Remove the "
                    f"archive to download it again, or remove {self.pin.name} to accept it."
                )
            message = "%s has md5 %s, the published one is %s: downloading it again."
            logger.warning(message, self.archive, md5, expected)
        self.transfer.fetch()
        md5 = _file_md5(self.transfer.unfinished)
        if expected not in (None, md5):
            self.transfer.discard()
            advice = (
                "It was damaged on the way, or is another file; try again later."
                if is_published
                else f"If a new version was published, remove {self.pin} to accept it."
            )
            raise self.transfer.error(
                f"Expected an archive of md5 {expected} at {self.url}, got one of md5 {md5}. "
                f"{advice}"
            )
        self.transfer.finish()
        return md5, True

    def _unpack(self, md5: str) -> None:
        """Unpacks the archive to its folder, and replaces the files of an earlier one."""
        for leftover in self.root.glob(f"{self.folder.name}.*.part"):  # of a killed process
            if leftover.is_dir():
                shutil.rmtree(leftover, ignore_errors=True)
        fresh = self.folder.with_name(f"{self.folder.name}.{uuid.uuid4().hex}.part")
        old = fresh.with_name(f"{fresh.name}.old.part")
        logger.info("Unpacking %s to %s.", self.archive, self.folder)
        try:
            extract(self.archive, fresh)
            (fresh / _MARKER).write_text(f"{md5}  {self.archive.name}\n", encoding="utf-8")
            if self.folder.exists():
                os.rename(self.folder, old)
            try:
                os.rename(fresh, self.folder)
            except OSError:
                if old.exists():
                    os.rename(old, self.folder)
                raise
        finally:
            shutil.rmtree(fresh, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def _file_md5(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, _md5).hexdigest()


def _md5() -> hashlib._Hash:
    return hashlib.md5(usedforsecurity=False)


def _read_md5(file: Path) -> str | None:
    """The md5 in a file as md5sum writes it; ``None`` without a valid one."""
    try:
        words = file.read_text(encoding="utf-8").split()
    except (OSError, UnicodeDecodeError):
        return None
    md5 = words[0].lower() if words else ""
    return md5 if _MD5.fullmatch(md5) else None


def _acquired(file: Path) -> AbstractContextManager[object]:
    """A lock that the end of a ``with`` block releases."""
    lock = FileLock(file)
    try:
        return lock.acquire(timeout=0)
    except Timeout:
        logger.warning("Waiting for another process that holds %s.", file)
        return lock.acquire()


def _chunks(response: requests.Response) -> Iterator[bytes]:
    """The answer's bytes; failures of the connection, and no others, are lost connections."""
    try:
        yield from response.iter_content(_CHUNK)
    except requests.RequestException as error:
        raise _LostConnectionError(f"the connection broke, {_cause(error)}") from error


def _number(text: str | None) -> int | None:
    return int(text) if text is not None and text.isdecimal() else None


def _cause(error: BaseException) -> str:
    """The reason of a failure, in the words of the innermost error."""
    if isinstance(error, requests.ConnectTimeout | requests.ReadTimeout):
        return "the server did not answer in time"
    while (inner := error.__cause__ or error.__context__) is not None:
        error = inner
    return str(error) or type(error).__name__
