"""What actions of each kind show, and what they are refused for."""

from __future__ import annotations

import numpy as np
import pytest

from kuaisim_gym import build_simulator
from kuaisim_gym.envs.assembly import SessionBatch
from kuaisim_gym.errors import ConfigError, InvalidActionError


def begun(dataset, n: int = 2, **options) -> SessionBatch:
    batch = SessionBatch(n, dataset.name, dataset=dataset, **options)
    batch.seed(np.arange(n))
    batch.reset()
    return batch


def test_a_continuous_action_ranks_unexposed_items(small) -> None:
    batch = begun(small, slate_size=4)
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


def test_where_repeats_are_allowed_the_best_items_come_again(small) -> None:
    batch = begun(small, slate_size=4, allow_repeats=True)
    action = np.random.default_rng(0).uniform(-1, 1, (2, 10)).astype(np.float32)
    first = batch.actions.slates(action)
    batch.step(action)
    np.testing.assert_array_equal(batch.actions.slates(action), first)


@pytest.mark.parametrize("n", [1, 2, 7, 64])
def test_slates_do_not_depend_on_the_batch(small, n: int) -> None:
    actions = np.random.default_rng(0).uniform(-1, 1, (128, 10)).astype(np.float32)
    whole = SessionBatch(128, dataset=small).actions.slates(actions)
    part = SessionBatch(n, dataset=small).actions.slates(actions[:n])
    np.testing.assert_array_equal(whole[:n], part)


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


@pytest.mark.parametrize("kind", ["continuous", "fusion"])
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


@pytest.mark.parametrize(
    ("kind", "action", "message"),
    [
        ("continuous", np.zeros((2, 9), np.float32), r"shape \(2, 10\), got \(2, 9\)"),
        ("continuous", np.zeros((1, 10), np.float32), "shape"),
        ("continuous", np.zeros((2, 10), np.int64), "floats, got int64"),
        ("continuous", np.full((2, 10), -1.5, np.float32), r"\[-1, 1\], got -1.5"),
        ("continuous", np.full((2, 10), np.inf), "finite"),
        ("fusion", np.zeros((2, 10), np.float32), r"shape \(2, 7\)"),
        ("fusion", np.full((2, 7), np.nan), "finite"),
        ("discrete", np.zeros((2, 1), np.int64), r"shape \(2,\)"),
        ("discrete", np.zeros(2, np.float32), "integer array"),
        ("discrete", np.array([0, 240]), r"\[0, 240\), got 240"),
        ("discrete", np.array([0, 2**64 - 1], np.uint64), r"\[0, 240\)"),
        ("slate", np.array([[-1, 2], [3, 4]]), "got -1"),
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


def test_doubles_are_taken_as_floats(small) -> None:
    batch = begun(small)
    action = np.random.default_rng(0).uniform(-1, 1, (2, 10))
    np.testing.assert_array_equal(
        batch.actions.slates(action), batch.actions.slates(action.astype(np.float32))
    )
