"""Standings: agents over all worlds that they share, with intervals, comparisons and a figure.

A score is Len, moved and scaled so that in each world the mean of ``LOWEST`` over seeds is 0 and
that of ``HIGHEST`` is 1.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from kuaisim_gym.envs.assembly import SessionBatch

from ..agents import AGENTS
from ..formatting import TitledTable, interval
from ..studies.results import Result, World, world_of
from .aggregates import (
    NORMAL_975,
    RESAMPLES,
    FloatArray,
    holm,
    interquartile_mean,
    mean,
    median,
    nested_interval,
    optimality_gap,
    p_value,
    percentiles,
    performance_profile,
    probability_of_improvement,
    resampled,
)
from .comparisons import are_alike, training_sizes
from .plots import name_agents
from .tables import LADDER, by_world

LOWEST, HIGHEST = "random", "expected-oracle+quota"
# References that are told a simulator's answers, which no agent may know; they have no place.
ORACLES = ("truth", "train-oracle", "expected-", "realised-")
THRESHOLDS = np.linspace(-0.1, 1.1, 121)

_SCORE = (
    f"Score: Len, where 0 is the mean of {LOWEST} over seeds in the same world, and 1 that of "
    f"{HIGHEST}, which knows every user's expected answers"
)


@dataclass(frozen=True)
class Board:
    """Agents that have a run for each seed in each of some worlds.

    Attributes:
        worlds: The worlds.
        seeds: The seeds.
        runs: Results of each agent, seed by seed, in the order of the worlds.
    """

    worlds: tuple[World, ...]
    seeds: tuple[int, ...]
    runs: dict[str, list[list[Result]]]

    def values(self, agent: str, metric: str) -> FloatArray:
        """(seeds, worlds) float64: a metric of an agent's runs."""
        return np.array([[run["metrics"][metric] for run in row] for row in self.runs[agent]])

    def trained(self, agent: str) -> list[list[int]]:
        """Training sessions of an agent in hundreds, a list for each world; empty of rules."""
        return [training_sizes(list(runs)) for runs in zip(*self.runs[agent], strict=True)]

    def alike(self, agent: str, control: str) -> bool:
        """Tells whether two agents were trained for as many sessions, or one is a rule."""
        worlds = zip(*self.runs[agent], strict=True), zip(*self.runs[control], strict=True)
        return all(are_alike([*first], [*second]) for first, second in zip(*worlds, strict=True))

    def scores(self, agent: str) -> FloatArray:
        """(seeds, worlds) float64: an agent's scores."""
        low, high = (self.values(name, "len").mean(axis=0) for name in (LOWEST, HIGHEST))
        return np.asarray((self.values(agent, "len") - low) / (high - low))

    @property
    def ranking(self) -> list[str]:
        """Agents by IQM, the best first."""
        return sorted(self.runs, key=lambda agent: -float(interquartile_mean(self.scores(agent))))

    @property
    def ranks(self) -> dict[str, int]:
        """Places of the agents that are told no answers, from 1."""
        placed = [agent for agent in self.ranking if not is_oracle(agent)]
        return {agent: rank for rank, agent in enumerate(placed, 1)}


def is_oracle(agent: str) -> bool:
    """Tells a reference that is told a simulator's answers from an agent."""
    return agent in AGENTS and agent.startswith(ORACLES)


def is_synthetic(world: World) -> bool:
    """Tells a synthetic world, which everybody can make, from one of real data."""
    return world.answers == "synthetic"


def boards_of(results: list[Result]) -> list[Board]:
    """The boards of all worlds and of the synthetic ones; one where these are the same."""
    synthetic = [run for run in results if is_synthetic(world_of(run))]
    boards = (board_of(results), board_of(synthetic))
    return list({board.worlds: board for board in boards if board is not None}.values())


def board_of(results: list[Result]) -> Board | None:
    """The board of today's worlds of whole sessions.

    Worlds are those in which ``HIGHEST`` outlasts ``LOWEST``, seeds those that both have in all of
    them, agents those with all of these runs.

    Returns:
        ``None`` where there are no two such seeds, and so no interval.
    """
    by_seed = {
        world: {agent: {run["seed"]: run for run in runs} for agent, runs in agents.items()}
        for world, agents in by_world(results).items()
        if world.task is SessionBatch and not world.is_older
    }
    by_seed = {world: agents for world, agents in by_seed.items() if _has_scale(agents)}
    if not by_seed:
        return None
    ends = (agents[name] for agents in by_seed.values() for name in (LOWEST, HIGHEST))
    seeds = sorted(set.intersection(*map(set, ends)))
    if len(seeds) < 2:
        return None
    names = dict.fromkeys(name for agents in by_seed.values() for name in agents)
    runs = {
        name: [[agents[name][seed] for agents in by_seed.values()] for seed in seeds]
        for name in names
        if all(agents.get(name, {}).keys() >= set(seeds) for agents in by_seed.values())
    }
    return Board(tuple(by_seed), tuple(seeds), runs)


def _has_scale(agents: dict[str, dict[int, Result]]) -> bool:
    """Tells whether both ends of the score have runs, the upper one with longer sessions."""
    if not {LOWEST, HIGHEST} <= agents.keys():
        return False
    low, high = (
        np.mean([run["metrics"]["len"] for run in agents[name].values()])
        for name in (LOWEST, HIGHEST)
    )
    return bool(low < high)


def leaderboard(results: list[Result]) -> str:
    """Markdown of the leaderboards: over all worlds, and over the synthetic ones."""
    return "\n\n".join(leaderboard_of(board).markdown() for board in boards_of(results))


def leaderboard_of(board: Board, agents: Iterable[str] | None = None) -> TitledTable:
    """The leaderboard: a row for each agent, or for those that are named."""
    ranks = board.ranks
    shown = set(board.runs if agents is None else agents)
    rows = [_row(board, agent, ranks) for agent in board.ranking if agent in shown]
    n_seeds, n_worlds = len(board.seeds), len(board.worlds)
    kind = "synthetic worlds" if all(map(is_synthetic, board.worlds)) else "worlds"
    note = (
        f"{_SCORE}. IQM: mean of the middle half of all {n_seeds * n_worlds} runs, {n_seeds} seeds "
        f"in each of {n_worlds} worlds; brackets: 95 % of {RESAMPLES:,} resamples of the seeds "
        "within worlds, which few seeds make rather too narrow. Median: of the worlds' means. Gap: "
        "mean of what runs lack to 1. AD: mean of all runs. No place: told a simulator's answers. "
        f"Worlds: {'; '.join(world.short_title for world in board.worlds)}.{_mixed(board)}"
    )
    header = ["place", "agent", "IQM", "mean", "median", "gap", "AD"]
    return TitledTable(f"{n_worlds} {kind}", header, rows, [note], "rlr")


def _mixed(board: Board) -> str:
    """A sentence on agents whose trainings are of several sizes; empty where none are."""
    sizes = {
        agent: sorted({size for world in board.trained(agent) for size in world})
        for agent in board.ranking
    }
    texts = [
        f"{agent} {' or '.join(f'{size:,}' for size in found)}"
        for agent, found in sizes.items()
        if found
    ]
    is_mixed = len({size for found in sizes.values() for size in found}) > 1
    return f" Training sessions differ: {', '.join(texts)}." if is_mixed else ""


def _row(board: Board, agent: str, ranks: dict[str, int]) -> list[str]:
    scores = board.scores(agent)
    low, high = percentiles(interquartile_mean(resampled(scores, np.random.default_rng(0))))
    figures = (
        mean(scores),
        median(scores),
        optimality_gap(scores),
        board.values(agent, "ad").mean(),
    )
    return [
        str(ranks.get(agent, "")),
        agent,
        f"{interquartile_mean(scores):z.3f} [{low:z.3f}, {high:z.3f}]",
        *(f"{figure:z.3f}" for figure in figures),
    ]


def statistics(results: list[Result]) -> str:
    """Markdown of comparisons over all worlds, and of intervals over seeds and sessions."""
    board = board_of(results)
    if board is None:
        return ""
    pairs = [
        (agent, control)
        for agent in board.runs
        if agent in AGENTS
        for control in AGENTS[agent].controls
        if control in board.runs and board.alike(agent, control)
    ]
    tables = [*([comparisons(board, pairs)] if pairs else []), seeds_and_sessions(board)]
    return "\n\n".join(table.markdown() for table in tables if table.rows)


def comparisons(board: Board, pairs: list[tuple[str, str]]) -> TitledTable:
    """Paired differences of agents, with p-values that are adjusted for their number.

    Args:
        board: The board.
        pairs: Agents and what they are compared with.
    """
    gains = [board.scores(agent) - board.scores(control) for agent, control in pairs]
    p_values = [p_value(gain.mean(axis=1)) for gain in gains]
    rows = [
        [
            f"{agent} less {control}",
            interval(gain.mean(axis=1).tolist(), 3, "+"),
            f"{(gain.mean(axis=0) > 0).sum()} of {len(board.worlds)}",
            _improvement(board.scores(agent), board.scores(control)),
            _probability(alone),
            _probability(adjusted),
        ]
        for (agent, control), gain, alone, adjusted in zip(
            pairs, gains, p_values, holm(p_values), strict=True
        )
    ]
    note = (
        f"{_SCORE}. Difference: of mean scores over {len(board.worlds)} worlds, seed by seed, for "
        "all agents of a seed meet the same users; mean ± 95 % interval over seeds, and p of "
        "Student's t test of it. Seeds are the units: worlds of one data set share users, and are "
        f"not independent. Holm: p, adjusted for the {len(pairs)} comparisons of this table; that "
        "any of those below .05 is an accident has a chance of at most .05. Worlds ahead: with a "
        "longer mean. P(longer): probability of improvement, that a run outlasts one of the other "
        f"agent, unpaired, mean over worlds; brackets: 95 % of {RESAMPLES:,} resamples. Intervals "
        "of single worlds elsewhere hold one by one: they are not adjusted."
    )
    header = ["comparison", "difference", "worlds ahead", "P(longer)", "p", "p, Holm"]
    return TitledTable("Comparisons over worlds", header, rows, [note])


def _improvement(scores: FloatArray, controls: FloatArray) -> str:
    rng = np.random.default_rng(0)
    draws = probability_of_improvement(resampled(scores, rng), resampled(controls, rng))
    low, high = percentiles(draws)
    return f"{probability_of_improvement(scores, controls):.2f} [{low:.2f}, {high:.2f}]"


def _probability(value: float) -> str:
    return "< .001" if value < 0.001 else f"{value:.3f}".removeprefix("0")


def seeds_and_sessions(board: Board) -> TitledTable:
    """Len of learned agents, with intervals over seeds and the sessions within them."""
    learned = [name for name, rows in board.runs.items() if rows[0][0]["train"]["steps"]]
    lengths = {name: board.values(name, "len") for name in learned}
    errors = {name: board.values(name, "len_ci95") / NORMAL_975 for name in learned}
    rows = [
        [world.short_title, *(_nested(lengths[name][:, n], errors[name][:, n]) for name in learned)]
        for n, world in enumerate(board.worlds)
        if learned
    ]
    note = (
        "Len ± 95 % interval over seeds and the sessions within them (deviation between seeds / "
        "standard error of a seed's sessions). Where the seeds agree by luck more closely than "
        "their sessions allow, the sessions' error counts: there it is wider than the interval "
        "over seeds alone, of all other tables. Sessions count as independent, though some users "
        "come more than once: the intervals are for these users."
    )
    return TitledTable("Seeds and sessions", ["Len", *learned], rows, [note])


def _nested(lengths: FloatArray, errors: FloatArray) -> str:
    estimate = nested_interval(lengths, errors)
    spread = f"({estimate.between:.2f} / {estimate.within:.2f})"
    return f"{estimate.mean:.2f} ± {estimate.half_width:.2f} {spread}"


def draw_profiles(board: Board) -> Figure:
    """Performance profiles of the learned agents and of what they are compared with.

    Bands are 95 % of resamples of the seeds within worlds.
    """
    learned = {name for name, rows in board.runs.items() if rows[0][0]["train"]["steps"]}
    foreign = board.runs.keys() - AGENTS.keys()
    shown = [name for name in board.ranking if name in {*learned, *foreign, *LADDER}]
    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.subplots()
    for number, name in enumerate(shown):
        scores = board.scores(name)
        draws = resampled(scores, np.random.default_rng(0))
        low, high = percentiles(performance_profile(draws, THRESHOLDS))
        style: Any = {"color": f"C{number % 10}", "linestyle": ("-", "--")[number // 10 % 2]}
        axes.plot(THRESHOLDS, performance_profile(scores, THRESHOLDS), label=name, **style)
        axes.fill_between(THRESHOLDS, low, high, color=style["color"], alpha=0.15, linewidth=0)
    axes.set_xlabel(f"score (0: {LOWEST}, 1: {HIGHEST})")
    axes.set_ylabel("share of runs above it")
    axes.set_title(f"{len(board.worlds)} worlds, {len(board.seeds)} seeds", fontsize="medium")
    axes.grid(alpha=0.3)
    name_agents(figure)
    return figure
