"""The catalogue: units of the embedding, what scorers weigh, and logs that tell hardly anything."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from kuaisim_gym import SessionBatch
from kuaisim_gym.data import Dataset, LabelLog, PositiveLog, WatchLog
from kuaisim_gym.simulator import load_catalogue
from kuaisim_gym.simulator.build import load_preferences
from kuaisim_gym.simulator.catalogue import Catalogue, build_catalogue
from kuaisim_gym.simulator.factors import PREFERENCE_ARRAYS, fit_preference_model


@pytest.mark.parametrize("name", ["small", "small_rand", "small_positive"])
def test_the_embedding_is_the_factor_model_s_in_spreads_of_quality(name: str, request) -> None:
    dataset = request.getfixturevalue(name)
    catalogue, model = load_catalogue(dataset), load_preferences(dataset)
    n = dataset.n_items
    unit = model.quality[:n].std()
    np.testing.assert_allclose(catalogue.item_embedding.mean(axis=0), 0.0, atol=1e-5)
    assert catalogue.item_embedding[:, 0].std() == pytest.approx(1.0, abs=1e-5)
    # <embedding, (1, taste)> ranks as the model's scores do, one unit of it being `unit` of them.
    taste = model.mean[dataset.train_users[:20], 1:]
    scores = model.quality[:n] + taste @ model.vectors[:n].T
    shown = np.column_stack([np.ones(20), taste]) @ catalogue.item_embedding.T.astype(float)
    scores -= scores.mean(axis=1, keepdims=True)
    np.testing.assert_allclose(shown * unit, scores, atol=1e-4 * np.abs(scores).max())


def test_scorers_weigh_standardised_columns() -> None:
    embedding = np.array([[1, 7, 0.1], [3, 7, 0.3], [5, 7, -0.1], [9, 0, 5]], np.float32)
    catalogue = Catalogue(embedding, np.array([0, 9, 99]))  # the last item is in the log alone
    assert catalogue.item_embedding.shape == (3, 3)
    root = np.sqrt(1.5)
    np.testing.assert_allclose(catalogue.known[:, 0], [-root, 0.0, root], rtol=1e-6)
    np.testing.assert_array_equal(catalogue.known[:, 1], 0.0)  # constant over the catalogue
    np.testing.assert_allclose(catalogue.known[:, 2], [0, root, -root], atol=1e-6)
    np.testing.assert_allclose(catalogue.known[:, 3], [-root, 0.0, root], rtol=1e-6)
    np.testing.assert_array_equal(catalogue.known[:, :3], catalogue.standardised)


@pytest.mark.parametrize("name", ["small", "small_rand"])
def test_the_columns_of_a_scorer_have_unit_spread(name: str, request) -> None:
    dataset = request.getfixturevalue(name)
    batch = SessionBatch(1, dataset.name, dataset=dataset, action_type="scorer")
    known = batch.catalogue.known
    np.testing.assert_allclose(known.std(axis=0), 1.0, atol=1e-4)
    assert batch.action_space.shape == (known.shape[1],)
    batch.seed([0])
    batch.reset()
    action = np.random.default_rng(0).uniform(-1, 1, (1, known.shape[1])).astype(np.float32)
    slate = batch.actions.slates(action)[0]
    scores = known @ action[0]
    assert scores[slate].min() >= np.delete(scores, slate).max() - 1e-5


N_USERS, N_ITEMS = 40, 6


def tiny(kind: str, pairs: list[tuple[int, int]], answers: Any, **options: Any) -> Dataset:
    """A dataset of few rows and no features; its test user is the last one."""
    users, items = (np.array(column, np.int32) for column in zip(*pairs, strict=True))
    answers = np.broadcast_to(np.asarray(answers, np.float32), users.shape)
    test_users, test_items = np.full(2, N_USERS - 1, np.int32), np.arange(2, dtype=np.int32)
    if kind == "watched":
        log = WatchLog(users, items, answers)
        test = WatchLog(test_users, test_items, np.array([0.5, 1.0], np.float32))
    else:
        labels = LabelLog(users, items, answers.astype(np.uint8))
        log = labels if kind == "labelled" else PositiveLog(users, items)
        test = LabelLog(test_users, test_items, np.array([0, 1], np.uint8))
    return Dataset(
        name="tiny",
        synthetic=True,
        user_ids=np.arange(N_USERS),
        item_ids=np.arange(N_ITEMS + 2),
        n_items=N_ITEMS,
        log=log,
        test=test,
        **options,
    )


SOME = [(user, item) for user in range(N_USERS - 1) for item in range(6) if (user + item) % 3]
ALTERNATING = np.arange(len(SOME)) % 2
FEW_LOGS: dict[str, tuple[list[tuple[int, int]], Any]] = {
    "one row": ([(5, 0)], 1),
    "one user": ([(5, item) for item in range(4)], [1, 0, 1, 0]),
    "one item": ([(user, 2) for user in range(30)], np.arange(30) % 2),
    "all ones": (SOME, 1),
    "all zeros": (SOME, 0),
    "nothing in the catalogue": ([(0, 6), (1, 6), (2, 7)], [1, 0, 0]),
    "the test user alone": ([(N_USERS - 1, 0), (N_USERS - 1, 3)], [1, 0]),
    "no taste": (SOME, ALTERNATING),
}


@pytest.mark.parametrize("kind", ["watched", "labelled", "positive"])
@pytest.mark.parametrize("case", FEW_LOGS)
@pytest.mark.filterwarnings("error")
def test_logs_that_tell_hardly_anything_make_a_catalogue(kind: str, case: str) -> None:
    data = tiny(kind, *FEW_LOGS[case]).training
    model = fit_preference_model(data)
    for name in PREFERENCE_ARRAYS:
        assert np.isfinite(getattr(model, name)).all(), name
    assert np.linalg.eigvalsh(model.covariance).min() > 0
    catalogue = build_catalogue(data, model)
    assert catalogue.embedding.shape[1] >= 2
    assert np.isfinite(catalogue.embedding).all()
    spread = catalogue.known.std(axis=0)
    assert ((np.abs(spread - 1) < 1e-3) | (spread < 1e-6)).all()


@pytest.mark.parametrize("kind", ["labelled", "positive"])
@pytest.mark.parametrize("user", [4, 5, N_USERS - 1])  # one of the held-out users is the fifth
@pytest.mark.filterwarnings("error")
def test_one_randomised_row_is_enough(kind: str, user: int) -> None:
    row = LabelLog(np.array([user], np.int32), np.zeros(1, np.int32), np.ones(1, np.uint8))
    data = tiny(kind, SOME, ALTERNATING, randomised=row).training
    catalogue = build_catalogue(data, fit_preference_model(data))
    assert np.isfinite(catalogue.embedding).all()
