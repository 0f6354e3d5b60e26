from __future__ import annotations

import numpy as np
import pytest

from kuaisim_gym.envs.assembly import SessionBatch, preference_encoder
from kuaisim_gym.observation import CONTEXT, PREFERENCE_BOUND


@pytest.fixture
def batch(small) -> SessionBatch:
    one = SessionBatch(4, dataset=small, action_type="slate", observation_type="dict", slate_size=4)
    one.core.seed(np.arange(4, dtype=np.uint64))
    one.reset()
    return one


def test_the_first_state_is_the_logged_history(batch, small) -> None:
    user = int(batch.core.users[2])
    encoder = preference_encoder(small)
    rows = small.log.users == user
    weights = small.log.response[rows]
    mean = weights @ encoder.embedding[small.log.items[rows]] / weights.sum()
    expected = np.clip((mean - encoder.mean) / encoder.scale, -PREFERENCE_BOUND, PREFERENCE_BOUND)
    np.testing.assert_allclose(batch.observe()["state"][2, :32], expected, atol=1e-4)
    np.testing.assert_array_equal(batch.observe()["state"][2, 32:], [0, 0.5, 0, 0])


def test_the_state_follows_the_session(batch, small) -> None:
    slates = np.arange(16).reshape(4, 4)
    result = batch.step(slates)
    state = batch.observe()["state"]
    encoder, user = preference_encoder(small), batch.core.users
    total = encoder.history_sum[user] + np.einsum(
        "nk,nkd->nd", result.responses, encoder.embedding[slates]
    )
    weight = encoder.history_weight[user] + result.responses.sum(axis=1)
    np.testing.assert_allclose(state[:, :32], encoder.encode(total, weight), atol=1e-4)
    context = dict(zip(CONTEXT, state[:, 32:].T, strict=True))
    np.testing.assert_allclose(context["progress"], 1 / 30)
    np.testing.assert_allclose(context["last_reward"], result.reward)
    np.testing.assert_allclose(context["mean_reward"], result.reward)
    np.testing.assert_allclose(
        context["popular_share"], batch.catalogue.popular[slates].mean(axis=1)
    )
    exposed = batch.observe()["exposed"]
    np.testing.assert_array_equal(exposed[:, :4], slates)
    assert (exposed[:, 4:] == -1).all()


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
    nothing = encoder.encode(np.zeros((2, 32), np.float32), np.zeros(2, np.float32))
    np.testing.assert_array_equal(nothing, 0)
