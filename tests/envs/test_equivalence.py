"""One session, many ways in: shells, engines, processes. They agree to the last bit.

Numbers are compared with their types and shapes and without any tolerance. Worlds, actions,
observations and rules meet in pairs: :func:`covering` picks the few combinations in which every two
values of two options occur together.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import hashlib
import itertools
import os
import pickle
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from hypothesis import given, reject, settings
from hypothesis import strategies as st

import kuaisim_gym
from kuaisim_gym import CategoryBoredom, ProviderQuota
from kuaisim_gym.config import ABANDONMENT_RULES
from kuaisim_gym.engine import Engine, bits, find_engine
from kuaisim_gym.engine.types import Exposures, Rules, SessionState
from kuaisim_gym.errors import ConfigError, ResetNeededError
from kuaisim_gym.simulator.groups import SLACK

N = 3
WORLDS: dict[str, tuple[str, dict[str, Any]]] = {
    "rec": ("KuaiRec-Fair-v0", {}),
    "rec-test": ("KuaiRec-Fair-v0", {"split": "test"}),
    "rand": ("KuaiRand-Fair-v0", {}),
    "rand-test": ("KuaiRand-Fair-v0", {"split": "test"}),
    "request": ("KuaiRand-Request-v0", {}),
    "retention": ("KuaiRand-Retention-v0", {"max_len": 3, "n_visits": 2}),
}
OWN_RULES = {
    "boredom": CategoryBoredom(most=3, last=6),
    "quota": ProviderQuota(np.arange(240) % 5, target=(0.1, 0.3, 0.2, 0.2, 0.2)),
}
# Rules of one's own meet the worlds above as axes, and have one of theirs where there are none.
ALL_WORLDS = WORLDS | {
    "rec-own": (
        "KuaiRec-Fair-v0",
        {"reward": OWN_RULES["quota"], "abandonment": CategoryBoredom(most=3, last=12, cost=1.0)},
    )
}
AXES: dict[str, tuple[Any, ...]] = {
    "world": tuple(WORLDS),
    "action_type": ("shares", "scorer", "slate", "discrete", "fusion"),
    "observation_type": ("state", "dict", "history", "belief", "parts"),
    "abandonment": ("imbalance", "popularity", "none", "boredom"),
    "reward": ("response", "quota"),
    "max_steps": (None, 4),
    "rules": ("plain", "unusual"),
    "mode": tuple(AutoresetMode),
}
UNUSUAL: dict[str, dict[str, Any]] = {
    "rec": {"stochastic_response": False, "allow_repeats": True},
    "rand": {"reward_weights": {"is_click": 1.0, "long_view": 0.5, "is_hate": -2.0}},
}
ENGINES = [find_engine("numpy"), find_engine("numba")]


def source(world: str) -> str:
    return "rec" if world.startswith("rec") else "rand"


def covering(axes: dict[str, tuple[Any, ...]]) -> Iterator[dict[str, Any]]:
    """Few combinations in which any two values of two axes meet, where they can."""
    whole = [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]
    # One behaviour, as KuaiRec has it, cannot be fused; returns are all that retention pays for.
    whole = [
        one
        for one in whole
        if (source(one["world"]), one["action_type"]) != ("rec", "fusion")
        and (one["world"], one["reward"]) != ("retention", "quota")
    ]
    pairs = [set(itertools.combinations(one.items(), 2)) for one in whole]
    missing = set().union(*pairs)
    while missing:
        best = max(range(len(whole)), key=lambda place: len(pairs[place] & missing))
        missing -= pairs[best]
        yield whole[best]


def name_of(case: dict[str, Any]) -> str:
    return "-".join(str(getattr(value, "value", value)) for value in case.values())


every_pair = pytest.mark.parametrize("case", list(covering(AXES)), ids=name_of)


@pytest.fixture(scope="module")
def worlds(small, small_rand) -> dict[str, Any]:
    return {"rec": small, "rand": small_rand}


def shown(kind: str) -> dict[str, str]:
    """Options of an observation."""
    if kind == "parts":
        return {"observation_type": "dict", "preference": "parts"}
    return {"observation_type": kind}


def own_rules(options: dict[str, Any]) -> dict[str, Any]:
    """Reward and abandonment of some options: rules of one's own for their names."""
    names = {name: options[name] or "response" for name in ("abandonment", "reward")}
    return {name: OWN_RULES.get(value, value) for name, value in names.items()}


def environment(case: dict[str, Any], worlds: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Id and options of an environment."""
    env_id, own = WORLDS[case["world"]]
    names = ("action_type", "observation_type", "abandonment", "reward", "max_steps")
    options = {"max_len": 7, "slate_size": 4} | own | {name: case[name] for name in names}
    options |= own_rules(options)
    options["dataset"] = worlds[source(case["world"])]
    if options["action_type"] == "discrete":
        options["slate_size"] = 1
    if options["observation_type"] == "history":
        options["history_len"] = 6
    options |= shown(options["observation_type"])
    if case["rules"] == "unusual":
        # A window of three is less than a slate of four, and more than a single item.
        options |= {"window": 3, "correlation": 0.3} | UNUSUAL[source(case["world"])]
    return env_id, options


def assert_same(one: Any, two: Any, where: str = "") -> None:
    """Same keys, types, shapes and values, all the way down."""
    assert type(one) is type(two), where
    if isinstance(one, dict):
        assert one.keys() == two.keys(), where
        for name in one:
            assert_same(one[name], two[name], f"{where}/{name}")
    elif isinstance(one, np.ndarray):
        assert (one.dtype, one.shape) == (two.dtype, two.shape), where
        if one.dtype == object:
            for place, pair in enumerate(zip(one.flat, two.flat, strict=True)):
                assert_same(*pair, f"{where}[{place}]")
        else:
            np.testing.assert_array_equal(one, two, where)
            assert one.tobytes() == two.tobytes(), where  # no zero differs in its sign
    elif isinstance(one, (tuple, list)):
        for place, pair in enumerate(zip(one, two, strict=True)):
            assert_same(*pair, f"{where}[{place}]")
    elif dataclasses.is_dataclass(one):
        assert_same(vars(one), vars(two), where)
    else:
        assert one == two, where


def row(observation: Any, slot: int) -> Any:
    if isinstance(observation, dict):
        return {name: part[slot] for name, part in observation.items()}
    return observation[slot]


class Actor:
    """Acts at random in N sessions."""

    def __init__(self, space: gym.Space[Any], n: int = N, seed: int = 0) -> None:
        self.continuous = isinstance(space, gym.spaces.Box)
        self.shape = (n, *(space.shape or ()))
        self.rng = np.random.default_rng(seed)

    def act(self, ignored: np.ndarray | None = None) -> np.ndarray:
        """(N, ...) actions; those that are not looked at are none."""
        if self.continuous:
            actions = self.rng.uniform(-1, 1, self.shape).astype(np.float32)
            wild = [np.nan, np.inf, -7.0]
        else:
            actions = self.rng.integers(0, 60, self.shape)  # of 240 items, so that some come again
            wild = [-5, 240, 2**40]
        for slot in () if ignored is None else np.flatnonzero(ignored):
            actions[slot] = self.rng.choice(wild)
        return actions


class Both:
    """A native vector environment and N single ones in Gymnasium's, which must not differ."""

    def __init__(self, env_id: str, options: dict[str, Any], mode: AutoresetMode) -> None:
        self.mode = mode
        self.native = gym.make_vec(env_id, num_envs=N, autoreset_mode=mode, **options)
        single = functools.partial(gym.make, env_id, **options)
        self.sync = SyncVectorEnv([single] * N, autoreset_mode=mode)
        self.actor = Actor(self.native.single_action_space)
        self.ended = np.zeros(N, dtype=bool)
        self.ends = 0

    def reset(self, seed: Any = None, mask: list[bool] | None = None) -> None:
        chosen = np.ones(N, dtype=bool) if mask is None else np.array(mask)
        seen = [
            # Gymnasium's takes the mask out of its options.
            env.reset(seed=seed, options=None if mask is None else {"reset_mask": chosen})
            for env in (self.native, self.sync)
        ]
        assert_same(*seen, "reset")
        self.ended &= ~chosen

    def play(self, steps: int) -> None:
        for step in range(steps):
            ignored = self.ended if self.mode is AutoresetMode.NEXT_STEP else None
            actions = self.actor.act(ignored)
            seen = [env.step(actions) for env in (self.native, self.sync)]
            assert_same(*seen, f"step {step}")
            self.ended = seen[0][2] | seen[0][3]
            self.ends += self.ended.sum()
            if self.mode is AutoresetMode.DISABLED and self.ended.any():
                self.reset(mask=self.ended.tolist())


@every_pair
def test_the_native_vector_environment_is_gymnasium_s_of_single_ones(case, worlds) -> None:
    both = Both(*environment(case, worlds), case["mode"])
    assert_same(both.native.observation_space, both.sync.observation_space)
    assert_same(both.native.action_space, both.sync.action_space)
    if case["observation_type"] != "history":
        slices = (env.get_attr("preference_slice") for env in (both.native, both.sync))
        assert_same(*slices)
    both.reset(seed=11)
    both.play(24)
    both.reset()
    both.play(3)
    both.reset(mask=[True, False, True])  # in mid-session
    both.play(8)
    both.reset(seed=[5, None, 2**40])
    both.play(4)
    both.reset(seed=[7, 3, None], mask=[False, True, True])
    both.play(4)
    both.reset(seed=4, mask=[True, False, False])
    both.play(4)
    assert both.ends >= 3 * N


@pytest.mark.parametrize("mode", AutoresetMode)
def test_resets_between_a_session_s_end_and_its_successor(worlds, mode) -> None:
    """Some slots over, some not, and a reset by hand of one, the other or both."""
    case = dict.fromkeys(AXES) | {"world": "rand", "abandonment": "imbalance"}
    case |= {"action_type": "slate", "observation_type": "state"}
    both = Both(*environment(case, worlds), mode)
    both.reset(seed=2)
    met = set()
    masks = [list(mask) for mask in itertools.product([True, False], repeat=N) if any(mask)]
    for mask in itertools.chain.from_iterable([masks] * 3):
        for _ in range(9):
            both.play(1)
            if both.ended.any() and not both.ended.all():
                break
        met |= set(zip(mask, both.ended.tolist(), strict=True))
        both.reset(mask=mask)
    # With resets switched off, none is left over for us.
    over = {False} if mode is AutoresetMode.DISABLED else {False, True}
    assert met == set(itertools.product([True, False], over))


@every_pair
def test_the_sb3_shell_is_the_single_environment(case, worlds) -> None:
    from dsrm_agents import make_vec_env

    env_id, options = environment(case, worlds)
    vector = make_vec_env(env_id, N, seed=20, **options)
    singles = [gym.make(env_id, **options) for _ in range(N)]
    actor = Actor(vector.action_space)
    seen = vector.reset()
    for slot, env in enumerate(singles):
        own, info = env.reset(seed=20 + slot)
        del info["session"]
        assert_same(row(seen, slot), own)
        assert_same(vector.reset_infos[slot], info)
    ends, returns = 0, np.zeros(N)
    for _ in range(40):
        actions = actor.act()
        seen, rewards, dones, infos = vector.step(actions)
        assert rewards.dtype == np.float32
        for slot, env in enumerate(singles):
            own, reward, terminated, truncated, info = env.step(actions[slot])
            assert rewards[slot] == np.float32(reward)
            assert dones[slot] == (terminated or truncated)
            returns[slot] += reward
            session = info.pop("session")
            if dones[slot]:
                ends += 1
                episode = infos[slot].pop("episode")
                assert episode["l"] == session["len"]
                assert episode["r"] == pytest.approx(returns[slot])
                returns[slot] = 0.0
                record = env.unwrapped.batch.records(np.zeros(1, dtype=np.int64))
                last = {
                    **info,
                    "terminal_observation": own,
                    "TimeLimit.truncated": truncated and not terminated,
                    "session": session,
                    "record": record,
                }
                assert_same(infos[slot], last)
                own, info = env.reset()
                del info["session"]
                assert_same(vector.reset_infos[slot], info)
            else:
                assert_same(infos[slot], info)
            assert_same(row(seen, slot), own)
    assert ends >= 3 * N


def test_seeding_the_sb3_shell_again_starts_over(worlds) -> None:
    from dsrm_agents import make_vec_env

    vector = make_vec_env("KuaiRec-Fair-v0", N, seed=1, dataset=worlds["rec"])
    first = vector.reset()
    assert np.any(first != vector.reset())
    assert vector.seed(1) == [1, 2, 3]
    np.testing.assert_array_equal(first, vector.reset())
    vector.seed()
    assert np.any(first != vector.reset())
    unseeded = [make_vec_env("KuaiRec-Fair-v0", N, dataset=worlds["rec"]) for _ in range(2)]
    assert np.any(unseeded[0].reset() != unseeded[1].reset())


def test_the_sb3_shell_s_record_is_what_happened(worlds) -> None:
    from dsrm_agents import make_vec_env

    vector = make_vec_env(
        "KuaiRec-Fair-v0", 2, seed=1, dataset=worlds["rec"], action_type="slate", max_len=6
    )
    vector.reset()
    rng = np.random.default_rng(0)
    shown, rewards, done = [], [], [False]
    while not done[0]:
        slates = rng.permutation(240)[:20].reshape(2, 10)
        _, reward, done, infos = vector.step(slates)
        shown.append(slates[0])
        rewards.append(reward[0])
    record, steps = infos[0]["record"], len(shown)
    assert record.length.tolist() == [steps]
    np.testing.assert_array_equal(record.slates[0, :steps], shown)
    np.testing.assert_allclose(record.rewards[0, :steps], rewards, rtol=1e-6)
    np.testing.assert_allclose(record.responses[0, :steps].mean(axis=1), rewards, rtol=1e-6)
    assert (record.slates[0, steps:] == -1).all()
    assert not record.rewards[0, steps:].any()


def test_the_sb3_shell_refuses_what_it_has_not(worlds) -> None:
    from dsrm_agents import make_vec_env

    vector = make_vec_env("KuaiRec-Fair-v0", 2, dataset=worlds["rec"])
    with pytest.raises(ConfigError, match="an integer in"):
        make_vec_env("KuaiRec-Fair-v0", 2, seed=-1, dataset=worlds["rec"])
    with pytest.raises(ConfigError, match="Did you mean 'KuaiRec-Fair-v0'"):
        make_vec_env("KuaiRec-Fare-v0", 2, dataset=worlds["rec"])
    with pytest.raises(ResetNeededError):
        vector.step_wait()
    with pytest.raises(ResetNeededError, match="has not begun"):
        vector.step(np.zeros((2, 11), dtype=np.float32))
    assert not vector.has_attr("nothing")
    with pytest.raises(AttributeError):
        vector.get_attr("nothing")
    with pytest.raises(AttributeError, match="share one core"):
        vector.set_attr("preference_slice", 3)
    with pytest.raises(AttributeError, match="slots are no objects"):
        vector.env_method("nothing")
    with pytest.raises(ConfigError, match="has no action masks"):
        vector.env_method("action_masks")
    assert vector.get_attr("preference_slice") == [slice(0, 9)] * 2
    assert vector.get_attr("preference_slice", 1) == [slice(0, 9)]
    for options in ({"max_len": 3}, [{}, {"max_len": 3}]):
        with pytest.raises(ConfigError, match="knows no options, got {'max_len': 3}"):
            vector.set_options(options)
    for options in (None, {}, [{}, {}]):
        vector.set_options(options)


def test_the_sb3_shell_names_the_single_environment_that_a_slot_equals(worlds) -> None:
    from dsrm_agents import make_vec_env

    options = {"dataset": worlds["rec"], "action_type": "discrete", "max_len": 4}
    vector = make_vec_env("kuaisim_gym:KuaiRec-Fair-v0", 2, split="test", seed=5, **options)
    assert "max_len" not in gym.spec("KuaiRec-Fair-v0").kwargs
    for slot, spec in enumerate(vector.get_attr("spec")):
        single = gym.make(spec)
        assert single.spec.id == "KuaiRec-Fair-v0"
        np.testing.assert_array_equal(single.reset(seed=5 + slot)[0], vector.reset()[slot])
        vector.seed(5)


@pytest.mark.parametrize("kind", ["slate", "discrete"])
def test_action_masks_are_the_same_in_all_shells(worlds, kind) -> None:
    from dsrm_agents import make_vec_env

    options = {"dataset": worlds["rand"], "action_type": kind}
    singles = [gym.make("KuaiRand-Fair-v0", **options).unwrapped for _ in range(N)]
    native = gym.make_vec("KuaiRand-Fair-v0", num_envs=N, **options)
    shell = make_vec_env("KuaiRand-Fair-v0", N, seed=6, **options)
    native.reset(seed=6)
    shell.reset()
    for slot, env in enumerate(singles):
        env.reset(seed=6 + slot)
    actor = Actor(native.single_action_space)
    for _ in range(2):
        actions = actor.act()
        native.step(actions)
        shell.step(actions)
        for slot, env in enumerate(singles):
            env.step(actions[slot])
        masks = np.array([env.action_masks() for env in singles])
        assert not masks.all()
        for found in (native.action_masks(), shell.action_masks()):
            np.testing.assert_array_equal(found, masks)
        np.testing.assert_array_equal(
            shell.env_method("action_masks", indices=[2, 0]), masks[[2, 0]]
        )


def test_unseeded_slots_differ_and_go_on(worlds) -> None:
    env = gym.make_vec("KuaiRec-Fair-v0", num_envs=40, dataset=worlds["rec"])
    users = env.reset()[1]["user_id"]
    assert len(set(users.tolist())) > 20
    assert (users != env.reset()[1]["user_id"]).any()
    again = gym.make_vec("KuaiRec-Fair-v0", num_envs=40, dataset=worlds["rec"])
    assert (users != again.reset()[1]["user_id"]).any()


def test_a_slot_does_not_know_its_neighbours(worlds) -> None:
    """Slots of a large batch, past the blocks in which users are ranked, are those of a small."""
    for world, action in (
        ("rand", "fusion"),
        ("rand", "shares"),
        ("rec-test", "shares"),
        ("rec-test", "scorer"),
    ):
        case = dict.fromkeys(AXES) | {"world": world, "action_type": action}
        case |= {"observation_type": "state", "abandonment": "imbalance", "rules": "unusual"}
        env_id, options = environment(case, worlds)
        large = gym.make_vec(env_id, num_envs=131, **options)
        actor = Actor(large.single_action_space, 131)
        large.reset(seed=0)
        few = [0, 63, 64, 130]
        singles = [gym.make(env_id, **options) for _ in few]
        for slot, env in zip(few, singles, strict=True):
            env.reset(seed=slot)
        for _ in range(3):
            actions = actor.act()
            seen, rewards, _, _, infos = large.step(actions)
            for slot, env in zip(few, singles, strict=True):
                own, reward, _, _, info = env.step(actions[slot])
                np.testing.assert_array_equal(seen[slot], own)
                np.testing.assert_array_equal(
                    infos["slate_responses"][slot], info["slate_responses"]
                )
                assert rewards[slot] == reward


# Engines.


def test_the_engine_is_numba_where_it_is_installed(monkeypatch) -> None:
    assert find_engine() is find_engine("auto") is find_engine("numba")
    for engine in ENGINES:
        assert pickle.loads(pickle.dumps(engine)) == engine
    monkeypatch.delattr("kuaisim_gym.engine.compiled", raising=False)
    monkeypatch.setitem(sys.modules, "kuaisim_gym.engine.compiled", None)  # cannot be imported
    find_engine.cache_clear()
    try:
        assert find_engine().name == "numpy"
        with pytest.raises(ConfigError, match=r'needs numba, pip install "kuaisim-gym\[fast\]"'):
            find_engine("numba")
    finally:
        monkeypatch.undo()
        find_engine.cache_clear()
    with pytest.raises(ConfigError, match="Did you mean 'numba'"):
        find_engine("nunba")


@st.composite
def rules(draw: st.DrawFn) -> dict[str, Any]:
    """Options of a vector environment."""
    world = draw(st.sampled_from(list(WORLDS)))
    env_id, options = WORLDS[world]
    recorded = source(world) == "rec"
    actions = AXES["action_type"][: 4 if recorded else 5]
    options = options | {"action_type": draw(st.sampled_from(actions))}
    size = 1 if options["action_type"] == "discrete" else draw(st.integers(1, 20))
    max_len = options.setdefault("max_len", draw(st.integers(2, 8)))
    options["max_steps"] = draw(st.none() | st.integers(1, 8))
    longest = min(max_len, options["max_steps"] or max_len)
    if not recorded:
        weights = st.sampled_from([-2.0, -0.5, 0.25, 1.0, 3.0])
        names = st.sampled_from(["long_view", "is_like", "is_comment", "is_hate"])
        more = draw(st.dictionaries(names, weights, max_size=3))
        options["reward_weights"] = draw(st.none() | st.just({"is_click": 1.0} | more))
    return options | {
        "world": world,
        "id": env_id,
        "slate_size": size,
        "window": draw(st.none() | st.integers(1, min(3 * size, longest * size))),
        "ad_bound": draw(st.sampled_from([0.0, 0.3, 1.0])),
        "abandonment": draw(st.sampled_from(AXES["abandonment"])),
        "reward": "response" if world == "retention" else draw(st.sampled_from(AXES["reward"])),
        **shown(draw(st.sampled_from(AXES["observation_type"]))),
        "step_cost": draw(st.sampled_from(["dissatisfaction", "request"])),
        "correlation": draw(st.sampled_from([0.0, 0.2, 1.0])),
        "allow_repeats": draw(st.booleans()),
        "stochastic_response": draw(st.booleans()),
        "groups": draw(st.sampled_from(["popularity", np.arange(240) % 3, np.arange(240) % 40])),
        "evidence": draw(st.sampled_from(["log", "session", None])),
    }


@settings(max_examples=250, deadline=None)
@given(
    options=rules(),
    seed=st.integers(0, 2**63 - 1 - N),
    mode=st.sampled_from(AutoresetMode),
    followed=st.booleans(),
)
def test_sessions_do_not_depend_on_the_engine(worlds, options, seed, mode, followed) -> None:
    """By NumPy, by one compiled call a step, and by a compiled call for each part of a step."""
    env_id, world = options.pop("id"), options.pop("world")
    if "belief" not in (options["observation_type"], options.get("preference")):
        del options["evidence"]
    options |= own_rules(options)
    common = {"num_envs": N, "autoreset_mode": mode, "dataset": worlds[source(world)]} | options
    try:
        numpy, fused, parts = (
            gym.make_vec(env_id, engine=name, **common) for name in ("numpy", "numba", "numba")
        )
    except ConfigError as error:  # these groups cannot be balanced
        assert "groups" in str(error) or "slate" in str(error)
        reject()
    parts.batch._fused = lambda: None
    assert numpy.batch._fused() is None
    of_its_own = world == "retention" or options["observation_type"] == "history"
    of_its_own |= any(callable(options[name]) for name in ("abandonment", "reward"))
    assert (fused.batch._fused() is None) == of_its_own
    if followed:
        for env in (numpy, fused, parts):
            env.batch.belief()
    seen = [env.reset(seed=seed) for env in (numpy, fused, parts)]
    actor, ended = Actor(numpy.single_action_space), np.zeros(N, dtype=bool)
    for step in range(10):
        assert_same(seen[0], seen[1], f"step {step}")
        assert_same(seen[0], seen[2], f"step {step}")
        if mode is AutoresetMode.DISABLED and ended.any():
            seen = [env.reset(options={"reset_mask": ended}) for env in (numpy, fused, parts)]
            ended = np.zeros(N, dtype=bool)
            continue
        actions = actor.act()
        seen = [env.step(actions) for env in (numpy, fused, parts)]
        ended = seen[0][2] | seen[0][3]
    for env in (fused, parts):
        assert_same(numpy.batch.snapshot(), env.batch.snapshot())


def agree(
    name: str, arguments: list[Any], rows: tuple[int, ...], changed: tuple[int, ...] = ()
) -> Any:
    """Calls a function of both engines, for all sessions together and for each one alone.

    Args:
        name: Of the function.
        arguments: Its own; copied before each call.
        rows: Which of them have a row for each session.
        changed: Which of them are changed in place.

    Returns:
        What it returns.
    """

    def call(engine: Engine, own: list[Any]) -> tuple[Any, ...]:
        own = copy.deepcopy(own)
        return getattr(engine, name)(*own), *(own[place] for place in changed)

    def cut(value: Any, row: int) -> Any:
        if hasattr(value, "_fields"):
            return type(value)(*(cut(part, row) for part in value))
        if isinstance(value, tuple):
            return tuple(cut(part, row) for part in value)
        return None if value is None else value[row : row + 1]

    whole, other = (call(engine, arguments) for engine in ENGINES)
    assert_same(whole, other)
    n = next(len(arguments[place]) for place in rows if isinstance(arguments[place], np.ndarray))
    for row in range(n):
        alone = [cut(one, row) if place in rows else one for place, one in enumerate(arguments)]
        for engine in ENGINES:
            assert_same(call(engine, alone), cut(whole, row))
    return whole[0]


SEEDS = st.integers(0, 2**32)
FEW = st.integers(1, 4)
by_function = settings(max_examples=100, deadline=None)


def numbers(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.normal(size=shape).astype(np.float32)


@by_function
@given(SEEDS, FEW, st.integers(0, 40), st.integers(0, 3))
def test_uniforms_agree(seed: int, n: int, draws: int, stream: int) -> None:
    rng = np.random.default_rng(seed)
    seeds = rng.integers(0, 2**64, n, dtype=np.uint64)
    episodes, steps = rng.integers(0, 2**32, n), rng.integers(0, 2**32, n)
    found = agree("uniform", [seeds, episodes, steps, draws, stream], rows=(0, 1, 2))
    assert found.shape == (n, draws)


@by_function
@given(SEEDS, FEW, FEW)
def test_faults_agree(seed: int, n: int, k: int) -> None:
    rng = np.random.default_rng(seed)
    active, slots = rng.random((2, n)) < 0.8
    slates = rng.integers(-1, 9, (n, k))
    slates[rng.random(n) < 0.5] = 3
    one, two = (engine.first_invalid(active, slots, slates, 8) for engine in ENGINES)
    assert one == two
    asleep = [(slot, -1) for slot in range(n) if slots[slot] and not active[slot]]
    places = itertools.product(range(n), range(k))
    strange = [place for place in places if slots[place[0]] and slates[place] in (-1, 8)]
    assert one == ([*asleep, *strange] or [(-1, -1)])[0]


@by_function
@given(SEEDS, FEW, st.integers(1, 20), st.integers(1, 7), st.integers(0, 9))
def test_factor_scores_agree(seed: int, n: int, k: int, behaviours: int, rank: int) -> None:
    rng = np.random.default_rng(seed)
    arrays = [
        rng.integers(0, 5, n).astype(np.int32),
        rng.integers(0, 30, (n, k)),
        numbers(rng, behaviours),
        numbers(rng, behaviours),
        numbers(rng, behaviours, 5),
        numbers(rng, behaviours, 30),
        numbers(rng, 5, rank),
        numbers(rng, 30, rank),
    ]
    users, slates, mean, slope, user_effect, item_effect, own, theirs = arrays
    found = agree("factor_scores", arrays, rows=(0, 1))
    product = (own[users][:, None] * theirs[slates]).sum(axis=2)
    effects = user_effect[:, users, None] + item_effect[:, slates]
    expected = mean[:, None, None] + effects + slope[:, None, None] * product
    np.testing.assert_allclose(found, np.moveaxis(expected, 0, 2), atol=1e-5)


def sessions(
    rng: np.random.Generator,
    n: int,
    k: int,
    window: int,
    n_groups: int = 2,
    items: int = 12,
    longest: int = 5,
) -> SessionState:
    """Sessions as they may stand, about to make a step."""
    tenths = np.array([1.0, 1.1, 2.0, 2.1, 2.5, 3.0, 30.0])
    steps = rng.integers(0, longest, n)
    made = np.arange(longest) < steps[:, None]
    slates = np.where(made[:, :, None], rng.integers(0, items, (n, longest, k)), -1)
    filled = np.arange(window) >= window - steps[:, None] * k
    exposed = np.zeros((n, items + 1), dtype=bool)
    exposed[np.arange(n)[:, None], slates.reshape(n, -1)] = True  # padding: the last column
    return SessionState(
        seeds=rng.integers(0, 2**63, n).astype(np.uint64),
        episodes=rng.integers(0, 9, n),
        users=rng.integers(0, 9, n).astype(np.int32),
        active=np.ones(n, dtype=bool),
        steps=steps,
        temper=rng.choice(tenths, n),
        share=rng.random(n),
        last_reward=rng.random(n),
        reward_sum=rng.random(n) * longest,
        penalties=rng.integers(0, longest, n),
        popular=rng.integers(0, longest * k, n),
        recent=(filled * rng.integers(0, n_groups, (n, window))).astype(np.int8),
        exposed=bits.pack(exposed[:, :-1]),
        slates=slates.astype(np.int32),
        responses=np.where(made[:, :, None], rng.random((n, longest, k)), 0).astype(np.float32),
        rewards=np.where(made, rng.random((n, longest)), 0),
        penalised=made & (rng.random((n, longest)) < 0.5),
        tempers=rng.random((n, longest)),
        shares=rng.random((n, longest)),
    )


@settings(max_examples=300, deadline=None)
@given(
    seed=SEEDS,
    n=FEW,
    k=st.integers(1, 20),
    behaviours=st.integers(1, 7),
    window=st.integers(1, 45),
    switches=st.tuples(st.booleans(), st.booleans(), st.booleans()),
    abandonment=st.sampled_from(ABANDONMENT_RULES),
    ad_bound=st.sampled_from([0.0, 0.3, 0.5, 1.0]),
    step_limit=st.integers(1, 6),
    n_groups=st.sampled_from([2, 2, 3, 5, 40]),
    balanced=st.booleans(),
)
def test_steps_agree(
    seed,
    n,
    k,
    behaviours,
    window,
    switches,
    abandonment,
    ad_bound,
    step_limit,
    n_groups,
    balanced,
) -> None:
    rng = np.random.default_rng(seed)
    shares = np.ones(n_groups) if balanced else rng.random(n_groups)
    weights = np.append(np.float32(1.0), rng.choice([-1.5, 0.0, 0.3], behaviours - 1))
    rule = Rules(
        rng.integers(0, n_groups, 12).astype(np.int8),
        shares / shares.sum(),
        rng.random(12) < 0.5,
        abandonment == "popularity" and n_groups == 2,
        np.inf if abandonment == "none" else ad_bound * window - SLACK,
        weights.astype(np.float32),
        *switches,
        step_limit,
        1.0 - SLACK,
    )
    probability = np.clip(rng.uniform(-0.2, 1.2, (n, k, behaviours)), 0, 1).astype(np.float32)
    slots = rng.random(n) < 0.8
    slates = rng.integers(0, 12, (n, k)) * slots[:, None]
    arguments = [rule, sessions(rng, n, k, window, n_groups), slates, probability, slots]
    result = agree("advance", arguments, rows=(1, 2, 3, 4), changed=(1,))
    for values in result:
        assert not values[~slots].any()


@by_function
@given(SEEDS, FEW, st.integers(1, 20), st.integers(1, 45), st.sampled_from([12, 100, 1000]))
def test_beginnings_agree(seed: int, n: int, k: int, window: int, items: int) -> None:
    """Of many items the bits of what was shown are cleared alone."""
    rng = np.random.default_rng(seed)
    rows = np.flatnonzero(rng.random(n) < 0.6)
    users = rng.integers(0, 9, len(rows)).astype(np.int32)
    before = sessions(rng, n, k, window, items=items)
    whole, other, alone = (copy.deepcopy(before) for _ in range(3))
    find_engine("numpy").begin(whole, rows, users, 30)
    find_engine("numba").begin(other, rows, users, 30)
    for place in range(len(rows)):
        find_engine("numba").begin(alone, rows[place, None], users[place, None], 30)
    assert_same(whole, other)
    assert_same(whole, alone)
    still = np.setdiff1d(np.arange(n), rows)
    for name in before._fields:
        np.testing.assert_array_equal(getattr(whole, name)[still], getattr(before, name)[still])
    assert (whole.temper[rows] == 30).all()
    assert (whole.slates[rows] == -1).all()
    for blank in (whole.exposed, whole.responses, whole.rewards, whole.penalised, whole.recent):
        assert not blank[rows].any()


@by_function
@given(SEEDS, FEW, st.integers(1, 20), st.integers(1, 40))
def test_histories_agree(seed: int, n: int, k: int, dim: int) -> None:
    rng = np.random.default_rng(seed)
    total, weight = numbers(rng, n, dim), rng.random(n).astype(np.float32)
    embedding, slates = numbers(rng, 30, dim), rng.integers(0, 30, (n, k))
    responses = rng.choice([0.0, 0.3, 1.0], (n, k)).astype(np.float32)
    arguments = [total, weight, embedding, slates, responses]
    agree("update", arguments, rows=(0, 1, 3, 4), changed=(0, 1))
    expected = total + np.einsum("nk,nkd->nd", responses, embedding[slates])
    find_engine("numba").update(*arguments)
    np.testing.assert_allclose(total, expected, atol=1e-4)


@by_function
@given(SEEDS, FEW, st.integers(1, 12), st.integers(1, 12))
def test_beliefs_agree(seed: int, n: int, k: int, dim: int) -> None:
    rng = np.random.default_rng(seed)
    mean, root = rng.standard_normal((n, dim)), rng.standard_normal((n, dim, dim))
    covariance = root @ root.swapaxes(1, 2)
    covariance = (covariance + covariance.swapaxes(1, 2)) / 2
    design, quality = rng.standard_normal((9, dim)), rng.standard_normal(9)
    variance, scores = rng.random(9), np.linspace(-4, 4, 65)
    expected = np.clip(1 / (1 + np.exp(-scores)), 0.05, 0.95)
    link = np.column_stack([expected, np.maximum(np.gradient(expected, scores), 1e-3)])
    slates, answers = rng.integers(0, 9, (n, k)), rng.random((n, k)).astype(np.float32)
    answered, before = rng.random((n, k)) < 0.7, covariance.copy()
    items = [design, quality, variance, link, 4.0]
    arguments = [mean, covariance, *items, slates, answers, answered]
    agree("condition", arguments, rows=(0, 1, 7, 8, 9), changed=(0, 1))
    find_engine("numba").condition(*arguments)
    np.testing.assert_array_equal(covariance, covariance.swapaxes(1, 2))
    assert (np.einsum("nii->ni", covariance) <= np.einsum("nii->ni", before) + 1e-9).all()
    still = ~answered.any(axis=1)
    np.testing.assert_array_equal(covariance[still], before[still])


@by_function
@given(SEEDS, FEW, st.integers(1, 40), st.integers(0, 2))
def test_preferences_agree(seed: int, n: int, dim: int, column: int) -> None:
    rng = np.random.default_rng(seed)
    weight, mean = rng.choice([0.0, 1e-3, 1.0, 7.0], n).astype(np.float32), numbers(rng, dim)
    total = 8 * weight[:, None] * numbers(rng, n, dim)
    scale = rng.uniform(0.5, 2.0, dim).astype(np.float32)
    before = numbers(rng, n, dim + 3)
    vectors = before.copy()
    arguments = [vectors, column, total, weight, mean, scale, 10.0]
    agree("write_preference", arguments, rows=(0, 2, 3), changed=(0,))
    find_engine("numba").write_preference(*arguments)
    written = slice(column, column + dim)
    assert (vectors[weight == 0, written] == 0).all()
    assert np.abs(vectors[:, written]).max() <= 10
    others = np.delete(np.arange(dim + 3), written)
    np.testing.assert_array_equal(vectors[:, others], before[:, others])


@by_function
@given(SEEDS, FEW, st.integers(1, 12), st.sampled_from([0.5, 10.0]))
def test_beliefs_are_written_alike(seed: int, n: int, dim: int, bound: float) -> None:
    rng = np.random.default_rng(seed)
    mean, root = rng.standard_normal((n, dim)), rng.standard_normal((n, dim, dim))
    covariance, before = root @ root.swapaxes(1, 2), numbers(rng, n, 2 * dim + 4)
    vectors = before.copy()
    arguments = [vectors, mean, covariance, bound]
    agree("write_belief", arguments, rows=(0, 1, 2), changed=(0,))
    find_engine("numba").write_belief(*arguments)
    known = [mean.clip(-bound, bound), np.diagonal(covariance, axis1=1, axis2=2).clip(0, bound)]
    expected = np.hstack([*known, before[:, 2 * dim :]])
    np.testing.assert_array_equal(vectors, expected.astype(np.float32))


@by_function
@given(SEEDS, FEW, st.integers(0, 9))
def test_contexts_agree(seed: int, n: int, column: int) -> None:
    rng = np.random.default_rng(seed)
    before, session = numbers(rng, n, 14), sessions(rng, n, 3, 4)
    vectors = before.copy()
    arguments = [vectors, column, session, 30]
    agree("write_context", arguments, rows=(0, 2), changed=(0,))
    find_engine("numba").write_context(*arguments)
    mean = session.reward_sum / np.maximum(session.steps, 1)
    expected = [session.steps / 30, session.share, session.last_reward, mean]
    written = slice(column, column + 4)
    np.testing.assert_allclose(vectors[:, written].T, expected, rtol=1e-6)
    rest = np.delete(np.arange(14), written)
    np.testing.assert_array_equal(vectors[:, rest], before[:, rest])


@by_function
@given(SEEDS, FEW, st.integers(1, 40), st.integers(1, 1200))
def test_products_agree(seed: int, n: int, dim: int, items: int) -> None:
    rng = np.random.default_rng(seed)
    vectors, columns = numbers(rng, n, dim), numbers(rng, dim, items)
    found = agree("inner_products", [vectors, columns], rows=(0,))
    np.testing.assert_allclose(found, vectors @ columns, atol=1e-3)


@by_function
@given(SEEDS, FEW, st.integers(1, 12), st.integers(0, 600), st.integers(1, 99), st.booleans())
def test_rankings_agree(seed: int, n: int, k: int, more: int, values: int, hides: bool) -> None:
    rng = np.random.default_rng(seed)
    scores = rng.integers(-values, values, (n, k + more)).astype(np.float32)
    flags = hides & (rng.random(scores.shape) < 0.4)
    found = agree("top_items", [scores, k, bits.pack(flags) if hides else None], rows=(0, 2))
    seen = np.where(flags, -np.inf, scores)
    np.testing.assert_array_equal(found, np.argsort(-seen, axis=1, kind="stable")[:, :k])


@by_function
@given(SEEDS, FEW, FEW, FEW)
def test_exposures_agree(seed: int, n: int, k: int, longest: int) -> None:
    rng = np.random.default_rng(seed)
    counts, steps = rng.integers(0, 5, 20), rng.integers(1, longest + 1, n)
    slates, answered = rng.integers(0, 20, (n, k)), rng.random((n, k)) < 0.7
    popular, slots = rng.random(20) < 0.2, rng.random(n) < 0.8
    answered &= slots[:, None]
    results = []
    for engine in ENGINES:
        records = np.zeros((n, longest, k), dtype=bool), np.zeros((n, longest), dtype=np.int16)
        exposures = Exposures(popular, counts.copy(), *records)
        engine.count_exposures(exposures, 9, steps, slates, answered, slots)
        results.append(exposures)
    for name, first in results[0]._asdict().items():
        np.testing.assert_array_equal(first, getattr(results[1], name))
    assert (results[0].counts - counts == np.bincount(slates[answered], minlength=20)).all()
    for row in np.flatnonzero(slots):
        latest = row, steps[row] - 1
        assert results[0].step_days[latest] == 9
        assert (results[0].shown_popular[latest] == popular[slates[row]]).all()
    assert not results[0].step_days[~slots].any()


def test_every_function_of_an_engine_is_compared() -> None:
    compared = {"uniform", "first_invalid", "factor_scores", "advance", "update", "condition"}
    compared |= {"inner_products", "top_items", "begin", "write_preference", "write_context"}
    compared |= {"write_belief", "best_items"}  # the latter in tests/test_ranking.py
    compared |= {"count_exposures"}
    assert {name for name in vars(Engine) if not name.startswith("_")} == compared


# Processes.


def digest(env: Any, steps: int) -> str:
    """Sixteen hexadecimal digits of all that a vector environment tells in so many steps."""
    total = hashlib.blake2b(digest_size=8)

    def add(value: Any) -> None:
        if isinstance(value, dict):
            for name in sorted(value):
                total.update(name.encode())
                add(value[name])
        elif isinstance(value, np.ndarray) and value.dtype != object:
            total.update(f"{value.dtype}{value.shape}".encode() + value.tobytes())
        elif isinstance(value, (tuple, list, np.ndarray)):
            for part in value:
                add(part)
        else:
            total.update(repr(value).encode())

    actor = Actor(env.single_action_space, env.num_envs, 3)
    for _ in range(steps):
        add(env.step(actor.act()))
    return total.hexdigest()


def from_the_start(datasets: dict[str, Any], engine: str) -> list[str]:
    """What seeded environments tell, one of each world."""
    found = []
    for world, (env_id, own) in ALL_WORLDS.items():
        options = {"max_len": 6, "correlation": 0.2} | own
        dataset = datasets[source(world)]
        env = gym.make_vec(env_id, num_envs=4, dataset=dataset, engine=engine, **options)
        env.reset(seed=8)
        found.append(digest(env, 15))
    return found


def mid_session(datasets: dict[str, Any]) -> list[Any]:
    """Environments whose sessions have begun, some of them over, and some over and begun again."""
    found = []
    for world, (env_id, own) in ALL_WORLDS.items():
        for observation in ("state", "history"):
            options = own | {"max_len": 4, "observation_type": observation}
            env = gym.make_vec(env_id, num_envs=4, dataset=datasets[source(world)], **options)
            env.reset(seed=1)
            actor = Actor(env.single_action_space, 4)
            for _ in range(9):
                _, _, terminated, truncated, _ = env.step(actor.act())
                if (terminated | truncated).any():
                    break
            found.append(env)
    return found


def test_other_processes_and_engines_tell_the_same(worlds, tmp_path: Path) -> None:
    environments = mid_session(worlds)
    file = tmp_path / "environments"
    file.write_bytes(pickle.dumps((worlds, environments)))
    expected = from_the_start(worlds, "numba")
    assert expected == from_the_start(worlds, "numpy")
    assert len(set(expected)) == len(ALL_WORLDS)
    expected += [digest(env, 12) for env in environments]
    for engine, hash_seed in (("numpy", "1"), ("numba", "2")):
        other = subprocess.run(
            [sys.executable, __file__, engine, str(file)],
            env=os.environ | {"PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=False,
        )
        assert other.returncode == 0, other.stderr
        assert other.stdout.split() == expected


def one_step(engine: Engine) -> str:
    """Sixteen hexadecimal digits of what a step draws."""
    rule = Rules(
        np.zeros(12, dtype=np.int8), np.full(2, 0.5), np.zeros(12, dtype=bool), False, np.inf,
        np.ones(1, dtype=np.float32), stochastic=True, allow_repeats=False, per_request=False,
        step_limit=9, least_temper=1.0,
    )  # fmt: skip
    state = sessions(np.random.default_rng(0), 64, 3, 6)
    slates = np.tile(np.arange(3), (64, 1))
    chances = np.full((64, 3, 1), 0.5, dtype=np.float32)
    result = engine.advance(rule, state, slates, chances, state.active)
    return hashlib.blake2b(result.feedback.tobytes(), digest_size=8).hexdigest()


def test_compiled_code_follows_its_sources(tmp_path: Path) -> None:
    """Constants of other files than a function's own count, too, and a cache may be empty."""
    package = tmp_path / "kuaisim_gym"
    shutil.copytree(Path(kuaisim_gym.__file__).parent, package)
    source = package / "randomness.py"
    places = {"PYTHONPATH": str(tmp_path), "NUMBA_CACHE_DIR": str(tmp_path / "cache")}
    drawn = []
    for stream in (1, 9, 1):
        text, changes = re.subn(
            r"(?m)^RESPONSE_STREAM = \d", f"RESPONSE_STREAM = {stream}", source.read_text()
        )
        assert changes == 1
        source.write_text(text)
        other = subprocess.run(
            [sys.executable, __file__, "one step"],
            env=os.environ | places, capture_output=True, text=True, check=True,
        )  # fmt: skip
        numpy, numba = other.stdout.split()
        assert numpy == numba
        drawn.append(numba)
    assert drawn[0] == drawn[2] != drawn[1]


def timeless(played: tuple[Any, ...]) -> tuple[Any, ...]:
    """What a step of the Stable-Baselines3 shell gives, but for the seconds that passed."""
    for info in played[3]:
        info.get("episode", {}).pop("t", None)
    return played


@pytest.mark.parametrize("world", ALL_WORLDS)
def test_copies_made_in_mid_session_go_on_alike(worlds, world) -> None:
    from dsrm_agents import make_vec_env

    env_id, own = ALL_WORLDS[world]
    # Three steps cost nine at most, and end no session.
    options = {"max_len": 10, "dataset": worlds[source(world)]} | own
    single = gym.make(env_id, **options).unwrapped
    vector = gym.make_vec(env_id, num_envs=N, **options)
    shell = make_vec_env(env_id, N, **options)
    single.reset(seed=2)
    vector.reset(seed=2)
    shell.seed(2)
    shell.reset()
    one, many = Actor(single.action_space, 1), Actor(single.action_space)
    for _ in range(2):  # of which no session can end
        action, actions = one.act()[0], many.act()
        for env, what in ((single, action), (vector, actions), (shell, actions)):
            env.step(what)
    others = [pickle.loads(pickle.dumps(env)) for env in (single, vector, shell)]
    others += [copy.deepcopy(env) for env in (single, vector, shell)]
    for _ in range(20):
        action, actions = one.act()[0], many.act()
        told = single.step(action)
        told = (told, single.reset() if told[2] or told[3] else None)
        whole, sb3 = vector.step(actions), shell.step(actions)
        for place in (0, 3):
            again = others[place].step(action)
            assert_same((again, others[place].reset() if again[2] or again[3] else None), told)
            assert_same(others[place + 1].step(actions), whole)
            assert_same(timeless(others[place + 2].step(actions)), timeless(sb3))
            assert_same(others[place + 2].reset_infos, shell.reset_infos)


if __name__ == "__main__" and sys.argv[1] == "one step":
    sys.stdout.write(" ".join(one_step(engine) for engine in ENGINES))
elif __name__ == "__main__":
    DATASETS, ENVIRONMENTS = pickle.loads(Path(sys.argv[2]).read_bytes())
    FOUND = from_the_start(DATASETS, sys.argv[1]) + [digest(env, 12) for env in ENVIRONMENTS]
    sys.stdout.write("\n".join(FOUND))
