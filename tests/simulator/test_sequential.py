"""The sequential response model: causal, exact in streaming, and worth its cost."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from kuaisim_gym.data import BehaviourLog, Dataset, Features, WatchLog
from kuaisim_gym.errors import CheckpointError, ConfigError, ResetNeededError
from kuaisim_gym.simulator import build, sequential
from kuaisim_gym.simulator.quality import auc
from kuaisim_gym.simulator.sequential import SequentialConfig, SequentialModel, fit_sequential
from kuaisim_gym.simulator.sequential import fit as fitting
from kuaisim_gym.simulator.sequential.network import SequenceNetwork
from kuaisim_gym.simulator.sequential.sequences import Sequences, batches

QUICK = SequentialConfig(
    batch_events=512, learning_rate=4e-3, decay=0.9, epochs=12, patience=4, dropout=0.05
)
BRIEF = replace(QUICK, epochs=1)
N_CATEGORIES = 6


def categories(n_items: int) -> Features:
    """The category of each item: its position modulo six."""
    codes = (np.arange(n_items, dtype=np.int32) % N_CATEGORIES + 1)[:, None]
    return Features({"category": codes}, {"category": ("", *"abcdef")})


def fit(log, n_users: int, n_items: int, config: SequentialConfig = QUICK, **options):
    """A fit on all of a log, categories known."""
    return fit_sequential(
        log,
        options.pop("everyone", log),
        n_users,
        n_items,
        Features(),
        categories(n_items),
        config=config,
        progress=False,
        **options,
    )


def log_loss(probability: np.ndarray | float, answer: np.ndarray) -> float:
    """Mean negative log-likelihood."""
    return float(-np.where(answer, np.log(probability), np.log1p(-np.asarray(probability))).mean())


def dataset_of(log, n_items: int, n_users: int) -> Dataset:
    """A dataset around a log; its test table is the log."""
    users = np.arange(n_users, dtype=np.int64)
    return Dataset("kuairand", True, users, np.arange(n_items, dtype=np.int64), n_items, log, log)


class Tastes:
    """Users who like three of six categories, and answer by that alone."""

    n_users, n_items, length = 300, 60, 40

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        likes = np.array([rng.permutation(N_CATEGORIES) < 3 for _ in range(self.n_users)])
        users = np.repeat(np.arange(self.n_users, dtype=np.int32), self.length)
        items = rng.integers(0, self.n_items, len(users), dtype=np.int32)
        click = rng.random(len(users)) < np.where(likes[users, items % N_CATEGORIES], 0.99, 0.01)
        viewed = click & (rng.random(len(users)) < 0.5)
        self.log = BehaviourLog(users, items, (click + 2 * viewed).astype(np.uint8))
        last = np.tile(np.arange(self.length) >= self.length - 8, self.n_users)
        self.past, self.future = self.log.take(~last), self.log.take(last)


@pytest.fixture(scope="module")
def tastes() -> Tastes:
    return Tastes()


@pytest.fixture(scope="module")
def model(tastes: Tastes) -> SequentialModel:
    return fit(tastes.past, tastes.n_users, tastes.n_items)


def random_model(
    events: list[int], n_items: int = 40, seed: int = 0, **sizes: int
) -> SequentialModel:
    """Random weights, so strong that every event matters; so many logged events a user."""
    config = SequentialConfig(**sizes)
    rng = np.random.default_rng(seed)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        network = SequenceNetwork(3, config)
        for parameter in network.parameters():
            parameter.data.add_(0.05 * torch.randn_like(parameter))
        users, items = torch.randn(len(events), 64), torch.randn(n_items, 64)
    starts = np.concatenate([[0], np.cumsum(events)])
    n = int(starts[-1])
    logged = rng.integers(0, n_items, n, dtype=np.int32)
    histories = Sequences(starts, logged, rng.random((n, 3), dtype=np.float32))
    return SequentialModel(("a", "b", "c"), network, users, items, histories)


@torch.inference_mode()
def recomputed(model: SequentialModel, user: int, items, responses, asked) -> np.ndarray:
    """Log-odds by one pass over a whole history."""
    network = model.network
    events = network.events(
        model.items[torch.from_numpy(np.asarray(items, dtype=np.int64))],
        torch.from_numpy(
            np.asarray(responses, dtype=np.float32).reshape(len(items), network.n_behaviours)
        ),
    )
    state = network(network.with_start(events[None]))[:, -1]
    scores = network.scores(state, model.users[[user]])
    return network.logits(scores, model.items[torch.from_numpy(asked)][None])[0].numpy()


# Causality


def states_of(network: SequenceNetwork, events: torch.Tensor) -> np.ndarray:
    with torch.inference_mode():
        return network(events)[0].numpy()


@pytest.mark.parametrize("length", [150, 460])  # one block, and several
@pytest.mark.parametrize("layers", [1, 2])
def test_states_depend_on_their_band_alone(length: int, layers: int) -> None:
    network = random_model([1], layers=layers).network
    reach = network.config.reach
    assert reach == layers * 99 + 1
    events = torch.randn(1, length, 128, generator=torch.Generator().manual_seed(0))
    before = states_of(network, events)
    for place in (0, 49, length - 2):
        changed = events.clone()
        changed[0, place] += 10.0
        moved = np.abs(states_of(network, changed) - before).max(axis=1)
        assert (moved[:place] == 0).all(), "an event changed what came before it"
        assert moved[place] > 0.1
        assert (moved[place + reach :] == 0).all(), "an event is seen beyond the band"
        if layers == 1:  # each place of the band sees it, its last one included
            assert (moved[place : place + reach] > 0).all()


def test_blocks_equal_one_dense_band() -> None:
    network = random_model([1]).network
    events = torch.randn(2, 460, 128, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        queries, (keys, values) = (
            network.layers[0].query(events),
            network.layers[0].key_value(events),
        )
        places = torch.arange(460)
        weights = queries @ keys.transpose(-1, -2) / np.sqrt(queries.shape[-1])
        weights = weights + network.penalty(places[:, None] - places)
        dense = torch.softmax(weights, dim=-1) @ values
        blocked = network._banded(queries, keys, values)
    np.testing.assert_allclose(blocked.numpy(), dense.numpy(), atol=2e-6)


# Streaming


@pytest.mark.parametrize("slate", [1, 10, 31])  # 31 is longer than what is appended at once
def test_streaming_equals_a_full_recompute(slate: int) -> None:
    logged = [0, 1, 60, 98, 99, 100, 199, 200, 350]
    histories = Sequences.of(watch_log(logged), len(logged))
    model = random_model(logged)
    model = SequentialModel(
        ("watched",), SequenceNetwork(1, model.config), model.users, model.items, histories
    )
    rng = np.random.default_rng(1)
    users = rng.permutation(len(logged)).astype(np.int32)
    sessions = model.begin(len(users))
    sessions.reset(np.ones(len(users), dtype=bool), users)

    def start(user: int) -> tuple[list[int], list[list[float]]]:
        rows = slice(histories.starts[user], histories.starts[user + 1])
        return histories.items[rows].tolist(), histories.responses[rows].tolist()

    past = [start(user) for user in users]
    for step in range(14):
        slates = rng.integers(0, 40, (len(users), slate))
        answered = sessions.logits(slates)
        for slot, user in enumerate(users):
            expected = recomputed(model, user, *past[slot], slates[slot])
            np.testing.assert_allclose(answered[slot], expected, atol=1e-5)
        feedback = rng.random(answered.shape, dtype=np.float32)
        sessions.observe(slates, feedback)
        for slot in range(len(users)):
            past[slot][0].extend(slates[slot].tolist())
            past[slot][1].extend(feedback[slot].tolist())
        if step % 3 == 2:  # some leave, others go on
            slots = rng.random(len(users)) < 0.4
            users[slots] = rng.integers(0, len(logged), slots.sum())
            sessions.reset(slots, users[slots])
            for slot in np.flatnonzero(slots):
                past[slot] = start(users[slot])


def watch_log(lengths: list[int], n_items: int = 40) -> WatchLog:
    rng = np.random.default_rng(2)
    users = np.repeat(np.arange(len(lengths), dtype=np.int32), lengths)
    items = rng.integers(0, n_items, len(users), dtype=np.int32)
    return WatchLog(users, items, rng.gamma(2.0, 0.4, len(users)).astype(np.float32))


def test_a_session_is_the_same_alone_and_in_company() -> None:
    model = random_model([30, 5, 140, 0, 77])
    rng = np.random.default_rng(3)
    users = np.array([2, 4, 0, 3, 1, 2], dtype=np.int32)
    together, alone = model.begin(6), model.begin(1)
    together.reset(np.ones(6, dtype=bool), users)
    alone.reset(np.ones(1, dtype=bool), users[3:4])
    for _ in range(12):
        slates = rng.integers(0, 40, (6, 10))
        answers = together.feedback(slates)
        np.testing.assert_allclose(alone.feedback(slates[3:4])[0], answers[3], atol=1e-5)
        feedback = (rng.random(answers.shape) < answers).astype(np.float32)
        together.observe(slates, feedback)
        alone.observe(slates[3:4], feedback[3:4])


def test_a_new_session_answers_from_the_log_and_an_old_one_from_its_past() -> None:
    model = random_model([30, 5])
    users, slates = np.array([1, 0], dtype=np.int32), np.arange(20).reshape(2, 10)
    sessions = model.begin(2)
    with pytest.raises(ResetNeededError, match=r"Session 0 has not begun: call reset\(\)"):
        sessions.feedback(slates)
    sessions.reset(np.ones(2, dtype=bool), users)
    first = sessions.feedback(slates)
    np.testing.assert_allclose(first, model.feedback(users[:, None], slates), atol=1e-6)
    np.testing.assert_array_equal(first, sessions.feedback(slates))  # asking changes nothing
    sessions.observe(slates, np.ones_like(first))
    assert np.abs(sessions.feedback(slates) - first).max() > 1e-3
    sessions.reset(np.array([True, False]), users[:1])
    sessions.reset(np.zeros(2, dtype=bool), users[:0])  # nobody
    again = sessions.feedback(slates)
    np.testing.assert_allclose(again[0], first[0], atol=1e-6)
    assert np.abs(again[1] - first[1]).max() > 1e-3


# Answers


def test_all_ways_to_ask_agree() -> None:
    model = random_model([30, 5, 0, 150])
    users, items = np.array([3, 1, 0, 2, 1]), np.arange(40)
    table = model.logits(users[:, None], items[None])
    assert table.shape == (5, 40, 3) and table.dtype == np.float32
    pairs = model.logits(np.repeat(users, 40), np.tile(items, 5)).reshape(5, 40, 3)
    slates = model.logits(users[:, None], np.tile(items, (5, 1)))
    for other in (pairs, slates, model.logits(users[:, None], items)):
        np.testing.assert_allclose(other, table, atol=1e-6)
    assert model.logits(np.array(3), np.array(7)).shape == (3,)
    np.testing.assert_allclose(model.logits(np.array(3), items), table[0], atol=1e-6)
    assert model.feedback(users[:0, None], items[None]).shape == (0, 40, 3)
    sigmoid = 1 / (1 + np.exp(-table.astype(np.float64)))  # one, not two
    np.testing.assert_allclose(model.feedback(users[:, None], items[None]), sigmoid, atol=1e-6)
    np.testing.assert_allclose(
        model.probability(users[:, None], items[None]), sigmoid[..., 0], atol=1e-6
    )


def test_rescaling_moves_log_odds_everywhere() -> None:
    model = random_model([30, 5, 12])
    scale, shift = np.array([2, 1, 0.5], np.float32), np.array([0, -1, 3], np.float32)
    users, slates = np.array([2, 0], dtype=np.int32), np.arange(20).reshape(2, 10)
    expected = model.logits(users[:, None], slates) * scale + shift
    other = model.rescaled(scale, shift)
    sessions = other.begin(2)
    sessions.reset(np.ones(2, dtype=bool), users)
    for logits in (other.logits(users[:, None], slates), sessions.logits(slates)):
        np.testing.assert_allclose(logits, expected, atol=1e-5)
    twice = other.rescaled(scale, shift)
    np.testing.assert_allclose(
        twice.logits(users[:, None], slates), expected * scale + shift, atol=1e-5
    )


def test_strong_preferences_are_answered_strongly(tastes: Tastes, model: SequentialModel) -> None:
    future = tastes.future
    predicted = model.feedback(future.users, future.items)
    click, viewed = future.behaviour(0) == 1, future.behaviour(1) == 1
    # KuaiSim's two sigmoids would leave all of them between .5 and .731.
    assert np.quantile(predicted[:, 0], 0.1) < 0.05 and np.quantile(predicted[:, 0], 0.9) > 0.95
    assert auc(predicted[:, 0], click) > 0.95
    items = tastes.past.items
    counts = np.bincount(items, minlength=tastes.n_items)
    clicks = np.bincount(items, tastes.past.behaviour(0), minlength=tastes.n_items)
    means = ((clicks + 1) / (counts + 2))[future.items]
    loss = log_loss(predicted[:, 0].astype(np.float64), click)
    assert loss < 0.5 * log_loss(click.mean(), click)
    assert loss < 0.5 * log_loss(means, click)
    liked = predicted[click, 1].astype(np.float64)
    assert 0.35 < liked.mean() < 0.65 and predicted[~click & (predicted[:, 0] < 0.1), 1].max() < 0.2
    assert auc(predicted[:, 1], viewed) > 0.8
    # Behaviours that nobody shows stay rare.
    assert predicted[:, 2:].max() < 0.02


def satiation(n_users: int, length: int, rng: np.random.Generator) -> WatchLog:
    """All users tire of a category when it made up three of the last four events."""
    users = np.repeat(np.arange(n_users, dtype=np.int32), length)
    shown = np.empty((n_users, length), dtype=np.int32)
    answers = np.ones((n_users, length), dtype=np.float32)
    kind = rng.integers(0, 2, n_users)
    for place in range(length):
        kind = np.where(rng.random(n_users) < 0.3, 1 - kind, kind)
        shown[:, place] = kind + N_CATEGORIES * rng.integers(0, 5, n_users)
        if place >= 4:
            before = shown[:, place - 4 : place] % N_CATEGORIES
            answers[:, place] = (before == kind[:, None]).sum(axis=1) < 3
    watched = np.where(answers == 1, 0.95, 0.05).astype(np.float32)
    return WatchLog(users, shown.ravel(), watched.ravel())


def test_what_just_happened_matters() -> None:
    length, n_users, n_items = 30, 200, 30
    log = satiation(n_users, length, np.random.default_rng(4))
    model = fit(log, n_users, n_items, replace(QUICK, epochs=8))
    # Sessions that begin with no history and go on in the same world.
    fresh = satiation(n_users, length, np.random.default_rng(5))
    items = fresh.items.reshape(n_users, length, 1)
    truth = fresh.response.reshape(n_users, length, 1)
    blank = SequentialModel(
        model.behaviours,
        model.network,
        model.users,
        model.items,
        Sequences.of(log.take(slice(0, 0)), n_users),
    )
    sessions = blank.begin(n_users)
    sessions.reset(np.ones(n_users, dtype=bool), np.arange(n_users, dtype=np.int32))
    error, blind = [], []
    stateless = blank.feedback(np.arange(n_users)[:, None], fresh.items.reshape(n_users, length))
    for place in range(length):
        predicted = sessions.feedback(items[:, place])[..., 0]
        error.append(np.abs(predicted - truth[:, place]).mean())
        blind.append(np.abs(stateless[:, place] - truth[:, place]).mean())
        sessions.observe(items[:, place], truth[:, place, :, None])
    mean = truth.mean()
    constant = np.abs(truth - mean).mean()
    assert np.mean(error) < 0.4 * constant
    assert np.mean(error) < 0.5 * np.mean(blind)


# Training


def test_fits_repeat_and_leave_the_random_state_alone(tastes: Tastes) -> None:
    log = tastes.past.take(tastes.past.users < 40)
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    first, second = (fit(log, 40, tastes.n_items, BRIEF, seed=7) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert (np.random.get_state()[1] == numpy_state).all()
    users, items = np.arange(40)[:, None], np.arange(tastes.n_items)[None]
    np.testing.assert_array_equal(first.logits(users, items), second.logits(users, items))
    np.testing.assert_array_equal(first.logits(users, items), first.logits(users, items))
    other = fit(log, 40, tastes.n_items, BRIEF, seed=8)
    assert np.abs(other.logits(users, items) - first.logits(users, items)).max() > 1e-3


def test_early_stopping_restores_the_best_epoch() -> None:
    rng = np.random.default_rng(6)
    users = np.repeat(np.arange(60, dtype=np.int32), 20)
    flags = rng.integers(0, 2, len(users)).astype(np.uint8)  # noise: soon learned by heart
    log = BehaviourLog(users, rng.integers(0, 12, len(users), dtype=np.int32), flags)
    config = replace(QUICK, epochs=30, patience=2, batch_events=128, decay=1.0)
    stopped = fit(log, 60, 12, config)
    best = int(np.argmin(stopped.losses))
    assert len(stopped.losses) == best + 1 + config.patience < 30
    until_best = fit(log, 60, 12, replace(config, epochs=best + 1))
    assert until_best.losses == stopped.losses[: best + 1]
    pairs = np.arange(60)[:, None], np.arange(12)[None]
    np.testing.assert_array_equal(stopped.logits(*pairs), until_best.logits(*pairs))


def test_strangers_are_answered_and_teach_nothing(tastes: Tastes) -> None:
    n_users, n_items = 80, tastes.n_items
    everyone = tastes.past.take(tastes.past.users < n_users)
    train = everyone.take(everyone.users % 2 == 0)
    log = everyone.take((everyone.users != 3) & (everyone.items != 59))
    train = train.take(train.items != 59)
    model = fit(train, n_users, n_items, BRIEF, everyone=everyone)
    other = fit(train, n_users, n_items, BRIEF, everyone=log)
    for name, value in model.network.state_dict().items():
        assert torch.equal(value, other.network.state_dict()[name]), name
    assert torch.equal(model.users, other.users) and torch.equal(model.items, other.items)
    # All strangers have one encoding; what they did before tells them apart.
    assert (model.users[1::2] == model.users[1]).all()
    assert not torch.equal(model.users[0], model.users[2])
    answers = model.feedback(np.arange(n_users)[:, None], np.arange(n_items)[None])
    assert np.isfinite(answers).all()
    without = other.feedback(np.array([[3]]), np.arange(n_items)[None])
    assert np.isfinite(without).all()
    assert np.abs(answers[1] - answers[5]).max() > 0
    # An item nobody was shown is what its category says.
    assert torch.isfinite(model.items[59]).all()


def test_dropout_is_off_in_simulation(model: SequentialModel, tastes: Tastes) -> None:
    assert not model.network.training
    users, slates = np.arange(8, dtype=np.int32), np.arange(40).reshape(8, 5)
    runs = []
    for _ in range(2):
        sessions = model.begin(8)
        sessions.reset(np.ones(8, dtype=bool), users)
        for _ in range(3):
            answers = sessions.feedback(slates)
            sessions.observe(slates, answers.round())
        runs.append(sessions.feedback(slates))
    np.testing.assert_array_equal(*runs)


def test_validation_events_are_the_last_ones(tastes: Tastes) -> None:
    trainer_events = []
    lengths = Sequences.of(tastes.past, tastes.n_users).lengths
    original = fitting._Trainer._loss

    def spy(self, users, first, end):
        trainer_events.append((self.training, users, first, end))
        return original(self, users, first, end)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fitting._Trainer, "_loss", spy)
        fit(tastes.past, tastes.n_users, tastes.n_items, BRIEF)
    learned = np.zeros(tastes.n_users, dtype=np.int64)
    checked = np.zeros(tastes.n_users, dtype=bool)
    for training, users, first, end in trainer_events:
        if training:
            learned[users] = end
            assert (first == 0).all()
        else:
            checked[users] = True
            assert (first == learned[users]).all() and (end == lengths[users]).all()
    assert 0.1 < checked.mean() < 0.3
    np.testing.assert_array_equal(learned[~checked], lengths[~checked])


def test_watch_ratios_are_soft_targets() -> None:
    rng = np.random.default_rng(7)
    users = np.repeat(np.arange(80, dtype=np.int32), 25)
    items = rng.integers(0, 12, len(users), dtype=np.int32)
    watched = np.where(items % N_CATEGORIES < 3, 0.2, 0.75).astype(np.float32)
    model = fit(WatchLog(users, items, watched), 80, 12, replace(QUICK, epochs=8))
    assert model.behaviours == ("watched",)
    answers = model.probability(np.arange(80)[:, None], np.arange(12)[None])
    expected = np.where(np.arange(12) % N_CATEGORIES < 3, 0.2, 0.75)
    assert np.abs(answers - expected).mean() < 0.05


# Sequences and checkpoints


def test_batches_hold_everyone_once_and_little_padding() -> None:
    lengths = np.random.default_rng(8).geometric(0.02, 3000)
    lengths[5] = 9000
    for rng in (None, np.random.default_rng(0)):
        parts = list(batches(lengths, 2048, rng))
        assert sorted(np.concatenate(parts).tolist()) == list(range(3000))
        padded = sum(int(lengths[part].max()) * len(part) for part in parts)
        assert padded < 1.25 * lengths.sum()
        assert all(len(part) * lengths[part].max() <= 2048 or len(part) == 1 for part in parts)
    assert not list(batches(lengths[:0], 2048))


def test_sequences_keep_the_last_events() -> None:
    log = watch_log([3, 0, 5])
    sequences = Sequences.of(log, 3).last(4)
    np.testing.assert_array_equal(sequences.starts, [0, 3, 3, 7])
    np.testing.assert_array_equal(sequences.items, log.items[[0, 1, 2, 4, 5, 6, 7]])
    rows = sequences.padded(np.array([2, 1, 0]), np.array([2, 0, 3]))
    np.testing.assert_array_equal(rows.items[0].numpy(), [*log.items[4:6], 0])
    np.testing.assert_array_equal(rows.responses[1].numpy(), np.zeros((3, 1)))
    np.testing.assert_array_equal(rows.responses[2, :, 0].numpy(), log.response[:3])


def test_checkpoints_survive(tastes: Tastes, model: SequentialModel, tmp_path) -> None:
    path = tmp_path / "model.safetensors"
    data = dataset_of(tastes.past, tastes.n_items, tastes.n_users)
    one, two = np.full(7, 2, np.float32), np.full(7, -1, np.float32)
    for saved in (model, model.rescaled(one, two)):
        saved.save(path)
        loaded = SequentialModel.load(path, data)
        assert loaded.config == model.config and loaded.losses == model.losses
        users, slates = np.arange(50), np.arange(50 * 6).reshape(50, 6) % tastes.n_items
        np.testing.assert_array_equal(
            loaded.logits(users[:, None], slates), saved.logits(users[:, None], slates)
        )
        runs = []
        for one_model in (saved, loaded):
            sessions = one_model.begin(50)
            sessions.reset(np.ones(50, dtype=bool), users)
            sessions.observe(slates, sessions.feedback(slates).round())
            runs.append(sessions.feedback(slates))
        np.testing.assert_array_equal(*runs)


def test_a_damaged_model_in_the_cache_is_fitted_again(
    tastes: Tastes, model: SequentialModel, tmp_path, monkeypatch, caplog
) -> None:
    monkeypatch.setenv("KUAISIM_CACHE", str(tmp_path))
    data = dataset_of(tastes.past, tastes.n_items, tastes.n_users)
    fits: list[object] = []
    monkeypatch.setattr(sequential, "fit_sequential", lambda *given: fits.append(given) or model)

    def weights() -> list[np.ndarray]:
        found = build._sequential(data, data.log, data.log, "response")
        return [tensor.numpy().copy() for tensor in found.network.state_dict().values()]

    wanted = weights()
    weights()
    assert len(fits) == 1
    file = tmp_path / "response.arrays" / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-9] ^= 1  # of a number: the file can be read as before
    file.write_bytes(content)
    for one, other in zip(wanted, weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    assert len(fits) == 2
    assert "Rebuilding" in caplog.text


def test_what_is_no_checkpoint_is_refused(tastes: Tastes, model, tmp_path) -> None:
    path = tmp_path / "model.safetensors"
    data = dataset_of(tastes.past, tastes.n_items, tastes.n_users)
    with pytest.raises(CheckpointError, match="cannot be read"):
        SequentialModel.load(path, data)
    model.save(path)
    whole = path.read_bytes()
    for length in (0, 5, 500, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match="cannot be read"):
            SequentialModel.load(path, data)
    save_file({"x": torch.zeros(1)}, path)
    with pytest.raises(CheckpointError, match="not a sequential response model of this version"):
        SequentialModel.load(path, data)
    header = {
        "format": "kuaisim-sequential-model-1",
        "config": "{}",
        "behaviours": json.dumps(["a"]),
        "losses": "[]",
    }
    save_file({"x": torch.zeros(1)}, path, header)
    with pytest.raises(CheckpointError, match="damaged"):
        SequentialModel.load(path, data)
    path.write_bytes(whole)
    fewer = dataset_of(tastes.past, tastes.n_items, tastes.n_users + 1)
    with pytest.raises(CheckpointError, match="301, 60 and"):
        SequentialModel.load(path, fewer)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"heads": 3}, "heads must divide the state's width 128, got 3"),
        ({"window": 0}, "window must be at least 1, got 0"),
        ({"epochs": 2.5}, "epochs must be an integer, got 2.5"),
        ({"dropout": 1.0}, r"dropout must lie in \[0, 1\), got 1.0"),
        ({"learning_rate": -1.0}, "learning_rate must be positive"),
        ({"decay": 0.0}, r"decay must lie in \(0, 1\]"),
    ],
)
def test_meaningless_options_are_refused(options, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SequentialConfig(**options)


def test_fits_without_sense_are_refused(tastes: Tastes) -> None:
    with pytest.raises(ConfigError, match="needs rows to learn from"):
        fit(tastes.past.take(slice(0, 0)), 300, 60)
    with pytest.raises(ConfigError, match="seed must be at least 0, got -1"):
        fit(tastes.past, 300, 60, seed=-1)
