"""Popular counts of slates, against all that could have been shown."""

from __future__ import annotations

from functools import cache
from itertools import combinations
from types import SimpleNamespace

import numpy as np
import pytest

from dsrm_agents import evaluate, make_vec_env
from dsrm_agents.baselines.bands import COMPOSITIONS, unpenalised_band
from dsrm_agents.baselines.reference import ReferencePolicy, make_reference
from kuaisim_gym.config import SessionConfig
from kuaisim_gym.errors import ConfigError
from kuaisim_gym.simulator.core import SessionCore
from kuaisim_gym.simulator.groups import popularity_groups
from kuaisim_gym.simulator.response import MemorylessModel

SIXTEENTHS = 16  # answers in sixteenths: sums of them are exact


class Answers(MemorylessModel):
    """Answers all users alike."""

    behaviours = ("watched",)

    def __init__(self, answers: np.ndarray) -> None:
        self.answers = answers.astype(np.float32)

    def probability(self, users, items):
        return np.broadcast_to(self.answers[items], np.broadcast_shapes(users.shape, items.shape))


def world(answers: np.ndarray, n_popular: int, n_sessions: int = 1, **options) -> SimpleNamespace:
    """Sessions in which the first items are popular, with what a policy reads of a batch."""
    popular = np.arange(len(answers)) < n_popular
    config = SessionConfig(**{"stochastic_response": False, **options})
    users = np.zeros(1, dtype=np.int32)
    groups = popularity_groups(popular)
    core = SessionCore(Answers(answers), groups, users, config, n_sessions)
    core.seed(np.arange(n_sessions, dtype=np.uint64))
    core.reset()
    return SimpleNamespace(core=core, config=config)


def play(batch: SimpleNamespace, rule: str) -> tuple[np.ndarray, np.ndarray]:
    """Length of every session, and how many of its items were popular."""
    core = batch.core
    answers = np.tile(core.model.answers, (core.n_sessions, 1))
    policy = ReferencePolicy(lambda batch: answers, COMPOSITIONS[rule](batch))
    popular = np.zeros(core.n_sessions, dtype=int)
    while core.state.active.any():
        active = core.state.active.copy()
        slates = policy.slates(None)
        popular += batch.core.groups.labels[slates].sum(axis=1) * active
        assert not core.step(slates, active).penalised.any() or rule == ""
    return core.state.steps.copy(), popular


def longest(answers: np.ndarray, n_popular: int, k: int, temper: int, counts: range) -> int:
    """The longest session over all sequences of slates with such counts, by trying them all."""
    sixteenths = np.rint(answers * SIXTEENTHS).astype(int)

    @cache
    def steps_from(shown: int, left: int) -> int:
        best = 0
        for slate in combinations(range(len(answers)), k):
            if sum(item < n_popular for item in slate) not in counts:
                continue
            reward = sum(int(sixteenths[item]) for item in slate if not shown >> item & 1)
            after = left - 2 * k * SIXTEENTHS + reward
            more = 0
            if after >= k * SIXTEENTHS:
                more = steps_from(shown | sum(1 << item for item in slate), after)
            best = max(best, 1 + more)
        return best

    return steps_from(0, temper * k * SIXTEENTHS)


@pytest.mark.parametrize("seed", range(12))
def test_no_sequence_of_unpenalised_slates_is_longer_than_the_planned_one(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n_popular, n_items, temper = int(rng.integers(3, 6)), 8, int(rng.integers(3, 7))
    answers = rng.integers(0, SIXTEENTHS + 1, n_items) / SIXTEENTHS
    options = {"slate_size": 3, "ad_bound": 0.5, "max_len": temper}
    rules = [rule for rule in COMPOSITIONS if rule != "+providers"]
    lengths = {rule: int(play(world(answers, n_popular, **options), rule)[0][0]) for rule in rules}
    best = longest(answers, n_popular, 3, temper, range(1, 3))
    assert lengths["+planned-band"] == best
    assert all(lengths[rule] <= best for rule in ("+quota", "+band", "+balanced-band"))


def test_each_slate_by_itself_can_end_a_session_early() -> None:
    """Ten popular items answer, then none does: 6 and 4 of them leave 4 bad ones to the third."""
    answers = np.array([1.0] * 10 + [0.0] * 30 + [0.6] * 40)
    # Three steps survive if G is at least 2 * 3 - 4 = 2 rewards: 20 answers.
    totals = {
        "+quota": 10 + 15 * 0.6,  # 19
        "+band": 10 + 16 * 0.6,  # 19.6, after 6, 4 and 4
        "+planned-band": 10 + 18 * 0.6,  # 20.8, after 4, 4 and 4
    }
    for rule, total in totals.items():
        steps, popular = play(world(answers, 40, max_len=5), rule)
        assert steps[0] == (4 if total >= 20 else 3)
        assert rule != "+planned-band" or popular[0] == 16


def test_half_over_the_session_survives_what_half_of_every_slate_does() -> None:
    rng = np.random.default_rng(4)
    for _ in range(20):
        answers = rng.integers(0, SIXTEENTHS + 1, 60) / SIXTEENTHS
        options = {"slate_size": 10, "max_len": int(rng.integers(3, 8))}
        steps, popular = play(world(answers, 30, **options), "+balanced-band")
        assert steps[0] == play(world(answers, 30, **options), "+quota")[0][0]
        assert 4 * steps[0] <= popular[0] <= 6 * steps[0]


def optimum(answers: np.ndarray, n_popular: int, k: int, temper: int, counts: range) -> float:
    """Expected length under the best policy, which sees all answers, by dynamic programming.

    Its slates take the best items of each group that are left.
    """
    ranked = [np.sort(group)[::-1] for group in np.split(answers, [n_popular])]

    def hits(chances: np.ndarray) -> np.ndarray:
        distribution = np.ones(1)
        for chance in chances:
            distribution = np.convolve(distribution, [1 - chance, chance])
        return distribution

    @cache
    def steps_from(heads: int, tails: int, left: int) -> float:
        """With so many items of each group shown, and ``left`` k-ths of a temper."""
        best = 0.0
        for count in counts:
            head = ranked[0][heads : heads + count]
            tail = ranked[1][tails : tails + k - count]
            value = 1.0
            for number, chance in enumerate(hits(np.concatenate([head, tail]))):
                after = left - 2 * k + number
                if after >= k:
                    value += chance * steps_from(heads + count, tails + k - count, after)
            best = max(best, value)
        return best

    return steps_from(0, 0, temper * k)


@pytest.mark.parametrize("seed", range(3))
def test_planning_by_means_is_next_to_the_best_that_chances_allow(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n_popular, n_items, temper, k = 12, 40, 7, 4
    answers = rng.uniform(0.1, 0.9, n_items) * np.where(np.arange(n_items) < n_popular, 1.0, 0.8)
    options = {"slate_size": k, "ad_bound": 0.6, "max_len": temper, "stochastic_response": True}
    lengths = {
        rule: play(world(answers, n_popular, 10_000, **options), rule)[0]
        for rule in ("+quota", "+band", "+planned-band")
    }
    best = optimum(answers, n_popular, k, temper, range(1, 4))
    planned = lengths["+planned-band"]
    error = planned.std() / np.sqrt(len(planned))
    assert best - 0.02 - 3 * error < planned.mean() < best + 3 * error
    for length in lengths.values():
        paired = planned - length
        assert paired.mean() > -3 * paired.std() / np.sqrt(len(paired)) - 1e-9


@pytest.mark.parametrize(
    ("options", "band"),
    [
        ({}, (4, 6)),
        ({"abandonment": "popularity"}, (0, 6)),
        ({"abandonment": "none"}, (0, 10)),
        ({"ad_bound": 0.2}, (5, 5)),
        ({"ad_bound": 0.4}, (4, 6)),
        ({"ad_bound": 0.41}, (3, 7)),
        ({"ad_bound": 1.0}, (1, 9)),
        ({"slate_size": 20}, (8, 12)),
        ({"slate_size": 3, "ad_bound": 0.5}, (1, 2)),
    ],
)
def test_bands_are_what_the_core_does_not_penalise(options: dict, band: tuple[int, int]) -> None:
    batch = world(np.full(100, 0.5), 50, **options)
    assert unpenalised_band(batch) == band
    k = batch.config.slate_size
    for count in range(k + 1):
        batch.core.reset()
        heads, tails = np.arange(count), 50 + np.arange(k - count)
        result = batch.core.step(np.concatenate([heads, tails])[None])
        assert result.penalised[0] == (not band[0] <= count <= band[1])


def test_small_groups_narrow_the_band() -> None:
    assert unpenalised_band(world(np.full(30, 0.5), 5)) == (4, 5)
    with pytest.raises(ConfigError, match="3 items of 'popular' and 27 others"):
        unpenalised_band(world(np.full(30, 0.5), 3))


def test_bands_that_do_not_exist_are_refused() -> None:
    with pytest.raises(ConfigError, match="window of one slate, 10 items, got window=20"):
        unpenalised_band(world(np.full(30, 0.5), 10, window=20))
    with pytest.raises(ConfigError, match="unpenalised at ad_bound=0.1"):
        unpenalised_band(world(np.full(30, 0.5), 10, slate_size=5, ad_bound=0.1))


def test_sessions_of_a_given_length_are_planned_to_their_last_step() -> None:
    answers = np.array([1.0] * 10 + [0.0] * 30 + [0.6] * 40)
    rewards = {}
    for rule in ("+band", "+planned-band"):
        batch = world(answers, 40, max_len=3, step_cost="request")
        assert play(batch, rule)[0][0] == 3
        rewards[rule] = batch.core.state.reward_sum[0]
    assert rewards["+band"] == pytest.approx(1.96)
    assert rewards["+planned-band"] == pytest.approx(2.08)


def test_a_quota_gives_any_groups_their_due_and_a_band_refuses_three(small) -> None:
    labels = np.arange(small.n_items) % 3
    options = {"groups": labels, "target": [0.5, 0.3, 0.2], "ad_bound": 0.3}
    env = make_vec_env("KuaiRec-Fair-v0", 5, "test", 1, dataset=small, action_type="slate",
                       max_len=5, **options)  # fmt: skip
    sessions = evaluate(make_reference("quality+quota", env.batch), env, 5)
    assert (sessions.slates[:, 0] % 3 == [2, 2, 1, 1, 1, 0, 0, 0, 0, 0]).all()
    assert not sessions.penalised.any()
    with pytest.raises(ConfigError, match="A band is for two groups, got 3"):
        make_reference("quality+band", env.batch)
