"""Comparisons of two agents in a world, seed by seed: all agents of a seed meet the same users."""

from __future__ import annotations

import numpy as np

from .. import paper
from ..agents import AGENTS
from ..formatting import NOT_COMPARABLE, NOT_MADE, mean_and_ci95
from ..studies.results import Result, direction

# Stands for the published method, apart from the paper's own, with the best mean in a world.
BEST = "best-published"
OURS = "dsrm-hrl"
RIVALS = tuple(agent for agent in paper.agents_of(2) if agent != OURS)
VERDICTS = {1: "above", 0: "level with", -1: "below"}

Agents = dict[str, list[Result]]  # runs of one world


def metric(runs: list[Result], name: str) -> list[float]:
    """Values of a metric, one per seed."""
    return [run["metrics"][name] for run in runs]


def training_sizes(runs: list[Result]) -> list[int]:
    """Numbers of sessions for which runs were trained, in hundreds, ascending."""
    # A training ends with the step in which its last session does: some others end then, too.
    numbers = [run["train"]["episodes"] for run in runs if run["train"]["steps"]]
    return sorted({number // 100 * 100 or number for number in numbers})


def are_alike(runs: list[Result], others: list[Result]) -> bool:
    """Tells whether runs were trained for as many sessions as others, or one side for none."""
    sizes, other_sizes = training_sizes(runs), training_sizes(others)
    return sizes == other_sizes or not sizes or not other_sizes


def paired(agents: Agents, measure: str, agent: str, control: str) -> list[tuple[float, float]]:
    """Two agents in a metric, seed by seed.

    Args:
        agents: Runs of one world by agent.
        measure: The metric.
        agent: The agent.
        control: What it is compared with, or :data:`BEST`.

    Returns:
        A pair a seed that both have; empty where they cannot be compared, because they were trained
        for other numbers of sessions, or judged by other numbers.
    """
    sides = _sides(agents, measure, agent, control)
    if not _are_comparable(*sides):
        return []
    first, second = ({run["seed"]: run["metrics"][measure] for run in side} for side in sides)
    return [(first[seed], second[seed]) for seed in sorted(first.keys() & second.keys())]


def _sides(agents: Agents, measure: str, agent: str, control: str) -> list[list[Result]]:
    control = best_published(agents, measure) if control == BEST else control
    return [agents.get(name, []) for name in (agent, control)]


def _are_comparable(runs: list[Result], others: list[Result]) -> bool:
    return are_alike(runs, others) and len({run["eval"]["sessions"] for run in runs + others}) < 2


def obstacle(agents: Agents, measure: str, agent: str, control: str) -> str:
    """Words in place of a comparison for which :func:`paired` has too few pairs."""
    return NOT_MADE if _are_comparable(*_sides(agents, measure, agent, control)) else NOT_COMPARABLE


def differences(agents: Agents, measure: str, agent: str, control: str) -> list[float]:
    """Differences of two agents, seed by seed, as of :func:`paired`.

    Returns:
        One a seed; empty where they share fewer than two, which make no interval.
    """
    pairs = paired(agents, measure, agent, control)
    return [first - second for first, second in pairs] if len(pairs) > 1 else []


def best_published(agents: Agents, measure: str) -> str:
    """The published method with the best mean in a world; empty where none has runs."""
    means = {
        name: direction(measure) * float(np.mean(metric(agents[name], measure)))
        for name in RIVALS
        if agents.get(name)
    }
    return max(means, key=means.__getitem__, default="")


def sign_of(gains: list[float]) -> int:
    """The sign of a mean whose 95 % interval leaves out 0; otherwise 0."""
    mean, half = mean_and_ci95(gains)
    return int(np.sign(mean)) if abs(mean) > half else 0


def share(agents: Agents, measure: str, agent: str, control: str) -> str:
    """The ratio of two agents' means over the seeds of both; empty where they share none."""
    pairs = paired(agents, measure, agent, control)
    if not pairs:
        return ""
    over, under = np.mean(pairs, axis=0)
    return f"{over / under:.3f}" if under else ""


def is_better(agents: Agents, measure: str, agent: str) -> dict[str, bool]:
    """Published methods, and if an agent is better than each beyond the interval, in one world."""
    rivals = (rival for rival in RIVALS if rival != agent)
    gains = {rival: differences(agents, measure, agent, rival) for rival in rivals}
    better = direction(measure)
    return {AGENTS[rival].label: sign_of(gain) == better for rival, gain in gains.items() if gain}
