"""Sessions worked out by hand, the law that every policy obeys, and faults."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from dsrm_agents.baselines.reference import make_reference
from kuaisim_gym.config import SessionConfig
from kuaisim_gym.envs.assembly import SessionBatch
from kuaisim_gym.errors import ConfigError, InvalidActionError, ResetNeededError
from kuaisim_gym.simulator.core import SessionCore
from kuaisim_gym.simulator.groups import popularity_groups
from kuaisim_gym.simulator.response import MemorylessModel

POPULAR = popularity_groups(np.array([True] * 40 + [False] * 160))


class Constant(MemorylessModel):
    """Answers every question with one probability."""

    behaviours = ("watched",)

    def __init__(self, probability: float) -> None:
        self.value = probability

    def probability(self, users, items):
        shape = np.broadcast_shapes(users.shape, items.shape)
        return np.full(shape, self.value, dtype=np.float32)


def core(probability: float = 1.0, n: int = 1, **options) -> SessionCore:
    defaults = {"slate_size": 2, "stochastic_response": False}
    config = SessionConfig(**(defaults | options))
    one = SessionCore(Constant(probability), POPULAR, np.arange(7, dtype=np.int32), config, n)
    one.seed(np.arange(n, dtype=np.uint64))
    one.reset()
    return one


def fresh_slate(step: int, popular: int, size: int = 2) -> np.ndarray:
    """``popular`` popular items and the rest long-tail, none shown before."""
    heads = np.arange(popular) + step * popular
    tails = 40 + np.arange(size - popular) + step * (size - popular)
    return np.concatenate([heads, tails])[None]


def play(one: SessionCore, popular: int = 1) -> tuple[int, list]:
    results = []
    for step in range(200):
        results.append(one.step(fresh_slate(step, popular, one.config.slate_size)))
        if results[-1].done[0]:
            return step + 1, results
    raise AssertionError("the session never ended")


def test_full_satisfaction_lasts_exactly_max_len() -> None:
    # Each step costs 2 - 1 = 1: temper 8, 7, ..., 1, 0. One is not below one.
    length, results = play(core(1.0, max_len=8))
    assert length == 8
    assert [bool(one.terminated[0]) for one in results] == [False] * 7 + [True]
    assert not any(one.truncated[0] for one in results)


def test_no_satisfaction_lasts_half() -> None:
    # Each step costs 2: 30, 28, ..., 2 after 14 steps, 0 after 15.
    assert play(core(0.0, max_len=30))[0] == 15


def test_tenths_are_exact() -> None:
    # r = 0.9 costs 1.1: 12 - 10 * 1.1 = 1 exactly on paper, so the user stays for an 11th step.
    assert play(core(0.9, max_len=12))[0] == 11


def test_one_sided_slates_cost_one_more() -> None:
    # r = 0.5 and a penalty: 2.5 a step, 30 - 11 * 2.5 = 2.5, 30 - 12 * 2.5 = 0.
    for popular in (0, 2):
        length, results = play(core(0.5, max_len=30), popular)
        assert length == 12
        assert all(one.penalised[0] for one in results)


def test_the_literal_rule_penalises_popularity_only() -> None:
    assert play(core(0.5, abandonment="popularity"), popular=2)[0] == 12
    assert play(core(0.5, abandonment="popularity"), popular=0)[0] == 20  # 30 - 20 * 1.5 = 0
    assert play(core(0.5, abandonment="none"), popular=2)[0] == 20


@pytest.mark.parametrize(("popular", "penalised"), [(3, True), (4, False), (6, False), (7, True)])
def test_the_bound_itself_is_outside(popular: int, penalised: bool) -> None:
    # |2s - 1| of 3, 4, 6, 7 in ten: .4, .2, .2, .4 against .3.
    assert core(slate_size=10).step(fresh_slate(0, popular, 10)).penalised[0] == penalised


def test_an_imbalance_equal_to_the_bound_counts() -> None:
    # 13 of 20 popular: |2 * .65 - 1| = .3 on paper, not in floating point.
    assert core(slate_size=20).step(fresh_slate(0, 13, 20)).penalised[0]
    assert core(slate_size=20).step(fresh_slate(0, 7, 20)).penalised[0]
    assert not core(slate_size=20).step(fresh_slate(0, 12, 20)).penalised[0]


def test_a_window_beyond_the_slate_waits_until_it_is_full() -> None:
    one = core(slate_size=2, window=6, max_len=30)
    flags = [bool(one.step(fresh_slate(step, 2)).penalised[0]) for step in range(4)]
    assert flags == [False, False, True, True]
    # Two balanced slates later the window holds 2 + 1 + 1 of 6 popular: |2 * 4/6 - 1| = 1/3.
    assert one.step(np.array([[20, 140]])).penalised[0]
    assert one.step(np.array([[21, 141]])).penalised[0]
    assert not one.step(np.array([[22, 142]])).penalised[0]  # 3 of 6


def test_popular_share_follows_the_window() -> None:
    one = core(slate_size=2, window=4)
    assert one.state.share[0] == 0.5
    one.step(np.array([[0, 1]]))
    assert one.state.share[0] == 1.0
    one.step(np.array([[100, 101]]))
    assert one.state.share[0] == 0.5
    one.step(np.array([[102, 103]]))
    assert one.state.share[0] == 0.0


def test_repeats_are_answered_once() -> None:
    one = core(1.0, slate_size=3)
    np.testing.assert_array_equal(one.step(np.array([[5, 50, 5]])).responses, [[1, 1, 0]])
    np.testing.assert_array_equal(one.step(np.array([[50, 60, 5]])).responses, [[0, 1, 0]])
    one.reset()
    np.testing.assert_array_equal(one.step(np.array([[5, 50, 60]])).responses, [[1, 1, 1]])
    free = core(1.0, slate_size=3, allow_repeats=True)
    assert free.step(np.array([[5, 5, 5]])).reward[0] == 1.0


def test_a_step_cap_truncates() -> None:
    length, results = play(core(1.0, max_len=30, max_steps=4))
    assert length == 4
    assert results[-1].truncated[0]
    assert not results[-1].terminated[0]


def test_leaving_at_the_cap_is_leaving() -> None:
    _, results = play(core(1.0, max_len=4, max_steps=4))
    assert results[-1].terminated[0]
    assert not results[-1].truncated[0]


def test_responses_have_their_probability_and_their_seed() -> None:
    n = 4000
    draws = core(0.3, n=n, slate_size=10, stochastic_response=True)
    slates = np.broadcast_to(fresh_slate(0, 5, 10), (n, 10))
    first = draws.step(slates).responses
    assert first.mean() == pytest.approx(0.3, abs=0.01)
    again = core(0.3, n=n, slate_size=10, stochastic_response=True).step(slates).responses
    np.testing.assert_array_equal(first, again)
    assert set(np.unique(draws.state.users)) == set(range(7))


def test_slots_do_not_know_each_other() -> None:
    together = core(0.5, n=5, stochastic_response=True)
    alone = core(0.5, n=1, stochastic_response=True)
    alone.seed(np.array([3], dtype=np.uint64))
    alone.reset()
    for step in range(6):
        slate = fresh_slate(step, 1)
        many = together.step(np.repeat(slate, 5, axis=0))
        one = alone.step(slate)
        np.testing.assert_array_equal(many.responses[3], one.responses[0])
    together.reset(np.array([True, False, True, False, True]))
    assert together.state.steps.tolist() == [0, 6, 0, 6, 0]
    assert together.state.temper[0] == 30
    np.testing.assert_array_equal(together.state.temper[3], alone.state.temper[0])


def test_the_record_is_what_happened() -> None:
    one = core(0.75, max_len=6)
    results = [one.step(fresh_slate(step, popular)) for step, popular in enumerate((2, 1, 1))]
    state = one.state
    assert state.steps.tolist() == [3]
    np.testing.assert_array_equal(state.slates[0, :3], [[0, 1], [1, 41], [2, 42]])
    assert (state.slates[0, 3:] == -1).all()
    np.testing.assert_array_equal(state.responses[0, :3], [[0.75, 0.75], [0.0, 0.75], [0.75, 0.75]])
    np.testing.assert_array_equal(state.rewards[0], [0.75, 0.375, 0.75, 0, 0, 0])
    assert state.penalised[0].tolist() == [True] + 5 * [False]
    # 6 - 1.25 - 1, then 1.625 and 1.25.
    np.testing.assert_array_equal(state.tempers[0, :3], [3.75, 2.125, 0.875])
    np.testing.assert_array_equal(state.shares[0, :3], [1.0, 0.5, 0.5])
    assert (state.last_reward[0], state.reward_sum[0], state.temper[0]) == (0.75, 1.875, 0.875)
    assert np.flatnonzero(~one.unexposed()[0]).tolist() == [0, 1, 2, 41, 42]
    assert [bool(result.terminated[0]) for result in results] == [False, False, True]
    one.reset()
    assert (state.slates == -1).all()
    for record in (state.responses, state.rewards, state.penalised, state.reward_sum):
        assert not record.any()
    assert state.temper.tolist() == [6.0]


def test_some_sessions_step_while_others_stand_still() -> None:
    part, whole = (core(0.5, n=3, stochastic_response=True) for _ in range(2))
    some = np.array([True, False, True])
    slates = np.repeat(fresh_slate(0, 1), 3, axis=0)
    found, full = part.step(np.where(some[:, None], slates, -7), some), whole.step(slates)
    for one, two in zip(found, full, strict=True):
        np.testing.assert_array_equal(one[some], two[some])
        assert not one[~some].any()
    assert part.state.steps.tolist() == [1, 0, 1]
    # What stood still must begin anew.
    with pytest.raises(ResetNeededError, match="Session 1 is over"):
        part.step(fresh_slate(1, 1).repeat(3, axis=0))
    part.reset(~some)
    assert part.state.episodes.tolist() == [0, 1, 0]
    part.step(fresh_slate(1, 1).repeat(3, axis=0))


def test_the_same_user_may_come_again() -> None:
    one = core(1.0, n=3)
    users = one.state.users.copy()
    one.reset(np.array([True, False, True]), np.array([6, 5], dtype=np.int32))
    assert one.state.users.tolist() == [6, users[1], 5]
    assert one.state.episodes.tolist() == [1, 0, 1]


def test_seeding_some_slots_leaves_the_others_running() -> None:
    one = core(1.0, n=3)
    first = one.state.users.copy()
    for _ in range(3):
        one.reset()
    kept = one.state.users.copy()
    one.seed(np.arange(3, dtype=np.uint64), np.array([True, False, True]))
    assert one.state.active.tolist() == [False, True, False]
    one.reset(np.array([True, False, True]))
    np.testing.assert_array_equal(one.state.users, [first[0], kept[1], first[2]])


@pytest.mark.parametrize("probability", [0.0, 0.5, 1.0])
def test_a_request_costs_one_whatever_it_is_worth(probability: float) -> None:
    length, results = play(core(probability, max_len=7, step_cost="request"))
    assert length == 7
    assert [result.reward[0] for result in results] == [probability] * 7
    # And one more where the window is one-sided: 7 - 3 * 2 = 1 is not below one.
    assert play(core(probability, max_len=7, step_cost="request"), popular=2)[0] == 4


def with_vectors(probability: float, correlation: float, size: int = 3) -> SessionCore:
    """Items 0, 1 and 2 point the same way, 3 the opposite one, 4 aside and 5 nowhere."""
    vectors = np.zeros((200, 2), dtype=np.float32)
    vectors[:5] = [[1, 0], [5, 0], [0.5, 0], [-2, 0], [0, 3]]
    vectors[6] = [1, 1]
    options = {"slate_size": size, "stochastic_response": False, "correlation": correlation}
    config = SessionConfig(abandonment="none", **options)
    users = np.arange(7, dtype=np.int32)
    one = SessionCore(Constant(probability), POPULAR, users, config, 1, vectors=vectors)
    one.reset()
    return one


@pytest.mark.parametrize(
    ("slate", "alike"),
    [
        ([0, 1, 2], [1, 1, 1]),  # mean cosine to the other two, whatever the lengths
        ([0, 1, 4], [0.5, 0.5, 0]),
        ([0, 1, 5], [0.5, 0.5, 0]),  # at right angles to all
        ([0, 3, 4], [0, 0, 0]),  # -1/2 and -1/2: no item gains
        ([0, 1, 3], [0, 0, 0]),  # (1 - 1) / 2 and -1
        ([0, 6, 4], [0.35355, 0.70711, 0.35355]),
    ],
)
def test_look_alikes_take_from_each_other(slate, alike) -> None:
    for correlation in (0.2, 0.5):
        result = with_vectors(0.75, correlation).step(np.array([slate]))
        expected = 0.75 - correlation * np.array(alike)
        np.testing.assert_allclose(result.responses[0], expected, rtol=1e-5)
    # Probabilities stop at nothing.
    assert with_vectors(0.25, 1.0).step(np.array([[0, 1, 2]])).reward[0] == 0


def test_a_single_item_has_nobody_to_resemble() -> None:
    assert with_vectors(0.75, 1.0, size=1).step(np.array([[0]])).reward[0] == 0.75


def test_look_alikes_need_vectors() -> None:
    assert core(0.5).step(fresh_slate(0, 1)).reward[0] == 0.5
    with pytest.raises(ConfigError, match="correlation needs item vectors, got none; set it to 0"):
        core(0.5, correlation=0.2)


@pytest.mark.parametrize(
    ("slates", "message"),
    [
        (np.array([[0.0, 1.0]]), "integer array"),
        ([[0, 1]], "integer array"),
        (np.array([[0, 1, 2]]), r"shape \(1, 2\)"),
        (np.array([0, 1]), "shape"),
        (np.array([[0, 200]]), r"\[0, 200\), got 200"),
        (np.array([[-1, 3]]), "got -1"),
        (np.array([[2**64 - 1, 3]], dtype=np.uint64), r"\[0, 200\)"),
    ],
)
def test_bad_slates_are_refused_and_change_nothing(slates, message) -> None:
    one = core()
    with pytest.raises(InvalidActionError, match=message):
        one.step(slates)
    assert one.state.steps[0] == 0
    assert one.state.temper[0] == 30
    assert not one.state.exposed.any()


def test_a_step_needs_a_running_session() -> None:
    config = SessionConfig(slate_size=2)
    one = SessionCore(Constant(1.0), POPULAR, np.arange(2, dtype=np.int32), config, 2)
    with pytest.raises(ResetNeededError, match="has not begun"):
        one.step(np.array([[0, 1], [2, 3]]))
    one = core(1.0, max_len=2)
    play(one)
    with pytest.raises(ResetNeededError, match="is over"):
        one.step(fresh_slate(5, 1))


@pytest.mark.parametrize(("users", "slate", "n"), [(0, 2, 1), (3, 201, 1), (3, 2, 0)])
def test_impossible_cores_are_refused(users: int, slate: int, n: int) -> None:
    with pytest.raises(ConfigError):
        SessionCore(
            Constant(1.0),
            POPULAR,
            np.arange(users, dtype=np.int32),
            SessionConfig(slate_size=slate),
            n,
        )


def random_sessions(batch: SessionBatch) -> tuple[float, float, float]:
    """Mean length, reward and penalty rate of one uniformly random session a slot."""
    rng = np.random.default_rng(0)
    core = batch.core
    core.seed(np.arange(core.n_sessions, dtype=np.uint64))
    batch.reset()
    running = np.ones(core.n_sessions, dtype=bool)
    length = reward = penalties = 0.0
    while running.any():
        keys = rng.random((core.n_sessions, batch.catalogue.n_items), dtype=np.float32)
        keys[~core.unexposed()] = 2.0
        result = batch.step(np.argpartition(keys, 10, axis=1)[:, :10])
        length += running.sum()
        reward += result.reward[running].sum()
        penalties += result.penalised[running].sum()
        running &= ~result.done
        batch.reset(result.done)
    return length / core.n_sessions, reward / length, penalties / length


@pytest.mark.parametrize("max_len", [30, 50])
@pytest.mark.parametrize("source", ["world", "real"])
def test_the_law_of_session_length(source: str, max_len: int, request) -> None:
    dataset = request.getfixturevalue(source)
    batch = SessionBatch(2000, dataset=dataset, split="test", action_type="slate", max_len=max_len)
    length, reward, q = random_sessions(batch)
    assert length == pytest.approx((max_len - 1) / (2 - reward + q) + 0.5, abs=0.2)
    if source == "real" and max_len == 30:
        assert 13.2 <= length <= 14.2


def mixed(batch: SessionBatch) -> Callable[[], np.ndarray]:
    """Now the best item by quality that was not shown yet, now any, at even odds."""
    rng, quality = np.random.default_rng(0), batch.catalogue.item_embedding[:, 0]

    def act() -> np.ndarray:
        unexposed = batch.core.unexposed()
        chance = rng.random(unexposed.shape, dtype=np.float32)
        greedy = rng.random(batch.n_sessions) < 0.5
        scores = np.where(greedy[:, None], quality, chance)
        return np.where(unexposed, scores, -np.inf).argmax(axis=1)

    return act


@pytest.mark.parametrize("max_len", [30, 50])
@pytest.mark.parametrize("source", ["small", "small_rand"])
@pytest.mark.parametrize(
    "policy", ["random", "popularity", "quality+quota", "expected-oracle+quota", "mixed"]
)
def test_every_policy_obeys_the_law(policy: str, source: str, max_len: int, request) -> None:
    """Renewal theory: what remains below one when a user leaves is half a step, and a little.

    Temper is spent to the last tenth: ``Len * cost = (T - 1) + overshoot``, exactly, with the mean
    cost ``2 - R + q`` of a step. The law takes half a step for the overshoot. Its mean is
    ``(cost (1 + cv^2) + d) / 2`` with the cost at the end of sessions, its coefficient of variation
    and the steps d, of 1 / K, in which temper falls; so the law's 0.5 is a little more where costs
    vary or rise, as they do when the best of 240 items are used up, and a single item's costs are
    whole numbers.
    """
    dataset = request.getfixturevalue(source)
    n, kind = 1200, "discrete" if policy == "mixed" else "slate"
    batch = SessionBatch(
        n, dataset.name, dataset=dataset, split="test", action_type=kind, max_len=max_len
    )
    batch.seed(np.arange(n))
    batch.reset()
    if policy == "mixed":
        act = mixed(batch)
    else:
        reference = make_reference(policy, batch)

        def act() -> np.ndarray:
            return reference.predict(None)[0]

    state = batch.core.state
    while state.active.any():
        batch.step(act(), state.active.copy())
    length = state.steps
    made = np.arange(max_len) < length[:, None]
    reward, q = state.rewards.sum() / length.sum(), state.penalised.sum() / length.sum()
    cost = 2 - reward + q
    overshoot = 1 - state.temper
    assert length.mean() * cost == pytest.approx(max_len - 1 + overshoot.mean(), rel=1e-9)

    law = (max_len - 1) / cost + 0.5
    costs = 2 - state.rewards + state.penalised
    late = np.take_along_axis(costs, length[:, None] - [[2, 3, 4]], axis=1).mean()
    variation = costs[made].var() / cost**2
    beyond = (late * (1 + variation) + 1 / batch.config.slate_size) / (2 * cost) - 0.5
    error = overshoot.std() / cost / np.sqrt(n)
    # Penalties in a row make the mixed policy's costs depend on each other, which is left out.
    assert length.mean() == pytest.approx(law + beyond, abs=4 * error + 0.05)
    if batch.config.slate_size == 10:
        assert length.mean() == pytest.approx(law, abs=0.15)


class TwoBehaviours(MemorylessModel):
    """Clicks with .75 and hates with .25; remembers nothing."""

    behaviours = ("is_click", "is_hate")

    def probability(self, users, items):
        return self.feedback(users, items)[..., 0]

    def feedback(self, users, items):
        shape = np.broadcast_shapes(users.shape, items.shape)
        return np.broadcast_to(np.array([0.75, 0.25], np.float32), (*shape, 2)).copy()


def two_behaviours(n: int = 1, **options) -> SessionCore:
    config = SessionConfig(**({"slate_size": 2, "stochastic_response": False} | options))
    return SessionCore(TwoBehaviours(), POPULAR, np.arange(7, dtype=np.int32), config, n)


def test_the_first_behaviour_is_the_reward_by_default() -> None:
    one = two_behaviours()
    one.reset()
    result = one.step(np.array([[0, 5]]))
    assert result.feedback.tolist() == [[[0.75, 0.25], [0.75, 0.25]]]
    assert result.responses.tolist() == [[0.75, 0.75]]
    assert result.reward.tolist() == [0.75]


@pytest.mark.parametrize(
    ("weights", "response"),
    [
        ({"is_hate": 1.0}, 0.25),
        ({"is_click": 1.0, "is_hate": 1.0}, 0.5),
        ({"is_click": 2.0, "is_hate": -2.0}, 0.5),
        ({"is_click": 1.0, "is_hate": -9.0}, 0.0),  # 0.75 - 2.25, and no response is below 0
    ],
)
def test_weighted_rewards_by_hand(weights, response) -> None:
    one = two_behaviours(reward_weights=weights, abandonment="none")
    one.reset()
    result = one.step(np.array([[0, 5]]))
    np.testing.assert_allclose(result.responses, response, rtol=1e-6)
    assert result.reward[0] == pytest.approx(response)
    assert one.state.temper[0] == pytest.approx(30 - 2 + response)


def test_a_repeated_item_shows_no_behaviour_at_all() -> None:
    one = two_behaviours()
    one.reset()
    one.step(np.array([[0, 5]]))
    assert one.step(np.array([[0, 6]])).feedback.tolist() == [[[0, 0], [0.75, 0.25]]]


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"is_klick": 1.0}, "Did you mean 'is_click'"),
        ({"is_click": -1.0}, "one positive"),
        ({}, "one positive"),
        ({"is_click": True}, "must be a finite number"),
        ({"is_click": float("nan")}, "finite"),
        ([1.0], "must map names"),
    ],
)
def test_impossible_reward_weights_are_refused(weights, message) -> None:
    with pytest.raises(ConfigError, match=message):
        two_behaviours(reward_weights=weights)


def test_the_first_behaviour_meets_the_same_draws_however_many_follow() -> None:
    alone, both = (
        core(0.75, n=50, stochastic_response=True),
        two_behaviours(50, stochastic_response=True),
    )
    slates = np.tile([[0, 5]], (50, 1))
    for one in (alone, both):
        one.seed(np.arange(50, dtype=np.uint64))
        one.reset()
    first, second = alone.step(slates), both.step(slates)
    np.testing.assert_array_equal(first.responses, second.responses)
    assert set(np.unique(second.feedback)) == {0.0, 1.0}
    assert second.feedback[..., 1].mean() == pytest.approx(0.25, abs=0.15)


class Satiated(MemorylessModel):
    """Answers 1 to a session's first slate and 0 to the others: a model with a memory."""

    behaviours = ("watched",)

    def __init__(self) -> None:
        self.seen = np.zeros(0, dtype=int)
        self.observed: list[np.ndarray] = []

    def probability(self, users, items):
        raise AssertionError("a session asks the session's answers")

    def begin(self, n_sessions, engine=None):
        self.seen = np.zeros(n_sessions, dtype=int)
        return self

    def reset(self, slots, users):
        assert len(users) == slots.sum()
        self.seen[slots] = 0

    def feedback(self, slates):
        answers = (self.seen == 0).astype(np.float32)[:, None, None]
        return np.broadcast_to(answers, (*slates.shape, 1))

    def observe(self, slates, feedback):
        self.seen += 1
        self.observed.append(feedback)


def test_a_model_with_a_memory_is_told_what_happened() -> None:
    model = Satiated()
    config = SessionConfig(slate_size=2)
    one = SessionCore(model, POPULAR, np.arange(7, dtype=np.int32), config, 2)
    one.reset()
    assert one.step(np.array([[0, 5], [1, 6]])).reward.tolist() == [1, 1]
    assert one.step(np.array([[1, 6], [2, 7]])).reward.tolist() == [0, 0]
    one.reset(np.array([True, False]))
    assert one.step(np.array([[0, 5], [3, 8]])).reward.tolist() == [1, 0]
    assert [feedback[:, 0, 0].tolist() for feedback in model.observed] == [[1, 1], [0, 0], [1, 0]]
