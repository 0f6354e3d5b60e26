"""What pages of the site show of the code and of the committed results.

A page holds a comment where that belongs, and :func:`filled` puts it there:

* ``<!-- docstring kuaisim_gym:KuaiEnv; Rewards; Info -->``: sections of a docstring in Markdown, or
  all of it where none is named;
* ``<!-- settings hrl dsrm-hrl -->``: the benchmark's settings of agents;
* ``<!-- results random hrl -->``: Len of agents in today's worlds;
* ``<!-- findings ../findings -->``: a table of what the heads of scripts in a folder say;
* ``<!-- released ../benchmarks/released/agents -->``: a table of a folder of released agents;
* ``<!-- file ../CHANGELOG.md -->``: a file outside of ``docs``; the page is nothing else.
"""

from __future__ import annotations

import re
from functools import cache
from importlib import import_module
from itertools import takewhile
from pathlib import Path

from benchmarks.agents import AGENTS
from benchmarks.formatting import interval, markdown_table
from benchmarks.released.index import INDEX, read_entries
from benchmarks.reports.tables import by_world, metric
from benchmarks.studies.results import Result, read_result, read_results, world_of
from kuaisim_gym.disk import readable_size
from kuaisim_gym.envs.assembly import SessionBatch

DOCS = Path(__file__).parent
# Files outside of this folder that are pages of the site: links to them are links to the page.
PAGES = {
    "../benchmarks/results/README.md": "all_results.md",
    "../benchmarks/fresh_worlds/README.md": "fresh_worlds.md",
    "../findings/README.md": "findings.md",
    "../CONTRIBUTING.md": "contributing.md",
    "../CHANGELOG.md": "changelog.md",
}
_COMMENT = re.compile(r"<!-- (docstring|settings|results|findings|released|file) (.+?) -->")
_ROLE = re.compile(r":\w+:`([^`]+)`")
_LINK = re.compile(r"\]\((?!https?:|#)([^)#]+)")


def filled(text: str, page: str) -> str:
    """The text of a page without comments.

    Args:
        text: Markdown.
        page: Name of the page, such as ``"howto/sb3"``.
    """
    makers = {
        "docstring": docstring, "settings": settings, "results": results, "findings": findings,
        "released": released, "file": file,
    }  # fmt: skip
    text = _COMMENT.sub(lambda match: makers[match[1]](match[2]), text)
    up = "../" * page.count("/")
    for path, name in PAGES.items():
        text = text.replace(f"]({up}{path}", f"]({up}{name}")
    return text


def docstring(argument: str) -> str:
    """``module:name; section; ...``: sections of a Markdown docstring, without Sphinx's roles."""
    name, *wanted = argument.split("; ")
    module, _, attribute = name.partition(":")
    text = getattr(import_module(module), attribute).__doc__ or ""
    introduction, *parts = re.split(r"^    ## ", text, flags=re.MULTILINE)
    sections = dict(part.split("\n", 1) for part in parts)
    pieces = [f"    ## {title}\n{sections[title]}" for title in wanted or sections]
    if not wanted:
        pieces.insert(0, "    " + introduction)
    lines = "\n".join(pieces).splitlines()
    body = "\n".join(line.removeprefix("    ") for line in lines)
    return _ROLE.sub(lambda match: f"`{match[1].rpartition('.')[2].strip('~')}`", body)


def settings(argument: str) -> str:
    """A table of what the benchmark trains agents with."""
    rows = []
    for name in argument.split():
        agent = AGENTS[name]
        values = {key: getattr(value, "value", value) for key, value in agent.settings.items()}
        listed = ", ".join(f"`{key}={value}`" for key, value in values.items())
        rows.append([f"*{name}*", agent.purifier or "", agent.reference, listed])
    return markdown_table(["agent", "purifier", "reference", "settings"], rows, "llll")


@cache
def _committed() -> list[Result]:
    return read_results(DOCS.parent / "benchmarks" / "results")


def results(argument: str) -> str:
    """Len of agents, mean ± 95 % interval over seeds, in whole sessions of each world."""
    agents = argument.split()
    rows = [
        [world.short_title, *(interval(metric(runs.get(agent, []), "len"), 2) for agent in agents)]
        for world, runs in by_world(_committed()).items()
        if world.task is SessionBatch and not world.is_older
    ]
    return markdown_table(["Len", *agents], (row for row in rows if any(row[1:])))


def findings(argument: str) -> str:
    """A row for each script of a folder: its title, and paragraphs of its head by their names."""
    rows = []
    for script in sorted((DOCS / argument).glob("*.sh")):
        lines = script.read_text(encoding="utf-8").splitlines()[1:]
        head = list(takewhile(lambda line: line.startswith("#"), lines))
        title, *parts = " ".join(line[1:].strip() or "\n" for line in head).split("\n")
        says = dict(part.strip().split(": ", 1) for part in parts if part.strip())
        cells = (says[name].replace("|", "\\|") for name in ("Since", "Source", "Matters"))
        rows.append([f"{title.strip()} (`{script.name}`)", *cells])
    return markdown_table(["what happens", "since", "source", "what it does to you"], rows, "llll")


def released(argument: str) -> str:
    """A row for each agent of a release: its world, Len and AD, and the size of its files."""
    folder = DOCS / argument
    if not (folder / INDEX).is_file():
        return "None, in this version."
    rows = []
    for entry in read_entries((folder / INDEX).read_bytes(), argument).values():
        run = read_result(folder / f"{entry.name}.json")
        cells = (
            f"{run['metrics'][name]:.{digits}f} ± {run['metrics'][f'{name}_ci95']:.{digits}f}"
            for name, digits in (("len", 2), ("ad", 3))
        )
        size = readable_size(sum(sums.size for sums in entry.files.values()))
        rows.append([run["agent"], world_of(run).short_title, *cells, size])
    return markdown_table(["agent", "world", "Len", "AD", "size"], rows, "llrrr")


def file(argument: str) -> str:
    """A file's text, with its links as they are from this folder."""
    path = DOCS / argument
    folder = Path(argument).parent

    def moved(match: re.Match[str]) -> str:
        parts: list[str] = []
        for part in (folder / match[1]).parts:
            if part == ".." and parts and parts[-1] != "..":
                parts.pop()
            else:
                parts.append(part)
        target = "/".join(parts)
        return "](" + (target.removeprefix("../docs/") if "../docs/" in target else target)

    return _LINK.sub(moved, path.read_text(encoding="utf-8"))
