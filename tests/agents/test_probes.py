from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
import pytest

from dsrm_agents.dsrm import measures
from dsrm_agents.dsrm.measures import (
    cosine,
    discriminability,
    effective_rank,
    interest_accuracy,
    leakage_floor,
    popularity_leakage,
    recall_at_k,
    response_r2,
)
from dsrm_agents.dsrm.pairs import log_parts
from dsrm_agents.dsrm.probes import ProbeData, history_popularity, probe, probe_data
from kuaisim_gym.envs.options import preference_encoder
from kuaisim_gym.errors import ConfigError

NEED_TRUTH = {"interest_accuracy", "cosine", "recall20", "recall20_longtail"}
ALWAYS = {
    "leakage_r2",
    "leakage_mlp",
    "leakage_mlp_floor",
    "leakage_floor",
    "effective_rank",
    "discriminability",
    "cosine_to_raw",
    "response_r2",
    "n_users",
}


def identity(states: np.ndarray) -> np.ndarray:
    return states


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(7)


@pytest.fixture(scope="module", autouse=True)
def one_shuffle() -> Iterator[None]:
    """Floors of one shuffle, because networks take most of the time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measures, "SHUFFLES", 1)
        yield


@pytest.fixture(scope="module")
def data(small) -> ProbeData:
    return probe_data(small, seed=1)


@pytest.fixture(scope="module")
def unchanged(data: ProbeData, one_shuffle) -> dict[str, float]:
    """What the small world's raw states are."""
    return probe(identity, data)


# Leakage


def test_the_label_counts_items_by_the_train_users_rows_alone(small) -> None:
    label = history_popularity(small)
    log, train = small.log, set(small.train_users.tolist())
    counts = np.zeros(len(small.item_ids))
    for user, item in zip(log.users.tolist(), log.items.tolist(), strict=True):
        counts[item] += user in train
    for user in (0, 50, small.n_users - 1):  # test users and a train user
        items = log.items[log.users == user]
        np.testing.assert_allclose(label[user], np.mean(np.log(1 + counts[items])))


def test_a_user_without_rows_has_no_label(small) -> None:
    without = dataclasses.replace(small, log=small.log.take(small.log.users != 3))
    label = history_popularity(without)
    assert np.flatnonzero(np.isnan(label)).tolist() == [3]


def test_leakage_of_a_label_that_is_there_and_of_one_that_is_not(rng) -> None:
    states = rng.standard_normal((400, 8)).astype(np.float32)
    there = states @ rng.standard_normal(8) + 5
    assert popularity_leakage(states, there) > 0.99
    assert popularity_leakage(states, there, "mlp") > 0.95
    noise = rng.standard_normal(400)
    assert popularity_leakage(states, noise) < 0.02
    assert popularity_leakage(states, noise, "mlp") < 0.02


def test_the_network_finds_what_ridge_misses(rng) -> None:
    states = rng.standard_normal((800, 4))
    label = states[:, 0] ** 2
    assert popularity_leakage(states, label) < 0.05
    assert popularity_leakage(states, label, "mlp") > 0.7


def test_leakage_is_that_of_any_unit_and_leaves_out_users_without_label(rng) -> None:
    states = rng.standard_normal((200, 3))
    label = states[:, 0] + rng.standard_normal(200)
    found = popularity_leakage(states, label)
    rescaled = states * [1e-3, 1.0, 1e3] + [0.0, 10.0, -5.0]
    assert popularity_leakage(rescaled, 100 * label - 7) == pytest.approx(found, abs=1e-6)
    gaps = np.concatenate([label, [np.nan, np.nan]])
    more = np.concatenate([states, 99 * np.ones((2, 3))])
    assert popularity_leakage(more, gaps) == found
    assert leakage_floor(more, gaps) == leakage_floor(states, label)


def test_the_floor_is_near_zero_whatever_the_states_hold(rng, monkeypatch) -> None:
    monkeypatch.setattr(measures, "SHUFFLES", 5)
    states = rng.standard_normal((400, 8))
    assert leakage_floor(states, states[:, 0]) == pytest.approx(0.0, abs=0.03)


@pytest.mark.parametrize("kind", ["ridge", "mlp"])
def test_one_state_for_all_leaks_nothing(kind: str, rng) -> None:
    states = np.full((100, 4), 0.3, dtype=np.float32)
    assert popularity_leakage(states, rng.standard_normal(100), kind) <= 0.01


def test_what_a_leakage_probe_refuses(rng) -> None:
    states, label = rng.standard_normal((4, 2)), np.arange(4.0)
    with pytest.raises(ConfigError, match="probe must be one of"):
        popularity_leakage(states, label, "forest")
    with pytest.raises(ConfigError, match="at least 5 users, got 4"):
        popularity_leakage(states, label)


# Taste


def test_interest_is_read_where_it_is_and_not_where_it_is_not(rng) -> None:
    interest = rng.integers(0, 4, 300)
    states = np.eye(4)[interest] + 0.2 * rng.standard_normal((300, 4))
    assert interest_accuracy(states, interest) > 0.95
    assert interest_accuracy(rng.standard_normal((300, 4)), interest) < 0.4


def test_categories_of_one_user_or_of_all(rng) -> None:
    interest = np.zeros(50, dtype=np.int32)
    states = rng.standard_normal((50, 3))
    assert interest_accuracy(states, interest) == 1.0
    interest[7] = 5
    assert interest_accuracy(states, interest) == 0.98


def test_cosine_ignores_origin_and_length_unless_told(rng) -> None:
    states = rng.standard_normal((60, 5))
    assert cosine(states, 3 * states + 7) == pytest.approx(1.0)
    assert cosine(states, -states) == pytest.approx(-1.0)
    assert abs(cosine(states, rng.standard_normal((60, 5)))) < 0.2
    assert cosine(states, states + 100, np.zeros(5), np.zeros(5)) < 0.5
    assert cosine(states, states + 100, np.zeros(5), np.full(5, 100.0)) == pytest.approx(1.0)
    assert cosine(states, np.ones((60, 5))) == 0.0


def test_recall_of_the_truth_is_one_and_of_its_opposite_zero(rng) -> None:
    states, items = rng.standard_normal((300, 6)), rng.standard_normal((90, 6))
    states -= states.mean(axis=0)
    relevance = states @ items.T
    assert recall_at_k(states, items, relevance) == 1.0
    assert recall_at_k(states + 9, items, relevance, centre=np.full(6, 9.0)) == 1.0
    assert recall_at_k(-states, items, relevance) == 0.0
    noise = recall_at_k(rng.standard_normal((300, 6)), items, relevance, k=9)
    assert 0.05 < noise < 0.2  # some items are long and score high for many
    assert recall_at_k(states, items, relevance, k=90) == 1.0
    with pytest.raises(ConfigError, match="k must be 1 to 90"):
        recall_at_k(states, items, relevance, k=91)


def test_recall_among_some_items_is_that_of_a_catalogue_of_them(rng) -> None:
    states, items = rng.standard_normal((40, 6)), rng.standard_normal((90, 6))
    relevance = states @ items.T + rng.standard_normal((40, 90))
    some = np.arange(1, 90, 2)
    found = recall_at_k(states, items, relevance, 5, items=some)
    assert found == recall_at_k(states, items[some], relevance[:, some], 5)
    centred = states - states.mean(axis=0)
    by_hand = [
        len(set(np.argsort(-(items[some] @ s))[:5]) & set(np.argsort(-r[some])[:5])) / 5
        for s, r in zip(centred, relevance, strict=True)
    ]
    assert found == pytest.approx(np.mean(by_hand))


# Collapse and identity


def test_effective_rank_counts_directions(rng) -> None:
    line = np.outer(rng.standard_normal(500), rng.standard_normal(8)) + 4
    assert effective_rank(line) == pytest.approx(1.0, abs=1e-6)
    balanced = np.concatenate([np.eye(8), -np.eye(8)])
    assert effective_rank(balanced) == pytest.approx(8.0)
    assert effective_rank(5 * balanced + 3) == pytest.approx(8.0)
    assert effective_rank(rng.standard_normal((5000, 8))) == pytest.approx(8.0, abs=0.05)
    assert effective_rank(np.full((10, 8), 0.3, dtype=np.float32)) == 0.0


def test_users_are_recognised_by_what_both_halves_share(rng) -> None:
    first = rng.standard_normal((400, 16))
    assert discriminability(first, first) == 1.0
    noise = discriminability(first, rng.standard_normal((400, 16)))
    assert noise == pytest.approx(1 / 400, abs=0.01)
    shared = discriminability(first, first + rng.standard_normal((400, 16)))
    assert 0.1 < shared < 0.9
    same = np.full((400, 16), 0.3, dtype=np.float32)
    assert discriminability(same, same) == pytest.approx(1 / 400)


# Held-out answers


def planted(rng, strength: float) -> tuple[np.ndarray, ...]:
    """Answers that rise with <state, item>, states, and what response_r2 needs besides."""
    states, embedding = rng.standard_normal((100, 4)), rng.standard_normal((50, 4))
    users, items = np.repeat(np.arange(100), 30), rng.integers(0, 50, 3000)
    item_mean = rng.random(50)
    excess = strength * np.sum(states[users] * embedding[items], axis=1)
    responses = item_mean[items] + excess + 0.1 * rng.standard_normal(3000)
    return states, users, items, responses, item_mean, embedding


def test_states_that_tell_who_answers_better_and_states_that_do_not(rng) -> None:
    states, *rest = planted(rng, 0.1)
    found = response_r2(states, *rest)
    assert 0.7 < found < 0.9  # signal 4, noise 1
    assert response_r2(states + 50, *rest, centre=np.full(4, 50.0)) == pytest.approx(
        response_r2(states, *rest, centre=np.zeros(4)), abs=1e-4
    )
    assert response_r2(rng.standard_normal((100, 4)), *rest) <= 0.01
    assert response_r2(np.ones((100, 4)), *rest) <= 0.0


def test_answers_without_interaction_are_told_by_no_state(rng) -> None:
    states, *rest = planted(rng, 0.0)
    assert response_r2(states, *rest) <= 0.0


def test_folds_of_answers_hold_whole_users(rng) -> None:
    """A state that is the user's name predicts nothing of users it has not seen."""
    states, users = np.eye(40), np.repeat(np.arange(40), 20)
    responses = rng.standard_normal(40)[users]
    zeros, ones = np.zeros(800, dtype=int), np.ones((1, 40))
    assert response_r2(states, users, zeros, responses, np.zeros(1), ones) <= 0.05
    with pytest.raises(ConfigError, match="at least 5 users"):
        response_r2(states, users[:80], zeros[:80], responses[:80], np.zeros(1), ones)


# All together


def test_a_history_lies_between_its_halves(data: ProbeData) -> None:
    one, two = data.halves["pooled"]
    states = data.states["pooled"]
    assert one.shape == two.shape == states.shape
    apart = one - two
    share = np.sum((states - two) * apart, axis=1) / np.sum(apart**2, axis=1)
    assert (np.abs(share - 0.5) < 0.3).all()  # of the responses: the rows are halved
    np.testing.assert_allclose(two + share[:, None] * apart, states, atol=1e-3)
    whole, rows = (
        np.expm1(5 * data.states["parts"][:, -3]),
        np.expm1(5 * data.halves["parts"][..., -3]),
    )
    np.testing.assert_allclose(rows.sum(axis=0), whole, rtol=1e-4)
    assert (np.abs(rows[0] - rows[1]) < 1.01).all()


def test_a_user_of_one_row_has_no_halves(small) -> None:
    log, user = small.log, small.test_users[4]
    first = np.flatnonzero(log.users == user)[log.response[log.users == user].argmax()]
    one_row = (log.users != user) | (np.arange(len(log)) == first)
    data = probe_data(dataclasses.replace(small, log=log.take(one_row)))
    assert user in data.users
    assert data.halves["parts"].shape[1] == len(data.users) - 1


def test_probed_users_are_test_users_and_the_reference_is_train_users(small, data) -> None:
    np.testing.assert_array_equal(data.users, small.test_users)
    encoder = preference_encoder(small)
    raw = encoder.encode(encoder.history_sum, encoder.history_weight)
    np.testing.assert_allclose(data.states["pooled"], raw[data.users], atol=1e-4)
    np.testing.assert_allclose(data.reference["pooled"], raw[small.train_users], atol=1e-4)
    parts = log_parts(encoder, small.log, data.users)
    np.testing.assert_array_equal(data.states["parts"], parts)
    assert data.answers is not None
    asked = data.users[data.answers.users[100]], data.answers.items[100]
    cell = (small.test.users == asked[0]) & (small.test.items == asked[1])
    assert small.test.response[cell] == data.answers.responses[100]
    with pytest.raises(ValueError, match="read-only"):
        data.states["parts"][0] = 0


def test_the_same_seed_measures_the_same(small, data: ProbeData, unchanged) -> None:
    again = probe_data(small, seed=1)
    assert probe(identity, again) == unchanged
    other = probe_data(small, seed=2)
    assert not np.array_equal(other.halves["parts"], data.halves["parts"])


def test_identity_on_a_small_world(unchanged) -> None:
    found = unchanged
    assert found.keys() == ALWAYS | NEED_TRUTH
    assert all(type(value) is float and np.isfinite(value) for value in found.values())
    assert found["cosine_to_raw"] == pytest.approx(1.0)
    assert found["n_users"] == 80


def test_a_purifier_that_knows_the_truth_beats_one_that_knows_nothing(
    data: ProbeData, unchanged
) -> None:
    reference = data.reference["pooled"]
    truth = {len(data.users): data.causes.preference, len(reference): 0 * reference}

    def oracle(states: np.ndarray) -> np.ndarray:
        return truth.get(len(states), states)

    nothing = {reads: halves[:, :0] for reads, halves in data.halves.items()}
    halfless = dataclasses.replace(data, halves=nothing)  # of which it knows nothing
    known, gone = (probe(f, halfless) for f in (oracle, np.zeros_like))
    raw = unchanged
    assert "discriminability" not in known
    assert known["cosine"] == pytest.approx(1.0)
    assert gone["cosine"] == gone["effective_rank"] == 0.0
    for name in ("cosine", "recall20", "interest_accuracy", "response_r2"):
        assert known[name] > raw[name] > gone[name], name
    assert abs(gone["leakage_r2"]) < 0.1 < raw["leakage_r2"]


def test_without_truth_its_measurements_are_absent(small, unchanged) -> None:
    real = probe(identity, probe_data(dataclasses.replace(small, truth=None), seed=1))
    assert real.keys() == ALWAYS
    assert real == {name: unchanged[name] for name in ALWAYS}


def test_test_answers_reach_the_prediction_of_answers_alone(small, with_watch_ratios, rng) -> None:
    watch = rng.random(len(small.test), dtype=np.float32) * 2
    other = with_watch_ratios(small, test=watch)
    one, two = (
        probe(identity, probe_data(dataclasses.replace(world, truth=None)))
        for world in (small, other)
    )
    assert one.pop("response_r2") > two.pop("response_r2") + 0.01
    assert one == two


def test_users_may_be_chosen(small) -> None:
    users = small.train_users[[30, 5, 9, 2, 77, 5]]
    data = probe_data(small, users=users)
    np.testing.assert_array_equal(data.users, np.unique(users))
    assert "response_r2" not in probe(identity, data)  # train users have no test rows
    with pytest.raises(ConfigError, match="at least 5 users"):
        probe_data(small, users=users[:4])
    without = dataclasses.replace(small, log=small.log.take(small.log.users != users[0]))
    with pytest.raises(ConfigError, match="response in the log"):
        probe_data(without, users=users)


def test_yes_or_no_answers_are_probed_as_well(small_rand) -> None:
    data = probe_data(small_rand)
    assert probe(identity, data).keys() == ALWAYS | NEED_TRUTH
    assert (np.abs(data.states["pooled"]).sum(axis=1) > 0).all()


def test_a_purifier_may_write_into_its_input_and_must_return_states(data: ProbeData) -> None:
    before = data.states["pooled"].copy()

    def in_place(states: np.ndarray) -> np.ndarray:
        states *= 2
        return states

    assert probe(in_place, data)["cosine_to_raw"] == pytest.approx(1.0)
    np.testing.assert_array_equal(data.states["pooled"], before)
    with pytest.raises(ConfigError, match="numbers of shape"):
        probe(lambda states: states[:, 1:], data)
    with pytest.raises(ConfigError, match="finite preferences, got"):
        probe(lambda states: states * np.float32(np.nan), data)


def test_a_purifier_of_the_parts_is_given_the_parts(data: ProbeData, small) -> None:
    pooled = preference_encoder(small).pooled
    same, raw = probe(pooled, data, "parts"), probe(identity, data)
    assert same == {name: pytest.approx(value, abs=1e-3) for name, value in raw.items()}


def test_raw_states_of_the_full_world_are_popular_and_mostly_true(world) -> None:
    data = probe_data(world)
    found = probe(identity, data)
    assert found["leakage_r2"] > 0.08
    assert found["leakage_mlp"] > 0.08
    assert abs(found["leakage_floor"]) < 0.02
    assert 0.8 < found["cosine"] < 0.95
    assert found["response_r2"] > 0.02
    assert data.answers is not None
    assert len(data.answers.users) == 200_000
    assert data.causes is not None
    assert popularity_leakage(data.causes.preference, data.popularity) < 0.15
