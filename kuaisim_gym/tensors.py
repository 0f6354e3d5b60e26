"""Tensors on disk: safetensors files with a format name, and the digest of their content."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from kuaisim_gym.disk import write_atomically
from kuaisim_gym.errors import CheckpointError

Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class TensorFile:
    """Content of a file of tensors.

    Attributes:
        path: The file, for messages.
        header: Texts by name, the format's among them.
        arrays: Tensors by name; writable copies.
    """

    path: str | Path
    header: dict[str, str]
    arrays: dict[str, NDArray[Any]]


def save_tensors(path: str | Path, format_name: str, arrays: Arrays, **header: str) -> None:
    """Writes a safetensors file under a temporary name and renames it.

    The same content gives the same bytes: safetensors itself orders the header at random.

    Args:
        path: The file.
        format_name: Name and version of the format, which :func:`open_tensors` expects.
        arrays: Tensors by name.
        header: Further texts by name.
    """
    rows = {name: np.asarray(array, order="C") for name, array in arrays.items()}
    content = save(rows, header | {"format": format_name})
    end = 8 + int.from_bytes(content[:8], "little")  # the header's length comes first
    fields = json.loads(content[8:end])
    fields["__metadata__"] = dict(sorted(fields["__metadata__"].items()))
    text = json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the format aligns the tensors behind it
    write_atomically(Path(path), len(text).to_bytes(8, "little") + text + content[end:])


@contextmanager
def open_tensors(path: str | Path, format_name: str, content: str) -> Iterator[TensorFile]:
    """Reads a file of :func:`save_tensors`; the block rebuilds an object from it.

    Args:
        path: The file.
        format_name: The expected format.
        content: Noun of the object, for messages, such as "state encoder".

    Yields:
        Header and tensors.

    Raises:
        CheckpointError: The file is missing, damaged or of another format, or the block fails for
            a missing, mistyped or misshapen value.
    """
    try:
        with safe_open(str(path), framework="np") as file:
            header = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be read as a {content}: {error}") from error
    if header.get("format") != format_name:
        raise CheckpointError(
            f"{path} is not a {content} of this version: expected format {format_name!r}, got "
            f"{header.get('format')!r}."
        )
    try:
        yield TensorFile(path, header, arrays)
    except CheckpointError:
        raise
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{path} is a damaged {content}: {error}") from error


def digest_of(arrays: Iterable[NDArray[Any]]) -> str:
    """16 hexadecimal digits that identify the bytes of arrays, in this order."""
    digest = hashlib.blake2b(digest_size=8)
    for array in arrays:
        digest.update(array.tobytes())
    return digest.hexdigest()
