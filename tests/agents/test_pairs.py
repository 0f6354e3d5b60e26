"""Training pairs of purifiers: what sessions show, and the belief given the same evidence."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from dsrm_agents.dsrm import pairs as module
from dsrm_agents.dsrm.pairs import Examples, TargetConfig, log_parts, play_sessions, true_preference
from kuaisim_gym.data import WatchLog
from kuaisim_gym.envs.assembly import SessionBatch
from kuaisim_gym.envs.options import preference_encoder
from kuaisim_gym.errors import ConfigError
from kuaisim_gym.observation import PARTS, WEIGHT_SCALE
from kuaisim_gym.simulator.build import load_preferences

QUICK = TargetConfig(sessions=32)


@pytest.fixture(scope="module")
def examples(small) -> Examples:
    return Examples(small, QUICK, seed=1)


def rows_of(parts: np.ndarray) -> np.ndarray:
    """(n, 4) weights and rows: log liked, log shown, session liked, session shown."""
    return np.expm1(WEIGHT_SCALE * parts[:, -len(PARTS) :])


def test_pairs_have_the_promised_form(small, examples) -> None:
    evidence, dim = examples.evidence, preference_encoder(small).dim
    n = len(evidence.users)
    assert evidence.parts.shape == (n, 4 * dim + 4)
    assert evidence.mean.shape == (n, dim)
    assert evidence.covariance.shape == (n, dim, dim)
    for name in ("parts", "mean", "covariance"):
        array = getattr(evidence, name)
        assert array.dtype == np.float32
        assert np.isfinite(array).all()
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0
    assert np.isin(evidence.users, small.train_users).all()
    assert examples.observed("parts") is evidence.parts
    assert examples.observed("pooled").shape == (n, dim)


def test_every_length_of_a_session_is_there_and_some_logs_are_hidden(small, examples) -> None:
    log_rows, session_rows = rows_of(examples.evidence.parts)[:, [1, 3]].T
    logs = len(small.train_users)
    assert (session_rows[:logs] == 0).all()
    assert (log_rows[:logs] > 0).all()
    steps = session_rows[logs:]
    assert (steps < 1).mean() > 0.05
    assert steps.max() > 150
    hidden = log_rows[logs:] == 0
    assert 0.1 < hidden.mean() < 0.3
    dim = examples.encoder.dim
    assert (examples.evidence.parts[logs:][hidden, : 2 * dim] == 0).all()


def test_a_target_is_the_belief_given_what_is_observed(small, examples) -> None:
    """At the start of a session it is known: of the log, or of the features alone."""
    evidence, model = examples.evidence, load_preferences(small)
    log_rows, session_rows = rows_of(evidence.parts)[:, [1, 3]].T
    for hidden, mean in ((False, model.mean), (True, model.population_mean)):
        rows = (session_rows < 0.5) & ((log_rows < 0.5) == hidden)
        assert rows.sum() > 3
        np.testing.assert_allclose(evidence.mean[rows], mean[evidence.users[rows]], atol=1e-5)
    variance = np.einsum("nii->ni", evidence.covariance)
    sure = rows_of(evidence.parts)[:, 3] > 100
    assert variance[sure, 1:].mean() < variance[~sure & (log_rows > 0.5), 1:].mean()


def test_a_condition_is_what_the_environment_shows(small, examples) -> None:
    batch = SessionBatch(
        64, "kuairec", dataset=small, preference="parts", action_type="slate", max_len=6
    )
    batch.seed(range(64))
    batch.reset()
    shown = batch.observe()[:, batch.encoder.preference_slice]
    users = batch.core.state.users
    of_user = dict(zip(users, shown, strict=True))
    logs = len(small.train_users)
    evidence = examples.evidence
    for user, parts in zip(evidence.users[:logs], evidence.parts[:logs], strict=True):
        if user in of_user:
            np.testing.assert_allclose(parts, of_user[user], atol=1e-5)


def test_log_parts_by_hand(small) -> None:
    encoder, log = preference_encoder(small), small.log
    users = small.test_users[[2, 5]]
    found = log_parts(encoder, log, users)
    dim = encoder.dim
    for row, user in enumerate(users):
        items, response = log.items[log.users == user], log.response[log.users == user]
        liked = response @ encoder.embedding[items] / response.sum()
        shown = encoder.embedding[items].mean(axis=0)
        for place, mean in enumerate((liked, shown)):
            expected = (mean - encoder.mean) / encoder.scale
            np.testing.assert_allclose(
                found[row, place * dim : (place + 1) * dim], expected, atol=1e-3
            )
        np.testing.assert_allclose(
            rows_of(found)[row], [response.sum(), len(items), 0, 0], rtol=1e-4
        )
    none = log_parts(encoder, log.take(log.users != users[0]), users)
    assert (none[0] == 0).all()
    np.testing.assert_array_equal(none[1], found[1])


def test_draws_scatter_about_the_mean_as_the_belief_says(small, examples) -> None:
    drawn = Examples(small, dataclasses.replace(QUICK, source="draw"), seed=1)
    assert drawn.evidence is examples.evidence  # played once
    np.testing.assert_array_equal(examples.targets("parts"), examples.evidence.mean)
    away = drawn.targets("parts") - examples.evidence.mean
    inverse = np.linalg.inv(examples.evidence.covariance.astype(float))
    size = np.einsum("ni,nij,nj->n", away, inverse, away)
    assert size.mean() == pytest.approx(away.shape[1], rel=0.1)
    again = Examples(small, drawn.config, seed=1).targets("parts")
    np.testing.assert_array_equal(drawn.targets("parts"), again)


def test_literal_targets_are_the_conditions(small) -> None:
    literal = Examples(small, dataclasses.replace(QUICK, source="identity"), seed=1)
    np.testing.assert_array_equal(literal.targets("pooled"), literal.observed("pooled"))
    with pytest.raises(ConfigError, match="reads=\"pooled\", got 'parts'"):
        literal.targets("parts")


def test_a_linear_map_of_the_parts_comes_near_to_the_belief_and_of_the_pooled_state_not(
    world,
) -> None:
    examples = Examples(world, TargetConfig(sessions=256))
    evidence = examples.evidence
    fitted = np.isin(evidence.users, world.train_users[::2])

    def error(reads: str) -> float:
        design = np.column_stack([examples.observed(reads), np.ones(len(fitted))])
        slope = np.linalg.lstsq(design[fitted], evidence.mean[fitted], rcond=None)[0]
        rest = (evidence.mean - design @ slope)[~fitted]
        return float(rest[:, 1:4].var() / evidence.mean[~fitted, 1:4].var())

    assert error("parts") < 0.2
    assert error("parts") < 0.7 * error("pooled")


def test_pairs_depend_on_the_seed_alone(small) -> None:
    play_sessions.cache_clear()
    one = play_sessions(small, 8, 1)
    play_sessions.cache_clear()
    two, other = play_sessions(small, 8, 1), play_sessions(small, 8, 2)
    for field in dataclasses.fields(module.Evidence):
        np.testing.assert_array_equal(getattr(one, field.name), getattr(two, field.name))
    assert len(one.users) != len(other.users) or (one.parts != other.parts).any()


def test_popularity_of_a_pair_is_that_of_the_users_log(small, examples) -> None:
    log, user = small.log, examples.evidence.users[0]
    counts = np.bincount(small.train_log.items, minlength=len(small.item_ids))
    expected = np.log1p(counts[log.items[log.users == user]]).mean()
    assert examples.popularity[0, 0] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"source": "beleif"}, "Did you mean 'belief'"),
        ({"sessions": 0}, "sessions"),
        ({"sessions": 2.5}, "sessions must be an integer"),
    ],
)
def test_impossible_recipes_are_refused(wrong, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TargetConfig(**wrong)


# True preferences


def test_true_preference_tells_the_answers_excess_best(small) -> None:
    """By least squares over the catalogue, answers counting as scores by the link's mean slope."""
    users, reference = np.array([0, 33, 399]), small.train_users[:50]
    found = true_preference(small, users, reference)
    model, items = load_preferences(small), np.arange(small.n_items)
    vectors = model.vectors[items] - model.vectors[items].mean(axis=0)
    item_mean = small.truth.expected(reference[:, None], items[None, :]).mean(axis=0)
    slopes = np.interp(model.quality[items], np.linspace(-8, 8, len(model.link)), model.link[:, 1])
    for row, user in enumerate(users):
        excess = small.truth.expected(np.array([[user]]), items[None, :])[0] - item_mean
        taste = np.linalg.lstsq(vectors, excess, rcond=None)[0]
        expected = np.r_[excess.mean(), taste] / slopes.mean()
        np.testing.assert_allclose(found[row], expected, rtol=1e-3, atol=1e-3)


def test_true_preference_does_not_depend_on_who_else_is_asked(small) -> None:
    reference = small.train_users
    everyone = true_preference(small, np.arange(small.n_users), reference)
    some = true_preference(small, np.array([300, 2]), reference)
    np.testing.assert_allclose(some, everyone[[300, 2]], atol=1e-4)
    np.testing.assert_allclose(everyone[reference].mean(axis=0), 0, atol=1e-3)


def test_beliefs_are_about_the_true_preference(world) -> None:
    users = world.train_users[:800]
    truth, belief = true_preference(world, users, users), load_preferences(world).mean[users]
    for column in range(4):
        assert np.corrcoef(truth[:, column], belief[:, column])[0, 1] > 0.75


def test_nobody_knows_the_true_preference_of_real_users(small) -> None:
    real = dataclasses.replace(small, truth=None)
    with pytest.raises(ConfigError, match="synthetic worlds only"):
        true_preference(real, np.arange(3), np.arange(3))


# Users that are given up for unbiased rows


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
    for wrong in (0, len(small.test_users), 2.5):
        with pytest.raises(ConfigError, match="n_users"):
            small.with_unbiased_users(wrong)
    with pytest.raises(ConfigError, match="seed"):
        small.with_unbiased_users(5, seed=-1)


def test_no_user_is_given_up_where_all_are_test_users(real) -> None:
    with pytest.raises(ConfigError, match="split by cell"):
        real.with_unbiased_users(20)


def test_unbiased_rows_are_added_to_those_there(small_rand) -> None:
    given = small_rand.with_unbiased_users(20)
    assert len(given.randomised) > len(small_rand.randomised)
    assert (np.diff(given.randomised.users) >= 0).all()
    assert len(given.randomised) + len(given.test) == (
        len(small_rand.randomised) + len(small_rand.test)
    )
