"""The ``report`` command: all tables of a folder in one of its files, or one page on some runs."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

from kuaisim_gym.disk import check_writable, write_atomically
from kuaisim_gym.errors import ConfigError

from .. import cost, exposure, halves, labels, paper
from ..ab import report as ab
from ..commands import place
from ..days import report as days
from ..estimates import phase
from ..estimates import report as estimates
from ..figures import command as figures
from ..formatting import NOT_MADE
from ..ope import report as ope
from ..pareto import report as pareto
from ..prose import Evidence, filled
from ..purify import report as purify
from ..runs import tuning
from ..studies.results import RUN, Result, read_results, studies_in, world_of
from . import answers, front, stability
from .page import page_of, runs_of
from .plots import save_small
from .standings import board_of, draw_profiles, leaderboard, statistics
from .tables import ladder, markdown, summary

INTRODUCTION = """# Results

Made by the commands of `python -m benchmarks`; each JSON file here names its code and versions.
"""


def _of(study: str, table: Callable[[list[Result]], str]) -> Callable[[Evidence], str]:
    """A table of a study's results in today's worlds."""

    def text(evidence: Evidence) -> str:
        results = evidence.studies(study)
        return table(results).strip() if results else NOT_MADE

    return text


# Tables that a page may hold between the comments <!-- name --> and <!-- /name -->.
PAGE_TABLES: dict[str, Callable[[Evidence], str]] = {
    "ladder": lambda evidence: ladder(evidence.runs),
    "summary": lambda evidence: summary(evidence.runs),
    "leaderboard": lambda evidence: leaderboard(evidence.runs),
    "statistics": lambda evidence: statistics(evidence.runs),
    "overall": answers.overall,
    "ablation": answers.ablation,
    "winners": answers.winners,
    "missing": answers.missing,
    "front": front.fronts,
    "ab": _of(ab.STUDY, ab.markdown),
    "cost": _of(cost.STUDY, cost.synthetic),
    "days": _of(days.STUDY, days.markdown),
    "estimates": _of(estimates.STUDY, lambda rows: estimates.summary(estimates.by_world(rows))),
    "ope": _of(ope.STUDY, ope.markdown),
    "ope-verdict": _of(ope.STUDY, ope.verdict),
    "panels": _of(
        exposure.STUDY, lambda rows: exposure.panels(exposure.example(exposure.by_policy(rows)))
    ),
    "searches": _of(tuning.STUDY, tuning.summary),
}
_MARK = r"<!--\s*(/?)([\w-]+)\s*-->"
PROFILES = "profiles.png"  # the figure beside the tables

# Title, name, reader and tables of each study beside the runs.
STUDIES: tuple[tuple[str, str, Callable[[Path], list[Result]], Callable[[Any], str]], ...] = (
    ("A/B tests", ab.STUDY, ab.read_studies, ab.markdown),
    ("The cost of balance", cost.STUDY, cost.read_studies, cost.CostStudy.markdown),
    ("Catalogues that change", days.STUDY, days.read_studies, days.markdown),
    ("State estimates", estimates.STUDY, estimates.read_studies, estimates.markdown),
    ("Worlds in which a state matters", phase.STUDY, phase.read_studies, phase.markdown),
    ("Halves of real users", halves.STUDY, halves.read_studies, halves.HalfStudy.markdown),
    ("Rankings by labels", labels.STUDY, labels.read_studies, labels.LabelStudy.markdown),
    ("Off-policy evaluation", ope.STUDY, ope.read_studies, ope.markdown),
    ("The fairness dial", pareto.STUDY, pareto.read_studies, pareto.markdown),
    (
        "Ten metrics of exposure", exposure.STUDY, exposure.read_studies,
        exposure.ExposureStudy.markdown,
    ),
    ("Purification", purify.STUDY, purify.read_studies, purify.markdown),
    ("Searches of hyper-parameters", tuning.STUDY, tuning.read_studies, tuning.TuneStudy.markdown),
)  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    add = parser.add_argument
    add("paths", type=place, nargs="+", metavar="RUN", help="result files, or folders of them")
    add(
        "--html", type=place, metavar="FILE",
        help="one page on the runs; default: all tables of one folder in its README.md",
    )  # fmt: skip
    add(
        "--pages", nargs="+", type=place, default=[], metavar="FILE",
        help="also renew what these pages hold between comments, default: none; values, "
        "<!-- = EXPRESSION -->, and tables, "
        + ", ".join(f"<!-- {name} -->" for name in PAGE_TABLES),
    )  # fmt: skip


def main(options: argparse.Namespace) -> None:
    """Writes the file and prints its name.

    Raises:
        ConfigError: Several paths, or a file, without ``--html``.
    """
    if options.html is not None:
        check_writable(options.html)
        write_atomically(options.html, page_of(runs_of(options.paths)).encode())
        print(options.html)
        return
    folder, *others = options.paths
    if others or not folder.is_dir():
        raise ConfigError("Tables are written into one folder of results: name it, or add --html.")
    path = folder / "README.md"
    if path.exists() and not path.read_bytes().startswith(INTRODUCTION.encode()):
        raise ConfigError(
            f"{path} is a page of yours, in whose place the tables would come: move it, or keep "
            "results in a folder of their own."
        )
    evidence = evidence_in(folder)
    # All of them are made before one is written: a faulty page leaves the others as they are.
    tables = report(folder, evidence)
    pages = {page: renewed_page(page, evidence) for page in options.pages}
    write_atomically(path, tables.encode())
    print(path)
    if board := board_of(evidence.runs):
        print(save_small(draw_profiles(board), folder / PROFILES))
    own_folder = folder / exposure.STUDY
    panels = exposure.draw_all(
        evidence.studies(exposure.STUDY), own_folder if own_folder.is_dir() else folder
    )
    for path in [*front.draw_all(evidence, folder), *panels]:
        print(path)
    for page, content in pages.items():
        write_atomically(page, content)
        print(page)


def evidence_in(folder: Path) -> Evidence:
    """Results of a folder that pages speak of; each study is read once.

    Raises:
        DataFormatError: A file is not a result, or a measurement has two files.
    """
    present = studies_in(folder)
    readers = {study: read for _, study, read, _ in STUDIES}
    known = present | readers.keys() | figures.STUDIES
    if ab.INTERFERENCE in present:  # which is read with the tests
        present |= {ab.STUDY}

    @cache
    def read(study: str) -> list[Result]:
        if study not in known:
            raise ValueError(f"a study instead of {study!r}: one of {', '.join(sorted(known))}")
        if study not in present:
            return []
        if study in readers:
            return readers[study](folder)
        return read_results(folder, study, frozenset({"study"}), identity=None)

    return Evidence(read_results(folder) if RUN in present else [], read)


def renewed_page(page: Path, evidence: Evidence) -> bytes:
    """The content of a page with today's tables and values; lines end as they did.

    Raises:
        ConfigError: It is not there, is no text, or has a malformed expression or mark.
    """
    try:
        text = page.read_bytes().decode()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--pages names pages of UTF-8 text, got {page}: {error}.") from error
    end = "\r\n" if "\r\n" in text else "\n"
    return renewed(text.replace(end, "\n"), evidence, str(page)).replace("\n", end).encode()


def renewed(text: str, evidence: Evidence, page: str) -> str:
    """The text of a page with today's tables and values between its comments.

    Args:
        text: Markdown.
        evidence: Results.
        page: Name of the page, for errors.

    Raises:
        ConfigError: An expression or a mark of the page is malformed.
    """
    check_marks(text, page)
    for name, table in PAGE_TABLES.items():
        text = marked(text, name, partial(table, evidence))
    return filled(text, evidence, page)


def check_marks(text: str, page: str) -> None:
    """Checks that the tables' marks of a page are pairs, a line each, and that all are known.

    Raises:
        ConfigError: One would stay as it is without a word.
    """
    marks = re.findall(_MARK, text)
    ended = {name for slash, name in marks if slash}
    names = [name for _, name in marks if name in ended or name in PAGE_TABLES]
    for name in dict.fromkeys(names):
        if name not in PAGE_TABLES:
            raise ConfigError(
                f"{page}: <!-- {name} --> is no table: expected one of {', '.join(PAGE_TABLES)}."
            )
        pair = rf"^<!-- {name} -->\n(?:.*\n)?<!-- /{name} -->$"
        match = re.search(pair, text, re.MULTILINE | re.DOTALL)
        if names.count(name) != 2 or not match:
            raise ConfigError(
                f"{page}: expected <!-- {name} --> and <!-- /{name} --> once, each in a line of "
                "its own."
            )
        inside = [mark for _, mark in re.findall(_MARK, match[0]) if mark in {*names} - {name}]
        if inside:
            raise ConfigError(
                f"{page}: <!-- {inside[0]} --> is inside <!-- {name} -->, whose table would come "
                "in its place: put it behind."
            )


def marked(page: str, name: str, text: Callable[[], str]) -> str:
    """The text of a page with a new one between the comments of a name, if it has them."""
    before, start, rest = page.partition(f"<!-- {name} -->\n")
    _, end, after = f"\n{rest}".partition(f"\n<!-- /{name} -->")
    return f"{before}{start}{text()}{end}{after}" if start and end else page


def report(folder: Path, evidence: Evidence | None = None) -> str:
    """Tables of all results in a folder and its subfolders, those of today's worlds first.

    Args:
        folder: The folder.
        evidence: Its results, where they have been read; ``None`` to read them.

    Raises:
        DataFormatError: There are none, a file is not a result, or a measurement has two files.
    """
    studies = studies_in(folder)
    if not studies:
        read_results(folder)  # says how results are made
    evidence = evidence or evidence_in(folder)
    runs = evidence.runs
    today, older = (
        [run for run in runs if world_of(run).is_older == is_older] for is_older in (False, True)
    )
    sections = {
        "Whole sessions at a glance": summary(runs),
        "Leaderboard": leaderboard(runs),
        "Statistics": statistics(runs),
        "The paper's tables": paper.markdown(today),
        "Agents": markdown(runs),
        "Who is not dominated": front.tables(evidence),
        "Stability": stability.markdown(stability.worlds_of(runs)),
        "The paper's tables in older worlds": paper.markdown(older),
    }
    for title, study, _, tables in STUDIES:
        if results := evidence.read(study):
            sections[title] = tables(results)
    texts = (f"## {title}\n\n{text.rstrip()}\n" for title, text in sections.items() if text.strip())
    return "\n".join([INTRODUCTION, *texts])
