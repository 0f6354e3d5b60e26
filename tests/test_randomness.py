from __future__ import annotations

import numpy as np
import pytest

from kuaisim_gym.randomness import philox4x32, uniform


def words(*values: int) -> tuple[np.ndarray, ...]:
    return tuple(np.array([value], dtype=np.uint64) for value in values)


# Known answers of Random123's Philox4x32-10.
@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        (
            (0xFFFFFFFF,) * 4,
            (0xFFFFFFFF,) * 2,
            (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
        ),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_gives_the_published_vectors(counter, key, expected) -> None:
    assert tuple(philox4x32(words(*counter), words(*key))[0].tolist()) == expected


def coordinates(n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    seeds = rng.integers(0, 2**63, n).astype(np.uint64)
    return seeds, rng.integers(0, 1000, n), rng.integers(0, 50, n)


def test_uniforms_do_not_depend_on_the_batch() -> None:
    seeds, episodes, steps = coordinates(40)
    together = uniform(seeds, episodes, steps, 10, 1)
    alone = np.concatenate(
        [uniform(seeds[i : i + 1], episodes[i : i + 1], steps[i : i + 1], 10, 1) for i in range(40)]
    )
    np.testing.assert_array_equal(together, alone)
    np.testing.assert_array_equal(together[:, :3], uniform(seeds, episodes, steps, 3, 1))


def test_every_coordinate_matters() -> None:
    one = np.array([5], dtype=np.uint64), np.array([1]), np.array([2])
    base = uniform(*one, 4, 0)
    others = [
        uniform(np.array([6], dtype=np.uint64), one[1], one[2], 4, 0),
        uniform(np.array([5 + 2**40], dtype=np.uint64), one[1], one[2], 4, 0),
        uniform(one[0], one[1] + 1, one[2], 4, 0),
        uniform(one[0], one[1], one[2] + 1, 4, 0),
        uniform(*one, 4, 1),
    ]
    assert all((base != other).all() for other in others)


def test_uniforms_are_uniform() -> None:
    seeds = np.arange(50_000, dtype=np.uint64)
    zero = np.zeros(50_000, dtype=np.int64)
    draws = uniform(seeds, zero, zero, 8, 0)
    assert draws.min() > 0
    assert draws.max() < 1
    np.testing.assert_allclose(np.histogram(draws, 10, (0, 1))[0] / draws.size, 0.1, atol=0.002)
    np.testing.assert_allclose(np.corrcoef(draws.T) - np.eye(8), 0, atol=0.02)


def test_no_sessions_is_no_error() -> None:
    none = np.zeros(0, dtype=np.int64)
    assert uniform(none.astype(np.uint64), none, none, 3, 0).shape == (0, 3)
