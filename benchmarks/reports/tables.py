"""The ``table`` command: means and 95 % intervals over seeds, next to published figures."""

from __future__ import annotations

import argparse
import csv
import io
from collections import defaultdict
from itertools import starmap
from typing import Any

import numpy as np

from dsrm_agents.baselines.reference import CEILING
from kuaisim_gym.envs.assembly import SessionBatch

from .. import paper
from ..agents import AGENTS
from ..commands import add_folder
from ..formatting import FORMATS, TitledTable, interval, markdown_table, mean_and_ci95
from ..paper import mean_seconds, published
from ..studies.results import Result, World, read_results, world_of
from .comparisons import Agents, differences, metric, obstacle, training_sizes

# What ratios refer to: the highest of them that has results.
CEILINGS = (CEILING, "expected-oracle+band", "expected-oracle+quota")
# From no knowledge to all of it: what a new agent's sessions are compared with.
LADDER = (
    "random", "popularity", "ppo", "ppo+shares", "quality+quota", "hrl", "dsrm-hrl", "filter+quota",
    CEILING,
)  # fmt: skip
WIDTH = 6  # columns of a table of the summary
DIGITS = {"len": 2, "r_cum": 2, "return_time": 2}  # of metrics; 3 of others


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    add_folder(parser)
    add_format(parser)


def add_format(parser: argparse.ArgumentParser) -> None:
    """Adds the format of printed tables."""
    parser.add_argument(
        "--format", choices=(*FORMATS, "csv"), default="text",
        help="of the tables; csv has one row for each world and agent",
    )  # fmt: skip


def main(options: argparse.Namespace) -> None:
    """Prints the tables of all worlds, the summary and the paper's tables."""
    results = read_results(options.folder)
    print(tables_of(results, options.format, beside=True))


def tables_of(results: list[Result], form: str, beside: bool = False) -> str:
    """Results in one of the formats of ``--format``, one's own agents first.

    Args:
        results: Results of runs.
        form: A key of :data:`~benchmarks.formatting.FORMATS`, or ``"csv"``.
        beside: Whether the summary and the paper's tables follow those of the worlds.
    """
    if form == "csv":
        return as_csv(results)
    tables = list(starmap(world_table, by_world(results).items()))
    if beside:
        tables += [*_summaries(results), *paper.comparisons(results)]
    return "\n\n".join(map(FORMATS[form], tables))


def as_csv(results: list[Result]) -> str:
    """Means and half-widths of 95 % intervals as numbers: a row for each world and agent."""
    worlds = by_world(results)
    columns = list(dict.fromkeys(name for world in worlds for name in world.task.columns))
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    pairs = (pair for name in columns for pair in (name, f"{name}_ci95"))
    writer.writerow([*World._fields, "agent", "seeds", *pairs])
    for world, agents in worlds.items():
        for agent, runs in agents.items():
            cells: list[float | str] = []
            for name in columns:
                cells += mean_and_half(runs, name) if name in world.task.columns else ("", "")
            writer.writerow([*world, agent, len(runs), *cells])
    return file.getvalue().rstrip("\n")


def by_world(results: list[Result]) -> dict[World, Agents]:
    """Results by world and agent: older worlds last, agents that the benchmark lacks first."""
    worlds: dict[World, Agents] = defaultdict(lambda: defaultdict(list))
    order = {agent: number for number, agent in enumerate(AGENTS)}
    for result in sorted(results, key=lambda run: order.get(run["agent"], -1)):
        worlds[world_of(result)][result["agent"]].append(result)
    return {world: worlds[world] for world in sorted(worlds, key=lambda world: world.rank)}


def without_replaced(worlds: dict[World, Any]) -> dict[World, Any]:
    """Worlds without those of an earlier version that a later one replaces."""
    later = {
        world._replace(is_older=False, fingerprint="") for world in worlds if not world.is_older
    }
    return {
        world: content
        for world, content in worlds.items()
        if not world.is_older or world._replace(is_older=False, fingerprint="") not in later
    }


def markdown(results: list[Result]) -> str:
    """All tables, one for each environment, dataset and session length."""
    return tables_of(results, "markdown") + "\n"


def summary(results: list[Result]) -> str:
    """Markdown of Len and R_each of whole sessions at a glance."""
    return "\n\n".join(table.markdown() for table in _summaries(results))


def _summaries(results: list[Result]) -> list[TitledTable]:
    """Len and R_each of whole sessions: a row per agent, a column per world and length.

    Tables hold today's worlds, short sessions first, then those of an earlier version, where no
    present one has taken their place.
    """
    worlds = {
        world: agents
        for world, agents in without_replaced(by_world(results)).items()
        if world.task is SessionBatch
    }
    foreign = {agent for agents in worlds.values() for agent in agents} - AGENTS.keys()
    names, tables = [*sorted(foreign), *AGENTS], []
    for is_older in (False, True):
        columns = sorted(
            (world for world in worlds if world.is_older == is_older), key=lambda x: x.max_len
        )
        for start in range(0, len(columns), WIDTH):
            group = columns[start : start + WIDTH]
            rows = [
                [agent, *(_len_and_reward(worlds[world].get(agent, [])) for world in group)]
                for agent in names
                if any(agent in worlds[world] for world in group)
            ]
            titles = [world.short_title for world in group]
            tables.append(TitledTable("", ["Len, R_each", *titles], rows))
    return tables


def ladder(results: list[Result]) -> str:
    """Mean Len and AD of the agents of ``LADDER``.

    In the shortest whole sessions of each present world, but for those with modelled answers.
    """
    shortest: dict[tuple[str, str], World] = {}
    worlds = by_world(results)
    for world in worlds:
        if world.task is SessionBatch and not world.is_older and world.answers != "modelled":
            shortest.setdefault((world.env, world.dataset), world)  # short sessions come first
    rows = []
    for agent in LADDER:
        runs = [worlds[world].get(agent, []) for world in shortest.values()]
        if any(runs):
            rows.append([agent, *(_len_and_ad(each) if each else "" for each in runs)])
    return markdown_table(["Len / AD", *(world.short_title for world in shortest.values())], rows)


def _len_and_ad(runs: list[Result]) -> str:
    return " / ".join(
        f"{np.mean(metric(runs, name)):.{digits}f}" for name, digits in (("len", 2), ("ad", 3))
    )


def _len_and_reward(runs: list[Result]) -> str:
    """Both metrics with 95 % intervals over seeds; empty without runs."""
    cells = interval(metric(runs, "len"), 2), interval(metric(runs, "r_each"))
    return ", ".join(filter(None, cells))


def world_table(world: World, agents: Agents) -> TitledTable:
    """The table of a world: metrics of all agents, comparisons and published figures."""
    first = next(iter(agents.values()))[0]
    columns = world.task.columns
    lengths = {agent: mean_and_ci95(metric(runs, "len"))[0] for agent, runs in agents.items()}
    ceiling = next((agent for agent in CEILINGS if agent in lengths), CEILING)
    reference = published(world.dataset, world.max_len) if "-Fair-" in world.env else {}
    header = ["agent", "seeds", *columns.values(), "train s"]
    rows = []
    for agent, runs in agents.items():
        is_trained = any(run["train"]["steps"] for run in runs)
        cells = (_cell(runs, column) for column in columns)
        rows.append([agent, str(len(runs)), *cells, mean_seconds(runs) if is_trained else ""])
    note = (
        "± is a 95 % interval over seeds (over sessions where there is one seed); "
        f"{first['eval']['sessions']:,} test sessions a seed.{_training(agents)}"
    )
    comparisons = []
    if world.task is SessionBatch:
        header[-1:] = ["Len / ceiling", "train s", "published Len"]
        for row in rows:
            agent = row[0]
            share = f"{lengths[agent] / lengths[ceiling]:.3f}" if ceiling in lengths else ""
            label = AGENTS[agent].label if agent in AGENTS else ""
            row[-1:] = [share, row[-1], reference.get(label, {}).get("len", "")]
        comparisons = [_verdict(agents, lengths, ceiling), _paired(agents)]
        note += (
            f" Ceiling: {ceiling}. Published: the paper's mean ± standard deviation, measured in "
            "its own simulator, where R has another scale."
        )
    if world.is_older:
        note += " Made by an earlier version of the world's generator: not comparable with others."
    return TitledTable(world.title, header, rows, [*comparisons, note])


def _training(agents: Agents) -> str:
    """A sentence on how many sessions the learned agents were trained for, in hundreds."""
    sizes = training_sizes([run for runs in agents.values() for run in runs])
    if not sizes:
        return ""
    sessions = " or ".join(f"{size:,}" for size in sizes)
    return f" Training: {sessions} sessions; s are of a processor, * of a clock."


def _cell(runs: list[Result], name: str) -> str:
    """Mean and interval over seeds, or over the sessions of a single seed."""
    mean, half = mean_and_half(runs, name)
    digits = DIGITS.get(name, 3)
    return f"{mean:.{digits}f} ± {half:.{digits}f}"


def mean_and_half(runs: list[Result], name: str) -> tuple[float, float]:
    """Mean and half-width of the interval over seeds, or over the sessions of a single seed."""
    mean, half = mean_and_ci95(metric(runs, name))
    return mean, half if len(runs) > 1 else runs[0]["metrics"][f"{name}_ci95"]


def _verdict(agents: Agents, lengths: dict[str, float], ceiling: str) -> str:
    """The learned agent with the longest sessions, compared with references."""
    learned = {agent: lengths[agent] for agent, runs in agents.items() if runs[0]["train"]["steps"]}
    if not learned:
        return ""
    longest = max(learned, key=learned.__getitem__)
    shares = [
        f"{learned[longest] / lengths[reference]:.3f} of {reference}"
        for reference in (ceiling, "train-oracle+quota")
        if reference in lengths
    ]
    sentence = f"Longest sessions of a learned agent: {longest}, Len {learned[longest]:.2f}"
    return ", ".join([sentence, *shares]) + "."


def gain(agents: Agents, measure: str, agent: str, control: str) -> str:
    """A difference, seed by seed, with its interval, or what stands in its place."""
    pair = agents, measure, agent, control
    return interval(differences(*pair), DIGITS.get(measure, 3), "+") or obstacle(*pair)


def _paired(agents: Agents) -> str:
    """Agents less their controls, where they can be compared."""
    lines = []
    for agent, control in ((name, other) for name in AGENTS for other in AGENTS[name].controls):
        gains = [
            f"{label} {text}"
            for name, label, digits in (("len", "Len", 2), ("r_each", "R_each", 4))
            if (text := interval(differences(agents, name, agent, control), digits, "+"))
        ]
        if gains:
            lines.append(f"* {agent} less {control}, seed by seed: {', '.join(gains)}.")
    return "\n".join(lines)
