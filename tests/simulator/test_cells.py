from __future__ import annotations

import numpy as np
import pytest

from kuaisim_gym.simulator import cells as module
from kuaisim_gym.simulator.build import _table_simulator
from kuaisim_gym.simulator.cells import SortedCells, observed_cells


def test_sorted_cells_are_those_of_the_dense_table() -> None:
    generator = np.random.default_rng(1)
    chosen = generator.choice(7 * 11, 30, replace=False)
    rows, items = (chosen // 11).astype(np.int32), (chosen % 11).astype(np.int32)
    values = generator.random(30, dtype=np.float32)
    dense = observed_cells(rows, items, values, (7, 11))
    assert isinstance(dense, np.ndarray)
    table = SortedCells(rows, items, values, 11)
    every = np.arange(7)[:, None], np.arange(11)[None, :]
    np.testing.assert_array_equal(table[every], dense)
    assert table[every].dtype == np.float32
    pairs = generator.integers(0, 7, 50), generator.integers(0, 11, 50)
    np.testing.assert_array_equal(table[pairs], dense[pairs])


def test_positions_beyond_int32_cells_are_told_apart() -> None:
    rows, items = np.array([50_000, 70_000], np.int32), np.array([99_999, 0], np.int32)
    table = observed_cells(rows, items, np.array([0.5, 0.25], np.float32), (10**6, 10**5))
    assert isinstance(table, SortedCells)
    assert table[rows, items].tolist() == [0.5, 0.25]
    assert np.isnan(table[rows, items[::-1]]).all()


def test_a_simulator_answers_alike_with_either(small, monkeypatch: pytest.MonkeyPatch) -> None:
    dense = _table_simulator(small, "factor")
    monkeypatch.setattr(module, "DENSE_CELLS", 0)
    table = _table_simulator(small, "factor")
    assert isinstance(table.model.table, SortedCells)
    assert table.observed_share == dense.observed_share
    assert table.observed_share == float(np.mean(~np.isnan(dense.model.table)))
    users, items = dense.users[:, None], np.arange(small.n_items)[None, :]
    np.testing.assert_array_equal(
        table.model.probability(users, items), dense.model.probability(users, items)
    )
