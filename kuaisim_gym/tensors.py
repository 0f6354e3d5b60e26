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


MOST = 1e12  # no number of ours comes near it, and products of a few do not overflow


def save_tensors(path: str | Path, format_name: str, arrays: Arrays, **header: str) -> None:
    """Writes a safetensors file under a temporary name and renames it.

    The same content gives the same bytes: safetensors itself orders the header at random.

    Args:
        path: The file.
        format_name: Name and version of the format, which :func:`open_tensors` expects.
        arrays: Tensors by name.
        header: Further texts by name.

    Raises:
        CheckpointError: A tensor holds what :func:`open_tensors` refuses.
    """
    _check_numbers(f"This cannot be written to {path}", arrays)
    # Of arrays that are not contiguous safetensors 0.8.0 writes the memory as it lies, without a
    # word: other numbers (numpy.py:36 says that they "need to be contiguous and dense").
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
        CheckpointError: The file is missing, damaged or of another format; a tensor holds numbers
            that are not finite, or absurd; or the block fails for a missing, mistyped or misshapen
            value.
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
    _check_numbers(f"{path} is a damaged {content}", arrays)
    try:
        yield TensorFile(path, header, arrays)
    except CheckpointError:
        raise
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{path} is a damaged {content}: {error}") from error


def _check_numbers(problem: str, arrays: Arrays) -> None:
    """Refuses tensors with NaN, infinity or absurd numbers, from which networks make silent NaN."""
    for name, array in arrays.items():
        if array.dtype.kind != "f":
            continue
        wide = array.astype(np.float32) if array.itemsize < 4 else array  # MOST is inf in float16
        wrong = array[~(np.abs(wide) <= MOST)]  # NaN, too
        if wrong.size:
            raise CheckpointError(
                f"{problem}: {name} must hold finite numbers of at most {MOST:g}, got "
                f"{wrong.flat[0]}. Fit it again."
            )


def digest_of(arrays: Iterable[NDArray[Any]]) -> str:
    """16 hexadecimal digits that identify the bytes of arrays, in this order."""
    digest = hashlib.blake2b(digest_size=8)
    for array in arrays:
        digest.update(array.tobytes())
    return digest.hexdigest()
