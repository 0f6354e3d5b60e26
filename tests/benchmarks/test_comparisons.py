"""Which runs are compared, and what stands in place of a comparison."""

from __future__ import annotations

import pytest

from benchmarks.formatting import NOT_COMPARABLE, NOT_MADE
from benchmarks.reports.comparisons import BEST, differences, obstacle, training_sizes
from benchmarks.reports.tables import by_world, markdown
from tests.benchmarks.handmade import pair, result

ALIKE = [*pair("dsrm-hrl", 20.0, 22.0), *pair("hrl", 19.0, 20.5)]
SHORTER = [*pair("dsrm-hrl", 20.0, 22.0), *pair("hrl", 19.0, 20.5, episodes=5_000)]


def test_tables_compare_agents_of_as_many_training_sessions_alone() -> None:
    line = "dsrm-hrl less hrl, seed by seed: Len +1.25 ±"
    assert line in markdown(ALIKE)
    assert "less hrl" not in markdown(SHORTER)


@pytest.mark.parametrize(
    ("runs", "control", "expected"),
    [
        (ALIKE, "flat", NOT_MADE),
        (ALIKE, BEST, NOT_MADE),
        (SHORTER, "hrl", NOT_COMPARABLE),
        ([*pair("dsrm-hrl", 1.0, 2.0), *pair("a2c", 1.0, 2.0, episodes=9)], BEST, NOT_COMPARABLE),
        ([*pair("dsrm-hrl", 1.0, 2.0), result("hrl", 19, 1.0)], "hrl", NOT_MADE),  # no common seed
    ],
)  # fmt: skip
def test_what_stands_in_place_of_a_comparison(runs, control: str, expected: str) -> None:
    (agents,) = by_world(runs).values()
    assert differences(agents, "len", "dsrm-hrl", control) == []
    assert obstacle(agents, "len", "dsrm-hrl", control) == expected


def test_runs_judged_by_other_numbers_of_sessions_are_not_compared() -> None:
    few = [run | {"eval": {"sessions": 10}} for run in pair("hrl", 19.0, 20.5)]
    (agents,) = by_world([*pair("dsrm-hrl", 20.0, 22.0), *few]).values()
    assert obstacle(agents, "len", "dsrm-hrl", "hrl") == NOT_COMPARABLE


def test_sizes_of_trainings_are_in_hundreds_and_of_the_trained_alone() -> None:
    runs = [*pair("hrl", 1.0, 2.0), *pair("random", 1.0, 2.0, steps=0, episodes=0)]
    assert training_sizes(runs) == [20_000]
