"""All tables of a folder of results in one file, beside the results."""

from __future__ import annotations

from pathlib import Path

from benchmarks import paper, stability, tuning
from benchmarks.pareto import report as pareto
from benchmarks.purify import report as purify
from benchmarks.results import Result, read_result, read_results
from benchmarks.tables import markdown, summary
from kuaisim_gym.data.cache import write_atomically

INTRODUCTION = """# Results

Made by the commands of `python -m benchmarks`; each JSON file here names its code and versions.
"""


def write(folder: Path) -> Path:
    """Writes ``README.md`` into the folder; see :func:`report`."""
    path = folder / "README.md"
    write_atomically(path, report(folder).encode())
    return path


def report(folder: Path) -> str:
    """Markdown of whatever is there: runs, stability, the dial, purification, searches.

    Raises:
        DataFormatError: There are no results of runs.
    """
    results = read_results(folder)
    parts = [
        INTRODUCTION,
        "## Whole sessions at a glance\n",
        summary(results) + "\n",
        *_paper(results),
        "## Agents\n",
        markdown(results),
        "## Stability\n",
        stability.markdown(stability.select(results)),
    ]
    if (folder / "pareto").is_dir():
        parts += ["## The fairness dial\n", pareto.markdown(pareto.read_studies(folder / "pareto"))]
    if (folder / "purify").is_dir():
        studies = purify.read_studies(folder / "purify")
        parts += ["## Purification\n", purify.markdown(studies)]
    searches = sorted((folder / "tuning").glob("*.json"))
    if searches:
        parts.append("## Searches of hyper-parameters\n")
        parts += [tuning.markdown(read_result(path)) + "\n" for path in searches]
    return "\n".join(parts)


def _paper(results: list[Result]) -> list[str]:
    tables = paper.markdown(results)
    return ["## The paper's tables\n", tables + "\n"] if tables else []
