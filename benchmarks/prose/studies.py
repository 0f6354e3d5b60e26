"""Values of studies beside the runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from .. import cost, exposure
from ..formatting import NOT_MADE, interval
from ..reports.comparisons import VERDICTS, sign_of
from ..reports.tables import DIGITS
from ..studies.results import world_of
from .evidence import Evidence
from .language import value


@value("cost", "POLICY DATASET T COUNT")
def _cost(evidence: Evidence, policy: str, dataset: str, max_len: int, count: str) -> str:
    """The loss of mean reward that a quota makes, in per cent."""
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


@value("exposure", "RULE VIEW")
def _exposure(evidence: Evidence, rule: str, metric: str) -> str:
    """A number of the table ``panels``: what a rule's slates have of a metric of exposure."""
    worlds = exposure.by_policy(evidence.studies(exposure.STUDY))
    return exposure.mean(exposure.example(worlds).get(rule, []), metric)


@value("contrast", "STUDY PATH KEY FIRST SECOND KEY=VALUE...")
def _contrast(evidence: Evidence, *words: str) -> str:
    """Numbers of a study at one value of a key less those at another, by seed and world's seed."""
    gains = _contrasts(evidence, *words)
    return interval(gains, _digits(words[1], gains), "+") if gains else NOT_MADE


@value("contrast-verdict", "STUDY PATH KEY FIRST SECOND KEY=VALUE...")
def _contrast_verdict(evidence: Evidence, *words: str) -> str:
    """A word for what the interval of such a contrast says."""
    gains = _contrasts(evidence, *words)
    return VERDICTS[sign_of(gains)] if gains else NOT_MADE


def _contrasts(
    evidence: Evidence, study: str, path: str, key: str, first: str, second: str, *conditions: str
) -> list[float]:
    """One difference a seed; empty where there are fewer than two, which make no interval."""
    sides = []
    for content in (first, second):
        leaves = _fitting(evidence, study, path, (*conditions, f"{key}={content}"))
        numbers = {leaf.unit: leaf.number for leaf in leaves}
        if len(numbers) < len(leaves):
            raise ValueError(f"one number a seed, which takes more conditions than {conditions}")
        sides.append(numbers)
    units = [unit for unit in sides[0] if unit in sides[1]]
    return [sides[0][unit] - sides[1][unit] for unit in units] if len(units) > 1 else []


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

    @property
    def unit(self) -> tuple[object, object]:
        """Seeds of the result and of its world, by which differences are paired."""
        return self.passed.get("seed"), self.passed.get("dataset.seed")


def _fitting(evidence: Evidence, study: str, path: str, conditions: Sequence[str]) -> list[Leaf]:
    """Numbers at the end of a path that fit conditions; empty where the study is not made."""
    contents = dict(map(_condition, conditions))
    results = evidence.studies(study)
    leaves = [leaf for result in results for leaf in _leaves(result, path.split("."), {})]
    if results and not leaves:
        raise ValueError(f"a path to numbers of the study {study} instead of {path!r}")
    keys = {key for leaf in leaves for key in leaf.passed}
    if leaves and (unknown := contents.keys() - keys):
        raise ValueError(f"conditions on {', '.join(sorted(keys))} instead of {sorted(unknown)}")
    return [
        leaf
        for leaf in leaves
        if all(str(leaf.passed.get(key)) == text for key, text in contents.items())
    ]


def _condition(text: str) -> tuple[str, str]:
    key, sign, content = text.partition("=")
    if not sign:
        raise ValueError(f"KEY=VALUE instead of {text!r}")
    return key, content


def _leaves(node: Any, path: list[str], passed: dict[str, Any]) -> Iterator[Leaf]:
    """Numbers at the end of a path."""
    if isinstance(node, list):
        for element in node:
            yield from _leaves(element, path, passed)
    elif isinstance(node, dict) and path and path[0] in node:
        passed = passed | dict(_scalars(node, ""))
        key, *following = path
        child = node[key]
        if following:
            yield from _leaves(child, following, passed)
        elif isinstance(child, int | float):
            yield Leaf(float(child), node.get(f"{key}_ci95"), passed)


def _scalars(node: dict[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    """Keys and what they hold, of a dictionary and those inside it, but not of lists."""
    for key, content in node.items():
        if isinstance(content, dict):
            yield from _scalars(content, f"{prefix}{key}.")
        elif not isinstance(content, list):
            yield f"{prefix}{key}", content
