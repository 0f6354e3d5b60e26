"""The factor model of preferences: what it recovers, how sure it is, and what it never reads."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from scipy.special import expit, ndtr

from kuaisim_gym.data import Dataset, Features, LabelLog, PositiveLog, WatchLog
from kuaisim_gym.data.synthetic import (
    KuaiRandConfig,
    SyntheticConfig,
    synthetic_kuairand,
    synthetic_kuairec,
)
from kuaisim_gym.simulator import factors
from kuaisim_gym.simulator.build import load_preferences
from kuaisim_gym.simulator.evidence import Shares
from kuaisim_gym.simulator.factors import (
    LINK_BOUND,
    PREFERENCE_ARRAYS,
    PreferenceModel,
    fit_preference_model,
)
from kuaisim_gym.simulator.positives import place_losses
from kuaisim_gym.simulator.sweeps import Beliefs, Fit


@pytest.fixture(scope="module")
def watched() -> Dataset:
    """A world of watched shares with enough users to learn tastes from."""
    config = SyntheticConfig(
        n_users=1500, n_test_users=300, n_items=400, events_per_user=80, n_categories=8,
        personal=0.4, quality=0.55,
    )  # fmt: skip
    return synthetic_kuairec(5, config)


@pytest.fixture(scope="module")
def clicked() -> Dataset:
    """A world of clicks, with randomised rows."""
    config = KuaiRandConfig(n_users=2000, n_items=400, n_categories=8)
    return synthetic_kuairand(5, config)


@pytest.fixture(scope="module")
def liked(clicked: Dataset) -> Dataset:
    """The clicks alone, without what was refused."""
    log, test = clicked.log.take(clicked.log.is_positive), clicked.test
    return dataclasses.replace(
        clicked,
        log=PositiveLog(log.users, log.items),
        test=LabelLog(test.users, test.items, test.response.astype(np.uint8)),
        randomised=None,
    )


@pytest.fixture(scope="module")
def of_watched(watched: Dataset) -> PreferenceModel:
    return fit_preference_model(watched.training)


@pytest.fixture(scope="module")
def of_clicked(clicked: Dataset) -> PreferenceModel:
    return fit_preference_model(clicked.training)


def latent(dataset: Dataset, users: np.ndarray) -> np.ndarray:
    """True scores of some users and all catalogue items."""
    truth = dataset.truth
    assert truth is not None
    taste = truth.preference[users] @ truth.item_vectors.T
    return truth.user_level[users, None] + truth.item_level + truth.scale * taste


def believed(model: PreferenceModel, users: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Means and variances of the scores of some users and items."""
    design = np.column_stack([np.ones(n), model.vectors[:n]])
    mean = model.quality[:n] + model.mean[users] @ design.T
    spread = np.einsum("nd,ude,ne->un", design, model.covariance[users], design)
    return mean, spread + model.variance[:n]


def test_the_belief_knows_tastes_and_how_well(
    watched: Dataset, of_watched: PreferenceModel
) -> None:
    model, users, n = of_watched, watched.test_users, watched.n_items
    mean, variance = believed(model, users, n)
    truth = latent(watched, users)
    # Normal scores of the log are the latent scores on another scale: one slope, one constant.
    slope, constant = np.polyfit(truth.ravel(), mean.ravel(), 1)
    truth = constant + slope * truth
    assert np.corrcoef(mean.ravel(), truth.ravel())[0, 1] > 0.9
    personal, true = mean - mean.mean(axis=0), truth - truth.mean(axis=0)
    assert np.corrcoef(personal.ravel(), true.ravel())[0, 1] > 0.7
    z = (truth - mean) / np.sqrt(variance)
    assert 0.7 < z.std() < 1.5
    assert abs(z.mean()) < 0.3


def test_a_longer_log_makes_the_belief_surer(watched: Dataset, of_watched: PreferenceModel) -> None:
    model = of_watched
    rows = np.bincount(watched.log.users, minlength=watched.n_users)
    order = np.argsort(rows)
    certain = np.einsum("nii->n", model.covariance)
    assert certain[order[-100:]].mean() < certain[order[:100]].mean()
    assert certain.max() < np.trace(model.population_covariance) + 1e-6


@pytest.mark.parametrize("name", ["watched", "clicked", "liked"])
def test_users_without_log_have_the_prior(name: str, request) -> None:
    dataset: Dataset = request.getfixturevalue(name)
    strangers = np.r_[dataset.test_users[:3], dataset.train_users[:3]]
    masked = dataset.log.take(~np.isin(dataset.log.users, strangers))
    model = load_preferences(dataclasses.replace(dataset, log=masked))
    expected = model.population_covariance
    np.testing.assert_allclose(model.mean[strangers], model.population_mean[strangers], atol=1e-9)
    for covariance in model.covariance[strangers]:
        np.testing.assert_allclose(covariance, expected, rtol=1e-6, atol=1e-9)
    others = np.setdiff1d(masked.distinct_users, strangers)
    assert (np.trace(model.covariance[others], axis1=1, axis2=2) < np.trace(expected)).all()


def test_a_test_user_s_log_affects_that_user_alone(
    watched: Dataset, of_watched: PreferenceModel
) -> None:
    user = int(watched.test_users[0])
    mine = watched.log.users == user
    ratio = np.where(mine, np.float32(0.01), watched.log.watch_ratio)
    changed = dataclasses.replace(
        watched, log=WatchLog(watched.log.users, watched.log.items, ratio)
    )
    one, two = of_watched, fit_preference_model(changed.training)
    others = np.arange(watched.n_users) != user
    np.testing.assert_array_equal(one.mean[others], two.mean[others])
    np.testing.assert_array_equal(one.vectors, two.vectors)
    assert two.mean[user, 0] < one.mean[user, 0] - 0.1


@pytest.mark.parametrize("name", ["watched", "clicked"])
def test_no_answer_of_the_test_source_is_read(name: str, request) -> None:
    dataset: Dataset = request.getfixturevalue(name)
    flipped = np.random.default_rng(0).permutation(len(dataset.test))
    columns = dict(dataset.test.columns)
    feedback = next(key for key in columns if key not in ("users", "items"))
    columns[feedback] = columns[feedback][flipped]
    other = dataclasses.replace(dataset, test=type(dataset.test)(**columns), truth=None)
    assert other.fingerprint != dataset.fingerprint
    one, two = load_preferences(dataset), load_preferences(other)
    for array in PREFERENCE_ARRAYS:
        np.testing.assert_array_equal(getattr(one, array), getattr(two, array))


def test_rotated_tastes_are_uncorrelated_of_unit_variance_and_tell_the_same(small) -> None:
    fit = Fit(small.training, small.train_users, 3)
    rng = np.random.default_rng(0)
    mean = rng.normal(size=(small.n_users, 5)) @ rng.normal(size=(5, 5))
    root = rng.normal(size=(small.n_users, 5, 5))
    fit._users = Beliefs(mean, root @ root.swapaxes(1, 2))
    fit.vectors = rng.normal(size=(small.n_items, 3)) @ np.diag([0.3, 2.0, -1.0])
    scores = fit._users.mean[:, 2:] @ fit.vectors.T
    variance = np.einsum(
        "id,ude,ie->ui", fit.vectors, fit._users.covariance[:, 2:, 2:], fit.vectors
    )
    fit.rotate()
    tastes, vectors = fit._users.mean[fit.learners, 2:], fit.vectors
    spread = np.cov(tastes.T, bias=True)
    spread += fit._users.covariance[fit.learners, 2:, 2:].mean(axis=0)
    np.testing.assert_allclose(spread, np.eye(3), atol=1e-6)
    told = vectors.T @ vectors  # by each taste, of the items
    np.testing.assert_allclose(told - np.diag(np.diag(told)), 0.0, atol=1e-6 * told.max())
    assert (np.diff(np.diag(told)) < 0).all()
    np.testing.assert_allclose(fit._users.mean[:, 2:] @ vectors.T, scores, atol=1e-6)
    again = np.einsum("id,ude,ie->ui", vectors, fit._users.covariance[:, 2:, 2:], vectors)
    np.testing.assert_allclose(again, variance, rtol=1e-6)


def test_the_fit_is_deterministic(clicked: Dataset, of_clicked: PreferenceModel) -> None:
    one, two = of_clicked, fit_preference_model(clicked.training)
    for array in PREFERENCE_ARRAYS:
        np.testing.assert_array_equal(getattr(one, array), getattr(two, array))


def test_tastes_of_a_shrinking_model_are_trusted_less(
    clicked: Dataset, of_clicked: PreferenceModel
) -> None:
    """A model of the random rows keeps a part of each taste: so much of it is expected."""
    plain, trusted = of_clicked, load_preferences(clicked)
    users = clicked.test_users
    assert trusted.mean[users, 1:].std() < 0.9 * plain.mean[users, 1:].std()


def test_sway_is_kept_apart_from_quality() -> None:
    """Randomised rows have no sway: items that the log over-states are not believed better."""
    swayed = synthetic_kuairand(
        5, KuaiRandConfig(n_users=2000, n_items=400, n_categories=8, conformity=0.8)
    )
    model, n = fit_preference_model(swayed.training), swayed.n_items
    level = np.log1p(np.bincount(swayed.train_log.items, minlength=n)[:n])
    users = swayed.test_users[:200]
    mean, _ = believed(model, users, n)
    error = mean.mean(axis=0) - latent(swayed, users).mean(axis=0)
    slope = np.polyfit((level - level.mean()) / level.std(), error, 1)[0]
    assert abs(slope) < 0.3  # of .8


def test_the_link_is_the_expected_answer(
    watched: Dataset, of_watched: PreferenceModel, of_clicked: PreferenceModel
) -> None:
    scores, model = np.linspace(-2, 2, 9), of_clicked
    np.testing.assert_allclose(model.expected(scores), expit(scores), atol=1e-4)
    grid = np.linspace(-LINK_BOUND, LINK_BOUND, len(model.link))
    slopes = np.gradient(model.link[:, 0], grid)
    np.testing.assert_allclose(model.link[:, 1], np.maximum(slopes, 1e-3), rtol=1e-6)
    expected = of_watched.expected(scores)
    assert (np.diff(expected) >= 0).all()
    response = watched.train_log.response
    assert expected[0] < response.mean() < expected[-1]


def test_a_censored_share_counts_as_all_above() -> None:
    """The derivatives of a censored row's likelihood, against differences."""
    rows = WatchLog(
        np.zeros(3, np.int32), np.arange(3, dtype=np.int32), np.array([0.2, 1.0, 3.0], np.float32)
    )
    scale = np.array([0.1, 0.2, 0.5, 1.0, 1.0], dtype=np.float32)
    table = Shares(rows, (1, 3), 0.0, scale)
    assert table.censored.tolist() == [1, 2]
    noise, score, step = 0.4, np.array([0.1, 0.3, -0.2]), 1e-2

    def likelihood(moved: np.ndarray) -> np.ndarray:
        exact = -((table.scores - moved) ** 2) / (2 * noise)
        above = np.log(1 - ndtr((float(table.ceiling) - moved) / noise**0.5))
        return np.where([True, False, False], exact, above)

    middle, up, down = (likelihood(score + move) for move in (0.0, step, -step))
    curve = table.curvature(score.astype(np.float32), noise)
    np.testing.assert_allclose(curve.residual, (up - down) / (2 * step), rtol=1e-3)
    np.testing.assert_allclose(curve.information, -(up - 2 * middle + down) / step**2, rtol=1e-2)


def test_positives_alone_tell_tastes_by_their_places(clicked: Dataset, liked: Dataset) -> None:
    model, users, n = fit_preference_model(liked.training), liked.test_users, liked.n_items
    mean, _ = believed(model, users, n)
    truth = latent(clicked, users)
    personal, true = mean - mean.mean(axis=0), truth - truth.mean(axis=0)
    logged = np.bincount(liked.log.users, minlength=liked.n_users)[users] >= 10
    assert np.corrcoef(personal[logged].ravel(), true[logged].ravel())[0, 1] > 0.4
    count = np.bincount(liked.train_log.items, minlength=n)[:n]
    assert np.corrcoef(model.quality[:n], np.log(count + 0.5))[0, 1] > 0.999


@pytest.mark.parametrize("name", ["liked", "like_world"])
def test_tastes_of_positives_foretell_hidden_ones(name: str, request) -> None:
    """Of held-out train users, better than the counts do, and about as strongly as is best."""
    data = request.getfixturevalue(name).training
    held_out = data.train_users[5::10]
    fit = Fit(data, np.setdiff1d(data.train_users, held_out), rank=8)
    for _ in range(factors.SWEEPS):
        fit.sweep()
    log = data.log.of_users(held_out, data.n_users)
    hidden = np.random.default_rng(0).random(len(log)) < 0.5
    users = fit.place(fit.evidence_of(log.take(~hidden)))
    count = fit.evidence.places.per_item
    taste, slopes = fit.pull * users.mean[:, 2:], (0.0, 0.25, 1.0, 2.0)
    losses = place_losses(taste, fit.vectors, count, log.take(hidden), slopes).mean(axis=1)
    assert losses[2] < losses[0] - 0.1
    assert losses[2] < min(losses[1], losses[3])
    np.testing.assert_allclose(fit.loss(log.take(hidden), users, []).mean(), losses[2])


def test_places_of_positives_are_trusted_so_far(liked: Dataset, monkeypatch) -> None:
    """The information of a log beyond the prior's is the trust times the log's."""
    information = {}
    for trust in (0.0, 0.1, 1.0):
        monkeypatch.setattr(factors, "PLACE_TRUST", trust)
        model = fit_preference_model(liked.training)
        taste, prior = model.covariance[:, 1:, 1:], model.population_covariance[1:, 1:]
        information[trust] = np.linalg.inv(taste) - np.linalg.inv(prior)
        if trust == 0.0:
            np.testing.assert_allclose(model.mean, model.population_mean, atol=1e-9)
    np.testing.assert_allclose(information[0.0], 0.0, atol=1e-6)
    np.testing.assert_allclose(information[0.1], 0.1 * information[1.0], rtol=1e-4, atol=1e-3)


def test_that_a_log_lies_outside_the_catalogue_tells_no_taste(liked: Dataset, monkeypatch) -> None:
    """It is compared with others' rows outside: one that lies as they do tells no taste."""
    monkeypatch.setattr(factors, "PLACE_TRUST", 1.0)
    half, user, log = liked.n_items // 2, int(liked.test_users[0]), liked.log
    first_taste = fit_preference_model(liked.training).vectors[:, 0]
    position = first_taste.argsort().argsort().astype(np.int32)  # catalogue: one side of a taste
    rest = log.take(log.users != user)
    items = position[rest.items]
    outside, last = items[items >= half], rest.users.searchsorted(user)
    catalogue = position[liked.test.items] < half
    test = liked.test.take(catalogue)
    dataset = dataclasses.replace(
        liked,
        n_items=half,
        log=PositiveLog(
            np.insert(rest.users, last, np.full(len(outside), user)),
            np.insert(items, last, outside),
        ),
        test=LabelLog(test.users, position[test.items], test.response.astype(np.uint8)),
        item_features=Features(),
    )
    model = fit_preference_model(dataset.training)
    away = np.abs(model.mean[:, 1:] - model.population_mean[:, 1:]).max(axis=1)
    assert away[user] < 0.5 * np.median(away[rest.distinct_users])
