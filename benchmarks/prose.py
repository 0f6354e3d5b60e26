"""Values inside the prose of pages, made from results.

A page holds ``<!-- = EXPRESSION -->value<!-- / -->``, and :func:`filled` writes the value anew. An
expression is the name of a value and its arguments, parted by blanks::

    len dsrm-hrl kuairec 30          # mean ± 95 % interval over seeds
    gain len dsrm-hrl hrl kuairec 30 # the same of a difference, seed by seed
    study labels rows.filter.gauc dataset.name=kuairand-pool    # a study beside the runs

:data:`VALUES` holds all values. Only today's worlds count; a value without its runs is
:data:`NOT_MADE`.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, NamedTuple

import numpy as np

from kuaisim_gym.data import SOURCES
from kuaisim_gym.envs.assembly import SessionBatch
from kuaisim_gym.errors import ConfigError

from . import cost, paper, stability
from .agents import AGENTS
from .formatting import interval, mean_and_ci95
from .origin import is_older
from .results import METRICS, Result, World, world_of
from .standings import is_synthetic
from .tables import DIGITS, by_world, metric, training_sizes

NOT_MADE = "not made"
# Stands for the published method, apart from the paper's own, with the best mean in a world.
BEST = "best-published"
OWN = "dsrm-hrl"
RIVALS = tuple(agent for agent in paper.agents_of(2) if agent != OWN)
LESS_IS_BETTER = frozenset({"ad", "slate_ad", "q", "gini"})
# Worlds that are counted: their names and which they are.
WORLDS: dict[str, Callable[[World], bool]] = {
    "all": lambda world: True,
    "synthetic": is_synthetic,
    "real": lambda world: not is_synthetic(world),
}
VERDICTS = {1: "above", 0: "level with", -1: "below"}

_VALUE = re.compile(r"<!-- = ((?:(?!-->).)*) -->((?:(?!<!--).)*)<!-- / -->", re.DOTALL)
_FIRST_IN_LINE = re.compile(r"^[ \t]*(?:(?:[-*+>]|\d+[.)])[ \t]+)*<!-- = .*", re.MULTILINE)


@dataclass(frozen=True)
class Evidence:
    """Results that pages speak of.

    Attributes:
        runs: Results of runs, of any worlds.
        read: Function from the name of a study to its results; empty where there are none.
    """

    runs: list[Result]
    read: Callable[[str], list[Result]] = field(default=lambda study: [])

    @cached_property
    def worlds(self) -> dict[World, dict[str, list[Result]]]:
        """Runs by world and agent: today's worlds of whole sessions, under the paper's rule."""
        return {
            world: agents
            for world, agents in by_world(self.runs).items()
            if world.task is SessionBatch
            and not world.is_older
            and not world.seed
            and "-Fair-" in world.env
        }

    def agents(self, dataset: str, max_len: int) -> dict[str, list[Result]]:
        """Runs by agent in one world; empty where it has none.

        Raises:
            ValueError: Several worlds have this name and length.
        """
        found = [
            world for world in self.worlds if (world.dataset, world.max_len) == (dataset, max_len)
        ]
        if len(found) > 1:
            raise ValueError(f"one world, but there are {[world.title for world in found]}")
        return self.worlds[found[0]] if found else {}

    def studies(self, study: str) -> list[Result]:
        """Results of a study, without those of older worlds."""
        return [result for result in self.read(study) if not is_older(_block(result))]


def _block(result: Result) -> Result:
    """The ``dataset`` block; of studies without one, a block that is of today."""
    block = result.get("dataset")
    return block if isinstance(block, dict) else {"name": "", "synthetic": False}


def filled(text: str, evidence: Evidence, page: str) -> str:
    """The text of a page with today's values between its comments.

    Args:
        text: Markdown.
        evidence: Results.
        page: Name of the page, for errors.

    Raises:
        ConfigError: An expression is malformed, or a comment is where Markdown cannot have it.
    """
    if comment := _FIRST_IN_LINE.search(text):
        raise ConfigError(
            f"{page}: {comment[0].strip()!r} begins a line, which Markdown takes for a block of "
            "HTML: put a word before it."
        )

    def renewed(match: re.Match[str]) -> str:
        return f"<!-- = {match[1]} -->{value_of(match[1], evidence, page)}<!-- / -->"

    rest = _VALUE.sub("", text)
    if stray := re.search(r"<!-- (?:=|/ -->).{0,60}", rest):
        raise ConfigError(
            f"{page}: {stray[0]!r} is no pair: expected <!-- = EXPRESSION -->value<!-- / -->."
        )
    return _VALUE.sub(renewed, text)


def value_of(expression: str, evidence: Evidence, page: str = "a page") -> str:
    """The value of an expression.

    Args:
        expression: Name of a value, and its arguments.
        evidence: Results.
        page: Where the expression stands, for errors.

    Raises:
        ConfigError: The expression is malformed.
    """
    try:
        name, *words = shlex.split(expression) or [""]
        if name not in VALUES:
            raise ValueError(f"one of {', '.join(VALUES)}")
        return VALUES[name](evidence, words)
    except ValueError as error:
        raise ConfigError(f"{page}: in <!-- = {expression} --> expected {error}.") from error


def _choice(options: Iterable[str]) -> Callable[[str, Evidence], str]:
    """A reader of one of some words."""
    known = tuple(options)

    def read(word: str, evidence: Evidence) -> str:
        if word not in known:
            raise ValueError(f"one of {', '.join(known)} instead of {word!r}")
        return word

    return read


def _agent(word: str, evidence: Evidence) -> str:
    known = {*AGENTS, *(run["agent"] for run in evidence.runs)}
    if word not in known:
        raise ValueError(f"an agent instead of {word!r}: one of {', '.join(sorted(known))}")
    return word


def _control(word: str, evidence: Evidence) -> str:
    return word if word == BEST else _agent(word, evidence)


def _whole(word: str, evidence: Evidence) -> int:
    if not re.fullmatch(r"[1-9]\d*", word):
        raise ValueError(f"a whole number of steps instead of {word!r}")
    return int(word)


def _text(word: str, evidence: Evidence) -> str:
    return word


# How an argument is read, by its name in the signature of a value.
ARGUMENTS: dict[str, Callable[[str, Evidence], Any]] = {
    "METRIC": _choice(METRICS),
    "AGENT": _agent,
    "CONTROL": _control,
    "METHOD": _choice(paper.METHODS),
    "DATASET": _choice(SOURCES),
    "T": _whole,
    "WORLDS": _choice(WORLDS),
    "SPREAD": _choice(stability.SPREADS),
    "THING": _choice(("runs", "worlds", "agents", "trainings")),
    "COUNT": _choice(("exposures", "positives")),
    "POLICY": _text,
    "STUDY": _text,
    "PATH": _text,
    "KEY": _text,
    "FIRST": _text,
    "SECOND": _text,
    "KEY=VALUE": _text,
}


class Value(NamedTuple):
    """A value that prose may hold.

    Attributes:
        function: Makes it of evidence and arguments; raises ``ValueError`` with what it expected.
        arguments: Keys of :data:`ARGUMENTS`; the last may be given any number of times where it
            ends with an ellipsis.
    """

    function: Callable[..., str]
    arguments: tuple[str, ...]

    def __call__(self, evidence: Evidence, words: Sequence[str]) -> str:
        names = self.arguments
        if names and names[-1].endswith("..."):
            repeated = names[-1].removesuffix("...")
            names = (*names[:-1], *[repeated] * (len(words) - len(names) + 1))
        if len(words) != len(names):
            raise ValueError(f"the arguments {' '.join(self.arguments) or '(none)'}")
        read = (ARGUMENTS[name](word, evidence) for name, word in zip(names, words, strict=True))
        return self.function(evidence, *read)


VALUES: dict[str, Value] = {}


def value(name: str, arguments: str) -> Callable[[Callable[..., str]], Callable[..., str]]:
    """Registers a value under a name.

    Args:
        name: First word of its expressions.
        arguments: Names of its arguments, see :class:`Value`.
    """

    def register(function: Callable[..., str]) -> Callable[..., str]:
        VALUES[name] = Value(function, tuple(arguments.split()))
        return function

    return register


# Of runs.


def _mean(measure: str, evidence: Evidence, agent: str, dataset: str, max_len: int) -> str:
    runs = evidence.agents(dataset, max_len).get(agent, [])
    return interval(metric(runs, measure), DIGITS.get(measure, 3)) or NOT_MADE


for _name in METRICS:
    value(_name, "AGENT DATASET T")(partial(_mean, _name))


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


@value("gain", "METRIC AGENT CONTROL DATASET T")
def _gain(
    evidence: Evidence, measure: str, agent: str, control: str, dataset: str, max_len: int
) -> str:
    """A difference, seed by seed, with its interval."""
    gains = differences(evidence.agents(dataset, max_len), measure, agent, control)
    return interval(gains, DIGITS.get(measure, 3), "+") or NOT_MADE


@value("verdict", "METRIC AGENT CONTROL DATASET T")
def _verdict(
    evidence: Evidence, measure: str, agent: str, control: str, dataset: str, max_len: int
) -> str:
    """What the interval of the difference says, in a word."""
    gains = differences(evidence.agents(dataset, max_len), measure, agent, control)
    return VERDICTS[sign_of(gains)] if gains else NOT_MADE


@value("share", "METRIC AGENT CONTROL DATASET T")
def _share(
    evidence: Evidence, measure: str, agent: str, control: str, dataset: str, max_len: int
) -> str:
    """The ratio of two means."""
    return share(evidence.agents(dataset, max_len), measure, agent, control) or NOT_MADE


def share(agents: dict[str, list[Result]], measure: str, agent: str, control: str) -> str:
    """The ratio of two agents' means in a world; empty where one has no runs."""
    control = best_published(agents, measure) if control == BEST else control
    if not (agents.get(agent) and agents.get(control)):
        return ""
    over, under = (np.mean(metric(agents[name], measure)) for name in (agent, control))
    return f"{over / under:.3f}" if under else ""


def _worlds_with(
    sign: int, evidence: Evidence, measure: str, agent: str, control: str, worlds: str
) -> str:
    """In how many worlds an agent is above, level or below, beyond the interval."""
    gains = [
        differences(agents, measure, agent, control)
        for world, agents in evidence.worlds.items()
        if WORLDS[worlds](world)
    ]
    signs = [sign_of(each) for each in gains if each]
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
    found = {
        world: is_better(agents, measure, agent)
        for world, agents in _chosen(evidence, worlds).items()
    }
    texts = [
        f"{', '.join(names)} ({world.dataset}, T = {world.max_len})"
        for world, methods in found.items()
        if (names := [method for method, better in methods.items() if not better])
    ]
    return ("; ".join(texts) or "none") if any(found.values()) else NOT_MADE


@value("beaten", "METRIC AGENT WORLDS")
def _beaten(evidence: Evidence, measure: str, agent: str, worlds: str) -> str:
    """How many cells of published methods an agent beats beyond the interval, of those made."""
    beaten = [
        better
        for agents in _chosen(evidence, worlds).values()
        for better in is_better(agents, measure, agent).values()
    ]
    return f"{sum(beaten)} of {len(beaten)}" if beaten else NOT_MADE


def is_better(agents: dict[str, list[Result]], measure: str, agent: str) -> dict[str, bool]:
    """Whether an agent is better than each published method beyond the interval, in one world."""
    better = -1 if measure in LESS_IS_BETTER else 1
    rivals = (rival for rival in RIVALS if rival != agent)
    gains = {rival: differences(agents, measure, agent, rival) for rival in rivals}
    return {AGENTS[rival].label: sign_of(each) == better for rival, each in gains.items() if each}


@value("deviation", "SPREAD AGENT DATASET T")
def _deviation(evidence: Evidence, spread: str, agent: str, dataset: str, max_len: int) -> str:
    """A standard deviation, see :func:`~benchmarks.stability.spreads`."""
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
        return NOT_MADE
    numerator, denominator = (float(text.strip("*").replace(",", "")) for text in (over, under))
    return f"{numerator / denominator:.1f}" if denominator else NOT_MADE


# Of the paper.


@value("published", "METRIC METHOD DATASET T")
def _published(evidence: Evidence, measure: str, method: str, dataset: str, max_len: int) -> str:
    """The paper's mean ± standard deviation."""
    figures = paper.published(dataset, max_len)
    if method not in figures or measure not in figures[method]:
        worlds = "kuairec or kuairand, T = 30 or 50"
        raise ValueError(f"a published figure: len, r_each, r_cum or ad of {worlds}")
    return figures[method][measure]


@value("published-seconds", "METHOD")
def _published_seconds(evidence: Evidence, method: str) -> str:
    """The paper's training seconds."""
    return f"{paper.TRAINING_SECONDS[_choice(paper.TRAINING_SECONDS)(method, evidence)]:,}"


@value("published-times", "METHOD METHOD")
def _published_times(evidence: Evidence, method: str, control: str) -> str:
    """The ratio of two methods' training seconds in the paper."""
    read = _choice(paper.TRAINING_SECONDS)
    first, second = (paper.TRAINING_SECONDS[read(name, evidence)] for name in (method, control))
    return f"{first / second:.1f}"


# Counts.


@value("count", "THING WORLDS")
def _count(evidence: Evidence, thing: str, worlds: str) -> str:
    """How many things there are."""
    runs = _runs(evidence, worlds)
    counts = {
        "runs": len(runs),
        "worlds": len(_chosen(evidence, worlds)),
        "agents": len({run["agent"] for run in runs}),
        "trainings": sum(bool(run["train"]["steps"]) for run in runs),
    }
    return f"{counts[thing]:,}"


def _chosen(evidence: Evidence, worlds: str) -> dict[World, dict[str, list[Result]]]:
    return {world: each for world, each in evidence.worlds.items() if WORLDS[worlds](world)}


def _runs(evidence: Evidence, worlds: str) -> list[Result]:
    chosen = _chosen(evidence, worlds).values()
    return [run for agents in chosen for each in agents.values() for run in each]


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
    """How many test sessions a seed has."""
    return _listed({run["eval"]["sessions"] for run in _runs(evidence, worlds)}, "or")


@value("seeds", "WORLDS")
def _seeds(evidence: Evidence, worlds: str) -> str:
    """The seeds of runs."""
    return _listed({run["seed"] for run in _runs(evidence, worlds)}, "and")


def _listed(numbers: Iterable[int], word: str) -> str:
    """Numbers in words, ascending."""
    *most, last = [f"{number:,}" for number in sorted(numbers)] or [NOT_MADE]
    return f"{', '.join(most)} {word} {last}" if most else last


# Of studies beside the runs.


@value("cost", "POLICY DATASET T COUNT")
def _cost(evidence: Evidence, policy: str, dataset: str, max_len: int, count: str) -> str:
    """What a quota takes of the mean reward of a policy, in per cent."""
    for result in evidence.studies(cost.STUDY):
        world = world_of(result)
        if (world.dataset, world.max_len, world.seed) != (dataset, max_len, 0):
            continue
        changes = cost.quota_changes(result)
        if result["popularity"] == count and policy in changes:
            change, half = changes[policy]
            return f"{-change:z.1f} ± {half:.1f} %"
    return NOT_MADE


@value("study", "STUDY PATH KEY=VALUE...")
def _study(evidence: Evidence, study: str, path: str, *conditions: str) -> str:
    """A number of a study's results: its mean, and the 95 % interval over those that fit.

    The path leads through keys, and through all elements of lists. Conditions are on any key that
    is passed on the way, such as ``seed=11`` or ``dataset.name=kuairec``. One number that fits has
    the interval that stands beside it in the result, if there is one.
    """
    leaves = _fitting(evidence, study, path, conditions)
    if not leaves:
        return NOT_MADE
    numbers = [leaf.number for leaf in leaves]
    text, half = interval(numbers, digits := _digits(path, numbers)), leaves[0].half
    return text if len(leaves) > 1 or half is None else f"{text} ± {half:.{digits}f}"


@value("contrast", "STUDY PATH KEY FIRST SECOND KEY=VALUE...")
def _contrast(evidence: Evidence, *words: str) -> str:
    """Numbers of a study at one value of a key less those at another, seed by seed."""
    gains = _contrasts(evidence, *words)
    return interval(gains, _digits(words[1], gains), "+") if gains else NOT_MADE


@value("contrast-verdict", "STUDY PATH KEY FIRST SECOND KEY=VALUE...")
def _contrast_verdict(evidence: Evidence, *words: str) -> str:
    """What the interval of such a contrast says, in a word."""
    gains = _contrasts(evidence, *words)
    return VERDICTS[sign_of(gains)] if gains else NOT_MADE


def _contrasts(
    evidence: Evidence, study: str, path: str, key: str, first: str, second: str, *conditions: str
) -> list[float]:
    """One difference a seed; empty where there are fewer than two, which make no interval."""
    sides = []
    for content in (first, second):
        leaves = _fitting(evidence, study, path, (*conditions, f"{key}={content}"))
        numbers = {leaf.passed.get("seed"): leaf.number for leaf in leaves}
        if len(numbers) < len(leaves):
            raise ValueError(f"one number a seed, which takes more conditions than {conditions}")
        sides.append(numbers)
    seeds = [seed for seed in sides[0] if seed in sides[1]]
    return [sides[0][seed] - sides[1][seed] for seed in seeds] if len(seeds) > 1 else []


def _digits(path: str, numbers: list[float]) -> int:
    """Decimal places: those of a metric, or so many that three or four figures are shown."""
    size = abs(float(np.mean(numbers)))
    return DIGITS.get(path.rpartition(".")[2], 3 if size < 10 else 1 if size < 100 else 0)


class Leaf(NamedTuple):
    """A number in a study's result.

    Attributes:
        number: The number.
        half: Half-width of its interval, where the result has one beside it.
        passed: Keys and contents on the way to it.
    """

    number: float
    half: float | None
    passed: dict[str, Any]


def _fitting(evidence: Evidence, study: str, path: str, conditions: Sequence[str]) -> list[Leaf]:
    """Numbers at the end of a path that fit conditions; empty where the study is not made."""
    wanted = dict(map(_condition, conditions))
    results = evidence.studies(study)
    leaves = [leaf for result in results for leaf in _leaves(result, path.split("."), {})]
    if results and not leaves:
        raise ValueError(f"a path to numbers of the study {study} instead of {path!r}")
    known = {key for leaf in leaves for key in leaf.passed}
    if leaves and (unknown := wanted.keys() - known):
        raise ValueError(f"conditions on {', '.join(sorted(known))} instead of {sorted(unknown)}")
    return [
        leaf
        for leaf in leaves
        if all(str(leaf.passed.get(key)) == text for key, text in wanted.items())
    ]


def _condition(text: str) -> tuple[str, str]:
    key, sign, wanted = text.partition("=")
    if not sign:
        raise ValueError(f"KEY=VALUE instead of {text!r}")
    return key, wanted


def _leaves(node: Any, path: list[str], passed: dict[str, Any]) -> Iterator[Leaf]:
    """Numbers at the end of a path."""
    if isinstance(node, list):
        for element in node:
            yield from _leaves(element, path, passed)
    elif isinstance(node, dict) and path and path[0] in node:
        passed = passed | dict(_scalars(node, ""))
        key, *rest = path
        child = node[key]
        if rest:
            yield from _leaves(child, rest, passed)
        elif isinstance(child, int | float):
            yield Leaf(float(child), node.get(f"{key}_ci95"), passed)


def _scalars(node: dict[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    """Keys and what they hold, of a dictionary and those inside it, but not of lists."""
    for key, content in node.items():
        if isinstance(content, dict):
            yield from _scalars(content, f"{prefix}{key}.")
        elif not isinstance(content, list):
            yield f"{prefix}{key}", content
