"""Assignment of users to arms, by a hash that anybody can compute again."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from kuaisim_gym.config import check_whole, check_within
from kuaisim_gym.errors import ConfigError

_RANGE = 2**64


def assign(users: Iterable[object], salt: str, share: float = 0.5) -> NDArray[np.bool_]:
    """Users of the treatment arm.

    A user is in the same arm in all sessions, processes and versions of Python, and the arms of
    tests with different salts are independent: SHA-256 of ``salt:user`` is a number in [0, 1), and
    the treatment has what is below its share.

    Args:
        users: n ids, whose text is hashed: 7 and "7" are one user.
        salt: Name of the test.
        share: Of the users who are treated, in (0, 1).

    Returns:
        (n,) bool.

    Raises:
        ConfigError: The share is outside (0, 1), or users are no ids but a text or a number.
    """
    if isinstance(users, (str, bytes)) or not isinstance(users, Iterable):
        raise ConfigError(f"users must be ids, such as a list of them, got {users!r}.")
    limit = check_within("share", share, "(0, 1)") * _RANGE
    digests = (hashlib.sha256(f"{salt}:{user}".encode()).digest() for user in users)
    return np.array([int.from_bytes(digest[:8], "big") < limit for digest in digests], dtype=bool)


def imbalance_p_value(treated: int, users: int, share: float = 0.5) -> float:
    """Two-sided p-value of the number of users in the treatment arm, by the normal approximation.

    A tiny one says that users were lost or counted twice in one arm (a sample ratio mismatch):
    such a test compares users who differ, and its effect is worth nothing.

    Args:
        treated: Users in the treatment arm, at most ``users``.
        users: Users in both, at least one.
        share: Of the users who should be treated, in (0, 1).

    Raises:
        ConfigError: A number is out of range.
    """
    users = check_whole("users", users, 1)
    treated = check_whole("treated", treated, 0)
    if treated > users:
        raise ConfigError(
            f"treated must be at most the {users} users of both arms, got {treated}: users counts "
            "both arms together."
        )
    share = check_within("share", share, "(0, 1)")
    error = math.sqrt(users * share * (1.0 - share))
    return math.erfc(abs(treated - users * share) / error / math.sqrt(2.0))
