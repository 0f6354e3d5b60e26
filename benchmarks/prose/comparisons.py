"""Comparisons of two agents in a world, seed by seed."""

from __future__ import annotations

import numpy as np

from .. import paper
from ..agents import AGENTS
from ..formatting import mean_and_ci95
from ..reports.tables import are_alike, metric
from ..studies.results import Result, direction

# Stands for the published method, apart from the paper's own, with the best mean in a world.
BEST = "best-published"
OURS = "dsrm-hrl"
RIVALS = tuple(agent for agent in paper.agents_of(2) if agent != OURS)
VERDICTS = {1: "above", 0: "level with", -1: "below"}


def paired(
    agents: dict[str, list[Result]], measure: str, agent: str, control: str
) -> list[tuple[float, float]]:
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
    control = best_published(agents, measure) if control == BEST else control
    sides = [agents.get(name, []) for name in (agent, control)]
    judged = {run["eval"]["sessions"] for side in sides for run in side}
    if len(judged) > 1 or not are_alike(*sides):
        return []
    first, second = ({run["seed"]: run["metrics"][measure] for run in side} for side in sides)
    return [(first[seed], second[seed]) for seed in sorted(first.keys() & second.keys())]


def differences(
    agents: dict[str, list[Result]], measure: str, agent: str, control: str
) -> list[float]:
    """Differences of two agents, seed by seed, as of :func:`paired`.

    Returns:
        One a seed; empty where they share fewer than two, which make no interval.
    """
    pairs = paired(agents, measure, agent, control)
    return [first - second for first, second in pairs] if len(pairs) > 1 else []


def best_published(agents: dict[str, list[Result]], measure: str) -> str:
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


def share(agents: dict[str, list[Result]], measure: str, agent: str, control: str) -> str:
    """The ratio of two agents' means over the seeds of both; empty where they share none."""
    pairs = paired(agents, measure, agent, control)
    if not pairs:
        return ""
    over, under = np.mean(pairs, axis=0)
    return f"{over / under:.3f}" if under else ""


def is_better(agents: dict[str, list[Result]], measure: str, agent: str) -> dict[str, bool]:
    """Published methods, and if an agent is better than each beyond the interval, in one world."""
    rivals = (rival for rival in RIVALS if rival != agent)
    gains = {rival: differences(agents, measure, agent, rival) for rival in rivals}
    better = direction(measure)
    return {AGENTS[rival].label: sign_of(gain) == better for rival, gain in gains.items() if gain}
