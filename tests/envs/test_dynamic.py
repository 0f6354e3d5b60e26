"""Catalogues that change: items are born and leave, and what is shown becomes popular."""

from __future__ import annotations

import copy
import json
import pickle
from dataclasses import replace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from dsrm_agents import evaluate, make_vec_env
from dsrm_agents.baselines.reference import make_reference
from dsrm_agents.common.catalogue import outside_pool
from kuaisim_gym.config import SessionConfig
from kuaisim_gym.data.dataset import Labels
from kuaisim_gym.engine import bits, find_engine
from kuaisim_gym.engine.types import SessionState
from kuaisim_gym.envs.tasks import make_batch
from kuaisim_gym.errors import ConfigError, DataFormatError
from kuaisim_gym.metrics import Sessions
from kuaisim_gym.metrics.exposure import longtail_share
from kuaisim_gym.metrics.newcomers import by_age, daily, summarise_newcomers
from kuaisim_gym.simulator import load_catalogue
from kuaisim_gym.simulator.catalogue import Catalogue
from kuaisim_gym.simulator.lifecycle import (
    Lifecycle,
    Timetable,
    before_first_day,
    timetable_of,
)
from kuaisim_gym.simulator.platform import Platform

N = 4
DAYS = {"days": (1, 5), "sessions_per_day": 5, "lifetime": 8.0, "initial": 0.6}
OPTIONS: dict[str, Any] = {"max_len": 4, "slate_size": 5, "catalogue": DAYS}


def begun(dataset, seed: int = 3, **options):
    batch = make_batch(N, dataset.name, dataset=dataset, **(OPTIONS | options))
    batch.seed(seed + np.arange(N))
    batch.reset()
    return batch


def play(batch, rng: np.random.Generator, steps: int, fused: bool = False) -> list[Any]:
    """Steps with random actions, begins a session where one ends; all that could be seen."""
    seen: list[Any] = []
    for _ in range(steps):
        batch.action_space.seed(int(rng.integers(2**31)))
        actions = np.array([batch.action_space.sample() for _ in range(N)])
        if fused:
            result, observation, info = batch.play(actions)
            seen += [*result, observation, info]
            if result.done.any():
                seen += [*batch.renew(result.done)]
            continue
        result = batch.step(actions)
        seen += [*result, batch.observe(), batch.info(result)]
        if result.done.any():
            batch.reset(result.done)
            seen += [batch.observe(), batch.info()]
    return seen


def assert_the_same(one: Any, two: Any) -> None:
    if isinstance(one, dict):
        assert one.keys() == two.keys()
        one, two = list(one.values()), list(two.values())
    if isinstance(one, (list, tuple)):
        assert len(one) == len(two)
        for a, b in zip(one, two, strict=True):
            assert_the_same(a, b)
    else:
        np.testing.assert_array_equal(one, two)


def test_arrivals_are_a_poisson_process(world) -> None:
    table = timetable_of(world, Lifecycle(days=(1, 30), initial=0.25, lifetime=10.0, seed=4))
    n = world.n_items
    assert np.count_nonzero(table.logged) == round(n / 4)
    arrived = table.born[~table.logged]
    # All have come by the last day, but for chance: the rate is their number by 30 days.
    rate, counts = len(arrived) / 30, np.bincount(arrived, minlength=31)[1:28]
    assert abs(counts.mean() / rate - 1) < 4 / np.sqrt(27 * rate)
    assert 0.4 < counts.var() / rate < 2.2
    stays = table.gone - np.maximum(table.born, 1)
    assert stays.min() >= 1
    assert abs(stays.mean() - 10.5) < 4 * 10 / np.sqrt(n)  # rounded up to whole days
    assert (timetable_of(world, Lifecycle(lifetime=np.inf)).gone > 2**30).all()
    again = timetable_of(world, Lifecycle(days=(1, 30), initial=0.25, lifetime=10.0, seed=4))
    assert (again.born == table.born).all() and (again.gone == table.gone).all()
    other = timetable_of(world, Lifecycle(days=(1, 30), initial=0.25, lifetime=10.0, seed=5))
    assert (other.born != table.born).any()


def test_a_rate_of_arrivals(world) -> None:
    table = timetable_of(world, Lifecycle(arrivals=2.0, initial=0.5))
    counts = np.bincount(table.born[~table.logged])[1:41]
    assert abs(counts.mean() - 2.0) < 4 * np.sqrt(2.0 / 40)


def test_dates_order_arrivals_or_are_them(small) -> None:
    n = small.n_items
    codes = np.random.default_rng(0).integers(1, 4, n).astype(np.int32)
    dates = Labels(codes, ("", "2022-04-09", "2022-04-10", "2022-04-12"))
    dated = replace(small, item_groups={"upload_dt": dates, "place": Labels(codes, tuple("abcd"))})
    table = timetable_of(dated, Lifecycle(arrivals="dates"))
    assert (table.born == np.array([0, 0, 1, 3])[codes]).all()
    ordered = timetable_of(dated, Lifecycle(initial=0.3))
    assert codes[ordered.logged].max() <= codes[~ordered.logged].min()
    with pytest.raises(ConfigError, match="dates='place' must name a column of dates"):
        timetable_of(dated, Lifecycle(dates="place"))
    missing = replace(small, item_groups={"upload_dt": Labels(codes - 1, dates.values[:3])})
    with pytest.raises(ConfigError, match="a day for each item"):
        timetable_of(missing, Lifecycle())
    with pytest.raises(ConfigError, match="has none: name a column"):
        timetable_of(small, Lifecycle(arrivals="dates"))


def test_nobody_has_logged_newcomers(small_rand) -> None:
    lifecycle = Lifecycle(initial=0.5)
    earlier, table = before_first_day(small_rand, lifecycle)
    known = table.logged
    in_catalogue = earlier.log.items < earlier.n_items
    assert known[earlier.log.items[in_catalogue]].all()
    kept = np.ones(small_rand.n_all_items, dtype=bool)
    kept[: small_rand.n_items] = known
    assert len(earlier.log) == np.count_nonzero(kept[small_rand.log.items])
    assert earlier.randomised is None or kept[earlier.randomised.items].all()
    assert earlier.test is small_rand.test
    catalogue = load_catalogue(earlier)
    assert (catalogue.exposures[~known] == 0).all()
    assert before_first_day(small_rand, Lifecycle(initial=0.5))[0] is earlier


def test_features_place_an_item_that_nobody_has_logged(small) -> None:
    earlier, table = before_first_day(small, Lifecycle(initial=0.5))
    embedding = load_catalogue(earlier).item_embedding
    whole = load_catalogue(small).item_embedding
    newcomers = np.flatnonzero(~table.logged)
    features = np.column_stack([codes[newcomers] for codes in earlier.item_features.codes.values()])
    _, alike = np.unique(features, axis=0, return_inverse=True)
    for group in np.unique(alike):
        same = embedding[newcomers[alike.ravel() == group]]
        np.testing.assert_allclose(same, same[:1].repeat(len(same), axis=0), atol=1e-4)
    assert len(np.unique(embedding[newcomers].round(4), axis=0)) > 1
    # Closer to what the whole log says of them than chance.
    products = [np.corrcoef(embedding[newcomers, 1], whole[newcomers, d])[0, 1] for d in (1, 2)]
    assert max(map(abs, products)) > 0.3


def state_of(n_sessions: int, n_items: int, longest: int, k: int) -> SessionState:
    names = SessionState._fields
    arrays = dict.fromkeys(names, np.zeros(n_sessions, dtype=np.int64))
    arrays["exposed"] = np.zeros((n_sessions, bits.width(n_items)), dtype=np.uint8)
    arrays["slates"] = np.zeros((n_sessions, longest, k), dtype=np.int32)
    return SessionState(**arrays)


@pytest.mark.parametrize("engine", ["numpy", "numba"])
def test_three_days_by_hand(engine: str) -> None:
    # Items 0 to 3 were logged, 4 comes on day 2 and 5 on day 3; 0 leaves before day 2.
    table = Timetable(np.array([0, 0, 0, 0, 2, 3]), np.array([2, 9, 9, 9, 9, 9]))
    log = np.array([5, 2, 2, 1, 0, 0])
    known = Catalogue(np.zeros((6, 2), dtype=np.float32), log)
    lifecycle = Lifecycle(days=(1, 3), sessions_per_day=2, memory=0.5)
    config = SessionConfig(max_len=2, slate_size=2, window=2)
    platform = Platform(table, lifecycle, known, 2, config, find_engine(engine))
    state = state_of(2, 6, 2, 2)
    both = np.array([0, 1])

    platform.arrive(state, both)
    assert platform.day == 1
    np.testing.assert_allclose(platform.shares, np.array([5, 2, 2, 1, 0, 0]) / 10)
    assert platform.popular.tolist() == [True, False, False, False, False, False]
    assert bits.unpack(state.exposed, 6).tolist() == [[False] * 4 + [True, True]] * 2

    state.steps[:] = 1
    slates = np.array([[0, 1], [3, 4]])
    answered = np.array([[True, True], [True, False]])  # 4 is not there yet
    platform.show(state, slates, answered, np.array([True, True]))
    assert platform.shown_popular[:, 0].tolist() == [[True, False], [False, False]]
    assert platform.ages(both, slates[:, None])[:, 0].tolist() == [[1, 1], [1, -1]]
    state.steps[0] = 2
    platform.show(state, np.array([[2, 3], [0, 0]]), np.ones((2, 2), bool), np.array([True, False]))
    assert platform.shown_popular[0, 1].tolist() == [False, False]

    state.exposed[1] |= bits.pack(np.array([[False, True, False, False, False, False]]))[0]
    platform.arrive(state, both[:1])  # the second day's first session
    assert platform.day == 2
    # Half of the log's shares, half of the day's five exposures: 0, 1, 2 once and 3 twice.
    expected = np.array([0.0, 0.1 + 0.1, 0.1 + 0.1, 0.05 + 0.2, 0.0, 0.0])
    np.testing.assert_allclose(platform.shares, expected)
    assert np.flatnonzero(platform.popular).tolist() == [3]
    assert (platform.labels == platform.popular).all()
    # The session under way loses item 0, gains item 4 and keeps what it was shown.
    assert bits.unpack(state.exposed, 6).tolist() == [
        [True, False, False, False, False, True],
        [True, True, False, False, False, True],
    ]
    today = platform.catalogue()
    assert today.available is not None
    assert today.available.tolist() == [False, True, True, True, True, False]
    assert np.flatnonzero(today.popular).tolist() == [3]

    snapshot = platform.snapshot()
    platform.arrive(state, both[1:])
    platform.arrive(state, both)
    assert platform.day == 3
    np.testing.assert_allclose(platform.shares, expected)  # nothing was shown: nothing changes
    opened = platform.today
    platform.arrive(state, both)
    assert platform.day == 1 and platform.today != opened  # the platform opens anew
    np.testing.assert_allclose(platform.shares, np.array([5, 2, 2, 1, 0, 0]) / 10)
    platform.restore(snapshot)
    assert platform.day == 2 and np.flatnonzero(platform.popular).tolist() == [3]


@pytest.mark.parametrize("action", ["shares", "scorer", "slate", "discrete"])
@pytest.mark.parametrize("observation", ["state", "dict", "belief"])
def test_engines_and_compiled_steps_do_the_same(small, action: str, observation: str) -> None:
    options: dict[str, Any] = {"action_type": action, "observation_type": observation}
    if action == "discrete":
        options["slate_size"] = 1
    runs = []
    for engine, fused in (("numpy", False), ("numba", False), ("numba", True)):
        batch = begun(small, engine=engine, **options)
        runs.append(play(batch, np.random.default_rng(1), 40, fused))
        assert batch.platform is not None and batch.platform.today[0] > 1  # it has opened again
    assert_the_same(runs[0], runs[1])
    steps = [seen for seen in runs[2] if isinstance(seen, np.ndarray)]
    assert_the_same(steps, [seen for seen in runs[1] if isinstance(seen, np.ndarray)][: len(steps)])


@pytest.mark.parametrize("action", ["shares", "scorer", "slate"])
def test_snapshots_go_on_as_if_nothing_had_been(small, action: str) -> None:
    batch = begun(small, action_type=action)
    play(batch, np.random.default_rng(1), 9)
    snapshot = batch.snapshot()
    expected = play(batch, np.random.default_rng(2), 12)
    fresh = begun(small, seed=77, action_type=action)
    fresh.restore(snapshot)
    assert_the_same(play(fresh, np.random.default_rng(2), 12), expected)
    other = begun(small, action_type=action, catalogue=DAYS | {"memory": 0.1})
    with pytest.raises(ConfigError, match="catalogue is"):
        other.restore(snapshot)


def test_bits_are_those_of_the_day_that_is_restored(small) -> None:
    batch = begun(small, observation_type="dict", action_type="slate")
    platform = batch.platform
    first, snapshot = batch.observe(), batch.snapshot()
    play(batch, np.random.default_rng(1), 9)
    assert platform.day > 1
    later = batch.observe()
    for name, flags in (("available", platform.available), ("popular", platform.popular)):
        assert (later[name] == bits.pack(flags[None])).all()
        assert (later[name] != first[name]).any()
    batch.restore(snapshot)
    assert_the_same(batch.observe(), first)


def test_infos_of_slots_on_two_days(small) -> None:
    """Those that end when a day does begin on the next; the others' step was on the day before."""
    options = OPTIONS | {"dataset": small, "action_type": "slate"}
    envs = gym.make_vec("KuaiRec-Dynamic-v0", N, autoreset_mode="SameStep", **options)
    envs.reset(seed=3)
    envs.action_space.seed(3)
    batch, mixed = envs.unwrapped.batch, 0
    before = batch.platform.available
    for _ in range(40):
        *_, infos = envs.step(envs.action_space.sample())
        today, day = batch.platform.available, batch.platform.day
        ended = infos.get("_final_info", np.zeros(N, dtype=bool))
        mixed += len(np.unique(infos["day"])) > 1
        for slot in range(N):
            assert (infos["available"][slot] == (today if ended[slot] else before)).all()
            assert not ended[slot] or infos["day"][slot] == day
        if ended.any():
            assert (infos["final_info"]["available"][ended] == before).all()
        before = today
    assert mixed


def test_snapshots_do_not_ask_whose_day_their_groups_are(small) -> None:
    batch = begun(small, target=(0.7, 0.3))
    first = batch.snapshot()
    play(batch, np.random.default_rng(1), 9)
    assert batch.platform.day > 1
    fresh = begun(small, target=(0.7, 0.3))
    play(fresh, np.random.default_rng(3), 5)
    fresh.restore(batch.snapshot())
    fresh.restore(first)
    assert fresh.platform.day == 1
    sizes = np.bincount(fresh.groups.labels)
    assert (fresh.groups.sizes == sizes).all()


@pytest.mark.parametrize("action", ["shares", "slate"])
def test_copies_and_pickles_go_on_alike(small, action: str) -> None:
    batch = begun(small, action_type=action, engine="numpy")
    play(batch, np.random.default_rng(1), 9)
    copies = [copy.deepcopy(batch), pickle.loads(pickle.dumps(batch))]
    expected = play(batch, np.random.default_rng(2), 12)
    day = batch.platform.today
    for other in copies:
        assert_the_same(play(other, np.random.default_rng(2), 12), expected)
        assert other.platform.today == day
        assert_the_same(other.core.rules.labels, other.platform.labels)
        for array in (other.core.rules.labels, other.core.rules.target):
            assert not array.flags.writeable  # or compiled code would be compiled again


def test_a_day_is_no_other_option(small) -> None:
    options = {"target": (0.7, 0.3), "action_type": "slate", "engine": "numpy"}
    first, later = begun(small, **options), begun(small, **options)
    first.snapshot()
    play(later, np.random.default_rng(1), 9)
    assert later.platform.day > first.platform.day
    first.restore(later.snapshot())
    assert first.platform.day == later.platform.day
    assert_the_same(first._user_classes, begun(small, **options)._user_classes)


def test_sessions_remember_what_left_and_came_back(small) -> None:
    life = {"days": (1, 2), "sessions_per_day": N, "lifetime": 2.0, "initial": 0.6}
    batch = begun(small, action_type="slate", slate_size=2, max_len=20, catalogue=life)
    table, others = batch.platform.timetable, np.arange(N) > 0
    leaving = np.flatnonzero((table.born <= 1) & (table.gone == 2))[:2]
    staying = np.flatnonzero((table.born <= 1) & (table.gone > 2))[:2]
    slates = np.array([leaving] + [staying] * (N - 1))
    assert batch.step(slates).answered.all()
    days = [batch.platform.day]
    while days[-2:] != [2, 1]:
        batch.reset(others)
        days.append(batch.platform.day)
        assert batch.core.unexposed()[0, leaving].sum() == 0
    answered = batch.step(slates).answered
    assert not answered[0].any() and answered[1:].all()  # the others' sessions are new


def test_one_platform_for_all_shells(small) -> None:
    env_id, options = "KuaiRec-Dynamic-v0", OPTIONS | {"dataset": small}
    vector = gym.make_vec(env_id, N, autoreset_mode="SameStep", **options)
    sb3 = make_vec_env(env_id, N, seed=3, **options)
    observations, _ = vector.reset(seed=3)
    np.testing.assert_array_equal(observations, sb3.reset())
    rng = np.random.default_rng(0)
    for _ in range(30):
        actions = rng.uniform(-1, 1, vector.action_space.shape).astype(np.float32)
        observations, rewards, *_, infos = vector.step(actions)
        shown, same_rewards, dones, sb3_infos = sb3.step(actions)
        np.testing.assert_array_equal(observations, shown)
        np.testing.assert_array_equal(rewards.astype(np.float32), same_rewards)
        for slot in np.flatnonzero(~dones):  # after a reset, infos are of the step before in SB3
            assert infos["day"][slot] == sb3_infos[slot]["day"]
            available = sb3_infos[slot]["available"]
            np.testing.assert_array_equal(infos["available"][slot], available)


@pytest.mark.parametrize("env_id", ["KuaiRec-Dynamic-v0", "KuaiRand-Dynamic-v0"])
def test_gymnasium_finds_no_fault(small, small_rand, env_id: str) -> None:
    dataset = small if env_id.startswith("KuaiRec") else small_rand
    env = gym.make(env_id, dataset=dataset, **OPTIONS)
    check_env(env.unwrapped, skip_render_check=True)
    # A seed opens the platform anew: the same from the first day on.
    seen = []
    for _ in range(2):
        env.reset(seed=5)
        env.action_space.seed(5)
        days = []
        for _ in range(40):
            *_, terminated, truncated, info = env.step(env.action_space.sample())
            days.append((info["day"], info["slate"].tolist()))
            if terminated or truncated:
                env.reset()
        seen.append(days)
    assert seen[0] == seen[1]
    assert len({day for day, _ in seen[0]}) > 1


@pytest.mark.parametrize("action", ["shares", "scorer", "slate"])
def test_only_items_that_are_there_are_shown(small, action: str) -> None:
    batch = begun(small, action_type=action, observation_type="dict", engine="numba")
    rng = np.random.default_rng(0)
    for _ in range(40):
        available = batch.info()["available"]
        assert available.shape == (N, small.n_items)
        if action == "slate":
            masks = batch.actions.masks()
            assert not (masks & ~available[:, None]).any()
            actions = np.array([rng.permutation(np.flatnonzero(mask[0]))[:5] for mask in masks])
        else:
            batch.action_space.seed(int(rng.integers(2**31)))
            actions = np.array([batch.action_space.sample() for _ in range(N)])
        result = batch.step(actions)
        assert np.take_along_axis(available, result.slates, axis=1).all()
        assert result.answered.all()
        observed = batch.observe()
        flags = bits.unpack(observed["popular"], small.n_items)
        assert (flags == batch.catalogue.popular).all()
        assert (batch.core.groups.labels == batch.catalogue.popular).all()
        size = np.count_nonzero(batch.catalogue.available)
        assert np.count_nonzero(flags[0]) == max(1, round(0.2 * size))
        batch.reset(result.done)


def test_items_that_are_not_there_answer_nothing(small) -> None:
    batch = begun(small, action_type="slate", stochastic_response=False)
    absent = np.flatnonzero(~batch.platform.available)[:5]
    result = batch.step(np.tile(absent, (N, 1)))
    assert not result.answered.any() and (result.reward == 0).all()
    assert batch.platform.snapshot()["today"].sum() == 0


def test_policies_see_what_is_not_there(small) -> None:
    import torch

    batch = begun(small, observation_type="dict", action_type="slate")
    shown = {name: torch.as_tensor(array) for name, array in batch.observe().items()}
    outside = outside_pool(shown, small.n_items).numpy()
    assert (outside == ~batch.platform.available).all() and outside.any()


def test_the_rich_get_richer_only_where_they_are_shown(small) -> None:
    """What a policy shows is popular on the days after."""
    batch = begun(small, action_type="slate", catalogue=DAYS | {"memory": 0.0, "lifetime": np.inf})
    chosen = np.flatnonzero(~batch.catalogue.popular & batch.platform.available)[: 4 * 5]
    day = batch.platform.day
    while batch.platform.day == day:
        steps = batch.core.state.steps
        slates = chosen.reshape(4, 5)[steps]
        batch.reset(batch.step(slates).done)
    assert batch.catalogue.popular[chosen].sum() == min(20, batch.catalogue.popular.sum())


@pytest.mark.parametrize("row", ["random", "filter+quota"])
def test_sessions_end_before_they_run_dry(small, row: str) -> None:
    """Otherwise they would show what is not there, or is not yet born."""
    days = {"days": (1, 4), "sessions_per_day": 6, "initial": 0.1, "arrivals": 1.0, "lifetime": 9.0}
    options: dict[str, Any] = {"catalogue": days, "slate_size": 4, "max_len": 8}
    env = make_vec_env(
        "KuaiRec-Dynamic-v0", N, "test", 1, dataset=small, action_type="slate",
        abandonment="none", **options,
    )  # fmt: skip
    assert env.batch.platform.can_run_dry
    sessions = evaluate(make_reference(row, env.batch), env, 40)
    table, shown = env.batch.platform.timetable, sessions.slates >= 0
    day = sessions.ages.astype(int) + table.born[sessions.slates]
    assert (sessions.ages[shown] >= 0).all()
    assert (day < table.gone[sessions.slates])[shown].all()
    assert (sessions.length < 8).any() and (sessions.length >= 2).all()
    enough = make_vec_env("KuaiRec-Dynamic-v0", N, dataset=small, **options | {"max_len": 2})
    assert not enough.batch.platform.can_run_dry


def test_metrics_by_hand() -> None:
    table = Timetable(np.array([0, 0, 2, 3, 3]), np.array([9, 9, 9, 9, 9]))
    sessions = Sessions(
        length=np.array([2, 1]),
        rewards=np.zeros((2, 2)),
        penalised=np.zeros((2, 2), dtype=bool),
        slates=np.array([[[0, 2], [0, 1]], [[2, 3], [-1, -1]]], dtype=np.int32),
        responses=np.array([[[1, 0.5], [0, 0]], [[1, 0.25], [0, 0]]], dtype=np.float32),
        users=np.zeros(2, dtype=np.int32),
        popular=np.array([[[1, 0], [1, 0]], [[0, 0], [0, 0]]], dtype=bool),
        ages=np.array([[[2, 0], [2, 2]], [[4, 3], [-1, -1]]], dtype=np.int16),
    )
    assert summarise_newcomers(sessions, table) == {
        "new_share": 2 / 6,  # item 2 on day 2, item 3 on day 6; item 2 is old then
        "new_reward": (0.5 + 0.25) / 2,
        "old_reward": (1 + 0 + 0 + 1) / 4,
        "first_exposure": (0 + 3) / 2,
        "unseen": pytest.approx(1 / 3),
    }
    assert longtail_share(sessions, np.ones(5, dtype=bool)) == pytest.approx(
        4 / 6
    )  # by the day's own group
    by_day = daily(sessions, table)
    assert by_day.day.tolist() == [2, 6]
    assert by_day.new_share.tolist() == [0.25, 0.5]
    assert by_day.popular_share.tolist() == [0.5, 0.0]
    # Day 2: items 0, 1, 2 are there, shown 2, 1, 1 times; day 6: five items, two of them once.
    np.testing.assert_allclose(by_day.gini, [1 / 6, 0.6])
    ages = by_age(sessions, table)  # of items 2 and 3
    assert ages.age.tolist() == [0, 3, 4]
    assert ages.share.tolist() == [1 / 6] * 3 and ages.reward.tolist() == [0.5, 0.25, 1.0]
    with pytest.raises(DataFormatError, match="does not change"):
        daily(replace(sessions, ages=None), table)


def test_a_batch_summarises_its_days(small) -> None:
    batch = begun(small)
    play(batch, np.random.default_rng(0), 20)
    metrics = batch.summarise(batch.records(np.flatnonzero(batch.core.state.steps)))
    assert 0.0 <= metrics["new_share"] <= 1.0
    assert set(metrics) > {"len", "new_reward", "old_reward", "first_exposure", "unseen"}


@pytest.mark.parametrize(
    ("catalogue", "message"),
    [
        ("dynamics", "catalogue must be one of .*'dynamic'"),
        (5, "catalogue must be one of"),
        ({"life": 3}, "A field of catalogue must be one of"),
        ({"days": 3}, "days must be the first and the last day"),
        ({"days": (0, 3)}, "first of days must be an integer of at least 1"),
        ({"days": (4, 3)}, "last of days must be an integer of at least 4"),
        ({"days": (1, 40_000)}, "last of days must be at most 32767, got 40000"),
        ({"lifetime": 0.0}, r"lifetime must be a number in \(0, inf\]"),
        ({"memory": 1.0}, r"memory must be a number in \[0, 1\)"),
        ({"initial": "half"}, r"initial must be a number in \(0, 1\]"),
        ({"arrivals": -1}, r"arrivals must be a number in \(0, inf\)"),
        ({"arrivals": "often"}, "arrivals must be one of"),
        ({"sessions_per_day": 2}, "at least the 4 sessions"),
        ({"initial": 0.01, "arrivals": 0.1}, "On day 1 .* items, fewer than the 5 of a slate"),
    ],
)
def test_what_is_no_lifecycle(small, catalogue: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        begun(small, catalogue=catalogue)


def test_what_does_not_go_with_it(small) -> None:
    with pytest.raises(ConfigError, match="allow_repeats=True would show items"):
        begun(small, allow_repeats=True)
    with pytest.raises(ConfigError, match="cannot know items that come later"):
        begun(small, action_type="fusion")
    with pytest.raises(ConfigError, match="pool of items alone"):
        before_first_day(replace(small, pools=True), Lifecycle())


def test_a_lifecycle_can_be_written_down() -> None:
    lifecycle = Lifecycle(days=[2, 9], memory=0.5)
    written = json.loads(json.dumps(lifecycle.settings))
    assert Lifecycle.of(written) == lifecycle and hash(lifecycle) == hash(Lifecycle.of(written))
    assert Lifecycle.of("fixed") is None and Lifecycle.of("dynamic") == Lifecycle()
