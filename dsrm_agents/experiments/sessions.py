"""Checks of the sessions that comparisons and guardrails are given, in one place."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kuaisim_gym.errors import DataFormatError

FloatArray = NDArray[np.float64]


def check_sessions(
    users: ArrayLike, treated: ArrayLike, numerator: ArrayLike, denominator: ArrayLike
) -> tuple[NDArray[np.int64], NDArray[np.bool_], FloatArray, FloatArray]:
    """Sessions of both arms as arrays.

    Args:
        users: (S,) ids, numbers or text, with S at least 1.
        treated: (S,) bool, or 0 and 1: sessions of the treatment arm.
        numerator: (S,) finite numbers.
        denominator: (S,) positive numbers.

    Returns:
        (S,) int64 numbers of the users from 0 on, in the order of their ids; (S,) bool; (S,)
        float64 numerators; (S,) float64 denominators.

    Raises:
        DataFormatError: Shapes differ, values are none of these, or a user is in both arms.
    """
    arms = np.asarray(treated)
    owner, a, b = check_ratio(users, numerator, denominator)
    if not len(owner) or arms.shape != owner.shape:
        raise DataFormatError(
            f"Sessions must be (S,) arrays of at least one session, got the shapes {owner.shape} "
            f"of users and {arms.shape} of treated."
        )
    if arms.dtype.kind not in "biuf" or not np.isin(arms, (0, 1)).all():
        raise DataFormatError(
            f"treated must be bools, or 0 and 1, got {arms.dtype} such as {arms[0]!r}: say of each "
            "session if its user is in the treatment arm."
        )
    arms = arms.astype(bool)
    treated_sessions = np.bincount(owner, arms)
    shared = np.flatnonzero((treated_sessions > 0) & (treated_sessions < np.bincount(owner)))
    if len(shared):
        name = np.asarray(users)[owner == shared[0]].tolist()[0]
        raise DataFormatError(
            f"A user must be in one arm, but {len(shared)} are in both, such as {name}: "
            "assign users, not sessions."
        )
    return owner, arms, a, b


def check_ratio(
    users: ArrayLike, numerator: ArrayLike, denominator: ArrayLike
) -> tuple[NDArray[np.int64], FloatArray, FloatArray]:
    """Sessions of one arm, or of both, as arrays; there may be none.

    Raises:
        DataFormatError: Shapes differ, or values are no ids, finite numbers and positive numbers.
    """
    names = np.asarray(users)
    try:
        a, b = np.asarray(numerator, dtype=np.float64), np.asarray(denominator, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise DataFormatError(
            f"A metric needs arrays of numbers, got {numerator!r:.60} over {denominator!r:.60}."
        ) from error
    shapes = [array.shape for array in (names, a, b)]
    if names.ndim != 1 or len(set(shapes)) > 1:
        raise DataFormatError(
            "Sessions must be (S,) arrays of users, numerators and denominators, got shapes "
            f"{shapes}."
        )
    if not (np.isfinite(a).all() and np.isfinite(b).all() and (b > 0).all()):
        raise DataFormatError(
            "A metric needs finite numerators and positive denominators: leave sessions out that "
            "have none."
        )
    if names.dtype == object:  # whose text is their name, as it is to `assign`
        names = names.astype(str)
    if names.dtype.kind == "f" and np.isnan(names).any():
        raise DataFormatError("users must be ids, got NaN: leave sessions out that have no user.")
    return np.unique(names, return_inverse=True)[1], a, b
