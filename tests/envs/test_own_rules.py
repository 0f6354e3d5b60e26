"""Rewards and rules of abandonment of one's own: what they see, cost and pay, and their faults."""

from __future__ import annotations

import math
import pickle
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

import kuaisim_gym
from dsrm_agents import make_vec_env
from kuaisim_gym import CategoryBoredom, ConfigError, ProviderQuota, Rule, SessionStep, find_groups
from kuaisim_gym.envs.tasks import make_batch
from kuaisim_gym.errors import ResetNeededError

N = 4


def batch_of(dataset, n: int = N, **options: Any):
    options = {"action_type": "slate", "slate_size": 4, "max_len": 9} | options
    batch = make_batch(n, dataset.name, dataset=dataset, **options)
    batch.seed(range(n))
    batch.reset()
    return batch


def slates_of(rng: np.random.Generator, n: int = N, k: int = 4) -> np.ndarray:
    return np.array([rng.permutation(240)[:k] for _ in range(n)])


def of_category(batch, category: int, count: int) -> np.ndarray:
    """Positions of items of a category."""
    return np.flatnonzero(batch._categories == category)[:count]


# What a rule sees and may do.


def test_a_rule_sees_the_step_of_those_who_made_it(small_rand) -> None:
    steps: list[SessionStep] = []

    def watch(step: SessionStep) -> np.ndarray:
        steps.append(step)
        return step.utility

    batch = batch_of(small_rand, abandonment="imbalance", reward=watch)
    rng, slots = np.random.default_rng(0), np.array([True, False, True, False])
    for chosen in (None, slots):
        slates = slates_of(rng)
        result, step = batch.step(slates, chosen), steps[-1]
        rows = np.flatnonzero(batch.core.everyone if chosen is None else chosen)
        state = batch.core.state
        np.testing.assert_array_equal(step.slates, slates[rows])
        np.testing.assert_array_equal(step.groups, batch.groups.labels[slates[rows]])
        np.testing.assert_array_equal(step.categories, batch._categories[slates[rows]])
        for name in ("responses", "feedback", "answered", "penalised"):
            np.testing.assert_array_equal(getattr(step, name), getattr(result, name)[rows])
        for name in ("users", "steps", "temper", "share"):
            np.testing.assert_array_equal(getattr(step, name), getattr(state, name)[rows])
        np.testing.assert_array_equal(step.utility, state.last_reward[rows])
        assert not result.reward[~np.isin(np.arange(N), rows)].any()
    with pytest.raises(ValueError, match="read-only"):
        steps[0].responses[:] = 0
    assert steps[0].memory == {}


def test_fairness_is_one_less_the_absolute_difference(small) -> None:
    batch = batch_of(small, reward="vector")
    popular = np.flatnonzero(batch.catalogue.popular)[:4]
    rare = np.flatnonzero(~batch.catalogue.popular)[:4]
    slates = np.array([[*popular[:count], *rare[count:]] for count in (0, 1, 2, 4)])
    reward = batch.step(slates).reward
    np.testing.assert_array_equal(reward[:, 1], [0.0, 0.5, 1.0, 0.0])
    np.testing.assert_array_equal(reward[:, 1], 1.0 - batch.groups.distance(slates))
    np.testing.assert_array_equal(reward[:, 0], batch.core.state.last_reward)


def test_fairness_of_many_groups_reaches_from_nothing_but_the_least_due_to_the_target(
    small,
) -> None:
    labels = np.arange(240) % 3
    options = {"groups": labels, "target": (0.5, 0.25, 0.25), "abandonment": "none"}
    batch = batch_of(small, reward="vector", **options)
    slates = np.array([[0, 3, 1, 2], [1, 4, 7, 10], [2, 5, 8, 11], [0, 3, 6, 9]])
    fairness = batch.step(slates).reward[:, 1]
    np.testing.assert_allclose(fairness, [1.0, 0.0, 0.0, 1 / 3], atol=1e-12)


def test_a_reward_of_one_s_own_changes_nothing_but_the_reward(small) -> None:
    plain, paid = (batch_of(small, **own) for own in ({}, {"reward": ProviderQuota()}))
    rng = np.random.default_rng(0)
    for _ in range(12):
        slates = slates_of(rng)
        expected, result = plain.step(slates), paid.step(slates)
        for name in ("responses", "penalised", "terminated", "truncated"):
            np.testing.assert_array_equal(getattr(result, name), getattr(expected, name))
        assert (result.reward < expected.reward).any()
        np.testing.assert_array_equal(paid.observe(), plain.observe())
        for name, values in plain.session().items():
            np.testing.assert_array_equal(paid.session()[name], values)
        for batch, done in ((plain, expected.done), (paid, result.done)):
            batch.reset(done)


def two_sided(step: SessionStep) -> np.ndarray:
    """The paper's rule, of a window of one slate."""
    return 1.0 * (np.abs(2.0 * step.share - 1.0) >= 0.3)


def test_the_built_in_rule_written_as_one_s_own_is_the_built_in_rule(small) -> None:
    plain, ruled = batch_of(small), batch_of(small, abandonment=two_sided)
    rng, ends = np.random.default_rng(1), 0
    for _ in range(40):
        slates = slates_of(rng)
        expected, result = plain.step(slates), ruled.step(slates)
        for name, values in expected._asdict().items():
            np.testing.assert_array_equal(getattr(result, name), values, name)
        np.testing.assert_allclose(ruled.core.state.temper, plain.core.state.temper)
        np.testing.assert_array_equal(ruled.session()["q"], plain.session()["q"])
        ends += result.done.sum()
        for batch in (plain, ruled):
            batch.reset(result.done)
    assert ends > N


def test_a_user_who_leaves_by_the_rule_is_not_truncated_and_must_be_reset(small) -> None:
    calls = []

    def leave(step: SessionStep) -> np.ndarray:
        calls.append(step.steps.copy())
        return step.steps == 2  # booleans: who leaves

    batch = batch_of(small, abandonment=leave, max_steps=2)
    rng = np.random.default_rng(0)
    assert not batch.step(slates_of(rng)).done.any()
    result = batch.step(slates_of(rng))
    assert result.terminated.all() and result.penalised.all() and not result.truncated.any()
    np.testing.assert_array_equal(batch.core.state.temper, 0.0)
    np.testing.assert_array_equal(batch.core.state.tempers[:, 1], 0.0)
    assert not batch.core.state.active.any()
    assert [steps.tolist() for steps in calls] == [[1] * N, [2] * N]


class Loyal(Rule):
    """Remembers the user's number at the start, and counts steps."""

    def begin(self, world):
        return {"user": np.zeros(world.n_sessions), "steps": np.full((world.n_sessions, 2), 5)}

    def reset(self, memory, users):
        memory["user"][:] = users

    def __call__(self, step):
        step.memory["steps"] = step.memory["steps"] + 1  # another array, copied back
        np.testing.assert_array_equal(step.memory["user"], step.users)
        return step.memory["steps"][:, 0]


def test_memory_begins_anew_with_each_session(small) -> None:
    rule = Loyal()
    batch = batch_of(small, reward=rule)
    rng, slots = np.random.default_rng(0), np.array([True, False, True, True])
    for chosen, expected in ((None, [6, 6, 6, 6]), (slots, [7, 0, 7, 7])):
        np.testing.assert_array_equal(batch.step(slates_of(rng), chosen).reward, expected)
    batch.reset(np.array([True, True, False, False]))
    np.testing.assert_array_equal(batch.step(slates_of(rng)).reward, [6, 6, 8, 8])
    assert vars(rule) == {}  # the environment runs a copy
    np.testing.assert_array_equal(batch_of(small, reward=rule).step(slates_of(rng)).reward, 6)


# The two that are shipped.


@pytest.mark.parametrize("engine", ["numba", "numpy"])
def test_a_user_leaves_when_more_than_so_many_of_the_last_items_are_alike(small, engine) -> None:
    batch = batch_of(small, n=3, abandonment=CategoryBoredom(most=4, last=6), engine=engine)
    zero, one, two = (of_category(batch, category, 12) for category in (0, 1, 2))
    first = np.array([zero[:4], [*zero[:3], one[0]], [zero[0], one[0], two[0], two[1]]])
    assert not batch.step(first).done.any()  # four alike are borne
    # The last six hold two of the first slate: 5 alike; 3 alike; 4 alike.
    second = np.array([[*zero[4:7], one[0]], [zero[4], *one[1:3], two[0]], [*two[2:4], *one[1:3]]])
    result = batch.step(second)
    np.testing.assert_array_equal(result.terminated, [True, False, False])
    np.testing.assert_array_equal(result.penalised, [True, False, False])
    batch.reset(result.done)
    assert not batch.step(first).terminated[0]  # the next user has seen nothing


def test_items_without_a_category_bore_nobody(small, monkeypatch) -> None:
    monkeypatch.setattr(
        "kuaisim_gym.envs.assembly.SessionBatch._categories", np.full(240, -1, dtype=np.int32)
    )
    batch = batch_of(small, abandonment=CategoryBoredom(most=1, last=4))
    assert not batch.step(slates_of(np.random.default_rng(0))).penalised.any()


def test_a_boring_step_may_cost_temper_alone(small) -> None:
    batch = batch_of(small, n=1, abandonment=CategoryBoredom(1, 4, cost=2.5))
    result = batch.step(of_category(batch, 0, 4)[None])
    expected = 9 - (2.0 - batch.core.state.last_reward) - 2.5
    np.testing.assert_allclose(batch.core.state.temper, expected)
    assert result.penalised.all() and not result.done.any()


def test_the_price_is_for_the_share_that_is_missing(small) -> None:
    rule = ProviderQuota(np.arange(240) % 2, target="uniform", price=0.5)
    batch = batch_of(small, n=1, reward=rule)
    assert vars(rule).keys() == {"providers", "target", "price"}  # a copy of it has begun
    assert batch.reward_space == gym.spaces.Box(-0.5, 1.0, (), np.float64)
    even, odd = np.arange(0, 240, 2), np.arange(1, 240, 2)
    for slate, missing in (
        ([*even[:3], odd[0]], 1 / 4),  # one of the four is missing
        ([*odd[1:5]], 1 / 8),  # 3 and 5: one of eight
        ([*even[3:5], odd[5], odd[6]], 1 / 12),
        ([*even[5:8], odd[7]], 0.0),  # 8 and 8
    ):
        result = batch.step(np.array([slate]))
        paid = batch.core.state.last_reward - 0.5 * missing
        np.testing.assert_allclose(result.reward, paid, rtol=1e-12)
    three = ProviderQuota("category", target="catalogue")
    one_sided = batch_of(small, n=1, reward=three)
    groups = find_groups("category", "catalogue", small, one_sided.catalogue)
    rewards = one_sided.step(np.flatnonzero(groups.labels == 0)[None, :4])
    expected = one_sided.core.state.last_reward - (1.0 - groups.target[0])
    np.testing.assert_allclose(rewards.reward, expected, rtol=1e-12)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CategoryBoredom(most=0), "most must be an integer of at least 1, got 0"),
        (lambda: CategoryBoredom(most=20), "most must be below last, .* got most=20 of last=20"),
        (lambda: CategoryBoredom(cost=0.0), "cost must be a number above 0"),
        (lambda: CategoryBoredom(cost=math.nan), "cost must be a number above 0"),
        (lambda: ProviderQuota(price=-1.0), "price must be a number of at least 0, got -1.0"),
    ],
)
def test_their_options_are_checked(make, message) -> None:
    with pytest.raises(ConfigError, match=message):
        make()


def test_an_unknown_provider_column_is_refused_when_the_environment_is_made(small) -> None:
    with pytest.raises(ConfigError, match="Did you mean 'category'"):
        batch_of(small, reward=ProviderQuota("categorie"))


# Faults.


class Declared(Rule):
    """A rule of given bounds, value and memory."""

    def __init__(self, value: Any = None, bounds: Any = (0.0, 1.0), memory: Any = None) -> None:
        self._value, self._bounds, self._memory = value, bounds, memory

    @property
    def bounds(self) -> Any:
        return self._bounds

    def begin(self, world):
        return {} if self._memory is None else self._memory

    def __call__(self, step):
        for name, array in step.memory.items():
            step.memory[name] = array[:, :1]
        return self._value


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reward": "vectr"}, r"reward must be one of \['response', 'vector'\].*mean 'vector'"),
        ({"reward": 3}, "reward rule int must be a function of a step .* got 3: see docs"),
        ({"reward": Declared}, "must be a function of a step .* make an object of the class"),
        ({"abandonment": Loyal}, "abandonment rule Loyal must be .* make an object of the class"),
        ({"abandonment": "bored"}, "abandonment must be one of"),
        ({"abandonment": 3}, "abandonment must be one of .* got 3"),
        ({"reward": Declared(bounds=(1.0, 0.0))}, r"bounds \(low, high\), .* got \(1.0, 0.0\)"),
        ({"reward": Declared(bounds=(0.0, math.nan))}, r"must have bounds \(low, high\)"),
        ({"reward": Declared(bounds=3)}, r"must have bounds \(low, high\), .* got 3"),
        ({"reward": Declared(bounds=((0.0, 0.0), (1.0, 1.0, 1.0)))}, "must have bounds"),
        ({"reward": Declared(memory=[1])}, r"dictionary of arrays from begin\(\), got list"),
        ({"reward": Declared(memory={"a": np.zeros(N + 1)})}, r"'a' .* with 4 rows.*\(5,\)"),
        ({"reward": Declared(memory={"a": [0] * N})}, r"'a' as an array .* got list"),
        ({"reward": Declared(memory={"a": np.full(N, None)})}, "'a' as an array .* got object"),
    ],
)
def test_what_is_no_rule_is_refused_when_the_environment_is_made(small, options, message) -> None:
    with pytest.raises(ConfigError, match=message):
        batch_of(small, **options)


def test_hooks_of_a_class_that_is_no_rule_are_not_passed_over(small) -> None:
    class Forgotten:
        def reset(self, memory, users):
            """Is never called."""

        def __call__(self, step):
            return step.utility

    with pytest.raises(ConfigError, match=r"Forgotten has reset\(\), .* make it one"):
        batch_of(small, reward=Forgotten())


def test_a_rule_that_judges_nothing_is_refused_when_it_is_made() -> None:
    class Silent(Rule):
        """Has no ``__call__``."""

    with pytest.raises(TypeError, match="abstract class Silent .*__call__"):
        Silent()


ONES = np.ones(N)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reward": lambda step: step.responses}, r"shape \(4,\), .* float32 of shape \(4, 4\)"),
        ({"reward": lambda step: step.utility.mean()}, r"got float64 of shape \(\)"),
        ({"reward": lambda step: None}, r"got object of shape \(\)"),
        ({"reward": lambda step: step.utility[:, None]}, r"got float64 of shape \(4, 1\)"),
        ({"reward": lambda step: ONES * np.nan}, "finite numbers, got nan in session 0 at step 1"),
        ({"reward": Declared(ONES * np.inf, (0, np.inf))}, r"numbers in \[0, inf\], got inf"),
        ({"reward": Declared(ONES * 1.5)}, r"in \[0, 1\], got 1.5 in session 0 .* other bounds"),
        ({"reward": Declared(np.array([0, 1, -1, 0]))}, r"got -1.0 in session 2 at step 1"),
        ({"reward": Declared(np.ones((N, 2)), ((0, 0), (1, 0.5)))}, r"\[1.0, 0.5\]\], got 1.0"),
        ({"reward": Declared(ONES, memory={"a": np.zeros((N, 3))})}, r"\(4, 3\), got \(4, 1\)"),
        ({"abandonment": lambda step: -ONES}, "at least 0, .* got -1.0 .* takes temper"),
        ({"abandonment": lambda step: ONES * np.nan}, "at least 0, .* got nan .* by zero"),
        ({"abandonment": lambda step: step.groups}, r"got int8 of shape \(4, 4\)"),
    ],
)
@pytest.mark.parametrize("engine", ["numba", "numpy"])
def test_a_wrong_answer_is_told_at_the_first_step(small, options, message, engine) -> None:
    batch = batch_of(small, engine=engine, **options)
    with pytest.raises(ConfigError, match=message):
        batch.step(slates_of(np.random.default_rng(0)))


# Shells and tasks.


def test_a_vector_reward_is_the_same_in_a_single_and_a_vector_environment(small) -> None:
    options = {"dataset": small, "reward": "vector", "max_len": 6}
    singles = [gym.make("KuaiRec-Fair-v0", disable_env_checker=True, **options) for _ in range(3)]
    vector = gym.make_vec("KuaiRec-Fair-v0", num_envs=3, autoreset_mode="SameStep", **options)
    space = gym.spaces.Box(0.0, 1.0, (2,), np.float64)
    assert vector.reward_space == singles[0].unwrapped.reward_space == space
    vector.reset(seed=5)
    for slot, env in enumerate(singles):
        env.reset(seed=5 + slot)
    rng = np.random.default_rng(0)
    for _ in range(12):
        actions = rng.uniform(-1, 1, vector.action_space.shape).astype(np.float32)
        _, rewards, terminated, _, _ = vector.step(actions)
        for slot, env in enumerate(singles):
            _, reward, over, _, info = env.step(actions[slot])
            assert space.contains(reward) and over == terminated[slot]
            assert reward.tobytes() == rewards[slot].tobytes()
            assert reward[0] == pytest.approx(info["slate_responses"].mean())
            if over:
                env.reset()


def test_the_sb3_shell_refuses_vectors_and_says_what_to_do(small) -> None:
    with pytest.raises(ConfigError, match=r"are 2 numbers a step. Give .*step.fairness"):
        make_vec_env("KuaiRec-Fair-v0", 2, dataset=small, reward="vector")

    def weighed(step: SessionStep) -> np.ndarray:
        return 0.8 * step.utility + 0.2 * step.fairness

    shell = make_vec_env("KuaiRec-Fair-v0", 2, seed=1, dataset=small, reward=weighed)
    vector = gym.make_vec("KuaiRec-Fair-v0", num_envs=2, dataset=small, reward="vector")
    shell.reset()
    vector.reset(seed=1)
    shape = vector.action_space.shape
    actions = np.random.default_rng(0).uniform(-1, 1, shape).astype(np.float32)
    both = vector.step(actions)[1]
    expected = (0.8 * both[:, 0] + 0.2 * both[:, 1]).astype(np.float32)
    np.testing.assert_array_equal(shell.step(actions)[1], expected)


def test_spaces_of_rewards(small, small_rand) -> None:
    assert batch_of(small).reward_space == gym.spaces.Box(0.0, 1.0, (), np.float64)
    unbounded = batch_of(small, reward=two_sided).reward_space
    assert unbounded == gym.spaces.Box(-np.inf, np.inf, (), np.float64)
    assert make_batch(2, task="retention", dataset=small_rand).reward_space.low == -1.0


def test_retention_keeps_its_reward_and_takes_a_rule_of_abandonment(small_rand) -> None:
    with pytest.raises(ConfigError, match="pays for returns, and knows no other reward"):
        make_batch(2, task="retention", dataset=small_rand, reward="vector")
    options = {"dataset": small_rand, "max_len": 9, "n_visits": 2, "action_type": "slate"}
    batch = make_batch(N, task="retention", abandonment=lambda step: step.steps == 3, **options)
    batch.seed(range(N))
    batch.reset()
    rng = np.random.default_rng(0)
    ends = [batch.step(slates_of(rng, k=10)).truncated.all() for _ in range(6)]
    assert ends == [False] * 5 + [True]  # two visits of three steps
    np.testing.assert_array_equal(batch.session()["len"], 6)


def test_an_id_may_have_rules(small) -> None:
    def register(price: float, most: int = 3) -> None:
        rules = {"reward": ProviderQuota(np.arange(240) % 3, price=price)}
        rules |= {"abandonment": CategoryBoredom(most)}
        kuaisim_gym.register("Ruled-v0", "kuairec", max_len=5, **rules)

    try:
        register(0.5)
        register(0.5)  # its module is executed again
        for other in ({"price": 0.6}, {"price": 0.5, "most": 4}):
            with pytest.raises(ConfigError, match="choose another id"):
                register(**other)
        assert gym.make("Ruled-v0", dataset=small).unwrapped.reward_space.low == -0.5
        plain = gym.make("Ruled-v0", dataset=small, reward="response", abandonment="none")
        assert plain.unwrapped.batch.core.own_rules is None
    finally:
        del kuaisim_gym.ENVIRONMENTS["Ruled-v0"], gym.registry["Ruled-v0"]
    rules = (CategoryBoredom(), ProviderQuota(), CategoryBoredom(7), two_sided)
    assert len(set(rules)) == len(rules)
    assert CategoryBoredom(8) == CategoryBoredom()
    assert ProviderQuota(np.arange(3)) != ProviderQuota(np.arange(4))


def test_rules_are_told_apart_by_name_and_parameters(small) -> None:
    def settings(**options: Any) -> dict[str, Any]:
        return batch_of(small, n=1, **options)._settings()

    assert "reward" not in settings()
    assert settings(abandonment=two_sided)["abandonment"] == {"rule": "two_sided"}
    boredom = settings(abandonment=CategoryBoredom(3, 7))["abandonment"]
    assert boredom == {"rule": "CategoryBoredom", "most": 3, "last": 7, "cost": math.inf}
    quotas = [ProviderQuota("category"), ProviderQuota(np.arange(240) % 3)]
    quotas += [ProviderQuota(np.arange(240) % 4), ProviderQuota("category", price=0.5)]
    assert len({str(settings(reward=rule)["reward"]) for rule in quotas}) == len(quotas)


def test_rules_of_the_user_s_own_module_can_be_pickled(small) -> None:
    batch = batch_of(small, reward=Loyal(), abandonment=two_sided)
    batch.step(slates_of(np.random.default_rng(0)))
    other = pickle.loads(pickle.dumps(batch))
    slates = slates_of(np.random.default_rng(1))
    expected, result = batch.step(slates), other.step(slates)
    np.testing.assert_array_equal(expected.reward, 7)
    for name, values in expected._asdict().items():
        np.testing.assert_array_equal(getattr(result, name), values)


def test_a_session_whose_rule_failed_must_be_reset(small) -> None:
    """What follows half a step would not be what the observation tells."""
    env = gym.make("KuaiRec-Fair-v0", dataset=small, reward=lambda step: step.utility * np.nan)
    env.reset(seed=1)
    action = np.zeros(env.action_space.shape, dtype=np.float32)
    with pytest.raises(ConfigError, match="must return"):
        env.step(action)
    with pytest.raises(ResetNeededError):
        env.step(action)
    env.reset(seed=1)


def test_lists_of_unequal_lengths_are_no_answer(small) -> None:
    env = gym.make("KuaiRec-Fair-v0", dataset=small, reward=lambda step: [[1.0], [1.0, 2.0]])
    env.reset(seed=1)
    with pytest.raises(ConfigError, match="must return numbers of shape"):
        env.step(np.zeros(env.action_space.shape, dtype=np.float32))
