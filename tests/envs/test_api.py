from __future__ import annotations

import ast
import copy
import inspect
import itertools
import pickle
import re
import sys
import warnings
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env as gymnasium_check
from gymnasium.vector import AutoresetMode
from matplotlib import pyplot as plt
from stable_baselines3.common.env_checker import check_env as sb3_check

import kuaisim_gym
from dsrm_agents import KuaiVecEnv, make_vec_env
from kuaisim_gym.envs import single
from kuaisim_gym.envs.tasks import make_batch
from kuaisim_gym.envs.vector import KuaiVectorEnv
from kuaisim_gym.errors import ConfigError, InvalidActionError, ResetNeededError

HEADINGS = [
    "Description",
    "Action Space",
    "Observation Space",
    "Rewards",
    "Info",
    "Starting State",
    "Episode End",
    "Arguments",
    "Version History",
]


def combinations() -> list[tuple[str, str, str, str | None]]:
    """Every id with every action, observation and, where it is a session's, abandonment rule.

    Those that play any data differ from the others in nothing else.
    """
    found = []
    for env_id in kuaisim_gym.ENVIRONMENTS:
        actions = ("shares", "scorer", "slate", "discrete", "fusion")
        if env_id.startswith("KuaiRec") or "Dynamic" in env_id:
            actions = actions[:4]  # one behaviour cannot be fused, nor what nobody has logged
        rules = ("imbalance", "popularity", "none") if "Fair" in env_id else (None,)
        observations = ("state", "dict", "history")
        if env_id.startswith("Recommendation"):
            observations, rules = observations[:1], rules[:1]
        found += itertools.product([env_id], actions, observations, rules)
    return found


@pytest.fixture(scope="module")
def worlds(small, small_rand) -> dict[str, Any]:
    return {
        env_id: small if env_id.startswith("KuaiRec") else small_rand
        for env_id in kuaisim_gym.ENVIRONMENTS
    }


@pytest.mark.parametrize(("env_id", "action", "observation", "abandonment"), combinations())
def test_both_checkers_pass_without_a_warning(
    env_id, action, observation, abandonment, worlds
) -> None:
    options = {} if abandonment is None else {"abandonment": abandonment}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env = gym.make(
            env_id,
            dataset=worlds[env_id],
            observation_type=observation,
            action_type=action,
            disable_env_checker=False,
            **options,
        )
        env.reset(seed=0)
        env.step(env.action_space.sample())
        env.step(env.action_space.sample())
        gymnasium_check(env.unwrapped, skip_render_check=True)
        sb3_check(env)


@pytest.mark.parametrize(
    ("env_id", "action"),
    [
        ("KuaiRec-Fair-v0", "shares"),
        ("KuaiRand-v0", "discrete"),
        ("KuaiRand-Request-v0", "slate"),
        ("KuaiRand-Retention-v0", "fusion"),
    ],
)
def test_render_modes_pass_gymnasium_s_check(env_id, action, worlds) -> None:
    plt.switch_backend("agg")  # no window, wherever this runs
    options = {"dataset": worlds[env_id], "action_type": action, "render_mode": "rgb_array"}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env = gym.make(env_id, **options)
        assert set(env.metadata["render_modes"]) == {"ansi", "rgb_array", "human"}
        gymnasium_check(env.unwrapped)
        sb3_check(env, skip_render_check=False)


@pytest.mark.parametrize("env_id", kuaisim_gym.ENVIRONMENTS)
def test_every_environment_is_documented_as_gymnasium_s_are(env_id, worlds) -> None:
    env = gym.make(env_id, dataset=worlds[env_id]).unwrapped
    names = {"session": "KuaiEnv", "request": "KuaiRequestEnv", "retention": "KuaiRetentionEnv"}
    assert type(env) is getattr(single, names[env.task])
    assert env.batch.task == env.task == kuaisim_gym.ENVIRONMENTS[env_id]["task"]
    text = inspect.cleandoc(type(env).__doc__ or "")
    assert re.findall(r"^## (.+)$", text, re.MULTILINE) == HEADINGS
    sections = re.split(r"^## .+$", text, flags=re.MULTILINE)
    assert all(len(section.split()) > 3 for section in sections[1:])
    assert sections[0].strip().endswith(".")


def test_the_documented_arguments_are_those_that_there_are(worlds) -> None:
    """With the defaults of each task, where they are written as name=value."""

    def arguments(kind: type) -> str:
        return inspect.cleandoc(kind.__doc__ or "").split("## Arguments")[1].split("## ")[0]

    with pytest.raises(ConfigError, match="An environment option must be one of") as refused:
        gym.make("KuaiRec-Fair-v0", nothing=1)
    options = re.findall(r"'(\w+)'", str(refused.value).split("]")[0])
    rows = re.findall(r"^\| (``.+?) \|", arguments(single.KuaiEnv), re.MULTILINE)
    named = re.findall(r"``(\w+)``", " ".join(rows))
    assert sorted(named) == sorted([*options, "render_mode"])
    for env_id in ("KuaiRand-Request-v0", "KuaiRand-Retention-v0"):
        env = gym.make(env_id, dataset=worlds[env_id]).unwrapped
        told = re.findall(r"``(\w+)=([^`]+)``", arguments(type(env)))
        assert len(told) >= 4
        for name, value in told:
            owner = env.batch if hasattr(env.batch, name) else env.batch.config
            assert getattr(owner, name) == ast.literal_eval(value), name


@pytest.mark.parametrize(
    ("env_id", "name", "n_items"),
    [("KuaiRec-Fair-v0", "kuairec", 3327), ("KuaiRand-Fair-v0", "kuairand", 7583)],
)
def test_the_default_world_needs_no_download(env_id, name, n_items) -> None:
    env = gym.make(env_id)
    observation, _ = env.reset(seed=1)
    assert observation.shape == (13,)
    assert env.action_space.shape == (11,)
    assert env.unwrapped.world == f"{name} (synthetic)"
    assert env.unwrapped.preference_slice == slice(0, 9)
    assert env.unwrapped.catalogue.n_items == n_items


def test_every_id_has_its_rules(worlds) -> None:
    """What an id stands for, by the options that its sessions have."""
    expected = {
        "KuaiRec-Fair-v0": (30, "imbalance", "dissatisfaction", 0.0, (11,)),
        "KuaiRand-Fair-v0": (30, "imbalance", "dissatisfaction", 0.0, (11,)),
        "KuaiRec-v0": (30, "none", "dissatisfaction", 0.0, (11,)),
        "KuaiRand-v0": (30, "none", "dissatisfaction", 0.0, (11,)),
        # Half of the items are not in the log, which in this small world gives fewer factors.
        "KuaiRec-Dynamic-v0": (30, "imbalance", "dissatisfaction", 0.0, (5,)),
        "KuaiRand-Dynamic-v0": (30, "imbalance", "dissatisfaction", 0.0, (11,)),
        "Recommendation-Fair-v0": (30, "imbalance", "dissatisfaction", 0.0, (11,)),
        "Recommendation-v0": (30, "none", "dissatisfaction", 0.0, (11,)),
        "KuaiRand-Request-v0": (20, "none", "request", 0.2, (11,)),
        "KuaiRand-Retention-v0": (5, "none", "request", 0.0, (7,)),
    }
    assert kuaisim_gym.ENVIRONMENTS.keys() == expected.keys()
    for env_id, (max_len, abandonment, cost, correlation, shape) in expected.items():
        env = gym.make(env_id, dataset=worlds[env_id])
        config = env.unwrapped.batch.config
        assert (config.max_len, config.abandonment) == (max_len, abandonment)
        assert (config.step_cost, config.correlation) == (cost, correlation)
        assert env.action_space.shape == shape
        assert gym.make_vec(env_id, num_envs=2, dataset=worlds[env_id]).batch.config == config


@pytest.mark.parametrize("env_id", ["KuaiRec-v0", "KuaiRand-v0"])
def test_without_abandonment_nothing_is_penalised(env_id, worlds) -> None:
    """The most popular items first, for which the fair environments charge every step."""
    action = np.zeros(10, dtype=np.float32)
    action[-1] = 1.0
    charged = {}
    for one in (env_id, env_id.replace("-v0", "-Fair-v0")):
        env = gym.make(one, dataset=worlds[env_id], action_type="scorer")
        env.reset(seed=0)
        terminated, rewards, penalties = False, [], []
        while not terminated:
            _, reward, terminated, _, info = env.step(action)
            rewards.append(reward)
            penalties.append(info["penalised"])
        charged[one] = np.mean(penalties)
        assert info["session"]["q"] == charged[one]
        cost = np.sum(2 - np.array(rewards)) + np.sum(penalties)
        assert 30 - cost < 1 <= 30 - cost + (2 - rewards[-1]) + penalties[-1]
    assert list(charged.values()) == [0.0, 1.0]


@pytest.mark.parametrize("mode", AutoresetMode)
@pytest.mark.parametrize("env_id", ["KuaiRec-Fair-v0", "KuaiRand-Request-v0"])
def test_a_time_limit_truncates_sessions(env_id, mode, worlds) -> None:
    options = {"num_envs": 3, "dataset": worlds[env_id], "autoreset_mode": mode}
    env = gym.make_vec(env_id, max_episode_steps=4, **options)
    env.reset(seed=0)
    actions = np.zeros((3, 11), dtype=np.float32)
    for step in range(1, 5):
        _, _, terminated, truncated, infos = env.step(actions)
        assert not terminated.any()
        assert truncated.tolist() == [step == 4] * 3
    session = infos["final_info"] if mode is AutoresetMode.SAME_STEP else infos
    assert session["session"]["len"].tolist() == [4] * 3
    # The stricter of two limits holds.
    for limits, steps in (((9, 4), 4), ((4, 9), 4), ((4, None), 4)):
        both = {"max_episode_steps": limits[0], "max_steps": limits[1]}
        assert gym.make_vec(env_id, **both, **options).batch.config.max_steps == steps
    limited = gym.make(env_id, dataset=worlds[env_id], max_episode_steps=4)
    limited.reset(seed=0)
    ends = [limited.step(actions[0])[2:4] for _ in range(4)]
    assert ends == [(False, False)] * 3 + [(False, True)]


def test_a_finished_slot_waits_for_its_reset_where_none_comes_by_itself(small) -> None:
    env = gym.make_vec(
        "KuaiRec-Fair-v0", num_envs=2, dataset=small, max_len=4, autoreset_mode="Disabled"
    )
    env.reset(seed=0)
    actions = np.zeros((2, 11), dtype=np.float32)
    ended = np.zeros(2, dtype=bool)
    while not ended.any():
        seen, _, terminated, truncated, _ = env.step(actions)
        ended = terminated | truncated
    with pytest.raises(ResetNeededError, match=f"Session {np.argmax(ended)} is over"):
        env.step(actions)
    np.testing.assert_array_equal(env.batch.observe(), seen)
    env.reset(options={"reset_mask": ended})
    env.step(actions)


@pytest.mark.parametrize("mode", AutoresetMode)
def test_a_refused_action_changes_nothing(small, mode) -> None:
    """Also where other slots are about to begin anew."""
    options = {"dataset": small, "max_len": 5, "autoreset_mode": mode, "action_type": "slate"}
    env, other = (gym.make_vec("KuaiRec-Fair-v0", num_envs=3, **options) for _ in range(2))
    rng, ended = np.random.default_rng(0), np.zeros(3, dtype=bool)
    for one in (env, other):
        one.reset(seed=1)
    tried = set()
    for _ in range(30):
        actions = rng.integers(0, 240, (3, 10))
        bad = actions.copy()
        bad[np.argmin(ended)] = 240
        if not ended.all():
            tried.add(bool(ended.any()))
            with pytest.raises(InvalidActionError):
                env.step(bad)
        seen, rewards, terminated, truncated, infos = env.step(actions)
        again = other.step(actions)
        np.testing.assert_array_equal(seen, again[0])
        np.testing.assert_array_equal(rewards, again[1])
        assert infos.keys() == again[4].keys()
        over = terminated | truncated
        if mode is AutoresetMode.NEXT_STEP:
            ended = over
        elif mode is AutoresetMode.DISABLED and over.any():
            for one in (env, other):
                one.reset(options={"reset_mask": over})
    assert tried == ({False, True} if mode is AutoresetMode.NEXT_STEP else {False})


def test_a_time_limit_does_not_cut_visits(small_rand) -> None:
    with pytest.raises(ConfigError, match="set n_visits instead"):
        gym.make_vec("KuaiRand-Retention-v0", num_envs=2, dataset=small_rand, max_episode_steps=9)


def test_gymnasium_s_own_vectorisation_works_too(small) -> None:
    options = {"num_envs": 2, "dataset": small, "max_len": 6}
    native = gym.make_vec("KuaiRec-Fair-v0", **options)
    sync = gym.make_vec("KuaiRec-Fair-v0", vectorization_mode="sync", **options)
    actions = np.random.default_rng(0).uniform(-1, 1, (2, 11)).astype(np.float32)
    np.testing.assert_array_equal(native.reset(seed=0)[0], sync.reset(seed=0)[0])
    np.testing.assert_array_equal(native.step(actions)[0], sync.step(actions)[0])
    again = gym.make_vec(native.spec)
    assert again.num_envs == 2
    np.testing.assert_array_equal(again.reset(seed=0)[0], native.reset(seed=0)[0])


def test_text_tells_the_session(small) -> None:
    env = gym.make("KuaiRec-Fair-v0", dataset=small, max_len=6, render_mode="ansi").unwrapped
    _, arrived = env.reset(seed=3)
    start = f"kuairec (synthetic), user {arrived['user_id']}: step "
    assert env.render() == f"{start}0 of 6, temper 6.00"
    temper, terminated, step = 6.0, False, 0
    while not terminated:
        _, reward, terminated, _, info = env.step(env.action_space.sample())
        step, temper = step + 1, temper - 2 + reward - info["penalised"]
        lines = env.render().splitlines()
        assert lines[0] == f"{start}{step} of 6, temper {temper:z.2f}"
        last = lines[2 + step].split()
        assert int(last[0]) == step
        slate = env.batch.core.state.slates[0, step - 1]
        for word, item, answer in zip(last[1:11], slate, info["slate_responses"], strict=True):
            group = "P" if env.catalogue.popular[item] else "t"
            assert word == f"{small.item_ids[item]}{group}{'+' if answer else '-'}"
        assert last[11:13] == [f"{reward:.2f}", f"{temper:z.2f}"]
        assert ("penalised" in last) == info["penalised"]
    assert lines[-1].startswith(f"over after {step} steps")
    assert env.reset()[1] != arrived
    assert env.render() != start


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
def test_frames_of_all_shells_are_those_of_single_environments(small_rand, mode) -> None:
    options = {"dataset": small_rand, "max_len": 3, "slate_size": 4}
    many = {"num_envs": 2, "autoreset_mode": mode} | options
    words = gym.make_vec("KuaiRand-Fair-v0", render_mode="ansi", **many)
    frames = gym.make_vec("KuaiRand-Fair-v0", render_mode="rgb_array", **many)
    shell = make_vec_env("KuaiRand-Fair-v0", 2, seed=5, render_mode="rgb_array", **options)
    singles = [
        [gym.make("KuaiRand-Fair-v0", render_mode=one, **options).unwrapped for _ in range(2)]
        for one in ("ansi", "rgb_array")
    ]
    vectors = (words, frames) if mode is AutoresetMode.NEXT_STEP else (words, frames, shell)
    for env in (words, frames):
        env.reset(seed=5)
    shell.reset()
    for row in singles:
        for slot, env in enumerate(row):
            env.reset(seed=5 + slot)
    rng, ended, met = np.random.default_rng(0), [False, False], 0
    for _ in range(6):
        actions = rng.uniform(-1, 1, (2, 11)).astype(np.float32)
        for env in vectors:
            env.step(actions)
        over = []
        for row in singles:
            for slot, env in enumerate(row):
                if ended[slot]:
                    env.reset()
                    over.append(False)
                    continue
                over.append(env.step(actions[slot])[2])
                if over[-1] and mode is AutoresetMode.SAME_STEP:
                    env.reset()
                    met += 1
        ended = over[:2] if mode is AutoresetMode.NEXT_STEP else [False, False]
        met += sum(ended)
        assert words.render() == tuple(env.render() for env in singles[0])
        pictures = [env.render() for env in singles[1]]
        assert (pictures[0].dtype, pictures[0].shape[2]) == (np.uint8, 3)
        assert (pictures[0] != pictures[1]).any()
        for one, two in zip(frames.render(), pictures, strict=True):
            np.testing.assert_array_equal(one, two)
        if shell in vectors:
            for one, two in zip(shell.get_images(), pictures, strict=True):
                np.testing.assert_array_equal(one, two)
    assert met > 0
    if mode is AutoresetMode.SAME_STEP:
        whole = shell.render()  # all slots in one picture
        assert whole.shape[0] * whole.shape[1] >= 2 * pictures[0].shape[0] * pictures[0].shape[1]
    for env in (words, frames, shell, *itertools.chain(*singles)):
        env.close()


def test_without_a_render_mode_nothing_is_drawn(small) -> None:
    env = gym.make("KuaiRec-Fair-v0", dataset=small).unwrapped
    env.reset()
    assert env.render() is None
    vector = gym.make_vec("KuaiRec-Fair-v0", num_envs=2, dataset=small)
    vector.reset()
    assert vector.render() is None


@pytest.mark.parametrize("mode", ["ansi", "rgb_array"])
def test_what_has_not_begun_cannot_be_drawn(small, mode) -> None:
    env = gym.make("KuaiRec-Fair-v0", dataset=small, render_mode=mode)
    vector = gym.make_vec("KuaiRec-Fair-v0", num_envs=2, dataset=small, render_mode=mode)
    for one in (env, vector):
        with pytest.raises(ResetNeededError, match=r"Session 0 has not begun: call reset\(\)"):
            one.render()


def test_human_rendering_follows_every_step_by_itself(small, monkeypatch) -> None:
    shown = []
    monkeypatch.setattr("kuaisim_gym.rendering.Canvas.show", lambda _, view: shown.append(view))
    env = gym.make("KuaiRec-Fair-v0", dataset=small, render_mode="human").unwrapped
    env.reset(seed=0)
    for _ in range(3):
        env.step(env.action_space.sample())
    assert [view.steps for view in shown] == [0, 1, 2, 3]
    assert env.render() is None
    assert len(shown) == 4
    env.close()
    env.close()


def test_kuairand_answers_seven_behaviours(small_rand) -> None:
    env = gym.make("KuaiRand-Fair-v0", dataset=small_rand, reward_weights={"long_view": 1.0})
    env.reset(seed=2)
    _, reward, _, _, info = env.step(env.action_space.sample())
    assert info["feedback"].shape == (10, 7)
    assert set(np.unique(info["feedback"])) <= {0.0, 1.0}
    np.testing.assert_array_equal(info["slate_responses"], info["feedback"][:, 1])
    assert reward == pytest.approx(info["feedback"][:, 1].mean())


def test_calibration_moves_rewards(small_rand) -> None:
    """Balanced classes lift the click probability of unbiased rows far above its rate."""
    rates = {}
    for calibration in ("balanced", "calibrated"):
        simulator = kuaisim_gym.build_simulator(small_rand, "test", calibration=calibration)
        test = small_rand.test
        rates[calibration] = simulator.model.probability(test.users, test.items).mean()
    assert rates["calibrated"] == pytest.approx(small_rand.test.response.mean(), abs=0.03)
    assert rates["balanced"] > rates["calibrated"] + 0.15
    assert (
        rates["balanced"]
        == kuaisim_gym.build_simulator(small_rand).model.probability(test.users, test.items).mean()
    )


def play(env, steps: int, seed: int) -> list:
    env.action_space.seed(seed)
    trace = [env.reset(seed=seed)[0]]
    for _ in range(steps):
        observation, reward, terminated, truncated, info = env.step(env.action_space.sample())
        trace += [observation, reward, terminated, info["slate_responses"]]
        if terminated or truncated:
            trace.append(env.reset()[0])
    return trace


def test_same_seed_same_trajectory_also_after_pickling(small) -> None:
    env = gym.make("KuaiRec-Fair-v0", dataset=small).unwrapped
    first = play(env, 60, seed=4)
    for one in (first, play(env, 60, seed=4), play(pickle.loads(pickle.dumps(env)), 60, seed=4)):
        for a, b in zip(first, one, strict=True):
            np.testing.assert_array_equal(a, b)
    assert any(np.any(a != b) for a, b in zip(first, play(env, 60, seed=5), strict=False))


def test_unseeded_environments_differ(small) -> None:
    users = {gym.make("KuaiRec-Fair-v0", dataset=small).reset()[1]["user_id"] for _ in range(12)}
    assert len(users) > 1


def test_the_split_decides_who_arrives(small) -> None:
    test = {int(small.user_ids[user]) for user in small.test_users}
    for split in ("train", "test"):
        env = gym.make("KuaiRec-Fair-v0", dataset=small, split=split)
        arrived = {env.reset(seed=seed)[1]["user_id"] for seed in range(40)}
        assert (arrived <= test) == (split == "test")
        assert split == "test" or not arrived & test


@pytest.mark.parametrize("env_id", ["KuaiRec-Fair-v0", "KuaiRand-Retention-v0"])
@pytest.mark.parametrize("split", ["train", "test"])
def test_sessions_are_those_of_the_users_asked_for(env_id, split, worlds) -> None:
    """In every shell, and after every kind of reset."""
    dataset = worlds[env_id]
    some = (dataset.train_users if split == "train" else dataset.test_users)[5:8]
    ids = {int(user) for user in dataset.user_ids[some]}
    options = {"dataset": dataset, "split": split, "users": some.tolist(), "max_len": 2}
    env = gym.make(env_id, **options)
    assert {env.reset(seed=seed)[1]["user_id"] for seed in range(30)} == ids
    vector = gym.make_vec(env_id, num_envs=30, **options)
    sb3 = make_vec_env(env_id, n_envs=30, seed=3, **options)
    infos, arrived, restarted = vector.reset(seed=3)[1], set(), set()
    sb3.reset()
    arrived.update(infos["user_id"].tolist(), (info["user_id"] for info in sb3.reset_infos))
    for _ in range(20):
        action = vector.action_space.sample()
        infos = vector.step(action)[4]
        sb3.step(action)
        restarted.update(infos["user_id"][infos["_user_id"]].tolist() if "user_id" in infos else ())
        restarted.update(info["user_id"] for info in sb3.reset_infos)
    assert arrived == restarted == ids


def test_users_are_a_set(small) -> None:
    """All of the split's, in whatever order, are what there is without the option."""
    sessions = [
        play(gym.make("KuaiRec-Fair-v0", dataset=small, **options), 40, seed=4)
        for options in ({}, {"users": small.train_users[::-1]}, {"users": small.train_users[:9]})
    ]
    for a, b in zip(*sessions[:2], strict=True):
        np.testing.assert_array_equal(a, b)
    assert any(np.any(a != b) for a, b in zip(sessions[0], sessions[2], strict=False))


@pytest.mark.parametrize(
    ("users", "message"),
    [
        ([], "at least one integer"),
        (5, r"one-dimensional array .* got shape \(\)"),
        ([[1, 2]], r"got shape \(1, 2\)"),
        ([[1], [2, 3]], "users must be an array of positions of users"),
        ([1.0], "of float64"),
        ([True], "of bool"),
        (["1"], "positions of users, got shape"),
        ("stranger", "users of the train split, one of its"),
        ("twice", "distinct, got .* more than once"),
        ([-1], "-1 is none"),
        (np.array([2**63], dtype=np.uint64), "9223372036854775808 is none"),
    ],
)
def test_users_who_are_none_of_the_split_s_are_refused(users, message, small) -> None:
    if users == "stranger":
        users = [*small.train_users[:2], small.test_users[0]]
    elif users == "twice":
        users = small.train_users[[0, 1, 0]]
    for make in (gym.make, gym.make_vec, make_vec_env):
        with pytest.raises(ConfigError, match=message):
            make("KuaiRec-Fair-v0", dataset=small, users=users)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"observation_type": "states"}, "Did you mean 'state'"),
        ({"action_type": "discret"}, "action_type must be one of"),
        ({"split": "validation"}, "split must be one of"),
        ({"slate_sise": 5}, "Did you mean 'slate_size'"),
        ({"dataset": 5}, "dataset must be a Dataset, a folder or None, got int"),
        ({"max_len": 0}, "max_len"),
        ({"calibration": "balanced"}, "yes-or-no behaviours"),
        ({"calibration": "platt"}, "calibration must be one of"),
        ({"response_model": "transformer"}, "response_model must be one of"),
        ({"reward_weights": {"is_click": 1.0}}, "a behaviour must be one of"),
        ({"dataset_seed": -1}, "seed must be an integer of at least 0, got -1"),
        ({"engine": "cuda"}, r"engine must be one of \['auto', 'numba', 'numpy'\], got 'cuda'"),
        ({"engine": "nump"}, "Did you mean 'numpy'"),
        ({"task": "session"}, "KuaiRec-Fair-v0 fixes its dataset and task, got task='session'"),
        ({"name": "kuairec"}, "fixes its dataset and task, got name='kuairec': leave it out"),
        ({"history_len": 5}, 'history_len is for observation_type="history" alone'),
        ({"observation_type": "history", "history_len": 0}, "integer of at least 1, got 0"),
        ({"action_type": "discrete", "slate_size": 3}, 'use "slate" for more'),
        ({"action_type": "fusion"}, "kuairec has one. Use data with more"),
        ({"slate_size": 3328}, "at most the catalogue's 3327 items, got 3328"),
        ({"n_visits": 3}, "must be one of"),
    ],
)
def test_unknown_options_are_refused(options, message) -> None:
    """By every shell, in the same words."""
    for make in (gym.make, gym.make_vec, make_vec_env):
        with pytest.raises(ConfigError, match=message):
            make("KuaiRec-Fair-v0", **options)


@pytest.mark.filterwarnings("ignore:.*is not in the possible render_modes:UserWarning")
def test_unknown_shells_are_refused(small) -> None:
    with pytest.raises(ConfigError, match="render_mode must be one of"):
        gym.make("KuaiRec-Fair-v0", dataset=small, render_mode="text")
    vector = {"dataset": small, "num_envs": 2}
    for options, message in (
        ({"autoreset_mode": "x"}, r"\['Disabled', 'NextStep', 'SameStep'\], got 'x'"),
        ({"autoreset_mode": "Nextstep"}, "Did you mean 'NextStep'"),
        ({"autoreset_mode": None}, "got None"),
        ({"render_mode": "human"}, r"render_mode must be one of \['ansi', 'rgb_array'\]"),
        ({"max_episode_steps": 0}, "max_steps must be an integer of at least 1, got 0"),
        ({"num_envs": 0}, "number of sessions must be an integer of at least 1, got 0"),
        ({"num_envs": 2.0}, "got 2.0"),
    ):
        with pytest.raises(ConfigError, match=message):
            gym.make_vec("KuaiRec-Fair-v0", **(vector | options))
    with pytest.raises(ConfigError, match=r"render_mode must be one of \['rgb_array'\]"):
        make_vec_env("KuaiRec-Fair-v0", 2, dataset=small, render_mode="ansi")


def test_autoreset_modes_may_be_written_out(small) -> None:
    for mode in AutoresetMode:
        for name in (mode, mode.value):
            options = {"num_envs": 2, "dataset": small, "autoreset_mode": name}
            env = gym.make_vec("KuaiRec-Fair-v0", **options)
            assert env.metadata["autoreset_mode"] is mode


@pytest.mark.parametrize(
    "mask",
    [
        [True, False],
        np.array([1, 0]),
        np.array([True]),
        np.array([[True, False]]),
        np.array([False, False]),
        "all",
    ],
)
def test_bad_reset_masks_are_refused_and_change_nothing(small, mask) -> None:
    env = gym.make_vec("KuaiRec-Fair-v0", num_envs=2, dataset=small)
    seen, _ = env.reset(seed=0)
    with pytest.raises(ConfigError, match=r"boolean array of shape \(2,\) with at least one True"):
        env.reset(options={"reset_mask": mask})
    np.testing.assert_array_equal(env.batch.observe(), seen)
    # Nor does the mask that was given become part of the environment.
    mask = np.array([True, False])
    env.reset(options={"reset_mask": mask})
    assert mask.tolist() == [True, False]


BAD_SEEDS = [-1, True, 1.0, 2**64, 2**70, "1", np.float64(3)]


@pytest.mark.parametrize("seed", BAD_SEEDS, ids=repr)
def test_bad_seeds_are_refused_by_the_single_environment(small, seed) -> None:
    env = gym.make("KuaiRec-Fair-v0", dataset=small).unwrapped
    with pytest.raises(ConfigError, match=r"A seed must be an integer in \[0, 2\*\*64\), got"):
        env.reset(seed=seed)


@pytest.mark.parametrize("seed", BAD_SEEDS, ids=repr)
def test_bad_seeds_are_refused_by_the_vector_environment(small, seed) -> None:
    env = gym.make_vec("KuaiRec-Fair-v0", num_envs=2, dataset=small)
    with pytest.raises(ConfigError, match="seed"):
        env.reset(seed=seed)
    with pytest.raises(ConfigError, match=r"A seed must be an integer in \[0, 2\*\*64\), got"):
        env.reset(seed=[0, seed])


@pytest.mark.parametrize("seed", [-1, True, 1.0, 2**64, 2**70, np.float64(3)], ids=repr)
def test_bad_seeds_are_refused_by_the_sb3_shell(small, seed) -> None:
    message = r"A seed must be an integer in \[0, 2\*\*64\), got"
    with pytest.raises(ConfigError, match=message):
        make_vec_env("KuaiRec-Fair-v0", 2, dataset=small, seed=seed)
    shell = make_vec_env("KuaiRec-Fair-v0", 2, dataset=small)
    with pytest.raises(ConfigError, match=message):
        shell.seed(seed)


@pytest.mark.parametrize("seeds", [[1], [1, 2, 3], [], (4,)])
def test_there_must_be_a_seed_for_each_slot(small, seeds) -> None:
    env = gym.make_vec("KuaiRec-Fair-v0", num_envs=2, dataset=small)
    with pytest.raises(ConfigError, match=f"seed must hold 2 seeds, got {len(seeds)}"):
        env.reset(seed=seeds)


def test_the_largest_seeds_are_seeds(small) -> None:
    last = 2**64 - 1
    env = gym.make("KuaiRec-Fair-v0", dataset=small)
    vector = gym.make_vec("KuaiRec-Fair-v0", num_envs=2, dataset=small)
    first, _ = env.reset(seed=last)
    np.testing.assert_array_equal(vector.reset(seed=[0, last])[0][1], first)
    # The second slot's would be one too large.
    with pytest.raises(ConfigError, match="got 18446744073709551616"):
        vector.reset(seed=last)
    tuple_, array = vector.reset(seed=(3, 4))[0], vector.reset(seed=np.array([3, 4]))[0]
    np.testing.assert_array_equal(tuple_, array)
    np.testing.assert_array_equal(tuple_, vector.reset(seed=np.int64(3))[0])


def test_a_refused_reset_leaves_the_session_as_it_was(small) -> None:
    env = gym.make("KuaiRec-Fair-v0", dataset=small).unwrapped
    vector = gym.make_vec("KuaiRec-Fair-v0", num_envs=2, dataset=small)
    env.reset(seed=0)
    vector.reset(seed=0)
    for one, seed in ((env, -1), (vector, [3, -1])):
        before = one.batch.observe()
        with pytest.raises(ConfigError):
            one.reset(seed=seed)
        np.testing.assert_array_equal(one.batch.observe(), before)
    action = np.zeros((2, 11), dtype=np.float32)
    np.testing.assert_array_equal(env.step(action[0])[0], vector.step(action)[0][0])


def test_a_dataset_of_the_other_kind_is_refused(small, small_rand) -> None:
    with pytest.raises(ConfigError, match="simulates kuairand, got a dataset of kuairec"):
        gym.make("KuaiRand-Fair-v0", dataset=small)
    with pytest.raises(ConfigError, match="simulates kuairec, got a dataset of kuairand"):
        gym.make("KuaiRec-Fair-v0", dataset=small_rand)


def test_an_id_fixes_its_data(small, small_rand) -> None:
    """Whether or not the dataset would fit the other name."""
    for make in (gym.make, gym.make_vec, make_vec_env):
        for options in ({}, {"dataset": small_rand}, {"dataset": small}):
            with pytest.raises(ConfigError, match=r"name='kuairand': leave it out.*KuaiRand-v0"):
                make("KuaiRec-Fair-v0", name="kuairand", **options)
    sync = {"vectorization_mode": "sync", "name": "kuairand"}
    with pytest.raises(ConfigError, match="fixes its dataset and task"):
        gym.make_vec("KuaiRec-Fair-v0", num_envs=2, **sync)
    # The class has an argument in its place.
    assert single.KuaiEnv("kuairand", dataset=small_rand).dataset is small_rand


def test_a_class_fixes_its_task(small_rand) -> None:
    for env_class, task in ((single.KuaiEnv, "request"), (single.KuaiRequestEnv, "retention")):
        with pytest.raises(
            ConfigError, match=f"{env_class.__name__} fixes its task.* got '{task}'"
        ):
            env_class("kuairand", dataset=small_rand, task=task)
    with pytest.raises(ConfigError, match="Did you mean 'request'"):
        KuaiVectorEnv(2, "kuairand", dataset=small_rand, task="requests")


CLASSES = {
    "KuaiRand-Fair-v0": single.KuaiEnv,
    "KuaiRand-Request-v0": single.KuaiRequestEnv,
    "KuaiRand-Retention-v0": single.KuaiRetentionEnv,
}


@pytest.mark.parametrize("env_id", CLASSES)
def test_a_class_built_directly_is_the_environment_of_its_id(env_id, small_rand) -> None:
    """Step by step, and in the shells for many sessions."""
    direct = CLASSES[env_id]("kuairand", dataset=small_rand)
    made = gym.make(env_id, dataset=small_rand).unwrapped
    assert direct.batch.config == made.batch.config
    assert direct.observation_space == made.observation_space
    assert direct.action_space == made.action_space
    vector = KuaiVectorEnv(3, "kuairand", dataset=small_rand, task=direct.task)
    envs = gym.make_vec(env_id, num_envs=3, dataset=small_rand)
    shells = [
        KuaiVecEnv(make_batch(3, "kuairand", direct.task, dataset=small_rand), 5),
        make_vec_env(env_id, 3, seed=5, dataset=small_rand),
    ]
    envs.action_space.seed(1)
    pairs = [[env.reset(seed=5) for env in pair] for pair in ((direct, made), (vector, envs))]
    pairs.append([shell.reset() for shell in shells])
    for _ in range(70):
        actions = envs.action_space.sample()
        pairs.append([env.step(actions[0]) for env in (direct, made)])
        if pairs[-1][0][2] or pairs[-1][0][3]:
            pairs.append([env.reset() for env in (direct, made)])
        pairs.append([env.step(actions) for env in (vector, envs)])
        pairs.append([shell.step(actions) for shell in shells])
    for one, two in pairs:
        for infos in (one[3], two[3]) if len(one) == 4 else ():
            for info in infos:
                info.get("episode", {}).pop("t", None)  # seconds that passed
        assert pickle.dumps(one) == pickle.dumps(two)
    assert any("session" in str(one) for one, _ in pairs)


@pytest.mark.parametrize("env_class", [single.KuaiRequestEnv, single.KuaiRetentionEnv])
def test_classes_of_kuairand_s_tasks_need_no_name(env_class) -> None:
    assert env_class().dataset.name == "kuairand"


@pytest.mark.parametrize(
    ("action", "message"),
    [
        (np.zeros(9, np.float32), "shape"),
        (np.zeros((1, 11), np.float32), r"shape \(11,\), got \(1, 11\)"),
        (None, "shape"),
        ([[1.0, 2.0], [3.0]], "must be an array"),
        (np.zeros(11, np.int64), "floats"),
        (np.full(11, np.nan, np.float32), "finite"),
        (np.full(11, 1.5, np.float32), r"\[-1, 1\], got 1.5"),
    ],
)
def test_bad_continuous_actions_are_refused(small, action, message) -> None:
    env = gym.make("KuaiRec-Fair-v0", dataset=small).unwrapped
    env.reset(seed=0)
    with pytest.raises(InvalidActionError, match=message):
        env.step(action)


def test_bad_slates_and_untimely_steps_are_refused(small) -> None:
    env = gym.make("KuaiRec-Fair-v0", dataset=small, action_type="slate")
    with pytest.raises(ResetNeededError, match="has not begun"):
        env.step(np.arange(10))
    env.reset(seed=0)
    with pytest.raises(InvalidActionError, match=r"\[0, 240\), got 240"):
        env.step(np.arange(231, 241))
    while not env.step(np.arange(10))[2]:
        pass
    with pytest.raises(ResetNeededError, match="is over"):
        env.step(np.arange(10))


def test_rewards_stay_within_their_range(small_rand) -> None:
    """Weights that sum to more than one in float32 must not lift a reward above it."""
    weights = {
        "is_click": 0.3, "is_like": 0.7, "is_comment": 2.8, "is_follow": 1.7, "long_view": 2.1,
        "is_hate": 1.2, "is_forward": 2.2,
    }  # fmt: skip
    for engine in ("numpy", "numba"):
        env = gym.make(
            "KuaiRand-Fair-v0", dataset=small_rand, reward_weights=weights, engine=engine
        )
        core = env.unwrapped.batch.core
        core.answers.feedback = lambda slates: np.ones((*slates.shape, 7), np.float32)
        core.scores = lambda: None  # the answers are asked
        env.reset(seed=0)
        observation, reward, *_ = env.step(env.action_space.sample())
        assert reward == 1.0
        assert env.observation_space.contains(observation)


def test_an_environment_that_has_drawn_is_copied_and_pickled(small) -> None:
    env = gym.make("KuaiRec-Fair-v0", dataset=small, render_mode="rgb_array").unwrapped
    env.reset(seed=1)
    frame = env.render()
    action = np.zeros(11, np.float32)
    for other in (copy.deepcopy(env), pickle.loads(pickle.dumps(env))):
        np.testing.assert_array_equal(other.render(), frame)
        np.testing.assert_array_equal(other.step(action)[0], copy.deepcopy(env).step(action)[0])


def test_options_of_a_reset_are_not_swallowed(small) -> None:
    with pytest.raises(ConfigError, match="knows no options"):
        gym.make("KuaiRec-Fair-v0", dataset=small).reset(options={"user_id": 3})
    envs = gym.make_vec("KuaiRec-Fair-v0", num_envs=2, dataset=small)
    with pytest.raises(ConfigError, match="Did you mean 'reset_mask'"):
        envs.reset(options={"reset_maks": np.ones(2, bool)})


def test_what_environments_share_cannot_be_changed(small) -> None:
    env = gym.make("KuaiRec-Fair-v0", dataset=small).unwrapped
    encoder = env.batch.encoder.encoder
    for array in (
        env.catalogue.popular,
        env.catalogue.log_popularity,
        encoder.history_sum,
        encoder.mean,
    ):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0


def test_who_asks_for_a_preference_that_is_not_there_is_told(small) -> None:
    env = gym.make("KuaiRec-Fair-v0", dataset=small, observation_type="history")
    assert not env.has_wrapper_attr("preference_slice")
    with pytest.raises(ConfigError, match="has no preference state"):
        _ = env.unwrapped.preference_slice


def test_a_vector_answers_for_its_single_environments(small) -> None:
    options = {"dataset": small, "action_type": "discrete"}
    native = gym.make_vec("KuaiRec-Fair-v0", num_envs=3, **options)
    sync = gym.make_vec("KuaiRec-Fair-v0", num_envs=3, vectorization_mode="sync", **options)
    for envs in (native, sync):
        envs.reset(seed=0)
        envs.step(np.arange(3))
    for name in ("action_space", "observation_space", "dataset_fingerprint"):
        assert native.get_attr(name) == sync.get_attr(name)
    np.testing.assert_array_equal(native.call("action_masks"), sync.call("action_masks"))
    assert native.call("render") == sync.call("render") == (None,) * 3
    assert [spec.id for spec in native.get_attr("spec")] == ["KuaiRec-Fair-v0"] * 3
    with pytest.raises(ConfigError, match="slots are no objects"):
        native.call("reset")


def test_a_vector_renders_by_call_what_its_single_environments_do(small) -> None:
    options = {"dataset": small, "num_envs": 2, "render_mode": "ansi"}
    native = gym.make_vec("KuaiRec-Fair-v0", **options)
    sync = gym.make_vec("KuaiRec-Fair-v0", vectorization_mode="sync", **options)
    for envs in (native, sync):
        envs.reset(seed=0)
        envs.step(np.zeros(envs.action_space.shape, dtype=np.float32))
    assert native.call("render") == sync.call("render") == native.render()


def test_an_autoreset_mode_at_the_wrong_door_is_told_the_right_one(small) -> None:
    mode = {"autoreset_mode": AutoresetMode.SAME_STEP}
    with pytest.raises(ConfigError, match=r"vector_kwargs={'autoreset_mode': \.\.\.}"):
        gym.make_vec("KuaiRec-Fair-v0", 2, "sync", dataset=small, **mode)
    for options in ({"vectorization_mode": "sync", "vector_kwargs": mode}, mode):
        envs = gym.make_vec("KuaiRec-Fair-v0", 2, dataset=small, **options)
        assert envs.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP


def test_a_numba_that_cannot_be_imported_is_done_without(monkeypatch, caplog) -> None:
    from kuaisim_gym import engine

    class Broken:
        def find_spec(self, name, path=None, target=None):
            if name == "kuaisim_gym.engine.compiled":
                raise ImportError("Numba needs another NumPy")

    monkeypatch.setattr(sys, "meta_path", [Broken(), *sys.meta_path])
    monkeypatch.delitem(sys.modules, "kuaisim_gym.engine.compiled", raising=False)
    monkeypatch.delattr(engine, "compiled", raising=False)
    engine.find_engine.cache_clear()
    try:
        assert engine.find_engine().name == "numpy"
        assert "another NumPy" in caplog.text
        with pytest.raises(ConfigError, match="another NumPy"):
            engine.find_engine("numba")
    finally:
        engine.find_engine.cache_clear()


def form(info: dict) -> dict:
    """Keys of an info, and the types and shapes of its values."""
    return {
        key: form(value) if isinstance(value, dict) else (type(value), np.shape(value))
        for key, value in info.items()
    }


@pytest.mark.parametrize("task", ["session", "request", "retention"])
@pytest.mark.parametrize("engine", ["numba", "numpy"])
def test_infos_have_one_form(small_rand, task, engine) -> None:
    """Clients make room for all infos by the first one."""
    env_id = {"session": "KuaiRand-Fair-v0", "request": "KuaiRand-Request-v0"}.get(
        task, "KuaiRand-Retention-v0"
    )
    options = {"dataset": small_rand, "engine": engine, "max_len": 3}
    env, ended = gym.make(env_id, **options), 0
    env.action_space.seed(1)
    _, first = env.reset(seed=1)
    assert (first["slate"] == -1).all() and not first["slate_responses"].any()
    assert not any(first["session"].values())
    for _ in range(40):
        _, _, terminated, truncated, info = env.step(env.action_space.sample())
        assert form(info) == form(first)
        assert np.isin(info["slate"], small_rand.item_ids).all()
        if terminated or truncated:
            ended += 1
            assert form(env.reset()[1]) == form(first)
    assert ended
    for mode in AutoresetMode:
        envs = gym.make_vec(env_id, num_envs=3, autoreset_mode=mode, **options)
        envs.action_space.seed(1)
        _, begun = envs.reset(seed=1)
        for _ in range(8):
            _, _, terminated, truncated, infos = envs.step(envs.action_space.sample())
            final = {key: infos.pop(key) for key in list(infos) if "final" in key}
            assert form(infos) == form(begun)
            if done := (terminated | truncated).any():
                assert bool(final) == (mode is AutoresetMode.SAME_STEP)
                if final:
                    assert form(final["final_info"]) == form(begun)
            if done and mode is AutoresetMode.DISABLED:
                envs.reset(options={"reset_mask": terminated | truncated})


def test_the_metrics_of_a_session_grow_step_by_step(small) -> None:
    """By hand: what was told of each step is what the session says."""
    env = gym.make("KuaiRec-Fair-v0", dataset=small, max_len=6)
    env.action_space.seed(2)
    env.reset(seed=2)
    popular = set(small.item_ids[: small.n_items][env.unwrapped.catalogue.popular].tolist())
    rewards, penalties, shown, over = [], 0, [], False
    while not over:
        _, reward, over, _, info = env.step(env.action_space.sample())
        rewards.append(reward)
        penalties += info["penalised"]
        shown += info["slate"].tolist()
        assert info["session"] == {
            "len": len(rewards),
            "r_each": pytest.approx(np.mean(rewards)),
            "r_cum": pytest.approx(np.sum(rewards)),
            "q": pytest.approx(penalties / len(rewards)),
            "popular_share": pytest.approx(np.mean([item in popular for item in shown])),
        }


def test_the_monitor_s_report_needs_no_monitor(small) -> None:
    import warnings

    from stable_baselines3 import PPO
    from stable_baselines3.common.evaluation import evaluate_policy

    from dsrm_agents import make_vec_env

    envs = make_vec_env("KuaiRec-Fair-v0", 4, seed=1, dataset=small, max_len=4)
    agent = PPO("MlpPolicy", envs, n_steps=32, batch_size=32, seed=1)
    agent.learn(256)
    lengths = [episode["l"] for episode in agent.ep_info_buffer]
    assert lengths and max(lengths) <= 4
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rewards, steps = evaluate_policy(agent, envs, 10, return_episode_rewards=True)
    assert len(rewards) == 10 and max(steps) <= 4
    assert all(0 <= reward <= length for reward, length in zip(rewards, steps, strict=True))
