"""A thousand tests of users who are drawn anew from simulated ones: what errors tests make."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from dsrm_agents.experiments import (
    Comparison,
    SequentialTest,
    assign,
    power_of,
    users_needed,
)
from dsrm_agents.experiments.power import two_sided_bound
from kuaisim_gym.errors import ConfigError

from ..studies.results import Result
from .sessions import METRICS, Metric, Outcomes, mixed

ALPHA = 0.05
BOUND = two_sided_bound(ALPHA)
POWERS = (0.5, 0.8, 0.9)
TESTS_A_SIZE = 4  # for each test without a difference: of a thousand, .8 points standard error


def drawn_tests(
    arms: tuple[Outcomes, Outcomes], tests: int, n_users: int, salt: str, seed: int
) -> Iterator[tuple[Outcomes, NDArray[np.bool_]]]:
    """Tests of fresh users: each is one of the simulated users, with all of that user's sessions.

    Sessions arrive in a random order, so that users come back.

    Args:
        arms: The same S sessions, as control and as treatment have played them.
        tests: How many.
        n_users: Users of each test, drawn with repeats; a repeated one counts as another user.
        salt: Of the first test; each has its own.
        seed: Of the draws.

    Yields:
        The sessions of a test, and (S',) bool, which are of treated users.
    """
    rng, order = np.random.default_rng(seed), np.argsort(arms[0].users, kind="stable")
    _, starts, sizes = np.unique(arms[0].users[order], return_index=True, return_counts=True)
    for number in range(tests):
        picks = rng.integers(0, len(starts), n_users)
        counts = sizes[picks]
        users = np.repeat(np.arange(n_users), counts)
        within = np.arange(len(users)) - np.repeat(np.cumsum(counts) - counts, counts)
        rows = order[np.repeat(starts[picks], counts) + within]
        arrival = rng.permutation(len(users))
        users, rows = users[arrival], rows[arrival]
        treated = assign(range(n_users), f"{salt}-{number}")[users]
        control, treatment = (arm.take(rows, users) for arm in arms)
        yield mixed(control, treatment, treated), treated


def false_positives(
    control: Outcomes, effects: dict[str, float], tests: int, salt: str, seed: int
) -> Result:
    """Shares of tests without a difference that find one, by metric and kind of test.

    Args:
        control: Sessions of one policy.
        effects: By metric, the difference that its sequential test is made for.
        tests: How many tests, each of as many users as ``control`` has.
        salt: Of the first test.
        seed: Of the draws.

    Returns:
        By metric: ``fixed``, looked at once, after all sessions; ``peeked``, the same test looked
        at after every session; ``sequential``, looked at after every session.
    """
    n_users = len(np.unique(control.users))
    counts = {name: dict.fromkeys(("fixed", "peeked", "sequential"), 0) for name in METRICS}
    for sessions, treated in drawn_tests((control, control), tests, n_users, salt, seed):
        for name, metric in METRICS.items():
            test = SequentialTest.planned(effects[name], alpha=ALPHA)
            running = sessions.compared(metric, treated)
            counts[name]["fixed"] += running.last.p_value < ALPHA
            counts[name]["peeked"] += bool(_fixed_rejections(test, running).any())
            counts[name]["sequential"] += test.decided(running) is not None
    return {
        name: {kind: int(count) / tests for kind, count in kinds.items()}
        for name, kinds in counts.items()
    }


def _fixed_rejections(test: SequentialTest, running: Comparison) -> NDArray[np.bool_]:
    """(S,) bool: looks at which the fixed-horizon test would reject."""
    rejects: NDArray[np.bool_] = np.abs(running.effect) > BOUND * np.sqrt(running.variance)
    return test.looks(running) & rejects


def check_arms(
    users: NDArray[np.int64], treated: NDArray[np.bool_], options: str = "--sessions"
) -> None:
    """Checks that both arms have the two users that a variance needs.

    Args:
        users: (S,) whose sessions they are.
        treated: (S,) bool, sessions of treated users.
        options: What to raise, for the error.

    Raises:
        ConfigError: An arm has fewer.
    """
    sizes = [len(np.unique(users[rows])) for rows in (~treated, treated)]
    if min(sizes) < 2:
        raise ConfigError(
            f"A test needs two users in each arm, got {sizes[0]} in control and {sizes[1]} in "
            f"treatment in {len(users)} sessions: raise {options}, or give data of more users."
        )


def spread_of(arm: Outcomes, metric: Metric, salt: str) -> float:
    """Variance of one user, as a test of an arm against itself measures it.

    Args:
        arm: Sessions of one policy.
        metric: The metric.
        salt: Of the test.

    Raises:
        ConfigError: An arm has fewer than two users.
    """
    names, owner = np.unique(arm.users, return_inverse=True)
    treated = assign(names, salt)[owner]
    check_arms(arm.users, treated)
    running = arm.compared(metric, treated)
    in_control, in_treatment = (int(count) for count in running.users[-1])
    return running.last.variance / (1.0 / in_control + 1.0 / in_treatment)


def power_table(
    arms: tuple[Outcomes, Outcomes],
    metric: Metric,
    spread: float,
    test: SequentialTest,
    tests: int,
    salt: str,
    seed: int,
) -> list[Result]:
    """Computed and measured power at sample sizes that are computed for some powers.

    Args:
        arms: The same sessions, as control and as treatment have played them; their difference is
            the true one of users who are drawn from them.
        metric: The metric.
        spread: Variance of one user, of earlier tests without a difference.
        test: The sequential test.
        tests: A quarter of the tests of each size.
        salt: Of the first test.
        seed: Of the draws.

    Returns:
        By power: ``users``, no fewer than the sequential test waits for; ``computed`` power at
        this whole number; ``measured``, the share of tests that reject; ``sequential``, the share
        that the sequential test has decided by then.
        Empty where the arms do not differ.
    """
    effect = arms[1].value(metric) - arms[0].value(metric)
    rows: list[Result] = []
    for power in POWERS if effect and spread else ():
        n_users = max(users_needed(effect, spread, power, ALPHA), 2 * test.least_users)
        fixed = decided = 0
        drawn = drawn_tests(arms, TESTS_A_SIZE * tests, n_users, f"{salt}-{power}", seed)
        for sessions, treated in drawn:
            running = sessions.compared(metric, treated)
            fixed += running.last.p_value < ALPHA
            decided += test.decided(running) is not None
        rows.append({
            "users": n_users,
            "computed": power_of(effect, 4.0 * spread / n_users, ALPHA),
            "measured": fixed / (TESTS_A_SIZE * tests),
            "sequential": decided / (TESTS_A_SIZE * tests),
        })  # fmt: skip
    return rows
