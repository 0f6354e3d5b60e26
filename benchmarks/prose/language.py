"""Expressions inside pages: how they are read, and how their values are registered."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from kuaisim_gym.data import SOURCES
from kuaisim_gym.errors import ConfigError, DataFormatError
from kuaisim_gym.metrics import EXPOSURE_METRICS

from .. import exposure, paper
from ..agents import AGENTS
from ..reports import stability
from ..reports.comparisons import BEST
from ..studies.results import METRICS
from .evidence import WORLDS, Evidence

_VALUE = re.compile(r"<!-- = ((?:(?!-->).)*) -->((?:(?!<!--).)*)<!-- / -->")
_FIRST_IN_LINE = re.compile(r"^[ \t]*(?:(?:[-*+>]|\d+[.)])[ \t]+)*<!-- = .*", re.MULTILINE)


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

    unpaired = _VALUE.sub("", text)
    if stray := re.search(r"<!--\s*(?:=|/\s*-->).{0,60}", unpaired):
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
            raise ValueError(f"one of {', '.join(sorted(VALUES))}")
        return VALUES[name](evidence, words)
    except (ConfigError, DataFormatError):  # which are ValueErrors, and say all
        raise
    except ValueError as error:
        raise ConfigError(f"{page}: in <!-- = {expression} --> expected {error}.") from error


def choice(options: Iterable[str]) -> Callable[[str, Evidence], str]:
    """A reader of one of some words."""
    choices = tuple(options)

    def read(word: str, evidence: Evidence) -> str:
        if word not in choices:
            raise ValueError(f"one of {', '.join(choices)} instead of {word!r}")
        return word

    return read


def _agent(word: str, evidence: Evidence) -> str:
    names = {*AGENTS, *(run["agent"] for run in evidence.runs)}
    if word not in names:
        raise ValueError(f"an agent instead of {word!r}: one of {', '.join(sorted(names))}")
    return word


def _control(word: str, evidence: Evidence) -> str:
    return word if word == BEST else _agent(word, evidence)


def _steps(word: str, evidence: Evidence) -> int:
    if not re.fullmatch(r"[1-9]\d*", word):
        raise ValueError(f"a whole number of steps instead of {word!r}")
    return int(word)


def _text(word: str, evidence: Evidence) -> str:
    return word


# How an argument is read, by its name in the signature of a value.
ARGUMENTS: dict[str, Callable[[str, Evidence], Any]] = {
    "METRIC": choice(METRICS),
    "AGENT": _agent,
    "CONTROL": _control,
    "METHOD": choice(paper.METHODS),
    "DATASET": choice(SOURCES),
    "T": _steps,
    "WORLDS": choice(WORLDS),
    "SPREAD": choice(stability.SPREADS),
    "THING": choice(("runs", "worlds", "agents", "trainings")),
    "COUNT": choice(("exposures", "positives")),
    "RULE": choice(exposure.POLICIES),
    "VIEW": choice(metric.name for metric in EXPOSURE_METRICS),
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
