from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from dsrm_agents.dsrm import targets
from dsrm_agents.dsrm.targets import Histories, TargetConfig, build_pairs, cross_fitted_embeddings
from kuaisim_gym.data import Dataset, WatchLog
from kuaisim_gym.envs.assembly import preference_encoder
from kuaisim_gym.errors import ConfigError


def pairs_of(dataset: Dataset, seed: int = 0, **options):
    return build_pairs(dataset.training, preference_encoder(dataset), TargetConfig(**options), seed)


def explained(states: np.ndarray, label: np.ndarray) -> float:
    design = np.column_stack([states, np.ones(len(states))])
    residual = label - design @ np.linalg.lstsq(design, label, rcond=None)[0]
    return float(1 - residual.var() / label.var())


@pytest.mark.parametrize("source", targets.SOURCES)
def test_pairs_have_the_promised_form(small_rand, source: str) -> None:
    pairs = pairs_of(small_rand, source=source, views=3)
    n = len(pairs.user)
    assert len(small_rand.train_users) < n <= 3 * len(small_rand.train_users)
    for name in ("observed", "target"):
        array = getattr(pairs, name)
        assert array.shape == (n, preference_encoder(small_rand).dim)
        assert array.dtype == np.float32
        assert np.isfinite(array).all()
    assert pairs.weight.mean() == pytest.approx(1, abs=1e-5)
    assert (pairs.weight > 0).all()
    assert pairs.user.max() < len(small_rand.train_users)
    assert np.isfinite(pairs.popularity).all()


def test_the_default_source_is_unbiased_where_there_is_one(small, small_rand) -> None:
    for dataset, source in ((small, "history"), (small_rand, "unbiased")):
        np.testing.assert_array_equal(
            pairs_of(dataset).target, pairs_of(dataset, source=source).target
        )
    with pytest.raises(ConfigError, match="with_unbiased_users"):
        pairs_of(small, source="unbiased")


def test_literal_pairs_are_the_identity(small) -> None:
    pairs = pairs_of(small, source="identity")
    np.testing.assert_array_equal(pairs.observed, pairs.target)
    plain = preference_encoder(small)
    users = small.train_users
    np.testing.assert_allclose(
        pairs.observed[: len(users)],
        plain.encode(plain.history_sum[users], plain.history_weight[users]),
        atol=1e-4,
    )


def test_unbiased_targets_by_hand(small_rand) -> None:
    """One user's target, row by row: answers by their excess over item and user."""
    encoder, rows = preference_encoder(small_rand), small_rand.randomised
    pairs = pairs_of(small_rand, source="unbiased", views=1)
    users = small_rand.train_users
    mine = np.isin(rows.users, users)
    items, answers, who = rows.items[mine], rows.response[mine].astype(float), rows.users[mine]

    def smoothed(values: np.ndarray) -> float:
        return (values.sum() + 5 * answers.mean()) / (len(values) + 5)

    user = users[pairs.user[7]]
    expected = np.zeros(encoder.dim)
    for item, answer in zip(items[who == user], answers[who == user], strict=True):
        excess = answer - smoothed(answers[items == item]) - smoothed(answers[who == user])
        expected += (excess + answers.mean()) * encoder.embedding[item]
    expected /= ((who == user).sum() + 20) * encoder.scale
    np.testing.assert_allclose(pairs.target[7], expected, atol=1e-4)
    assert pairs.weight[7] / pairs.weight[8] == pytest.approx(
        (who == user).sum() / (who == users[pairs.user[8]]).sum()
    )


def test_condition_and_target_of_a_history_share_no_row(small, monkeypatch) -> None:
    parts = []
    original = Histories.states

    def spy(self, weight, embeddings=()):
        parts.append(np.asarray(weight) > 0)
        return original(self, weight, embeddings)

    monkeypatch.setattr(Histories, "states", spy)
    pairs_of(small, source="history", views=2)
    for target, condition in (parts[:2], parts[2:]):
        assert not (target & condition).any()
        assert (target | condition).sum() == (small.train_log.response > 0).sum()
        assert 0.05 < target.mean() < 0.5


def test_what_is_wanted_is_learned_from_histories_and_chance_is_not(world) -> None:
    """A linear fit on pairs brings held-out users' states nearer to their true preference."""
    encoder = preference_encoder(world)
    pairs = pairs_of(world, source="history", views=4)
    truth = centred(world.truth.expected(world.test_users[:, None], np.arange(world.n_items)))
    truth = truth @ encoder.embedding[: world.n_items] / encoder.scale
    users = world.test_users
    raw = encoder.encode(encoder.history_sum[users], encoder.history_weight[users])
    slope = np.linalg.lstsq(
        pairs.observed - pairs.observed.mean(axis=0),
        pairs.target - pairs.target.mean(axis=0),
        rcond=None,
    )[0]
    assert cosine((raw - raw.mean(axis=0)) @ slope, truth) > cosine(raw, truth) + 0.15


def centred(answers: np.ndarray) -> np.ndarray:
    return answers - answers.mean(axis=0) - (answers - answers.mean(axis=0)).mean(1, keepdims=True)


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a - a.mean(axis=0), b - b.mean(axis=0)
    return float(np.mean((a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)))


def test_an_embedding_is_fitted_without_its_fold(small) -> None:
    histories = Histories(small.training, preference_encoder(small))
    changed = Histories(small.training, preference_encoder(small))
    mine = changed.rows % targets.FOLDS == 0
    items = changed.items.copy()
    items[mine] = np.random.default_rng(0).permutation(items[mine])
    changed.items = items
    one, two = cross_fitted_embeddings(histories), cross_fitted_embeddings(changed)
    np.testing.assert_array_equal(one[0], two[0])
    assert np.abs(one[1] - two[1]).max() > 1e-3
    assert one[0].shape == histories.encoder.embedding.shape


def test_inverse_propensities_lift_the_niche(small) -> None:
    histories = Histories(small.training, preference_encoder(small))
    exposures = histories.exposures[histories.items]
    weight = histories.inverse_propensity(1.0)
    np.testing.assert_allclose(weight, np.minimum(np.median(exposures) / exposures, 10.0))
    np.testing.assert_array_equal(histories.inverse_propensity(0.0), 1.0)
    plain, lifted = (pairs_of(small, source="clean", propensity_power=p, views=1) for p in (0, 1))
    popularity = plain.popularity[:, 0]
    assert explained(lifted.target, popularity) < explained(plain.target, popularity)
    np.testing.assert_array_equal(plain.observed, lifted.observed)


def test_erased_targets_say_nothing_of_popularity(small) -> None:
    plain = pairs_of(small, source="clean")
    erased = pairs_of(small, source="clean", erased=1)
    assert explained(plain.target, plain.popularity[:, 0]) > 0.3
    assert explained(erased.target, erased.popularity[:, 0]) < 0.05
    thrice = pairs_of(small, source="clean", erased=3)
    for label in thrice.popularity.T:
        assert explained(thrice.target, label) < 0.05


def test_corruption_is_structured(small) -> None:
    plain = pairs_of(small, source="clean", views=6)
    pulled = pairs_of(small, source="clean", views=6, popularity_pull=1.0)
    hits = pairs_of(small, source="clean", views=6, inserted=0.5)
    flipped = pairs_of(small, source="clean", views=6, flipped=0.3)
    later = slice(len(small.train_users), None)  # the first view is thinned by nothing
    assert pulled.popularity[later, 0].mean() > plain.popularity[later, 0].mean() + 0.1
    # Drawn as the platform draws, for everybody alike: histories become more like each other.
    assert hits.popularity[later, 0].std() < 0.9 * plain.popularity[later, 0].std()
    for other in (hits, flipped):
        assert np.abs(other.observed - plain.observed).mean() > 0.05
        np.testing.assert_array_equal(
            other.target[: len(small.train_users)], plain.target[: len(small.train_users)]
        )


def test_who_answered_nothing_has_no_pair(small, with_watch_ratios) -> None:
    user = small.train_users[3]
    watch = small.log.watch_ratio.copy()
    watch[small.log.users == user] = 0.0
    silent = with_watch_ratios(small, log=watch, test=small.test.watch_ratio)
    for source in ("history", "clean", "identity"):
        assert 3 not in pairs_of(silent, source=source).user


def test_pairs_depend_on_the_seed_alone(small) -> None:
    one, two, other = (pairs_of(small, seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one.observed, two.observed)
    np.testing.assert_array_equal(one.target, two.target)
    assert len(one.user) != len(other.user) or np.any(one.observed != other.observed)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"source": "histroy"}, "Did you mean 'history'"),
        ({"views": 0}, "views"),
        ({"erased": -1}, "erased"),
        ({"erased": 4}, "erased must be at most 3"),
        ({"views": 2.5}, "views must be an integer"),
        ({"source": "identity", "propensity_power": 0.5}, "no effect"),
        ({"propensity_power": -0.5}, "propensity_power"),
        ({"inserted": float("nan")}, "inserted"),
        ({"flipped": 1.5}, "flipped"),
    ],
)
def test_impossible_recipes_are_refused(wrong, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TargetConfig(**wrong)


def test_a_log_without_pairs_is_refused(small, with_watch_ratios) -> None:
    nothing = with_watch_ratios(small, log=small.log.watch_ratio * 0, test=small.test.watch_ratio)
    with pytest.raises(ConfigError, match="too small"):
        build_pairs(nothing.training, preference_encoder(small))


def test_test_users_can_be_given_up_for_unbiased_rows(small) -> None:
    given = small.with_unbiased_users(30, seed=1)
    assert len(given.test_users) == len(small.test_users) - 30
    moved = np.setdiff1d(small.test_users, given.test_users)
    assert np.isin(moved, given.train_users).all()
    assert isinstance(given.randomised, WatchLog)
    assert set(given.randomised.users) == set(moved)
    assert len(given.randomised) + len(given.test) == len(small.test)
    assert not np.isin(given.training.randomised.users, given.test_users).any()
    assert given.fingerprint != small.fingerprint
    pairs = pairs_of(given, views=1)
    assert set(given.train_users[pairs.user]) == set(moved)
    for wrong in (0, len(small.test_users), 2.5):
        with pytest.raises(ConfigError, match="n_users"):
            small.with_unbiased_users(wrong)
    with pytest.raises(ConfigError, match="seed"):
        small.with_unbiased_users(5, seed=-1)


def test_no_user_is_given_up_where_all_are_test_users(real) -> None:
    with pytest.raises(ConfigError, match="split by cell"):
        real.with_unbiased_users(20)


def test_unbiased_rows_of_nobody_known_are_refused(small_rand) -> None:
    data = small_rand.training
    strangers = data.randomised.take(~np.isin(data.randomised.users, data.train_users[:50]))
    alone = dataclasses.replace(data, train_users=data.train_users[:50], randomised=strangers)
    with pytest.raises(ConfigError, match="train user's"):
        build_pairs(alone, preference_encoder(small_rand), TargetConfig("unbiased"))


def test_unbiased_rows_are_added_to_those_there(small_rand) -> None:
    given = small_rand.with_unbiased_users(20)
    assert len(given.randomised) > len(small_rand.randomised)
    assert (np.diff(given.randomised.users) >= 0).all()
    assert len(given.randomised) + len(given.test) == (
        len(small_rand.randomised) + len(small_rand.test)
    )
