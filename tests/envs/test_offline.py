from __future__ import annotations

import copy
import dataclasses
import importlib
import itertools
import os

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import AutoresetMode

import kuaisim_gym
from kuaisim_gym.data import Dataset, Features, WatchLog, write_csv
from kuaisim_gym.envs import assembly
from kuaisim_gym.envs.offline import Episode, collect_episodes, logged_episodes, write_minari
from kuaisim_gym.errors import ConfigError, DataFormatError, DiskSpaceError, StorageError
from kuaisim_gym.simulator import load_catalogue

ENV = "KuaiRec-Fair-v0"


class Linear:
    """Acts as a fixed function of what it sees, and remembers what it was told."""

    def __init__(self, env) -> None:
        self.space = getattr(env, "single_action_space", env.action_space)
        self.starts: list = []

    def predict(self, observation, state=None, episode_start=None, deterministic=False):
        self.starts.append(episode_start.copy())
        parts = (
            [observation[name] for name in sorted(observation)]
            if isinstance(observation, dict)
            else [observation]
        )
        seen = np.concatenate([part.reshape(len(part), -1) for part in parts], axis=1)
        weights = np.random.default_rng(0).normal(size=(seen.shape[1], *self.space.shape))
        scores = np.einsum("nd,d...->n...", seen, weights)  # the same for one row and for many
        if isinstance(self.space, spaces.Box):
            return np.tanh(scores).astype(np.float32), None
        n_items = getattr(self.space, "n", None) or self.space.nvec[0]
        return np.abs(scores * 1000).astype(np.int64) % n_items, None


@pytest.fixture(scope="module")
def with_log_only(small) -> Dataset:
    """Fifty items cannot be recommended: a fifth of the logged rows, and all those of one user."""
    log = small.log
    outside = np.random.default_rng(1).random(len(log)) < 0.2
    outside |= log.users == small.train_users[1]
    items = np.where(outside, small.n_items + log.items % 50, log.items).astype(np.int32)
    return dataclasses.replace(
        small,
        item_ids=np.concatenate([small.item_ids, small.item_ids.max() + 1 + np.arange(50)]),
        log=WatchLog(log.users, items, log.watch_ratio),
        item_features=Features(),
        show_counts=None,
        truth=None,
    )


def assert_same(one: Episode, other: Episode) -> None:
    """Of one course, whatever their seeds."""
    for name in {field.name for field in dataclasses.fields(Episode)} - {"seed"}:
        a, b = getattr(one, name), getattr(other, name)
        if a is None:
            assert b is None
            continue
        if isinstance(a, dict):
            assert a.keys() == b.keys()
            a, b = ([part[key] for key in sorted(part)] for part in (a, b))
        else:
            a, b = [a], [b]
        for x, y in zip(a, b, strict=True):
            assert x.dtype == y.dtype
            np.testing.assert_array_equal(x, y)


def reference_episodes(dataset: Dataset, user: int, max_len: int, window: int) -> list:
    """The definition, row by row: observations, actions, rewards."""
    encoder, popular = assembly.preference_encoder(dataset), load_catalogue(dataset).popular
    rows = dataset.log.users == user
    total, weight = np.zeros(encoder.dim), 0.0
    episodes: list = []
    current: tuple[list, list, list] = ([], [], [])

    def look() -> np.ndarray:
        _, actions, rewards = current
        preference = encoder.encode(
            total[None].astype(np.float32), np.array([weight], dtype=np.float32)
        )[0]
        latest = [popular[item] for item in actions[-window:]]
        context = [
            len(actions) / max_len,
            np.mean(latest) if latest else 0.5,
            rewards[-1] if rewards else 0.0,
            np.mean(rewards) if rewards else 0.0,
        ]
        return np.concatenate([preference, context])

    last: np.ndarray | None = None
    for item, response in zip(
        dataset.log.items[rows], dataset.log.response[rows].astype(float), strict=True
    ):
        step = item < dataset.n_items
        if step:
            if len(current[1]) == max_len:
                current[0].append(last)
                episodes.append(current)
                current = ([], [], [])
            current[0].append(look())
            current[1].append(item)
            current[2].append(response)
        total += response * encoder.embedding[item]
        weight += response
        if step:
            last = look()
    if current[1]:
        current[0].append(last)
        episodes.append(current)
    return episodes


@pytest.mark.parametrize(("max_len", "window"), [(30, 10), (7, 3), (1, 1), (5, 40)])
def test_the_log_is_cut_by_its_definition(with_log_only, small_rand, max_len, window) -> None:
    for dataset in (with_log_only, small_rand):
        users = dataset.train_users[[0, 1, 5, 17]]
        found = logged_episodes(dataset, max_len=max_len, window=window, users=users)
        expected = [
            one for user in users for one in reference_episodes(dataset, user, max_len, window)
        ]
        for episode, (observations, actions, rewards) in zip(found, expected, strict=True):
            np.testing.assert_allclose(episode.observations, observations, atol=2e-4)
            np.testing.assert_array_equal(episode.actions, actions)
            np.testing.assert_array_equal(episode.rewards, rewards)
            assert not episode.terminations.any()
            np.testing.assert_array_equal(np.flatnonzero(episode.truncations), [len(actions) - 1])


def test_every_catalogue_row_of_the_train_log_is_a_step_once(with_log_only) -> None:
    episodes = list(logged_episodes(with_log_only, max_len=8))
    log = with_log_only.train_log
    own = log.items < with_log_only.n_items
    assert 0.7 < own.mean() < 0.9
    np.testing.assert_array_equal(np.concatenate([one.actions for one in episodes]), log.items[own])
    np.testing.assert_array_equal(
        np.concatenate([one.rewards for one in episodes]), log.response[own]
    )
    assert max(map(len, episodes)) == 8
    space = gym.make(ENV, dataset=with_log_only).observation_space
    assert all(row in space for one in episodes for row in one.observations)


@pytest.mark.parametrize("preference", ["pooled", "parts"])
def test_the_environment_sees_what_the_episode_says(small, monkeypatch, preference) -> None:
    """A real environment, led through an episode's items with the same answers."""
    user = int(np.bincount(small.train_log.users).argmax())
    rows = np.flatnonzero(small.log.users == user)
    assert len(rows) > 50
    options = {"max_len": 20, "preference": preference}
    episodes = list(logged_episodes(small, users=np.array([user]), **options))
    episode, first = episodes[1], rows[20]
    assert len(set(episode.actions)) == len(episode) == 20, "the test table has a cell once"

    # The user's log ends where the episode begins; the test table answers as the log did.
    before = ~np.isin(np.arange(len(small.log)), rows[20:])
    answers = small.log.take(slice(first, first + 20))
    world = dataclasses.replace(small, log=small.log.take(before), test=answers, truth=None)
    # States in the units of the whole log, over the history that is left.
    whole = assembly.preference_encoder(small)
    known = copy.copy(whole)
    for name in ("history_sum", "history_weight", "exposure_sum", "exposure_count"):
        setattr(known, name, getattr(whole, name).copy())
    items, weights = small.log.items[rows[:20]], small.log.response[rows[:20]]
    known.history_sum[user] = weights @ whole.embedding[items]
    known.history_weight[user] = weights.sum()
    known.exposure_sum[user] = whole.embedding[items].sum(axis=0)
    known.exposure_count[user] = 20
    monkeypatch.setattr(assembly, "preference_encoder", lambda dataset: known)
    catalogue = load_catalogue(small)
    monkeypatch.setattr(assembly, "load_catalogue", lambda dataset: catalogue)
    env = gym.make(
        ENV,
        dataset=world,
        split="test",
        action_type="discrete",
        **options,
        step_cost="request",
        abandonment="none",
        stochastic_response=False,
    )
    observation, info = env.reset(seed=0)
    assert info["user_id"] == small.user_ids[user]
    np.testing.assert_allclose(observation, episode.observations[0], atol=1e-4)
    for step in range(20):
        observation, reward, terminated, _, _ = env.step(episode.actions[step])
        assert reward == pytest.approx(episode.rewards[step], abs=1e-6)
        np.testing.assert_allclose(observation, episode.observations[step + 1], atol=1e-4)
        assert terminated == (step == 19)


def test_parts_of_logged_preferences_are_of_the_rows_before_an_episode_and_in_it(
    with_log_only,
) -> None:
    encoder, log = assembly.preference_encoder(with_log_only), with_log_only.log
    user = with_log_only.train_users[5:6]
    options = {"max_len": 7, "window": 3, "users": user}
    pooled, apart = (
        list(logged_episodes(with_log_only, preference=name, **options))
        for name in ("pooled", "parts")
    )
    d, rows = encoder.dim, np.flatnonzero(log.users == user)
    taken = np.flatnonzero(log.items[rows] < with_log_only.n_items)
    assert len(apart) == -(-len(taken) // 7) > 2
    for number, (one, two) in enumerate(zip(pooled, apart, strict=True)):
        parts, context = np.split(two.observations, [4 * d + 4], axis=1)
        np.testing.assert_allclose(encoder.pooled(parts), one.observations[:, :d], atol=1e-5)
        np.testing.assert_array_equal(context, one.observations[:, d:])
        np.testing.assert_array_equal(two.actions, one.actions)
        before = taken[7 * number]  # rows, of log-only items too
        np.testing.assert_allclose(parts[:, 4 * d + 1], np.log1p(before) / 5, rtol=1e-6)
        assert (parts[:, : 2 * d] == parts[0, : 2 * d]).all()
        if before:
            mean = encoder.embedding[log.items[rows[:before]]].mean(axis=0)
            shown = (mean - encoder.mean) / encoder.scale
            np.testing.assert_allclose(parts[0, d : 2 * d], shown, atol=1e-4)
        assert (parts[0, 2 * d : 4 * d] == 0).all() and (parts[0, 4 * d + 2 :] == 0).all()
        last = taken[7 * number + len(two) - 1] + 1
        np.testing.assert_allclose(parts[-1, 4 * d + 3], np.log1p(last - before) / 5, rtol=1e-6)


def test_a_belief_would_foretell_the_log(small) -> None:
    with pytest.raises(ConfigError, match='use "parts" or "pooled", or collect_episodes'):
        logged_episodes(small, preference="belief")
    with pytest.raises(ConfigError, match="Did you mean 'parts'"):
        logged_episodes(small, preference="part")


def test_cutting_is_lazy_and_checks_at_once(small) -> None:
    iterator = logged_episodes(small)
    assert len(list(itertools.islice(iterator, 3))) == 3
    test_user = np.setdiff1d(small.test_users, small.train_users)[:1]
    for options, message in (
        ({"max_len": 0}, "max_len must be an integer of at least 1, got 0"),
        ({"window": 2.5}, "window must be an integer of at least 1, got 2.5"),
        ({"users": test_user}, "positions of train users"),
    ):
        with pytest.raises(ConfigError, match=message):
            logged_episodes(small, **options)


def test_nothing_of_the_test_table_reaches_an_episode(small, with_watch_ratios) -> None:
    other = with_watch_ratios(small, test=np.zeros_like(small.test.watch_ratio))
    for one, two in zip(logged_episodes(small), logged_episodes(other), strict=True):
        assert_same(one, two)


def played(options: dict, seed: int, sessions: int) -> list[Episode]:
    """Sessions of a single environment, recorded by hand."""
    env = gym.make(ENV, **options)
    agent, episodes = Linear(env), []
    observation, _ = env.reset(seed=seed)
    for _ in range(sessions):
        seen, actions, rewards, ends = [observation], [], [], []
        while not ends or not any(ends[-1]):
            batch = (
                {name: part[None] for name, part in observation.items()}
                if isinstance(observation, dict)
                else observation[None]
            )
            action = agent.predict(batch, episode_start=np.zeros(1))[0][0]
            observation, reward, terminated, truncated, _ = env.step(action)
            seen.append(observation)
            actions.append(action)
            rewards.append(reward)
            ends.append((terminated, truncated))
        stacked = (
            {name: np.stack([one[name] for one in seen]) for name in observation}
            if isinstance(observation, dict)
            else np.stack(seen)
        )
        flags = np.array(ends)
        episodes.append(
            Episode(stacked, np.stack(actions), np.array(rewards), flags[:, 0], flags[:, 1])
        )
        observation, _ = env.reset()
    return episodes


DICT_AND_SLATE = {"observation_type": "dict", "action_type": "slate"}
HISTORY_AND_ITEM = {"observation_type": "history", "action_type": "discrete"}
BELIEF = {"preference": "belief"}
PARTS_AND_SLATE = {**DICT_AND_SLATE, "preference": "parts"}


@pytest.mark.parametrize(
    "options",
    [{}, DICT_AND_SLATE, HISTORY_AND_ITEM, {"max_steps": 4}, BELIEF, PARTS_AND_SLATE],
)
def test_a_single_environment_is_recorded_as_played(small, options) -> None:
    options = {"dataset": small, **options}
    env = gym.make(ENV, **options)
    found = list(collect_episodes(env, Linear(env), 3, seed=9))
    for one, other in zip(found, played(options, 9, 3), strict=True):
        assert_same(one, other)
    assert all(one.truncations[-1] == ("max_steps" in options) for one in found)
    assert all((one.terminations | one.truncations).sum() == 1 for one in found)


@pytest.mark.parametrize("mode", [AutoresetMode.SAME_STEP, AutoresetMode.NEXT_STEP])
def test_the_seed_of_an_episode_plays_it_again(small, mode) -> None:
    native = gym.make_vec(ENV, num_envs=3, autoreset_mode=mode, dataset=small)
    found = list(collect_episodes(native, Linear(native), 7, seed=4))
    seeded = [episode for episode in found if episode.seed is not None]
    assert sorted(episode.seed for episode in seeded) == [4, 5, 6]
    for episode in seeded:
        assert_same(episode, played({"dataset": small}, episode.seed, 1)[0])
    assert {one.seed for one in collect_episodes(native, Linear(native), 4)} == {None}


def vector(options: dict, mode: AutoresetMode):
    """Three single environments, whose observations always lie in the same memory."""
    return gym.make_vec(
        ENV,
        num_envs=3,
        vectorization_mode="sync",
        vector_kwargs={"autoreset_mode": mode, "copy": False},
        **options,
    )


@pytest.mark.parametrize("options", [{}, DICT_AND_SLATE])
@pytest.mark.parametrize("mode", [AutoresetMode.SAME_STEP, AutoresetMode.NEXT_STEP])
def test_slots_contribute_equally_and_like_single_environments(small, options, mode) -> None:
    options = {"dataset": small, **options}
    env = vector(options, mode)
    agent = Linear(env)
    found = list(collect_episodes(env, agent, 7, seed=4))
    assert len(found) == 7
    by_hand = [played(options, 4 + slot, 3 if slot == 0 else 2) for slot in range(3)]

    def key(episode: Episode) -> bytes:
        return episode.rewards.tobytes() + np.asarray(episode.actions).tobytes()

    expected = sorted(itertools.chain(*by_hand), key=key)
    for one, other in zip(sorted(found, key=key), expected, strict=True):
        assert_same(one, other)
    # A recurrent agent learns of every new session, when it sees its first observation.
    starts = np.array(agent.starts)
    for slot, sessions in enumerate(by_hand):
        gaps = np.diff(np.flatnonzero(starts[:, slot]))[: len(sessions) - 1]
        lengths = [len(one) for one in sessions[:-1]]
        np.testing.assert_array_equal(gaps, np.add(lengths, mode is AutoresetMode.NEXT_STEP))
    assert starts[0].all()


@pytest.mark.parametrize("options", [{}, DICT_AND_SLATE, HISTORY_AND_ITEM])
@pytest.mark.parametrize("mode", [AutoresetMode.SAME_STEP, AutoresetMode.NEXT_STEP])
def test_the_native_vector_environment_is_recorded_like_the_wrapped_one(
    small, options, mode
) -> None:
    options = {"dataset": small, **options}
    native = gym.make_vec(ENV, num_envs=3, autoreset_mode=mode, **options)
    wrapped = vector(options, mode)
    for one, other in zip(
        collect_episodes(native, Linear(native), 8, seed=2),
        collect_episodes(wrapped, Linear(wrapped), 8, seed=2),
        strict=True,
    ):
        assert_same(one, other)


def test_what_cannot_be_recorded_is_refused(small) -> None:
    env = vector({"dataset": small}, AutoresetMode.DISABLED)
    with pytest.raises(ConfigError, match=r"SAME_STEP or NEXT_STEP, got .*DISABLED"):
        collect_episodes(env, Linear(env), 2)
    with pytest.raises(ConfigError, match="sessions must be at least 1, got 0"):
        collect_episodes(env, Linear(env), 0)


def test_an_episode_is_one_number_of_steps() -> None:
    flags = np.zeros(2, dtype=bool)
    Episode(np.zeros((3, 4)), np.zeros(2), np.zeros(2), flags, flags)
    for observations, actions, rewards in (
        (np.zeros((2, 4)), np.zeros(2), np.zeros(2)),
        (np.zeros((3, 4)), np.zeros(3), np.zeros(2)),
        ({"a": np.zeros((3, 4)), "b": np.zeros(2)}, np.zeros(2), np.zeros(2)),
        (np.zeros((1, 4)), np.zeros(0), np.zeros(0)),
    ):
        with pytest.raises(DataFormatError, match="one observation more"):
            Episode(observations, actions, rewards, flags, flags)


@pytest.fixture
def minari(monkeypatch, tmp_path):
    module = pytest.importorskip("minari")
    pytest.importorskip("h5py")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    return module


def logged_spaces(dataset: Dataset, preference: str = "pooled") -> dict:
    env = gym.make(ENV, dataset=dataset, preference=preference)
    return {
        "dataset": dataset,
        "observation_space": env.observation_space,
        "action_space": spaces.Discrete(dataset.n_items),
    }


def assert_stored(stored, episodes: list[Episode]) -> None:
    assert stored.total_episodes == len(episodes)
    assert stored.total_steps == sum(map(len, episodes))
    for one, episode in zip(stored.iterate_episodes(), episodes, strict=True):
        assert_same(
            Episode(one.observations, one.actions, one.rewards, one.terminations, one.truncations),
            episode,
        )


@pytest.mark.parametrize("preference", ["pooled", "parts"])
def test_the_log_survives_minari(small, minari, preference) -> None:
    episodes = list(logged_episodes(small, users=small.train_users[:20], preference=preference))
    spaces_of_it = logged_spaces(small, preference)
    returned = write_minari(
        "kuairec/logged-v0", iter(episodes), algorithm_name="logged", **spaces_of_it
    )
    loaded = minari.load_dataset("kuairec/logged-v0")
    assert returned.spec.dataset_id == loaded.spec.dataset_id == "kuairec/logged-v0"
    assert_stored(loaded, episodes)
    assert loaded.action_space == spaces.Discrete(small.n_items)
    metadata = loaded.storage.metadata
    assert "synthetic" in metadata["description"]
    assert small.fingerprint in metadata["description"]
    assert metadata["source"] == {
        "name": "kuairec",
        "synthetic": True,
        "fingerprint": small.fingerprint,
    }
    assert metadata["author"] == {"kuaisim-gym"}
    assert metadata["algorithm_name"] == "logged"
    assert metadata["requirements"] == [f"kuaisim-gym=={kuaisim_gym.__version__}"]
    assert "kuairec/logged-v0" in minari.list_local_datasets()


@pytest.fixture(scope="module")
def folder(small, tmp_path_factory) -> str:
    target = tmp_path_factory.mktemp("published") / "kuairec"
    write_csv(small, target)
    return str(target)


def test_the_log_of_published_files_brings_its_environment(folder, minari) -> None:
    env = gym.make(ENV, dataset=folder, action_type="discrete")
    dataset = env.unwrapped.dataset
    episodes = list(logged_episodes(dataset, users=dataset.train_users[:5]))
    write_minari("kuairec/real/logged-v1", episodes, env=env, dataset=dataset)
    loaded = minari.load_dataset("kuairec/real/logged-v1")
    assert_stored(loaded, episodes)
    assert "kuairec (real)" in loaded.storage.metadata["description"]
    again = loaded.recover_environment()
    again.reset(seed=1)
    actions = loaded[0].actions
    assert again.step(actions[0])[1] in (0.0, 1.0)


@pytest.mark.parametrize(
    "options",
    [
        {},
        DICT_AND_SLATE,
        BELIEF,
        PARTS_AND_SLATE,
        {"max_steps": 5},
        {"action_type": "discrete", "slate_size": 1},
    ],
)
def test_recorded_sessions_survive_minari_with_their_environment(folder, minari, options) -> None:
    env = gym.make(ENV, dataset=folder, split="test", max_len=12, **options)
    episodes = list(collect_episodes(env, Linear(env), 4, seed=1))
    write_minari("linear-v3", episodes, env=env, author="someone", author_email="a@b.example")
    loaded = minari.load_dataset("linear-v3")
    assert_stored(loaded, episodes)
    assert loaded.storage.metadata["author"] == {"someone"}
    assert loaded.storage.metadata["author_email"] == {"a@b.example"}
    again = loaded.recover_environment()
    assert again.observation_space == env.observation_space
    # A limit that d3rlpy reads, and no session reaches: those that are cut are so by max_steps.
    limit = loaded.env_spec.max_episode_steps
    assert limit == 1 + options.get("max_steps", 12) > max(map(len, episodes))
    stored = [row.get("seed") for row in loaded.storage.get_episode_metadata(range(4))]
    assert stored == [1, None, None, None]
    for one, other in zip(
        collect_episodes(again, Linear(again), 2, seed=1), episodes[:2], strict=True
    ):
        assert_same(one, other)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"observation_type": "dict", "action_type": "slate"},
        {"observation_type": "history", "action_type": "discrete"},
        {"max_steps": 2},
    ],
)
def test_minari_s_collector_takes_all_infos(small, minari, options) -> None:
    """It refuses an episode whose infos change their keys (0.5.4, episode_buffer.py)."""
    pytest.importorskip("jax")  # which it needs, and the extra leaves out
    env = gym.make(ENV, dataset=small, max_len=5, **options)
    collector = minari.DataCollector(env, record_infos=True)
    collector.action_space.seed(1)
    lengths = []
    for _ in range(3):
        collector.reset(seed=7)
        over = False
        while not over:
            *_, terminated, truncated, info = collector.step(collector.action_space.sample())
            over = terminated or truncated
        lengths.append(info["session"]["len"])
    stored = collector.create_dataset("collected-v0")
    for episode, length in zip(stored, lengths, strict=True):
        assert episode.infos["session"]["len"].tolist() == list(range(length + 1))
        assert (episode.infos["slate"][0] == -1).all() and (episode.infos["slate"][1:] >= 0).all()
        assert len(episode.infos["slate_responses"]) == len(episode.rewards) + 1
    assert not set(info) & {"responses", "exposed", "state", "items", "context"}  # of observations


def test_nothing_is_overwritten_and_nothing_half_written_stays(small, minari) -> None:
    source = logged_spaces(small)
    users = small.train_users[:3]
    episodes = list(logged_episodes(small, users=users))
    root = minari.storage.get_dataset_path()

    def breaks():
        yield episodes[0]
        raise RuntimeError("the disk of the log is gone")

    with pytest.raises(RuntimeError, match="is gone"):
        write_minari("one-v0", breaks(), **source)
    assert os.listdir(root) == []
    with pytest.raises(ConfigError, match="at least one episode, got none"):
        write_minari("one-v0", [], **source)
    bad = dataclasses.replace(episodes[1], actions=episodes[1].actions + small.n_items)
    with pytest.raises(DataFormatError, match="Episode 1: its actions are not of Discrete"):
        write_minari("one-v0", [episodes[0], bad], **source)
    with pytest.raises(ConfigError, match="data_format must be one of .*'arrow'.*got 'pickle'"):
        write_minari("one-v0", episodes, data_format="pickle", **source)
    assert os.listdir(root) == []

    write_minari("one-v0", episodes, **source)
    for others in (episodes[:1], breaks()):
        with pytest.raises(ConfigError, match=r"choose another id than 'one-v0'"):
            write_minari("one-v0", others, **source)
    assert minari.load_dataset("one-v0").total_episodes == len(episodes)

    def meanwhile():
        """Another process finishes first."""
        write_minari("two-v0", episodes[:2], **source)
        yield from episodes

    with pytest.raises(ConfigError, match=r"choose another id than 'two-v0'"):
        write_minari("two-v0", meanwhile(), **source)
    assert minari.load_dataset("two-v0").total_episodes == 2
    assert sorted(os.listdir(root)) == ["one-v0", "two-v0"]


def test_exports_keep_room_on_the_disk(small, minari, monkeypatch) -> None:
    """HDF5 would end this process, so the room alone is played."""
    source, room = logged_spaces(small), iter([1e9, 1e9, 1e9, 6e7])
    episodes = list(itertools.islice(logged_episodes(small), 9))
    write_minari("there-v0", episodes[:1], **source)
    monkeypatch.setattr("kuaisim_gym.disk.free_space", lambda _: next(room))
    with pytest.raises(
        DiskSpaceError, match=r"About 67\.1 MB are needed .* only 60\.0 MB are free"
    ):
        write_minari("two/full-v0", episodes, **source)
    assert next(room, None) is None  # it ended at the third episode
    assert os.listdir(minari.storage.get_dataset_path()) == ["there-v0"]
    assert minari.load_dataset("there-v0").total_episodes == 1


def test_what_killed_exports_left_goes_with_the_next(small, minari) -> None:
    root = minari.storage.get_dataset_path()
    (root / ".kuaisim-0.lock").touch()
    (root / ".kuaisim-0.1.part" / "data").mkdir(parents=True)
    (root / ".kuaisim-0.1.part" / "data" / "main_data.hdf5").write_bytes(b"half")
    episodes = list(itertools.islice(logged_episodes(small), 2))

    def while_another_works():
        write_minari("b-v0", episodes, **logged_spaces(small))
        assert len([name for name in os.listdir(root) if name.endswith(".part")]) == 1
        yield from episodes

    write_minari("a-v0", while_another_works(), **logged_spaces(small))
    assert sorted(os.listdir(root)) == ["a-v0", "b-v0"]
    assert minari.load_dataset("a-v0").total_episodes == 2


def test_minari_s_folder_cannot_be_written(small, minari, monkeypatch, tmp_path) -> None:
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "file" / "datasets"))
    with pytest.raises(StorageError, match="datasets cannot be written"):
        write_minari("c-v0", logged_episodes(small), **logged_spaces(small))


def test_pictures_are_stored_without_loss(small, minari) -> None:
    pictures = np.random.default_rng(0).integers(0, 256, (3, 40, 40), dtype=np.uint8)
    flags = np.array([False, True])
    episode = Episode(pictures, np.arange(2), np.ones(2), flags, ~flags & False)
    space = spaces.Box(0, 255, (40, 40), np.uint8)
    assert_stored(
        write_minari(
            "pictures-v0",
            [episode],
            dataset=small,
            observation_space=space,
            action_space=spaces.Discrete(2),
        ),
        [episode],
    )


def test_what_minari_cannot_be_told_is_refused(small, small_rand, folder, minari) -> None:
    episodes = list(itertools.islice(logged_episodes(small), 1))
    env = gym.make(ENV, dataset=folder)
    cases = (
        ({}, "dataset, observation_space and action_space are needed"),
        ({"env": env, "action_space": env.action_space}, "env or the spaces, not both"),
        ({"env": gym.make(ENV, dataset=small)}, "cannot be written down"),
        ({"env": env, "dataset": small_rand}, "another than the episodes"),
    )
    for options, message in cases:
        with pytest.raises(ConfigError, match=message):
            write_minari("three-v0", episodes, **options)
    for name in ("three", "../three-v0", "a b-v0"):
        with pytest.raises(ConfigError, match="dataset_id must read like"):
            write_minari(name, episodes, **logged_spaces(small))


@pytest.mark.parametrize("missing", ["minari", "h5py", "PIL"])
def test_minari_is_asked_for_only_when_it_is_used(small, monkeypatch, missing) -> None:
    def without(name, *args, **kwargs):
        if name.split(".")[0] == missing:
            raise ModuleNotFoundError(name)
        return importlib_import(name, *args, **kwargs)

    importlib_import = importlib.import_module
    monkeypatch.setattr(importlib, "import_module", without)
    assert len(next(logged_episodes(small)))
    with pytest.raises(ConfigError, match=r'pip install "kuaisim-gym\[minari\]"'):
        write_minari("four-v0", [], **logged_spaces(small))
