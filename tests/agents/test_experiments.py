"""A/B tests: hand-computed cases, laws, and errors of inference against their promises."""

from __future__ import annotations

import hashlib
import math
import subprocess
import sys

import numpy as np
import pytest

from dsrm_agents.experiments import (
    Estimate,
    SequentialTest,
    assign,
    compare,
    imbalance_p_value,
    power_of,
    running_ratio,
    share_guardrail,
    users_needed,
    variance_needed,
    worst_guardrail,
)
from kuaisim_gym.errors import ConfigError, DataFormatError

Z = 1.959963984540054


def stream(seed: int, n_users: int = 300, n_sessions: int = 1500, effect: float = 0.0):
    """Sessions of users who differ, at random times: users, arms, and one number a session."""
    rng = np.random.default_rng(seed)
    users = rng.integers(0, n_users, n_sessions)
    treated = assign(range(n_users), f"salt {seed}")[users]
    level = rng.exponential(1.0, n_users)
    return users, treated, level[users] + rng.normal(0, 1, n_sessions) + effect * treated


# Assignment


def test_a_hash_is_the_same_everywhere() -> None:
    first = [hashlib.sha256(f"new:{user}".encode()).digest()[0] for user in range(1, 9)]
    assert assign(range(1, 9), "new").tolist() == [byte < 128 for byte in first]
    code = "from dsrm_agents.experiments import assign; print(assign(range(64), 'x').tolist())"
    env = {"PYTHONHASHSEED": "1", "PYTHONPATH": ":".join(sys.path)}
    other = subprocess.check_output([sys.executable, "-c", code], env=env, text=True)
    assert other.strip() == str(assign(range(64), "x").tolist())


def test_an_id_is_its_text_and_a_subset_keeps_its_arms() -> None:
    assert assign([7, "7", np.int64(7)], "x").tolist() == 3 * [bool(assign([7], "x")[0])]
    everyone = assign(range(1000), "x")
    assert (assign(range(500, 1000), "x") == everyone[500:]).all()
    # A larger share keeps those who were treated.
    assert (assign(range(1000), "x", 0.8) >= everyone).all()


@pytest.mark.parametrize("share", [0.1, 0.5])
def test_arms_have_their_shares_and_salts_are_independent(share: float) -> None:
    n = 20_000
    first, second = (assign(range(n), salt, share) for salt in ("one", "two"))
    for arms, expected in ((first, share), (second, share), (first & second, share**2)):
        error = math.sqrt(expected * (1 - expected) / n)
        assert abs(arms.mean() - expected) < 4 * error
    # Neighbours are no more alike than others.
    assert abs(np.corrcoef(first[1:], first[:-1])[0, 1]) < 4 / math.sqrt(n)


def test_a_lost_part_of_an_arm_shows() -> None:
    assert imbalance_p_value(50, 100) == 1.0
    assert imbalance_p_value(60, 100) == pytest.approx(math.erfc(2 / math.sqrt(2)))
    assert imbalance_p_value(4_700, 10_000) < 1e-8
    with pytest.raises(ConfigError, match=r"share must be a number in \(0, 1\)"):
        assign([1], "x", 1.0)


# Ratios and their differences


def test_the_delta_method_by_hand() -> None:
    # Users 5 and 9 with sums (3, 2) and (1, 2): R = 4 / 4, residuals 1 and -1,
    # variance 2 / 1 * (1 + 1) / 4^2.
    ratio, variance, users = running_ratio(np.array([5, 9, 5]), [1, 1, 2], [1, 2, 1])
    assert users.tolist() == [1, 2, 2]
    assert ratio == pytest.approx([1, 2 / 3, 1])
    assert np.isnan(variance[0])
    # After two sessions: R = 2 / 3, residuals 1 / 3 and -1 / 3, variance 2 * 2 / 9 / 3^2.
    assert variance[1:] == pytest.approx([4 / 81, 1 / 4])


def test_with_one_session_a_user_it_is_the_variance_of_a_mean() -> None:
    values = np.random.default_rng(1).normal(3, 2, 50)
    ratio, variance, _ = running_ratio(np.arange(50), values, np.ones(50))
    assert ratio[-1] == pytest.approx(values.mean())
    assert variance[-1] == pytest.approx(values.var(ddof=1) / 50)


def test_one_pass_equals_the_formula_after_every_session() -> None:
    users, _, values = stream(2, n_users=12, n_sessions=60)
    weights = np.random.default_rng(3).uniform(1, 4, 60)
    ratio, variance, n_users = running_ratio(users, values + 1e6, weights)
    for end in range(20, 60):
        a, b = (np.bincount(users[:end], x[:end]) for x in (values + 1e6, weights))
        seen = b > 0
        a, b, n = a[seen], b[seen], seen.sum()
        expected = n / (n - 1) * ((a - a.sum() / b.sum() * b) ** 2).sum() / b.sum() ** 2
        assert n_users[end - 1] == n
        assert ratio[end - 1] == pytest.approx(a.sum() / b.sum())
        assert variance[end - 1] == pytest.approx(expected, rel=1e-6)


def test_a_comparison_holds_the_latest_of_both_arms() -> None:
    treated = np.array([False, True, True, False])
    path = compare(np.array([1, 2, 3, 4]), treated, [1, 5, 7, 3], np.ones(4))
    assert path.control == pytest.approx([1, 1, 1, 2])
    assert path.treatment == pytest.approx([np.nan, 5, 6, 6], nan_ok=True)
    assert path.users.tolist() == [[1, 0], [1, 1], [1, 2], [2, 2]]
    assert np.isnan(path.variance[:3]).all()
    assert path.last == pytest.approx((4, 2.0))
    assert path.last.interval() == pytest.approx((4 - Z * 2**0.5, 4 + Z * 2**0.5))
    assert Estimate(Z, 1.0).p_value == pytest.approx(0.05)
    assert (Estimate(0.0, 0.0).p_value, Estimate(1.0, 0.0).p_value) == (1.0, 0.0)


def test_sessions_of_one_user_are_not_counted_as_independent() -> None:
    rng = np.random.default_rng(4)
    users, level = np.arange(400) % 40, rng.normal(0, 1, 40)
    _, variance, _ = running_ratio(users, level[users], np.ones(400))
    # Ten equal sessions a user: as good as one.
    assert variance[-1] == pytest.approx(level.var(ddof=1) / 40)


def test_bad_sessions_are_refused() -> None:
    ones, arms = np.ones(2), np.array([True, False])
    with pytest.raises(DataFormatError, match="1 are in both, such as 3"):
        compare(np.array([3, 3]), arms, ones, ones)
    with pytest.raises(DataFormatError, match="positive denominators"):
        compare(np.array([3, 4]), arms, ones, np.array([1.0, 0.0]))
    with pytest.raises(DataFormatError, match=r"got shapes \[\(2,\), \(3,\), \(2,\)\]"):
        compare(np.array([3, 4]), arms, np.ones(3), ones)


def test_sessions_may_be_lists_and_users_text() -> None:
    users, treated, values = stream(1)
    ones = np.ones(len(users))
    known = compare(users, treated, values, ones)
    lists = compare(users.tolist(), treated.tolist(), values.tolist(), ones.tolist())
    # Names are in another order than numbers, which changes nothing but the order of sums.
    text = compare([f"user {user}" for user in users], treated.astype(int), values, ones)
    objects = compare(users.astype(object), treated.astype(float), values, ones)
    for other in (lists, text, objects):
        for one, same in zip(known, other, strict=True):
            assert np.allclose(one, same, rtol=1e-9, equal_nan=True)
    for rail, columns in ((worst_guardrail, (values,)), (share_guardrail, (values > 0,))):
        expected = rail(users, treated, *columns, ones, 0.05)
        assert rail(users.tolist(), treated.tolist(), *columns, ones, 0.05) == expected
        assert rail(users, treated.astype(int), *columns, ones, 0.05) == expected
        text = rail(users.astype(str), treated, *columns, ones, 0.05)
        assert text[:5] == pytest.approx(expected[:5]) and text.verdict == expected.verdict


ALL_CHECKS = (
    compare,
    lambda users, treated, a, b: share_guardrail(users, treated, a, b, 0.05),
    lambda users, treated, a, b: worst_guardrail(users, treated, a, b, 0.05),
)


@pytest.mark.parametrize("check", ALL_CHECKS, ids=["compare", "share", "worst"])
def test_all_that_takes_sessions_refuses_the_same(check) -> None:
    users, treated, a, b = [1, 2, 3, 4], [0, 0, 1, 1], [1.0, 2.0, 1.0, 2.0], [2.0, 2.0, 2.0, 2.0]
    check(users, treated, a, b)
    for changed, text in (
        ({"users": [1, 2, 3, 1]}, "1 are in both, such as 1"),
        ({"users": ["ann", "bob", "eve", "ann"]}, "1 are in both, such as ann"),
        ({"users": [1.0, 2.0, 3.0, np.nan]}, "users must be ids, got NaN"),
        ({"users": [[1, 2, 3, 4]]}, "arrays of users"),
        ({"treated": [0, 0, 1, 2]}, "treated must be bools, or 0 and 1"),
        ({"treated": ["no", "no", "yes", "yes"]}, "treated must be bools, or 0 and 1"),
        ({"treated": [0, 0, 1]}, "at least one session"),
        ({"a": [1.0, 2.0, np.nan, 2.0]}, "finite numerators"),
        ({"a": [1.0, 2.0, "b", 2.0]}, "arrays of numbers"),
        ({"a": [1.0]}, "got shapes"),
        ({"b": [0.0, 0.0, 0.0, 0.0]}, "positive denominators"),
    ):
        good = {"users": users, "treated": treated, "a": a, "b": b}
        with pytest.raises(DataFormatError, match=text):
            check(*(good | changed).values())
    with pytest.raises(DataFormatError, match="positive denominators"):
        running_ratio([1, 2], [1, 2], [0, 0])


def test_users_who_are_all_alike_have_no_variance() -> None:
    rng, users = np.random.default_rng(2), np.arange(3000) % 500
    for share in (0.1, 1 / 3, 0.7, 1e6 + 0.1, 1e-6):
        lengths = rng.integers(1, 30, 3000).astype(float)
        _, variance, _ = running_ratio(users, share * lengths, lengths)
        assert (variance[1:] == 0.0).all()
        path = compare(users, users % 2, share * lengths, lengths)
        assert path.last.p_value == 1.0 and SequentialTest(0.01).decided(path) is None
    # One user who differs by a millionth is seen.
    _, variance, _ = running_ratio(users, 1.0 + 1e-6 * (users == 7), np.ones(3000))
    assert variance[-1] == pytest.approx(1e-12 * 0.002 * 0.998 / 499, rel=1e-3)


@pytest.mark.parametrize("rate", [0.005, 0.01])
def test_rare_conversions_are_not_decided_by_rounding(rate: float) -> None:
    rng, decided, ones = np.random.default_rng(3), 0, np.ones(400)
    for _ in range(300):
        treated, converted = rng.random(400) < 0.5, rng.random(400) < rate
        path = compare(np.arange(400), treated, converted, ones)
        decided += SequentialTest.planned(0.02).decided(path) is not None
    assert decided <= 15


def test_an_arm_without_events_is_no_evidence() -> None:
    users, treated = arms_of(400)
    path = compare(users, treated, treated & (users % 3 == 0), np.ones(400))
    assert path.control[-1] == 0.0 and path.variances[-1, 0] == 0.0 < path.variances[-1, 1]
    test = SequentialTest.planned(0.05)
    assert test.decided(path) is None and np.isinf(test.interval(path)).all()
    # With an event in the control arm the same difference is found.
    both = compare(users, treated, (treated & (users % 3 == 0)) | (users == 0), np.ones(400))
    assert test.decided(both) is not None


# The sequential test


def test_likelihood_ratio_and_bound_by_hand() -> None:
    test = SequentialTest(scale=1.0)
    # V = 1: L = sqrt(1 / 2) exp(d^2 / 4).
    assert test.log_ratio(2.0, 1.0) == pytest.approx(1 - 0.5 * math.log(2))
    assert test.radius(1.0) == pytest.approx(math.sqrt(2 * (math.log(2) - 2 * math.log(0.05))))
    assert np.isinf(test.radius(np.nan))
    assert test.log_ratio(np.nan, np.nan) == 0.0
    # A variance of none is not known, however small the difference.
    assert np.isinf(test.radius(0.0))
    assert test.log_ratio(1e-17, 0.0) == test.log_ratio(1.0, 0.0) == 0.0


@pytest.mark.parametrize("alpha", [0.01, 0.05, 0.3])
def test_the_interval_is_what_the_likelihood_ratio_does_not_reject(alpha: float) -> None:
    test, variances = SequentialTest(0.7, alpha), np.geomspace(1e-6, 1e3, 30)
    on_the_bound = test.log_ratio(test.radius(variances), variances)
    assert on_the_bound == pytest.approx(np.full(30, -math.log(alpha)))


def test_the_likelihood_ratio_averages_one_without_a_difference() -> None:
    # E[L] = 1 for every V: integrate over the normal density of the estimate.
    test, z = SequentialTest(scale=0.8), np.linspace(-12, 12, 20_001)
    density = np.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)
    for variance in (0.5, 2.0):
        ratio = np.exp(test.log_ratio(z * math.sqrt(variance), variance))
        assert (ratio * density).sum() * (z[1] - z[0]) == pytest.approx(1.0, abs=1e-4)


def test_a_planned_test_is_tightest_where_the_fixed_one_has_its_power() -> None:
    test, best = SequentialTest.planned(0.3), variance_needed(0.3)
    ratios = [test.radius(best * factor) / math.sqrt(best * factor) for factor in (0.8, 1, 1.25)]
    assert ratios[1] < min(ratios[0], ratios[2])
    # sqrt((x + 1) / x * x) at x = log(x + 1) - 2 log .05 = 8.206.
    assert ratios[1] == pytest.approx(math.sqrt(9.206), abs=1e-3)


@pytest.mark.parametrize("seed", range(5))
def test_laws_of_a_path(seed: int) -> None:
    users, treated, values = stream(seed, effect=0.4 * seed)
    path, test = compare(users, treated, values, np.ones(len(users))), SequentialTest(0.4)
    low, high = test.interval(path)
    looks = test.looks(path)
    assert not looks[:99].any() and looks[-1]
    half = Z * np.sqrt(path.variance[looks])
    assert (low[looks] < path.effect[looks] - half).all()
    assert (high[looks] > path.effect[looks] + half).all()
    p_values = test.p_values(path)
    assert (np.diff(p_values) <= 0).all() and p_values[0] == 1.0
    assert (p_values[~looks] == 1.0).all()
    # The p-value falls to alpha exactly where an interval first leaves zero out.
    outside = np.flatnonzero((low > 0) | (high < 0))
    assert test.decided(path) == (outside[0] if len(outside) else None)


def test_peeking_inflates_the_fixed_test_and_not_the_sequential_one() -> None:
    rng, tests, n = np.random.default_rng(5), 250, 1000
    peeked = always = 0
    for _ in range(tests):
        users, level = rng.integers(0, 400, n), rng.exponential(1.0, 400)
        treated = (rng.random(400) < 0.5)[users]
        path = compare(users, treated, level[users] + rng.normal(0, 1, n), np.ones(n))
        test = SequentialTest(0.4)
        looks = test.looks(path)
        peeked += bool((np.abs(path.effect) > Z * np.sqrt(path.variance))[looks].any())
        always += test.decided(path) is not None
    assert peeked / tests > 0.2
    assert always / tests <= 0.05


def test_the_interval_of_all_times_holds_the_truth_at_all_times() -> None:
    misses = 0
    for seed in range(100):
        path = compare(*stream(100 + seed, effect=0.7), np.ones(1500))
        low, high = SequentialTest.planned(0.3).interval(path)
        misses += bool(((low > 0.7) | (high < 0.7)).any())
    assert misses <= 0.05 * 100 + 3


@pytest.mark.parametrize(
    ("options", "text"),
    [({"scale": 0.0}, "scale"), ({"alpha": 1.0}, "alpha"), ({"least_users": 1}, "least_users")],
)
def test_bad_tests_are_refused(options: dict, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        SequentialTest(**{"scale": 1.0, **options})


# Power


def test_sample_sizes_of_textbooks() -> None:
    # A difference of half a standard deviation: 63 in each arm for 80 %, 84.1 for 90 %.
    assert users_needed(0.5, 1.0) == 126
    assert users_needed(0.5, 1.0, power=0.9) == 169
    assert users_needed(-0.5, 1.0) == 126
    # One tenth treated: 1 / .1 + 1 / .9 in place of 4.
    assert users_needed(0.5, 1.0, share=0.1) == math.ceil(31.395 * (10 + 1 / 0.9))


def test_power_and_variance_are_inverse() -> None:
    assert power_of(0.0, 1.0) == pytest.approx(0.05)
    assert power_of(Z, 1.0) == pytest.approx(0.5, abs=1e-4)
    for power in (0.3, 0.8, 0.95):
        assert power_of(0.2, variance_needed(0.2, power)) == pytest.approx(power, abs=3e-3)
    with pytest.raises(ConfigError, match="smallest difference that matters"):
        variance_needed(0.0)
    with pytest.raises(ConfigError, match=r"power must be a number in \(0.025, 1\)"):
        variance_needed(0.1, power=0.02)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: imbalance_p_value(0, 0), "users must be an integer of at least 1, got 0"),
        (lambda: imbalance_p_value(3, 5, 1.0), r"share must be a number in \(0, 1\), got 1.0"),
        (lambda: imbalance_p_value(3, 5, 2.0), r"share must be a number in \(0, 1\), got 2.0"),
        (lambda: imbalance_p_value(9, 5), "treated must be at most the 5 users"),
        (lambda: imbalance_p_value(-1, 5), "treated must be an integer of at least 0"),
        (lambda: power_of(0.5, 0.0), r"variance must be a number in \(0, inf\), got 0.0"),
        (lambda: power_of(0.5, -1.0), r"variance must be .* got -1.0"),
        (lambda: power_of(math.nan, 1.0), "effect must be a finite number, got nan"),
        (lambda: power_of(0.5, 1.0, 0.0), r"alpha must be a number in \(0, 1\), got 0.0"),
        (lambda: power_of(0.5, 1.0, 1e-17), "alpha must be at least 1e-15, got 1e-17"),
        (lambda: Estimate(1.0, 1.0).interval(0), r"alpha must be a number in \(0, 1\), got 0"),
        (lambda: Estimate(1.0, 1.0).interval(2), r"alpha must be a number in \(0, 1\), got 2"),
        (lambda: users_needed(1e-300, 1), "a variance that a float holds, got 1e-300"),
        (lambda: users_needed(1e-140, 1e200), "large enough for a number of users, got 1e-140"),
        (lambda: users_needed("a", 1), "effect must be a finite number other than 0, got 'a'"),
        (lambda: assign("abc", "x"), "users must be ids, such as a list of them, got 'abc'"),
        (lambda: assign(5, "x"), "users must be ids, such as a list of them, got 5"),
    ],
)
def test_bad_numbers_are_refused(call, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        call()


def test_tests_reject_as_often_as_their_power_says() -> None:
    rng, tests, n = np.random.default_rng(6), 600, 200
    effect, rejections = 0.4, 0
    for _ in range(tests):
        treated = rng.random(n) < 0.5
        path = compare(np.arange(n), treated, rng.normal(0, 1, n) + effect * treated, np.ones(n))
        rejections += path.last.p_value < 0.05
    assert rejections / tests == pytest.approx(power_of(effect, 4 / n), abs=0.04)


# Guardrails


def arms_of(n: int = 400):
    return np.arange(n), np.arange(n) % 2 == 1


def test_balance_kept_broken_and_open() -> None:
    users, treated = arms_of()
    ten = np.full(400, 10.0)
    kept = share_guardrail(users, treated, np.full(400, 5.0), ten, margin=0.05)
    assert (kept.control, kept.treatment, kept.verdict) == (0.0, 0.0, "kept")
    popular = np.where(treated, 9.0, 5.0)
    broken = share_guardrail(users, treated, popular, ten, margin=0.05)
    assert (broken.treatment, broken.verdict) == (pytest.approx(0.8), "broken")
    # The long tail's excess is as bad as the popular group's.
    mirrored = share_guardrail(users, treated, 10.0 - popular, ten, margin=0.05)
    assert mirrored[:5] == pytest.approx(broken[:5])
    rng = np.random.default_rng(7)
    noisy = share_guardrail(users, treated, rng.integers(0, 11, 400).astype(float), ten, 0.05)
    assert noisy.verdict == "open" and noisy.low < 0.05 < noisy.high


def test_the_interval_of_balance_holds_at_the_kink() -> None:
    rng, misses = np.random.default_rng(8), 0
    users, treated = arms_of(200)
    for _ in range(300):  # both arms are balanced: the true rise is 0
        popular = rng.binomial(10, 0.5, 200).astype(float)
        rail = share_guardrail(users, treated, popular, np.full(200, 10.0), margin=0.05)
        misses += not rail.low <= 0.0 <= rail.high
    assert misses <= 15


def test_the_worst_tenth_by_hand() -> None:
    users, treated = arms_of(200)
    values = np.repeat(np.arange(20.0), 10) - 3.0 * treated
    rail = worst_guardrail(users, treated, values, np.ones(200), margin=1.0)
    # The lowest ten of five each of 0 to 19, and of -3 to 16.
    assert (rail.control, rail.treatment) == (0.5, -2.5)
    assert (rail.low + rail.high) / 2 == pytest.approx(3.0)
    # min(x, 1) is five 0 and 95 1: variance 100 / 99 .05 .95 each, over .1^2 and 100 users.
    radius = SequentialTest.planned(1.0).radius(2 * 100 / 99 * 0.05 * 0.95 / 0.01 / 100)
    assert (rail.high - rail.low) / 2 == pytest.approx(radius)


def test_a_loss_of_the_worst_alone_is_seen_by_the_guardrail_alone() -> None:
    rng = np.random.default_rng(9)
    users, treated = arms_of(6000)
    values = rng.uniform(10, 12, 6000)
    harmed = treated & (values < 10.3)
    values = values - 4.0 * harmed + 0.6 * treated  # the mean stays
    assert abs(compare(users, treated, values, np.ones(6000)).last.effect) < 0.1
    assert worst_guardrail(users, treated, values, np.ones(6000), 1.0).verdict == "broken"
    with pytest.raises(DataFormatError, match="two users in each arm, got 1"):
        worst_guardrail(users[:3], treated[:3], values[:3], np.ones(3), 1.0)


def test_guardrails_say_nothing_of_few_users() -> None:
    rng = np.random.default_rng(10)
    for n in (2, 10, 20, 49, 50):
        users, treated = arms_of(2 * n)
        harm = np.where(treated, 1.0, 9.0) + rng.normal(0, 0.01, 2 * n)
        worst = worst_guardrail(users, treated, harm, np.ones(2 * n), 0.5)
        share = share_guardrail(users, treated, np.where(treated, 9, 5), np.full(2 * n, 10), 0.05)
        verdict = "broken" if n == 50 else "open"
        assert (worst.verdict, share.verdict) == (verdict, verdict)
        if n < 50:
            assert (worst.low, worst.high) == (-math.inf, math.inf)
            assert (share.low, share.high) == (-1.0, 1.0)  # AD is in [0, 1]
    # A hundredth of 200 users is two: their quantile is no estimate.
    users, treated = arms_of(400)
    values = rng.normal(0, 0.01, 400)
    assert worst_guardrail(users, treated, values, np.ones(400), 0.5, 0.01).verdict == "open"
    assert worst_guardrail(users, treated, values, np.ones(400), 0.5, 0.1).verdict == "kept"


def test_bad_guardrails_are_refused() -> None:
    users, treated = arms_of()
    fives, tens = np.full(400, 5.0), np.full(400, 10.0)
    for share in (0, 2):
        with pytest.raises(ConfigError, match=r"share must be a number in \(0, 1\], got"):
            worst_guardrail(users, treated, fives, tens, 1.0, share=share)
    for margin in (-1, 0):
        with pytest.raises(ConfigError, match=r"margin must be a number in \(0, inf\), got"):
            worst_guardrail(users, treated, fives, tens, margin)
    with pytest.raises(ConfigError, match=r"margin must be a number in \(0, 1\], got 2"):
        share_guardrail(users, treated, fives, tens, 2)
    for popular in (11.0, -1.0):
        bad = np.where(users == 3, popular, fives)
        with pytest.raises(DataFormatError, match=f"got {popular} of 10.0 in session 3"):
            share_guardrail(users, treated, bad, tens, 0.05)
