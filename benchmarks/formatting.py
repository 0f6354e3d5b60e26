"""Means over seeds, and the format of numbers and tables in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student_t


def mean_and_ci95(values: Sequence[float]) -> tuple[float, float]:
    """Mean and half-width of Student's 95 % interval; NaN half-width for a single value."""
    if len(values) < 2:
        return float(np.mean(values)), float("nan")
    error = float(np.std(values, ddof=1)) / np.sqrt(len(values))
    return float(np.mean(values)), float(student_t.ppf(0.975, len(values) - 1)) * float(error)


def mean_and_ci95_by_user(
    values: NDArray[np.floating], users: NDArray[np.integer]
) -> tuple[float, float]:
    """Mean of sessions, and half-width of its 95 % interval with users as independent units.

    Where answers are looked up, a user's sessions repeat each other: n sessions of few users are
    worth little more than these users. Where each user has one session it is the usual interval.

    Args:
        values: (n,) one a session.
        users: (n,) whose sessions they are.

    Returns:
        Both; NaN half-width for a single user.
    """
    names, owner = np.unique(users, return_inverse=True)
    mean, n_users = float(np.mean(values)), len(names)
    if n_users < 2:
        return mean, float("nan")
    off = np.bincount(owner, values - mean)
    error = float(np.sqrt(n_users / (n_users - 1) * np.sum(off**2))) / len(values)
    return mean, float(student_t.ppf(0.975, n_users - 1)) * error


def interval(values: Sequence[float], digits: int = 3, sign: str = "") -> str:
    """Mean ± half-width of the 95 % interval; the mean alone of one value, empty without values.

    Args:
        values: One per seed.
        digits: Decimal places.
        sign: ``"+"`` to print the sign of positive means.
    """
    if not values:
        return ""
    mean, half = mean_and_ci95(values)
    spread = f" ± {half:.{digits}f}" if len(values) > 1 else ""
    return f"{mean:{sign}.{digits}f}{spread}"


def markdown_table(header: Iterable[str], rows: Iterable[Iterable[str]], align: str = "lr") -> str:
    """A table in Markdown, with unpadded cells: a changed number changes only its line.

    Args:
        header: Titles of the columns.
        rows: Cells by row.
        align: ``l`` or ``r`` for each column; the last letter also applies to further columns.
    """
    header = tuple(header)
    rules = ("--:" if side == "r" else "---" for side in align.ljust(len(header), align[-1]))
    lines = [f"| {' | '.join(cells)} |" for cells in (header, *rows)]
    return "\n".join([lines[0], f"|{'|'.join(rules)}|", *lines[1:]])


def section(title: str, *blocks: str) -> str:
    """Markdown of a heading and the blocks below it; empty blocks are left out."""
    return "\n\n".join([f"### {title}", *filter(None, blocks)])
