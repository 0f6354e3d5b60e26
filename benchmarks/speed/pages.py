"""Tables of measured figures on pages, between ``<!-- name -->`` and ``<!-- /name -->``."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

from kuaisim_gym.disk import write_atomically

from ..commands import add_folder, place
from ..formatting import markdown_table
from ..reports.report import marked
from ..studies.results import Result, read_result
from .vectors import verdict


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    add_folder(parser)
    parser.add_argument("--pages", nargs="+", type=place, required=True, metavar="FILE",
                        help="pages whose tables are renewed: " + ", ".join(TABLES))  # fmt: skip


def main(options: argparse.Namespace) -> None:
    """Renews the tables and prints the names of the pages."""
    for page in options.pages:
        text = renewed(page.read_text(encoding="utf-8"), options.folder)
        write_atomically(page, text.encode())
        print(page)


def renewed(page: str, folder: Path) -> str:
    """The text of a page with today's tables of a folder of measurements."""
    for name, (study, table) in TABLES.items():
        page = marked(page, name, partial(_text, table, folder / f"{study}.json"))
    return page


def _text(table: Callable[[Any], str], path: Path) -> str:
    return table(read_result(path))


def large(study: Result) -> str:
    """Cost of each size of log, and what the whole would need."""
    columns = {
        "rows": "rows", "users": "users", "videos": "videos", "videos kept": "videos_kept",
        "load, s": "load_s", "load, GB": "load_MB", "fit, s": "fit_s", "fit, GB": "fit_MB",
        "session, s": "session_s", "peak, GB": "MB_peak",
    }  # fmt: skip
    sizes = _table(study["sizes"], columns)
    growth = {
        "rows": "rows", "load and fit, s": "load_and_fit_s",
        "s a million rows": "s_a_million_rows", "of the first": "of_the_first",
        "peak, GB": "MB_peak",
    }  # fmt: skip
    return f"{sizes}\n\n{_table(study['growth'], growth)}"


def vectors(study: Result) -> str:
    """Cost of a step by the way in which sessions are spread, and where that pays."""
    columns = {
        "way": "way", "sessions": "sessions", "asking, us": "asking_us",
        "answering, us": "answering_us", "user-steps a second": "user_steps_a_second",
        "by the wall": "by_the_wall",
    }  # fmt: skip
    return f"{_table(study['vectors'], columns)}\n\n{verdict(study['vectors'])}"


def scale(study: Result) -> str:
    """Measured figures of a service."""
    columns = {
        "agent": "agent", "requests together": "requests_together",
        "ms a request": "ms_a_request", "requests a core-second": "requests_a_core_second",
    }  # fmt: skip
    return _table(study["requests"], columns)


def users(study: Result) -> str:
    """Memory of users."""
    columns = {"of each user": "of each user", "bytes": "bytes", "MB a million users":
               "MB_a_million_users"}  # fmt: skip
    return _table(study["users"], columns)


def renewal(study: Result) -> str:
    """Times of new popularity and of new fits."""
    columns = {"renewed": "renewed", "items": "items", "rows": "rows",
               "processor ms": "processor_ms"}  # fmt: skip
    return _table(study["renewal"], columns)


def million(study: Result) -> str:
    """The arithmetic of a million users."""
    columns = {"of a million users": "of a million users", "number": "number"}
    return _table(study["a million users"], columns)


TABLES: dict[str, tuple[str, Callable[[Any], str]]] = {
    "large": ("large", large),
    "vectors": ("vectors", vectors),
    "scale": ("scale", scale),
    "scale-users": ("scale", users),
    "scale-renewal": ("scale", renewal),
    "scale-million": ("scale", million),
}


def _table(rows: list[Any], columns: dict[str, str]) -> str:
    """A table of some columns, by title; of those in MB that are called GB, in GB."""
    first = rows[0]
    align = "".join("l" if isinstance(first[key], str) else "r" for key in columns.values())
    body = (_cells(row, columns) for row in rows)
    return markdown_table(columns, body, align)


def _cells(row: Any, columns: dict[str, str]) -> Iterable[str]:
    for title, key in columns.items():
        value = row[key]
        if title.endswith("GB"):
            value = float(value) / 1e3
        if isinstance(value, float):
            yield f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
        else:
            yield value if isinstance(value, str) else f"{value:,}"
