from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest

from kuaisim_gym.data.dataset import Dataset, Interactions
from kuaisim_gym.errors import DataFormatError


def table(users, items, watch) -> Interactions:
    return Interactions(
        np.array(users, np.int32), np.array(items, np.int32), np.array(watch, np.float32)
    )


def dataset(**changes) -> Dataset:
    parts = {
        "name": "kuairec",
        "synthetic": False,
        "user_ids": np.array([3, 7]),
        "item_ids": np.array([10, 11, 12]),
        "n_items": 2,
        "log": table([0, 1], [2, 0], [0.5, 3.0]),
        "test": table([1], [1], [0.25]),
    }
    return Dataset(**(parts | changes))


def test_a_valid_one_is_frozen() -> None:
    one = dataset()
    assert one.train_log.users.tolist() == [0]
    np.testing.assert_allclose(one.log.response, [0.5, 1.0])
    with pytest.raises(ValueError, match="read-only"):
        one.log.watch_ratio[0] = 1
    with pytest.raises(AttributeError):
        one.n_items = 3
    with pytest.raises(TypeError):
        one.notes["x"] = 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"log": table([], [], [])}, "log table is empty"),
        ({"test": table([0], [2], [1])}, r"test.items must lie in \[0, 2\)"),
        ({"log": table([2], [0], [1])}, r"log.users must lie in \[0, 2\)"),
        ({"log": table([0], [0], [np.nan])}, "finite"),
        ({"log": table([0], [0], [-1])}, "not negative"),
        ({"log": table([0, 1], [0], [1])}, "equally long"),
        ({"test": table([1, 1], [1, 1], [1, 0])}, "more than once"),
        (
            {"log": Interactions(np.array([0.0]), np.array([0], np.int32), np.ones(1, np.float32))},
            "log.users must be integers",
        ),
        ({"item_ids": np.array([10, 10, 12])}, "distinct"),
        ({"n_items": 4}, "catalogue"),
    ],
)
def test_invalid_ones_are_refused(changes, message) -> None:
    with pytest.raises(DataFormatError, match=message):
        dataset(**changes)


def test_copies_are_itself_and_pickles_are_equal() -> None:
    one = dataset(notes={"duplicates": 3})
    assert copy.deepcopy(one) is one
    again = pickle.loads(pickle.dumps(one))
    assert again.fingerprint == one.fingerprint
    assert dict(again.notes) == {"duplicates": 3}


def test_the_fingerprint_follows_the_content() -> None:
    assert dataset().fingerprint == dataset().fingerprint
    assert dataset().fingerprint != dataset(test=table([1], [1], [0.26])).fingerprint
    assert dataset().fingerprint != dataset(user_ids=np.array([3, 8])).fingerprint
