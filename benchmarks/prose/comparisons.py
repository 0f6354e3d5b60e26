"""Comparisons of two agents in a world, seed by seed."""

from __future__ import annotations

import numpy as np

from .. import paper
from ..agents import AGENTS
from ..formatting import mean_and_ci95
from ..results import Result
from ..tables import metric

# Stands for the published method, apart from the paper's own, with the best mean in a world.
BEST = "best-published"
OURS = "dsrm-hrl"
RIVALS = tuple(agent for agent in paper.agents_of(2) if agent != OURS)
LESS_IS_BETTER = frozenset({"ad", "slate_ad", "q", "gini"})
VERDICTS = {1: "above", 0: "level with", -1: "below"}


def differences(
    agents: dict[str, list[Result]], measure: str, agent: str, control: str
) -> list[float]:
    """Differences of two agents in a metric, seed by seed.

    Args:
        agents: Runs of one world by agent.
        measure: The metric.
        agent: The agent.
        control: What it is compared with, or :data:`BEST`.

    Returns:
        One a seed; empty where they share fewer than two, which make no interval.
    """
    control = best_published(agents, measure) if control == BEST else control
    first, second = (
        {run["seed"]: run["metrics"][measure] for run in agents.get(name, [])}
        for name in (agent, control)
    )
    seeds = sorted(first.keys() & second.keys())
    return [first[seed] - second[seed] for seed in seeds] if len(seeds) > 1 else []


def best_published(agents: dict[str, list[Result]], measure: str) -> str:
    """The published method with the best mean in a world; empty where none has runs."""
    sign = -1.0 if measure in LESS_IS_BETTER else 1.0
    means = {
        name: sign * float(np.mean(metric(agents[name], measure)))
        for name in RIVALS
        if agents.get(name)
    }
    return max(means, key=means.__getitem__, default="")


def sign_of(gains: list[float]) -> int:
    """The sign of a mean whose 95 % interval leaves out 0; otherwise 0."""
    mean, half = mean_and_ci95(gains)
    return int(np.sign(mean)) if abs(mean) > half else 0


def share(agents: dict[str, list[Result]], measure: str, agent: str, control: str) -> str:
    """The ratio of two agents' means in a world; empty where one has no runs."""
    control = best_published(agents, measure) if control == BEST else control
    if not (agents.get(agent) and agents.get(control)):
        return ""
    over, under = (np.mean(metric(agents[name], measure)) for name in (agent, control))
    return f"{over / under:.3f}" if under else ""


def is_better(agents: dict[str, list[Result]], measure: str, agent: str) -> dict[str, bool]:
    """Published methods, and if an agent is better than each beyond the interval, in one world."""
    better = -1 if measure in LESS_IS_BETTER else 1
    rivals = (rival for rival in RIVALS if rival != agent)
    gains = {rival: differences(agents, measure, agent, rival) for rival in rivals}
    return {AGENTS[rival].label: sign_of(gain) == better for rival, gain in gains.items() if gain}
