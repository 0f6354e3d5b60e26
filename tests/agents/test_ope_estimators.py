"""Estimators of single decisions and slates: known answers, cases by hand, and laws."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from dsrm_agents.ope.estimators import (
    Columns,
    bernstein_interval,
    bootstrap_interval,
    delta_interval,
    direct,
    doubly_robust,
    ips,
    snips,
)
from dsrm_agents.ope.slates import (
    cascade_doubly_robust,
    item_weights,
    pseudo_inverse,
    slate_ips,
    slate_snips,
)
from kuaisim_gym.errors import ConfigError

# Eight decisions between three actions, and what Open Bandit Pipeline 0.4.1 (obp, Saito et al.
# 2021) makes of them.
LOGGED = np.array([0.28, 0.34, 0.44, 0.23, 0.41, 0.21, 0.35, 0.66])
EVALUATED = np.array(
    [[0.13, 0.42, 0.45], [0.51, 0.22, 0.27], [0.14, 0.28, 0.58], [0.34, 0.12, 0.54],
     [0.33, 0.17, 0.5], [0.37, 0.42, 0.21], [0.2, 0.4, 0.4], [0.41, 0.32, 0.27]]
)  # fmt: skip
MODEL = np.array(
    [[0.97, 0.66, 0.43], [0.52, 0.87, 0.34], [0.59, 0.68, 0.36], [0.52, 0.77, 0.91],
     [0.15, 0.93, 0.01], [0.75, 0.81, 0.14], [0.42, 0.82, 0.01], [0.63, 0.79, 0.51]]
)  # fmt: skip
ACTIONS = np.array([2, 0, 0, 1, 0, 1, 2, 2])
REWARDS = np.array([1.0, 1.0, 0.0, 1.0, 0.0, 1.0, 1.0, 0.0])
ROWS = np.arange(8)
WEIGHTS = EVALUATED[ROWS, ACTIONS] / LOGGED
PREDICTED, EXPECTED = MODEL[ROWS, ACTIONS], (EVALUATED * MODEL).sum(axis=1)


@pytest.mark.parametrize(
    ("columns", "known"),
    [
        (ips(WEIGHTS, REWARDS), 0.8464673913043479),  # InverseProbabilityWeighting
        (snips(WEIGHTS, REWARDS), 0.8154899940501241),  # SelfNormalizedInverse...
        (direct(EXPECTED), 0.5390125),  # DirectMethod
        (doubly_robust(WEIGHTS, REWARDS, PREDICTED, EXPECTED), 0.8828130820399114),
        (
            doubly_robust(WEIGHTS, REWARDS, PREDICTED, EXPECTED, normalised=True),
            0.8702313248269458,
        ),
        # SwitchDoublyRobust(tau=1.2)
        (doubly_robust(WEIGHTS, REWARDS, PREDICTED, EXPECTED, switch=1.2), 0.6308041534684827),
    ],
)
def test_single_decisions_agree_with_open_bandit_pipeline(columns: Columns, known: float) -> None:
    assert columns.estimate == pytest.approx(known, rel=1e-12)


# Five slates of three, likewise: SlateStandardIPS, SlateIndependentIPS, SlateRewardInteractionIPS.
ANSWERS = np.array([[0, 0, 1], [0, 1, 0], [1, 1, 0], [0, 1, 0], [0, 0, 0]], dtype=float)
GIVEN_B = np.array(
    [[0.59, 0.27, 0.3], [0.2, 0.13, 0.21], [0.56, 0.52, 0.16], [0.4, 0.34, 0.4], [0.43, 0.25, 0.58]]
)
GIVEN_E = np.array(
    [[0.33, 0.41, 0.42], [0.19, 0.13, 0.31], [0.48, 0.51, 0.46], [0.16, 0.56, 0.5],
     [0.54, 0.36, 0.56]]
)  # fmt: skip
MARGINAL_B = np.array(
    [[0.12, 0.12, 0.11], [0.23, 0.22, 0.19], [0.38, 0.12, 0.4], [0.18, 0.44, 0.11],
     [0.26, 0.57, 0.37]]
)  # fmt: skip
MARGINAL_E = np.array(
    [[0.51, 0.43, 0.41], [0.2, 0.39, 0.12], [0.5, 0.58, 0.53], [0.13, 0.27, 0.26],
     [0.16, 0.41, 0.5]]
)  # fmt: skip


@pytest.mark.parametrize(
    ("model", "evaluated", "logging", "known"),
    [
        ("slate", GIVEN_E, GIVEN_B, 1.6497557571485788),
        ("position", MARGINAL_E, MARGINAL_B, 2.452551834130781),
        ("cascade", GIVEN_E, GIVEN_B, 0.8991405880039978),
    ],
)
def test_slates_agree_with_open_bandit_pipeline(model, evaluated, logging, known) -> None:
    columns = slate_ips(np.log(evaluated / logging), ANSWERS, model)
    assert columns.estimate == pytest.approx(known, rel=1e-12)


def test_weights_of_one_slate_by_hand() -> None:
    ratio = np.log([[2.0, 0.5, 3.0]])
    assert item_weights(ratio, "slate") == pytest.approx(np.array([[3.0, 3.0, 3.0]]))
    assert item_weights(ratio, "cascade") == pytest.approx(np.array([[2.0, 1.0, 3.0]]))
    assert item_weights(ratio, "position") == pytest.approx(np.array([[2.0, 0.5, 3.0]]))
    normalised = slate_snips(
        np.log([[2.0, 1.0], [1.0, 3.0]]), np.array([[1.0, 0], [0, 1]]), "position"
    )
    assert normalised.estimate == pytest.approx(2 / 3 + 3 / 4)
    with pytest.raises(ConfigError, match="model"):
        item_weights(ratio, "diagonal")


class Enumerated:
    """All slates of two places with three items each, drawn independently, and their answers.

    The second item's answer depends on the first one where ``cascade``.
    """

    def __init__(self, cascade: bool) -> None:
        self.slates = np.array([*itertools.product(range(3), range(3))])
        first, second = self.slates.T
        self.b = np.array([[0.5, 0.3, 0.2], [0.2, 0.2, 0.6]])
        self.e = np.array([[0.1, 0.2, 0.7], [0.3, 0.6, 0.1]])
        self.worth = np.array([0.2, 0.5, 0.9])
        second_worth = self.worth[second] * (np.array([1.0, 0.5, 0.1])[first] if cascade else 1.0)
        self.answers = np.stack([self.worth[first], second_worth], axis=1)
        self.chance_b, self.chance_e = (
            policy[[0, 1], self.slates].prod(axis=1) for policy in (self.b, self.e)
        )
        self.truth = float(self.chance_e @ self.answers.sum(axis=1))
        self.marginal_b, self.marginal_e = self.b[[0, 1], self.slates], self.e[[0, 1], self.slates]
        self.log_ratio = np.log(self.marginal_e / self.marginal_b)

    def mean(self, columns: Columns) -> float:
        """The estimate of infinitely many slates of the logging policy."""
        return float(columns.function(self.chance_b @ columns.values)[0])


@pytest.mark.parametrize(
    ("cascade", "model", "unbiased"),
    [(False, "position", True), (True, "position", False), (True, "cascade", True),
     (True, "slate", True), (False, "cascade", True)],
)  # fmt: skip
def test_slate_models_are_unbiased_where_their_assumption_holds(cascade, model, unbiased) -> None:
    world = Enumerated(cascade)
    for estimator in (slate_ips, slate_snips):
        estimate = world.mean(estimator(world.log_ratio, world.answers, model))
        assert (abs(estimate - world.truth) < 1e-12) == unbiased


def test_the_pseudo_inverse_needs_no_answers_but_a_sum_of_places() -> None:
    for cascade in (False, True):
        world = Enumerated(cascade)
        rewards = world.answers.sum(axis=1)
        columns = pseudo_inverse(world.marginal_e, world.marginal_b, rewards)
        assert (abs(world.mean(columns) - world.truth) < 1e-12) != cascade


def test_cascade_dr_is_unbiased_for_any_model_and_without_variance_for_the_true_one() -> None:
    world = Enumerated(True)
    first, _ = world.slates.T
    # The sum of the answers from each place on, given the items so far; and before the choice.
    later = np.array([1.0, 0.5, 0.1])[first] * (world.e[1] @ world.worth)
    true = np.stack([world.worth[first] + later, world.answers[:, 1]], axis=1)
    start = world.e[0] @ (world.worth + np.array([1.0, 0.5, 0.1]) * (world.e[1] @ world.worth))
    expected = np.stack([np.full(9, start), later], axis=1)
    exact = cascade_doubly_robust(world.log_ratio, world.answers, true, expected)
    assert exact.values == pytest.approx(np.full((9, 1), world.truth))
    wrong = cascade_doubly_robust(world.log_ratio, world.answers, 0 * true + 0.3, 0 * true + 0.3)
    assert world.mean(wrong) == pytest.approx(world.truth)
    assert np.ptp(wrong.values) > 0.1


def test_doubly_robust_is_right_if_either_model_is() -> None:
    world = Enumerated(False)
    weights, rewards = np.exp(world.log_ratio.sum(axis=1)), world.answers.sum(axis=1)
    value = np.full(9, world.truth)
    by_model = doubly_robust(weights**2, rewards, rewards, value)  # wrong weights
    by_weights = doubly_robust(weights, rewards, 0 * rewards, 0 * value)  # wrong model
    assert world.mean(by_model) == pytest.approx(world.truth)
    assert world.mean(by_weights) == pytest.approx(world.truth)
    assert abs(world.mean(ips(weights**2, rewards)) - world.truth) > 0.1


# Intervals


def test_the_delta_method_of_a_ratio_by_hand() -> None:
    values = np.array([[1.0, 2.0], [2.0, 2.0], [3.0, 6.0], [2.0, 6.0]])
    columns = Columns(values, lambda means: means[..., 1:] / means[..., :1])
    # ratio 2; influence (y - 2 x) / 2
    assert columns.influence()[:, 0] == pytest.approx([0.0, -1.0, 0.0, 1.0], abs=1e-8)
    interval = delta_interval(columns)
    half = 1.959964 * np.sqrt(2 / 3) / 2
    assert np.ravel(interval) == pytest.approx([2.0, 2.0 - half, 2.0 + half], rel=1e-6)


def test_all_intervals_hold_a_mean_as_often_as_they_say() -> None:
    rng = np.random.default_rng(5)
    held = {"delta": 0, "bootstrap": 0, "bernstein": 0}
    for _ in range(300):
        columns = ips(np.ones(80), rng.beta(2, 3, 80))
        columns = Columns(columns.values, span=1.0)
        found = {
            "delta": delta_interval(columns),
            "bootstrap": bootstrap_interval(columns, rng, 200),
            "bernstein": bernstein_interval(columns),
        }
        for name, (_, low, high) in found.items():
            held[name] += bool(low[0] <= 0.4 <= high[0])
    assert 0.91 < held["delta"] / 300 < 0.985 and 0.9 < held["bootstrap"] / 300 < 0.985
    assert held["bernstein"] == 300


def test_empirical_bernstein_by_hand() -> None:
    columns = ips(np.array([1.0, 9.0, 1.0, 1.0]), np.array([0.0, 1.0, 1.0, 0.0]), clip=2.0)
    assert columns.estimate == pytest.approx(0.75) and columns.span == 2.0
    log = np.log(80.0)
    half = np.sqrt(2 * columns.values.var(ddof=1) * log / 4) + 7 * 2.0 * log / 9
    assert bernstein_interval(columns).high == pytest.approx(0.75 + half)
    for unbounded in (ips(WEIGHTS, REWARDS), snips(WEIGHTS, REWARDS)):
        with pytest.raises(ConfigError, match="bounded rows"):
            bernstein_interval(unbounded)
