"""KuaiRand's split of its users into test and train users."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def is_test_user(user_ids: NDArray[np.integer]) -> NDArray[np.bool_]:
    """Tells test users, whose random-log rows are the test table: always the same half.

    The side follows from the id alone, so that it does not depend on the variant, the order of
    rows, or which users a log happens to hold. It is the lowest bit of SplitMix64's output function
    (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014) of the id.

    Args:
        user_ids: Integers of any shape.

    Returns:
        Bools of the same shape.
    """
    bits = np.asarray(user_ids).astype(np.int64).view(np.uint64)
    with np.errstate(over="ignore"):  # it wraps around by design
        bits = bits + np.uint64(0x9E3779B97F4A7C15)
        bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray((bits ^ (bits >> np.uint64(31))) & np.uint64(1), dtype=bool)
