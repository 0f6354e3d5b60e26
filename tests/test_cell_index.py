"""Search in cells against sorting all scores, ties and hidden items included."""

from __future__ import annotations

import numpy as np
import pytest

from kuaisim_gym.cells import CellIndex, compiled_search, find_cells, search_rows
from kuaisim_gym.engine import bits
from kuaisim_gym.engine.reference import NumpyEngine


def sorted_all(vectors, queries, k, hidden):
    """The first k of all items by falling score, then by position."""
    products = NumpyEngine().inner_products(queries, np.ascontiguousarray(vectors.T))
    scores = np.where(hidden, -np.inf, products)
    return np.stack([np.lexsort((np.arange(len(vectors)), -row))[:k] for row in scores])


def catalogue(kind, n=4000, dim=5):
    rng = np.random.default_rng(2)
    vectors = rng.standard_normal((n, dim)).astype(np.float32)
    if kind == "ties":
        vectors = np.round(vectors).astype(np.float32)
    if kind == "alike":
        vectors[:] = vectors[0]
    if kind == "far":
        vectors += np.float32(100.0)
    if kind == "line":
        vectors[:, 1:] = 0.0
    return vectors, rng.standard_normal((7, dim)).astype(np.float32), rng


@pytest.mark.parametrize("kind", ["random", "ties", "alike", "far", "line"])
@pytest.mark.parametrize("k", [1, 10, 300, 4000])
def test_the_best_are_those_of_a_full_sort(kind, k):
    vectors, queries, rng = catalogue(kind)
    hidden = rng.random((7, len(vectors))) < 0.3
    hidden[0] = True
    hidden[1] = False
    best = CellIndex(vectors).best(queries, k, bits.pack(hidden))
    assert np.array_equal(best, sorted_all(vectors, queries, k, hidden))


@pytest.mark.parametrize("kind", ["random", "ties"])
def test_compiled_search_is_the_plain_one(kind, monkeypatch):
    if compiled_search() is None:
        pytest.skip("numba is not installed")
    vectors, queries, rng = catalogue(kind)
    hidden = bits.pack(rng.random((7, len(vectors))) < 0.3)
    index = CellIndex(vectors)
    compiled = index.best(queries, 20, hidden)
    monkeypatch.setattr("kuaisim_gym.cells.compiled_search", lambda: None)
    assert np.array_equal(index.best(queries, 20, hidden), compiled)


def test_most_cells_are_left_out(monkeypatch):
    """The bounds leave out most of a catalogue: a search that reads all would pass the others."""
    vectors, queries, _ = catalogue("random", n=40_000, dim=3)
    index, read = CellIndex(vectors), []

    def search(*arguments):
        limits, best = arguments[4], arguments[-1]
        search_rows(*arguments)
        worst = np.einsum("nd,nd->n", queries, vectors[best[:, -1]])
        read.append((limits >= worst[:, None]).mean())

    monkeypatch.setattr("kuaisim_gym.cells.compiled_search", lambda: search)
    index.best(queries, 10)
    assert 0 < read[0] < 0.2


def test_items_of_a_group_keep_their_positions():
    vectors, queries, rng = catalogue("random")
    items = np.sort(rng.choice(10_000, len(vectors), replace=False))
    hidden = np.zeros((7, 10_000), bool)
    hidden[:, items[:2000]] = True
    best = CellIndex(vectors, items).best(queries, 30, bits.pack(hidden))
    expected = sorted_all(vectors, queries, 30, hidden[:, items])
    assert np.array_equal(best, items[expected])


def test_items_that_moved_are_found_where_they_are():
    vectors, queries, _ = catalogue("random")
    index = CellIndex(vectors)
    moved = vectors[:, ::-1] * np.float32(2.0)
    index.move(moved)
    nothing = np.zeros((7, len(vectors)), bool)
    assert np.array_equal(index.best(queries, 30), sorted_all(moved, queries, 30, nothing))


def test_a_share_of_the_reach_finds_most():
    vectors, queries, _ = catalogue("random", n=40_000, dim=5)
    index = CellIndex(vectors)
    best, near = index.best(queries, 100), index.best(queries, 100, share=0.7)
    found = np.mean([np.isin(best[row], near[row]).mean() for row in range(7)])
    assert found > 0.9


def test_cells_are_small_and_none_is_empty():
    cells = find_cells(catalogue("random", n=20_000)[0])
    sizes = np.bincount(cells)
    assert 40 < len(sizes) < 160 and 0 < sizes.min() and sizes.max() < 2000
