"""Tables of the page of results that answer the paper's questions, and what they lack."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import NamedTuple

import numpy as np

from .. import paper
from ..agents import AGENTS
from ..formatting import NOT_MADE, interval, markdown_table
from ..prose import Evidence, value
from ..runs.worlds import WORLDS
from ..studies.results import Result
from .comparisons import (
    BEST,
    OURS,
    VERDICTS,
    Agents,
    best_published,
    differences,
    is_better,
    metric,
    share,
    sign_of,
    training_sizes,
)
from .standings import HIGHEST, is_oracle
from .tables import DIGITS, gain

EPISODES = 20_000  # training sessions of the paper's tables
# The paper's variants, by their agents.
VARIANTS = tuple(agent for agent in paper.agents_of(3) if agent != OURS)


def overall(evidence: Evidence) -> str:
    """Markdown: the paper's method beside the best other published one, in each world."""
    rows = []
    for world, agents in evidence.worlds.items():
        if OURS not in agents:
            continue
        best = best_published(agents, "len")
        figures = paper.published(world.dataset, world.max_len)
        rows.append([
            world.short_title,
            _mean(agents, OURS, "len"),
            f"{AGENTS[best].label} {_mean(agents, best, 'len')}" if best else NOT_MADE,
            gain(agents, "len", OURS, BEST),
            _outlasted(is_better(agents, "len", OURS)),
            share(agents, "len", OURS, HIGHEST),
            _mean(agents, OURS, "ad"),
            *_published(figures),
        ])  # fmt: skip
    header = [
        "Len", "DSRM-HRL", "best other made", "DSRM-HRL less it", "outlasts",
        f"DSRM-HRL / {HIGHEST}", "AD", "paper: DSRM-HRL", "best other",
    ]  # fmt: skip
    return markdown_table(header, rows, "lrlrlrrrl")


def _outlasted(methods: dict[str, bool]) -> str:
    """The number of published methods that are outlasted beyond the interval; names of others."""
    unbeaten = "".join(f", not {method}" for method, better in methods.items() if not better)
    return f"{sum(methods.values())} of {len(methods)}{unbeaten}"


def _published(figures: dict[str, dict[str, str]]) -> tuple[str, str]:
    """The paper's Len of its method, and name and Len of the longest other one of Table 2."""
    if not figures:
        return "", ""
    lengths = {method: figures[method]["len"] for method in paper.TABLES[2]}
    own_length = lengths.pop(AGENTS[OURS].label)
    best = max(lengths, key=lambda method: float(lengths[method].split()[0]))
    return own_length, f"{best} {lengths[best]}"


def ablation(evidence: Evidence) -> str:
    """Markdown: the paper's method less each of its variants, in each world."""
    rows = []
    for world, agents in evidence.worlds.items():
        figures = paper.published(world.dataset, world.max_len)
        for variant in VARIANTS:
            gains = differences(agents, "len", OURS, variant)
            if not gains and not figures:
                continue
            label = AGENTS[variant].label
            methods = (AGENTS[OURS].label, label) if figures else ()
            lengths = [float(figures[method]["len"].split()[0]) for method in methods]
            rows.append([
                world.short_title,
                label,
                *(gain(agents, name, OURS, variant) for name in ("len", "r_each", "ad")),
                VERDICTS[sign_of(gains)] if gains else "",
                f"{lengths[0] - lengths[1]:+.2f}" if lengths else "",
            ])  # fmt: skip
    header = ["DSRM-HRL less", "variant", "Len", "R_each", "AD", "Len is", "paper: Len"]
    return markdown_table(header, rows, "llrrrlr")


def winners(evidence: Evidence) -> str:
    """Markdown: who plays the longest sessions in each world, of agents that are told no answer."""
    rows = []
    for world, agents in evidence.worlds.items():
        placed = {name: float(np.mean(metric(runs, "len"))) for name, runs in agents.items()
                  if not is_oracle(name)}  # fmt: skip
        if not placed:
            continue
        order = sorted(placed, key=lambda name: -placed[name])
        level = [
            name
            for name in order[1:]
            if (gains := differences(agents, "len", order[0], name)) and not sign_of(gains)
        ]
        trained = [name for name in order if agents[name][0]["train"]["steps"]]
        rows.append([
            world.short_title,
            f"{order[0]} {_mean(agents, order[0], 'len')}",
            ", ".join(level),
            f"{trained[0]} {_mean(agents, trained[0], 'len')}" if trained else NOT_MADE,
            *(share(agents, "len", name, HIGHEST) for name in (order[0], *trained[:1])),
        ])  # fmt: skip
    header = ["Len", "longest", "level with it", "longest of the trained",
              f"longest / {HIGHEST}", f"trained / {HIGHEST}"]  # fmt: skip
    return markdown_table(header, rows, "llllrr")


def _mean(agents: Agents, agent: str, name: str) -> str:
    return interval(metric(agents[agent], name), DIGITS.get(name, 3))


class Cell(NamedTuple):
    """A cell of the paper's tables, or of its methods in the worlds of real data.

    Attributes:
        method: The method's name in the paper.
        dataset: Name of the data.
        max_len: Length of the longest session.
        lack: What its runs lack; empty where nothing is missing.
        unsuited: What the data lack for the method to learn from them; empty if it can.
    """

    method: str
    dataset: str
    max_len: int
    lack: str
    unsuited: str


def cells(evidence: Evidence) -> Iterator[Cell]:
    """All cells, method by method."""
    worlds = [(world, max_len) for world in WORLDS for max_len in world.max_lens]
    for (method, agent), (world, max_len) in product(paper.METHODS.items(), worlds):
        runs = evidence.agents(world.source, max_len).get(agent, [])
        unsuited = world.unsuited.get(agent, "")
        yield Cell(method, world.source, max_len, _lack(runs), unsuited)


def _lack(runs: list[Result]) -> str:
    """Seeds and sessions that runs of an agent in a world lack; empty for none."""
    seeds = {run["seed"] for run in runs} & {*paper.SEEDS}
    if not seeds:
        return NOT_MADE
    lacks = [f"{len(seeds)} of {len(paper.SEEDS)} seeds"] if len(seeds) < len(paper.SEEDS) else []
    lacks += [f"{size:,} sessions" for size in training_sizes(runs) if size < EPISODES]
    return ", ".join(lacks)


def missing(evidence: Evidence) -> str:
    """Markdown: which cells of the paper's tables and of the real worlds are not made, and how."""
    lacks: dict[str, dict[str, str]] = {}
    for cell in cells(evidence):
        world = f"{cell.dataset}, T = {cell.max_len}"
        lacks.setdefault(cell.method, {})[world] = cell.unsuited or cell.lack
    worlds = list(next(iter(lacks.values())))
    shown = [world for world in worlds if any(row[world] for row in lacks.values())]
    rows = [
        [method, *(row[world] for world in shown)]
        for method, row in lacks.items()
        if any(row.values())
    ]
    if not rows:
        return "All of them are made."
    return markdown_table(["", *shown], rows, "l")


@value("made", "WORLDS")
def _complete_cells(evidence: Evidence, worlds: str) -> str:
    """The number of complete cells, of those that can be: all seeds and training sessions."""
    lacks = [
        cell.lack
        for cell in cells(evidence)
        if not cell.unsuited
        and (worlds == "all" or (cell.dataset in paper.ENVS) == (worlds == "synthetic"))
    ]
    return f"{lacks.count('')} of {len(lacks)}"
