"""Aggregates, intervals and adjusted tests: by hand, and as rliable has them."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from benchmarks.reports import aggregates
from benchmarks.reports.aggregates import (
    holm,
    interquartile_mean,
    nested_interval,
    p_value,
    percentiles,
    performance_profile,
    probability_of_improvement,
    resampled,
)

KNOWN = json.loads(Path(__file__).with_name("rliable_answers.json").read_text(encoding="utf-8"))
SCORES, OTHERS = (np.array(KNOWN[name]) for name in ("scores", "others"))
BY_HAND = np.array([[0.0, 1.0, 2.0, 3.0], [4.0, 5.0, 6.0, 100.0]])  # two runs in four worlds


@pytest.mark.parametrize("name", ["mean", "median", "interquartile_mean", "optimality_gap"])
def test_aggregates_are_those_of_rliable(name: str) -> None:
    assert getattr(aggregates, name)(SCORES) == pytest.approx(KNOWN["answers"][name], abs=1e-12)


def test_profile_and_improvement_are_those_of_rliable() -> None:
    answers = KNOWN["answers"]
    profile = performance_profile(SCORES, np.array(KNOWN["thresholds"]))
    np.testing.assert_allclose(profile, answers["performance_profile"], atol=1e-12)
    found = probability_of_improvement(SCORES, OTHERS)
    assert found == pytest.approx(answers["probability_of_improvement"], abs=1e-12)


def test_intervals_are_those_of_rliable_but_for_chance() -> None:
    intervals, rng = KNOWN["answers"]["intervals"], np.random.default_rng(1)
    middle = percentiles(interquartile_mean(resampled(SCORES, rng)))
    np.testing.assert_allclose(middle, intervals["interquartile_mean"], atol=0.01)
    pairs = probability_of_improvement(resampled(SCORES, rng), resampled(OTHERS, rng))
    expected = intervals["probability_of_improvement"]
    np.testing.assert_allclose(percentiles(pairs), expected, atol=0.015)


def test_aggregates_by_hand() -> None:
    assert interquartile_mean(BY_HAND) == (2 + 3 + 4 + 5) / 4
    assert aggregates.mean(BY_HAND) == 121 / 8
    assert aggregates.median(BY_HAND) == (3 + 4) / 2  # of 2, 3, 4 and 51.5
    assert aggregates.optimality_gap(BY_HAND) == 1 / 8  # one run lacks 1
    assert performance_profile(BY_HAND, np.array([1.0, 4.5])).tolist() == [6 / 8, 3 / 8]
    # 1 against 1 is a tie, 1 is below 2, 3 is above both.
    assert probability_of_improvement(np.array([[1.0], [3.0]]), np.array([[1.0], [2.0]])) == 2.5 / 4


def test_leading_axes_are_resamples() -> None:
    both = np.stack([BY_HAND, BY_HAND + 1.0])
    for name in ("mean", "median", "interquartile_mean", "optimality_gap"):
        function = getattr(aggregates, name)
        np.testing.assert_allclose(function(both), [function(BY_HAND), function(BY_HAND + 1.0)])
    assert probability_of_improvement(both, both[::-1]).tolist() == [
        probability_of_improvement(BY_HAND, BY_HAND + 1.0),
        probability_of_improvement(BY_HAND + 1.0, BY_HAND),
    ]
    assert performance_profile(both, np.array([2.5])).tolist() == [[5 / 8], [6 / 8]]


def test_runs_are_drawn_within_their_worlds() -> None:
    draws = resampled(BY_HAND, np.random.default_rng(1))
    for place, column in enumerate(BY_HAND.T):
        assert set(np.unique(draws[..., place])) == set(column)
    # Worlds are drawn apart from each other: all 4 ** 2 pairs of rows of two worlds occur.
    pairs = np.unique(draws[:, :, :2].reshape(len(draws), -1), axis=0)
    assert len(pairs) == 2**4
    equal = np.tile(BY_HAND[:1], (3, 1))
    low, high = percentiles(interquartile_mean(resampled(equal, np.random.default_rng(1))))
    assert low == high == interquartile_mean(equal)


def test_an_interval_over_seeds_and_sessions() -> None:
    t = stats.t.ppf(0.975, 2)
    # A variance of 1 between means, of which .36 is of the sessions.
    found = nested_interval([9.0, 10.0, 11.0], [0.6, 0.6, 0.6])
    assert (found.mean, found.within) == (10.0, pytest.approx(0.6))
    assert found.between == pytest.approx(0.8)
    assert found.half_width == pytest.approx(t * math.sqrt(1 / 3))
    # Seeds that agree to the last digit tell nothing of their sessions.
    lucky = nested_interval([10.0, 10.0, 10.0], [0.3, 0.4, 0.5])
    assert lucky.between == 0.0
    assert lucky.half_width == pytest.approx(t * math.sqrt((0.09 + 0.16 + 0.25) / 3 / 3))


def test_an_interval_over_seeds_and_sessions_covers() -> None:
    """Of 2,000 true means at least 95 %, but for chance, whether seeds or sessions differ more."""
    rng = np.random.default_rng(1)
    for between, within in ((0.0, 1.0), (1.0, 1.0), (1.0, 0.1)):
        means = rng.normal(0.0, math.hypot(between, within), (2000, 3))
        found = [nested_interval(row, np.full(3, within)) for row in means]
        covered = np.mean([abs(one.mean) <= one.half_width for one in found])
        assert covered > 0.95 - 3 * math.sqrt(0.95 * 0.05 / 2000)


def test_a_paired_test() -> None:
    values = [0.1, 0.3, 0.25]
    assert p_value(values) == pytest.approx(stats.ttest_1samp(values, 0.0).pvalue)
    # t = 2 with one degree of freedom, Cauchy's distribution
    assert p_value([-0.1, -0.3]) == pytest.approx(1 - 2 * math.atan(2) / math.pi)
    assert (p_value([0.0, 0.0]), p_value([0.5, 0.5])) == (1.0, 0.0)


def test_holm_by_hand() -> None:
    adjusted = holm([0.01, 0.04, 0.03, 0.005])
    # .005 x 4, .01 x 3, .03 x 2, and .04 x 1, which may not be below the one before
    np.testing.assert_allclose(adjusted, [0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]).tolist() == [1.0, 1.0]
    assert holm([0.03]).tolist() == [0.03]
    assert holm([]).tolist() == []
