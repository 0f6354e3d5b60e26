"""Means over seeds, and the format of numbers and tables: text, Markdown, LaTeX."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student_t

NOT_MADE = "not made"  # of a value whose runs do not exist
NOT_COMPARABLE = "not comparable"  # of agents trained for, or judged by, other numbers of sessions


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
    return f"{mean:{sign}z.{digits}f}{spread}"  # z: no minus before a zero


def markdown_table(header: Iterable[str], rows: Iterable[Iterable[str]], align: str = "lr") -> str:
    """A table in Markdown, with unpadded cells: a changed number changes only its line.

    Args:
        header: Titles of the columns.
        rows: Cells by row.
        align: ``l`` or ``r`` for each column; the last letter also applies to further columns.
    """
    header = tuple(header)
    rules = ("--:" if side == "r" else "---" for side in sides(align, len(header)))
    lines = [f"| {' | '.join(cells)} |" for cells in (header, *rows)]
    return "\n".join([lines[0], f"|{'|'.join(rules)}|", *lines[1:]])


def section(title: str, *blocks: str) -> str:
    """Markdown of a heading and the blocks below it; empty blocks are left out."""
    return "\n\n".join([f"### {title}", *filter(None, blocks)])


def sides(align: str, columns: int) -> str:
    """``l`` or ``r`` for each of some columns; the last letter also applies to further ones."""
    return align.ljust(columns, align[-1])


class TitledTable(NamedTuple):
    """A table that is printed in several formats.

    Attributes:
        title: Heading; empty for none.
        header: Titles of the columns.
        rows: Cells by row; further cells of short rows are empty.
        notes: Paragraphs and lists below it; empty ones are left out.
        align: ``l`` or ``r`` for each column; the last letter also applies to further columns.
    """

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = ()
    align: str = "lr"

    def markdown(self) -> str:
        """Markdown, with unpadded cells."""
        table = markdown_table(self.header, self.rows, self.align)
        return section(self.title, table, *self.notes) if self.title else table

    def text(self) -> str:
        """Columns of equal width, for a terminal."""
        rows = [tuple(self.header), *(self._padded(row) for row in self.rows)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        letters = sides(self.align, len(widths))
        lines = [
            "  ".join(
                cell.rjust(width) if side == "r" else cell.ljust(width)
                for cell, width, side in zip(row, widths, letters, strict=True)
            ).rstrip()
            for row in rows
        ]
        table = "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])
        return "\n\n".join(filter(None, [self.title, table, *self.notes]))

    def latex(self) -> str:
        """A ``table`` of LaTeX without packages; title and notes are its caption."""
        letters = sides(self.align, len(self.header))
        header, *rows = (
            f"{' & '.join(map(latex_text, self._padded(row)))} \\\\"
            for row in (self.header, *self.rows)
        )
        caption = " ".join(latex_text(text) for text in (self.title, *self.notes) if text)
        return "\n".join(
            [
                "\\begin{table}",
                *([f"\\caption{{{caption}}}"] if caption else []),
                f"\\begin{{tabular}}{{{letters}}}",
                "\\hline",
                header,
                "\\hline",
                *rows,
                "\\hline",
                "\\end{tabular}",
                "\\end{table}",
            ]
        )

    def _padded(self, row: Sequence[str]) -> tuple[str, ...]:
        return (*row, *[""] * (len(self.header) - len(row)))


FORMATS: dict[str, Callable[[TitledTable], str]] = {
    "text": TitledTable.text,
    "markdown": TitledTable.markdown,
    "latex": TitledTable.latex,
}
_LATEX = {
    "\\": "\\textbackslash{}", "~": "\\textasciitilde{}", "^": "\\textasciicircum{}",
    "±": "$\\pm$", "<": "$<$", ">": "$>$", "|": "$|$", "≥": "$\\geq$", "≤": "$\\leq$",
    **{character: f"\\{character}" for character in "&%$#_{}"},
}  # fmt: skip


def latex_text(text: str) -> str:
    """Text with the characters escaped that LaTeX would take for commands."""
    return re.sub("|".join(map(re.escape, _LATEX)), lambda match: _LATEX[match[0]], text)
