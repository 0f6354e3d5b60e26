"""What actions of each kind show, and what they are refused for."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import ArrayLike, NDArray

from kuaisim_gym import build_simulator
from kuaisim_gym.engine import bits
from kuaisim_gym.envs.actions import SharesAction
from kuaisim_gym.envs.assembly import SessionBatch
from kuaisim_gym.errors import ConfigError, InvalidActionError
from kuaisim_gym.simulator.catalogue import Catalogue


def begun(dataset, n: int = 2, **options) -> SessionBatch:
    batch = SessionBatch(n, dataset.name, dataset=dataset, **options)
    batch.seed(np.arange(n))
    batch.reset()
    return batch


scored = pytest.mark.parametrize("kind", ["shares", "scorer"])


def drawn(batch: SessionBatch, n: int) -> NDArray[np.float32]:
    """(n, ...) random vectors of the action space."""
    return (
        np.random.default_rng(0).uniform(-1, 1, (n, *batch.action_space.shape)).astype(np.float32)
    )


def of_shares(
    batch: SessionBatch, weights: ArrayLike, components: ArrayLike
) -> NDArray[np.float32]:
    """(2, ...) the same shares action for two sessions; weights are zero beyond those given."""
    action = np.zeros(batch.action_space.shape, dtype=np.float32)
    action[: len(np.atleast_1d(weights))] = weights
    action[len(action) - len(batch.groups) :] = components
    return np.tile(action, (2, 1))


def places(components: NDArray[np.float32], k: int) -> NDArray[np.int64]:
    """(G,) places of the groups, by exact fractions."""
    parts = [1 + Fraction(float(part)) for part in components]
    total = sum(parts)
    due = [k * part / total if total else Fraction(k, len(parts)) for part in parts]
    counts = [math.floor(part) for part in due]
    by_remainder = sorted(range(len(due)), key=lambda group: (counts[group] - due[group], group))
    for group in by_remainder[: k - sum(counts)]:
        counts[group] += 1
    return np.array(counts)


@pytest.mark.parametrize(
    ("components", "popular"),
    [
        ([0, 0], 5), ([-1, -1], 5), ([1, 1], 5), ([-1, 1], 10), ([1, -1], 0), ([-1, -0.5], 10),
        ([0, 0.5], 6), ([0.5, -0.5], 2), ([-0.5, 0.5], 7), ([1, 0.5], 4), ([0.25, 0.5], 5),
        ([1, -0.75], 1),
    ],
)  # fmt: skip
def test_shares_divide_the_slate_and_weights_rank_each_part(small, components, popular) -> None:
    """Places by hand: ten in the ratio of 1 + a to 1 + b, an even remainder to the long tail."""
    batch = begun(small)
    embedding, is_popular = batch.catalogue.item_embedding, batch.catalogue.popular
    action = of_shares(batch, [-0.5, 0.25], components)
    score = embedding @ action[0, :9]
    order = np.argsort(-score, kind="stable")
    for step in range(2):
        chosen = slice(step * popular, (step + 1) * popular)
        others = slice(step * (10 - popular), (step + 1) * (10 - popular))
        expected = [*order[is_popular[order]][chosen], *order[~is_popular[order]][others]]
        slates = batch.actions.slates(action)
        assert slates[0].tolist() == sorted(expected, key=lambda item: order.tolist().index(item))
        batch.step(action)
        np.testing.assert_array_equal(batch.core.state.slates[:, step], slates)


def test_zeros_divide_evenly_and_rank_by_position(small) -> None:
    batch = begun(small)
    popular = batch.catalogue.popular
    expected = np.sort([*np.flatnonzero(popular)[:5], *np.flatnonzero(~popular)[:5]])
    slates = batch.actions.slates(np.zeros((2, 11), dtype=np.float32))
    np.testing.assert_array_equal(slates, np.tile(expected, (2, 1)))


def test_direction_alone_counts_and_a_group_s_ranking_does_not_depend_on_the_division(
    small,
) -> None:
    batch = begun(small)
    action = drawn(batch, 2)
    action[:, 9:] = 0
    shorter = action.copy()
    shorter[:, :9] *= 0.25  # exact in floats
    slates = batch.actions.slates(action)
    np.testing.assert_array_equal(batch.actions.slates(shorter), slates)
    popular = batch.catalogue.popular
    action[:, 9:] = [-1, 1]
    for slate, all_popular in zip(slates, batch.actions.slates(action), strict=True):
        assert slate[popular[slate]].tolist() == all_popular[:5].tolist()


@given(
    n_groups=st.integers(2, 7),
    k=st.integers(1, 12),
    seed=st.integers(0, 2**32 - 1),
    corners=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_any_groups_get_their_shares_to_the_nearest_item(small, n_groups, k, seed, corners) -> None:
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(240) % n_groups)
    options = {"groups": labels, "abandonment": "none", "slate_size": k, "action_type": "shares"}
    batch = begun(small, **options)
    actions = rng.uniform(-1, 1, (2, 9 + n_groups)).astype(np.float32)
    if corners:
        actions[:, 9:] = rng.integers(-1, 2, (2, n_groups))
    score = batch.catalogue.item_embedding.astype(np.float64) @ actions[:, :9].T.astype(np.float64)
    for row, slate in enumerate(batch.actions.slates(actions)):
        counts = np.bincount(labels[slate], minlength=n_groups)
        np.testing.assert_array_equal(counts, places(actions[row, 9:], k))
        assert (np.diff(score[slate, row]) < 1e-5).all()  # best first
        for group in range(n_groups):
            best = np.sort(score[labels == group, row])[::-1][: counts[group]]
            found = score[slate[labels[slate] == group], row]
            np.testing.assert_allclose(found, best, atol=1e-5)


def test_others_fill_the_places_of_a_group_that_runs_dry(small) -> None:
    """Five places of a group of three; then it has none left, and at last nobody has."""
    labels = np.ones(240, dtype=np.int64)
    labels[[7, 100, 30]] = 0
    options = {"groups": labels, "abandonment": "none", "slate_size": 8, "max_len": 31}
    batch = begun(small, **options)
    quality = batch.catalogue.item_embedding[:, 0]
    order = np.argsort(-quality, kind="stable")
    few, many = order[labels[order] == 0], order[labels[order] == 1]
    action = of_shares(batch, [1], [0.25, -0.25])  # five to three
    wanted = sorted([*few, *many[:3]], key=order.tolist().index)
    np.testing.assert_array_equal(batch.actions.slates(action)[0], [*wanted, *many[3:5]])
    batch.step(action)
    np.testing.assert_array_equal(batch.actions.slates(action)[0], many[5:13])
    exposed = np.ones((1, 240), dtype=bool)
    exposed[:, many[200]] = False
    batch.core.state.exposed[:] = bits.pack(exposed)
    last, *again = batch.actions.slates(action)[0].tolist()
    assert last == many[200]
    assert len({last, *again}) == 8


def test_a_slate_of_one_is_of_the_largest_share(small) -> None:
    batch = begun(small, slate_size=1)
    best = {}
    for popular in (False, True):
        group = np.flatnonzero(batch.catalogue.popular == popular)
        best[popular] = group[np.argmax(batch.catalogue.item_embedding[group, 0])]
    for components, popular in (([0, 0], False), ([0, 0.1], True), ([1, 0.9], False)):
        slate = batch.actions.slates(of_shares(batch, [1], components))[0]
        assert slate.tolist() == [best[popular]]


def test_items_of_the_log_alone_are_never_shown(small) -> None:
    batch = begun(small)
    catalogue = batch.catalogue
    more = Catalogue(np.vstack([catalogue.embedding, 99 * np.ones((3, 9), np.float32)]),
                     catalogue.exposures)  # fmt: skip
    assert len(more.embedding) > more.n_items == 240
    actions = drawn(batch, 2)
    kind = SharesAction(batch.core, more, batch.simulator)
    np.testing.assert_array_equal(kind.slates(actions), batch.actions.slates(actions))


@scored
def test_engines_show_the_same_slates(small, kind: str) -> None:
    pytest.importorskip("numba")
    numpy, numba = (begun(small, engine=name, action_type=kind) for name in ("numpy", "numba"))
    actions = drawn(numpy, 2)
    for _ in range(4):
        np.testing.assert_array_equal(numpy.actions.slates(actions), numba.actions.slates(actions))
        numpy.step(actions)
        numba.step(actions)


def test_a_scorer_ranks_unexposed_items(small) -> None:
    batch = begun(small, slate_size=4, action_type="scorer")
    action = np.zeros((2, 10), dtype=np.float32)
    action[:, -1] = [1.0, -1.0]  # by popularity, up and down
    popularity = batch.catalogue.log_popularity
    expected = np.argsort(-popularity, kind="stable")
    np.testing.assert_array_equal(batch.actions.slates(action)[0], expected[:4])
    batch.step(action)
    np.testing.assert_array_equal(batch.actions.slates(action)[0], expected[4:8])
    assert popularity[batch.actions.slates(action)[1]].max() < popularity[expected[100]]
    batch.reset(np.array([True, False]))  # a new user has seen nothing yet
    np.testing.assert_array_equal(batch.actions.slates(action)[0], expected[:4])


@scored
def test_where_repeats_are_allowed_the_best_items_come_again(small, kind: str) -> None:
    batch = begun(small, slate_size=4, allow_repeats=True, action_type=kind)
    action = drawn(batch, 2)
    first = batch.actions.slates(action)
    batch.step(action)
    np.testing.assert_array_equal(batch.actions.slates(action), first)


@scored
@pytest.mark.parametrize("n", [1, 2, 7, 64])
def test_slates_do_not_depend_on_the_batch(small, n: int, kind: str) -> None:
    large = SessionBatch(128, dataset=small, action_type=kind)
    actions = drawn(large, 128)
    part = SessionBatch(n, dataset=small, action_type=kind).actions.slates(actions[:n])
    np.testing.assert_array_equal(large.actions.slates(actions)[:n], part)


@pytest.mark.parametrize("split", ["train", "test"])
def test_fusion_weighs_what_the_platform_predicts(small_rand, split: str) -> None:
    """Forty users, more than are scored at once; on either split by the train simulator."""
    batch = begun(small_rand, 40, split=split, action_type="fusion", slate_size=5)
    assert batch.action_space.shape == (7,)
    weights = np.random.default_rng(0).uniform(-1, 1, (40, 7)).astype(np.float32)
    model, items = build_simulator(small_rand, "train").model, np.arange(small_rand.n_items)
    some = np.arange(40) % 3 == 0
    for step in range(6):
        if step == 3:  # other users arrive in some slots
            before = batch.core.state.users.copy()
            batch.reset(some)
            assert (batch.core.state.users != before).sum() > 10
        predicted = model.feedback(batch.core.state.users[:, None], items[None])
        scores = (predicted.astype(np.float64) * weights[:, None]).sum(axis=2)
        scores[~batch.core.unexposed()] = -np.inf
        slates = batch.actions.slates(weights)
        for slate, score in zip(slates, scores, strict=True):
            assert len(set(slate.tolist())) == 5
            # Up to the rounding of float32 the five best, best first.
            np.testing.assert_allclose(score[slate], np.sort(score)[::-1][:5], atol=1e-5)
        batch.step(weights)
        now = batch.core.state.steps - 1
        np.testing.assert_array_equal(batch.core.state.slates[np.arange(40), now], slates)


def test_a_slate_and_a_single_item_are_shown_as_they_are(small) -> None:
    slate = begun(small, action_type="slate", slate_size=3)
    np.testing.assert_array_equal(slate.action_space.nvec, [240] * 3)
    actions = np.array([[5, 2, 5], [0, 239, 7]])
    slate.step(actions)
    np.testing.assert_array_equal(slate.core.state.slates[:, 0], actions)
    item = begun(small, action_type="discrete")
    assert item.config.slate_size == 1
    assert item.action_space.n == 240
    item.step(np.array([239, 3]))
    np.testing.assert_array_equal(item.core.state.slates[:, 0], [[239], [3]])


@pytest.mark.parametrize(("kind", "size"), [("discrete", 1), ("slate", 3)])
def test_masks_are_the_items_not_yet_shown(small, kind: str, size: int) -> None:
    batch = begun(small, 3, action_type=kind, slate_size=size)
    shown = np.zeros((3, 240), dtype=bool)
    for step in range(3):
        masks = batch.actions.masks()
        np.testing.assert_array_equal(masks, ~shown[:, None].repeat(size, 1))
        assert masks.strides[1] == 0 or size == 1  # one row, not a copy for each position
        slates = np.array([[9, 8, 7], [step, step, step], [3 * step, 30, 31]])[:, :size]
        batch.step(slates if size > 1 else slates[:, 0])
        np.put_along_axis(shown, slates, True, axis=1)
    batch.reset(np.array([True, False, False]))
    assert batch.actions.masks()[0].all()
    assert not batch.actions.masks()[1].all()


def test_masks_allow_everything_where_repeats_are_allowed(small) -> None:
    batch = begun(small, action_type="discrete", allow_repeats=True)
    batch.step(np.array([5, 6]))
    assert batch.actions.masks().all()


@pytest.mark.parametrize("kind", ["discrete", "slate"])
def test_masked_choices_are_the_ones_without_an_answer(small, kind: str) -> None:
    """Certain answers are positive, so an answer of 0 means a repeat, or an item nobody watches."""
    options = {"stochastic_response": False, "abandonment": "none", "action_type": kind}
    size = 1 if kind == "discrete" else 2
    batch = begun(small, 50, slate_size=size, **options)
    other = begun(small, 50, slate_size=size, allow_repeats=True, **options)
    rng = np.random.default_rng(0)
    repeats = 0
    for _ in range(8):
        masks = batch.actions.masks().reshape(50, size, 240)
        slates = rng.permuted(np.tile(np.arange(12), (50, 1)), axis=1)[:, :size]
        actions = slates if size > 1 else slates[:, 0]
        allowed = np.take_along_axis(masks[:, 0], slates, axis=1)
        found, full = batch.step(actions).responses, other.step(actions).responses
        assert full.max() > 0
        np.testing.assert_array_equal(found, np.where(allowed, full, 0))
        repeats += (~allowed).sum()
    assert repeats > 50


@pytest.mark.parametrize("kind", ["shares", "scorer", "fusion"])
def test_weights_make_no_choices_to_mask(small_rand, kind: str) -> None:
    batch = begun(small_rand, action_type=kind)
    with pytest.raises(ConfigError, match=f'action_type="{kind}" has no action masks'):
        batch.actions.masks()


def test_impossible_kinds_are_refused(small) -> None:
    with pytest.raises(ConfigError, match='slate_size=3; use "slate" for more'):
        SessionBatch(2, dataset=small, action_type="discrete", slate_size=3)
    with pytest.raises(ConfigError, match="kuairec has one"):
        SessionBatch(2, dataset=small, action_type="fusion")
    with pytest.raises(ConfigError, match="Did you mean 'discrete'"):
        SessionBatch(2, dataset=small, action_type="discreet")


def one_of(value: float) -> np.ndarray:
    """Actions of two sessions, one cell of which is out of bounds."""
    actions = np.zeros((2, 10))
    actions[1, 7] = value
    return actions


@pytest.mark.parametrize(
    ("kind", "action", "message"),
    [
        ("scorer", np.zeros((2, 9), np.float32), r"shape \(2, 10\), got \(2, 9\)"),
        ("scorer", np.zeros((1, 10), np.float32), "shape"),
        ("scorer", np.zeros((2, 10), np.int64), "floats, got int64"),
        ("scorer", np.full((2, 10), -1.5, np.float32), r"\[-1, 1\], got -1.5"),
        ("scorer", np.full((2, 10), np.inf), "finite"),
        *(("scorer", one_of(value), f"got {value}") for value in (-1.5, 1.001, np.nan, -np.inf)),
        ("shares", np.zeros((2, 10), np.float32), r"shape \(2, 11\), got \(2, 10\)"),
        ("shares", np.full((2, 11), 1.5, np.float32), r"\[-1, 1\], got 1.5"),
        ("fusion", np.zeros((2, 10), np.float32), r"shape \(2, 7\)"),
        ("fusion", np.full((2, 7), np.nan), "finite"),
        ("discrete", np.zeros((2, 1), np.int64), r"shape \(2,\)"),
        ("discrete", np.zeros(2, np.float32), "integer array"),
        ("discrete", np.array([0, 240]), r"\[0, 240\), got 240"),
        ("discrete", np.array([0, 2**64 - 1], np.uint64), r"\[0, 240\)"),
        ("discrete", np.array([3, -1]), r"\[0, 240\), got -1"),
        ("slate", np.array([[-1, 2], [3, 4]]), "got -1"),
        ("slate", np.array([[1, 2], [3, 240]]), "got 240"),
        ("slate", np.array([[0, 1]]), "shape"),
        ("slate", np.array([["a", "b"], ["c", "d"]]), "integer array"),
    ],
)
def test_bad_actions_are_refused_and_change_nothing(small_rand, kind, action, message) -> None:
    size = {"discrete": 1, "slate": 2}.get(kind, 4)
    batch = begun(small_rand, action_type=kind, slate_size=size)
    before = [part.copy() for part in batch.core.state]
    seen = batch.observe()
    with pytest.raises(InvalidActionError, match=message):
        batch.step(action)
    for one, two in zip(before, batch.core.state, strict=True):
        np.testing.assert_array_equal(one, two)
    np.testing.assert_array_equal(seen, batch.observe())


@scored
def test_doubles_are_taken_as_floats(small, kind: str) -> None:
    batch = begun(small, action_type=kind)
    action = np.random.default_rng(0).uniform(-1, 1, (2, *batch.action_space.shape))
    np.testing.assert_array_equal(
        batch.actions.slates(action), batch.actions.slates(action.astype(np.float32))
    )
