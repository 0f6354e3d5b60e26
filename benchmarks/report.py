"""The ``report`` command: all tables of a folder of results in one file of the folder."""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks import exposure, paper, stability
from benchmarks.commands import add_folder
from benchmarks.pareto import report as pareto
from benchmarks.purify import report as purify
from benchmarks.results import read_result, read_results
from benchmarks.tables import markdown, summary
from benchmarks.tuning import TuneStudy
from kuaisim_gym.data.cache import write_atomically

INTRODUCTION = """# Results

Made by the commands of `python -m benchmarks`; each JSON file here names its code and versions.
"""

add_arguments = add_folder


def main(options: argparse.Namespace) -> None:
    """Writes ``README.md`` into the folder of the results and prints its name."""
    path = options.folder / "README.md"
    write_atomically(path, report(options.folder).encode())
    print(path)


def report(folder: Path) -> str:
    """Tables of all results in a folder: runs, stability, fairness dial, purification, searches.

    Raises:
        DataFormatError: There are no results of runs.
    """
    results = read_results(folder)
    sections = {
        "Whole sessions at a glance": summary(results),
        "The paper's tables": paper.markdown(results),
        "Agents": markdown(results),
        "Stability": stability.markdown(stability.select(results)),
    }
    if (folder / "pareto").is_dir():
        sections["The fairness dial"] = pareto.markdown(pareto.read_studies(folder / "pareto"))
    if (folder / "exposure").is_dir():
        studies = exposure.read_studies(folder / "exposure")
        sections["Ten metrics of exposure"] = exposure.ExposureStudy.markdown(studies)
    if (folder / "purify").is_dir():
        sections["Purification"] = purify.markdown(purify.read_studies(folder / "purify"))
    searches = [read_result(path) for path in sorted((folder / "tuning").glob("*.json"))]
    sections["Searches of hyper-parameters"] = TuneStudy.markdown(searches)
    texts = (f"## {title}\n\n{text.rstrip()}\n" for title, text in sections.items() if text)
    return "\n".join([INTRODUCTION, *texts])
