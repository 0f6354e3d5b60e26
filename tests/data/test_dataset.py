from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest

from kuaisim_gym.data import BehaviourLog, Dataset, Features, Interactions, WatchLog
from kuaisim_gym.errors import DataFormatError


def table(users, items, watch) -> Interactions:
    return WatchLog(
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
            {"log": WatchLog(np.array([0.0]), np.array([0], np.int32), np.ones(1, np.float32))},
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


def test_the_catalogue_alone() -> None:
    features = Features(
        {"tag": np.array([[1], [0], [2]], np.int32)}, {"tag": ("", "a", "b")}, {"d": np.arange(3.0)}
    )
    whole = dataset(
        log=table([0, 0, 1], [2, 1, 0], [0.5, 0.6, 3.0]),
        item_features=features,
        show_counts=np.array([5, 0, 9]),
    )
    one = whole.catalogue_only()
    assert one.item_ids.tolist() == [10, 11]
    assert (one.log.users.tolist(), one.log.items.tolist()) == ([0, 1], [1, 0])
    assert one.item_features.codes["tag"].tolist() == [[1], [0]]
    assert one.item_features.numbers["d"].tolist() == [0, 1]
    assert one.show_counts.tolist() == [5, 0]
    assert one.fingerprint != whole.fingerprint


def flags(users, items, values) -> BehaviourLog:
    return BehaviourLog(
        np.array(users, np.int32), np.array(items, np.int32), np.array(values, np.uint8)
    )


def test_behaviours_are_bits() -> None:
    log = flags([0, 0, 1], [0, 1, 0], [0b0000001, 0b1000010, 0])
    assert log.response.tolist() == [1, 0, 0]
    assert log.behaviour(1).tolist() == [0, 1, 0]
    assert log.behaviour(6).tolist() == [0, 1, 0]
    with pytest.raises(IndexError, match="0 to 6, got 7"):
        log.behaviour(7)
    with pytest.raises(DataFormatError, match="seven bits"):
        dataset(name="kuairand", log=flags([0], [0], [128]), test=flags([1], [1], [0]))


def test_clicks_of_one_cell_may_repeat_and_answers_may_not() -> None:
    again = dataset(name="kuairand", log=flags([0], [0], [1]), test=flags([1, 1], [1, 1], [1, 0]))
    assert len(again.test) == 2


def test_distinct_users_of_grouped_rows() -> None:
    assert flags([0, 0, 3, 4, 4], [0] * 5, [0] * 5).distinct_users.tolist() == [0, 3, 4]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"log": table([1, 0], [0, 0], [1, 1])}, "grouped by user"),
        ({"show_counts": np.array([1, 2])}, "3 counts"),
        ({"show_counts": np.array([1, 2, -1])}, "at least 0"),
        ({"friends": np.array([[0, 5]], np.int32)}, "pairs of user positions"),
        ({"user_features": Features({"a": np.zeros((2, 1), np.int32)}, {})}, "codes and values"),
        (
            {"user_features": Features({"a": np.zeros((3, 1), np.int32)}, {"a": ("",)})},
            r"\(2, width\) integers",
        ),
        (
            {"user_features": Features({"a": np.ones((2, 1), np.int32)}, {"a": ("",)})},
            r"lie in \[0, 1\)",
        ),
        ({"item_features": Features(numbers={"d": np.zeros(2)})}, r"shape \(3,\)"),
    ],
)
def test_bad_side_tables_are_refused(changes, message) -> None:
    with pytest.raises(DataFormatError, match=message):
        dataset(**changes)


def test_expected_responses_of_pairs_and_of_all_pairs_agree(world) -> None:
    users, items = np.array([[5], [70], [900]]), np.array([[0, 17, 3000, 3326]])
    every = world.truth.expected(users, items)
    pairs = world.truth.expected(np.repeat(users, 4, 1).ravel(), np.tile(items, (3, 1)).ravel())
    assert every.shape == (3, 4)
    np.testing.assert_allclose(every.ravel(), pairs, rtol=1e-5)
