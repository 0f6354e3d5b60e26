"""A batch put back to a snapshot goes on exactly as the one that gave it."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dsrm_agents import make_vec_env
from kuaisim_gym import CategoryBoredom, ProviderQuota
from kuaisim_gym.envs.tasks import make_batch
from kuaisim_gym.errors import ConfigError, ResetNeededError
from kuaisim_gym.simulator.sequential import SequentialConfig, SequentialSessions, fit_sequential

N = 5
QUICK = settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
TASKS = {
    "session": {"max_len": 4},
    "request": {"max_len": 3},
    "retention": {"max_len": 2, "n_visits": 3},
}


def begun(dataset, task: str = "session", seed: int = 0, **options):
    batch = make_batch(N, dataset.name, task, dataset=dataset, **(TASKS[task] | options))
    batch.seed(seed + np.arange(N))
    batch.reset()
    return batch


def play(batch, rng: np.random.Generator, steps: int) -> list:
    """Steps with random actions, begins a session where one ends; all that could be seen."""
    seen = []
    for _ in range(steps):
        batch.action_space.seed(int(rng.integers(2**31)))
        actions = np.array([batch.action_space.sample() for _ in range(N)])
        result = batch.step(actions)
        seen += [*result, batch.observe(), batch.info(result)]
        batch.reset(result.done)
        seen += [batch.observe(), batch.info()]
    return seen


def assert_the_same(one: list, two: list) -> None:
    for a, b in zip(one, two, strict=True):
        if isinstance(a, dict):
            assert_the_same(list(a.values()), list(b.values()))
        else:
            np.testing.assert_array_equal(a, b, strict=True)


@pytest.mark.parametrize("observation", ["state", "dict", "history", "belief", "parts"])
@pytest.mark.parametrize("task", TASKS)
@given(before=st.integers(0, 9), seed=st.integers(0, 99))
@QUICK
def test_it_goes_on_as_if_nothing_had_been(small_rand, task, observation, before, seed) -> None:
    options = {"observation_type": observation}
    if observation == "history":
        options["history_len"] = 7
    if observation == "parts":
        options = {"observation_type": "state", "preference": "parts"}
    batch = begun(small_rand, task, seed, **options)
    play(batch, np.random.default_rng(seed), before)
    snapshot, shown = batch.snapshot(), batch.observe()
    expected = play(batch, np.random.default_rng(1), 14)

    fresh = begun(small_rand, task, seed + 1000, **options)
    play(fresh, np.random.default_rng(2), 3)  # whatever it has been through
    fresh.restore(snapshot)
    assert_the_same([fresh.observe()], [shown])
    assert_the_same(play(fresh, np.random.default_rng(1), 14), expected)
    batch.restore(snapshot)  # and in the batch itself, whose later steps left the snapshot alone
    assert_the_same(play(batch, np.random.default_rng(1), 14), expected)


@pytest.mark.parametrize("action", ["scorer", "slate", "discrete", "fusion"])
def test_with_every_kind_of_action(small_rand, action: str) -> None:
    batch = begun(small_rand, action_type=action)
    play(batch, np.random.default_rng(0), 5)
    snapshot = batch.snapshot()
    expected = play(batch, np.random.default_rng(1), 9)
    fresh = begun(small_rand, action_type=action, seed=50)
    play(fresh, np.random.default_rng(0), 1)
    fresh.restore(snapshot)
    assert_the_same(play(fresh, np.random.default_rng(1), 9), expected)


def test_on_another_engine(small) -> None:
    pytest.importorskip("numba")
    batch = begun(small, engine="numba")
    play(batch, np.random.default_rng(0), 5)
    snapshot = batch.snapshot()
    fresh = begun(small, engine="numpy")
    fresh.restore(snapshot)
    expected = play(batch, np.random.default_rng(1), 9)
    assert_the_same(play(fresh, np.random.default_rng(1), 9), expected)


@pytest.mark.parametrize("task", ["session", "request", "retention"])
def test_with_rules_that_remember(small_rand, task) -> None:
    pytest.importorskip("numba")
    reward = {} if task == "retention" else {"reward": ProviderQuota(np.arange(240) % 3)}
    options = {"max_len": 8, "abandonment": CategoryBoredom(most=9, last=30, cost=0.5)} | reward
    batch = begun(small_rand, task, engine="numba", **options)
    play(batch, np.random.default_rng(0), 4)
    snapshot = batch.snapshot()
    assert batch.core.state.steps.any()  # there is something to remember
    assert snapshot["core.rules.abandonment.recent"].shape == (N, 30)
    expected = play(batch, np.random.default_rng(1), 12)
    for engine in ("numba", "numpy"):
        fresh = begun(small_rand, task, seed=9, engine=engine, **options)
        play(fresh, np.random.default_rng(2), 3)
        fresh.restore(snapshot)
        assert_the_same(play(fresh, np.random.default_rng(1), 12), expected)
    forgetful = begun(small_rand, task, **options)
    memory = {name: 0 * array for name, array in snapshot.items() if "rules" in name}
    forgetful.restore(snapshot | memory)
    with pytest.raises(AssertionError):
        assert_the_same(play(forgetful, np.random.default_rng(1), 12), expected)


def test_with_a_response_model_that_remembers(small_rand) -> None:
    """Its rings of keys and values, and where they stand, are kept too."""
    data = small_rand.training
    config = SequentialConfig(latent=4, encoding=8, heads=2, window=6, epochs=1)
    model = fit_sequential(
        data.log,
        data.log,
        data.n_users,
        data.n_all_items,
        small_rand.user_features,
        small_rand.item_features,
        config=config,
        progress=False,
    )

    def steps(sessions, seed: int, count: int) -> list:
        rng, found = np.random.default_rng(seed), []
        for _ in range(count):
            slates = rng.integers(0, small_rand.n_items, (N, 4))
            found.append(sessions.feedback(slates))
            sessions.observe(slates, np.round(found[-1]))
        return found

    everyone = np.ones(N, dtype=bool)
    sessions = SequentialSessions(model, N)
    sessions.reset(everyone, np.arange(N))
    steps(sessions, 0, 5)
    snapshot = sessions.snapshot()
    expected = steps(sessions, 1, 4)
    fresh = SequentialSessions(model, N)
    fresh.restore(snapshot)
    for one, two in zip(steps(fresh, 1, 4), expected, strict=True):
        np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"max_len": 5}, "max_len is 5 here and was 4"),
        ({"observation_type": "dict"}, "observation_type is 'dict' here and was 'state'"),
        ({"split": "test"}, "split is 'test' here and was 'train'"),
        ({"reward_weights": {"like": 1.0}}, "reward_weights"),
        ({"reward": "vector"}, "reward is {'rule': 'UtilityAndFairness'} here and was None"),
        ({"abandonment": CategoryBoredom(7)}, "abandonment is {.*'most': 7, 'last': 20"),
        ({"task": "request", "max_len": 4}, "task is 'RequestBatch' here and was 'SessionBatch'"),
    ],
)
def test_other_options_are_refused_and_nothing_changes(small_rand, options, words) -> None:
    snapshot = begun(small_rand).snapshot()
    if "reward_weights" in options:
        options = {"reward_weights": {small_rand.behaviours[1]: 1.0}}
    other = begun(small_rand, seed=7, **options)
    before = other.snapshot()
    with pytest.raises(ConfigError, match=words):
        other.restore(snapshot)
    assert_the_same(list(other.snapshot().values()), list(before.values()))


def test_other_shapes_datasets_and_things_are_refused(small, small_rand) -> None:
    batch = begun(small_rand)
    with pytest.raises(ConfigError, match="dataset is"):
        begun(small).restore(batch.snapshot())
    few = make_batch(3, "kuairand", dataset=small_rand, max_len=4)
    with pytest.raises(ConfigError, match="n_sessions is 5 here and was 3"):
        batch.restore(few.snapshot())
    seven, eight = (
        begun(small_rand, observation_type="history", history_len=length) for length in (7, 8)
    )
    with pytest.raises(ConfigError, match=r"history.* must be .*\(5, 7.* got .*\(5, 8"):
        seven.restore(eight.snapshot())
    two = begun(small_rand, "retention", n_visits=2)
    with pytest.raises(ConfigError, match="n_visits is 2 here and was 3"):
        two.restore(begun(small_rand, "retention").snapshot())
    torn = batch.snapshot()
    del torn["core.temper"]
    with pytest.raises(ConfigError, match="core.temper must be float64 .* got absent"):
        batch.restore(torn)
    with pytest.raises(ConfigError, match="no snapshot of sessions"):
        batch.restore({})


def test_the_sb3_shell_goes_on_without_a_reset(small) -> None:
    def env(seed: int):
        return make_vec_env("KuaiRec-Fair-v0", N, seed=seed, dataset=small, max_len=4)

    one, two = env(1), env(2)
    with pytest.raises(ResetNeededError, match=r"call reset\(\) first"):
        one.snapshot()
    one.reset()
    rng = np.random.default_rng(0)
    actions = rng.uniform(-1, 1, (30, N, 11)).astype(np.float32)
    for action in actions[:7]:
        one.step(action)
    two.restore(one.snapshot())
    assert_the_same(two.reset_infos, one.reset_infos)
    ended = 0
    for action in actions[7:]:
        (seen, reward, done, infos), (again, paid, over, told) = one.step(action), two.step(action)
        assert_the_same([seen, reward, done], [again, paid, over])
        for info, other in zip(infos, told, strict=True):
            assert info.get("session") == other.get("session")
            assert_the_same([info["user_id"], info["slate"]], [other["user_id"], other["slate"]])
        ended += int(done.sum())
        assert_the_same(two.reset_infos, one.reset_infos)
    assert ended > N


def test_a_vector_environment_goes_on_where_slots_had_ended(small) -> None:
    """Under NEXT_STEP it is also remembered who is reset by the next step."""
    envs = gym.make_vec("KuaiRec-Fair-v0", num_envs=N, dataset=small, max_len=3)
    envs.reset(seed=1)
    rng = np.random.default_rng(0)
    actions = rng.uniform(-1, 1, (12, *envs.action_space.shape)).astype(np.float32)
    taken = []
    for action in actions:
        taken.append((envs.snapshot(), envs.step(action)))
    for (snapshot, told), action in zip(taken, actions, strict=True):
        envs.restore(snapshot)
        assert_the_same(list(envs.step(action)[:4]), list(told[:4]))
    with pytest.raises(ConfigError, match="no snapshot of a vector environment"):
        envs.restore(envs.batch.snapshot())
