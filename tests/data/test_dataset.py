from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest

from kuaisim_gym.data import (
    BehaviourLog,
    Dataset,
    Features,
    Interactions,
    LabelLog,
    PositiveLog,
    ResponseLog,
    WatchLog,
)
from kuaisim_gym.data.coding import Positions
from kuaisim_gym.data.dataset import pair_products
from kuaisim_gym.data.storage import from_arrays, to_arrays
from kuaisim_gym.errors import ConfigError, DataFormatError


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
        ({"test": table([0, 0, 0], [1, 0, 1], [1, 0, 1])}, "more than once"),
        (  # few cells of many
            {
                "test": table([0, 1, 1], [7, 98, 98], [1, 0, 1]),
                "item_ids": np.arange(99),
                "n_items": 99,
            },
            "more than once",
        ),
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


@pytest.mark.parametrize("n_items", [3, 99])
def test_an_item_may_have_answers_of_several_users(n_items: int) -> None:
    """In tables that hold most cells, and in those that hold few."""
    answers = table([0, 0, 1, 1], [2, 0, 0, 2], [1, 0, 1, 0])
    assert len(dataset(test=answers, item_ids=np.arange(n_items), n_items=n_items).test) == 4


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


def rows(feedback: type[Interactions], users, items, *columns) -> Interactions:
    return feedback(np.array(users, np.int32), np.array(items, np.int32), *columns)


def shares(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


def labels(*values: int) -> np.ndarray:
    return np.array(values, np.uint8)


def test_responses_of_tables_are_their_values_labels_or_one() -> None:
    log = rows(ResponseLog, [0, 1, 1], [0, 0, 1], shares(0.25, 0.5, 1))
    assert log.response.tolist() == [0.25, 0.5, 1]
    assert log.is_positive.tolist() == [False, True, True]
    assert rows(LabelLog, [0, 0], [0, 1], labels(1, 0)).response.tolist() == [1, 0]
    positives = rows(PositiveLog, [0, 1], [0, 1])
    assert positives.response.tolist() == [1, 1]
    assert positives.response.dtype == np.float32
    assert positives.behaviours == LabelLog.behaviours
    assert LabelLog.has_negatives and not PositiveLog.has_negatives


@pytest.mark.parametrize(
    ("log", "message"),
    [
        (rows(ResponseLog, [0], [0], shares(1.5)), r"log.value must be numbers in \[0, 1\]"),
        (rows(ResponseLog, [0], [0], shares(np.nan)), r"log.value must be numbers in \[0, 1\]"),
        (rows(LabelLog, [0], [0], labels(2)), "log.label must be uint8, 0 or 1"),
        (rows(LabelLog, [0], [0], np.array([1])), "log.label must be uint8, 0 or 1"),
        (rows(PositiveLog, [0], [9]), r"log.items must lie in \[0, 3\)"),
    ],
)
def test_feedback_that_its_type_does_not_allow_is_refused(log, message) -> None:
    with pytest.raises(DataFormatError, match=message):
        dataset(log=log)


TABLES = {
    "response": {
        "log": rows(ResponseLog, [0, 1], [2, 0], shares(0.5, 1)),
        "test": rows(ResponseLog, [1], [1], shares(0.75)),
    },
    "label": {
        "log": rows(LabelLog, [0, 1], [2, 0], labels(0, 1)),
        "test": rows(LabelLog, [1], [1], labels(1)),
    },
    "positive": {
        "log": rows(PositiveLog, [0, 1], [2, 0]),
        "test": rows(LabelLog, [1], [1], labels(1)),
    },
}


@pytest.mark.parametrize("feedback", TABLES)
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"popularity": "positives", "pools": True},
        {"user_ids": np.array(["ann", "bo"]), "item_ids": np.array(["Z 1", "a", "\u00e9t\u00e9"])},
    ],
    ids=["plain", "options", "strings"],
)
def test_stored_tables_come_back_as_they_were(feedback, changes) -> None:
    shop = dataset(name="my-shop", source="table", **(TABLES[feedback] | changes))
    again = from_arrays(to_arrays(shop))
    assert again.fingerprint == shop.fingerprint
    assert (again.name, again.source) == ("my-shop", "table")
    assert (again.popularity, again.pools) == (shop.popularity, shop.pools)
    assert again.user_ids.tolist() == shop.user_ids.tolist()
    assert type(again.log) is type(shop.log) and type(again.test) is type(shop.test)
    assert again.log.response.tolist() == shop.log.response.tolist()
    assert pickle.loads(pickle.dumps(shop)).fingerprint == shop.fingerprint


def test_the_fingerprint_covers_what_is_not_an_array() -> None:
    changes = [
        {},
        {"source": "table"},
        {"popularity": "positives"},
        {"pools": True},
        {"source": "table", **TABLES["response"]},
        {
            "source": "table",
            "log": table([0, 1], [2, 0], [0.5, 1]),
            "test": table([1], [1], [0.75]),
        },
        {"user_ids": np.array(["3", "7"])},
        {"user_ids": np.array(["3", "8"])},
    ]
    assert len({dataset(**change).fingerprint for change in changes}) == len(changes)


def test_fingerprints_of_published_datasets_stay() -> None:
    """Names of cache entries and of committed results hold them."""
    assert dataset().source == "kuairec"
    assert dataset().fingerprint == "43baf5e510eecda2"


def test_popularity_counts_shows_rows_or_positives() -> None:
    log = table([0, 0, 0, 1], [0, 0, 1, 2], [0.4, 0.5, 3.0, 1.0])  # user 1 is a test user
    counted = dataset(log=log).training.popularity_counts
    assert counted.tolist() == [2, 1, 0]
    shows = np.array([5, 0, 9])
    shown = dataset(log=log, show_counts=shows)
    assert shown.training.popularity_counts.tolist() == [5, 0, 9]
    positives = dataset(log=log, show_counts=shows, popularity="positives").training
    assert positives.popularity_counts.tolist() == [1, 1, 0]
    with pytest.raises(ConfigError, match="positives"):
        dataset(popularity="positive")


@pytest.mark.parametrize("ids", [[3, 5, 4], [10**12, 5, -1], ["b", "a", "abc"]])
def test_positions_of_ids_of_any_kind(ids) -> None:
    positions = Positions(np.array(ids))
    unknown = "zz" if isinstance(ids[0], str) else 77
    assert positions(np.array([ids[2], ids[0], unknown, ids[1]])).tolist() == [2, 0, -1, 1]
    assert positions(np.array([[ids[1]], [unknown]])).tolist() == [[1], [-1]]


def test_ids_are_integers_or_strings() -> None:
    with pytest.raises(DataFormatError, match="item_ids must be integers or strings, got float64"):
        dataset(item_ids=np.array([1.5, 2, 3]))


def test_products_of_all_pairs_are_one_matrix_product_and_others_go_pair_by_pair() -> None:
    """To the last bit, which differs between the two."""
    rng = np.random.default_rng(0)
    left, right = (rng.standard_normal((40, 8)).astype(np.float32) for _ in range(2))
    rows, columns = np.arange(9)[:, None], np.arange(3, 40)[None]
    together, singly = left[:9] @ right[3:].T, np.einsum("nd,md->nmd", left[:9], right[3:]).sum(2)
    np.testing.assert_allclose(together, singly, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(pair_products(left, right, rows, columns), together)
    pairs = np.einsum("...d,...d->...", left[rows], right[columns])
    for some in (slice(1), slice(4, 5)):  # a session by itself has the bits of its batch
        found = pair_products(left, right, rows[some], columns)
        np.testing.assert_array_equal(found, pairs[some])
    whole = np.broadcast_to(columns, (9, 37))
    np.testing.assert_array_equal(pair_products(left, right, rows, whole), pairs)
    same = pair_products(left, right, rows[:, 0], rows[:, 0])
    np.testing.assert_array_equal(same, np.einsum("nd,nd->n", left[:9], right[:9]))


def test_without_rare_log_only_items() -> None:
    # User 0 is a test user; items 10 and 11 are the catalogue, item 2 is logged but once in train.
    whole = dataset(
        user_ids=np.array([3, 7]),
        item_ids=np.array([10, 11, 12, 13]),
        n_items=2,
        log=table([0, 0, 1, 1, 1, 1], [2, 2, 3, 2, 3, 0], [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]),
        test=table([0], [1], [0.25]),
    )
    few = whole.without_rare(2)
    assert few.item_ids.tolist() == [10, 11, 13] and few.n_items == 2
    assert few.log.users.tolist() == [1, 1, 1]
    assert few.log.items.tolist() == [2, 2, 0]
    assert few.log.response.tolist() == pytest.approx([0.3, 0.5, 0.6])
    assert whole.without_rare(1).fingerprint == whole.fingerprint
    with pytest.raises(ConfigError, match="least_rows"):
        whole.without_rare(0)
