from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from kuaisim_gym.envs.assembly import SessionBatch
from kuaisim_gym.envs.options import preference_encoder
from kuaisim_gym.envs.tasks import RetentionBatch
from kuaisim_gym.errors import ConfigError
from kuaisim_gym.observation import CONTEXT, PREFERENCE_BOUND


@pytest.fixture
def batch(small) -> SessionBatch:
    one = SessionBatch(4, dataset=small, action_type="slate", observation_type="dict", slate_size=4)
    one.core.seed(np.arange(4, dtype=np.uint64))
    one.reset()
    return one


def test_the_first_state_is_the_logged_history(batch, small) -> None:
    user = int(batch.core.state.users[2])
    encoder = preference_encoder(small)
    rows = small.log.users == user
    weights = small.log.response[rows]
    mean = weights @ encoder.embedding[small.log.items[rows]] / weights.sum()
    expected = np.clip((mean - encoder.mean) / encoder.scale, -PREFERENCE_BOUND, PREFERENCE_BOUND)
    state, d = batch.observe()["state"][2], encoder.dim
    np.testing.assert_allclose(state[:d], expected, atol=1e-4)
    np.testing.assert_array_equal(state[d:], [0, 0.5, 0, 0])


def test_the_state_follows_the_session(batch, small) -> None:
    slates = np.arange(16).reshape(4, 4)
    result = batch.step(slates)
    state = batch.observe()["state"]
    encoder, user = preference_encoder(small), batch.core.state.users
    total = encoder.history_sum[user] + np.einsum(
        "nk,nkd->nd", result.responses, encoder.embedding[slates]
    )
    weight = encoder.history_weight[user] + result.responses.sum(axis=1)
    d = encoder.dim
    np.testing.assert_allclose(state[:, :d], encoder.encode(total, weight), atol=1e-4)
    context = dict(zip(CONTEXT, state[:, d:].T, strict=True))
    np.testing.assert_allclose(context["progress"], 1 / 30)
    np.testing.assert_allclose(context["last_reward"], result.reward)
    np.testing.assert_allclose(context["mean_reward"], result.reward)
    np.testing.assert_allclose(
        context["popular_share"], batch.catalogue.popular[slates].mean(axis=1)
    )


def test_what_was_shown_stands_beside_how_it_was_answered(batch) -> None:
    # Slate after slate, -1 and 0 where there was none yet.
    room = batch.config.longest * 4
    rng = np.random.default_rng(0)
    shown, answers = np.full((4, room), -1), np.zeros((4, room), dtype=np.float32)
    for step in range(3):
        place = slice(4 * step, 4 * step + 4)
        shown[:, place] = rng.permutation(batch.catalogue.n_items)[:16].reshape(4, 4)
        answers[:, place] = batch.step(shown[:, place]).responses
        seen = batch.observe()
        np.testing.assert_array_equal(seen["exposed"], shown)
        np.testing.assert_array_equal(seen["responses"], answers)
        assert (seen["exposed"].dtype, seen["responses"].dtype) == (np.int32, np.float32)
    assert 0 < answers.mean(axis=1).min()
    gone = np.arange(4) == 2
    batch.reset(gone)
    seen = batch.observe()
    assert (seen["exposed"][2] == -1).all()
    assert (seen["responses"][2] == 0).all()
    for name, expected in (("exposed", shown), ("responses", answers)):
        np.testing.assert_array_equal(seen[name][~gone], expected[~gone])


def test_observations_are_of_their_space_and_not_shared(batch) -> None:
    space = batch.observation_space
    before = batch.observe()
    kept = {name: part.copy() for name, part in before.items()}
    batch.step(np.arange(16).reshape(4, 4))
    for name, part in before.items():
        np.testing.assert_array_equal(part, kept[name])
    assert space.contains({name: part[0] for name, part in batch.observe().items()})


def test_train_users_are_standardised(world) -> None:
    encoder = preference_encoder(world)
    train = world.train_users
    states = encoder.encode(encoder.history_sum[train], encoder.history_weight[train])
    np.testing.assert_allclose(states.mean(axis=0), 0, atol=0.05)
    np.testing.assert_allclose(states.std(axis=0), 1, atol=0.05)


def test_no_history_is_the_origin(small) -> None:
    encoder = preference_encoder(small)
    nothing = encoder.encode(np.zeros((2, encoder.dim), np.float32), np.zeros(2, np.float32))
    np.testing.assert_array_equal(nothing, 0)


def of_kind(dataset, preference: str, n: int = 6, **options) -> SessionBatch:
    """Begun sessions of slates of four, which know what they show of the preference."""
    options = {"action_type": "slate", "slate_size": 4} | options
    batch = SessionBatch(n, dataset.name, dataset=dataset, preference=preference, **options)
    batch.seed(np.arange(n))
    batch.reset()
    return batch


def by_hand(encoder, items: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """(d,) the standardised weighted mean of some rows' embeddings."""
    if weights.sum() == 0:
        return np.zeros(encoder.dim)
    mean = weights @ encoder.embedding[items].astype(float) / weights.sum()
    return (mean - encoder.mean) / encoder.scale


@pytest.mark.parametrize("source", ["small", "small_rand", "small_positive"])
def test_parts_are_means_of_what_was_liked_and_shown_in_log_and_session(source, request) -> None:
    dataset = request.getfixturevalue(source)
    batch = of_kind(dataset, "parts")
    encoder, log, rng = preference_encoder(dataset), dataset.log, np.random.default_rng(0)
    events: list[tuple[list, list]] = [([], []) for _ in range(6)]
    for step in range(5):
        seen = batch.observe()[:, batch.encoder.preference_slice]
        assert seen.shape == (6, 4 * encoder.dim + 4)
        for slot, user in enumerate(batch.core.state.users):
            rows, (items, responses) = log.users == user, events[slot]
            session = np.array(items, dtype=int), np.array(responses)
            logged = log.items[rows], log.response[rows]
            expected, weights = [], []
            for shown, answers in (logged, session):
                for weight in (answers, np.ones(len(shown))):
                    expected.append(by_hand(encoder, shown, weight))
                    weights.append(np.log1p(weight.sum()) / 5)
            np.testing.assert_allclose(seen[slot], np.r_[*expected, weights], atol=1e-4)
        if step == 2:  # a session without a past among the others
            batch.reset(np.arange(6) == 3)
            events[3] = ([], [])
        slates = rng.integers(0, 12, (6, 4))  # of few items: many come again, unanswered
        result = batch.step(slates)
        for slot, fresh in enumerate(result.answered):
            events[slot][0].extend(slates[slot][fresh])
            events[slot][1].extend(result.responses[slot][fresh])
        if step == 2:
            assert not result.answered.all()
    if source == "small_positive":
        d = encoder.dim
        np.testing.assert_array_equal(seen[:, :d], seen[:, d : 2 * d])
        np.testing.assert_array_equal(seen[:, 4 * d], seen[:, 4 * d + 1])


@pytest.mark.parametrize("source", ["small", "small_rand", "small_positive"])
@pytest.mark.parametrize("kind", ["state", "dict"])
def test_the_pooled_state_comes_back_from_its_parts(source: str, kind: str, request) -> None:
    dataset = request.getfixturevalue(source)
    encoder, rng = preference_encoder(dataset), np.random.default_rng(0)
    pooled, apart = (
        of_kind(dataset, name, 40, observation_type=kind) for name in ("pooled", "parts")
    )
    for step in range(8):
        one, two = (
            batch.observe()["state"] if kind == "dict" else batch.observe()
            for batch in (pooled, apart)
        )
        back = encoder.pooled(two[:, apart.encoder.preference_slice])
        assert back.dtype == np.float32
        np.testing.assert_allclose(back, one[:, pooled.encoder.preference_slice], atol=1e-5)
        np.testing.assert_array_equal(
            two[:, apart.encoder.context_slice], one[:, pooled.encoder.context_slice]
        )
        if kind == "state":
            assert all(row in apart.observation_space for row in two)
        slates = rng.integers(0, 60, (40, 4))
        for batch in (pooled, apart):
            batch.step(slates)
        if step == 4:
            for batch in (pooled, apart):
                batch.reset(np.arange(40) % 3 == 0)


def test_a_user_without_any_history_has_no_parts(small) -> None:
    user = small.test_users[:1]
    log = small.log.take(small.log.users != user)
    dataset = dataclasses.replace(small, log=log, show_counts=None, truth=None)
    batch = of_kind(dataset, "parts", split="test", users=user)
    seen = batch.observe()[:, batch.encoder.preference_slice]
    np.testing.assert_array_equal(seen, 0)
    np.testing.assert_array_equal(preference_encoder(dataset).pooled(seen), 0)


def test_columns_that_are_no_parts_are_refused(small) -> None:
    encoder, batch = preference_encoder(small), of_kind(small, "parts")
    with pytest.raises(ConfigError, match=f"must have {4 * encoder.dim + 4} columns, got"):
        encoder.pooled(batch.observe())
    for kind in ("history", "belief"):
        with pytest.raises(ConfigError, match='use observation_type="state" or "dict"'):
            SessionBatch(2, dataset=small, preference="parts", observation_type=kind)


def with_history(dataset, history_len: int | None = None, **options) -> SessionBatch:
    batch = SessionBatch(
        40,
        dataset.name,
        dataset=dataset,
        observation_type="history",
        history_len=history_len,
        action_type="slate",
        slate_size=3,
        **options,
    )
    batch.seed(np.arange(40))
    batch.reset()
    return batch


def logged(dataset, user: int, length: int) -> tuple[list[int], np.ndarray]:
    """The last logged events of a user, row by row; padded in front."""
    rows = np.flatnonzero(dataset.log.users == user)[-length:]
    n_behaviours = len(dataset.behaviours)
    items = [-1] * (length - len(rows)) + dataset.log.items[rows].tolist()
    answers = np.zeros((length, n_behaviours), dtype=np.float32)
    for place, row in enumerate(rows, start=length - len(rows)):
        answers[place] = [dataset.log.behaviour(b)[row] for b in range(n_behaviours)]
    return items, answers


@pytest.mark.parametrize("source", ["small", "small_rand"])
@pytest.mark.parametrize("length", [1, 2, 7, 50])
def test_a_history_is_the_log_and_then_the_session(source: str, length: int, request) -> None:
    dataset = request.getfixturevalue(source)
    batch = with_history(dataset, length)
    expected = [logged(dataset, user, length) for user in batch.core.state.users.tolist()]
    if length == 50:
        assert any(items[0] == -1 for items, _ in expected)  # some users logged less
    events = [(list(items), list(answers)) for items, answers in expected]
    rng = np.random.default_rng(0)
    for _ in range(4):
        seen = batch.observe()
        assert seen["items"].dtype == np.int32
        assert seen["responses"].shape == (40, length * len(dataset.behaviours))
        for slot, (items, answers) in enumerate(events):
            assert seen["items"][slot].tolist() == items[-length:]
            np.testing.assert_array_equal(seen["responses"][slot], np.ravel(answers[-length:]))
            one = {name: part[slot] for name, part in seen.items()}
            assert batch.observation_space.contains(one)
        slates = rng.permutation(dataset.n_items)[:120].reshape(40, 3)
        result = batch.step(slates)
        for slot, (items, answers) in enumerate(events):
            items += slates[slot].tolist()
            answers += list(result.feedback[slot])
    batch.reset(np.arange(40) == 4)
    items, answers = logged(dataset, int(batch.core.state.users[4]), length)
    assert batch.observe()["items"][4].tolist() == items
    np.testing.assert_array_equal(batch.observe()["responses"][4], np.ravel(answers))


def test_a_history_comes_with_the_context_of_a_state(small) -> None:
    history = with_history(small, 5)
    state = SessionBatch(40, dataset=small, action_type="slate", slate_size=3)
    state.seed(np.arange(40))
    state.reset()
    for step in range(3):
        seen = history.observe()["context"]
        np.testing.assert_array_equal(seen, state.observe()[:, state.encoder.context_slice])
        assert history.observation_space["context"].shape == (len(CONTEXT),)
        for batch in (history, state):
            batch.step(np.arange(120).reshape(40, 3) + step)


def test_a_history_holds_fifty_events_by_default_and_no_preference(small) -> None:
    batch = with_history(small)
    assert batch.observe()["items"].shape == (40, 50)
    with pytest.raises(ConfigError, match='no preference state; use "state" or "dict"'):
        _ = batch.encoder.preference_slice


@pytest.mark.parametrize("length", [0, -3, 2.0, True, "5"])
def test_impossible_history_lengths_are_refused(small, length) -> None:
    with pytest.raises(ConfigError, match="history_len must be an integer of at least 1"):
        with_history(small, length)


@pytest.mark.parametrize("kind", ["state", "dict"])
def test_a_history_length_needs_a_history(small, kind: str) -> None:
    with pytest.raises(ConfigError, match='for observation_type="history" alone'):
        SessionBatch(2, dataset=small, observation_type=kind, history_len=5)


def test_histories_are_not_shared(small) -> None:
    batch = with_history(small, 5)
    before = batch.observe()
    kept = {name: part.copy() for name, part in before.items()}
    batch.step(np.arange(120).reshape(40, 3))
    for name, part in before.items():
        np.testing.assert_array_equal(part, kept[name])
        part[:] = 0
    assert batch.observe()["items"].any()


def test_further_context_stands_behind(small_rand) -> None:
    batch = RetentionBatch(3, dataset=small_rand, max_len=2, n_visits=4)
    batch.seed(np.arange(3))
    batch.reset()
    assert batch.encoder.context == (*CONTEXT, "visit", "days_away")
    d = batch.encoder.encoder.dim
    assert batch.observation_space.shape == (d + 6,)
    assert batch.encoder.preference_slice == slice(0, d)
    assert batch.encoder.context_slice == slice(d, d + 6)
    assert (batch.observe()[:, d + 4 :] == 0).all()
    batch.encoder.set_context(np.arange(3), days_away=0.5, visit=np.full(3, 0.25))
    np.testing.assert_array_equal(batch.observe()[:, d + 4 :], [[0.25, 0.5]] * 3)
    np.testing.assert_array_equal(batch.observe()[:, d : d + 4], [[0, 0.5, 0, 0]] * 3)
    batch.encoder.set_context(np.array([1]), visit=0.75)
    np.testing.assert_array_equal(batch.observe()[:, d + 4], [0.25, 0.75, 0.25])
    with pytest.raises(ConfigError, match="A context column must be one of .* 'visit'"):
        batch.encoder.set_context(np.arange(3), progress=1.0)
