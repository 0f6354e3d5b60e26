"""Values of runs, and how many there are."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

import numpy as np

from .. import paper
from ..agents import AGENTS
from ..formatting import NOT_COMPARABLE, NOT_MADE, interval
from ..reports import stability
from ..reports.comparisons import (
    VERDICTS,
    best_published,
    differences,
    is_better,
    metric,
    obstacle,
    share,
    sign_of,
    training_sizes,
)
from ..reports.tables import DIGITS, gain
from ..studies.results import METRICS, Result, World
from .evidence import WORLDS, Evidence
from .language import value


def _mean(measure: str, evidence: Evidence, agent: str, dataset: str, max_len: int) -> str:
    """A mean; none over trainings of several sizes, which are not of one kind."""
    runs = evidence.agents(dataset, max_len).get(agent, [])
    if len(training_sizes(runs)) > 1:
        return NOT_COMPARABLE
    return interval(metric(runs, measure), DIGITS.get(measure, 3)) or NOT_MADE


for _name in METRICS:
    value(_name, "AGENT DATASET T")(partial(_mean, _name))


@value("gain", "METRIC AGENT CONTROL DATASET T")
def _gain(
    evidence: Evidence, measure: str, agent: str, control: str, dataset: str, max_len: int
) -> str:
    """A difference, seed by seed, with its interval."""
    return gain(evidence.agents(dataset, max_len), measure, agent, control)


@value("verdict", "METRIC AGENT CONTROL DATASET T")
def _verdict(
    evidence: Evidence, measure: str, agent: str, control: str, dataset: str, max_len: int
) -> str:
    """A word for what the interval of the difference says."""
    pair = evidence.agents(dataset, max_len), measure, agent, control
    gains = differences(*pair)
    return VERDICTS[sign_of(gains)] if gains else obstacle(*pair)


@value("share", "METRIC AGENT CONTROL DATASET T")
def _share(
    evidence: Evidence, measure: str, agent: str, control: str, dataset: str, max_len: int
) -> str:
    """The ratio of two means."""
    pair = evidence.agents(dataset, max_len), measure, agent, control
    return share(*pair) or obstacle(*pair)


def _worlds_with(
    sign: int, evidence: Evidence, measure: str, agent: str, control: str, worlds: str
) -> str:
    """In how many worlds an agent is above, level or below, beyond the interval."""
    gains = [
        differences(agents, measure, agent, control)
        for agents in _chosen(evidence, worlds).values()
    ]
    signs = [sign_of(gain) for gain in gains if gain]
    return f"{signs.count(sign)} of {len(signs)}" if signs else NOT_MADE


for _sign, _word in VERDICTS.items():
    _name = _word.split()[0]
    value(_name, "METRIC AGENT CONTROL WORLDS")(partial(_worlds_with, _sign))


@value("best", "METRIC DATASET T")
def _best(evidence: Evidence, measure: str, dataset: str, max_len: int) -> str:
    """The best published method, by its name in the paper."""
    best = best_published(evidence.agents(dataset, max_len), measure)
    return AGENTS[best].label if best else NOT_MADE


@value("unbeaten", "METRIC AGENT WORLDS")
def _unbeaten(evidence: Evidence, measure: str, agent: str, worlds: str) -> str:
    """Published methods that an agent is not above beyond the interval, and where."""
    verdicts = {
        world: is_better(agents, measure, agent)
        for world, agents in _chosen(evidence, worlds).items()
    }
    texts = [
        f"{', '.join(names)} ({world.dataset}, T = {world.max_len})"
        for world, methods in verdicts.items()
        if (names := [method for method, better in methods.items() if not better])
    ]
    return ("; ".join(texts) or "none") if any(verdicts.values()) else NOT_MADE


@value("beaten", "METRIC AGENT WORLDS")
def _beaten(evidence: Evidence, measure: str, agent: str, worlds: str) -> str:
    """The number of published cells that an agent beats beyond the interval, of those made."""
    beaten = [
        better
        for agents in _chosen(evidence, worlds).values()
        for better in is_better(agents, measure, agent).values()
    ]
    return f"{sum(beaten)} of {len(beaten)}" if beaten else NOT_MADE


@value("deviation", "SPREAD AGENT DATASET T")
def _deviation(evidence: Evidence, spread: str, agent: str, dataset: str, max_len: int) -> str:
    """A standard deviation, see :func:`~benchmarks.reports.stability.spreads`."""
    runs = evidence.agents(dataset, max_len).get(agent, [])
    if not runs or (spread.startswith("curve") and not all(map(_curve, runs))):
        return NOT_MADE
    _, digits = stability.SPREADS[spread]
    deviation = stability.spreads(runs)[spread]
    return NOT_MADE if np.isnan(deviation) else f"{deviation:.{digits}f}"


@value("settled", "AGENT DATASET T")
def _settled(evidence: Evidence, agent: str, dataset: str, max_len: int) -> str:
    """Mean number of training sessions until the curve comes near its end."""
    curves = [_curve(run) for run in evidence.agents(dataset, max_len).get(agent, [])]
    if not curves or not all(curves):
        return NOT_MADE
    return f"{np.mean([stability.sessions_to_settle(curve) for curve in curves]):,.0f}"


def _curve(run: Result) -> list[dict[str, float]]:
    curve: list[dict[str, float]] = run["train"]["curve"]
    return curve


@value("seconds", "AGENT DATASET T")
def _seconds(evidence: Evidence, agent: str, dataset: str, max_len: int) -> str:
    """Mean training seconds, with a star where they are wall-clock seconds."""
    return paper.mean_seconds(evidence.agents(dataset, max_len).get(agent, [])) or NOT_MADE


@value("times", "AGENT CONTROL DATASET T")
def _times(evidence: Evidence, agent: str, control: str, dataset: str, max_len: int) -> str:
    """The ratio of mean training seconds, of the same clock and as many training sessions."""
    agents = evidence.agents(dataset, max_len)
    first, second = (agents.get(name, []) for name in (agent, control))
    over, under = paper.mean_seconds(first), paper.mean_seconds(second)
    if not over or not under or over.endswith("*") != under.endswith("*"):
        return NOT_MADE
    if training_sizes(first) != training_sizes(second):
        return NOT_COMPARABLE
    numerator, denominator = (float(text.strip("*").replace(",", "")) for text in (over, under))
    return f"{numerator / denominator:.1f}" if denominator else NOT_MADE


@value("count", "THING WORLDS")
def _count(evidence: Evidence, thing: str, worlds: str) -> str:
    """The number of things of a kind."""
    runs = _runs(evidence, worlds)
    counts = {
        "runs": len(runs),
        "worlds": len(_chosen(evidence, worlds)),
        "agents": len({run["agent"] for run in runs}),
        "trainings": sum(bool(run["train"]["steps"]) for run in runs),
    }
    return f"{counts[thing]:,}"


@value("unmade", "WORLDS")
def _unmade(evidence: Evidence, worlds: str) -> str:
    """Agents of the benchmark that are trained and not the paper's, without a run in the worlds.

    Left out are those that show one item a step, whose sessions are of another kind.
    """
    made = {run["agent"] for run in _runs(evidence, worlds)} | {*paper.METHODS.values()}
    trained = (
        agent.name
        for agent in AGENTS.values()
        if agent.rule is None and agent.env_options.get("action_type") != "discrete"
    )
    return ", ".join(f"*{name}*" for name in trained if name not in made) or "none"


def _chosen(evidence: Evidence, worlds: str) -> dict[World, dict[str, list[Result]]]:
    return {world: agents for world, agents in evidence.worlds.items() if WORLDS[worlds](world)}


def _runs(evidence: Evidence, worlds: str) -> list[Result]:
    chosen = _chosen(evidence, worlds).values()
    return [run for agents in chosen for runs in agents.values() for run in runs]


@value("training-sessions", "WORLDS")
def _training_sessions(evidence: Evidence, worlds: str) -> str:
    """For how many sessions the learned agents were trained, in hundreds."""
    return _listed(training_sizes(_runs(evidence, worlds)), "or")


@value("trained", "AGENT DATASET T")
def _trained(evidence: Evidence, agent: str, dataset: str, max_len: int) -> str:
    """For how many sessions one agent was trained, in hundreds."""
    return _listed(training_sizes(evidence.agents(dataset, max_len).get(agent, [])), "or")


@value("test-sessions", "WORLDS")
def _test_sessions(evidence: Evidence, worlds: str) -> str:
    """The number of test sessions of a seed."""
    return _listed({run["eval"]["sessions"] for run in _runs(evidence, worlds)}, "or")


@value("seeds", "WORLDS")
def _seeds(evidence: Evidence, worlds: str) -> str:
    """The seeds of runs."""
    return _listed({run["seed"] for run in _runs(evidence, worlds)}, "and")


def _listed(numbers: Iterable[int], word: str) -> str:
    """Numbers in words, ascending."""
    *most, last = [f"{number:,}" for number in sorted(numbers)] or [NOT_MADE]
    return f"{', '.join(most)} {word} {last}" if most else last
