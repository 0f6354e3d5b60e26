"""Sets of items as bits: bit i of byte j stands for item 8 j + i, as NumPy's little bit order."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

BitArray = NDArray[np.uint8]


def width(n_items: int) -> int:
    """Bytes that hold a bit for each of some items."""
    return (n_items + 7) // 8


def pack(flags: NDArray[np.bool_]) -> BitArray:
    """Packs (N, n_items) bool into (N, ceil(n_items / 8)) bits."""
    return np.packbits(flags, axis=1, bitorder="little")


def unpack(bits: BitArray, n_items: int) -> NDArray[np.bool_]:
    """Unpacks (N, ceil(n_items / 8)) bits into (N, n_items) bool."""
    return np.unpackbits(bits, axis=1, count=n_items, bitorder="little").view(np.bool_)


def contains(
    bits: BitArray, rows: NDArray[np.integer], items: NDArray[np.integer]
) -> NDArray[np.bool_]:
    """Tells which of some items are in sets.

    Args:
        bits: (N, width) sets.
        rows: (n,) which of the sets.
        items: (n, K) item positions.

    Returns:
        (n, K) bool.
    """
    byte = bits[rows[:, None], items >> 3]
    found: NDArray[np.bool_] = (byte & (1 << (items & 7))).astype(np.bool_)
    return found
