"""Semantic ids: invertible, balanced, and the same again after saving."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsrm_agents.hsrl.balance import balanced_assignment
from dsrm_agents.hsrl.codebook import Codebook
from kuaisim_gym.errors import CheckpointError, ConfigError, UnknownIdError
from kuaisim_gym.simulator import load_catalogue


def points(n: int, dim: int = 4, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, dim), dtype=np.float32)


def sizes(tokens: np.ndarray) -> np.ndarray:
    return np.unique(tokens, axis=0, return_counts=True)[1]


# Balanced assignment


def test_those_that_would_lose_most_go_first() -> None:
    # The first three want code 0, which has room for one: the second loses 9 elsewhere.
    cost = np.array([[0, 1], [0, 9], [0, 2], [5, 0]], dtype=np.float32)
    code = balanced_assignment(cost, np.zeros(4, dtype=int), np.array([3]))
    assert code.tolist() == [0, 0, 0, 1]
    code = balanced_assignment(cost[:3], np.zeros(3, dtype=int), np.array([2]))
    assert code.tolist() == [1, 0, 0]


def test_it_costs_little_more_than_the_best_assignment() -> None:
    rng = np.random.default_rng(0)
    codes = np.array(sorted(set(itertools.permutations([0, 0, 1, 1, 2, 2]))))
    found, best, mean = 0.0, 0.0, 0.0
    for _ in range(50):
        cost = rng.random((6, 3)).astype(np.float32)
        code = balanced_assignment(cost, np.zeros(6, dtype=int), np.array([2]))
        every = cost[np.arange(6), codes].sum(axis=1)
        found, best = found + cost[np.arange(6), code].sum(), best + every.min()
        mean += every.mean()
    assert best - 1e-3 <= found < best + 0.15 * (mean - best)


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 60), st.integers(1, 5), st.integers(1, 4), st.integers(0, 99))
def test_no_code_of_a_group_takes_more_than_it_has_room_for(n, codes, groups, seed) -> None:
    rng = np.random.default_rng(seed)
    group = np.unique(rng.integers(groups, size=n), return_inverse=True)[1]
    capacity = -(-np.bincount(group) // codes)
    cost = rng.integers(3, size=(n, codes)).astype(np.float32)  # many ties
    code = balanced_assignment(cost, group, capacity)
    for one in np.unique(group):
        assert np.bincount(code[group == one]).max() <= capacity[one]


# Ids


@pytest.mark.parametrize("name", ["world", "rand_world", "real"])
def test_every_item_of_the_datasets_has_an_id_of_its_own(request, name: str) -> None:
    known = load_catalogue(request.getfixturevalue(name)).known
    codebook = Codebook.fit(known)
    assert np.array_equal(codebook.items(codebook.ids), np.arange(len(known)))
    assert (codebook.ids < codebook.widths).all()
    report = codebook.report(known)
    assert report["bucket_size"] <= 5  # 1.5 to the third is 3.4, and rounding
    assert report["explained"] > 0.4
    alone = Codebook.fit(known, tolerance=0.0)
    assert alone.bucket_size == 1 and alone.report(known)["collisions"] == 0.0
    assert len(np.unique(alone.tokens, axis=0)) == len(known)


def test_very_many_items_have_ids_of_their_own() -> None:
    embedding = points(125_000, 8)
    codebook = Codebook.fit(embedding, tolerance=0.0)
    assert codebook.widths == (50, 50, 50, 1)
    assert sizes(codebook.tokens[:, :1]).tolist() == [2_500] * 50
    assert np.array_equal(codebook.items(codebook.ids), np.arange(len(embedding)))
    assert codebook.report(embedding)["explained"] > 0.8


def test_items_that_share_all_tokens_are_told_apart_by_their_place() -> None:
    codebook = Codebook.fit(points(50), levels=2, codes=3, tolerance=0.0)
    assert codebook.bucket_size == 6  # of 50: 17 to a code, of which 6 to each of the next
    assert np.array_equal(codebook.items(codebook.ids), np.arange(50))
    assert len(np.unique(codebook.ids, axis=0)) == 50 > len(np.unique(codebook.tokens, axis=0))


@settings(deadline=None, max_examples=30)
@given(
    st.integers(1, 70),
    st.integers(1, 3),
    st.integers(2, 4),
    st.sampled_from([0.0, 0.3, 2.0]),
    st.booleans(),
)
def test_ids_are_invertible_and_buckets_balanced(n, levels, codes, tolerance, alike) -> None:
    embedding = np.zeros((n, 2)) if alike else points(n, 2)
    codebook = Codebook.fit(embedding, levels, codes, tolerance)
    assert np.array_equal(codebook.items(codebook.ids), np.arange(n))
    prefixes = np.zeros(n, dtype=int)
    for level in range(levels):
        for prefix in np.unique(prefixes):
            below = codebook.tokens[prefixes == prefix, level]
            most = np.ceil((1 + tolerance) * len(below) / codes - 1e-9)
            assert np.bincount(below).max() <= most
        prefixes = prefixes * codes + codebook.tokens[:, level]


def test_ids_of_nothing_are_refused() -> None:
    codebook = Codebook.fit(points(5), levels=2, codes=3)
    free = next(i for i in itertools.product(*map(range, codebook.widths))
                if i not in set(map(tuple, codebook.ids.tolist())))  # fmt: skip
    for wrong in (free, (0, 0, 99), (0, -1, 0)):
        with pytest.raises(UnknownIdError, match="No item has"):
            codebook.items([codebook.ids[0].tolist(), list(wrong)])
    for shape in ([[0, 0]], [0, 0, 0], [[0.0, 0.0, 0.0]]):
        with pytest.raises(ConfigError, match="ids as integers of shape"):
            codebook.items(shape)


def test_each_level_describes_what_the_last_one_left() -> None:
    # Four clusters far apart, each of four points in a square: tokens are exactly that.
    centres = 10.0 * np.array([[0, 0], [0, 1], [1, 0], [1, 1]])
    corners = np.array([[0, 0], [0, 1], [1, 0], [1, 1]])
    embedding = (centres[:, None] + corners).reshape(-1, 2)
    codebook = next(
        one for seed in range(20)
        if (one := Codebook.fit(embedding, 2, 4, 0.0, seed)).report(embedding)["explained"] > 0.9999
    )  # fmt: skip
    by_centre, by_corner = codebook.tokens.reshape(4, 4, 2).transpose(2, 0, 1)
    assert (by_centre == by_centre[:, :1]).all() and len(np.unique(by_centre)) == 4
    assert (by_corner == by_corner[:1]).all() and len(np.unique(by_corner)) == 4
    np.testing.assert_allclose(codebook.reconstruct(), embedding, atol=1e-4)


# New items, files and errors


def test_new_items_are_encoded_without_fitting_again() -> None:
    embedding = points(60)
    codebook = Codebook.fit(embedding, levels=2, codes=4)
    new = points(30, seed=1)
    longer = codebook.extended(new)
    assert np.array_equal(longer.ids[:60], codebook.ids)
    assert np.array_equal(longer.tokens[60:], codebook.encode(new))
    assert np.array_equal(longer.items(longer.ids), np.arange(90))
    nearest = ((new[:, None] - codebook.centroids[0]) ** 2).sum(axis=2).argmin(axis=1)
    assert np.array_equal(codebook.encode(new)[:, 0], nearest)


def test_two_extensions_are_one_of_all_their_items(tmp_path) -> None:
    codebook = Codebook.fit(points(60), levels=2, codes=4)
    new = points(40, seed=1)
    once, twice = codebook.extended(new), codebook.extended(new[:15]).extended(new[15:])
    assert once.fingerprint == twice.fingerprint
    assert once.begins_with(codebook) and once.begins_with(once)
    assert not codebook.begins_with(once)
    assert not once.begins_with(Codebook.fit(points(60), levels=2, codes=4, seed=1))
    none = codebook.extended(np.empty((0, 4)))
    assert none.fingerprint == codebook.fingerprint and np.array_equal(none.ids, codebook.ids)
    once.save(tmp_path / "ids.safetensors")
    again = Codebook.load(tmp_path / "ids.safetensors")
    assert again.fingerprint == once.fingerprint and np.array_equal(again.ids, once.ids)
    report = once.report(np.concatenate([points(60), new]))
    assert report["bucket_size"] == sizes(once.tokens).max()
    error = np.concatenate([points(60), new]) - once.reconstruct()
    total = np.concatenate([points(60), new]).var(axis=0).sum()
    assert report["explained"] == pytest.approx(1 - np.square(error).sum(1).mean() / total)


def test_a_new_item_that_equals_an_earlier_one_shares_its_tokens() -> None:
    """Where that one has its nearest codes; ranks in the bucket tell them apart."""
    embedding = points(60)
    codebook = Codebook.fit(embedding, levels=2, codes=4, tolerance=0.0)
    nearest = np.flatnonzero((codebook.encode(embedding) == codebook.tokens).all(axis=1))
    assert 30 < len(nearest) < 60
    longer = codebook.extended(embedding[nearest])
    np.testing.assert_array_equal(longer.tokens[60:], longer.tokens[nearest])
    assert (longer.ids[60:, -1] > longer.ids[nearest, -1]).all()
    assert longer.bucket_size > codebook.bucket_size
    assert len(np.unique(longer.ids, axis=0)) == len(longer.ids)


def test_saved_and_loaded_it_is_the_same(tmp_path) -> None:
    codebook = Codebook.fit(points(20), levels=2, codes=4)
    codebook.save(tmp_path / "ids.safetensors")
    again = Codebook.load(tmp_path / "ids.safetensors")
    assert again.fingerprint == codebook.fingerprint
    assert np.array_equal(again.ids, codebook.ids)
    other = Codebook.fit(points(20), levels=2, codes=4, seed=1)
    assert other.fingerprint != codebook.fingerprint


def test_the_same_seed_gives_the_same_codebook() -> None:
    one, two = (Codebook.fit(points(80), seed=4) for _ in range(2))
    assert one.fingerprint == two.fingerprint


def test_damaged_files_are_refused(tmp_path, dsrm) -> None:
    path = tmp_path / "ids.safetensors"
    path.write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match="cannot be read as a codebook"):
        Codebook.load(path)
    dsrm.save(path)
    with pytest.raises(CheckpointError, match="not a codebook of this version"):
        Codebook.load(path)
    Codebook(np.zeros((2, 3, 1), np.float32), np.full((4, 2), 3)).save(path)
    with pytest.raises(CheckpointError, match="do not fit its codes"):
        Codebook.load(path)


@pytest.mark.parametrize(
    ("embedding", "options", "message"),
    [
        (np.full((3, 2), np.nan), {}, "finite numbers of shape"),
        (np.zeros(3), {}, "finite numbers of shape"),
        (np.zeros((0, 2)), {}, "finite numbers of shape"),
        (np.zeros((3, 2)), {"levels": 0}, "levels"),
        (np.zeros((3, 2)), {"codes": 1}, "codes"),
        (np.zeros((3, 2)), {"codes": 16, "levels": 16}, "more ids than can be numbered"),
        (np.zeros((3, 2)), {"tolerance": -0.1}, "tolerance"),
        (np.zeros((3, 2)), {"tolerance": np.nan}, "tolerance"),
    ],
)
def test_impossible_arguments_are_refused(embedding, options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Codebook.fit(embedding, **options)


def test_embeddings_of_another_width_are_refused() -> None:
    with pytest.raises(ConfigError, match="of width 4, got 3"):
        Codebook.fit(points(9)).encode(points(2, 3))
    with pytest.raises(ConfigError, match="of width 4, got 3"):
        Codebook.fit(points(9)).extended(points(2, 3))
    with pytest.raises(ConfigError, match="the embedding of this codebook's items"):
        Codebook.fit(points(9)).report(points(8))
