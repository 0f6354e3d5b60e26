"""Draws of slates: their law by enumeration, items that may not be shown, and both engines."""

from __future__ import annotations

import itertools
from functools import partial

import numpy as np
import pytest

from dsrm_agents.common.bounds import MASKED
from dsrm_agents.hrl import draws
from dsrm_agents.hrl.draws import BLOCK, CHOICES, compiled_rows, draw_slates
from kuaisim_gym.errors import ConfigError

ENGINES = ("numpy", "numba")


@pytest.fixture(params=ENGINES)
def engine(request, monkeypatch) -> str:
    """Both engines; that of NumPy works where numba is not installed."""
    if request.param == "numba":
        pytest.importorskip("numba")
    else:
        monkeypatch.setattr(draws, "compiled_rows", lambda: None)
    return request.param


def draw(scores, starts, least, most, uniform):
    """Slates by (N, n) scores of one row for each of N slates."""
    scores = np.array(scores, np.float32)
    n, edges = len(scores), (*starts, scores.shape[1])
    groups = list(itertools.pairwise(edges))
    top = np.stack([scores[:, a:b].max(axis=1) for a, b in groups], 1).clip(MASKED / 2)
    weight = scores.copy()
    for (a, b), best in zip(groups, top.T, strict=True):
        weight[:, a:b] = np.exp(weight[:, a:b] - best[:, None])
    least, most = (np.tile(np.array(bound), (n, 1)) for bound in (least, most))
    return draw_slates(scores, weight, top, starts, least, most, uniform)


def law(scores, starts, least, most, size: int) -> dict[tuple[int, ...], float]:
    """Probability of every slate, by the definition, draw after draw."""
    n = len(scores)
    group = np.searchsorted(starts, np.arange(n), side="right") - 1

    def branches(slate: tuple[int, ...]) -> dict[tuple[int, ...], float]:
        if len(slate) == size:
            return {slate: 1.0}
        count = np.bincount(group[list(slate)], minlength=len(starts))
        unreserved = size - np.maximum(count, least).sum()
        closed = (count >= most) | ((count >= least) & (unreserved <= 0))
        allowed = [
            item
            for item in range(n)
            if item not in slate and not closed[group[item]] and scores[item] > MASKED / 2
        ]
        weights = np.array([scores[item] for item in allowed], np.float64)
        weights = np.exp(weights - weights.max())
        found: dict[tuple[int, ...], float] = {}
        for item, weight in zip(allowed, weights / weights.sum(), strict=True):
            for rest, chance in branches((*slate, item)).items():
                found[rest] = found.get(rest, 0.0) + weight * chance
        return found

    return branches(())


ORDINARY = [1.0, -0.5, MASKED, 0.3, 2.0, 0.0, -1.0]
# After its best item a group has nothing that float32 could tell from 0, and then again.
PEAKED = [90.0, -110.0, -111.0, 95.0, -130.0, -130.5, -700.0]


@pytest.mark.parametrize("scores", [ORDINARY, PEAKED], ids=["ordinary", "peaked"])
@pytest.mark.parametrize(
    ("starts", "least", "most"),
    [((0,), (0,), (3,)), ((0, 3), (1, 1), (2, 2)), ((0, 3), (0, 1), (2, 3)),
     ((0, 2, 5), (0, 1, 1), (1, 2, 2))],
)  # fmt: skip
def test_slates_have_the_law_of_enumeration(engine, scores, starts, least, most) -> None:
    n, size = 60_000, 3
    expected = law(scores, starts, np.array(least), np.array(most), size)
    assert sum(expected.values()) == pytest.approx(1.0)
    uniform = np.random.default_rng(5).random((n, size, CHOICES))
    slates, log_prob = draw([scores] * n, starts, least, most, uniform)
    found, counts = np.unique(slates, axis=0, return_counts=True)
    assert {tuple(slate) for slate in found.tolist()} <= expected.keys()
    seen = dict(zip(map(tuple, found.tolist()), counts / n, strict=True))
    for slate, chance in expected.items():
        spread = np.sqrt(chance * (1.0 - chance) / n)
        assert seen.get(slate, 0.0) == pytest.approx(chance, abs=5.0 * spread + 1e-9)
    stated = np.exp(log_prob.astype(np.float64).sum(axis=1))
    chances = [expected[tuple(slate)] for slate in slates.tolist()]
    np.testing.assert_allclose(stated, chances, rtol=2e-4)


@pytest.mark.parametrize("noise", [0.0, 1.0 - 2.0**-53])
def test_no_hidden_item_is_drawn_at_the_ends_of_the_uniform_numbers(engine, noise: float) -> None:
    """Not where whole blocks are hidden, nor where what is left has no weight in float32."""
    rng, n = np.random.default_rng(0), 5 * BLOCK + 7
    scores = np.where(rng.random((40, n)) < 0.9, MASKED, rng.normal(0.0, 60.0, (40, n)))
    scores[:, :BLOCK] = scores[:, -3:] = MASKED
    scores[:, 2 * BLOCK] = scores[:, 4 * BLOCK + 3] = 0.0
    slates, log_prob = draw(
        scores, (0, 3 * BLOCK - 5), (1, 1), (6, 6), np.full((40, 7, CHOICES), noise)
    )
    assert (np.take_along_axis(scores, slates, axis=1) > MASKED / 2).all()
    assert all(len(set(slate)) == 7 for slate in slates.tolist())
    assert np.isfinite(log_prob).all()


def test_the_engines_draw_the_same_slates() -> None:
    pytest.importorskip("numba")
    rng = np.random.default_rng(1)
    scores, uniform = rng.normal(0.0, 3.0, (50, 400)), rng.random((50, 10, CHOICES))
    scores[rng.random(scores.shape) < 0.2] = MASKED
    one = partial(draw, scores, (0, 90, 90 + BLOCK), (2, 0, 1), (5, 6, 9), uniform)
    compiled, chances = one()
    assert compiled_rows() is not None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(draws, "compiled_rows", lambda: None)
        plain, same_chances = one()
    assert (compiled == plain).all()
    np.testing.assert_allclose(chances, same_chances, rtol=1e-6, atol=1e-6)


def test_too_few_items_are_refused(engine) -> None:
    scores = [[0.0, MASKED, 1.0, MASKED]]
    with pytest.raises(ConfigError, match="A slate has 3 items, but a user is left with fewer"):
        draw(scores, (0, 2), (0, 0), (3, 3), np.full((1, 3, CHOICES), 0.5))
