"""What off-policy evaluation refuses, in whose words; and what it takes although it looks odd."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from dsrm_agents.ope.evaluation import METRICS, evaluate_off_policy, support_of
from dsrm_agents.ope.logged import Context, LoggedSessions
from dsrm_agents.ope.propensities import Mixture, SoftmaxPolicy, epsilon_random, uniform_policy
from dsrm_agents.ope.recording import log_sessions
from dsrm_agents.ope.sessions import ESTIMATORS, Steps
from kuaisim_gym.envs.tasks import make_batch
from kuaisim_gym.errors import ConfigError, DataFormatError

SCORES = np.array([[0.0, 1.0, -0.5], [1.0, 0.0, 3.0]])
LABELS = np.array([0, 1, 0])


def sessions() -> dict[str, object]:
    """Two sessions of one and two steps, as nested lists."""
    return {
        "users": [0, 1],
        "length": [1, 2],
        "slates": [[[3], [-1]], [[1], [2]]],
        "rewards": [[1.0, 0.0], [0.5, 1.0]],
        "log_probs": [[[-1.0], [0.0]], [[-2.0], [-0.5]]],
        "responses": [[[1.0], [0.0]], [[0.5], [1.0]]],
        "patience": [[2.0, 0.0], [2.0, 1.0]],
    }


def test_lists_make_a_log_of_arrays() -> None:
    logged = LoggedSessions(**sessions(), n_items=4)
    assert logged.slates.dtype == np.int32 and logged.responses.dtype == np.float32
    assert logged.take([1]).n_items == 4 and logged.take([1]).slates.tolist() == [[[1], [2]]]


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("rewards", [[np.nan, 0.0], [0.5, 1.0]], "rewards must be finite, got nan at"),
        ("rewards", [[np.inf, 0.0], [0.5, 1.0]], "rewards must be finite"),
        ("rewards", [[1.0, 9.0], [0.5, 1.0]], "rewards must be zero from"),
        ("rewards", [["a", "b"], ["c", "d"]], "rewards must hold numbers"),
        ("rewards", [[1.0], [0.5, 1.0]], "rewards must be an array"),
        ("responses", [[[np.nan], [0.0]], [[0.5], [1.0]]], "responses must be finite"),
        ("responses", [[[-0.5], [0.0]], [[0.5], [1.0]]], "responses must lie in"),
        ("responses", [[[1.0], [0.5]], [[0.5], [1.0]]], "responses must be zero from"),
        ("patience", [[np.nan, 0.0], [2.0, 1.0]], "patience must be finite"),
        ("patience", [[-1.0, 0.0], [2.0, 1.0]], "patience must be at least 0, got -1"),
        ("patience", [[2.0, 1.0], [2.0, 1.0]], "patience must be zero from"),
        ("log_probs", [[[-1.0], [np.nan]], [[-2.0], [-0.5]]], "log_probs must be finite"),
        ("log_probs", [[[-1.0], [-1.0]], [[-2.0], [-0.5]]], "log_probs must be zero from"),
        ("length", [1.0, 2.0], "length must hold whole numbers"),
        ("users", [-2, 1], "users must be positions, or -1"),
        ("slates", [[[3.0], [-1.0]], [[1.0], [2.0]]], "slates must hold whole numbers"),
        ("slates", [[3, -1], [1, 2]], r"slates must have the shape \(sessions, steps, items\)"),
        ("slates", np.zeros((0, 2, 1), int), "at least one of each"),
        ("slates", [[[3], [-7]], [[1], [2]]], "-1 behind"),
        ("n_items", 3, "knows 3 items, and the log shows item 3"),
    ],
)
def test_a_log_says_what_is_wrong_with_it(name, value, words) -> None:
    with pytest.raises((DataFormatError, ConfigError), match=words):
        LoggedSessions(**sessions() | {name: value})


@pytest.mark.parametrize(
    "arguments",
    [
        {"scores": np.array([0.0, np.nan])},
        {"scores": np.array([0.0, np.inf])},
        {"scores": np.zeros((2, 2, 3))},
        {"scores": np.zeros(0)},
        {"scores": ["a", "b"]},
        {"scores": SCORES, "temperature": 1e-320},
        {"scores": SCORES, "temperature": np.nan},
        {"scores": np.array([-1e308, 1e308])},
        {"scores": SCORES, "shares": (0.5, 0.5), "labels": LABELS[:2]},
        {"scores": SCORES, "shares": (0.5, 0.5), "labels": LABELS + 1},
        {"scores": SCORES, "shares": (0.5, 0.5), "labels": [0.0, 1.0, 0.0]},
        {"scores": SCORES, "shares": (np.nan, 0.5), "labels": LABELS},
        {"scores": SCORES, "users": np.arange(3)},
        {"scores": SCORES, "users": [1, 1]},
        {"scores": SCORES, "users": [-1, 1]},
        {"scores": SCORES[0], "users": [0]},
    ],
)
def test_a_softmax_policy_refuses_its_arguments_at_once(arguments) -> None:
    with pytest.raises(ConfigError):
        SoftmaxPolicy(**arguments)


def test_lists_and_extreme_temperatures_make_a_softmax_policy() -> None:
    policy = SoftmaxPolicy(SCORES.tolist(), np.inf, [0.5, 0.5], LABELS.tolist(), [4, 2])
    asked = Context(np.array([2, 4], np.int32), np.zeros((2, 0), np.int64))
    found = np.exp(policy.log_prob(asked, np.array([[0, 1], [1, 2]])))
    assert found == pytest.approx(np.array([[0.25, 0.5], [0.5, 0.25]]))


def test_mixtures_and_uniform_policies_refuse_their_arguments() -> None:
    three = uniform_policy(3)
    for policies, weights in (
        ([three], [np.nan]), ([three], ["a"]), ([], []), ([three, uniform_policy(4)], [0.5, 0.5]),
    ):  # fmt: skip
        with pytest.raises(ConfigError):
            Mixture(policies, weights)
    for n_items in (-1, 0, 2.5):
        with pytest.raises(ConfigError, match="n_items"):
            uniform_policy(n_items)
    with pytest.raises(ConfigError, match="epsilon"):
        epsilon_random(three, 1.5, 3)


@pytest.mark.parametrize("temperature", [1e-3, 1e-5])
def test_a_cold_policy_draws_what_is_best_of_what_is_left(temperature) -> None:
    policy = SoftmaxPolicy(np.array([0.0, 1.0, 2.0, 2.0]), temperature)
    asked = Context(np.zeros(500, np.int32), np.full((500, 1), 3))
    drawn, log_prob = policy.act(asked, 2, np.random.default_rng(1))
    assert (drawn == [2, 1]).all() and log_prob == pytest.approx(0.0)
    # Of items 0 and 1 the first is worth one temperature's exponent less.
    late = policy.log_prob(Context(*(part[:1] for part in asked[:2])), np.array([[2, 0]]))
    assert late[0, 1] == pytest.approx(-1.0 / temperature)
    equal = SoftmaxPolicy(np.array([2.0, 0.0, 0.0, 0.0]), temperature)
    drawn, log_prob = equal.act(
        Context(asked.users, np.zeros((500, 1), int)), 1, np.random.default_rng(2)
    )
    assert np.exp(log_prob) == pytest.approx(1 / 3)
    assert np.bincount(drawn[:, 0], minlength=4) / 500 == pytest.approx(
        [0, 1 / 3, 1 / 3, 1 / 3], abs=0.08
    )


# In the simulator


@pytest.fixture(scope="module")
def played(small):
    """A batch, a policy near 1 in 900 sessions, and their log."""
    batch = make_batch(
        900, "kuairec", dataset=small, split="test", action_type="slate", max_len=6, slate_size=2
    )
    logging = SoftmaxPolicy(batch.catalogue.item_embedding[:, 0])
    return batch, logging, log_sessions(batch, logging, 3)


def test_items_are_as_many_for_log_policy_and_group(played) -> None:
    batch, logging, logged = played
    popular = batch.catalogue.popular
    for group in (popular[:10], np.append(popular, True)):
        with pytest.raises(ConfigError, match="of the popular group"):
            evaluate_off_policy(logged, logging, group)
    with pytest.raises(ConfigError, match="True or False"):
        evaluate_off_policy(logged, logging, popular * 0.5)
    few, silent = uniform_policy(10), replace(logged, n_items=None)
    for log in (logged, silent):
        with pytest.raises(ConfigError, match="10 of the policy|The policy knows 10"):
            log.log_probs_of(few)
        with pytest.raises(ConfigError, match="10 of the policy|popular group knows 10"):
            Steps.of(log, few, popular[:10])
    with pytest.raises(ConfigError, match="10 of the policy"):
        log_sessions(batch, few, 1)


def test_a_policy_that_did_not_log_is_no_logging_policy(played) -> None:
    batch, logging, logged = played
    popular = batch.catalogue.popular
    assert not evaluate_off_policy(logged, logging, popular, logging=logging).refusal
    for other in (uniform_policy(batch.catalogue.n_items), SoftmaxPolicy(np.arange(240.0))):
        with pytest.raises(ConfigError, match="logging must be the policy that acted"):
            evaluate_off_policy(logged, logging, popular, logging=other)


def test_direct_estimates_have_no_interval(played) -> None:
    batch, logging, logged = played
    found = evaluate_off_policy(logged, logging, batch.catalogue.popular, "direct")
    assert set(found.metrics) == set(METRICS)
    for interval in found.metrics.values():
        assert np.isfinite(interval.value) and np.isnan([interval.low, interval.high]).all()


def test_a_policy_next_to_the_log_is_never_doubted(played) -> None:
    """Rare slates of large weight, which the log may miss altogether."""
    batch, logging, logged = played
    popular = batch.catalogue.popular
    near = epsilon_random(logging, 1e-6, batch.catalogue.n_items)
    unasked = support_of(Steps.of(logged, near, popular), logged, near)
    assert abs(unasked.mean_weight - 1.0) > 1e-9 and not unasked.doubtful
    near = epsilon_random(logging, 0.02, batch.catalogue.n_items)
    steps = Steps.of(logged, near, popular)
    shifted = replace(steps, log_ratio=np.where(logged.slates >= 0, -0.01, 0.0))
    assert support_of(shifted, logged, near).doubtful
    asked = support_of(shifted, logged, near, logging)
    assert asked.share == 1.0 and not asked.doubtful


def test_states_take_any_rewards(played) -> None:
    """Without patience the rewards so far are the state, whichever sign and size they have."""
    batch, logging, logged = played
    popular = batch.catalogue.popular
    plain = replace(logged, patience=None, responses=None)
    below = replace(plain, rewards=plain.rewards - 3.0 * plain.alive)
    steps = Steps.of(below, logging, popular)
    assert ((steps.states[:, :-1] > 0) == below.alive).all()
    far = replace(plain, rewards=plain.rewards * 1e12)
    assert Steps.of(far, logging, popular).states.max() < 8 * logged.alive.sum()
    expected = ESTIMATORS["marginalised doubly robust"](Steps.of(plain, logging, popular)).estimate
    found = ESTIMATORS["marginalised doubly robust"](steps).estimate
    assert found[0] == pytest.approx(expected[0], rel=1e-2)


def test_sessions_and_covariates_that_cannot_be_are_refused(played) -> None:
    batch, logging, logged = played
    popular = batch.catalogue.popular
    with pytest.raises(ConfigError, match="at least 2 sessions"):
        evaluate_off_policy(logged.take(np.array([0])), logging, popular)
    for covariate in (np.zeros((5000, 2)), np.full(5000, np.nan), ["a"] * 5000):
        with pytest.raises(ConfigError, match="covariate"):
            evaluate_off_policy(logged, logging, popular, covariate=covariate)
    as_list = Steps.of(logged, logging, popular, [0.5] * 5000)
    assert (as_list.states == Steps.of(logged, logging, popular, np.full(5000, 0.5)).states).all()
    for seed in (-1, "a", 1.5):
        with pytest.raises(ConfigError, match="seed"):
            log_sessions(batch, logging, seed)


def test_tasks_whose_rewards_are_no_slates_are_refused_before_they_are_played(small) -> None:
    for options, words in (
        ({"task": "retention"}, "one session an episode"),
        ({"reward": "vector"}, "one number each as reward"),
    ):
        batch = make_batch(2, "kuairec", dataset=small, action_type="slate", **options)
        with pytest.raises(ConfigError, match=words):
            log_sessions(batch, uniform_policy(small.n_items), 1)
        assert not batch.core.state.steps.any()
