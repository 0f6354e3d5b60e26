"""Stable splits: the side of a user or row follows from ids alone."""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray


def is_test_user(user_ids: NDArray[np.integer]) -> NDArray[np.bool_]:
    """Tells KuaiRand's test users, whose random-log rows are the test table: always the same half.

    The side follows from the id alone, so that it does not depend on the variant, the order of
    rows, or which users a log happens to hold. It is the lowest bit of :func:`mixed`.

    Args:
        user_ids: Integers of any shape.

    Returns:
        Bools of the same shape.
    """
    bits = mixed(np.asarray(user_ids).astype(np.int64).view(np.uint64))
    return np.asarray(bits & np.uint64(1), dtype=bool)


def mixed(bits: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64's output function (Steele, Lea and Flood, OOPSLA 2014) of uint64 of any shape."""
    with np.errstate(over="ignore"):  # it wraps around by design
        bits = bits + np.uint64(0x9E3779B97F4A7C15)
        bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(bits ^ (bits >> np.uint64(31)))


def id_bits(ids: NDArray[np.integer] | NDArray[np.str_]) -> NDArray[np.uint64]:
    """(n,) uint64 that follow from the text of each id alone: its BLAKE2b hash."""
    hashes = (hashlib.blake2b(str(text).encode(), digest_size=8).digest() for text in ids.tolist())
    return np.frombuffer(b"".join(hashes), dtype="<u8").astype(np.uint64, copy=False)


def uniform(bits: NDArray[np.uint64]) -> NDArray[np.float64]:
    """Numbers in [0, 1) of well-mixed uint64 of any shape."""
    return np.asarray((bits >> np.uint64(11)) * 2.0**-53, dtype=np.float64)
