from __future__ import annotations

import numpy as np
import pytest

from dsrm_agents.dsrm.erasure import erase, whiten, whiten_blindly
from kuaisim_gym.errors import ConfigError


def explained(states: np.ndarray, label: np.ndarray) -> float:
    """Share of the label's variance that a linear map of the states explains."""
    design = np.column_stack([states, np.ones(len(states))])
    residual = label - design @ np.linalg.lstsq(design, label, rcond=1e-4)[0]
    return float(1 - residual.var() / label.var())


@pytest.fixture
def causes() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """States that mix six causes, the causes, and a label that one of them makes."""
    rng = np.random.default_rng(0)
    hidden = rng.normal(size=(2000, 6))
    states = (hidden @ rng.normal(size=(6, 6)) + 3.0).astype(np.float32)
    return states, hidden, hidden[:, 0] + 0.1 * rng.normal(size=2000)


def test_whitened_states_have_mean_zero_and_the_identity_as_covariance(causes) -> None:
    white = whiten(causes[0])(causes[0])
    assert white.dtype == np.float32
    np.testing.assert_allclose(white.mean(axis=0), 0, atol=1e-4)
    np.testing.assert_allclose(np.cov(white.T), np.eye(6), atol=0.05)


def test_a_blind_reader_finds_nothing_and_all_else_is_there(causes) -> None:
    states, hidden, label = causes
    blind = whiten_blindly(states, label)(states)
    assert explained(states, label) > 0.95
    assert explained(blind, label) < 0.01
    for other in hidden.T[1:]:
        assert explained(blind, other) > 0.95
    unseen = np.random.default_rng(1).normal(size=(500, 6)).astype(np.float32)
    assert np.linalg.matrix_rank(whiten_blindly(states, label)(unseen), tol=1e-3) == 5


def test_erasure_keeps_what_it_can_in_its_place(causes) -> None:
    states, _, label = causes
    erased = erase(states, label)(states)
    assert explained(erased, label) < 0.01
    centred = states - states.mean(axis=0)
    kept = 1 - ((erased - centred) ** 2).sum() / (centred**2).sum()
    assert kept > 0.5
    nothing = erase(states, np.zeros((len(states), 0)))(states)
    np.testing.assert_allclose(nothing, centred, atol=0.02)


def test_a_label_that_says_nothing_erases_nothing(causes) -> None:
    states = causes[0]
    np.testing.assert_array_equal(
        whiten_blindly(states, np.ones(2000))(states), whiten(states)(states)
    )


@pytest.mark.parametrize("count", range(6))
def test_every_label_costs_one_dimension(causes, count: int) -> None:
    states, hidden, _ = causes
    blind = whiten_blindly(states, hidden[:, :count])
    assert np.linalg.matrix_rank(blind.matrix, tol=1e-6) == 6 - count
    for place, label in enumerate(hidden.T):
        found = explained(blind(states), label)
        assert found < 0.01 if place < count else found > 0.95


def test_a_label_that_others_tell_costs_nothing(causes) -> None:
    states, hidden, _ = causes
    told = np.column_stack([hidden[:, 0], 3 * hidden[:, 0] + 1, hidden[:, 1]])
    blind = whiten_blindly(states, told)
    assert np.linalg.matrix_rank(blind.matrix, tol=1e-6) == 4


def test_too_many_labels_are_refused(causes) -> None:
    states, hidden, _ = causes
    with pytest.raises(ConfigError, match="6 directions are too many for 6 coordinates"):
        whiten_blindly(states, hidden)
