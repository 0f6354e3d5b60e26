"""The best items, against a full sort of the catalogue."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from kuaisim_gym.engine import Engine, bits, find_engine
from kuaisim_gym.ranking import Ranker

FEW_VALUES = st.sampled_from([-np.inf, -1.0, -0.0, 0.0, 0.5, 2.0])
SEEDS = st.integers(0, 2**32)
ENGINES = [find_engine("numpy"), find_engine("numba")]
every_engine = pytest.mark.parametrize("engine", ENGINES, ids=[one.name for one in ENGINES])


def sorted_whole(scores: np.ndarray, k: int) -> np.ndarray:
    """The definition: the first k columns of a stable sort, best first."""
    return np.argsort(-scores, axis=1, kind="stable")[:, :k]


@every_engine
@settings(deadline=None)
@given(scores=arrays(np.float32, (3, 12), elements=FEW_VALUES), k=st.integers(1, 12))
def test_top_items_is_a_stable_sort(engine: Engine, scores: np.ndarray, k: int) -> None:
    np.testing.assert_array_equal(engine.top_items(scores, k), sorted_whole(scores, k))


@every_engine
@settings(max_examples=200, deadline=None)
@given(
    seed=SEEDS,
    n=st.integers(1, 4),
    k=st.integers(1, 12),
    extra=st.integers(0, 700),
    values=st.integers(1, 400),
)
def test_wide_rows_are_sorted_too(engine: Engine, seed, n, k, extra, values) -> None:
    """From 32 columns for each item wanted on, blocks of columns stand for their best."""
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, values, (n, 32 * k + extra)).astype(np.float32)
    kept = scores.copy()
    top = engine.top_items(scores, k)
    assert top.dtype == np.int64
    np.testing.assert_array_equal(top, sorted_whole(scores, k))
    np.testing.assert_array_equal(scores, kept)


@every_engine
@pytest.mark.parametrize(("width", "k"), [(240, 10), (3328, 10), (7584, 10), (7584, 20), (500, 1)])
def test_the_best_may_stand_in_any_column(engine: Engine, width: int, k: int) -> None:
    rng = np.random.default_rng(0)
    for start in (0, width - k, width // 2):
        scores = rng.random((2, width), dtype=np.float32)
        columns = np.arange(start, start + k)
        scores[:, columns] = rng.permutation(k) + 1
        np.testing.assert_array_equal(engine.top_items(scores, k), sorted_whole(scores, k))
    # And all of them in one block, however blocks are laid.
    for step in (1, 16, width // 16):
        scores = rng.random((2, width), dtype=np.float32)
        scores[:, np.arange(k) * step % width] = 1 + np.arange(k)
        np.testing.assert_array_equal(engine.top_items(scores, k), sorted_whole(scores, k))


@every_engine
@settings(max_examples=200, deadline=None)
@given(
    seed=SEEDS,
    n=st.integers(1, 4),
    items=st.sampled_from([1, 2, 7, 8, 40, 63, 64, 65, 300, 4223, 4225, 9000]),
    data=st.data(),
)
def test_hidden_columns_are_sorted_behind_the_others(engine: Engine, seed, n, items, data) -> None:
    rng = np.random.default_rng(seed)
    k = data.draw(st.integers(1, min(items, 20)))
    scores = rng.choice(np.array([-3e38, -1, 0, 0.5, 3e38], np.float32), (n, items))
    hidden = rng.random((n, items)) < data.draw(st.sampled_from([0.0, 0.3, 0.9, 1.0]))
    # The last key counts first; among hidden items, columns decide.
    keys = (np.where(hidden, 0, -scores), hidden)
    expected = np.lexsort(keys, axis=1)[:, :k]
    kept, packed = scores.copy(), bits.pack(hidden)
    if items % 8:
        packed[:, -1] |= np.uint8(0xFF << items % 8 & 0xFF)  # bits beyond the items do not count
    np.testing.assert_array_equal(engine.top_items(scores, k, packed), expected)
    np.testing.assert_array_equal(scores, kept)


@every_engine
def test_what_was_shown_comes_last(engine: Engine) -> None:
    scores = np.array([[0.5, 2.0, -3e38]], dtype=np.float32)

    def picked(*shown: int) -> list[int]:
        hidden = bits.pack(np.isin(np.arange(3), shown)[None])
        return engine.top_items(scores, 3, hidden)[0].tolist()

    assert picked() == engine.top_items(scores, 3)[0].tolist() == [1, 0, 2]
    # Shown items come last even behind the lowest score.
    assert picked(1) == [0, 2, 1]
    assert picked(0, 1) == [2, 0, 1]
    assert picked(0, 1, 2) == [0, 1, 2]


@every_engine
@settings(max_examples=150, deadline=None)
@given(
    seed=SEEDS,
    n=st.integers(1, 35),
    items=st.sampled_from([1, 5, 40, 127, 128, 129, 700, 4223, 4224, 4225, 9000]),
    dim=st.integers(1, 9),
    values=st.sampled_from([1, 3, 1000]),
    share=st.sampled_from([None, 0.0, 0.3, 0.99, 1.0]),
    data=st.data(),
)
def test_best_items_are_a_sort_of_inner_products(
    engine: Engine, seed, n, items, dim, values, share, data
) -> None:
    """Whole numbers, whose products are exact and tie often, over borders of tiles and chunks."""
    rng = np.random.default_rng(seed)
    k = data.draw(st.sampled_from([1, min(2, items), min(10, items), min(150, items)]))
    vectors = rng.integers(-values, values + 1, (n, dim)).astype(np.float32)
    table = rng.integers(-2, 3, (dim, items)).astype(np.float32)
    hidden = None if share is None else rng.random((n, items)) < share
    behind = np.zeros((n, items), bool) if hidden is None else hidden
    packed = None if hidden is None else bits.pack(hidden)
    scores = vectors @ table
    expected = np.lexsort((np.where(behind, 0, -scores), behind), axis=1)[:, :k]
    np.testing.assert_array_equal(engine.best_items(vectors, table, k, packed), expected)


def crowded(items: int, dim: int) -> np.ndarray:
    """Vectors so much alike that the last bits of their products decide."""
    rng = np.random.default_rng(1)
    few = rng.normal(size=(items // 20 + 1, dim)).astype(np.float32)
    vectors = few[rng.integers(0, len(few), items)]
    nudged = rng.random(vectors.shape) < 0.2
    return np.where(nudged, np.nextafter(vectors, np.float32(np.inf)), vectors)


def check_rows(engine: Engine, items: int, dim: int, sizes: Iterable[int]) -> None:
    """Ranks the first and the last so many of 130 users, and all of them together."""
    ranker = Ranker(crowded(items, dim), engine)
    rng = np.random.default_rng(0)
    users = rng.uniform(-1, 1, (130, dim)).astype(np.float32)
    hidden = bits.pack(rng.random((130, items)) < 0.1)
    whole = ranker.best(users, 10, hidden)
    for size in sizes:
        np.testing.assert_array_equal(ranker.best(users[:size], 10, hidden[:size]), whole[:size])
        np.testing.assert_array_equal(ranker.best(users[-size:], 10, hidden[-size:]), whole[-size:])


@pytest.mark.parametrize(("items", "dim"), [(3327, 10), (7583, 33), (9000, 7)])
def test_engines_rank_alike_to_the_last_bit(items: int, dim: int) -> None:
    rng = np.random.default_rng(2)
    table = np.ascontiguousarray(crowded(items, dim).T)
    users = rng.uniform(-1, 1, (50, dim)).astype(np.float32)
    hidden = bits.pack(rng.random((50, items)) < 0.05)
    one, two = (engine.best_items(users, table, 20, hidden) for engine in ENGINES)
    np.testing.assert_array_equal(one, two)


@every_engine
def test_a_row_does_not_depend_on_its_batch(engine: Engine) -> None:
    check_rows(engine, 240, 33, range(1, 131))
    for items, dim in ((3327, 33), (7583, 7)):
        check_rows(engine, items, dim, (1, 2, 3, 5, 8, 13, 31, 32, 33, 63, 64, 65, 127, 129))


@every_engine
def test_it_ranks_by_inner_products(engine: Engine) -> None:
    items = np.array([[1.0, 0.0], [0.0, 2.0], [-1.0, -1.0]], dtype=np.float32)
    ranker = Ranker(items, engine)
    assert ranker.dim == 2
    users = np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0]], dtype=np.float32)
    np.testing.assert_array_equal(ranker.best(users, 3), [[0, 1, 2], [1, 0, 2], [2, 0, 1]])
    np.testing.assert_array_equal(
        ranker.best(users, 1, np.array([[0b001], [0b000], [0b100]], dtype=np.uint8)),
        [[1], [1], [0]],
    )


@every_engine
def test_no_users_is_no_error(engine: Engine) -> None:
    ranker = Ranker(np.ones((4, 2), dtype=np.float32), engine)
    assert ranker.best(np.zeros((0, 2), dtype=np.float32), 2).shape == (0, 2)


@pytest.mark.parametrize(
    "hidden", [np.zeros((2, 9), dtype=bool), np.zeros((2, 9), np.uint8), np.zeros((1, 2), np.uint8)]
)
def test_hidden_items_that_are_no_bits_are_refused(hidden) -> None:
    ranker = Ranker(np.ones((9, 2), dtype=np.float32), find_engine())
    with pytest.raises(
        ValueError, match=r"hidden must be \(2, 2\) uint8, .* got \(., .\) (bool|u)"
    ):
        ranker.best(np.ones((2, 2), dtype=np.float32), 3, hidden)
