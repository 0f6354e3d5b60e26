"""Unpacks untrusted archives: all files into one folder, or nothing.

Each member is checked before it is written, and one bad member refuses the archive. Headers are not
trusted: names, kinds and sizes are checked, and bytes are counted as they are written.
"""

from __future__ import annotations

import errno
import gzip
import io
import os
import re
import stat
import struct
import tarfile
import unicodedata
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from kuaisim_gym.disk import disk_errors, free_space, new_folder, readable_size
from kuaisim_gym.errors import DataFormatError, DatasetNotFoundError, DiskSpaceError, KuaiSimError

Select = Callable[[str], bool]

ENDINGS = (".zip", ".tar", ".tar.gz", ".tgz")
_CHUNK = 1 << 20
_MAX_MEMBERS = 10_000
_MAX_COMPONENT = 255  # bytes of one folder's or file's name; common file systems take no more
_MAX_NAME = 1024  # bytes of a member's whole name
_MAX_DEPTH = 32  # folders and the file in a member's name
_MAX_HEADER = 1 << 16  # bytes of a tar member's headers, extended ones included
_MAX_TAIL = 1 << 20  # bytes after a tar's last member; writers pad with zeros
_RESERVED = re.compile(r"(con|prn|aux|nul|com[0-9¹²³]|lpt[0-9¹²³]|conin\$|conout\$) *(\..*)?", re.I)
_FORBIDDEN = frozenset('<>:"|?*')  # on Windows; the colon also ends a drive's name
_END_RECORD = b"PK\5\6"  # signature of the 22 bytes, and the comment, that end a zip
_SURPLUS = "got more bytes: is it two archives in one file?"
_ENCRYPTED = 0x1  # flag bit of a zip member

# Errors of the standard library on bytes that are no archive, or not all of one.
_DAMAGE = (
    EOFError,
    NotImplementedError,
    OverflowError,
    RecursionError,
    ValueError,
    gzip.BadGzipFile,
    struct.error,
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
)


def extract(archive: Path, folder: Path, select: Select | None = None) -> list[Path]:
    """Unpacks the regular files of an archive.

    The files are written under a temporary name next to ``folder`` and renamed, so that readers see
    all of them or nothing. Permissions, owners and times are not taken over.

    Args:
        archive: A .zip, .tar, .tar.gz or .tgz file.
        folder: Target folder; must be absent or empty.
        select: Whether to unpack a file, by its name in the archive, with ``/`` between folders;
            ``None`` unpacks all. Other members are checked, too.

    Returns:
        The files, in the archive's order.

    Raises:
        DatasetNotFoundError: There is no such archive.
        DataFormatError: It is damaged or cut short, or has a member that must not be unpacked: a
            link, a device, an encrypted file, a name that leads out of the folder or that some
            system cannot write, or two names for one file; or it holds more than one archive.
        DiskSpaceError: Its files need more space than is free.
        StorageError: The folder cannot be written.
        KuaiSimError: The folder is in use.
    """
    if not archive.is_file():
        raise DatasetNotFoundError(f"Expected an archive at {archive}, but there is no such file.")
    name = archive.name.lower()
    if not name.endswith(ENDINGS):
        raise DataFormatError(
            f"Expected an archive named {', '.join(ENDINGS)}, got {archive}. Unpack it by hand and "
            f"give the folder."
        )
    with disk_errors(folder):
        if folder.exists() and any(folder.iterdir()):
            raise KuaiSimError(f"Expected {folder} to be absent or empty. Remove what is in it.")
    with new_folder(folder) as temporary:
        unpacking = _Unpacking(archive, temporary, select)
        with _damage(archive):
            if name.endswith(".zip"):
                _unpack_zip(unpacking)
            else:
                _unpack_tar(unpacking)
    return [folder / file for file in unpacking.files]


@contextmanager
def _damage(archive: Path) -> Iterator[None]:
    """Tells damage of an archive from what the disk refuses.

    Raises:
        DataFormatError: The archive is damaged.
        OSError: The disk cannot be written.
    """
    try:
        yield
    except KuaiSimError:
        raise
    except _DAMAGE as error:
        raise DataFormatError(
            f"{archive} is damaged or cut short ({type(error).__name__}: {error}). Get it again."
        ) from error
    except OSError as error:
        if error.errno in (None, errno.EINVAL):  # no system's refusal, or a place before the start
            raise DataFormatError(f"{archive} is damaged ({error}). Get it again.") from error
        raise


class _Unpacking:
    """Unpacking of one archive into one folder: the rules for every kind of archive."""

    def __init__(self, archive: Path, folder: Path, select: Select | None) -> None:
        self.archive = archive
        self.folder = folder
        self.files: list[Path] = []
        self._select = select
        self._room = free_space(folder)
        self._n_members = 0
        self._file_keys: set[str] = set()
        self._folder_keys: set[str] = set()

    def refuse(self, member: str, why: str) -> DataFormatError:
        """Builds the error for a member that must not be unpacked."""
        return DataFormatError(
            f"{self.archive}, member {member[:200]!r}: {why}. Nothing was unpacked. Get the "
            f"archive again, from its publisher."
        )

    def claim_room(self, member: str, size: int) -> None:
        """Checks that there is room for a member of the size in its header."""
        if size < 0:
            raise self.refuse(member, f"expected a size of at least 0, got {size}")
        if size > self._room:
            raise DiskSpaceError(
                f"{self.archive}, member {member[:200]!r}: {readable_size(size)} more are to be "
                f"unpacked, but only {readable_size(self._room)} are free. Nothing was unpacked. "
                f"Free the disk, or do not trust the archive if that is more than it should hold."
            )

    def admit(self, member: str, *, is_folder: bool) -> Path | None:
        """Checks a member's name.

        Returns:
            Path in the folder to write it to, or ``None`` if it is not to be written.
        """
        self._n_members += 1
        if self._n_members > _MAX_MEMBERS:
            raise self.refuse(member, f"expected at most {_MAX_MEMBERS} members")
        components = self._components(member)
        if not components:
            if is_folder:
                return None  # "./", the archive's own top
            raise self.refuse(member, "expected a file's name")
        # File systems differ in whether case and the spelling of accents tell files apart.
        keys = [unicodedata.normalize("NFC", component).casefold() for component in components]
        paths = ["/".join(keys[: depth + 1]) for depth in range(len(keys))]
        self._folder_keys.update(paths if is_folder else paths[:-1])
        if not is_folder:
            if paths[-1] in self._file_keys:
                raise self.refuse(member, "two members have this name, but for case perhaps")
            self._file_keys.add(paths[-1])
        for path in paths:
            if path in self._file_keys and path in self._folder_keys:
                raise self.refuse(member, f"{path!r} is both a file and a folder")
        name = "/".join(components)
        if is_folder or (self._select is not None and not self._select(name)):
            return None
        return Path(*components)

    def write(self, member: str, file: Path, content: IO[bytes]) -> None:
        """Writes a member that was admitted."""
        target = self.folder / file
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("xb") as out:
            while chunk := content.read(_CHUNK):
                self.claim_room(member, len(chunk))
                self._room -= len(chunk)
                out.write(chunk)
        self.files.append(file)

    def _components(self, member: str) -> list[str]:
        try:
            size = len(member.encode())
        except UnicodeEncodeError as error:
            raise self.refuse(member, "expected a name in UTF-8") from error
        components = [component for component in member.split("/") if component not in ("", ".")]
        control = any(unicodedata.category(letter) == "Cc" for letter in member)
        long = any(len(component.encode()) > _MAX_COMPONENT for component in components)
        for is_broken, rule in (
            (size > _MAX_NAME, f"a name of at most {_MAX_NAME} bytes, got {size}"),
            ("\\" in member or control, "a name without backslashes and control characters"),
            (member.startswith("/"), "a relative name, got an absolute one"),
            (len(components) > _MAX_DEPTH, f"at most {_MAX_DEPTH} parts in the name"),
            (".." in components, "a name inside the archive, got one with '..'"),
            (bool(_FORBIDDEN & set(member)), 'a name without < > : " | ? *, for Windows'),
            (any(name.endswith((".", " ")) for name in components), "no dot or blank at the end"),
            (any(map(_RESERVED.fullmatch, components)), "no name of a device of Windows"),
            (long, f"parts of at most {_MAX_COMPONENT} bytes in the name"),
        ):
            if is_broken:
                raise self.refuse(member, f"expected {rule}")
        return components


def _unpack_zip(unpacking: _Unpacking) -> None:
    with zipfile.ZipFile(unpacking.archive) as archive:
        _check_ends(unpacking, archive)
        chosen: list[tuple[zipfile.ZipInfo, Path]] = []
        for member in archive.infolist():
            name = member.orig_filename  # the other one is cut at a zero byte
            kind = stat.S_IFMT(member.external_attr >> 16)
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise unpacking.refuse(name, "expected a regular file, got a link or a device")
            if member.flag_bits & _ENCRYPTED:
                raise unpacking.refuse(name, "expected a file that is not encrypted")
            if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise unpacking.refuse(name, "expected a file that is stored or deflated")
            if (file := unpacking.admit(name, is_folder=name.endswith("/"))) is not None:
                chosen.append((member, file))
        unpacking.claim_room("(all together)", sum(member.file_size for member, _ in chosen))
        for member, file in chosen:
            with archive.open(member) as content:
                unpacking.write(member.filename, file, content)


def _check_ends(unpacking: _Unpacking, archive: zipfile.ZipFile) -> None:
    """Refuses a zip with bytes before or after it, such as a second one, which is not read."""
    before = min((member.header_offset for member in archive.infolist()), default=archive.start_dir)
    if before:
        raise unpacking.refuse("(before the first one)", f"expected nothing, {_SURPLUS}")
    size = len(archive.comment)
    with unpacking.archive.open("rb") as content:
        content.seek(-22 - size, os.SEEK_END)
        end = content.read(22)
    if not end.startswith(_END_RECORD) or int.from_bytes(end[-2:], "little") != size:
        raise unpacking.refuse(
            "(after the last one)", f"expected the end of the archive, {_SURPLUS}"
        )


def _unpack_tar(unpacking: _Unpacking) -> None:
    plain = unpacking.archive.name.lower().endswith(".tar")
    with unpacking.archive.open("rb") if plain else gzip.open(unpacking.archive) as stream:
        metered = _Metered(stream)
        metered.allowance = _MAX_HEADER
        with tarfile.TarFile(fileobj=metered, tarinfo=_TarMember) as archive:
            while True:
                metered.allowance = _MAX_HEADER
                if (member := archive.next()) is None:
                    break
                name, size = member.name, member.size
                if size < 0:
                    raise unpacking.refuse(name, f"expected a size of at least 0, got {size}")
                if not member.isdir() and (not member.isreg() or member.issparse()):
                    raise unpacking.refuse(name, "expected a regular file, got a link or a device")
                file = unpacking.admit(name, is_folder=member.isdir())
                if file is None:
                    continue
                unpacking.claim_room(name, size)
                content = archive.extractfile(member)
                if content is None:
                    raise unpacking.refuse(name, "expected a regular file")
                metered.allowance = None
                with content:
                    unpacking.write(name, file, content)
        # To the end: only there does gzip compare its checksum, and a second archive show.
        tail = stream.read(_MAX_TAIL)
        if tail.strip(b"\0") or stream.read(1):
            raise unpacking.refuse(
                "(after the last one)", f"expected the end of the archive, {_SURPLUS}"
            )


class _TarMember(tarfile.TarInfo):
    """A header block; one that is neither a header nor the end is an error, not the end."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> _TarMember:
        try:
            return super().frombuf(buf, encoding, errors)
        except tarfile.HeaderError as error:
            if len(buf) == tarfile.BLOCKSIZE and not any(buf):
                raise  # the block of zeros that ends every archive
            raise tarfile.ReadError(f"expected a header or the end, {error}") from error


class _Metered(io.RawIOBase):
    """Stream with a limit on the bytes read, because a header can ask for any length."""

    def __init__(self, stream: io.BufferedIOBase) -> None:
        self._stream = stream
        self.allowance: int | None = 0

    def read(self, size: int | None = -1, /) -> bytes:
        if self.allowance is not None:
            if size is None or not 0 <= size <= self.allowance:
                raise tarfile.ReadError(f"a header is longer than {_MAX_HEADER} bytes")
            self.allowance -= size
        return self._stream.read(-1 if size is None else size)

    def seek(self, offset: int, whence: int = 0, /) -> int:
        return self._stream.seek(offset, whence)

    def tell(self) -> int:
        return self._stream.tell()
