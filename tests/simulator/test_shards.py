"""Tables in shards: the same rows, the same sums, the same model."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from kuaisim_gym.data import Dataset, LabelLog, PositiveLog
from kuaisim_gym.data.synthetic import (
    KuaiRandConfig,
    SyntheticConfig,
    synthetic_kuairand,
    synthetic_kuairec,
)
from kuaisim_gym.simulator import shards
from kuaisim_gym.simulator.evidence import Labels
from kuaisim_gym.simulator.factors import PREFERENCE_ARRAYS, fit_preference_model
from kuaisim_gym.simulator.shards import Shards, item_ranges, leading_vectors

N_USERS, N_ITEMS = 30, 50


@pytest.fixture
def small_shards(monkeypatch) -> None:
    """Tables are cut where they otherwise would not be."""
    for name, size in (("MOST_ROWS", 10), ("MOST_ITEMS", 5), ("SHARD_ROWS", 2000)):
        monkeypatch.setattr(shards, name, size)
    monkeypatch.setattr(shards, "SHARD_ITEMS", 37)


@pytest.fixture
def rows() -> LabelLog:
    rng = np.random.default_rng(1)
    users = np.sort(rng.integers(0, N_USERS, 400)).astype(np.int32)
    items = (N_ITEMS * rng.random(400) ** 2).astype(np.int32)
    return LabelLog(users, items, rng.integers(0, 2, 400).astype(np.uint8))


def labels(part: LabelLog, size: tuple[int, int]) -> Labels:
    return Labels(part, size, 1.0)


def sharded(rows: LabelLog, ranges: list[slice], folder: Path) -> Shards[Labels]:
    return Shards(rows, N_USERS, ranges, labels, folder)


def test_few_rows_of_few_items_are_one_range() -> None:
    assert item_ranges(np.array([3, 0, 5])) == [slice(0, 3)]


def test_ranges_cover_all_items_within_both_bounds(monkeypatch) -> None:
    sizes = {"MOST_ROWS": 100, "MOST_ITEMS": 100, "SHARD_ROWS": 10, "SHARD_ITEMS": 4}
    for name, size in sizes.items():
        monkeypatch.setattr(shards, name, size)
    counts = np.array([4, 4, 4, 95, 0, 0, 0, 0, 0, 1])
    ranges = item_ranges(counts)
    # Two items of ten rows at most; one that is too large alone; four items at most.
    assert ranges == [slice(0, 2), slice(2, 3), slice(3, 4), slice(4, 8), slice(8, 10)]


def test_a_shard_holds_the_rows_of_its_items(rows: LabelLog, tmp_path: Path) -> None:
    ranges = [slice(0, 7), slice(7, 30), slice(30, N_ITEMS)]
    table = sharded(rows, ranges, tmp_path)
    assert table.n_rows == len(rows) and len(table) == 3
    for number, items in enumerate(ranges):
        mine = (rows.items >= items.start) & (rows.items < items.stop)
        part = table.rows(number)
        np.testing.assert_array_equal(part.users, rows.users[mine])
        np.testing.assert_array_equal(part.items + items.start, rows.items[mine])
        np.testing.assert_array_equal(part.label, rows.label[mine])


def test_sums_are_those_of_the_rows(rows: LabelLog, tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    of_items, of_users = (rng.integers(-9, 9, (n, 3)).astype(float) for n in (N_ITEMS, N_USERS))
    table = sharded(rows, [slice(0, 7), slice(7, 30), slice(30, N_ITEMS)], tmp_path)

    def summed(owners: NDArray[np.int32], values: NDArray[np.float64], n: int) -> NDArray:
        sums = np.zeros((n, 3))
        np.add.at(sums, owners, values)
        return sums

    by_user = summed(rows.users, of_items[rows.items], N_USERS)
    by_item = summed(rows.items, of_users[rows.users], N_ITEMS)
    np.testing.assert_array_equal(table.by_user(of_items), by_user)
    np.testing.assert_array_equal(table.by_item(of_users), by_item)
    np.testing.assert_array_equal(table.per_user, np.bincount(rows.users, minlength=N_USERS))
    among = np.bincount(rows.users[rows.items < 12], minlength=N_USERS)
    np.testing.assert_array_equal(table.among(12), among)


def test_leading_directions_are_those_of_the_whole(rows: LabelLog, tmp_path: Path) -> None:
    whole = leading_vectors(sharded(rows, [slice(0, N_ITEMS)], tmp_path), 4)
    parts = leading_vectors(sharded(rows, [slice(0, 20), slice(20, N_ITEMS)], tmp_path), 4)
    np.testing.assert_allclose(parts, whole, atol=1e-9)


def watched() -> Dataset:
    config = SyntheticConfig(
        n_users=300, n_test_users=60, n_items=160, events_per_user=40, n_categories=8
    )
    return synthetic_kuairec(5, config)


def clicked() -> Dataset:
    return synthetic_kuairand(5, KuaiRandConfig(n_users=300, n_items=240, n_categories=8))


def liked() -> Dataset:
    world = clicked()
    log, test = world.log.take(world.log.is_positive), world.test
    return dataclasses.replace(
        world,
        log=PositiveLog(log.users, log.items),
        test=LabelLog(test.users, test.items, test.response.astype(np.uint8)),
        randomised=None,
    )


@pytest.mark.parametrize("world", [watched, clicked, liked])
def test_a_fit_in_shards_is_the_same_model(world, small_shards, monkeypatch) -> None:
    data = world().training
    read = []
    rows_of = Shards.rows
    monkeypatch.setattr(Shards, "rows", lambda self, n: read.append(n) or rows_of(self, n))
    parts = fit_preference_model(data)
    assert max(read) >= 4  # shards there were
    monkeypatch.undo()
    whole = fit_preference_model(data)
    assert parts.dim == whole.dim
    for name in PREFERENCE_ARRAYS:
        one, other = getattr(whole, name), getattr(parts, name)
        np.testing.assert_allclose(other, one, atol=1e-5 * np.abs(one).max(), err_msg=name)
