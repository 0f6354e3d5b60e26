from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from kuaisim_gym.envs.assembly import SessionBatch, top_items


@given(
    arrays(np.float32, (3, 12), elements=st.sampled_from([-np.inf, -1.0, 0.0, 0.5, 2.0])),
    st.integers(1, 12),
)
def test_top_items_is_a_sort(scores: np.ndarray, k: int) -> None:
    top = top_items(scores, k)
    values = np.take_along_axis(scores, top, axis=1)
    np.testing.assert_array_equal(values, -np.sort(-scores, axis=1)[:, :k])
    assert all(len(set(row)) == k for row in top.tolist())


def test_a_continuous_action_ranks_unexposed_items(small) -> None:
    batch = SessionBatch(2, dataset=small, slate_size=4)
    batch.core.seed(np.arange(2, dtype=np.uint64))
    batch.reset()
    action = np.zeros((2, 33), dtype=np.float32)
    action[:, -1] = [1.0, -1.0]  # by popularity, up and down
    popularity = batch.catalogue.log_popularity
    expected = np.argsort(-popularity, kind="stable")
    np.testing.assert_array_equal(batch.slates_of(action)[0], expected[:4])
    batch.step(action)
    np.testing.assert_array_equal(batch.slates_of(action)[0], expected[4:8])
    assert popularity[batch.slates_of(action)[1]].max() < popularity[expected[100]]


@pytest.mark.parametrize("n", [1, 2, 7, 64])
def test_slates_do_not_depend_on_the_batch(small, n: int) -> None:
    actions = np.random.default_rng(0).uniform(-1, 1, (128, 33)).astype(np.float32)
    whole = SessionBatch(128, dataset=small).slates_of(actions)
    part = SessionBatch(n, dataset=small).slates_of(actions[:n])
    np.testing.assert_array_equal(whole[:n], part)
