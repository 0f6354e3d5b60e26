"""Fair(L_t) and its weight, against hand computations, and what the two do to an agent."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsrm_agents import HierarchicalPPO, make_vec_env
from dsrm_agents.common.fairness import Fairness, FairnessWeight
from kuaisim_gym.errors import ConfigError
from kuaisim_gym.metrics import gini
from kuaisim_gym.simulator.catalogue import Catalogue

NOTHING = np.full((1, 12), -1)


def catalogue(n_items: int = 20) -> Catalogue:
    """Items 0, 1, ... by falling exposure; the first fifth is popular."""
    exposures = np.arange(n_items, 0, -1, dtype=np.int64) ** 2
    return Catalogue(np.zeros((n_items, 2), dtype=np.float32), exposures)


@pytest.mark.parametrize(
    ("slate", "expected"),
    [
        ((0, 1, 2, 3), -1.0),
        ((0, 1, 2, 19), -0.5),
        ((0, 10, 11, 3), 0.0),
        ((4, 1, 5, 6), -0.5),
        ((4, 5, 6, 7), -1.0),
    ],
)
def test_fairness_of_a_slate_by_hand(slate: tuple[int, ...], expected: float) -> None:
    found = Fairness("ad", catalogue())(np.array([slate, slate]), np.tile(NOTHING, (2, 1)))
    np.testing.assert_allclose(found, [expected, expected])
    assert found.dtype == np.float32


def test_what_was_shown_before_matters_to_the_gini_measure_alone() -> None:
    slate, before = np.array([[8, 9, 10, 0]]), np.array([[8, 9, 10, 11] + [-1] * 8])
    fair = Fairness("ad", catalogue())
    np.testing.assert_array_equal(fair(slate, before), fair(slate, NOTHING))
    fair = Fairness("gini", catalogue())
    assert fair(slate, before) < fair(slate, NOTHING)  # those items are no longer unseen


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 1000), min_size=1, max_size=12).filter(any))
def test_gini_is_half_the_relative_mean_difference(mass: list[int]) -> None:
    m = np.array(mass, dtype=float)
    expected = np.abs(m[:, None] - m[None, :]).mean() / (2 * m.mean())
    np.testing.assert_allclose(gini(np.stack([m, 3 * m[::-1]])), [expected, expected], atol=1e-9)
    assert gini(np.array(mass)) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("steps", [1, 3])
def test_gini_steps_sum_to_what_the_session_did(steps: int) -> None:
    # The platform's exposures have the mass of one full session of three slates of four.
    items, fair = catalogue(), Fairness("gini", catalogue())
    shown = np.random.default_rng(0).permuted(np.tile(np.arange(20), (5, 1)), axis=1)[:, :12]
    total = np.zeros(5)
    for step in range(steps):
        before = np.where(np.arange(12) < 4 * step, shown, -1)
        total += fair(shown[:, 4 * step : 4 * step + 4], before)
    platform = np.tile(items.exposures / items.exposures.sum() * 12, (5, 1))
    after = platform.copy()
    for row in range(5):
        after[row, shown[row, : 4 * steps]] += 1
    np.testing.assert_allclose(total, 3 * (gini(platform) - gini(after)), atol=1e-5)
    assert np.abs(total).min() > 0.01


def test_unpopular_items_gain_more_than_popular_ones() -> None:
    slates = np.arange(20).reshape(5, 4)
    gains = Fairness("gini", catalogue())(slates, np.tile(NOTHING, (5, 1)))
    assert (np.diff(gains) > 0).all()
    assert gains[0] < 0 < gains[-1]


def test_an_unknown_measure_is_refused() -> None:
    with pytest.raises(ConfigError, match="fairness must be one of"):
        Fairness("jain", catalogue())


def test_without_a_target_the_weight_is_constant() -> None:
    weight = FairnessWeight(1.5, None, 10.0)
    for fairness in (-1.0, 0.0, 1.0):
        weight.update(fairness)
        assert weight.value == 1.5


def test_the_multiplier_ascends_when_short_and_descends_to_zero() -> None:
    weight = FairnessWeight(0.25, 0.75, 0.5)
    found = []
    for fairness in (0.25, 0.75, 0.0, 1.0, 1.75, 1.75, 0.5):
        weight.update(fairness)
        found.append(weight.value)
    assert found == [0.5, 0.5, 0.875, 0.75, 0.25, 0.0, 0.125]


@pytest.mark.parametrize("bad", [-0.1, np.nan, np.inf])
def test_bad_weights_are_refused(bad: float) -> None:
    with pytest.raises(ConfigError, match=f"fairness_coef must be a finite number.*{bad}"):
        FairnessWeight(bad, None, 1.0)
    with pytest.raises(ConfigError, match=f"multiplier_step must be a finite number.*{bad}"):
        FairnessWeight(1.0, None, bad)


@pytest.mark.parametrize("bad", [np.nan, -np.inf])
def test_targets_that_are_no_numbers_are_refused(bad: float) -> None:
    with pytest.raises(ConfigError, match="fairness_target must be a finite number or None"):
        FairnessWeight(1.0, bad, 1.0)


def trained(small, steps: int, **options) -> tuple[float, list[float]]:
    """Mean Fair of the last rollout, and the multiplier in all of them.

    Nobody leaves over imbalance, so that fairness has no value by itself.
    """
    env = make_vec_env(
        "KuaiRec-v0", 16, dataset=small, max_len=4, observation_type="dict", action_type="slate"
    )
    model = HierarchicalPPO(
        "HierarchicalPolicy",
        env,
        n_steps=16,
        batch_size=128,
        learning_rate=3e-3,
        manager_gamma=0.0,
        policy_kwargs={"manager_lr_scale": 3.0},
        seed=0,
        device="cpu",
        **options,
    )
    weights = [model.weight.value]

    def follow(state: dict, _: dict) -> bool:
        if weights[-1] != model.weight.value:
            weights.append(model.weight.value)
        return True

    model.learn(steps, follow, log_interval=None)
    return model.logger.name_to_value["rollout/fairness"], weights


def test_the_multiplier_brings_the_agent_to_its_target(small) -> None:
    free, _ = trained(small, 3072, fairness="ad", fairness_coef=0.0)
    assert free < -0.25
    held, weights = trained(
        small, 5120, fairness="ad", fairness_coef=0.0, fairness_target=-0.1, multiplier_step=3.0
    )
    assert held > -0.1
    assert weights[0] == 0.0
    assert max(weights) > 1.0
    assert weights[-1] < max(weights)  # more than the target was reached, so it went back


def test_a_fairness_reward_teaches_balance(small) -> None:
    free, _ = trained(small, 2048, fairness="ad", fairness_coef=0.0)
    assert free < -0.25
    paid, weights = trained(small, 2048, fairness="ad", fairness_coef=3.0)
    assert paid > -0.15
    assert weights == [3.0]
