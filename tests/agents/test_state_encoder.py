"""State encoders: what they learn, their files, and agents behind them."""

from __future__ import annotations

import dataclasses
from functools import lru_cache

import numpy as np
import pytest
import torch
from stable_baselines3 import PPO

from dsrm_agents import HierarchicalPPO, TrainingCheckpoint, evaluate, make_vec_env, resume
from dsrm_agents.encoders.events import LoggedEvents
from dsrm_agents.encoders.pretrain import LOSSES, fit_encoder
from dsrm_agents.encoders.states import StateEncoder
from dsrm_agents.encoders.wrapper import EncodedVecEnv
from kuaisim_gym.data import Dataset, WatchLog
from kuaisim_gym.errors import CheckpointError, ConfigError

N = 4
SLATES = {"observation_type": "dict", "action_type": "slate"}
BRIEF = {"updates": 4, "batch_size": 16, "history_len": 8}


@lru_cache
def solvable() -> Dataset:
    """Users of two tastes, who watch the items of theirs and no others; nothing else tells."""
    rng = np.random.default_rng(0)
    n_users, n_items, events = 120, 40, 30
    items = np.stack([rng.permutation(n_items)[:events] for _ in range(n_users)])
    watched = (items % 2 == (np.arange(n_users) % 2)[:, None]).astype(np.float32)
    users = np.repeat(np.arange(n_users, dtype=np.int32), events)
    log = WatchLog(users, items.ravel().astype(np.int32), watched.ravel())
    test = WatchLog(
        np.repeat(np.arange(110, n_users, dtype=np.int32), n_items),
        np.tile(np.arange(n_items, dtype=np.int32), 10),
        np.ones(10 * n_items, np.float32),
    )
    ids = np.arange(n_users, dtype=np.int64), np.arange(n_items, dtype=np.int64)
    return Dataset("kuairec", True, *ids, n_items, log, test)


@pytest.fixture(scope="module")
def encoder(small) -> StateEncoder:
    return fit_encoder(small, "tce", "gru", **BRIEF)


@pytest.mark.parametrize("kind", ["mean", "gru", "attention"])
def test_tastes_are_learned(kind) -> None:
    fitted = fit_encoder(
        solvable(), "ce", kind, updates=150, batch_size=64, history_len=12, learning_rate=1e-2
    )
    assert fitted.report["auc"] > 0.8
    assert fitted.report["log_loss"] < 0.6 < np.log(2)


@pytest.mark.parametrize("loss", ["tce", "rce", "bod"])
def test_denoising_losses_learn_them_too(loss) -> None:
    options = {"updates": 150, "batch_size": 64, "history_len": 12, "learning_rate": 1e-2}
    report = fit_encoder(solvable(), loss, "mean", **options).report
    assert report["auc"] > 0.75
    if loss == "bod":  # weights are in units of their mean
        assert report["left_out"] == pytest.approx(0.0, abs=1e-6)
    else:
        assert 0 < report["left_out"] < 1
    low, high = sorted([report["left_out_popular"], report["left_out_longtail"]])
    assert low <= report["left_out"] <= high
    if loss == "tce":  # a fifth of all rows, half of which are positive
        assert report["left_out"] == pytest.approx(0.4, abs=0.05)


def test_the_plain_loss_leaves_nothing_out(small) -> None:
    report = fit_encoder(small, "ce", "mean", **BRIEF).report
    assert [report[name] for name in report if name.startswith("left_out")] == [0.0] * 3


@pytest.mark.parametrize("loss", LOSSES)
def test_a_seed_makes_the_same_encoder(small, loss) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    one, two, other = (fit_encoder(small, loss, "mean", seed=seed, **BRIEF) for seed in (1, 1, 2))
    assert torch.equal(before, torch.get_rng_state())
    assert one.digest == two.digest != other.digest
    assert one.report == two.report


def test_train_users_have_standard_states(small, encoder) -> None:
    data = small.training
    states = encoder.encode(*LoggedEvents(data.log, data.n_users).last(data.train_users, 8))
    assert states.dtype == np.float32
    np.testing.assert_allclose(states.mean(axis=0), 0, atol=1e-3)
    np.testing.assert_allclose(states.std(axis=0), 1, atol=1e-2)


def test_states_ignore_padding_and_stay_in_bounds(encoder) -> None:
    items, responses = np.array([[3, 7, 1]]), np.array([[1.0, 0.0, 0.5]], np.float32)
    padded = np.array([[-1, -1, 3, 7, 1]]), np.array([[0.3, np.nan, 1, 0, 0.5]], np.float32)
    state = encoder.encode(items, responses)
    np.testing.assert_allclose(encoder.encode(*padded), state, atol=1e-5)
    with torch.no_grad():
        raw = encoder(torch.from_numpy(items), torch.from_numpy(responses))
    np.testing.assert_allclose(state, ((raw - encoder.mean) / encoder.scale).clamp(-10, 10))
    encoder_of_extremes = StateEncoder(encoder.config)
    encoder_of_extremes.scale.fill_(1e-9)
    assert np.abs(encoder_of_extremes.encode(items, responses)).max() <= 10


def test_logged_events_by_hand() -> None:
    log = WatchLog(
        np.array([0, 0, 0, 2], np.int32),
        np.array([5, 6, 7, 8], np.int32),
        np.array([0.1, 0.2, 3.0, 0.4], np.float32),
    )
    events = LoggedEvents(log, 4)
    items, responses = events.before(np.array([2, 0, 3]), np.array([0, 0, 2]), 3)
    assert items.tolist() == [[-1, 5, 6], [-1, -1, -1], [-1, -1, -1]]
    np.testing.assert_allclose(responses, [[0, 0.1, 0.2], [0, 0, 0], [0, 0, 0]])
    items, responses = events.last(np.array([0, 1, 2, 3]), 2)
    assert items.tolist() == [[6, 7], [-1, -1], [-1, 8], [-1, -1]]
    np.testing.assert_allclose(responses[0], [0.2, 1.0])


def test_files_hold_all_of_it(small, encoder, tmp_path) -> None:
    file = tmp_path / "encoder.safetensors"
    encoder.save(file)
    loaded = StateEncoder.load(file)
    assert (loaded.config, loaded.report, loaded.digest) == (
        encoder.config,
        encoder.report,
        encoder.digest,
    )
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(CheckpointError, match="cannot be read as a state encoder"):
        StateEncoder.load(file)


def test_files_of_others_are_refused(small, dsrm, tmp_path) -> None:
    dsrm.save(tmp_path / "dsrm")
    with pytest.raises(CheckpointError, match="is not a state encoder"):
        StateEncoder.load(tmp_path / "dsrm")


def expected_states(dataset, encoder, users, observation) -> np.ndarray:
    """States computed one by one, from lists."""
    log, length, states = dataset.log, encoder.config.history_len, []
    for user, shown, answers in zip(
        users, observation["exposed"], observation["responses"], strict=True
    ):
        own = log.users == user
        items = [*log.items[own], *shown[shown >= 0]][-length:]
        responses = [*log.response[own], *answers[shown >= 0]][-length:]
        states.append(
            encoder.encode(np.array(items)[None], np.array(responses, np.float32)[None])[0]
        )
    return np.array(states)


@pytest.mark.parametrize("env_id", ["KuaiRec-Fair-v0", "KuaiRand-Fair-v0"])
def test_worn_states_are_those_of_the_last_events(small, small_rand, env_id) -> None:
    dataset = small if "Rec" in env_id else small_rand
    encoder = fit_encoder(dataset, "ce", "attention", **{**BRIEF, "history_len": 25})
    options = {"seed": 1, "dataset": dataset, "max_len": 4, **SLATES}
    raw = make_vec_env(env_id, N, **options)
    worn = EncodedVecEnv(make_vec_env(env_id, N, **options), encoder)
    users = raw.batch.core.state.users

    def check(own, seen, of_users) -> None:
        np.testing.assert_array_equal(seen["state"][:, 9:], own["state"][:, 9:])
        np.testing.assert_array_equal(seen["exposed"], own["exposed"])
        np.testing.assert_array_equal(seen["responses"], own["responses"])
        expected = expected_states(dataset, encoder, of_users, own)
        np.testing.assert_allclose(seen["state"][:, :9], expected, atol=1e-3)

    check(raw.reset(), worn.reset(), users)
    raw.action_space.seed(0)
    ends = 0
    for _ in range(7):
        before = users.copy()
        actions = np.array([raw.action_space.sample() for _ in range(N)])
        own, _, dones, plain = raw.step(actions)
        seen, _, _, infos = worn.step(actions)
        check(own, seen, users)
        for slot in np.flatnonzero(dones):
            last, worn_last = (one[slot]["terminal_observation"] for one in (plain, infos))
            check(
                {name: part[None] for name, part in last.items()},
                {name: part[None] for name, part in worn_last.items()},
                before[slot : slot + 1],
            )
            ends += 1
        np.testing.assert_array_equal(worn.observe()["state"], seen["state"])
    assert ends >= N


def agent(small, encoder) -> HierarchicalPPO:
    env = make_vec_env("KuaiRec-Fair-v0", N, seed=2, dataset=small, max_len=6, **SLATES)
    return HierarchicalPPO(
        "HierarchicalPolicy", EncodedVecEnv(env, encoder), n_steps=8, batch_size=16, seed=3
    )


def test_the_hierarchical_agent_learns_behind_it_and_goes_on(small, encoder, tmp_path) -> None:
    total, path = 4 * N * 8, tmp_path / "checkpoint"
    whole = agent(small, encoder).learn(total)
    agent(small, encoder).learn(total // 2 + 1, TrainingCheckpoint(path, N * 8))
    resumed = agent(small, encoder)
    resume(path, resumed)
    assert 0 < resumed.num_timesteps < total
    resumed.learn(total - resumed.num_timesteps, reset_num_timesteps=False)
    for one, two in zip(whole.policy.parameters(), resumed.policy.parameters(), strict=True):
        assert torch.equal(one, two)
    other = fit_encoder(small, "ce", "gru", seed=9, **BRIEF)
    with pytest.raises(CheckpointError, match="wrappers is"):
        resume(path, agent(small, other))
    options = {"dataset": small, "split": "test", "max_len": 6, **SLATES}
    sessions = evaluate(
        whole, EncodedVecEnv(make_vec_env("KuaiRec-Fair-v0", N, **options), encoder), N
    )
    assert len(sessions) == N


def test_a_saved_encoder_is_worn_by_any_agent(small, encoder, tmp_path) -> None:
    encoder.save(tmp_path / "file")
    env = make_vec_env("KuaiRec-Fair-v0", N, dataset=small, **SLATES)
    worn = EncodedVecEnv(env, tmp_path / "file")
    agent = PPO("MultiInputPolicy", worn, n_steps=4, batch_size=16, device="cpu").learn(16)
    assert agent.observation_space == worn.observation_space
    env = make_vec_env("KuaiRec-Fair-v0", N, dataset=small, **SLATES)
    plain = EncodedVecEnv(env, encoder)
    for one in (worn, plain):
        one.seed(3)
    expected = plain.reset()
    for name, part in worn.reset().items():
        np.testing.assert_array_equal(part, expected[name])


def test_what_does_not_fit_is_refused(small, small_rand, encoder) -> None:
    with pytest.raises(ConfigError, match='expected observation_type="dict"'):
        EncodedVecEnv(make_vec_env("KuaiRec-Fair-v0", N, dataset=small), encoder)
    for shown in ("parts", "belief"):
        env = make_vec_env("KuaiRec-Fair-v0", N, dataset=small, preference=shown, **SLATES)
        with pytest.raises(ConfigError, match=f"got '{shown}'"):
            EncodedVecEnv(env, encoder)
    rand = make_vec_env("KuaiRand-Fair-v0", N, dataset=small_rand, **SLATES)
    with pytest.raises(CheckpointError, match="fit it again"):
        EncodedVecEnv(rand, encoder)
    items = np.zeros((2, 3), int)
    for wrong, words in (
        ((items, np.zeros((2, 4), np.float32)), "one shape"),
        ((items + 10_000, np.zeros((2, 3), np.float32)), "positions below"),
    ):
        with pytest.raises(ConfigError, match=words):
            encoder.encode(*wrong)
    for options, words in (
        ({"loss": "tcee"}, "Did you mean 'tce'"),
        ({"kind": "lstm"}, "kind must be one of"),
        ({"updates": 0}, "updates must be an integer"),
        ({"learning_rate": 0.0}, "learning_rate must be positive"),
    ):
        with pytest.raises(ConfigError, match=words):
            fit_encoder(small, **options)
    log, test = solvable().log, solvable().test
    first = np.unique(log.users, return_index=True)[1]
    lonely = dataclasses.replace(solvable(), log=log.take(first), test=test)
    with pytest.raises(ConfigError, match="train log is too short"):
        fit_encoder(lonely, **BRIEF)
