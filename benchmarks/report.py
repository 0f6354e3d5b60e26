"""The ``report`` command: all tables of a folder of results in one file of the folder."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kuaisim_gym.data.cache import write_atomically

from . import cost, exposure, halves, labels, paper, stability, tuning
from .commands import add_folder
from .estimates import phase
from .estimates import report as estimates
from .pareto import report as pareto
from .purify import report as purify
from .results import RUN, Result, read_results, studies_in, world_of
from .tables import markdown, summary

INTRODUCTION = """# Results

Made by the commands of `python -m benchmarks`; each JSON file here names its code and versions.
"""

add_arguments = add_folder

# Title, name, reader and tables of each study beside the runs.
STUDIES: tuple[tuple[str, str, Callable[[Path], list[Result]], Callable[[Any], str]], ...] = (
    ("The cost of balance", cost.STUDY, cost.read_studies, cost.CostStudy.markdown),
    ("State estimates", estimates.STUDY, estimates.read_studies, estimates.markdown),
    ("Worlds in which a state matters", phase.STUDY, phase.read_studies, phase.markdown),
    ("Halves of real users", halves.STUDY, halves.read_studies, halves.HalfStudy.markdown),
    ("Rankings by labels", labels.STUDY, labels.read_studies, labels.LabelStudy.markdown),
    ("The fairness dial", pareto.STUDY, pareto.read_studies, pareto.markdown),
    (
        "Ten metrics of exposure", exposure.STUDY, exposure.read_studies,
        exposure.ExposureStudy.markdown,
    ),
    ("Purification", purify.STUDY, purify.read_studies, purify.markdown),
    ("Searches of hyper-parameters", tuning.STUDY, tuning.read_studies, tuning.TuneStudy.markdown),
)  # fmt: skip


def main(options: argparse.Namespace) -> None:
    """Writes ``README.md`` into the folder of the results and prints its name."""
    path = options.folder / "README.md"
    write_atomically(path, report(options.folder).encode())
    print(path)


def report(folder: Path) -> str:
    """Tables of all results in a folder and its subfolders, those of today's worlds first.

    Raises:
        DataFormatError: There are none, a file is not a result, or a measurement has two files.
    """
    studies = studies_in(folder)
    runs = read_results(folder) if RUN in studies or not studies else []
    today, older = (
        [run for run in runs if world_of(run).is_older == is_older] for is_older in (False, True)
    )
    sections = {
        "Whole sessions at a glance": summary(runs),
        "The paper's tables": paper.markdown(today),
        "Agents": markdown(runs),
        "Stability": stability.markdown(stability.worlds_of(runs)),
        "The paper's tables in older worlds": paper.markdown(older),
    }
    for title, study, read, tables in STUDIES:
        if study in studies:
            sections[title] = tables(read(folder))
    texts = (f"## {title}\n\n{text.rstrip()}\n" for title, text in sections.items() if text.strip())
    return "\n".join([INTRODUCTION, *texts])
