"""Groups of any labels: sessions by hand, targets, columns, and what is refused."""

from __future__ import annotations

import dataclasses
import itertools

import gymnasium as gym
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsrm_agents import make_vec_env
from kuaisim_gym.config import SessionConfig
from kuaisim_gym.data import Dataset
from kuaisim_gym.data.dataset import Features, Labels
from kuaisim_gym.engine import find_engine
from kuaisim_gym.errors import ConfigError, DataFormatError
from kuaisim_gym.rendering import as_text
from kuaisim_gym.simulator.build import load_catalogue
from kuaisim_gym.simulator.core import SessionCore
from kuaisim_gym.simulator.groups import (
    Groups,
    count_boxes,
    find_groups,
    nearest_counts,
    popularity_groups,
)
from kuaisim_gym.simulator.response import MemorylessModel

N_ITEMS = 60


class Half(MemorylessModel):
    """Answers every question with a half."""

    behaviours = ("watched",)

    def probability(self, users, items):
        return np.full(np.broadcast_shapes(users.shape, items.shape), 0.5, dtype=np.float32)


def three(target=(1 / 3, 1 / 3, 1 / 3)) -> Groups:
    """Items 0, 3, 6, ... are of group 0, the next ones of groups 1 and 2."""
    labels = (np.arange(N_ITEMS) % 3).astype(np.int8)
    return Groups("labels", ("a", "b", "c"), labels, np.array(target))


def core(groups: Groups, engine: str = "numpy", n: int = 1, **options) -> SessionCore:
    config = SessionConfig(**({"slate_size": 6, "stochastic_response": False} | options))
    users = np.arange(3, dtype=np.int32)
    sessions = SessionCore(Half(), groups, users, config, n, find_engine(engine))
    sessions.seed(np.arange(n, dtype=np.uint64))
    sessions.reset()
    return sessions


def slate(*counts: int, step: int = 0) -> np.ndarray:
    """A slate with so many items of each of the three groups, other ones at every step."""
    items = [
        3 * (6 * step % 18 + rank) + group for group, n in enumerate(counts) for rank in range(n)
    ]
    return np.array([items])


@pytest.mark.parametrize("engine", ["numpy", "numba"])
@pytest.mark.parametrize(
    ("counts", "distance"),
    [
        ((2, 2, 2), 0.0),
        ((3, 2, 1), 1 / 3),
        ((4, 1, 1), 2 / 3),
        ((0, 3, 3), 2 / 3),
        ((6, 0, 0), 4 / 3),
    ],
)
def test_a_step_costs_one_more_from_the_bound_on(counts, distance: float, engine: str) -> None:
    # sum_g |c_g / 6 - 1/3| of each slate; a half answered costs 1.5.
    for bound in (0.3, 1 / 3, 0.6, 1.0):
        sessions = core(three(), engine, ad_bound=bound)
        assert sessions.state.share[0] == 0.0
        result = sessions.step(slate(*counts))
        penalised = distance >= bound - 1e-9
        assert result.penalised[0] == penalised
        assert sessions.state.temper[0] == pytest.approx(30 - 1.5 - penalised)
        assert sessions.state.share[0] == pytest.approx(distance / 2)


@pytest.mark.parametrize("engine", ["numpy", "numba"])
def test_another_target_is_what_exposures_are_compared_with(engine: str) -> None:
    # Target 1/2, 1/3, 1/6: (3, 2, 1) of six is on it, (2, 2, 2) off by 1/6 + 0 + 1/6.
    for counts, penalised in (((3, 2, 1), False), ((2, 2, 2), True)):
        sessions = core(three((1 / 2, 1 / 3, 1 / 6)), engine, ad_bound=1 / 3)
        assert sessions.step(slate(*counts)).penalised[0] == penalised


@pytest.mark.parametrize("engine", ["numpy", "numba"])
def test_a_window_of_several_slates_counts_their_groups_together(engine: str) -> None:
    sessions = core(three(), engine, window=18)
    flags = [
        bool(sessions.step(slate(*counts, step=step)).penalised[0])
        for step, counts in enumerate([(6, 0, 0), (0, 6, 0), (0, 0, 6), (0, 0, 6), (6, 0, 0)])
    ]
    # 6 + 6 + 6; then b, c, c: 0, 6, 12 of 18, a distance of 2/3; then c, c, a.
    assert flags == [False, False, False, True, True]
    assert sessions.state.shares[0, :5] == pytest.approx([2 / 3, 1 / 3, 0, 1 / 3, 1 / 3])


@settings(max_examples=60, deadline=None)
@given(
    st.integers(2, 9),
    st.integers(1, 8),
    st.integers(1, 20),
    st.integers(0, 10_000),
    st.sampled_from(["imbalance", "none"]),
)
def test_engines_play_the_same_sessions(
    n_groups: int, k: int, window: int, seed: int, abandonment: str
) -> None:
    rng = np.random.default_rng(seed)
    labels = np.concatenate([np.arange(n_groups), rng.integers(0, n_groups, N_ITEMS - n_groups)])
    target = rng.dirichlet(np.ones(n_groups))
    groups = Groups("labels", tuple("abcdefghi"[:n_groups]), labels.astype(np.int16), target)
    options = {"slate_size": k, "window": window, "abandonment": abandonment, "ad_bound": 1.0}
    try:
        both = [core(groups, engine, 4, **options) for engine in ("numpy", "numba")]
    except ConfigError as error:
        assert "cannot come closer" in str(error)
        return
    for _ in range(8):
        slates = rng.integers(0, N_ITEMS, (4, k))
        results = [sessions.step(slates) for sessions in both]
        for left, right in zip(*results, strict=True):
            np.testing.assert_array_equal(left, right)
        for left, right in zip(*(sessions.state for sessions in both), strict=True):
            np.testing.assert_array_equal(left, right)
        shown = [
            groups.labels[row[row >= 0]][-window:] for row in both[0].state.slates.reshape(4, -1)
        ]
        shares = np.array([np.bincount(row, minlength=n_groups) / len(row) for row in shown])
        distance = np.abs(shares - target).sum(axis=1)
        share = shares[:, 1] if n_groups == 2 else distance / 2
        np.testing.assert_allclose(both[0].state.share, share, atol=1e-12)
        if abandonment == "imbalance" and len(shown[0]) == window:
            np.testing.assert_array_equal(results[0].penalised, distance >= 1.0 - 1e-6)
        over = results[0].done
        if over.any():
            for sessions in both:
                sessions.reset(over)
            return


def test_two_equal_groups_are_judged_by_the_popular_share() -> None:
    flags = np.arange(N_ITEMS) < 20
    groups = popularity_groups(flags)
    assert groups.is_default
    assert groups.names == ("long tail", "popular")
    rng = np.random.default_rng(0)
    slates = rng.integers(0, N_ITEMS, (500, 10))
    share = flags[slates].mean(axis=1)
    np.testing.assert_allclose(groups.distance(slates), np.abs(2 * share - 1), atol=1e-12)


@pytest.mark.parametrize("k", range(1, 51))
def test_fair_of_popularity_groups_is_what_it_was_to_the_last_bit(k: int) -> None:
    flags = np.arange(2 * k) < k
    slates = np.array([np.arange(k - popular, 2 * k - popular) for popular in range(k + 1)])
    before = -np.abs(2.0 * flags[slates].mean(axis=1) - 1.0)
    after = -popularity_groups(flags).distance(slates)
    np.testing.assert_array_equal(before.astype(np.float32), after.astype(np.float32))


@pytest.mark.parametrize(
    ("options", "least", "most"),
    [
        ({}, (4, 4), (6, 6)),
        ({"ad_bound": 0.5}, (3, 3), (7, 7)),
        ({"ad_bound": 0.2}, (5, 5), (5, 5)),
        ({"window": 20}, (4, 4), (6, 6)),
        ({"slate_size": 20}, (8, 8), (12, 12)),
        ({"abandonment": "popularity"}, (4, 0), (10, 6)),
        ({"abandonment": "none"}, (0, 0), (10, 10)),
    ],
)
def test_slates_within_free_counts_are_those_that_cost_nothing(options, least, most) -> None:
    groups = popularity_groups(np.arange(N_ITEMS) < 30)
    sessions = core(groups, **({"slate_size": 10, "window": None} | options))
    found = sessions.free_counts()
    assert (tuple(found[0]), tuple(found[1])) == (least, most)
    k, (low, high) = sessions.config.slate_size, sessions.unpenalised
    between = [count for count in range(k + 1) if low + 1e-9 < count / k < high - 1e-9]
    assert (between[0], between[-1]) == (least[1], most[1])


def test_free_counts_of_three_groups_admit_no_penalised_slate() -> None:
    sessions = core(three(), slate_size=10, ad_bound=0.3)
    least, most = sessions.free_counts()
    assert (least.tolist(), most.tolist()) == ([2, 2, 2], [4, 4, 4])
    for counts in itertools.product(range(2, 5), repeat=3):
        if sum(counts) == 10:
            assert np.abs(np.array(counts) / 10 - 1 / 3).sum() < 0.3
    with pytest.raises(ConfigError, match="window of whole slates"):
        core(three(), slate_size=10, window=15).free_counts()
    groups = popularity_groups(np.arange(N_ITEMS) < 30)
    with pytest.raises(ConfigError, match="No slate of 3 items is unpenalised"):
        core(groups, slate_size=3).free_counts()


@settings(max_examples=100, deadline=None)
@given(st.integers(2, 4), st.integers(1, 8), st.integers(0, 1000))
def test_nearest_counts_and_boxes_are_those_of_enumeration(
    n_groups: int, n: int, seed: int
) -> None:
    target = np.random.default_rng(seed).dirichlet(np.ones(n_groups))
    all_counts = np.array(
        [counts for counts in itertools.product(range(n + 1), repeat=n_groups) if sum(counts) == n]
    )
    excess = np.maximum(all_counts - target * n, 0).sum(axis=1)
    nearest = nearest_counts(target, n)
    assert nearest.sum() == n
    assert np.maximum(nearest - target * n, 0).sum() == pytest.approx(excess.min())
    boxes = count_boxes(target, n)
    for worst, least, most in zip(*boxes, strict=True):
        inside = ((least <= all_counts) & (all_counts <= most)).all(axis=1)
        assert excess[inside].max() == pytest.approx(worst)
    assert (np.diff(boxes.worst) > 0).all()
    assert boxes.worst[-1] == pytest.approx(excess.max())


# Columns of a dataset.


@pytest.fixture(scope="module")
def labelled(small: Dataset) -> Dataset:
    """The small world with authors, dates of upload and durations."""
    rng = np.random.default_rng(0)
    authors = rng.integers(0, 41, small.n_items).astype(np.int32)
    authors[:41] = np.arange(41)
    days = rng.integers(1, 11, small.n_items).astype(np.int32)
    durations = rng.exponential(9.0, small.n_items)
    durations[5] = np.nan
    features = dataclasses.replace(
        small.item_features, numbers={**small.item_features.numbers, "video_duration": durations}
    )
    dates = tuple(f"2022-04-{day:02}" for day in range(1, 11))
    groups = {
        "author_id": Labels(authors, ("", *(str(100 + author) for author in range(40)))),
        "upload_dt": Labels(days, ("", *dates)),
    }
    return dataclasses.replace(small, item_features=features, item_groups=groups)


def found(labelled: Dataset, groups, target="uniform") -> Groups:
    return find_groups(groups, target, labelled, load_catalogue(labelled))


def test_labels_are_no_features_of_models(small: Dataset, labelled: Dataset) -> None:
    assert labelled.fingerprint != small.fingerprint
    assert "author_id" not in labelled.training.item_features.codes


def test_a_label_column_makes_a_group_of_every_value(labelled: Dataset) -> None:
    groups = found(labelled, "author_id")
    labels = labelled.item_groups["author_id"]
    assert len(groups) == 41
    assert groups.labels.dtype == np.int8
    assert groups.names[0] == "missing"  # items without an author
    for item in (0, 1, 17, 40):
        assert groups.names[groups.labels[item]] == (labels.values[labels.codes[item]] or "missing")
    assert groups.sizes.sum() == labelled.n_items
    uniform, catalogue = groups.target, found(labelled, "author_id", "catalogue").target
    np.testing.assert_allclose(uniform, 1 / 41)
    np.testing.assert_allclose(catalogue, groups.sizes / labelled.n_items)


def test_a_feature_makes_groups_by_its_first_value(labelled: Dataset) -> None:
    groups = found(labelled, "category")
    codes = labelled.item_features.codes["category"][: labelled.n_items, 0]
    np.testing.assert_array_equal(np.unique(codes, return_inverse=True)[1], groups.labels)


def test_quantiles_cut_numbers_and_dates(labelled: Dataset) -> None:
    groups = found(labelled, {"video_duration": (0.25, 0.5, 0.75)})
    durations = labelled.item_features.numbers["video_duration"]
    assert len(groups) == 5
    assert groups.names[-1] == "missing"
    assert np.flatnonzero(groups.labels == 4).tolist() == [5]
    for group in range(3):
        assert np.nanmax(durations[groups.labels == group]) < np.nanmin(
            durations[groups.labels == group + 1]
        )
    assert np.abs(groups.sizes[:4] / labelled.n_items - 0.25).max() < 0.02
    dates = found(labelled, {"upload_dt": (0.5,)})
    days = labelled.item_groups["upload_dt"].codes
    edge = np.sort(days)[labelled.n_items // 2 - 1]
    np.testing.assert_array_equal(dates.labels, days >= edge)
    assert dates.names == (f"upload_dt < 2022-04-{edge:02}", f"upload_dt >= 2022-04-{edge:02}")


@pytest.mark.parametrize("as_type", [list, np.array, lambda labels: np.array(labels, object)])
def test_labels_of_one_s_own(labelled: Dataset, as_type) -> None:
    texts = [("short", "long", "live")[item % 3] for item in range(labelled.n_items)]
    groups = found(labelled, as_type(texts), {"live": 0.5, "short": 0.25, "long": 0.25})
    assert groups.names == ("live", "long", "short")
    assert groups.target.tolist() == [0.5, 0.25, 0.25]
    assert [groups.names[label] for label in groups.labels[:4]] == [
        "short",
        "long",
        "live",
        "short",
    ]
    numbers = found(labelled, np.arange(labelled.n_items) % 4 * 10)
    assert numbers.names == ("0", "10", "20", "30")


@pytest.mark.parametrize(
    ("groups", "target", "message"),
    [
        ("autor_id", "uniform", "Did you mean 'author_id'"),
        ("video_duration", "uniform", "cut it at quantiles"),
        ({"video_duration": (0.5, 0.5)}, "uniform", "must rise within"),
        ({"video_duration": (0.0, 0.5)}, "uniform", "must rise within"),
        ({"video_duration": "half"}, "uniform", "must rise within"),
        ({"video_duration": 0.5}, "uniform", "must rise within"),
        ({"category": (0.5,), "tag": (0.5,)}, "uniform", "must name one column"),
        ({"upload_dt": (0.01, 0.02)}, "uniform", "is empty"),
        (np.zeros(7), "uniform", r"\(240,\) labels"),
        (np.zeros(240, int), "uniform", "all of them into '0'"),
        (np.full(240, np.nan), "uniform", "item 0 is nan"),
        (np.append(np.full(239, "a", object), None), "uniform", "item 239 is None"),
        (np.arange(240) / 2, "uniform", "integers or texts, got float64"),
        ([[1, 2], [3]], "uniform", "a label for each item"),
        ("popularity", (0.5, 0.4), "sum to 0.9"),
        ("popularity", (0.5, -0.5), "at least 0"),
        ("popularity", (0.5, 0.3, 0.2), "must be 2 shares"),
        ("popularity", "unifrom", "Did you mean 'uniform'"),
        ("popularity", {"populr": 1.0}, "Did you mean 'popular'"),
        ("popularity", {"popular": "much"}, "must be a share"),
    ],
)
def test_groups_that_are_none_are_refused(labelled, groups, target, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        found(labelled, groups, target)


def test_labels_are_checked(small: Dataset) -> None:
    for codes, message in (
        (np.zeros(3, np.int32), "one for each item"),
        (np.full(small.n_items, 2, np.int32), r"\[0, 2\)"),
    ):
        with pytest.raises(DataFormatError, match=message):
            dataclasses.replace(small, item_groups={"author": Labels(codes, ("", "a"))})


# Environments.


def test_groups_without_a_slate_near_the_target_are_refused(labelled: Dataset) -> None:
    options = {"dataset": labelled, "groups": "author_id"}
    # 10 of 41 groups get one of ten exposures: 10 * (.1 - 1/41) twice.
    with pytest.raises(ConfigError, match=r"41 groups than an L1 distance of 1\.51"):
        gym.make("KuaiRec-Fair-v0", **options)
    env = gym.make("KuaiRec-v0", **options)  # without abandonment, to measure
    env.reset(seed=1)
    *_, info = env.step(env.action_space.sample())
    assert not info["penalised"]
    with pytest.raises(ConfigError, match="penalises what is popular"):
        gym.make("KuaiRec-Fair-v0", dataset=labelled, groups="category", abandonment="popularity")


@pytest.mark.parametrize("shell", ["single", "vector", "sb3"])
def test_environments_balance_groups_of_one_s_own(labelled: Dataset, shell: str) -> None:
    labels = np.arange(labelled.n_items) % 3
    options = {"dataset": labelled, "groups": labels, "action_type": "slate", "slate_size": 6}
    slates = np.array([[0, 3, 6, 1, 4, 2], [0, 3, 1, 4, 2, 5]])  # 3, 2, 1 and 2, 2, 2
    if shell == "single":
        envs = [gym.make("KuaiRec-Fair-v0", **options) for _ in slates]
        observations = []
        for env, actions in zip(envs, slates, strict=True):
            env.reset(seed=1)
            observations.append(env.step(actions)[0])
        observed, batch = np.stack(observations), envs[0].unwrapped.batch
    elif shell == "vector":
        env = gym.make_vec("KuaiRec-Fair-v0", num_envs=2, **options)
        env.reset(seed=1)
        observed, batch = env.step(slates)[0], env.unwrapped.batch
    else:
        env = make_vec_env("KuaiRec-Fair-v0", 2, seed=1, **options)
        env.reset()
        observed, batch = env.step(slates)[0], env.batch
    assert batch.encoder.context == ("progress", "imbalance", "last_reward", "mean_reward")
    column = batch.encoder.context_slice.start + 1
    np.testing.assert_allclose(observed[:, column], [1 / 6, 0.0], atol=1e-6)
    if shell != "single":
        assert batch.core.state.penalised[:, 0].tolist() == [True, False]


def test_snapshots_and_views_know_the_groups(labelled: Dataset) -> None:
    options = {"dataset": labelled, "action_type": "slate", "slate_size": 6}
    grouped = make_vec_env("KuaiRec-Fair-v0", 2, seed=1, groups="category", ad_bound=1.0, **options)
    plain = make_vec_env("KuaiRec-Fair-v0", 2, seed=1, ad_bound=1.0, **options)
    for env in (grouped, plain):
        env.reset()
        env.step(np.arange(12).reshape(2, 6))
    with pytest.raises(ConfigError, match="other options: groups"):
        grouped.restore(plain.snapshot())
    snapshot = grouped.snapshot()
    grouped.step(np.arange(12, 24).reshape(2, 6))
    grouped.restore(snapshot)
    assert grouped.batch.core.state.recent.dtype == np.int8
    view = grouped.batch.view(0)
    assert view.measure == "imbalance"
    assert view.bounds == (-np.inf, 0.5)
    assert plain.batch.view(0).measure == "popular share"
    assert grouped.get_images()[0].shape == plain.get_images()[0].shape
    assert "imbalance" in as_text(view)


def test_features_of_a_dataset_need_not_be_there(small: Dataset) -> None:
    bare = dataclasses.replace(small, item_features=Features(), truth=None)
    with pytest.raises(ConfigError, match="groups: a column must be one of"):
        find_groups("category", "uniform", bare, load_catalogue(small))
