"""Metrics against numbers worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kuaisim_gym import metrics
from kuaisim_gym.metrics import Sessions

POPULAR = np.array([True, True, False, False, False])


@pytest.fixture
def two() -> Sessions:
    """One session of two steps, one of one step, slates of two."""
    return Sessions(
        length=np.array([2, 1]),
        rewards=np.array([[1.0, 0.5], [0.0, 0.0]]),
        penalised=np.array([[False, True], [True, False]]),
        slates=np.array([[[0, 2], [1, 0]], [[3, 4], [-1, -1]]], dtype=np.int32),
    )


def test_hand_computed(two: Sessions) -> None:
    found = metrics.summarise(two, POPULAR)
    assert found["len"] == 1.5
    assert found["r_cum"] == 0.75  # (1.5 + 0) / 2
    assert found["r_each"] == 0.5  # 1.5 over three steps
    assert found["q"] == pytest.approx(2 / 3)
    # Step 1: p = 1/4, |2p - 1| = 1/2; step 2: p = 1, so 1. Mean 3/4.
    assert found["ad"] == pytest.approx(0.75)
    # Slates: {0,2} balanced, {1,0} and {3,4} one-sided: (0 + 1 + 1) / 3.
    assert found["slate_ad"] == pytest.approx(2 / 3)
    assert found["longtail_share"] == pytest.approx(0.5)
    assert found["coverage"] == 1.0
    # Counts 2,1,1,1,1: sum of ranks (-4,-2,0,2,4) over sorted (1,1,1,1,2) = 4; 4 / (5 * 6).
    assert found["gini"] == pytest.approx(4 / 30)


def test_ad_cancels_over_users_but_slate_ad_does_not() -> None:
    opposed = Sessions(
        length=np.array([1, 1]),
        rewards=np.zeros((2, 1)),
        penalised=np.ones((2, 1), dtype=bool),
        slates=np.array([[[0, 1]], [[2, 3]]], dtype=np.int32),
    )
    assert metrics.absolute_difference(opposed, POPULAR) == 0.0
    assert metrics.slate_absolute_difference(opposed, POPULAR) == 1.0


@given(st.lists(st.integers(0, 50), min_size=2, max_size=40).filter(sum))
def test_gini_is_bounded_and_knows_equality(counts: list[int]) -> None:
    value = metrics.gini(np.array(counts))
    assert -1e-12 <= value <= 1 - 1 / len(counts) + 1e-12
    assert metrics.gini(np.full(len(counts), 3)) == pytest.approx(0)
    assert metrics.gini(np.array(counts) * 7) == pytest.approx(value)


def test_the_bootstrap_matches_the_standard_error_of_a_mean() -> None:
    rng = np.random.default_rng(0)
    n = 400
    lengths = rng.integers(10, 31, n)
    sessions = Sessions(
        lengths, np.ones((n, 30)), np.zeros((n, 30), bool), np.zeros((n, 30, 1), np.int32)
    )
    half = metrics.bootstrap_ci95(
        sessions, lambda sample: {"len": metrics.session_length(sample)}, rng, resamples=1000
    )
    assert half["len"] == pytest.approx(1.96 * lengths.std() / np.sqrt(n), rel=0.1)


def test_concatenate_keeps_order(two: Sessions) -> None:
    joined = Sessions.concatenate([two.take(np.array([1])), two.take(np.array([0]))])
    assert joined.length.tolist() == [1, 2]
    assert len(joined) == 2
