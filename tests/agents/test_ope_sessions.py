"""Estimators of sessions: exact in a world that can be enumerated, and honest where they cannot."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from dsrm_agents.ope.estimators import Columns, Interval
from dsrm_agents.ope.evaluation import (
    METRICS,
    evaluate_off_policy,
    kish,
    metric_intervals,
    session_metrics,
)
from dsrm_agents.ope.logged import LoggedSessions
from dsrm_agents.ope.propensities import SoftmaxPolicy, epsilon_random
from dsrm_agents.ope.recording import log_sessions
from dsrm_agents.ope.sessions import (
    ESTIMATORS,
    StateModel,
    Steps,
    doubly_robust,
    per_decision,
    trajectory,
)
from kuaisim_gym.envs.tasks import make_batch
from kuaisim_gym.errors import ConfigError

B, E = np.array([0.6, 0.4]), np.array([0.3, 0.7])
HORIZON = 3


def enumerated() -> tuple[Steps, np.ndarray, np.ndarray]:
    """All sessions of up to three slates of one item, of two items.

    Item 1 is popular, is worth .5, and ends the session; item 0 is worth 1.

    Returns:
        The sessions, their probabilities under the logging policy, and the true sums of the
        evaluated one.
    """
    paths = [(*[0] * k, 1)[:HORIZON] for k in range(HORIZON + 1)]
    n = len(paths)
    alive, items = np.zeros((n, HORIZON), bool), np.zeros((n, HORIZON), int)
    for row, path in enumerate(paths):
        alive[row, : len(path)], items[row, : len(path)] = True, path
    chance_b, chance_e = (np.where(alive, policy[items], 1.0).prod(axis=1) for policy in (B, E))
    assert chance_b.sum() == pytest.approx(1.0) and chance_e.sum() == pytest.approx(1.0)
    log_ratio = np.where(alive, np.log(E / B)[items], 0.0)[:, :, None]
    answers = np.where(alive, np.array([1.0, 0.5])[items], 0.0)[:, :, None]
    popular = (alive & (items == 1))[:, :, None]
    states = np.pad(np.where(alive, 1, 0), ((0, 0), (0, 1)))
    steps = Steps(log_ratio, alive, answers, popular, states)
    truth = chance_e @ steps.sums.sum(axis=1)
    return steps, chance_b, truth


def in_expectation(columns: Columns, chance: np.ndarray) -> np.ndarray:
    return columns.function(chance @ columns.values)


@pytest.mark.parametrize(
    "estimator",
    [
        lambda steps: trajectory(steps, normalised=False),
        trajectory,
        lambda steps: per_decision(steps, normalised=False),
        per_decision,
        lambda steps: per_decision(steps, model="position"),
        lambda steps: per_decision(steps, model="cascade", normalised=False),
        doubly_robust,
    ],
)
def test_products_of_ratios_are_exact_in_expectation(estimator) -> None:
    steps, chance, truth = enumerated()
    both_halves = np.repeat(np.arange(len(chance)), 2)  # of cross-fitting
    columns = estimator(steps.take(both_halves))
    assert in_expectation(columns, chance[both_halves] / 2) == pytest.approx(truth, rel=1e-9)


def test_truth_by_hand() -> None:
    _, _, truth = enumerated()
    # Steps 1 + .3 + .09; rewards .3 + .09 + .027 and half of the others; popular: the last item.
    assert truth == pytest.approx([1.39, 0.417 + 0.973 / 2, 0.973])


def test_one_step_weights_forget_who_is_still_there() -> None:
    steps, chance, truth = enumerated()
    found = in_expectation(per_decision(steps, "none"), chance)
    assert found[0] == pytest.approx(1 + 0.6 + 0.36)  # the log's own length
    assert found[1] / found[0] == pytest.approx(truth[1] / truth[0])  # but the right R_each


def test_the_state_model_of_all_sessions_is_the_truth() -> None:
    steps, chance, truth = enumerated()
    many = steps.take(np.repeat(np.arange(len(chance)), np.round(chance * 20_000).astype(int)))
    model = StateModel.fit(many, 2)
    assert model.values[0, 1] == pytest.approx(truth, rel=1e-3)
    assert model.ratios[1, 1] == pytest.approx(E[0] / B[0], rel=1e-3)
    assert model.ratios[2, 1] == pytest.approx((E[0] / B[0]) ** 2, rel=1e-3)
    assert model.ratios[1, 0] == pytest.approx(E[1] / B[1], rel=1e-3)
    rows = np.random.default_rng(1).permutation(len(many))
    for name in ("marginalised", "direct", "marginalised doubly robust"):
        found = ESTIMATORS[name](many.take(rows)).estimate
        assert found == pytest.approx(truth, rel=0.03), name


def test_no_weight_is_too_large_for_a_number() -> None:
    steps, _, _ = enumerated()
    huge = Steps(
        np.where(steps.alive[:, :, None], 500.0, 0.0), steps.alive, steps.answers, steps.popular,
        steps.states,
    )  # fmt: skip
    for name, estimator in ESTIMATORS.items():
        assert np.isfinite(estimator(huge).estimate).all(), name


def test_metrics_of_sums_and_the_fold_of_ad() -> None:
    metrics = dict(zip(METRICS, session_metrics(np.array([10.0, 8.0, 4.0])), strict=True))
    assert metrics == pytest.approx(
        {"len": 10.0, "r_each": 0.8, "r_cum": 8.0, "longtail_share": 0.6, "ad": 0.2}
    )
    value = session_metrics(np.array([10.0, 8.0, 4.9]))
    ends = np.array([[9.0, 0.7, 7.0, 0.45, -9], [11.0, 0.9, 9.0, 0.57, 9]])
    found = metric_intervals(Interval(value, *ends))
    assert found["ad"] == pytest.approx((0.02, 0.0, 0.14))
    ends[:, 3] = 0.2, 0.4
    assert metric_intervals(Interval(value, *ends))["ad"][1:] == pytest.approx((0.2, 0.6))
    assert kish(np.array([1.0, 1.0, 2.0])) == pytest.approx(16 / 6) and kish(np.zeros(3)) == 0


# In the simulator


@pytest.fixture(scope="module")
def played(small):
    """A log of a softmax ranker, and a function that makes others."""
    batch = make_batch(
        1500, "kuairec", dataset=small, split="test", action_type="slate", max_len=8, slate_size=3
    )
    score = batch.catalogue.item_embedding[:, 0]
    labels = batch.groups.labels.astype(np.int64)

    def ranker(temperature: float, share: float) -> SoftmaxPolicy:
        return SoftmaxPolicy(score, temperature, (share, 1.0 - share), labels)

    logging = ranker(1.0, 0.5)
    return batch, ranker, logging, log_sessions(batch, logging, 3)


def test_a_log_tells_its_own_policy_exactly(played) -> None:
    batch, _, logging, logged = played
    assert (logged.log_probs_of(logging) == logged.log_probs).all()
    steps = Steps.of(logged, logging, batch.catalogue.popular)
    truth = steps.sums.sum(axis=1).mean(axis=0)
    for name, estimator in ESTIMATORS.items():
        assert estimator(steps).estimate == pytest.approx(truth, rel=2e-3), name


def test_estimates_are_near_the_truth_of_another_policy(played) -> None:
    batch, ranker, logging, logged = played
    policy, popular = ranker(0.7, 0.6), batch.catalogue.popular
    own = log_sessions(batch, policy, 90_000)
    truth = session_metrics(Steps.of(own, policy, popular).sums.sum(axis=1).mean(axis=0))
    found = evaluate_off_policy(logged, policy, popular, logging=logging)
    assert found.estimator == "doubly robust" and not found.refusal
    for name, true in zip(METRICS[:4], truth, strict=False):
        value, low, high = found.metrics[name]
        assert abs(value - true) < 2.0 * (high - low), name  # both have an error
        assert high - low < 0.2 * max(true, 0.5)


def test_the_tool_refuses_what_the_log_cannot_tell(played) -> None:
    batch, ranker, logging, logged = played
    popular = batch.catalogue.popular
    blind = ranker(1.0, 0.0)
    of_popular = log_sessions(batch, blind, 4)
    asked = evaluate_off_policy(of_popular, logging, popular, logging=blind)
    assert not asked.metrics and "could have shown" in asked.refusal
    assert asked.support.share < 0.5
    unasked = evaluate_off_policy(of_popular, logging, popular)
    assert not unasked.metrics and "instead of 1" in unasked.refusal
    few = evaluate_off_policy(logged.take(np.arange(150)), logging, popular, logging=logging)
    assert not few.metrics and "worth 150 sessions, and 200 are needed" in few.refusal
    far = evaluate_off_policy(logged, ranker(0.05, 0.9), popular, logging=logging)
    assert not far.metrics and far.refusal
    mixed = epsilon_random(blind, 0.3, batch.catalogue.n_items)
    log = log_sessions(batch, mixed, 5)
    found = evaluate_off_policy(log, mixed, popular, logging=mixed)
    assert not found.refusal and found.support.share == 1.0
    too_low = np.where(log.slates >= 0, log.log_probs - 0.5, 0.0)
    wrong = LoggedSessions(log.users, log.length, log.slates, log.rewards, too_low)
    assert "another policy's" in evaluate_off_policy(wrong, mixed, popular).refusal
    with pytest.raises(ConfigError, match="estimator"):
        evaluate_off_policy(logged, logging, popular, "guess")


def test_items_need_answers_of_their_own(played) -> None:
    batch, _, logging, logged = played
    alone = LoggedSessions(
        logged.users, logged.length, logged.slates, logged.rewards, logged.log_probs
    )
    steps = Steps.of(alone, logging, batch.catalogue.popular)
    assert steps.sums[:, :, 1] == pytest.approx(logged.rewards)
    with pytest.raises(ConfigError, match="items' answers"):
        per_decision(steps, model="position")
    strangers = replace(alone, users=np.full(len(alone), -1, np.int32))
    with pytest.raises(ConfigError, match="-1 is a user whom the log does not name"):
        Steps.of(strangers, logging, batch.catalogue.popular, np.zeros(9))
